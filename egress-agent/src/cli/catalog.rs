//! Options of every subcommand that reads policies: what their rules may refer to.

use std::path::PathBuf;

use clap::Args;

use super::{exit::UsageError, preset::PresetDirArgs};
use crate::{policy::CatalogSources, settings::Settings};

/// Where the service tags of rules are looked up.
#[derive(Clone, Debug, Default, Args)]
pub struct CatalogArgs {
    /// What service tags in rules mean: the JSON of Azure's weekly download, or of its Service Tags API [default:
    /// serviceTags.file of the settings]
    #[arg(long, value_name = "FILE")]
    pub service_tags: Option<PathBuf>,
    /// Where presets are looked up.
    #[command(flatten)]
    pub presets: PresetDirArgs,
    /// The agent's settings; flags win over them [default: /etc/egress/agent.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
}

impl CatalogArgs {
    /// The files that flags or settings name.
    ///
    /// # Errors
    ///
    /// The settings are not usable.
    pub fn sources(&self) -> Result<CatalogSources, UsageError> {
        let settings = Settings::load(self.settings.as_deref()).map_err(UsageError::new)?;
        let service_tags = self.service_tags.clone();
        Ok(CatalogSources {
            service_tags: service_tags.or(settings.service_tags),
            preset_dir: self.presets.preset_dir.clone(),
        })
    }
}
