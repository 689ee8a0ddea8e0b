//! Reading and writing files: atomic writes, JSON Lines, and the problems that reading met.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What was read, and everything that was wrong with it. The caller shows the problems: none is fatal to the rest.
#[derive(Clone, Debug)]
pub struct Reading<T> {
    /// What could be read, in the file's order.
    pub items: Vec<T>,
    /// What was wrong, in the file's order.
    pub problems: Vec<Problem>,
}

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self { items: Vec::new(), problems: Vec::new() }
    }
}

impl<T> Reading<T> {
    /// How many rows or lines were left out.
    pub fn dropped(&self) -> usize {
        self.problems.iter().filter(|problem| problem.dropped).count()
    }

    /// Adds another file's items and problems behind these.
    pub fn extend(&mut self, other: Self) {
        self.items.extend(other.items);
        self.problems.extend(other.problems);
    }
}

/// Where in a file a problem lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line, counted from 1.
    Line(usize),
    /// A row of an array or a table, counted from 0 as row-number ids are, and the line it starts on (from 1).
    Row {
        /// The row's number, from 0.
        row: usize,
        /// The line where the row starts, from 1; absent in binary formats.
        line: Option<usize>,
    },
}

/// One thing that was wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Where in the file.
    pub place: Place,
    /// What was found, and what was expected.
    pub what: String,
    /// Whether the row or line was left out because of it; false where it was read all the same.
    pub dropped: bool,
}

/// As it goes on behind the file's name: `, row 3 (line 5)`, and nothing for the whole file.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, ", line {line}"),
            Self::Row { row, line: None } => write!(f, ", row {row}"),
            Self::Row { row, line: Some(line) } => write!(f, ", row {row} (line {line})"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: {}", self.file.display(), self.place, self.what)?;
        if self.dropped { f.write_str(" (left out)") } else { Ok(()) }
    }
}

/// Whether a name can be a folder's or file's on every system, and is no path.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|letter| letter.is_alphanumeric() || "-_.".contains(letter))
        && !name.starts_with('.')
        && !name.ends_with('.')
}

/// Writes a file so that it is either wholly there or not at all: `write` fills a temporary file in the same
/// folder, which is flushed to disk and renamed. The folder is made where it is missing.
///
/// # Errors
/// Where the folder or the file cannot be written, or `write` fails; then nothing is left behind, and a file of
/// that name that was there before is untouched.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    // Two writers in one process, or two processes, must not share a temporary name.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else { bail!("{}: not the name of a file", path.display()) };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&folder).with_context(|| format!("{}: cannot make this folder", folder.display()))?;
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}-{number}.tmp", std::process::id()));
    let temporary = folder.join(temporary_name);
    let written = write_and_rename(&temporary, path, &folder, write);
    if written.is_err() {
        // The temporary file may not exist; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("{}: cannot write", path.display()))
}

fn write_and_rename(
    temporary: &Path,
    path: &Path,
    folder: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    // Not create_new: a leftover of a killed process with the same number is overwritten.
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
    let mut writer = BufWriter::with_capacity(1 << 16, file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    // The rename itself lives in the folder; where a folder cannot be opened (Windows), the system does it.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all()?;
    }
    Ok(())
}

/// Writes one JSON object a line, atomically.
///
/// # Errors
/// As [`atomic_write`].
pub fn write_json_lines<T: Serialize>(path: &Path, items: &[T]) -> Result<()> {
    atomic_write(path, |writer| {
        for item in items {
            serde_json::to_writer(&mut *writer, item)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes one indented JSON value and a final line feed, atomically.
///
/// # Errors
/// As [`atomic_write`].
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    atomic_write(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")?;
        Ok(())
    })
}

/// Reads a whole file.
///
/// # Errors
/// Names the file where it cannot be read.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: cannot read", path.display()))
}

/// The bytes behind a UTF-8 byte-order mark; notes the mark where there is one.
pub(crate) fn without_byte_order_mark<'a>(
    bytes: &'a [u8],
    path: &Path,
    problems: &mut Vec<Problem>,
) -> &'a [u8] {
    match bytes.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) => {
            problems.push(Problem {
                file: path.to_path_buf(),
                place: Place::File,
                what: "starts with a byte-order mark, which was passed over".to_owned(),
                dropped: false,
            });
            rest
        }
        None => bytes,
    }
}

/// Calls `each` with every line that is not blank, as (line number from 1, text without its line end). A line that
/// is not UTF-8 is a problem, and the next is read. CRLF ends are read, and noted once for the file.
pub(crate) fn for_each_line(
    bytes: &[u8],
    path: &Path,
    problems: &mut Vec<Problem>,
    mut each: impl FnMut(usize, &str, &mut Vec<Problem>),
) {
    let bytes = without_byte_order_mark(bytes, path, problems);
    let mut carriage_returns = 0;
    let noted_at = problems.len();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = match line.strip_suffix(b"\r") {
            Some(line) => {
                carriage_returns += 1;
                line
            }
            None => line,
        };
        match std::str::from_utf8(line) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => each(index + 1, text, problems),
            Err(error) => problems.push(Problem {
                file: path.to_path_buf(),
                place: Place::Line(index + 1),
                what: format!(
                    "not UTF-8: byte {} of the line is not part of a character",
                    error.valid_up_to() + 1
                ),
                dropped: true,
            }),
        }
    }
    if carriage_returns > 0 {
        let note = Problem {
            file: path.to_path_buf(),
            place: Place::File,
            what: format!("{carriage_returns} lines end in CRLF, read as if in LF"),
            dropped: false,
        };
        problems.insert(noted_at, note);
    }
}

/// What serde found wrong with a piece of JSON, with the column but without its own line number, which would count
/// from the start of the piece.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or(&message);
    match error.classify() {
        serde_json::error::Category::Data => what.to_owned(),
        _ => format!("not valid JSON: {what} at column {}", error.column()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/records.jsonl");
        atomic_write(&path, |writer| Ok(writer.write_all(b"old")?)).expect("the first write");
        let error = atomic_write(&path, |writer| {
            writer.write_all(b"new")?;
            bail!("the disk is on fire")
        })
        .expect_err("the second write fails");
        assert!(format!("{error:#}").contains("records.jsonl"), "{error:#}");
        assert!(format!("{error:#}").contains("the disk is on fire"), "{error:#}");
        assert_eq!(fs::read(&path).expect("the file"), b"old");
        assert_eq!(fs::read_dir(folder.path().join("deep")).expect("the folder").count(), 1);
    }

    #[test]
    fn lines_are_counted_over_blank_and_broken_ones() {
        let mut problems = Vec::new();
        let mut lines = Vec::new();
        let bytes = b"\xEF\xBB\xBFone\r\n\n\xFFtwo\nthree";
        for_each_line(bytes, Path::new("f"), &mut problems, |line, text, _| {
            lines.push((line, text.to_owned()));
        });
        assert_eq!(lines, [(1, "one".to_owned()), (4, "three".to_owned())]);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "f: starts with a byte-order mark, which was passed over",
                "f: 1 lines end in CRLF, read as if in LF",
                "f, line 3: not UTF-8: byte 1 of the line is not part of a character (left out)",
            ]
        );
    }
}
