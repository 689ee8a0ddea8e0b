//! What was submitted, as files: a program that is started again finds its jobs.
//!
//! ```text
//! OUT/slurm/0001.json      an array: written before it is submitted, and again with its number
//! OUT/slurm/0001.sh        its script
//! OUT/slurm/logs/          what its jobs print, ARRAY_PLACE.log
//! OUT/slurm/records/       what its jobs came to, in their own words, ARRAY_PLACE.json
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::scheduler::JobId;
use crate::store::{Key, write_atomically};

/// A job array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Array {
    /// The job's name: no other array of this user has it.
    pub name: String,
    /// Its place among the arrays of these results.
    pub number: u32,
    /// Slurm's number, once it is known.
    pub id: Option<u64>,
    /// `tuning`, `answers`, ...
    pub stage: String,
    /// Its jobs.
    pub jobs: Vec<Job>,
}

/// A job of an array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// In the array.
    pub place: u32,
    /// What it does.
    pub cells: Vec<Key>,
    /// What its cells ask for; once it has ended, at the next try.
    pub wish: Wish,
    /// How far its cells were when it was submitted.
    pub mark: u64,
    /// Whether it has ended, and what it came to was taken note of.
    pub ended: bool,
}

/// What a cell asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// In mebibytes.
    pub memory: u64,
    /// Of time.
    pub minutes: u64,
    /// How often it was submitted in vain.
    pub tries: u32,
}

/// What a job says of itself: written when it begins, and again when it ends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Whether it came to its end: false where it runs, or was killed.
    pub ended: bool,
    /// Whether it was told to end early, and did.
    pub stopped: bool,
    /// Cells that failed, with their reasons.
    pub failed: BTreeMap<Key, String>,
}

impl Record {
    /// Writes it.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(write_atomically(path, &serde_json::to_vec_pretty(self)?)?)
    }
}

/// The folder of the files.
#[derive(Debug, Clone)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        for part in ["logs", "records"] {
            let path = folder.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot make the folder {}", path.display()))?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// All arrays, in the order in which they were submitted.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn arrays(&self) -> Result<Vec<Array>> {
        let mut arrays = Vec::new();
        let entries = fs::read_dir(&self.folder);
        for entry in entries.with_context(|| format!("cannot list {}", self.folder.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", self.folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let array: Array =
                    serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
                arrays.push(array);
            }
        }
        arrays.sort_by_key(|array| array.number);
        Ok(arrays)
    }

    /// Writes an array down.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn keep(&self, array: &Array) -> Result<()> {
        let path = self.folder.join(format!("{:04}.json", array.number));
        Ok(write_atomically(&path, &serde_json::to_vec_pretty(array)?)?)
    }

    /// Writes an array's script, and gives its path.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn script(&self, array: &Array, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{:04}.sh", array.number));
        write_atomically(&path, text.as_bytes())?;
        Ok(path)
    }

    /// Where an array's jobs print to, as `sbatch` takes it.
    pub fn log_pattern(&self) -> String {
        self.folder.join("logs/%A_%a.log").display().to_string()
    }

    /// The folder of what jobs say of themselves.
    pub fn records(&self) -> PathBuf {
        self.folder.join("records")
    }

    /// What a job says of itself; none where it has not begun.
    pub fn record(&self, (array, place): JobId) -> Option<Record> {
        let text = fs::read(self.records().join(format!("{array}_{place}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The last lines that a job printed.
    pub fn last_words(&self, (array, place): JobId) -> String {
        let path = self.folder.join(format!("logs/{array}_{place}.log"));
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        format!("{} says: {}", path.display(), last.join(" | "))
    }
}

/// Lines of a log that are told.
const LAST_WORDS: usize = 3;
