//! `policy learn`: a policy of what the agent saw.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::Args;

use super::{
    exit::{ExitCode, UsageError},
    output::{Format, note, say},
    remote::{RemoteArgs, wait_for},
};
use crate::{
    api::{Client, Timestamp, model::Observations},
    observed::{GenerateOptions, generate, seen_since},
    policy::{Catalog, Lifeline, PolicySet, compile, parse_duration_s},
};

const EXAMPLES: &str = "\
Examples:
  egress-agent policy learn > learned.yaml
      what audit mode let pass and enforcing would deny
  egress-agent policy learn --since 1d --wildcard 20
      *.example.net, where more than 20 names directly below it were seen
  egress-agent policy learn --include-allowed --name node > node.yaml
      a whole policy, with what rules allow already
  egress-agent policy learn --from web -o json | jq .observations

The policy audits until you write `mode: enforce`. It has the names that were
asked for; addresses without a name are listed as comments. What was lost on
the way, or left out, is said above it and on stderr.

Exit status: 0 written, even if nothing was seen; 1 no agent answers; 2 the
command line is not usable.";

/// Options of `policy learn`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Learn {
    /// Only what was seen since then: 30m, 12h, 7d or a time like 2026-11-22T02:49:55Z
    #[arg(long, value_parser = since, value_name = "TIME")]
    pub since: Option<Since>,
    /// Only what this scope sent, by the name that `status` shows
    #[arg(long, value_name = "SCOPE")]
    pub from: Option<String>,
    /// Offer *.parent where more than this many names directly below it were seen [default: never]
    ///
    /// The wildcard allows every other name below it, too; the names that it replaces are in its comment.
    #[arg(long, value_name = "N")]
    pub wildcard: Option<usize>,
    /// Name of the policy
    #[arg(long, default_value = "learned", value_name = "NAME")]
    pub name: String,
    /// Take in what rules allow already: for a policy that replaces them
    #[arg(long)]
    pub include_allowed: bool,
    /// Take in what enforcing denied: look twice at who wanted it
    #[arg(long)]
    pub include_denied: bool,
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// A point in time, as it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// That long ago.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl Since {
    fn before(self, now: SystemTime) -> Timestamp {
        match self {
            Self::Ago(ago) => {
                Timestamp::from(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH))
            }
            Self::At(at) => at,
        }
    }
}

fn since(text: &str) -> Result<Since, String> {
    // A day alone is a time, too.
    let forms = [text.to_owned(), format!("{text}T00:00:00Z")];
    if let Some(at) = forms.iter().find_map(|form| form.parse().ok()) {
        return Ok(Since::At(at));
    }
    match parse_duration_s(text) {
        Ok(seconds) => Ok(Since::Ago(Duration::from_secs(seconds.into()))),
        Err(_) => Err(
            "write a length of time up to 7d, such as 30m or 12h, or a time in UTC, such as \
             2026-11-22 or 2026-11-22T02:49:55Z"
                .to_owned(),
        ),
    }
}

impl Learn {
    /// Prints the policy, or what it would be made of.
    ///
    /// # Errors
    ///
    /// No agent answers, or there is no such scope.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        check_name(&self.name)?;
        let client = self.remote.client();
        let seen = wait_for(client.observations())?;
        if let Some(scope) = &self.from {
            check_scope(&client, &seen, scope)?;
        }
        let now = SystemTime::now();
        let since = self.since.map(|since| since.before(now));
        let seen = seen_since(seen, since, self.from.as_deref());
        let options = GenerateOptions {
            name: self.name,
            at: now.into(),
            since,
            from: self.from,
            wildcard: self.wildcard,
            include_allowed: self.include_allowed,
            include_denied: self.include_denied,
        };
        let generated = generate(&seen, &options);
        check(&generated.text).context("the policy that was made is not valid, which is an error of egress-agent; `-o json` has what was seen")?;
        let output = self.remote.output;
        output.print(&seen, |_| generated.text.clone())?;
        for loss in &seen.losses {
            say(&format!(
                "not all was seen: {} {}, noticed last at {}",
                loss.count, loss.what, loss.last
            ));
        }
        if output.output == Format::Table && generated.rules == 0 {
            note(
                "nothing was seen that a rule would have to allow; the comments say what was left out",
            );
        }
        Ok(ExitCode::Ok)
    }
}

/// Checks the policy as `run` would.
fn check(text: &str) -> anyhow::Result<()> {
    let set = PolicySet::from_texts([(Path::new("learned.yaml"), text)], &Catalog::default())?;
    compile(&set, &Lifeline::new(), None)?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), UsageError> {
    let options = GenerateOptions {
        name: name.to_owned(),
        at: SystemTime::UNIX_EPOCH.into(),
        since: None,
        from: None,
        wildcard: None,
        include_allowed: false,
        include_denied: false,
    };
    let nothing = generate(&Observations::default(), &options);
    check(&nothing.text).map_err(|error| UsageError::new(error.context(format!("--name {name}"))))
}

/// A scope that is neither there nor was is a mistake.
fn check_scope(client: &Client, seen: &Observations, scope: &str) -> anyhow::Result<()> {
    if seen.observations.iter().any(|one| one.scope == scope) {
        return Ok(());
    }
    let status = wait_for(client.status())?;
    let names: Vec<_> = status.scopes.iter().map(|one| one.name.as_str()).collect();
    if names.contains(&scope) {
        return Ok(());
    }
    let error = format!(
        "--from {scope}: no scope has this name; there are {}",
        names.join(", ")
    );
    Err(UsageError::new(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_length_of_time_or_a_time() {
        let at = |text: &str| Ok(Since::At(text.parse().expect("a time")));
        let ago = |seconds| Ok(Since::Ago(Duration::from_secs(seconds)));
        for (text, expected) in [
            ("1h", ago(3_600)),
            ("1d12h", ago(129_600)),
            ("2026-11-22", at("2026-11-22T00:00:00.000Z")),
            ("2026-11-22T02:49:55Z", at("2026-11-22T02:49:55.000Z")),
            ("2026-11-22t02:49:55.120z", at("2026-11-22T02:49:55.120Z")),
        ] {
            assert_eq!(since(text), expected, "{text}");
        }
        for text in [
            "",
            "1",
            "yesterday",
            "8d",
            "2026-11-22T02:49:55",
            "2026-13-01",
        ] {
            let error = since(text).expect_err(text);
            assert!(error.starts_with("write a length of time"), "{error}");
        }
        let day = Duration::from_secs(86_400);
        let now = SystemTime::UNIX_EPOCH.checked_add(day).expect("fits");
        let hour = since("23h").expect("a length").before(now);
        assert_eq!(hour.to_string(), "1970-01-01T01:00:00.000Z");
    }

    #[test]
    fn a_name_that_no_policy_can_have_is_said_before_anything_is_asked() {
        assert!(check_name("learned-1.example").is_ok());
        for name in ["", "Node", "a b", "a\nb", "lifeline", "\""] {
            let error = check_name(name).expect_err(name).to_string();
            assert!(error.contains("metadata.name"), "{error}");
        }
    }
}
