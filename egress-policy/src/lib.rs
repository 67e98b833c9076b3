//! Policies: parse, validate, compile. Pure: no clock, no kernel, no runtime.
//!
//! [`CatalogSources::load`], [`load`] and [`read_texts`] read files and are, with what they call, the only functions here
//! that do I/O;
//! [`PolicySet::from_texts`] takes texts. Rules may refer to what is in the [`Catalog`]: service tags and presets.
//! [`import()`] makes policies of what other systems say, [`write_policies`] writes them.
//! [`compile`] makes the entries of the kernel's tries from a set and the [`Lifeline`]. Every error says where it
//! is, what is wrong and what would be right, and all of a set are reported.
//! [`Compiled::judge`] says what a compiled policy decides of a [`Destination`], [`Compiled::nearest`] which rules come
//! near, [`diff()`] what two policies decide differently.

mod catalog;
mod cidr;
mod compile;
mod compiled;
mod decode;
mod destination;
mod diff;
mod error;
mod evaluate;
mod expectations;
mod forms;
#[cfg(test)]
mod golden;
mod import;
mod lifeline;
mod load;
mod name;
mod names;
mod nearest;
mod port_set;
mod ports;
pub mod preset;
mod reader;
mod schema;
mod selector;
mod service_tags;
mod set;
pub mod text;
mod ttl;
mod write;
mod yaml;

#[cfg(test)]
mod tests;

pub use catalog::{Catalog, CatalogSources};
pub use cidr::{Cidr, CidrError};
pub use compile::compile;
pub use compiled::{Compiled, Cut, RuleList, RuleSource};
pub use destination::{Destination, DestinationError, Host};
pub use diff::{Becomes, Difference, PolicyDiff, SettingDifference, diff};
pub use error::{Meeting, Place, PolicyError, PolicyErrors, Problem};
pub use evaluate::telling;
pub use expectations::{Expectation, Expectations};
pub use import::{HostError, ImportFormat, ImportSubject, Imported, Note, NoteKind, import};
pub use lifeline::{Lifeline, LifelineEntry};
pub use load::{MAX_BYTES, load, load_any, load_text, read_texts};
pub use name::{NameError, NamePattern, Star, parse_name_pattern};
pub use names::Names;
pub use nearest::{Near, Nearness};
pub use ports::{PortsError, parse_port_range};
pub use preset::{PresetProblem, Presets};
pub use reader::{FieldPath, Fields, Reader, one_document};
pub use schema::{
    API_VERSION, CLUSTER_KIND, EgressPolicy, KIND, Metadata, Preexisting, PresetValue, Queries,
    Require, Spec, SpecDns, SpecMode, SpecRule, SpecTtl, Subject, json_schema, name_schema,
};
pub use selector::{Operator, Requirement, Selector, SelectorError};
pub use service_tags::{
    MAX_SERVICE_TAGS_BYTES, ServiceTag, ServiceTagError, ServiceTags, ServiceTagsFacts, UnknownTag,
};
pub use set::{Located, Policy, PolicySet, Rule, parse};
pub use text::{
    address_from, address_text, port_range_text, ports_text, printable, protocol_number,
    protocol_text,
};
pub use ttl::{MAX_TTL_S, Ttl, TtlError, parse_duration_s};
pub use write::{Draft, Entry, Target, write_policies};
pub use yaml::Node;
