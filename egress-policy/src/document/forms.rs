//! The texts of a policy for its JSON Schema: their forms as regular expressions.
//!
//! Each accepts what the parser accepts, as far as an expression can say it without getting in the way; what it
//! leaves to the parser stands beside it. They keep to what ECMAScript, RE2 and Rust have in common: editors, the
//! Kubernetes API server and the tests read them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::json;

use super::schema::PresetValue;
use crate::vocabulary::{lifeline, name, ports};

/// A name pattern. Left to the parser: whether an international name is one, how long its A-label form is, and how long
/// a label with a `*` is.
pub(crate) struct NameText;

impl JsonSchema for NameText {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // An international label may be longer before its conversion.
        let ascii = "[A-Za-z0-9_-]";
        let label = format!(r"({ascii}{{1,63}}|{ascii}*[^\x00-\x7F]({ascii}|[^\x00-\x7F])*)");
        let star = format!(r"{ascii}{{0,63}}\*{ascii}{{0,63}}\.");
        let form = format!(r"^({star})?{label}(\.{label})*\.?$");
        let mut schema = text(
            "A name; or `*.` and a name, for all names below it; or a name with one `*` inside its first label, for any \
             text of that label. Upper and lower case are the same, and so are names with and without the final dot. \
             International names are read in both forms.",
            &form,
            name::FORMS,
            &[
                "api.example.com",
                "*.example.com",
                "md-*.blob.example.net",
                "bücher.example",
            ],
        );
        schema.insert("maxLength".to_owned(), json!(254));
        // Digits and dots alone would be an address, or nearly one.
        let not_digits = r"^([^*.]*\*[^*.]*\.)?[^*]*[^*0-9.][^*]*$";
        schema.insert("allOf".to_owned(), json!([{ "pattern": not_digits }]));
        schema
    }
}

/// A network or address. Left to the parser: host bits, and IPv4 in IPv6 form.
pub(crate) struct CidrText;

impl JsonSchema for CidrText {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let octet = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
        let v4 = format!(r"({octet}\.){{3}}{octet}");
        let group = "[0-9A-Fa-f]{1,4}";
        let mut v6 = vec![
            format!("({group}:){{7}}{group}"),
            format!("({group}:){{1,7}}:"),
            format!(":(:{group}){{1,7}}"),
            "::".to_owned(),
            format!("({group}:){{6}}{v4}"),
            format!(":(:{group}){{0,5}}:{v4}"),
        ];
        // What `::` stands for lies between this many groups before and after it.
        for (before, after) in (1..=6).map(|after: u8| (7_u8.saturating_sub(after), after)) {
            v6.push(format!("({group}:){{1,{before}}}(:{group}){{{after}}}"));
        }
        for (before, after) in (0..=4).map(|after: u8| (5_u8.saturating_sub(after), after)) {
            v6.push(format!(
                "({group}:){{1,{before}}}(:{group}){{{after}}}:{v4}"
            ));
        }
        let form = format!(
            "^({v4}(/([0-9]|[12][0-9]|3[0-2]))?|({})(/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))?)$",
            v6.join("|")
        );
        text(
            "An IPv4 or IPv6 network with its prefix length and no host bits, or one address.",
            &form,
            "10.0.0.0/8, 192.0.2.7 or \"fd00::/8\"",
            &["10.0.0.0/8", "192.0.2.7", "fd00::/8"],
        )
    }
}

/// A port range. Left to the parser: that the first port is at most the last.
pub(crate) struct PortsText;

impl JsonSchema for PortsText {
    fn schema_name() -> Cow<'static, str> {
        "PortRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let port = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
        let any = "[Aa][Nn][Yy]";
        let form = format!(
            "^({any}|[Ii][Cc][Mm][Pp]|({any}|{port}(-{port})?)/([Tt][Cc][Pp]|[Uu][Dd][Pp]|[Ss][Cc][Tt][Pp]))$"
        );
        text(
            "A port or a range of ports and its protocol: tcp, udp or sctp. `any/tcp` is every port of a protocol, \
             `icmp` is ICMP in both versions, `any` is everything.",
            &form,
            ports::FORMS,
            &["443/tcp", "8000-8080/tcp", "any/udp", "icmp", "any"],
        )
    }
}

/// A length of time. Left to the parser: that the sum of several units is at most seven days.
pub(crate) struct DurationText;

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Of each unit at most seven days.
        let d = "0*[0-7]d";
        let h = "0*([0-9]{1,2}|1[0-5][0-9]|16[0-8])h";
        let m = "0*([0-9]{1,4}|100[0-7][0-9]|10080)m";
        let s = "0*([0-9]{1,5}|[1-5][0-9]{5}|60[0-3][0-9]{3}|604[0-7][0-9]{2}|604800)s";
        text(
            "Days, hours, minutes and seconds, from large to small, each at most once. At most 7d.",
            &format!("^({d}({h})?({m})?({s})?|{h}({m})?({s})?|{m}({s})?|{s})$"),
            "30s, 5m, 1h30m or 7d",
            &["30s", "5m", "1h30m", "7d"],
        )
    }
}

/// What a policy is called.
pub(crate) struct PolicyName;

impl JsonSchema for PolicyName {
    fn schema_name() -> Cow<'static, str> {
        "PolicyName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = text(
            "Lower-case letters, digits, `-` and `.`, with a letter or digit at both ends, as Kubernetes wants it.",
            "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
            "lower-case letters, digits, - and .",
            &["node", "web-1"],
        );
        schema.insert("maxLength".to_owned(), json!(253));
        schema.insert("not".to_owned(), json!({ "const": lifeline::POLICY }));
        schema
    }
}

/// The name of a preset. Left to the parser: whether there is one.
pub(crate) struct PresetName;

impl JsonSchema for PresetName {
    fn schema_name() -> Cow<'static, str> {
        "PresetName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        text(
            "One that `egress-agent preset list` shows.",
            "^[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)*$",
            "the name of a preset",
            &["aks/azure-global"],
        )
    }
}

/// The key of a label. Left to the parser: the lengths of what stands before the `/`.
pub(crate) struct LabelKey;

impl JsonSchema for LabelKey {
    fn schema_name() -> Cow<'static, str> {
        "LabelKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let label = "[a-z0-9]([a-z0-9-]*[a-z0-9])?";
        text(
            "The key of a label, as Kubernetes wants it.",
            &format!(r"^({label}(\.{label})*/)?{LABEL}$"),
            "app or example.com/app",
            &["app", "example.com/app"],
        )
    }
}

/// The value of a label.
pub(crate) struct LabelValue;

impl JsonSchema for LabelValue {
    fn schema_name() -> Cow<'static, str> {
        "LabelValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        text(
            "The value of a label, as Kubernetes wants it.",
            &format!("^({LABEL})?$"),
            "at most 63 letters, digits, -, _ and .",
            &["payments"],
        )
    }
}

/// A label's name or value.
const LABEL: &str = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?";

impl JsonSchema for PresetValue {
    fn schema_name() -> Cow<'static, str> {
        "PresetValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A text, a number, a truth value, or a list of texts, as the variable wants it.",
            "type": ["string", "number", "boolean", "array"],
            "items": { "type": "string" },
            "examples": ["eastus", true, ["192.0.2.53"]],
        })
    }
}

/// The schema of a text. Editors show `hint` for one that is not of the form.
fn text(description: &str, form: &str, hint: &str, examples: &[&str]) -> Schema {
    json_schema!({
        "description": description,
        "type": "string",
        "pattern": form,
        "patternErrorMessage": format!("write {hint}"),
        "examples": examples,
    })
}
