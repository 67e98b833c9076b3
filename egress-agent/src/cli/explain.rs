//! `explain`: why a destination is allowed or denied, and what would allow it.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::{
    catalog::CatalogArgs,
    counters::verdict,
    exit::{ExitCode, UsageError},
    output::Screen,
    remote::{RemoteArgs, wait_for},
    status::duration,
    table::{Cell, Paint, Table},
};
use crate::{
    api::{
        model::{Explanation, RuleReport},
        report::explanation,
    },
    policy::{self, Compiled, Destination, Lifeline},
};

const EXAMPLES: &str = "\
Examples:
  egress-agent explain api.example.com
      what the kernel would decide now about port 443/tcp
  egress-agent explain 192.0.2.7:53/udp --from web
      the same for what the scope `web` sends
  egress-agent explain '[2001:db8::1]:8443' --from 4711
      for the scope that the process 4711 belongs to
  egress-agent explain api.example.com --namespace shop --pod payments-7d9c
  egress-agent explain api.example.com:icmp -o json
  egress-agent explain api.example.com:8443 --policy /etc/egress/policies
      without an agent: what the policies say, once the name is resolved;
      the lifeline, which the agent adds, does not count

Exit status: 0 allowed; 1 denied, also if audit mode lets it pass;
2 not to be said: bad destination, scope or policy, or no agent.";

/// Options of `explain`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// Name or address, and its port: without one 443/tcp; `:53/udp`, `:icmp`
    #[arg(
        value_name = "DESTINATION[:PORT[/PROTOCOL]]",
        required_unless_present = "policy"
    )]
    pub destination: Option<Destination>,
    /// Who sends: a scope, a process id, or the path of a cgroup [default: the node's own processes]
    #[arg(long, value_name = "SCOPE|PID|CGROUP", conflicts_with = "policy")]
    pub from: Option<String>,
    /// The pod that sends
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "policy"])]
    pub pod: Option<String>,
    /// The namespace of that pod
    #[arg(long, value_name = "NAME", default_value = "default", requires = "pod")]
    pub namespace: String,
    /// Ask these policy files or folders instead of the agent; may be repeated. The destination may come behind them
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub policy: Vec<PathBuf>,
    /// What rules may refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl Explain {
    /// Prints the explanation.
    ///
    /// # Errors
    ///
    /// The policies are not usable; no agent answers, or it knows no such scope.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let (destination, policies) = self.asked().map_err(UsageError::new)?;
        let explained = if policies.is_empty() {
            self.ask(&destination)
        } else {
            self.read(&destination, policies)
        };
        let explained = explained.map_err(UsageError::new)?;
        let output = self.remote.output;
        output.print(&explained, |screen| render(&explained, screen))?;
        Ok(if explained.verdict == "allowed" {
            ExitCode::Ok
        } else {
            ExitCode::Failure
        })
    }

    /// The destination and the policy files: without a destination of its own it is what comes last behind `--policy`.
    fn asked(&self) -> anyhow::Result<(Destination, &[PathBuf])> {
        match (&self.destination, self.policy.split_last()) {
            (Some(destination), _) => Ok((destination.clone(), &self.policy)),
            (None, Some((last, policies))) if !policies.is_empty() && !last.exists() => {
                let text = last.to_string_lossy();
                let destination = text
                    .parse()
                    .with_context(|| format!("{text} is no destination, and no file"))?;
                Ok((destination, policies))
            }
            (None, _) => {
                bail!("the destination is missing; write `explain api.example.com --policy FILE`")
            }
        }
    }

    fn ask(&self, destination: &Destination) -> anyhow::Result<Explanation> {
        let from = match &self.pod {
            Some(pod) => Some(format!("{}/{pod}", self.namespace)),
            None => self.from.as_deref().map(sender).transpose()?,
        };
        let to = format!("{destination:#}");
        wait_for(self.remote.client().explain(&to, from.as_deref()))
    }

    fn read(&self, destination: &Destination, policies: &[PathBuf]) -> anyhow::Result<Explanation> {
        let compiled = compiled(policies, &self.catalog)?;
        Ok(explanation(&compiled, destination, None))
    }
}

/// Policies as `run` reads them, without a lifeline.
pub(super) fn compiled(paths: &[PathBuf], catalog: &CatalogArgs) -> anyhow::Result<Compiled> {
    let catalog = catalog.sources()?.load()?;
    let set = policy::load(paths, &catalog)?;
    Ok(policy::compile(&set, &Lifeline::new(), None)?)
}

