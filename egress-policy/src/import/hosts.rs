//! Plain lists: one destination on each line, with or without port.
//!
//! `api.example.com`, `.example.com` (it and all names below it, as squid writes them), `api.example.com:443`, `*.example.com:8000-8080/tcp`, `192.0.2.0/24:22`, `[2001:db8::1]:443`,
//! `2001:db8::/32`, `https://example.com/`; several ports are separated by commas, and `#` starts a comment.

use std::path::Path;

use egress_common::policy::PortRange;
use thiserror::Error;

use super::{
    addresses::parse_network,
    input::{Item, lines},
    rule::{Carried, Ports},
    sink::Sink,
};
use crate::{
    read::Place,
    vocabulary::{
        Cidr, CidrError, NameError, PortsError, Star, parse_name_pattern, parse_port_range, quoted,
    },
    write::Draft,
};

/// Why a line is no destination.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// More than one word.
    #[error("{0} is more than one destination; write one on each line, and comments after #")]
    Words(String),
    /// A bracket without its other one.
    #[error("{0} is not an IPv6 address in brackets; write [2001:db8::1]:443")]
    Bracket(String),
    /// No name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No network.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// No ports.
    #[error(transparent)]
    Ports(#[from] PortsError),
}

/// A line that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) destination: Destination,
    pub(super) ports: Ports,
    /// Path of a URL, which is not looked at.
    has_path: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Name(String),
    /// A name and all below it.
    Domain(String),
    Network(Cidr),
}

impl Destination {
    /// Adds it to a rule.
    pub(super) fn add_to(self, rule: &mut Carried<'_>) {
        match self {
            Self::Name(name) => rule.names.push(name),
            Self::Domain(name) => {
                rule.names.push(format!("*.{name}"));
                rule.names.push(name);
            }
            Self::Network(network) => rule.cidrs.push(network),
        }
    }
}

/// True if the text is such a list, by its first line that is not empty.
pub(super) fn is_list(text: &str) -> bool {
    let mut lines = text.lines().map(|line| content(line).0);
    lines
        .find(|line| !line.is_empty())
        .is_some_and(|line| !line.starts_with('-') && parse(line).is_ok())
}

/// Makes a policy of a list. Lines that follow each other and have the same ports become one rule.
pub(super) fn import(file: &Path, text: &str, sink: &mut Sink) {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy());
    let mut draft = sink.draft(stem.as_deref().unwrap_or_default());
    let nodes = lines(text);
    let mut rule: Option<Carried<'_>> = None;
    let mut said = Vec::new();
    for node in &nodes {
        let at = Item::root(file, node);
        let (words, comment) = content(at.text().unwrap_or_default());
        if words.is_empty() {
            // A comment starts something new, as an empty line does.
            flush(rule.take(), &mut draft, sink);
            if comment.is_none() && draft.allow.is_empty() {
                draft.comments.append(&mut said);
            }
            said.extend(comment.map(str::to_owned));
            continue;
        }
        let line = match parse(words) {
            Ok(line) => line,
            Err(error) => {
                sink.report.add(Place::field(file, node.line, ""), error);
                continue;
            }
        };
        if rule.as_ref().is_some_and(|rule| rule.ports != line.ports) {
            flush(rule.take(), &mut draft, sink);
        }
        let rule = rule.get_or_insert_with(|| {
            let mut rule = Carried::new(at.clone(), "", false);
            rule.ports = line.ports;
            said.drain(..).for_each(|text| rule.remark(text));
            rule
        });
        if let Some(comment) = comment {
            rule.remark(format!("{words}: {comment}"));
        }
        if line.has_path {
            rule.differs(&at, format!("the path of {words} is not looked at"));
        }
        line.destination.add_to(rule);
    }
    flush(rule, &mut draft, sink);
    draft.comments.append(&mut said);
    sink.drafts.push(draft);
}

fn flush(rule: Option<Carried<'_>>, draft: &mut Draft, sink: &mut Sink) {
    if let Some(rule) = rule {
        rule.finish(draft, sink);
    }
}

/// The text of a line before its comment, and the comment.
fn content(line: &str) -> (&str, Option<&str>) {
    match line.split_once('#') {
        Some((words, comment)) => (words.trim(), Some(comment.trim())),
        None => (line.trim(), None),
    }
}

pub(super) fn parse(text: &str) -> Result<Line, HostError> {
    if text.contains(char::is_whitespace) {
        return Err(HostError::Words(quoted(text)));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return url(scheme, rest);
    }
    if let Ok(network) = parse_network(text) {
        return Ok(Line {
            destination: Destination::Network(network),
            ports: Ports::Any,
            has_path: false,
        });
    }
    let (host, ports) = split_port(text)?;
    Ok(Line {
        destination: destination(host)?,
        ports: ports.map_or(Ok(Ports::Any), parse_ports)?,
        has_path: false,
    })
}

fn url(scheme: &str, rest: &str) -> Result<Line, HostError> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = split_port(authority)?;
    let port = port.unwrap_or(if scheme.eq_ignore_ascii_case("http") {
        "80"
    } else {
        "443"
    });
    Ok(Line {
        destination: destination(host)?,
        ports: parse_ports(port)?,
        has_path: !matches!(path, "" | "/" | "/*"),
    })
}

