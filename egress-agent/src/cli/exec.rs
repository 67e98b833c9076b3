//! `exec`: one command, judged.

use std::{
    ffi::OsString,
    fs::File,
    io::{Seek, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::Args;
use egress_common::{maps::LEARNED_CAPACITY, verdict::Mode};
use tracing::debug;

use super::{
    catalog::CatalogArgs,
    exit::{ExitCode, UsageError},
    output::{Screen, say},
    run::{LifelinePart, LogLevel, ModeArg, PendingPods, RunOptions, search_domains},
    table::{Cell, Paint, Table, number},
};
use crate::{
    api::model::Observations,
    daemon::Session,
    datapath,
    exec::{
        Allow, Facts, LeftProcess, OwnCgroup, Prepared, Report, ReportedDestination, RunAs,
        Signals, StartError, Terminal, Watcher, follow, wants_end,
    },
    observed::{GenerateOptions, generate},
    policy::{
        Catalog, CatalogSources, Cidr, Draft, Entry, PolicySet, SpecMode, parse_duration_s,
        write_policies,
    },
};

const EXAMPLES: &str = "\
Examples:
  sudo egress-agent exec --allow api.github.com --allow '*.npmjs.org:443' -- npm ci
      these names alone, for npm and all that it starts, as the user who called sudo
  sudo egress-agent exec --policy ci.yaml --report report.json --mode audit -- make test
      nothing is denied; the report says what would be
  sudo egress-agent exec --mode audit --learn ci.yaml -- make test
      writes the policy that the next run needs

WHAT is NAME[:PORTS][/PROTOCOL] or CIDR[:PORTS][/PROTOCOL]: any port without PORTS, tcp without
PROTOCOL. At the end, what was reached and denied is shown on stderr.

Exit status: that of the command, 128 and the number of the signal that ended it; 125 when exec
itself failed, 126 when the command cannot be run, 127 when it is not there.";

/// The message when there is no command.
const USAGE: &str = "there is no command: write it after `--`
  sudo egress-agent exec --allow api.github.com --allow '*.npmjs.org:443' -- npm ci
  sudo egress-agent exec --policy ci.yaml --report report.json --mode audit -- make test
  sudo egress-agent exec --mode audit --learn ci.yaml -- make test
`egress-agent exec --help` says more";

/// Name of the policy that `--allow` makes.
const ALLOW_POLICY: &str = "allow";
/// The name of its text in messages.
const ALLOW_FILE: &str = "--allow";
/// A process that ends by itself this soon after the command is not worth a word.
const SHORTLY: Duration = Duration::from_millis(100);
/// Between asking what is left to end and killing it.
const ASKED: Duration = Duration::from_secs(1);
/// How often the cgroup is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// Most lines of what was reached; `--report` has all.
const SHOWN: usize = 40;

/// Options of `exec`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Exec {
    /// What may be reached; may be repeated
    #[arg(long, value_name = "WHAT")]
    pub allow: Vec<Allow>,
    /// Policy file or folder, as `run` takes it; may be repeated
    #[arg(long, value_name = "PATH")]
    pub policy: Vec<PathBuf>,
    /// Mode instead of the policies' own; --allow alone enforces
    #[arg(long, value_name = "MODE")]
    pub mode: Option<ModeArg>,
    /// Write what was reached and denied as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the policy that allows what was reached, or would have been denied
    #[arg(long, value_name = "FILE")]
    pub learn: Option<PathBuf>,
    /// Do not show what was reached and denied
    #[arg(long, short)]
    pub quiet: bool,
    /// Run the command as this user [default: who called sudo]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Forbid the command to gain privileges, by sudo and the like
    #[arg(long)]
    pub no_new_privileges: bool,
    /// How long processes that the command leaves may go on; then they are killed
    #[arg(long, default_value = "5s", value_parser = wait, value_name = "TIME")]
    pub wait: Duration,
    /// Cgroup v2 directory in which the command's own is made [default: the cgroup of this process]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Resolvers whose answers are trusted, at port 53 if none is given; may be repeated [default: those of
    /// /etc/resolv.conf]
    #[arg(long, value_parser = crate::workload::parse_resolver, value_name = "IP[:PORT]")]
    pub resolver: Vec<SocketAddr>,
    /// Domains below which any name may be asked for under `dns.queries: allowed`; may be repeated [default: the search
    /// domains of /etc/resolv.conf]
    #[arg(long, value_name = "DOMAIN")]
    pub search_domain: Vec<String>,
    /// Ranges that are always allowed; may be repeated
    #[arg(long, value_name = "CIDR")]
    pub lifeline_cidr: Vec<Cidr>,
    /// Parts of the lifeline to leave out; may be repeated
    #[arg(long, value_name = "NAME")]
    pub no_lifeline: Vec<LifelinePart>,
    /// What rules may refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// The command with its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn wait(text: &str) -> Result<Duration, String> {
    match parse_duration_s(text) {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(error) => Err(error.to_string()),
    }
}

/// Files that are written at the end. They are opened before the command begins, with its user's permissions: it may
/// change what their paths mean.
struct Outputs {
    report: Option<File>,
    learn: Option<File>,
}

impl Outputs {
    fn open(exec: &Exec, user: &RunAs) -> anyhow::Result<Self> {
        let open = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .map(Some)
                .with_context(|| format!("cannot write {}", path.display())),
        };
        user.while_being(|| {
            Ok(Self {
                report: open(&exec.report)?,
                learn: open(&exec.learn)?,
            })
        })?
    }
}

