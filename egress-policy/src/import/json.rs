//! JSON as people write it: with comments, which ARM templates may have.

use std::{borrow::Cow, path::Path};

use serde::de::IgnoredAny;

use super::error::ImportError;

/// The error of a text that is meant as JSON. JSON is read as YAML, but its errors are better in its own words.
pub(super) fn wrong(text: &str) -> Option<(usize, ImportError)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.trim_start().starts_with(['{', '[']).then_some(())?;
    wrong_json(text)
}

fn wrong_json(text: &str) -> Option<(usize, ImportError)> {
    let error = serde_json::from_str::<IgnoredAny>(text).err()?;
    let words = error.to_string();
    let words = words.split(" at line ").next().unwrap_or(&words);
    Some((error.line(), ImportError::Json(words.to_owned())))
}

/// The text with spaces in the place of `//` and `/* */`, if it is JSON then; other texts as they are.
///
/// # Errors
/// A JSON file that has comments and is wrong in other ways: read as YAML, a comment would become a part of a name.
pub(super) fn without_comments<'t>(
    file: &Path,
    text: &'t str,
) -> Result<Cow<'t, str>, (usize, ImportError)> {
    let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !bare.trim_start().starts_with(['{', '[', '/']) {
        return Ok(Cow::Borrowed(text));
    }
    let Some(blanked) = blanked(bare) else {
        return Ok(Cow::Borrowed(text));
    };
    match wrong_json(&blanked) {
        None => Ok(Cow::Owned(blanked)),
        Some(wrong) => {
            let extension = file.extension().and_then(|extension| extension.to_str());
            let is_json = extension.is_some_and(|extension| {
                ["json", "jsonc"].contains(&extension.to_ascii_lowercase().as_str())
            });
            // In YAML both may stand in a value, as in a URL.
            if is_json || bare.trim_start().starts_with('/') {
                Err(wrong)
            } else {
                Ok(Cow::Borrowed(text))
            }
        }
    }
}

/// The text without comments; `None` if it has none outside of its strings.
fn blanked(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut has_any = false;
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        match (sign, signs.peek()) {
            ('"', _) => {
                out.push(sign);
                while let Some(sign) = signs.next() {
                    out.push(sign);
                    match sign {
                        '\\' => out.extend(signs.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            ('/', Some('/')) => {
                has_any = true;
                while let Some(sign) = signs.next_if(|sign| *sign != '\n') {
                    blank(sign, &mut out);
                }
            }
            ('/', Some('*')) => {
                has_any = true;
                signs.next();
                let mut last = ' ';
                for sign in signs.by_ref() {
                    blank(sign, &mut out);
                    if last == '*' && sign == '/' {
                        break;
                    }
                    last = sign;
                }
                out.push(' ');
            }
            _ => out.push(sign),
        }
    }
    has_any.then_some(out)
}

/// Lines stay where they are.
fn blank(sign: char, out: &mut String) {
    out.push(if sign == '\n' { '\n' } else { ' ' });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_strings_stay() {
        for (text, bare) in [
            ("{ // a\n \"b\": 1 }", "{     \n \"b\": 1 }"),
            (
                "{/*x\ny*/\"a\":\"http://b /* c */\"}",
                "{  \n    \"a\":\"http://b /* c */\"}",
            ),
            ("[\"a\\\"//b\", 1 /**/]", "[\"a\\\"//b\", 1  ]"),
        ] {
            let made = without_comments(Path::new("a"), text).unwrap();
            let squeezed = |text: &str| text.replace(' ', "");
            assert_eq!(squeezed(&made), squeezed(bare));
            assert_eq!(made.lines().count(), text.lines().count());
        }
    }

    #[test]
    fn what_is_no_json_without_them_stays_or_is_refused() {
        let yaml = "{ url: http://a.example }";
        let same = without_comments(Path::new("a.yaml"), yaml);
        assert_eq!(same.unwrap(), yaml);
        let (line, problem) =
            without_comments(Path::new("a.json"), "{\n // b\n 'a': 1 }").unwrap_err();
        assert_eq!(line, 3);
        assert!(matches!(problem, ImportError::Json(_)), "{problem}");
        assert!(without_comments(Path::new("a.json"), "{ \"a\": 1 /* b }").is_err());
    }
}
