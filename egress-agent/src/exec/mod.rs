//! One command in a cgroup of its own (`exec`): what is done around it.
//!
//! The *command* is the program that the user names, with all that it starts. Its cgroup is made by [`OwnCgroup`],
//! it begins there by [`Prepared::start`], as a [`RunAs`]. A [`Watcher`] is a copy of this process that holds the links
//! of the programs too, and ends what is in the cgroup when this process is killed. [`follow`] passes signals and waits.
//! The observations become a [`Report`].

mod accounts;
mod allow;
mod cgroup;
mod process;
mod report;
mod signals;
mod user;

pub use allow::{Allow, AllowError, argument};
pub use cgroup::{CgroupError, LeftProcess, OwnCgroup};
pub use process::{Prepared, StartError, Watcher};
pub use report::{Ended, Facts, Report, ReportedDestination, ReportedProcess, ReportedUser};
pub(crate) use signals::wants_end;
pub use signals::{Signals, SignalsError, Terminal, follow};
pub use user::{RunAs, UserError};
