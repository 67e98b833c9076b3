//! Name patterns as rules write them, after the FQDN rules of the Kubernetes network-policy-api.
//!
//! An exact name, or `*.` and a name: one or more labels below it, the name
//! itself excluded. Beyond that API, one `*` inside the first label stands for
//! any bytes of that label, or none. `*` alone is refused: it would be "every name", which is
//! what CIDRs are for. `*.com` is not refused, although that API wants two
//! labels: the compiler cannot know which single labels are public, and private
//! zones such as `*.internal` or `*.corp` are single labels in practice.

use std::{fmt, net::IpAddr};

use egress_common::name::{LABEL_BYTES, NAME_TEXT_BYTES, is_matchable};
use thiserror::Error;

use super::{cidr::Cidr, quoted, shown};

/// A name pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamePattern {
    /// In lower case without the final dot: the whole name, or what stands behind the label with the `*`.
    pub name: String,
    /// Where its `*` stands.
    pub star: Star,
}

/// The `*` of a name pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Star {
    /// None: the pattern covers this one name.
    None,
    /// `*.`: it covers every name below the name, and not the name itself.
    Below,
    /// Inside the first label: it covers names one label below the name.
    Label {
        /// The beginning of that label; may be empty.
        prefix: String,
        /// Its end; may be empty, but not both.
        suffix: String,
    },
}

impl NamePattern {
    /// True if it covers a name (lower case, without final dot).
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        let label = |name: &str| -> Option<usize> {
            let label = name.strip_suffix(&self.name)?.strip_suffix('.')?;
            (!label.is_empty()).then_some(label.len())
        };
        match &self.star {
            Star::None => name == self.name,
            Star::Below => label(name).is_some(),
            Star::Label { prefix, suffix } => label(name)
                .and_then(|bytes| name.get(..bytes)?.strip_prefix(prefix.as_str()))
                .is_some_and(|rest| !rest.contains('.') && rest.ends_with(suffix)),
        }
    }
}

/// No name that is longer before its conversion to A-labels fits after it.
const UNICODE_BYTES: usize = 4 * NAME_TEXT_BYTES;

/// Why a text is no name or pattern.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text} is not a name: {why}; write {hint}")]
pub struct NameError {
    /// The text, quoted.
    pub text: String,
    /// The error.
    pub why: String,
    /// The correction.
    pub hint: String,
}

/// The hint when the right form cannot be guessed.
pub(crate) const FORMS: &str = "api.example.com or \"*.example.com\"";

/// The hint when a `*` stands where it cannot.
const STARS: &str =
    "one * as \"*.example.com\" for all names below, or in the first label as \"md-*.example.com\"";

type Wrong = (String, String);

/// Reads a name or pattern: lower case, without one final dot, in A-label form.
///
/// # Errors
/// If it is none; with the form that was probably meant.
pub fn parse_name_pattern(text: &str) -> Result<NamePattern, NameError> {
    parse(text).map_err(|(why, hint)| NameError {
        text: quoted(text),
        why,
        hint,
    })
}

fn parse(text: &str) -> Result<NamePattern, Wrong> {
    let wrong = |why: &str, hint: &str| Err((why.to_owned(), hint.to_owned()));
    refuse_other_kinds(text)?;
    if !text.is_empty() && text.chars().all(|c| matches!(c, '*' | '.')) && text.contains('*') {
        return wrong(
            "* alone would be every name",
            "a name below it such as \"*.example.com\", or cidrs: [0.0.0.0/0, \"::/0\"]",
        );
    }
    let (star, base) = star_of(text)?;
    if base.starts_with('.') {
        let rest = base.trim_matches('.');
        if rest.is_empty() {
            return wrong("a label is empty", FORMS);
        }
        return wrong(
            "it starts with a dot",
            &format!("\"*.{0}\" for the names below {0}", shown(rest)),
        );
    }
    let name = base.strip_suffix('.').unwrap_or(base);
    let name = if name.is_ascii() {
        name.to_ascii_lowercase()
    } else if name.len() > UNICODE_BYTES {
        return Err(too_long(name.len()));
    } else {
        a_labels(name)?
    };
    for label in name.split('.') {
        if label.is_empty() {
            return wrong("a label is empty", FORMS);
        }
        check_label(label)?;
    }
    // A `*` inside a label may stand for nothing.
    let before = match &star {
        Star::None => 0,
        Star::Below => 2,
        Star::Label { prefix, suffix } => {
            prefix.len().saturating_add(suffix.len()).saturating_add(1)
        }
    };
    let bytes = name.len().saturating_add(before);
    if bytes > NAME_TEXT_BYTES {
        return Err(too_long(bytes));
    }
    if name
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return wrong("it has digits only", "addresses under cidrs");
    }
    Ok(NamePattern { name, star })
}

