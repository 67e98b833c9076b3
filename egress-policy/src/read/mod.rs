//! From files to trees that know their lines, and from trees to fields. All errors of a text are collected.

mod error;
mod files;
mod reader;
pub(crate) mod yaml;

pub(crate) use error::Report;
pub use error::{Meeting, Place, PolicyError, PolicyErrors, Problem};
pub(crate) use files::{Files, read_bounded, read_text, text_of, unreadable};
pub use files::{MAX_BYTES, load_text, read_texts};
pub use reader::{FieldPath, Fields, Located, Reader, one_document};
pub(crate) use reader::{is_text, nearest};
pub use yaml::Node;
pub(crate) use yaml::{Value, Wrong, line_at};
