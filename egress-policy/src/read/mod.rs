//! From files to trees that know their lines, and from trees to fields. All errors of a text are collected.

mod error;
mod files;
mod reader;
mod report;
pub(crate) mod yaml;

pub use error::ReadError;
pub(crate) use files::{Files, read_bounded, read_text, text_of, unreadable};
pub use files::{MAX_BYTES, load_text, read_texts};
pub use reader::{FieldPath, Fields, Located, Reader, one_document};
pub(crate) use reader::{is_text, nearest};
pub(crate) use report::Report;
pub use report::{Place, PolicyError, PolicyErrors, Problem};
pub use yaml::Node;
pub(crate) use yaml::{Value, line_at};
