//! The agent's settings: a YAML file for what is the same at every start. A flag wins over it.
//!
//! ```yaml
//! serviceTags:
//!   file: /var/lib/egress/service-tags.json
//! ```

use std::path::{Path, PathBuf};

use crate::policy::{FieldPath, Node, PolicyErrors, Reader, load_text, one_document};

/// Read when no other file is given, if it is there.
pub const DEFAULT_SETTINGS: &str = "/etc/egress/agent.yaml";

/// Most bytes of the file.
const MAX_BYTES: u64 = 1024 * 1024;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `serviceTags.file`, taken from the folder of the settings if it is relative.
    pub service_tags: Option<PathBuf>,
}

impl Settings {
    /// Reads the file that is given, or else the default one if it is there.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(given: Option<&Path>) -> Result<Self, PolicyErrors> {
        let default = Path::new(DEFAULT_SETTINGS);
        let file = match given {
            Some(file) => file,
            None if !default.try_exists().unwrap_or(true) => return Ok(Self::default()),
            None => default,
        };
        Self::parse(file, &load_text(file, MAX_BYTES)?)
    }

    /// Reads a text. `file` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, PolicyErrors> {
        one_document(file, text, None, Self::read)
    }

    fn read(&mut self, document: &Node, reader: &mut Reader<'_>) {
        let root = FieldPath::Root;
        let example = "serviceTags: { file: /var/lib/egress/service-tags.json }";
        let Some(fields) = reader.fields(document, root, &["serviceTags"], example) else {
            return;
        };
        if let Some(node) = fields.get("serviceTags") {
            let path = FieldPath::Field(&root, "serviceTags");
            let Some(fields) = reader.fields(node, path, &["file"], example) else {
                return;
            };
            self.service_tags = fields.get("file").and_then(|node| {
                let path = FieldPath::Field(&path, "file");
                let text = reader.text(node, path, "file: /var/lib/egress/service-tags.json")?;
                let folder = reader.file().parent().unwrap_or(Path::new(""));
                Some(folder.join(text))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("/etc/egress/agent.yaml"), text)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_file_of_service_tags_is_read() {
        let file = |text: &str| parse(text).unwrap().service_tags;
        let tags = "/var/lib/egress/tags.json";
        assert_eq!(
            file(&format!("serviceTags: {{ file: {tags} }}")),
            Some(tags.into())
        );
        assert_eq!(
            file("serviceTags:\n  file: tags.json\n"),
            Some("/etc/egress/tags.json".into())
        );
        for text in [
            "",
            "# nothing\n",
            "---\n",
            "serviceTags:\n",
            "serviceTags: {}\n",
        ] {
            assert_eq!(file(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, message) in [
            (
                "# here\nserviceTag: { file: a.json }\n",
                "/etc/egress/agent.yaml:2: serviceTag: unknown field \"serviceTag\"; write serviceTags: the fields here are serviceTags",
            ),
            (
                "serviceTags:\n  path: a.json\n",
                "/etc/egress/agent.yaml:2: serviceTags.path: unknown field \"path\"; the fields here are file",
            ),
            (
                "serviceTags: a.json\n",
                "/etc/egress/agent.yaml:1: serviceTags: is text where a mapping is needed; write serviceTags: { file: /var/lib/egress/service-tags.json }",
            ),
            (
                "serviceTags:\n  file: [a.json]\n",
                "/etc/egress/agent.yaml:2: serviceTags.file: is a list where text is needed; write file: /var/lib/egress/service-tags.json",
            ),
            (
                "serviceTags: {}\n---\nserviceTags: {}\n",
                "/etc/egress/agent.yaml:3: is a second document; write everything in one",
            ),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
        assert!(parse("serviceTags: [").is_err());
    }

    #[test]
    fn a_file_that_was_given_has_to_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.yaml");
        let error = Settings::load(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("cannot be read: no such file"), "{error}");
        std::fs::write(&file, "serviceTags: { file: tags.json }").unwrap();
        let settings = Settings::load(Some(&file)).unwrap();
        assert_eq!(settings.service_tags, Some(folder.path().join("tags.json")));
    }
}
