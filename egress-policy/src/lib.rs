//! Policies: parse, validate, compile. Pure: no clock, no kernel, no runtime.
//!
//! [`CatalogSources::load`], [`load`] and [`read_texts`] read files and are, with what they call, the only functions here
//! that do I/O;
//! [`PolicySet::from_texts`] takes texts. Rules may refer to what is in the [`Catalog`]: service tags and presets.
//! [`import()`] makes policies of what other systems say, [`write_policies`] writes them.
//! [`compile()`] makes the entries of the kernel's tries from a set and the [`Lifeline`]. Every error says where it
//! is, what is wrong and what would be right, and all of a set are reported.
//! [`Compiled::judge`] says what a compiled policy decides of a [`Destination`], [`Compiled::nearest`] which rules come
//! near, [`diff()`] what two policies decide differently.

mod ask;
mod compile;
mod document;
mod import;
pub mod preset;
mod read;
mod vocabulary;
mod write;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use ask::{
    AskError, Becomes, Difference, Expectation, Expectations, Near, Nearness, PolicyDiff,
    SettingDifference, diff, telling,
};
pub use compile::{CompileError, Compiled, Cut, Meeting, Names, RuleSource, compile};
pub use document::{
    API_VERSION, CLUSTER_KIND, Catalog, CatalogSources, DocumentError, EgressPolicy, KIND,
    MAX_SERVICE_TAGS_BYTES, Metadata, Operator, Policy, PolicySet, Preexisting, PresetValue,
    Queries, Require, Requirement, Rule, RuleList, Selector, SelectorError, ServiceTag,
    ServiceTagError, ServiceTags, ServiceTagsFacts, Spec, SpecDns, SpecMode, SpecRule, SpecTtl,
    Subject, UnknownTag, check, json_schema, load, load_any, name_schema, parse,
};
pub use import::{
    HostError, ImportError, ImportFormat, ImportSubject, Imported, Note, NoteKind, import,
};
pub use preset::{PresetError, Presets};
pub use read::{
    FieldPath, Fields, Located, MAX_BYTES, Node, Place, PolicyError, PolicyErrors, Problem,
    ReadError, Reader, load_text, one_document, read_texts,
};
pub use vocabulary::{
    Cidr, CidrError, Destination, DestinationError, Host, Lifeline, LifelineEntry, MAX_TTL_S,
    NameError, NamePattern, PortsError, RuleError, Star, Ttl, TtlError, address_from, address_text,
    parse_duration_s, parse_name_pattern, parse_port_range, port_range_text, ports_text, printable,
    protocol_number, protocol_text,
};
pub use write::{Draft, Entry, Target, write_policies};