/// Host, and ports if there are any.
fn split_port(text: &str) -> Result<(&str, Option<&str>), HostError> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, rest) = inner
            .split_once(']')
            .ok_or_else(|| HostError::Bracket(quoted(text)))?;
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((host, Some(ports))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(HostError::Bracket(quoted(text))),
        };
    }
    Ok(match text.split_once(':') {
        Some((host, ports)) => (host, Some(ports)),
        None => (text, None),
    })
}

fn destination(host: &str) -> Result<Destination, HostError> {
    let head = host.split('/').next().unwrap_or(host);
    let is_digit = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    if host.contains(':') || !head.is_empty() && head.bytes().all(is_digit) {
        return Ok(Destination::Network(parse_network(host)?));
    }
    if let Some(domain) = host.strip_prefix('.') {
        let domain = parse_name_pattern(domain)?;
        // Below a pattern there is no domain.
        if domain.star == Star::None {
            return Ok(Destination::Domain(domain.to_string()));
        }
    }
    Ok(Destination::Name(parse_name_pattern(host)?.to_string()))
}

/// `443`, `443/udp`, `80,443`, `8000-8080/tcp`, `*`, `any`.
fn parse_ports(text: &str) -> Result<Ports, HostError> {
    let (list, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    if matches!(list, "*" | "any") {
        return match text.split_once('/') {
            Some(_) => Ok(Ports::Of(vec![parse_port_range(&format!("any/{proto}"))?])),
            None => Ok(Ports::Any),
        };
    }
    let ranges = list
        .split(',')
        .map(|range| parse_port_range(&format!("{range}/{proto}")));
    let ranges: Result<Vec<PortRange>, PortsError> = ranges.collect();
    Ok(Ports::Of(ranges?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        match parse(text) {
            Ok(line) => {
                let destination = match line.destination {
                    Destination::Name(name) => name,
                    Destination::Domain(name) => format!("{name} and below"),
                    Destination::Network(network) => network.to_string(),
                };
                let ports = match line.ports {
                    Ports::Any => "any".to_owned(),
                    Ports::Of(ports) => crate::ports_text(&ports),
                };
                let path = if line.has_path { " path" } else { "" };
                format!("{destination} {ports}{path}")
            }
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn every_form_of_a_line_is_read() {
        for (text, result) in [
            ("api.example.com", "api.example.com any"),
            (".Example.com:443", "example.com and below 443/tcp"),
            ("API.example.com:443", "api.example.com 443/tcp"),
            ("*.example.com:80,443", "*.example.com 80/tcp, 443/tcp"),
            ("ntp.example.com:123/udp", "ntp.example.com 123/udp"),
            (
                "api.example.com:8000-8080/TCP",
                "api.example.com 8000-8080/tcp",
            ),
            ("api.example.com:*", "api.example.com any"),
            ("api.example.com:*/udp", "api.example.com any/udp"),
            ("192.0.2.1", "192.0.2.1/32 any"),
            ("192.0.2.1:53/udp", "192.0.2.1/32 53/udp"),
            ("192.0.2.7/24", "192.0.2.0/24 any"),
            ("192.0.2.0/24:22", "192.0.2.0/24 22/tcp"),
            ("2001:db8::/32", "2001:db8::/32 any"),
            ("2001:db8::1", "2001:db8::1/128 any"),
            ("[2001:db8::1]", "2001:db8::1/128 any"),
            ("[2001:db8::1]:443/udp", "2001:db8::1/128 443/udp"),
            ("[2001:db8::/32]:443", "2001:db8::/32 443/tcp"),
            ("https://example.com/", "example.com 443/tcp"),
            ("http://example.com", "example.com 80/tcp"),
            ("https://example.com:8443/a/b", "example.com 8443/tcp path"),
        ] {
            assert_eq!(read(text), result, "{text}");
        }
    }

    #[test]
    fn what_is_no_destination_is_told_apart() {
        for (text, start) in [
            ("a b", "\"a b\" is more than one destination"),
            (
                "[2001:db8::1",
                "\"[2001:db8::1\" is not an IPv6 address in brackets",
            ),
            (
                "[2001:db8::1]443",
                "\"[2001:db8::1]443\" is not an IPv6 address in brackets",
            ),
            ("a.example:0", "\"0/tcp\" is not a port"),
            ("a.example:", "\"/tcp\" is not a port"),
            ("a.example:65536", "\"65536/tcp\" is not a port"),
            ("a.example:443/tpc", "\"443/tpc\" is not a port"),
            ("192.0.2.256", "\"192.0.2.256\" is not a CIDR"),
            (
                "10.0.0.0/33",
                "\"10.0.0.0/33\" has a prefix longer than /32",
            ),
            (":443", "\"\" is not a name"),
            (
                "api.example.com/v1",
                "\"api.example.com/v1\" is not a name: a name has no path",
            ),
        ] {
            let error = read(text);
            assert!(
                error.starts_with(&format!("error: {start}")),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_list_is_told_from_a_document() {
        for text in [
            "api.example.com:443\n",
            "# hosts\n\n10.0.0.0/8\n",
            "[::1]:443",
        ] {
            assert!(is_list(text), "{text}");
        }
        for text in [
            "",
            "# only\n",
            "{\n}",
            "[\n{}]",
            "kind: X\n",
            "---\na.example\n",
            "- a.example\n",
            "spec:\n",
        ] {
            assert!(!is_list(text), "{text}");
        }
    }
}
