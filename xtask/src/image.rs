//! `cargo xtask image`: the container image as an OCI archive, with neither engine nor registry nor network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build,
    run::{self, Stage},
    setup::{self, Group},
};

/// Options of `cargo xtask image`.
#[derive(Args, Debug)]
pub(crate) struct Image {
    /// The image's name and tag.
    #[arg(long, default_value = concat!("egress-agent:", env!("CARGO_PKG_VERSION")))]
    tag: String,
}

impl Image {
    /// Builds the agent and the image, and says where it is.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub(crate) fn run(&self) -> Result<()> {
        let archive = build(&self.tag, None)?;
        let size = fs::metadata(&archive).map_or(0, |data| data.len());
        run::say(&format!(
            "{}: {size} bytes, {}",
            run::shown(&archive),
            self.tag
        ));
        Ok(())
    }
}

/// Builds the agent, unless there is one already, and the image, and says where the archive is.
///
/// # Errors
///
/// A tool is missing or fails.
pub(crate) fn build(tag: &str, agent: Option<&Path>) -> Result<PathBuf> {
    setup::setup(&[Group::Build, Group::Image])?;
    let agent = agent.map_or_else(build::build, |agent| Ok(agent.to_owned()))?;
    let dir = run::target_dir().join("image");
    setup::remove_dir(&dir)?;
    let context = dir.join("context");
    fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    // The recipe sees this folder: the agent and nothing else.
    run::copy_if_changed(&agent, &context.join("egress-agent"))?;
    let recipe = run::root().join("deploy/Containerfile");
    archive(&dir, &recipe, "egress-agent", tag)
}

/// Makes an image of `DIR/context` and says where its archive is: `DIR/NAME.oci.tar`.
///
/// # Errors
///
/// A tool is missing or fails.
pub(crate) fn archive(dir: &Path, recipe: &Path, name: &str, tag: &str) -> Result<PathBuf> {
    let stage = Stage::begin(&format!("image-{name}"), format!("container image {name}"))?;
    let buildah = Buildah::new(dir)?;
    stage.run(
        buildah
            .command("build")
            // One file system layer, equal for equal content.
            .args(["--layers=false", "--timestamp=0", "--pull-never"])
            .args(["--isolation=chroot", "--format=oci", "--file"])
            .arg(recipe)
            .args(["--tag", tag])
            .arg(dir.join("context")),
    )?;
    let archive = dir.join(format!("{name}.oci.tar"));
    stage.run(
        buildah
            .command("push")
            .arg(tag)
            .arg(format!("oci-archive:{}:{tag}", archive.display())),
    )?;
    buildah.clean(&stage)?;
    stage.done();
    Ok(archive)
}

/// A buildah with all of its state in one folder.
struct Buildah {
    dir: PathBuf,
}

impl Buildah {
    /// Writes what it needs to read.
    fn new(dir: &Path) -> Result<Self> {
        // Nothing is pulled, so that there is nothing whose signature could be checked.
        fs::write(
            dir.join("policy.json"),
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )
        .and_then(|()| fs::write(dir.join("registries.conf"), ""))
        .context("cannot write buildah's settings")?;
        Ok(Self {
            dir: dir.to_path_buf(),
        })
    }

    /// One of its commands.
    fn command(&self, name: &str) -> Command {
        let mut command = run::command("buildah");
        command
            .arg("--root")
            .arg(self.dir.join("storage"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .args(["--storage-driver", "vfs", "--registries-conf"])
            .arg(self.dir.join("registries.conf"))
            .arg(name);
        if name == "build" || name == "push" {
            command
                .arg("--signature-policy")
                .arg(self.dir.join("policy.json"));
        }
        command
    }

    /// Removes its storage, which the archive makes superfluous.
    fn clean(&self, stage: &Stage) -> Result<()> {
        stage.run(self.command("rmi").args(["--all", "--force"]))?;
        setup::remove_dir(&self.dir.join("storage"))?;
        setup::remove_dir(&self.dir.join("run"))
    }
}
