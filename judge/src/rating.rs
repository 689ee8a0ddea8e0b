//! Ratings, their file, and the scores that they make.
//!
//! A ratings file is JSONL: one [`Rating`] a line. A response that a judge would not rate is *unrated*: its
//! `rating` is null and `unrated` says why. It never counts as 0.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use instructions::language::Language;
use instructions::prompt::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The highest mark that a judge gives; a prompt adds at most this to a system's total.
pub const HIGHEST_RATING: f64 = 3.0;

/// What went wrong with a ratings file, or with the scores made of it.
#[derive(Debug, thiserror::Error)]
pub enum RatingError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not a rating.
    #[error("{path}, line {line}: expected a judge's verdict as one JSON object, found {found}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
    /// Another program writes the file.
    #[error("{path} is in use by another program ({process}): wait for it to end, or use another file")]
    InUse {
        /// The file.
        path: PathBuf,
        /// Which program, in words.
        process: String,
    },
    /// Two responses share system, language and id, so that their ratings could not be told apart.
    #[error("two responses of {0}: each system may answer a prompt once")]
    Twice(ResponseKey),
    /// The same, of responses in files.
    #[error(
        "{}: expected each system to answer a prompt once, found another response of {key}; the first is in {}",
        .lines[1],
        .lines[0]
    )]
    TwiceInFiles {
        /// Whose they are.
        key: ResponseKey,
        /// Where the first and the second stand.
        lines: Box<[FileLine; 2]>,
    },
    /// No two responses can be compared.
    #[error("expected two systems' responses to a prompt, found no such prompt")]
    NoPair,
    /// A file of comparisons holds another judge's.
    #[error(
        "{path}: expected comparisons by {expected}, found some by {found}; each judge needs a file of its own"
    )]
    OtherJudge {
        /// The file.
        path: PathBuf,
        /// Who compares now.
        expected: String,
        /// Who compared.
        found: String,
    },
    /// A file holds several judges' ratings, and one is wanted.
    #[error("expected ratings of one judge, found {}; name one of them", .0.join(", "))]
    SeveralJudges(Vec<String>),
    /// A judge has no ratings.
    #[error("expected ratings of the judge {asked:?}, found {}", .found.join(", "))]
    NoSuchJudge {
        /// Whom one asked for.
        asked: String,
        /// Who is there.
        found: Vec<String>,
    },
    /// A rated response has no gate.
    #[error("no gate for {0}: expected one for every rated response")]
    NoGate(ResponseKey),
}

impl RatingError {
    /// Whether what was asked for cannot be done, and was not tried.
    pub fn is_wrong_input(&self) -> bool {
        !matches!(self, RatingError::File { .. } | RatingError::InUse { .. })
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLine {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for FileLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)
    }
}

/// Which response a rating is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResponseKey {
    /// Who answered.
    pub system: String,
    /// The prompt's language.
    pub language: Language,
    /// The prompt's id.
    pub id: String,
}

impl ResponseKey {
    /// The key of a response.
    pub fn of(response: &Response) -> ResponseKey {
        ResponseKey {
            system: response.system.clone(),
            language: response.prompt.language.clone(),
            id: response.prompt.id.clone(),
        }
    }
}

impl fmt::Display for ResponseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {:?}, language {}, id {:?}", self.system, self.language, self.id)
    }
}

/// A judge's mark for a response: one line of a ratings file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// Which response it is for.
    #[serde(flatten)]
    pub key: ResponseKey,
    /// The judge's name.
    pub judge: String,
    /// The mark, 1 to 3; `None` where the response is unrated.
    pub rating: Option<f64>,
    /// Why the response is unrated; `None` where it is rated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrated: Option<String>,
    /// What the judge said.
    #[serde(default)]
    pub explanation: String,
    /// Hash of what the judge was set to (template, model, sampling, thresholds).
    pub setting: String,
    /// Hash of the prompt and response that were rated, so that a changed response is rated anew.
    pub rated: String,
}

/// Hash of a prompt and its response, as kept in [`Rating::rated`].
pub fn response_hash(response: &Response) -> String {
    hash_of_texts(&response.prompt.prompt, &response.response)
}

