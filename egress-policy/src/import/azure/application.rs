//! Application rules: names in TLS and HTTP.

use std::collections::BTreeMap;

use super::{
    super::input::{Item, named},
    groups::{is_open, unknown_field, unknown_fields},
    rules::Reader,
};
use crate::document::PresetValue;

impl Reader<'_, '_> {
    /// Names, URLs and FQDN tags, on ports of protocols.
    pub(super) fn application(&mut self) {
        for (at, text) in self.texts("targetFqdns") {
            self.target(&at, text);
        }
        for (at, text) in self.texts("targetUrls") {
            self.url(&at, text);
        }
        for (at, text) in self.texts("fqdnTags") {
            self.fqdn_tag(&at, text);
        }
        for (at, text) in self.texts("webCategories") {
            let text = format!(
                "the web category {}: which names belong to it is known there alone",
                named(text)
            );
            self.rule.left_out(&at, text);
        }
        match self.item.get("protocols") {
            Some(field) if is_open(&field) => {
                self.rule.restrict_ports();
                self.unknown(&field);
            }
            Some(_) => {
                for item in self.sink.list(self.item, "protocols") {
                    self.application_protocol(&item);
                }
            }
            // FQDN tags have protocols of their own.
            None if self.rule.names.is_empty() && self.rule.cidrs.is_empty() => {}
            None => self.rule.restrict_ports(),
        }
        if let Some(field) = self
            .item
            .get("terminateTLS")
            .filter(|field| !field.says_nothing())
        {
            self.rule.differs(
                &field,
                "TLS is not opened here: addresses and ports alone decide",
            );
        }
        if let Some(field) = self
            .item
            .get("httpHeadersToInsert")
            .filter(|field| !field.says_nothing())
        {
            self.rule.left_out(&field, "headers are not inserted here");
        }
        for (at, text) in self.texts("destinationAddresses") {
            if text != "*" {
                self.rule
                    .narrower_there(&at, format!("also only to {} there", named(text)));
            }
        }
    }

    /// `api.example.com`, `*.example.com`, `*example.com` or `*`: a star stands for anything, dots too.
    fn target(&mut self, at: &Item<'_>, text: &str) {
        if text == "*" {
            self.rule.add_world();
            self.rule.differs(
                at,
                "every name there; here every address, whether a name led to it or not",
            );
            return;
        }
        if let Some(rest) = text.strip_prefix('*')
            && !rest.starts_with('.')
            && !rest.contains('*')
        {
            return self.ending(at, text, rest);
        }
        let count = self.rule.names.len();
        self.rule.add_name(at, text);
        let is_carried = self.rule.names.len() > count;
        if is_carried && text.contains('*') && !text.starts_with("*.") {
            let text = format!(
                "{}: a * is read at the beginning of a name only there; here it stands for any text of that label",
                named(text)
            );
            self.rule.differs(at, text);
        }
    }

    /// `*rest`: every name that ends like this.
    fn ending(&mut self, at: &Item<'_>, text: &str, rest: &str) {
        let parent = rest
            .split_once('.')
            .map(|(_, parent)| parent.trim_end_matches('.'));
        // Below one label, such as com, names that only end alike are somebody else's.
        let is_whole = parent
            .is_some_and(|parent| self.rule.is_deny && !parent.is_empty() || parent.contains('.'));
        self.rule.add_name(at, if is_whole { text } else { rest });
        if !rest.starts_with('-') {
            self.rule.add_name(at, &format!("*.{rest}"));
        }
        let also = if is_whole {
            format!("names below those that end like it there, such as a.x{rest}")
        } else {
            format!("names that only end like it there, such as x{rest}")
        };
        self.rule
            .differs(at, format!("{}: also {also}", named(text)));
    }

    fn url(&mut self, at: &Item<'_>, text: &str) {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !matches!(path, "" | "/" | "/*") {
            self.rule
                .narrower_there(at, format!("the path of {} is not looked at", named(text)));
        }
        self.target(at, host);
    }

    fn fqdn_tag(&mut self, at: &Item<'_>, text: &str) {
        if !text.eq_ignore_ascii_case("AzureKubernetesService") || self.rule.is_deny {
            let text = format!(
                "the FQDN tag {}: list the names that are needed",
                named(text)
            );
            self.rule.left_out(at, text);
            return;
        }
        match &self.context.location {
            Some(location) => {
                let preset = match location.as_str() {
                    region if region.starts_with("china") => "aks/china-21vianet",
                    region if region.starts_with("usgov") || region.starts_with("usdod") => {
                        "aks/us-government"
                    }
                    _ => "aks/azure-global",
                };
                let with =
                    BTreeMap::from([("location".to_owned(), PresetValue::Text(location.clone()))]);
                self.rule.presets.push((preset, with));
                let text =
                    format!("the FQDN tag names AKS in every region there; here in {location}");
                self.rule.differs(at, text);
            }
            None => {
                let text = "the FQDN tag AzureKubernetesService: write preset: aks/azure-global, with: { location: … }";
                self.rule.left_out(at, text);
            }
        }
    }

    fn application_protocol(&mut self, item: &Item<'_>) {
        for field in unknown_fields(item, &["protocolType", "type", "port"]) {
            self.rule.left_out(&field, unknown_field(&field));
        }
        let kind = item.get("protocolType").or(item.get("type"));
        let default = match kind
            .as_ref()
            .and_then(Item::text)
            .map(str::to_lowercase)
            .as_deref()
        {
            Some("http") => "80",
            Some("https") => "443",
            Some("mssql") => "1433",
            Some(_) | None => {
                self.rule.restrict_ports();
                return self
                    .sink
                    .choice(kind.as_ref().unwrap_or(item), "Http, Https or Mssql");
            }
        };
        match item.get("port") {
            Some(port) if is_open(&port) => {
                self.rule.restrict_ports();
                self.unknown(&port);
            }
            Some(port) => {
                let text = port.text().unwrap_or_default();
                let text = if text == "0" { default } else { text };
                self.rule.add_ports(&port, text, "tcp", self.sink);
            }
            None => self.rule.add_ports(item, default, "tcp", self.sink),
        }
    }
}