/// The scope as the agent knows it: a process is asked for its cgroup here, where its number means something.
fn sender(from: &str) -> anyhow::Result<String> {
    if from.is_empty() || !from.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(from.to_owned());
    }
    let path = format!("/proc/{from}/cgroup");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("--from {from}: there is no such process: cannot read {path}"))?;
    let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"));
    cgroup
        .map(str::to_owned)
        .with_context(|| format!("--from {from}: the process is in no cgroup v2"))
}

/// The explanation for people.
pub(super) fn render(explained: &Explanation, screen: Screen) -> String {
    let mut facts = Table::new().word("").text("");
    facts.row(["destination".into(), destination(explained).into()]);
    if let Some(scope) = &explained.scope {
        facts.row(["scope".into(), scope.into()]);
    }
    facts.row(["verdict".into(), verdict(&explained.verdict)]);
    let reason = format!("{}: {}", explained.reason, explained.words);
    facts.row(["reason".into(), reason.into()]);
    if let Some(rule) = &explained.rule {
        facts.row(["rule".into(), rule_text(rule).into()]);
    }
    if explained.default_port && !explained.ports.is_empty() {
        facts.row(["ports".into(), explained.ports.join(", ").into()]);
    }
    let mut parts = vec![facts.render(screen)];
    if explained.scope.is_some() && !explained.addresses.is_empty() {
        parts.push(addresses(explained).render(screen));
    }
    if !explained.causes.is_empty() {
        parts.push(causes(explained).render(screen));
    }
    if let Some(line) = &explained.add {
        // Not in a table: nothing may break a line that is to be copied.
        let title = Paint::Title.paint("To allow it, add to spec.allow of a policy:", screen);
        parts.push(format!("{title}\n    {line}\n"));
    }
    parts.join("\n")
}

fn destination(explained: &Explanation) -> String {
    let given = &explained.destination;
    if explained.default_port {
        format!("{given} (no port was given)")
    } else {
        given.clone()
    }
}

/// A rule and where it stands.
pub(super) fn rule_text(rule: &RuleReport) -> String {
    match (&rule.file, rule.line) {
        (Some(file), Some(line)) => format!("{} ({}:{line})", rule.rule, file.display()),
        _ => rule.rule.clone(),
    }
}

fn addresses(explained: &Explanation) -> Table {
    let mut table = Table::new()
        .text("ADDRESS")
        .word("VERDICT")
        .word("REASON")
        .number("ENDS IN")
        .text("RESOLVED FROM");
    for one in &explained.addresses {
        table.row([
            one.address.to_string().into(),
            verdict(&one.verdict),
            (&*one.reason).into(),
            one.expires_in_s
                .map_or_else(|| Cell::from(""), |left| duration(left).into()),
            one.names.join(", ").into(),
        ]);
    }
    table
}

fn causes(explained: &Explanation) -> Table {
    let mut table = Table::new().word("CAUSE").text("");
    for cause in &explained.causes {
        table.row([(&*cause.cause).into(), cause.words.as_str().into()]);
        if let Some(rule) = &cause.rule {
            table.row(["".into(), rule_text(rule).into()]);
        }
        table.row(["".into(), format!("→ {}", cause.advice).into()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_may_come_behind_the_policies() {
        use clap::Parser as _;
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(flatten)]
            explain: Explain,
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.yaml");
        fs::write(&file, "").expect("written");
        let file = file.to_str().expect("text");
        for words in [
            vec!["api.example.com:80", "--policy", file, "b.yaml"],
            vec!["--policy", file, "b.yaml", "api.example.com:80"],
            vec!["--policy", file, "--policy", "b.yaml", "api.example.com:80"],
        ] {
            let words = [vec!["explain"], words].concat();
            let explain = Cli::try_parse_from(&words).expect("parses").explain;
            let (destination, policies) = explain.asked().expect("is all there");
            assert_eq!(
                (destination.to_string().as_str(), policies.len()),
                ("api.example.com:80/tcp", 2),
                "{words:?}"
            );
        }
        for words in [
            vec!["--policy", file],
            vec!["--policy", "b.yaml", file],
            vec!["--policy", file, "a b"],
        ] {
            let words = [vec!["explain"], words].concat();
            let explain = Cli::try_parse_from(&words).expect("parses").explain;
            assert!(explain.asked().is_err(), "{words:?}");
        }
        assert!(Cli::try_parse_from(["explain"]).is_err());
    }

    #[test]
    fn a_process_is_known_by_its_cgroup() {
        let own = sender(&std::process::id().to_string()).expect("this process has a cgroup");
        assert!(own.starts_with('/'), "{own}");
        assert_eq!(sender("web").expect("a scope"), "web");
        assert_eq!(sender("/a/b").expect("a path"), "/a/b");
        let error = format!("{:#}", sender("4294967295").expect_err("no such process"));
        assert!(
            error.starts_with("--from 4294967295: there is no such process"),
            "{error}"
        );
    }
}
