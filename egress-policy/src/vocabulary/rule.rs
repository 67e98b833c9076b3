//! Errors that rules of policies and entries of presets share.

use thiserror::Error;

/// Why destinations and ports are no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// A rule without destination.
    #[error(
        "names no destination; write names: [api.example.com], cidrs: [192.0.2.0/24] or serviceTags: [Storage.westeurope]"
    )]
    NoDestination,
    /// A list of ports without ports.
    #[error(r#"is empty, so that nothing would match; write ["443/tcp"], or leave ports out for any port"#)]
    NoPorts,
}
