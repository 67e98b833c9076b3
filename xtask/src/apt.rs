//! Debian packages and sources of chosen suites, from the mirror that this machine uses, without a change to its apt.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// An apt of our own: other suites, state below `target/`.
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Sets it up in a folder. `kinds` are `deb` for packages, `deb-src` for sources.
    ///
    /// # Errors
    ///
    /// This machine's apt knows no Debian mirror, or the folder cannot be written.
    pub(crate) fn new(dir: PathBuf, kinds: &[&str], suites: &[&str]) -> Result<Self> {
        let mirror = Self::mirror()?;
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(name))
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let mut list = String::new();
        for kind in kinds {
            for suite in suites {
                list.push_str(&format!(
                    "{kind} [arch=amd64 signed-by={keys}] {mirror} {suite} main\n"
                ));
            }
        }
        fs::write(dir.join("sources.list"), list).context("cannot write the list of suites")?;
        Ok(Self { dir })
    }

    /// The address of the Debian mirror that this machine uses.
    ///
    /// # Errors
    ///
    /// This machine's apt knows none.
    pub(crate) fn mirror() -> Result<String> {
        let mirrors = run::output(run::command("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Origin: Debian",
            "Label: Debian",
        ]))?;
        match mirrors.lines().next() {
            Some(mirror) => Ok(mirror.to_owned()),
            None => bail!("this machine's apt has no Debian mirror: run `apt-get update`"),
        }
    }

    /// One of apt's commands with that state.
    pub(crate) fn command(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = run::command(program);
        for option in [
            format!("Dir::State={dir}"),
            format!("Dir::State::Lists={dir}/lists"),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={dir}/cache"),
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}