/// Splits the text into its `*` and the name behind it.
fn star_of(text: &str) -> Result<(Star, &str), Wrong> {
    let wrong = |why: &str, hint: &str| Err((why.to_owned(), hint.to_owned()));
    let Some((prefix, rest)) = text.split_once('*') else {
        return Ok((Star::None, text));
    };
    if rest.contains('*') {
        return wrong("it has more than one *", STARS);
    }
    if prefix.contains('.') {
        return wrong("* stands behind the first label", STARS);
    }
    let Some((suffix, name)) = rest.split_once('.').filter(|(_, name)| !name.is_empty()) else {
        return wrong("* stands in its only label", STARS);
    };
    if prefix.is_empty() && suffix.is_empty() {
        return Ok((Star::Below, name));
    }
    let label = format!("{prefix}{suffix}");
    if !label.is_ascii() {
        let why =
            "the label with * has other than ASCII letters, and its A-label form cannot be told";
        return wrong(why, STARS);
    }
    check_label(&label)?;
    let star = Star::Label {
        prefix: prefix.to_ascii_lowercase(),
        suffix: suffix.to_ascii_lowercase(),
    };
    Ok((star, name))
}

/// Refuses bytes that no name has, and more of them than a label can have.
fn check_label(label: &str) -> Result<(), Wrong> {
    let is_bad = |c: &char| !c.is_ascii() || !is_matchable(c.to_ascii_lowercase() as u8);
    if let Some(bad) = label.chars().find(is_bad) {
        let why = format!("{} cannot stand in a name", quoted(&bad.to_string()));
        return Err((why, "letters, digits, - and _ between dots".to_owned()));
    }
    if label.len() > LABEL_BYTES {
        let why = format!("a label has {} bytes", label.len());
        return Err((why, "labels of at most 63 bytes".to_owned()));
    }
    Ok(())
}

fn too_long(bytes: usize) -> Wrong {
    (
        format!("it has {bytes} bytes"),
        "at most 253 bytes, which is the longest name in DNS".to_owned(),
    )
}

/// Refuses what is clearly meant as something else: addresses, URLs, ports.
fn refuse_other_kinds(text: &str) -> Result<(), Wrong> {
    let wrong = |why: &str, hint: String| Err((why.to_owned(), hint));
    if text.is_empty() {
        return wrong("it is empty", FORMS.to_owned());
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = inner.parse::<IpAddr>() {
        let cidr = Cidr::from(address);
        return wrong("it is an address", format!("cidrs: [\"{cidr}\"]"));
    }
    if text.contains('/')
        && let Ok(cidr) = text.parse::<Cidr>()
    {
        return wrong("it is a CIDR", format!("cidrs: [\"{cidr}\"]"));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let authority = authority.rsplit('@').next().unwrap_or(authority);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port),
            None if scheme.eq_ignore_ascii_case("http") => (authority, "80"),
            None => (authority, "443"),
        };
        return wrong(
            "it is a URL",
            format!(
                "names: [{}] and ports: [\"{}/tcp\"]",
                quoted(host),
                shown(port)
            ),
        );
    }
    if let Some((host, _)) = text.split_once('/') {
        return wrong("a name has no path", quoted(host));
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let hint = if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            format!(
                "names: [{}] and ports: [\"{}/tcp\"]",
                quoted(host),
                shown(port)
            )
        } else {
            FORMS.to_owned()
        };
        return wrong("ports stand apart", hint);
    }
    Ok(())
}

