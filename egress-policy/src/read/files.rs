//! Reads files, each once, and none that is larger than may be.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{Place, PolicyErrors, ReadError, Report, line_at};

/// Most bytes of all policy files together.
pub const MAX_BYTES: u64 = 32 << 20;

/// Reads files that are no policies but shall become some; `-` is stdin.
///
/// # Errors
/// Files that cannot be read, that are no text or too large, or that are given twice.
pub fn read_texts(files: &[PathBuf]) -> Result<Vec<(PathBuf, String)>, PolicyErrors> {
    let mut report = Report::default();
    let mut texts = Vec::new();
    let mut read = Files::default();
    for file in files {
        if file.as_os_str() == "-" {
            let bytes = read.whole(|left| read_to_end(io::stdin().lock(), left));
            texts.extend(text_of(PathBuf::from("stdin"), bytes, &mut report));
        } else {
            let bytes = read.read(file);
            texts.extend(text_of(file.clone(), bytes, &mut report));
        }
    }
    report.finish(texts)
}

/// The text of a file of at most `most` bytes.
///
/// # Errors
/// It cannot be read, is larger, or is no text.
pub fn load_text(file: &Path, most: u64) -> Result<String, PolicyErrors> {
    let mut report = Report::default();
    let text = read_text(file.to_owned(), most, &mut report);
    report.finish(text.map(|(_, text)| text).unwrap_or_default())
}

/// The file with its text, of at most `most` bytes.
pub(crate) fn read_text(
    file: PathBuf,
    most: u64,
    report: &mut Report,
) -> Option<(PathBuf, String)> {
    let bytes = match read_bounded(&file, most) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(ReadError::TooLarge(most)),
        Err(error) => Err(unreadable(&error)),
    };
    text_of(file, bytes, report)
}

/// The file with its text.
pub(crate) fn text_of(
    file: PathBuf,
    bytes: Result<Vec<u8>, ReadError>,
    report: &mut Report,
) -> Option<(PathBuf, String)> {
    match bytes.map(String::from_utf8) {
        Ok(Ok(text)) => return Some((file, text)),
        Ok(Err(error)) => {
            let (bytes, good) = (error.as_bytes(), error.utf8_error().valid_up_to());
            let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            let place = Place::field(&file, line_at(bytes, good), "");
            let problem = if is_utf16 {
                ReadError::Utf16
            } else {
                ReadError::NotText
            };
            report.add(place, problem);
        }
        Err(problem) => report.add(Place::file(&file), problem),
    }
    None
}

/// The files that were read so far, each once.
#[derive(Default)]
pub(crate) struct Files {
    /// The files by what they really are.
    real: HashMap<PathBuf, PathBuf>,
    /// Bytes of all of them.
    bytes: u64,
}

impl Files {
    /// The bytes of a file that was not read before.
    pub(crate) fn read(&mut self, file: &Path) -> Result<Vec<u8>, ReadError> {
        let real = fs::canonicalize(file).map_err(|error| unreadable(&error))?;
        if let Some(first) = self.real.insert(real, file.to_owned()) {
            return Err(ReadError::SameFile(first.display().to_string()));
        }
        self.whole(|left| read_bounded(file, left))
    }

    /// The bytes that `read` gives, if they are not more than may still be read.
    pub(crate) fn whole(
        &mut self,
        read: impl FnOnce(u64) -> io::Result<Option<Vec<u8>>>,
    ) -> Result<Vec<u8>, ReadError> {
        let bytes = read(MAX_BYTES.saturating_sub(self.bytes))
            .map_err(|error| unreadable(&error))?
            .ok_or(ReadError::TooLarge(MAX_BYTES))?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
        Ok(bytes)
    }
}

/// The bytes of a file, or `None` if there are more than `most`.
pub(crate) fn read_bounded(file: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    // Without waiting for somebody to write, if it is a pipe.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is neither a file nor a folder"));
    }
    read_to_end(opened, most)
}

/// All bytes, or `None` if there are more than `most`.
fn read_to_end(from: impl Read, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    from.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    let is_whole = u64::try_from(bytes.len()).is_ok_and(|bytes| bytes <= most);
    Ok(is_whole.then_some(bytes))
}

/// The system's error without Rust's `(os error 2)`.
pub(crate) fn unreadable(error: &io::Error) -> ReadError {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    ReadError::Unreadable(text.to_lowercase())
}
