//! Problems of an experiment file, each with its place.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// Why an experiment file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The file could not be read.
    #[error("cannot read the experiment file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// The file says something that cannot be done.
    #[error("{}", join(.0))]
    Problems(Vec<Problem>),
}

/// One problem of an experiment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What was found, and what was expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.path.display(), self.line, self.column, self.message)
    }
}

/// An experiment file's text, to find the places of its keys in.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its whole text.
    pub text: String,
}

impl Source {
    /// Reads an experiment file.
    ///
    /// # Errors
    /// [`ExperimentError::Unreadable`].
    pub fn read(path: &Path) -> Result<Self, ExperimentError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ExperimentError::Unreadable { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// A problem at a key, given by its path from the top: `["tune", "batch"]`; in an array a number.
    /// Where a key is not there, the problem stands at the last one that is.
    pub fn at(&self, key: &[&str], message: impl Into<String>) -> Problem {
        let span = DeTable::parse(&self.text).ok().map(|table| find(&table, key)).unwrap_or(0..0);
        self.problem(span.start, message.into())
    }

    /// The problem that the TOML parser or its types have.
    pub(super) fn form(&self, error: &toml::de::Error) -> Problem {
        let start = error.span().map_or(0, |span| span.start);
        let message = error.message();
        let message = match suggestion(message) {
            Some(meant) => format!("{message}; did you mean `{meant}`?"),
            None => message.to_owned(),
        };
        self.problem(start, message)
    }

    fn problem(&self, offset: usize, message: String) -> Problem {
        let before = self.text.get(..offset).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Problem { path: self.path.clone(), line, column, message }
    }
}

/// The name nearest to what was written, if one is near enough to have been meant.
pub(super) fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&found.to_lowercase(), name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.chars().count() / 4)
        .map(|(_, name)| name)
}

/// From serde's "unknown field `x`, expected one of `a`, `b`": the one of them that is near to `x`.
fn suggestion(message: &str) -> Option<&str> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let found = quoted.next()?;
    nearest(found, quoted)
}

/// The place of a key, or of the last part of its path that is there.
fn find(table: &toml::Spanned<DeTable<'_>>, key: &[&str]) -> Range<usize> {
    let mut span = 0..0;
    let Some((first, rest)) = key.split_first() else { return span };
    let Some((name, mut value)) = table.get_ref().get_key_value(*first) else { return span };
    span = name.span();
    for part in rest {
        match value.get_ref() {
            DeValue::Table(inner) => {
                let Some((name, next)) = inner.get_key_value(*part) else { return span };
                span = name.span();
                value = next;
            }
            DeValue::Array(items) => {
                let Some(item) = part.parse::<usize>().ok().and_then(|number| items.get(number)) else {
                    return span;
                };
                span = item.span();
                value = item;
            }
            _ => return span,
        }
    }
    span
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
