//! From files to trees that know their lines, and from trees to fields. All errors of a text are collected.

mod error;
mod files;
mod part;
mod reader;
mod report;
mod typed;
pub(crate) mod yaml;

pub use error::ReadError;
pub(crate) use files::{Files, read_bounded, read_text, text_of, unreadable};
pub use files::{MAX_BYTES, load_text, read_texts};
pub(crate) use part::{Part, is_mapping, is_text};
pub use reader::{FieldPath, Fields, Located, Reader, one_document};
pub(crate) use reader::{has_text, nearest};
pub(crate) use report::Report;
pub use report::{Place, PolicyError, PolicyErrors, Problem};
pub(crate) use typed::read_typed;
pub use yaml::Node;
pub(crate) use yaml::{Value, line_at};