/// The hash of [`response_hash`], where there are but the texts.
pub(crate) fn hash_of_texts(prompt: &str, response: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for text in [prompt, response] {
        // The length first, so that text cannot move across the border between the two unnoticed.
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_string()
}

/// A ratings file as read.
pub type RatingsRead = LinesRead<Rating>;

/// Lines as read, with what a broken write left behind.
#[derive(Debug)]
pub struct LinesRead<T> {
    /// The ratings, in the order of the file.
    pub ratings: Vec<T>,
    /// Whether the last line was cut off: a write was interrupted there, and that rating is lost.
    pub torn: bool,
}

/// Reads a ratings file.
///
/// # Errors
/// [`RatingError::File`] where it cannot be read; [`RatingError::Line`] for a line that is no rating. A last
/// line that has no line end is no error: it is what an interrupted write leaves, and is told in
/// [`RatingsRead::torn`].
pub fn read_ratings(path: &Path) -> Result<RatingsRead, RatingError> {
    read_lines(path)
}

/// Reads a file of JSON lines, as [`read_ratings`] does.
pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<LinesRead<T>, RatingError> {
    let at_file = |source| RatingError::File { path: path.to_path_buf(), source };
    let mut reader = BufReader::new(File::open(path).map_err(at_file)?);
    let mut read = LinesRead { ratings: Vec::new(), torn: false };
    let mut bytes = Vec::new();
    let mut number = 0;
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(at_file)? == 0 {
            return Ok(read);
        }
        number += 1;
        let whole = bytes.last() == Some(&b'\n');
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&bytes) {
            Ok(rating) => read.ratings.push(rating),
            Err(_) if !whole => read.torn = true,
            Err(error) => {
                let start: String = String::from_utf8_lossy(&bytes).trim_end().chars().take(80).collect();
                return Err(RatingError::Line {
                    path: path.to_path_buf(),
                    line: number,
                    found: format!("{start:?} ({error})"),
                });
            }
        }
    }
}

/// Writes a ratings file whole: to a temporary name in the same folder, then renamed.
///
/// # Errors
/// [`RatingError::File`].
pub fn write_ratings(path: &Path, ratings: &[Rating]) -> Result<(), RatingError> {
    write_lines(path, ratings)
}

/// Writes a file of JSON lines whole.
pub(crate) fn write_lines<T: Serialize>(path: &Path, ratings: &[T]) -> Result<(), RatingError> {
    let write = || -> std::io::Result<()> {
        let mut text = Vec::new();
        for rating in ratings {
            serde_json::to_writer(&mut text, rating)?;
            text.push(b'\n');
        }
        write_atomically(path, &text)
    };
    write().map_err(|source| RatingError::File { path: path.to_path_buf(), source })
}

/// The ratings of one judge: of `judge`, or of the only one that there is.
///
/// # Errors
/// [`RatingError::SeveralJudges`], [`RatingError::NoSuchJudge`].
pub fn of_judge<'a>(ratings: &'a [Rating], judge: Option<&str>) -> Result<Vec<&'a Rating>, RatingError> {
    let judges: BTreeSet<&str> = ratings.iter().map(|rating| rating.judge.as_str()).collect();
    let found = || judges.iter().map(|judge| (*judge).to_owned()).collect();
    match judge {
        Some(asked) if !judges.contains(asked) => {
            Err(RatingError::NoSuchJudge { asked: asked.to_owned(), found: found() })
        }
        None if judges.len() > 1 => Err(RatingError::SeveralJudges(found())),
        _ => Ok(ratings.iter().filter(|rating| judge.is_none_or(|judge| rating.judge == judge)).collect()),
    }
}

/// Writes a file whole: to a temporary name in the same folder, then renamed.
pub(crate) fn write_atomically(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = beside(path, ".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// The file's path with `suffix` after its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// Makes a rename in the file's folder lasting.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Only Unix lets a folder be opened and synced.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// A log of ratings.
pub type RatingLog = LineLog<Rating>;

/// A file to which JSON lines are added as they come, so that a kill loses none that was added.
#[derive(Debug)]
pub struct LineLog<T> {
    path: PathBuf,
    file: File,
    lines: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> LineLog<T> {
    /// Opens the file to add to it; makes it where it is missing, and cuts a torn last line off.
    ///
    /// # Errors
    /// [`RatingError::File`].
    pub fn open(path: &Path) -> Result<Self, RatingError> {
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut bytes)?;
            let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            if whole < bytes.len() {
                // A last line may be a whole rating without its line end: keep it, else drop the torn piece.
                if serde_json::from_slice::<T>(&bytes[whole..]).is_ok() {
                    file.write_all(b"\n")?;
                } else {
                    file.set_len(whole as u64)?;
                }
                file.sync_all()?;
            }
            Ok(file)
        };
        let file = open().map_err(|source| RatingError::File { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), file, lines: PhantomData })
    }

    /// Adds a line, in one write.
    ///
    /// # Errors
    /// [`RatingError::File`].
    pub fn add(&mut self, rating: &T) -> Result<(), RatingError> {
        let mut write = || -> std::io::Result<()> {
            let mut line = serde_json::to_vec(rating)?;
            line.push(b'\n');
            self.file.write_all(&line)?;
            self.file.sync_data()
        };
        write().map_err(|source| RatingError::File { path: self.path.clone(), source })
    }
}

