//! Embeds the eBPF object that `cargo xtask build-ebpf` made, if there is one.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=EGRESS_EBPF_OBJECT");
    let default = PathBuf::from("../target/ebpf/egress-ebpf");
    let object = env::var_os("EGRESS_EBPF_OBJECT").map_or(default, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    // Without an object the agent still builds, so that a bare `cargo test`
    // needs no bpf-linker; `run` then says what to do.
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    fs::write(out.join("egress-ebpf"), bytes)
}
