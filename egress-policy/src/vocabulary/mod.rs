//! The words of a policy: each is a text that is read, checked and written in one place, with an error of its own.

mod address;
mod cidr;
mod destination;
pub(crate) mod lifeline;
pub(crate) mod name;
mod port_set;
pub(crate) mod ports;
mod quoting;
mod rule;
mod ttl;

pub use address::{address_from, address_text};
pub(crate) use cidr::V4_OFFSET;
pub use cidr::{Cidr, CidrError};
pub use destination::{Destination, DestinationError, Host};
pub use lifeline::{Lifeline, LifelineEntry};
pub use name::{NameError, NamePattern, Star, parse_name_pattern};
pub(crate) use port_set::PortSet;
pub use ports::{
    PortsError, parse_port_range, port_range_text, ports_text, protocol_number, protocol_text,
};
pub use quoting::printable;
pub(crate) use quoting::{quoted, shown};
pub use rule::RuleError;
pub(crate) use ttl::MAX_GRACE_S;
pub use ttl::{MAX_TTL_S, Ttl, TtlError, parse_duration_s};
