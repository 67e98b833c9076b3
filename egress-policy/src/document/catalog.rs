//! The catalog: what rules may refer to besides what they write themselves.

use std::{path::PathBuf, sync::Arc};

use super::service_tags::{ServiceTag, ServiceTagError, ServiceTags};
use crate::preset::Presets;

/// The service tags of a file, and presets: rules may refer to them.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    service_tags: Option<Arc<ServiceTags>>,
    presets: Presets,
}

impl Catalog {
    /// A catalog with the service tags of a file, if there is one.
    #[must_use]
    pub fn new(service_tags: Option<ServiceTags>) -> Self {
        Self {
            service_tags: service_tags.map(Arc::new),
            presets: Presets::default(),
        }
    }

    /// The same with other presets.
    #[must_use]
    pub fn with_presets(self, presets: Presets) -> Self {
        Self { presets, ..self }
    }

    /// The service tags, if a file was given.
    #[must_use]
    pub fn service_tags(&self) -> Option<&ServiceTags> {
        self.service_tags.as_deref()
    }

    /// The presets.
    #[must_use]
    pub const fn presets(&self) -> &Presets {
        &self.presets
    }

    /// The service tag of this name, in any case.
    ///
    /// # Errors
    /// There is no such tag, or no file at all.
    pub(crate) fn service_tag(&self, name: &str) -> Result<Arc<ServiceTag>, ServiceTagError> {
        match &self.service_tags {
            Some(tags) => ServiceTags::find(tags, name),
            None => Err(ServiceTagError::no_file(name)),
        }
    }
}

/// Where a catalog is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogSources {
    /// A file of service tags.
    pub service_tags: Option<PathBuf>,
    /// A folder of presets.
    pub preset_dir: Option<PathBuf>,
}
