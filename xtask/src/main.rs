//! `cargo xtask`: sets up, builds, tests and packages the project.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build;
mod demo;
mod dist;
mod docs;
mod e2e_node;
mod e2e_package;
mod ebpf;
mod faults;
mod fuzz;
mod helm;
mod image;
mod kernels;
mod kubernetes;
mod run;
mod setup;
mod stack;
mod test;
mod toolchain;
mod vm;

/// Sets up, builds, tests and packages the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing: Debian packages, the linker, a compiler for bpf.
    Setup(setup::Setup),
    /// Build the eBPF object alone, to target/ebpf/egress-ebpf.
    BuildEbpf(ebpf::BuildEbpf),
    /// Lint the kernel programs, as they are compiled for the kernel.
    ClippyEbpf(ebpf::ClippyEbpf),
    /// Build the static release agent with the eBPF object inside.
    Build(build::Build),
    /// Show the agent at work, in namespaces of its own.
    Demo(demo::Demo),
    /// Measure what egress costs, beside what its peers cost.
    Bench(bench::Bench),
    /// Set up, build, and run every test there is.
    Test(test::Test),
    /// Inject faults into an agent under traffic, one by one and in random combinations.
    Faults(faults::Faults),
    /// Feed the parsers, the programs in the kernel, the policy loader and the socket with random and broken input.
    Fuzz(fuzz::Fuzz),
    /// Write the generated parts of the documents, or check them.
    Docs(docs::Docs),
    /// Make everything that a release consists of: packages, tarballs, image, bill of materials, checksums.
    Dist(dist::Dist),
    /// Make the container image, as an OCI archive.
    Image(image::Image),
    /// Fetch and build a Kubernetes API server for the tests, to target/kubernetes.
    Kubernetes(kubernetes::Kubernetes),
    /// Try the DaemonSet on a real node, in QEMU.
    E2eNode(e2e_node::E2eNode),
    /// Try the Debian package on a node with systemd, in QEMU.
    E2ePackage(e2e_package::E2ePackage),
    /// Try the agent on other kernels, in QEMU.
    Vm(vm::Vm),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(command) => command.run(),
        Command::BuildEbpf(command) => command.run(),
        Command::ClippyEbpf(command) => command.run(),
        Command::Build(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Faults(command) => command.run(),
        Command::Fuzz(command) => command.run(),
        Command::Docs(command) => command.run(),
        Command::Dist(command) => command.run(),
        Command::Image(command) => command.run(),
        Command::Kubernetes(command) => command.run(),
        Command::E2eNode(command) => command.run(),
        Command::E2ePackage(command) => command.run(),
        Command::Vm(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