/// What a system comes to in a language with a judge: always raw, gated and dropped side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// The judge.
    pub judge: String,
    /// The system.
    pub system: String,
    /// The prompts' language.
    pub language: Language,
    /// How many responses there are, unrated ones included.
    pub prompts: usize,
    /// How many were rated.
    pub rated: usize,
    /// How many were not; each could have added up to 3 to `raw`.
    pub unrated: usize,
    /// Sum of the ratings, the gate set aside.
    pub raw: f64,
    /// Sum of rating × gate: the system's total.
    pub gated: f64,
    /// What the gate took: raw − gated.
    pub dropped: f64,
    /// How many rated responses the gate took.
    pub dropped_responses: usize,
    /// The most that could be had: 3 × prompts.
    pub highest: f64,
}

/// Totals per judge, system and language, in that order.
///
/// `gates` says for each response whether it is in the prompt's language. Score = rating × gate.
///
/// # Errors
/// [`RatingError::NoGate`] for a response that `gates` does not know.
pub fn totals(ratings: &[Rating], gates: &HashMap<ResponseKey, bool>) -> Result<Vec<Total>, RatingError> {
    let mut cells: BTreeMap<(&str, &str, &Language), Total> = BTreeMap::new();
    for rating in ratings {
        let gate = *gates.get(&rating.key).ok_or_else(|| RatingError::NoGate(rating.key.clone()))?;
        let cell = (rating.judge.as_str(), rating.key.system.as_str(), &rating.key.language);
        let total = cells.entry(cell).or_insert_with(|| Total {
            judge: rating.judge.clone(),
            system: rating.key.system.clone(),
            language: rating.key.language.clone(),
            prompts: 0,
            rated: 0,
            unrated: 0,
            raw: 0.0,
            gated: 0.0,
            dropped: 0.0,
            dropped_responses: 0,
            highest: 0.0,
        });
        total.prompts += 1;
        total.highest += HIGHEST_RATING;
        match rating.rating {
            None => total.unrated += 1,
            Some(mark) => {
                total.rated += 1;
                total.raw += mark;
                if gate {
                    total.gated += mark;
                } else {
                    total.dropped += mark;
                    total.dropped_responses += 1;
                }
            }
        }
    }
    Ok(cells.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn language(code: &str) -> Language {
        serde_json::from_value(serde_json::Value::String(code.to_string())).unwrap()
    }

    fn rating(id: &str, mark: Option<f64>) -> Rating {
        Rating {
            key: ResponseKey { system: "s".into(), language: language("zh"), id: id.into() },
            judge: "j".into(),
            rating: mark,
            unrated: mark.is_none().then(|| "empty answer".into()),
            explanation: "说明".into(),
            setting: "a".into(),
            rated: "b".into(),
        }
    }

    #[test]
    fn table_2_a_chinese_prompt_answered_in_english_and_rated_3_scores_0() {
        let ratings = [rating("wedding", Some(3.0))];
        let gates = HashMap::from([(ratings[0].key.clone(), false)]);
        let total = &totals(&ratings, &gates).unwrap()[0];
        assert_eq!((total.raw, total.gated, total.dropped, total.dropped_responses), (3.0, 0.0, 3.0, 1));
    }

    #[test]
    fn unrated_is_counted_and_is_not_zero() {
        let ratings = [rating("1", Some(2.0)), rating("2", None)];
        let gates = ratings.iter().map(|rating| (rating.key.clone(), true)).collect();
        let total = &totals(&ratings, &gates).unwrap()[0];
        assert_eq!((total.prompts, total.rated, total.unrated, total.gated), (2, 1, 1, 2.0));
        let error = totals(&ratings, &HashMap::new()).unwrap_err();
        assert!(error.to_string().contains("no gate for system \"s\""), "{error}");
    }

    #[test]
    fn a_log_cut_anywhere_keeps_every_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ratings.jsonl");
        let ratings: Vec<Rating> = (0..3).map(|i| rating(&i.to_string(), Some(1.0))).collect();
        write_ratings(&path, &ratings).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let before = read_ratings(&path).unwrap().ratings;
            RatingLog::open(&path).unwrap().add(&rating("new", None)).unwrap();
            let after = read_ratings(&path).unwrap();
            assert!(!after.torn);
            assert_eq!(after.ratings.len(), before.len() + 1, "cut at {cut}");
            assert_eq!(after.ratings[..before.len()], before[..]);
        }
    }

    #[test]
    fn a_line_that_is_no_rating_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ratings.jsonl");
        std::fs::write(&path, "\n{\"id\": 3}\n").unwrap();
        let error = read_ratings(&path).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("{\\\"id\\\": 3}"), "{error}");
    }
}
