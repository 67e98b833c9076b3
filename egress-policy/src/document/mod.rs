//! Policy documents: their schema, what their rules refer to, and the checked policies that they become.

mod catalog;
mod check;
mod error;
mod forms;
mod load;
mod preset;
mod schema;
pub(crate) mod selector;
mod service_tags;
mod set;
mod tree;

pub use catalog::{Catalog, CatalogSources};
pub use check::check;
pub use error::DocumentError;
pub use load::{load, load_any};
pub use schema::{
    API_VERSION, CLUSTER_KIND, EgressPolicy, KIND, Metadata, Preexisting, PresetValue, Queries,
    Require, Spec, SpecDns, SpecMode, SpecRule, SpecTtl, Subject, json_schema, name_schema,
};
pub use selector::{Operator, Requirement, Selector, SelectorError};
pub use service_tags::{
    MAX_SERVICE_TAGS_BYTES, ServiceTag, ServiceTagError, ServiceTags, ServiceTagsFacts, UnknownTag,
};
pub(crate) use set::DESTINATIONS;
pub use set::{Policy, PolicySet, Rule, RuleList, parse};
#[cfg(test)]
pub(crate) use tree::FIELDS;
