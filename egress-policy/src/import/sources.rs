//! Sources that another program makes policies of: what they make can be imported, they cannot.

use std::path::Path;

use super::error::ImportError;

/// The line of a source that shows what it is, and the message.
pub(super) fn problem(file: &Path, text: &str) -> Option<(usize, ImportError)> {
    let extension = file.extension().and_then(|extension| extension.to_str());
    let extension = extension.unwrap_or_default().to_ascii_lowercase();
    let first_of = |is_it: fn(&str) -> bool| {
        let mut lines = text.lines().enumerate();
        let found = lines.find(|(_, line)| is_it(line));
        found.map(|(index, _)| index.saturating_add(1))
    };
    if extension == "tf"
        || extension.is_empty()
            && first_of(is_terraform) == first_of(says_anything)
            && !text.is_empty()
    {
        return first_of(says_anything).map(|line| (line, TERRAFORM));
    }
    if extension == "bicep" {
        return first_of(says_anything).map(|line| (line, BICEP));
    }
    first_of(is_helm).map(|line| (line, HELM))
}

const TERRAFORM: ImportError = ImportError::SourceOf {
    what: "Terraform source",
    instead: "give what `terraform show -json` prints, of a plan or of the state",
};
const BICEP: ImportError = ImportError::SourceOf {
    what: "Bicep source",
    instead: "give what `az bicep build --stdout --file FILE` prints, with its parameters file",
};
const HELM: ImportError = ImportError::SourceOf {
    what: "a Helm template",
    instead: "give what `helm template` prints",
};

fn says_anything(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with("//")
}

fn is_terraform(line: &str) -> bool {
    [
        "resource \"",
        "provider \"",
        "module \"",
        "variable \"",
        "data \"",
        "terraform {",
        "locals {",
    ]
    .iter()
    .any(|start| line.starts_with(start))
}

/// True if `{{ ... }}` on the line is one of a template's actions: not `${{ ... }}` of a workflow, nor JSON.
fn is_helm(line: &str) -> bool {
    const ACTIONS: &[&str] = &[
        ".",
        "$",
        "if ",
        "end",
        "else",
        "range ",
        "with ",
        "define ",
        "include ",
        "template ",
        "toYaml ",
        "tpl ",
        "printf ",
        "quote ",
        "/*",
    ];
    line.match_indices("{{").any(|(at, _)| {
        let (before, after) = line.split_at(at);
        let after = after.trim_start_matches('{');
        let action = after.strip_prefix('-').unwrap_or(after).trim_start();
        !before.ends_with('$')
            && after.contains("}}")
            && ACTIONS.iter().any(|start| action.starts_with(start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_known_by_their_names_and_words() {
        let found = |file: &str, text: &str| {
            problem(Path::new(file), text).map(|(line, problem)| (line, problem.to_string()))
        };
        for (file, text, line, word) in [
            ("a.tf", "# x\nresource \"a\" \"b\" {}\n", 2, "Terraform"),
            ("stdin", "\nresource \"a\" \"b\" {}\n", 2, "Terraform"),
            ("a.bicep", "param x string\n", 1, "Bicep"),
            ("a.yaml", "a: 1\nb: {{ .Values.b }}\n", 2, "Helm"),
            ("a.yaml", "{{- if .Values.a }}\n", 1, "Helm"),
            ("a.yaml", "a: {{ include \"x\" . | indent 2 }}\n", 1, "Helm"),
        ] {
            let (found, message) = found(file, text).unwrap();
            assert_eq!(found, line, "{text}");
            assert!(message.contains(word), "{message}");
        }
        for (file, text) in [
            ("a.yaml", "a: ${{ secrets.a }}\n"),
            ("a.json", "{\"a\":{\"b\":{}}}\n"),
            ("a.yaml", "{a: {b: {{c: d}: e}}}\n"),
            ("stdin", "one.example.com\n"),
            ("stdin", ""),
        ] {
            assert_eq!(found(file, text), None, "{text}");
        }
    }
}
