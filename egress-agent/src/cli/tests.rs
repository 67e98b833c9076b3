//! The command line as a whole.

mod tables;

use std::{fs, path::PathBuf, time::Duration};

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::{
    Cli, Command, ExitCode,
    run::{LifelinePart, LogLevel, ModeArg},
};

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_subcommand_has_examples_and_every_option_a_help() {
    fn check(command: &clap::Command) {
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{} of {}",
                argument.get_id(),
                command.get_name()
            );
        }
        if command.get_subcommands().next().is_none() {
            let after = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(after.contains("Examples:"), "{}", command.get_name());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

fn run_options(arguments: &[&str]) -> super::run::Run {
    let cli = Cli::try_parse_from([&["egress-agent", "run"], arguments].concat()).expect("parses");
    let Command::Run(run) = cli.command else {
        panic!("not run");
    };
    *run
}

#[test]
fn run_takes_lists_and_repetitions() {
    let run = run_options(&[
        "--policy",
        "a.yaml",
        "b.yaml",
        "--policy",
        "c",
        "--resolver",
        "192.0.2.53",
        "2001:db8::53",
        "--interface",
        "eth0",
        "--mode",
        "audit",
        "--scope",
        "web=/sys/fs/cgroup/web",
        "--lifeline-cidr",
        "10.0.0.0/8",
        "--api-server",
        "10.0.0.1:6443",
        "--no-lifeline",
        "dhcp",
        "--max-learned",
        "5",
        "--ebpf-log",
        "debug",
        "--confirm",
        "1m30s",
    ]);
    assert_eq!(run.confirm, Some(Duration::from_secs(90)));
    let paths: Vec<_> = ["a.yaml", "b.yaml", "c"].map(PathBuf::from).into();
    assert_eq!(run.policy, paths);
    assert_eq!(run.resolver.len(), 2);
    assert_eq!(run.mode, Some(ModeArg::Audit));
    assert_eq!(run.scope[0].name, "web");
    assert_eq!(run.no_lifeline, [LifelinePart::Dhcp]);
    assert_eq!((run.max_learned, run.ebpf_log), (5, LogLevel::Debug));
    assert_eq!(run.ebpf_log.number(), 4);
}

#[test]
fn defaults_are_right_for_a_node() {
    let run = run_options(&["--policy", "a.yaml"]);
    assert_eq!(run.socket.socket, PathBuf::from("/run/egress/agent.sock"));
    assert_eq!(run.pin_dir, PathBuf::from("/sys/fs/bpf/egress"));
    assert_eq!((run.mode, run.ebpf_log), (None, LogLevel::Off));
    assert_eq!(run.max_learned, egress_common::maps::LEARNED_CAPACITY);
    assert!(run.interface.is_empty() && run.cgroup.is_none() && run.confirm.is_none());
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for (arguments, kind) in [
        (&["run"][..], ErrorKind::MissingRequiredArgument),
        (
            &["run", "--policy", "a", "--mode", "maybe"],
            ErrorKind::InvalidValue,
        ),
        (
            &["run", "--policy", "a", "--resolver", "dns.example"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--scope", "web"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--scope", "node=/x"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--scope", "web=x"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--confirm", "60"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--confirm", "0s"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--max-learned", "0"],
            ErrorKind::ValueValidation,
        ),
        (
            &["run", "--policy", "a", "--lifeline-cidr", "10.0.0.1/8"],
            ErrorKind::ValueValidation,
        ),
        (
            &["--log", "egress=loud", "status"],
            ErrorKind::ValueValidation,
        ),
        (
            &["flows", "--follow", "--limit", "3"],
            ErrorKind::ArgumentConflict,
        ),
        (&["status", "-o", "xml"], ErrorKind::InvalidValue),
        (&["policy", "check"], ErrorKind::MissingRequiredArgument),
        (&["policy", "import"], ErrorKind::MissingRequiredArgument),
        (
            &["policy", "import", "--format", "iptables", "a"],
            ErrorKind::InvalidValue,
        ),
        (&["explain"], ErrorKind::MissingRequiredArgument),
        (&["explain", "10.0.0.0/8"], ErrorKind::ValueValidation),
        (
            &[
                "explain",
                "a.example",
                "--from",
                "web",
                "--policy",
                "a.yaml",
            ],
            ErrorKind::ArgumentConflict,
        ),
        (&["enforce"], ErrorKind::InvalidSubcommand),
    ] {
        let error = Cli::try_parse_from([&["egress-agent"], arguments].concat());
        let error = error.expect_err("is wrong");
        assert_eq!(error.kind(), kind, "{arguments:?}");
        assert_eq!(
            error.exit_code(),
            i32::from(ExitCode::Usage.number()),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_repeated_scope_is_a_usage_error() {
    let repeated = ["--policy", "a", "--scope", "web=/a", "--scope", "web=/b"];
    let result = run_options(&repeated).execute();
    assert_eq!(ExitCode::of(&result), ExitCode::Usage);
    let error = format!("{:#}", result.expect_err("fails"));
    assert!(error.starts_with("--scope web=/b repeats"), "{error}");
}

fn execute(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let cli = Cli::try_parse_from([&["egress-agent"], arguments].concat());
    cli.expect("parses").execute()
}

#[test]
fn without_an_agent_every_question_fails_with_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent.sock");
    let socket = socket.to_str().expect("plain");
    for question in [
        &["status"][..],
        &["confirm"],
        &["counters"],
        &["learned"],
        &["flows"],
        &["policy", "learn"],
    ] {
        let result = execute(&[question, &["--socket", socket]].concat());
        assert_eq!(ExitCode::of(&result), ExitCode::Failure, "{question:?}");
        let error = format!("{:#}", result.expect_err("fails"));
        assert!(error.starts_with("no agent is listening on "), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn explain_ends_with_two_without_an_agent_and_else_with_the_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.yaml");
    let policy = "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\n\
                  metadata: { name: node }\nspec:\n  allow:\n  - names: [api.example.com]\n";
    fs::write(&file, policy).expect("writes");
    let path = file.to_str().expect("plain");
    for (to, policy, code) in [
        ("api.example.com", path, ExitCode::Ok),
        ("www.example.com", path, ExitCode::Failure),
        ("api.example.com", "/no/such/file", ExitCode::Usage),
    ] {
        let result = execute(&["explain", to, "--policy", policy, "-o", "json"]);
        assert_eq!(ExitCode::of(&result), code, "{to} {policy}");
    }
    let socket = folder.path().join("agent.sock");
    let socket = socket.to_str().expect("plain");
    let result = execute(&["explain", "api.example.com", "--socket", socket]);
    assert_eq!(ExitCode::of(&result), ExitCode::Usage);
    let error = format!("{:#}", result.expect_err("fails"));
    assert!(error.starts_with("no agent is listening on "), "{error}");
}

#[test]
fn diff_and_test_end_with_what_they_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("writes");
        file.to_str().expect("plain").to_owned()
    };
    let policy = |spec: &str| {
        format!(
            "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: node }}\nspec: {spec}\n"
        )
    };
    let old = write(
        "old.yaml",
        &policy("{ allow: [{ names: [a.example, b.example] }] }"),
    );
    let same = write(
        "same.yaml",
        &policy("{ allow: [{ names: [b.example] }, { names: [a.example] }] }"),
    );
    let new = write("new.yaml", &policy("{ allow: [{ names: [a.example] }] }"));
    let bad = write("bad.yaml", "nothing");
    for (one, other, code) in [
        (&old, &same, ExitCode::Ok),
        (&old, &new, ExitCode::Failure),
        (&old, &bad, ExitCode::Usage),
    ] {
        let result = execute(&["policy", "diff", one, other, "-o", "json"]);
        assert_eq!(ExitCode::of(&result), code, "{one} {other}");
    }
    let good = write(
        "good.yaml",
        "policies: [new.yaml]\nexpect: [{ to: a.example, verdict: allowed }]",
    );
    let wrong = write(
        "wrong.yaml",
        "policies: [new.yaml]\nexpect: [{ to: b.example, verdict: allowed }]",
    );
    let none = write("none.yaml", "expect: [{ to: b.example, verdict: allowed }]");
    for (arguments, code) in [
        (vec![good.as_str()], ExitCode::Ok),
        (vec![&good, &wrong], ExitCode::Failure),
        (vec![&wrong, "--policy", &old], ExitCode::Ok),
        (vec![&none], ExitCode::Usage),
        (vec![&none, "--policy", &old], ExitCode::Ok),
        (vec![&bad], ExitCode::Usage),
    ] {
        for format in ["table", "json", "tap", "junit"] {
            let result =
                execute(&[&["policy", "test", "-o", format], arguments.as_slice()].concat());
            assert_eq!(ExitCode::of(&result), code, "{arguments:?}");
        }
    }
}

#[test]
fn policy_check_ends_with_two_for_what_run_would_refuse() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.yaml");
    let policy = "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\n\
                  metadata: { name: node }\nspec:\n  allow:\n  - names: [api.example.com]\n";
    fs::write(&file, policy).expect("writes");
    let path = file.to_str().expect("plain");
    let check = || execute(&["policy", "check", path, "-o", "json"]);
    assert_eq!(ExitCode::of(&check()), ExitCode::Ok);
    fs::write(&file, policy.replace("names", "nmaes")).expect("writes");
    let refused = check();
    assert_eq!(ExitCode::of(&refused), ExitCode::Usage);
    let error = format!("{:#}", refused.expect_err("fails"));
    assert!(error.contains("node.yaml:6"), "{error}");
    assert!(error.contains("nmaes"), "{error}");
}

#[test]
fn policy_import_ends_with_one_if_strict_and_inexact_and_with_two_for_bad_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hosts.txt");
    let path = file.to_str().expect("plain");
    let import = |strict: &[&str]| execute(&[&["policy", "import", path][..], strict].concat());
    fs::write(&file, "api.example.com:443\n").expect("writes");
    assert_eq!(ExitCode::of(&import(&["--strict"])), ExitCode::Ok);
    fs::write(&file, "https://api.example.com/v1/\n").expect("writes");
    assert_eq!(ExitCode::of(&import(&["-o", "json"])), ExitCode::Ok);
    let inexact = import(&["--strict"]);
    assert_eq!(ExitCode::of(&inexact), ExitCode::Failure);
    let error = format!("{:#}", inexact.expect_err("fails"));
    assert!(error.contains("1 that differ, 0 left out"), "{error}");
    fs::write(&file, "api.example.com:443\napi.example.com:x\n").expect("writes");
    let refused = import(&[]);
    assert_eq!(ExitCode::of(&refused), ExitCode::Usage);
    let error = format!("{:#}", refused.expect_err("fails"));
    assert!(
        error.contains("hosts.txt:2: \"x/tcp\" is not a port"),
        "{error}"
    );
    let many = (1..=9).map(|port| format!("api.example.com:{}\n", port * 2));
    fs::write(&file, many.collect::<String>()).expect("writes");
    let unusable = import(&[]);
    assert_eq!(ExitCode::of(&unusable), ExitCode::Failure);
    let error = format!("{:#}", unusable.expect_err("fails"));
    assert!(error.contains("run would refuse the result"), "{error}");
    let missing = execute(&["policy", "import", "/does/not/exist"]);
    assert_eq!(ExitCode::of(&missing), ExitCode::Usage);
}

#[test]
fn policy_import_is_strict_about_stars_that_mean_something_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.yaml");
    let path = file.to_str().expect("plain");
    for (pattern, inexact) in [
        ("shard-*.example.com", None),
        ("*-eu.example.com", None),
        ("*.example.com", Some("1 that differ, 0 left out")),
        ("*-eu-*.example.com", Some("0 that differ, 1 left out")),
        ("a.*.example.com", Some("0 that differ, 1 left out")),
    ] {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{ name: a }}\nspec:\n  \
             endpointSelector: {{}}\n  egress: [{{ toFQDNs: [{{ matchPattern: \"{pattern}\" }}] }}]\n"
        );
        fs::write(&file, text).expect("writes");
        let lenient = execute(&["policy", "import", path]);
        assert_eq!(ExitCode::of(&lenient), ExitCode::Ok, "{pattern}");
        let strict = execute(&["policy", "import", path, "--strict"]);
        match (strict, inexact) {
            (Ok(code), None) => assert_eq!(code, ExitCode::Ok, "{pattern}"),
            (Err(error), Some(inexact)) => {
                assert!(
                    format!("{error:#}").contains(inexact),
                    "{pattern}: {error:#}"
                );
            }
            (strict, _) => panic!("{pattern}: {strict:?}"),
        }
    }
}

#[test]
fn preset_show_prints_a_policy_or_says_what_is_missing() {
    let show = |arguments: &[&str]| execute(&[&["preset", "show"], arguments].concat());
    let good = ["aks/azure-global", "--with", "location=eastus"];
    assert_eq!(ExitCode::of(&show(&good)), ExitCode::Ok);
    let lists = [
        "aks/addon/key-vault",
        "--with",
        "vaults=a.example.com,b.example.com",
        "-o",
        "json",
    ];
    assert_eq!(ExitCode::of(&show(&lists)), ExitCode::Ok);
    for (arguments, message) in [
        (&["aks/azure-global"][..], "write --with location=eastus"),
        (&["aks/azure-globl"], "write aks/azure-global"),
        (
            &["aks/addon/gpu", "--preset-dir", "/no/such/folder"],
            "/no/such/folder: cannot be read",
        ),
    ] {
        let result = show(arguments);
        assert_eq!(ExitCode::of(&result), ExitCode::Usage, "{arguments:?}");
        let error = format!("{:#}", result.expect_err("fails"));
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn preset_list_takes_a_name_and_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "description: Mine\nrules:\n  - { description: One, names: [one.example.com], ports: [443/tcp] }\n";
    fs::write(folder.path().join("mine.yaml"), text).expect("writes");
    let path = folder.path().to_str().expect("plain");
    let list =
        |arguments: &[&str]| ExitCode::of(&execute(&[&["preset", "list"], arguments].concat()));
    assert_eq!(list(&[]), ExitCode::Ok);
    assert_eq!(list(&["mine"]), ExitCode::Usage);
    assert_eq!(
        list(&["mine", "--preset-dir", path, "-o", "json"]),
        ExitCode::Ok
    );
    assert_eq!(list(&["--preset-dir", path]), ExitCode::Ok);
    // A policy finds it there too.
    let file = folder.path().join("policy.yml.txt");
    let policy = "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\n\
                  metadata: { name: node }\nspec:\n  allow:\n  - preset: mine\n";
    fs::write(&file, policy).expect("writes");
    let file = file.to_str().expect("plain");
    let check =
        |more: &[&str]| ExitCode::of(&execute(&[&["policy", "check", file], more].concat()));
    assert_eq!(check(&[]), ExitCode::Usage);
    assert_eq!(check(&["--preset-dir", path]), ExitCode::Ok);
}
