//! Golden files of unit tests. `EGRESS_BLESS=1 cargo test` writes them anew.

use std::{env, fs, path::Path};

/// The text of the file; with `EGRESS_BLESS` it gets `text` first. Nothing if it is not there.
pub(crate) fn golden(path: &Path, text: &str) -> String {
    if env::var_os("EGRESS_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::read_to_string(path).unwrap_or_default()
}