fn write_whole(mut file: &File, text: &str) -> std::io::Result<()> {
    // A pipe has no length, and no place to begin at.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
        file.rewind()?;
    }
    file.write_all(text.as_bytes())
}

impl Exec {
    /// Runs the command to its end.
    ///
    /// # Errors
    ///
    /// None: what fails is said here, and is an exit status.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let status = match self.run() {
            Ok(status) => status,
            Err(error) => {
                say(&format!("error: {error:#}"));
                let of_start = error.downcast_ref::<StartError>();
                of_start.map_or(ExitCode::EXEC_FAILED, StartError::status)
            }
        };
        Ok(ExitCode::Command(status))
    }

    fn run(&self) -> anyhow::Result<u8> {
        if self.command.is_empty() {
            return Err(UsageError::new(USAGE).into());
        }
        let variable = |name: &str| std::env::var(name).ok();
        let user = RunAs::choose(self.user.as_deref(), variable)?;
        let (policies, catalog) = self.policies()?;
        let prepared = Prepared::new(&self.command, user.clone(), self.no_new_privileges)?;
        let outputs = Outputs::open(self, &user)?;
        let signals = Signals::hold()?;
        let terminal = Terminal::of_this_process();
        prepared.lift_memory_limit();
        let cgroup = OwnCgroup::make(self.cgroup.as_deref(), &user)?;
        let mut watcher = None;
        let inside = Inside {
            exec: self,
            user,
            prepared,
            signals,
            terminal,
            cgroup: &cgroup,
        };
        let done = check_machine(cgroup.path())
            .and_then(|()| self.options(cgroup.path()))
            .and_then(|options| inside.run(options, policies, catalog, &mut watcher));
        // Nothing of the command is left, however it ended. The watcher does the same if this process ends here.
        cgroup.kill();
        let removed = cgroup.remove();
        if let Some(watcher) = watcher {
            watcher.dismiss();
        }
        let (report, seen) = done?;
        if let Err(error) = removed {
            say(&format!("{:#}", anyhow::Error::new(error)));
        }
        self.write(&outputs, &report, &seen)?;
        if !self.quiet {
            say(show(&report, !self.policy.is_empty(), Screen::of_stderr()).trim_end());
        }
        Ok(report.exit_status)
    }

    /// The policies of files and options.
    fn policies(&self) -> anyhow::Result<(PolicySet, Catalog)> {
        let sources = self.catalog.sources()?;
        let catalog = sources.load().map_err(UsageError::new)?;
        let is_audit = self.mode == Some(ModeArg::Audit);
        if self.policy.is_empty() && self.allow.is_empty() && !is_audit {
            return Err(UsageError::new(
                "nothing is allowed: give --allow or --policy; or --mode audit, to see what the command reaches",
            )
            .into());
        }
        let mut policies = Vec::new();
        if !self.policy.is_empty() {
            let files = crate::policy::load(&self.policy, &catalog).map_err(UsageError::new)?;
            policies.extend(files.policies().iter().cloned());
        }
        if !self.allow.is_empty() || policies.is_empty() {
            // Beside enforced policies, one in audit opens nothing; so it has the mode of the others.
            let is_audit =
                !policies.is_empty() && policies.iter().all(|policy| policy.mode == Mode::Audit);
            let rules = self
                .allow
                .iter()
                .map(|allow| Entry::Rule(allow.rule().clone()));
            let draft = Draft {
                target: crate::policy::Target::Node,
                comments: Vec::new(),
                name: ALLOW_POLICY.to_owned(),
                mode: if is_audit {
                    SpecMode::Audit
                } else {
                    SpecMode::Enforce
                },
                allow: rules.collect(),
                deny: Vec::new(),
            };
            let text = write_policies(&[draft]);
            let path = Path::new(ALLOW_FILE);
            let set = PolicySet::from_texts([(path, text.as_str())], &catalog)
                .map_err(UsageError::new)?;
            policies.extend(set.policies().iter().cloned());
        }
        Ok((policies.into_iter().collect(), catalog))
    }

    /// Options for the daemon's parts.
    fn options(&self, cgroup: &Path) -> anyhow::Result<RunOptions> {
        let are_resolvers_given = !self.resolver.is_empty();
        let resolvers = self.resolver.clone();
        Ok(RunOptions {
            // They are read once: the command may change its files.
            policies: Vec::new(),
            kubernetes: None,
            pending_pods: PendingPods::default(),
            catalog: CatalogSources::default(),
            cgroup: cgroup.to_owned(),
            interfaces: Vec::new(),
            pod_interfaces: None,
            resolvers,
            are_resolvers_given,
            socket: PathBuf::new(),
            pin_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            mode: self.mode.map(Mode::from),
            confirm: None,
            scopes: Vec::new(),
            resolver_scopes: Vec::new(),
            search_domains: search_domains(&self.search_domain)?,
            are_search_domains_given: !self.search_domain.is_empty(),
            lifeline_cidrs: self.lifeline_cidr.clone(),
            api_server: None,
            api_service: None,
            no_lifeline: self.no_lifeline.clone(),
            max_learned: LEARNED_CAPACITY,
            // The command is alone.
            shares: datapath::Shares { percent: Some(100) },
            ebpf_log: LogLevel::Off,
            flow_log: None,
            scrape: None,
        })
    }

    fn write(&self, outputs: &Outputs, report: &Report, seen: &Observations) -> anyhow::Result<()> {
        if let (Some(file), Some(path)) = (&outputs.report, &self.report) {
            let mut text = serde_json::to_string_pretty(report).context("cannot write JSON")?;
            text.push('\n');
            write_whole(file, &text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let (Some(file), Some(path)) = (&outputs.learn, &self.learn) {
            let generated = generate(
                seen,
                &GenerateOptions {
                    name: "learned".to_owned(),
                    at: SystemTime::now().into(),
                    since: None,
                    from: None,
                    wildcard: None,
                    include_allowed: true,
                    include_denied: false,
                },
            );
            write_whole(file, &generated.text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Says exactly what is missing.
fn check_machine(cgroup: &Path) -> anyhow::Result<()> {
    let failed: Vec<String> = datapath::doctor_unpinned(cgroup)
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| {
            format!(
                "{}: {}; needed: {}; {}",
                check.name, check.found, check.needed, check.fix
            )
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(UsageError::new(format!(
        "this machine is not ready:\n  {}",
        failed.join("\n  ")
    ))
    .into())
}

/// Everything that is needed while the cgroup is there.
struct Inside<'a> {
    exec: &'a Exec,
    user: RunAs,
    prepared: Prepared,
    signals: Signals,
    terminal: Terminal,
    cgroup: &'a OwnCgroup,
}

impl Inside<'_> {
    fn run(
        self,
        options: RunOptions,
        policies: PolicySet,
        catalog: Catalog,
        watched: &mut Option<Watcher>,
    ) -> anyhow::Result<(Report, Observations)> {
        let began = Instant::now();
        let session = Session::begin(options, policies, catalog)?;
        let mode = session.mode();
        // Processes are made while this one has one thread: before there is a runtime.
        let watcher = watched.insert(Watcher::start(self.cgroup.path())?);
        if mode == Mode::Enforce && !self.exec.quiet {
            if self.user.uid.is_root() {
                say(
                    "egress-agent: the command runs as root, who can leave its cgroup; --user USER runs it as somebody else",
                );
            } else if self.cgroup.can_leave() {
                say(
                    "egress-agent: all cgroups here are the user's own, who can move the command out of its cgroup",
                );
            }
        }
        let started = SystemTime::now();
        let command = self
            .prepared
            .start(self.cgroup.directory(), self.cgroup.path())?;
        debug!(
            ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "command begun"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let watcher = watcher.pid();
        let work = async {
            let signals = self.signals.read()?;
            let ended = follow(&signals, command, watcher, self.cgroup, &self.terminal)
                .await
                .context("cannot wait for the command")?;
            let interrupted = wants_end(&signals);
            let left = self.end_what_is_left(interrupted).await;
            Ok::<_, anyhow::Error>((ended, left))
        };
        let (worked, seen) = runtime.block_on(session.serve(work));
        self.terminal.take_back();
        let (exit, left) = worked?;
        if self
            .cgroup
            .processes()
            .iter()
            .any(|process| process.pid == command.as_raw())
        {
            bail!("the command is still there, which is an error of egress-agent");
        }
        let facts = Facts {
            command: self
                .exec
                .command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            user: self.user,
            mode,
            started: started.into(),
            ended: SystemTime::now().into(),
            exit,
            left,
        };
        Ok((Report::new(facts, &seen), seen))
    }

    /// Waits for what the command left, and ends it after a while.
    async fn end_what_is_left(
        &self,
        interrupted: impl Future<Output = ()>,
    ) -> Vec<(LeftProcess, bool)> {
        if self.is_empty_within(SHORTLY.min(self.exec.wait)).await {
            return Vec::new();
        }
        let left = self.cgroup.processes();
        if !self.exec.quiet && !self.exec.wait.is_zero() {
            say(&format!(
                "egress-agent: the command left {}; they may go on for {} s",
                listed(&left),
                self.exec.wait.as_secs()
            ));
        }
        tokio::select! {
            is_empty = self.is_empty_within(self.exec.wait) => if is_empty {
                return left.into_iter().map(|process| (process, false)).collect();
            },
            () = interrupted => {}
        }
        let rest = self.cgroup.processes();
        self.cgroup.terminate();
        if !self.is_empty_within(ASKED).await {
            self.cgroup.kill();
        }
        if !self.exec.quiet && !rest.is_empty() {
            say(&format!("egress-agent: ended {}", listed(&rest)));
        }
        let is_in = |list: &[LeftProcess], pid| list.iter().any(|process| process.pid == pid);
        let gone = left
            .into_iter()
            .filter(|process| !is_in(&rest, process.pid));
        let gone: Vec<_> = gone.map(|process| (process, false)).collect();
        let killed = rest.into_iter().map(|process| (process, true));
        gone.into_iter().chain(killed).collect()
    }

    async fn is_empty_within(&self, time: Duration) -> bool {
        let end = Instant::now().checked_add(time);
        while !self.cgroup.is_empty() {
            if end.is_none_or(|end| Instant::now() >= end) {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }
}

fn listed(processes: &[LeftProcess]) -> String {
    let names: Vec<String> = processes
        .iter()
        .take(5)
        .map(|process| format!("{} ({})", process.command, process.pid))
        .collect();
    let more = processes.len().saturating_sub(names.len());
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    let noun = if processes.len() == 1 {
        "process"
    } else {
        "processes"
    };
    format!("{} {noun}, {}{more}", processes.len(), names.join(", "))
}

/// The table at the end.
fn show(report: &Report, has_files: bool, screen: Screen) -> String {
    let is_audit = report.mode == Mode::Audit.name();
    let denied = if is_audit {
        "would be denied"
    } else {
        "denied"
    };
    let (reached, refused) = (report.reached.len(), report.denied.len());
    let mut text = match (reached, refused) {
        (0, 0) => {
            "egress-agent: the command reached nothing outside, and was denied nothing\n".to_owned()
        }
        _ => format!("egress-agent: {reached} reached, {refused} {denied}\n"),
    };
    let mut table = Table::new()
        .word("VERDICT")
        .text("DESTINATION")
        .word("PORT")
        .number("FLOWS")
        .text("FIRST BY")
        .word("REASON");
    let mut row = |one: &ReportedDestination, verdict: &str, paint, reason: &str| {
        table.row([
            Cell::painted(verdict, paint),
            one.host().into(),
            one.service().into(),
            number(one.flows),
            one.sender().into(),
            reason.into(),
        ]);
    };
    let paint = if is_audit {
        Paint::Doubtful
    } else {
        Paint::Bad
    };
    for one in report.denied.iter().take(SHOWN) {
        row(one, denied, paint, &one.reason);
    }
    for one in report.reached.iter().take(SHOWN) {
        row(one, "reached", Paint::Good, "");
    }
    if !table.is_empty() {
        text.push_str(&table.render(screen));
    }
    let more = reached
        .saturating_sub(SHOWN)
        .saturating_add(refused.saturating_sub(SHOWN));
    if more > 0 {
        text.push_str(&format!("and {more} more: --report FILE has all\n"));
    }
    for loss in &report.losses {
        text.push_str(&format!("not all was seen: {} {}\n", loss.count, loss.what));
    }
    if !report.add.is_empty() {
        text.push_str("to allow what was denied, add:\n");
        if has_files {
            let rules: Vec<String> = report
                .denied
                .iter()
                .filter_map(ReportedDestination::rule)
                .collect();
            text.push_str(&rules.into_iter().take(SHOWN).collect::<String>());
        } else {
            for option in report.add.iter().take(SHOWN) {
                text.push_str(&format!("  {}\n", crate::policy::printable(option)));
            }
        }
    }
    if report.denied.iter().any(|one| one.add.is_none()) {
        text.push_str("docs/reasons.md says what the other reasons mean\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        api::{Timestamp, model::SenderProcess},
        exec::Ended,
    };

    fn destination(
        name: Option<&str>,
        verdict: &str,
        reason: &str,
        add: Option<&str>,
    ) -> ReportedDestination {
        let at = Timestamp::from(SystemTime::UNIX_EPOCH);
        ReportedDestination {
            name: name.map(str::to_owned),
            addresses: vec![IpAddr::from([192, 0, 2, 7])],
            port: Some(443),
            protocol: "tcp".to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            flows: 3,
            first: at,
            last: at,
            process: Some(SenderProcess {
                command: "node".to_owned(),
                pid: 4_242,
            }),
            add: add.map(str::to_owned),
        }
    }

    fn report(reached: Vec<ReportedDestination>, denied: Vec<ReportedDestination>) -> Report {
        let at = Timestamp::from(SystemTime::UNIX_EPOCH);
        let user = RunAs::choose(None, |_| None).expect("oneself");
        let facts = Facts {
            command: vec!["npm".to_owned()],
            user,
            mode: Mode::Enforce,
            started: at,
            ended: at,
            exit: Ended::Status(0),
            left: Vec::new(),
        };
        let add = denied.iter().filter_map(|one| one.add.clone()).collect();
        Report {
            reached,
            denied,
            add,
            ..Report::new(facts, &Observations::default())
        }
    }

    #[test]
    fn the_table_says_what_was_denied_first_and_what_to_add() {
        let report = report(
            vec![destination(
                Some("api.example.com"),
                "allowed",
                "learned",
                None,
            )],
            vec![destination(
                Some("evil.example"),
                "denied",
                "no_rule",
                Some("--allow evil.example:443"),
            )],
        );
        assert_eq!(
            show(&report, false, Screen::PLAIN),
            "\
egress-agent: 1 reached, 1 denied
VERDICT  DESTINATION      PORT     FLOWS  FIRST BY     REASON
denied   evil.example     443/tcp      3  node (4242)  no_rule
reached  api.example.com  443/tcp      3  node (4242)
to allow what was denied, add:
  --allow evil.example:443
"
        );
        let with_files = show(&report, true, Screen::PLAIN);
        assert!(
            with_files.ends_with("add:\n    - names: [evil.example]\n      ports: [\"443/tcp\"]\n"),
            "{with_files}"
        );
    }

    #[test]
    fn what_no_rule_could_allow_is_not_offered() {
        let report = report(
            Vec::new(),
            vec![destination(None, "denied", "denied_cidr", None)],
        );
        let text = show(&report, false, Screen::PLAIN);
        assert!(text.contains("192.0.2.7"), "{text}");
        assert!(!text.contains("--allow"), "{text}");
        assert!(text.contains("docs/reasons.md"), "{text}");
    }

    #[test]
    fn a_name_that_would_steer_a_terminal_does_not() {
        let report = report(
            vec![destination(Some("a\u{1b}[2J"), "allowed", "learned", None)],
            Vec::new(),
        );
        assert!(!show(&report, false, Screen::PLAIN).contains('\u{1b}'));
    }
}