/// The A-label form of a name with other than ASCII letters.
fn a_labels(name: &str) -> Result<String, Wrong> {
    match idna::domain_to_ascii(name) {
        // A final dot is gone by now: another one ends in an empty label.
        Ok(ascii) if name.ends_with('.') => Ok(ascii),
        Ok(ascii) => Ok(ascii.strip_suffix('.').unwrap_or(&ascii).to_owned()),
        // The crate's error says nothing more.
        Err(_) => Err((
            "it is no valid international name".to_owned(),
            "its A-label form, such as xn--bcher-kva.example".to_owned(),
        )),
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.star {
            Star::None => {}
            Star::Below => f.write_str("*.")?,
            Star::Label { prefix, suffix } => write!(f, "{prefix}*{suffix}.")?,
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        parse_name_pattern(text).unwrap().to_string()
    }

    fn refused(text: &str) -> (String, String) {
        let error = parse_name_pattern(text).unwrap_err();
        (error.why, error.hint)
    }

    #[test]
    fn names_are_normalised() {
        for (text, normal) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.COM.", "api.example.com"),
            ("*.Example.com.", "*.example.com"),
            ("*.com", "*.com"),
            ("localhost", "localhost"),
            ("_sip._tcp.example.com", "_sip._tcp.example.com"),
            ("-odd-.example.com", "-odd-.example.com"),
            (
                "r3---sn-4g5e6nsz.example.com",
                "r3---sn-4g5e6nsz.example.com",
            ),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("*.BÜCHER.example.", "*.xn--bcher-kva.example"),
            ("1.2.3.example", "1.2.3.example"),
            ("4.3.2.1.in-addr.arpa", "4.3.2.1.in-addr.arpa"),
            ("MD-*.Blob.example.net.", "md-*.blob.example.net"),
            ("*-suffix.x.net", "*-suffix.x.net"),
            ("a*b.x.net", "a*b.x.net"),
            ("*example.com", "*example.com"),
            ("xn--*.b\u{fc}cher.example", "xn--*.xn--bcher-kva.example"),
        ] {
            assert_eq!(parsed(text), normal, "{text}");
        }
    }

    #[test]
    fn a_label_has_at_most_63_bytes() {
        let name = |bytes: usize| format!("{}.example.com", "a".repeat(bytes));
        assert_eq!(parsed(&name(63)), name(63));
        assert_eq!(refused(&name(64)).0, "a label has 64 bytes");
    }

    #[test]
    fn the_texts_around_a_star_fit_into_a_label() {
        let name = |bytes: usize| format!("{}*bb.example.com", "a".repeat(bytes));
        assert_eq!(parsed(&name(61)), name(61));
        assert_eq!(refused(&name(62)).0, "a label has 64 bytes");
    }

    #[test]
    fn a_pattern_covers_what_its_star_stands_for() {
        for (pattern, covered, others) in [
            ("a.x.net", &["a.x.net"][..], &["x.net", "b.a.x.net"][..]),
            ("*.x.net", &["a.x.net", "b.a.x.net"], &["x.net", "ax.net"]),
            (
                "md-*.x.net",
                &["md-.x.net", "md-1.x.net", "md-1-2.x.net"],
                &[
                    "md.x.net",
                    "amd-1.x.net",
                    "md-1.y.x.net",
                    "a.md-1.x.net",
                    "md-1.ax.net",
                    "md-1.net",
                    "x.net",
                ],
            ),
            (
                "*-s.x.net",
                &["-s.x.net", "a-s.x.net"],
                &["s.x.net", "a-s1.x.net", "a.b-s.x.net"],
            ),
            (
                "a*a.x.net",
                &["aa.x.net", "aba.x.net"],
                &["a.x.net", "ab.x.net"],
            ),
            ("*ex.net", &["ex.net", "a-ex.net"], &["a.ex.net", "x.net"]),
        ] {
            let pattern = parse_name_pattern(pattern).unwrap();
            for name in covered {
                assert!(pattern.covers(name), "{pattern} {name}");
            }
            for name in others {
                assert!(!pattern.covers(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_name_has_at_most_253_bytes() {
        let label = "a".repeat(63);
        let name = |last: usize| format!("{label}.{label}.{label}.{}", "b".repeat(last));
        assert_eq!(name(61).len(), 253);
        assert_eq!(parsed(&name(61)).len(), 253);
        assert_eq!(parsed(&format!("{}.", name(61))).len(), 253);
        assert_eq!(refused(&name(62)).0, "it has 254 bytes");
        assert_eq!(parsed(&format!("*.{}", name(59))).len(), 253);
        assert_eq!(refused(&format!("*.{}", name(60))).0, "it has 254 bytes");
    }

    #[test]
    fn what_is_no_name_gets_the_right_form_as_hint() {
        let star = "a name below it such as \"*.example.com\", or cidrs: [0.0.0.0/0, \"::/0\"]";
        let bytes = "letters, digits, - and _ between dots";
        for (text, why, hint) in [
            ("", "it is empty", FORMS),
            ("*", "* alone would be every name", star),
            ("*.", "* alone would be every name", star),
            ("*.*", "* alone would be every name", star),
            ("md-*", "* stands in its only label", STARS),
            ("*x", "* stands in its only label", STARS),
            ("md-*.", "* stands in its only label", STARS),
            ("a.*.example.com", "* stands behind the first label", STARS),
            (
                "a.md-*.example.com",
                "* stands behind the first label",
                STARS,
            ),
            ("**.example.com", "it has more than one *", STARS),
            ("a*b*.example.com", "it has more than one *", STARS),
            ("*.*.example.com", "it has more than one *", STARS),
            ("a*.*.example.com", "it has more than one *", STARS),
            (
                "a*..example.com",
                "it starts with a dot",
                "\"*.example.com\" for the names below example.com",
            ),
            ("a!*.example.com", "\"!\" cannot stand in a name", bytes),
            ("a*.exam ple.com", "\" \" cannot stand in a name", bytes),
            (
                "b\u{fc}*.example.com",
                "the label with * has other than ASCII letters, and its A-label form cannot be told",
                STARS,
            ),
            ("10.0.*.1", "* stands behind the first label", STARS),
            (
                ".example.com",
                "it starts with a dot",
                "\"*.example.com\" for the names below example.com",
            ),
            (
                "*..example.com",
                "it starts with a dot",
                "\"*.example.com\" for the names below example.com",
            ),
            ("a..b", "a label is empty", FORMS),
            ("a.b..", "a label is empty", FORMS),
            ("\u{df}..", "a label is empty", FORMS),
            (".", "a label is empty", FORMS),
            ("192.0.2.1", "it is an address", "cidrs: [\"192.0.2.1/32\"]"),
            (
                "2001:db8::1",
                "it is an address",
                "cidrs: [\"2001:db8::1/128\"]",
            ),
            (
                "[2001:db8::1]",
                "it is an address",
                "cidrs: [\"2001:db8::1/128\"]",
            ),
            ("10.0.0.0/8", "it is a CIDR", "cidrs: [\"10.0.0.0/8\"]"),
            ("10.0.0.256", "it has digits only", "addresses under cidrs"),
            (
                "https://api.example.com/v1",
                "it is a URL",
                "names: [\"api.example.com\"] and ports: [\"443/tcp\"]",
            ),
            (
                "http://api.example.com",
                "it is a URL",
                "names: [\"api.example.com\"] and ports: [\"80/tcp\"]",
            ),
            (
                "https://me@api.example.com:8443/",
                "it is a URL",
                "names: [\"api.example.com\"] and ports: [\"8443/tcp\"]",
            ),
            (
                "api.example.com/v1",
                "a name has no path",
                "\"api.example.com\"",
            ),
            (
                "api.example.com:8443",
                "ports stand apart",
                "names: [\"api.example.com\"] and ports: [\"8443/tcp\"]",
            ),
            ("api.example.com:https", "ports stand apart", FORMS),
            ("api example.com", "\" \" cannot stand in a name", bytes),
            ("a@b.example", "\"@\" cannot stand in a name", bytes),
            ("a\u{0}b.example", "\"\\0\" cannot stand in a name", bytes),
            (
                "\u{378}.example",
                "it is no valid international name",
                "its A-label form, such as xn--bcher-kva.example",
            ),
        ] {
            let expected = (why.to_owned(), hint.to_owned());
            assert_eq!(refused(text), expected, "{text}");
        }
    }

    #[test]
    fn patterns_print_with_their_star() {
        let text = |star| {
            let name = "example.com".to_owned();
            NamePattern { name, star }.to_string()
        };
        assert_eq!(text(Star::Below), "*.example.com");
        assert_eq!(text(Star::None), "example.com");
        let (prefix, suffix) = ("md-".to_owned(), "x".to_owned());
        assert_eq!(text(Star::Label { prefix, suffix }), "md-*x.example.com");
    }
}
