//! The files of sets, read one after another: the rows of several files of a language are one set.
//!
//! A row without an id has its number, counted through the files of its set. So sets whose files are cut in the same
//! places are parallel, as sets of one file are. An id that the files give themselves may stand in one of them only:
//! which of two rows is the one that other languages have under this id is not for a program to guess.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::files::{Place, Reading, read_bytes};
use crate::language::Language;
use crate::recipe::Origin;
use crate::record::{Numbered, Record, Repeats, read_numbered};

/// Reads the files of sets; a set has the rows of a language, and of an origin where the caller tells origins apart.
#[derive(Debug)]
pub struct SetFiles {
    repeats: Repeats,
    sets: BTreeMap<(Language, Origin), Met>,
}

/// What was met of a set so far.
#[derive(Debug, Default)]
struct Met {
    /// Rows of the files that have rows of the set, those that were left out too.
    rows: usize,
    files: HashSet<PathBuf>,
    ids: HashMap<String, First>,
}

/// The first row under an id.
#[derive(Debug)]
struct First {
    file: PathBuf,
    place: Place,
    /// Of the whole row, where it may come again.
    hash: Option<blake3::Hash>,
}

impl SetFiles {
    /// Of no file yet.
    pub fn new(repeats: Repeats) -> Self {
        Self { repeats, sets: BTreeMap::new() }
    }

    /// Reads one file more, as [`crate::record::read_records`] does; each row with its place. `origin` says which of its
    /// language's sets a row belongs to.
    ///
    /// # Errors
    /// Where the file cannot be read, is cut short, or is in no form of records; an id that an earlier file of the set
    /// has; a file that is given twice, where rows may not come again.
    pub fn read(
        &mut self,
        path: &Path,
        language: &Language,
        origin: impl Fn(&Record) -> Origin,
    ) -> Result<Reading<(Place, Record)>> {
        let Numbered { mut reading, places, rows, numbered } =
            read_numbered(path, read_bytes(path)?, language, self.repeats)?;
        let set = |record: &Record| (record.language.clone(), origin(record));
        for (item, number) in numbered {
            if let Some(record) = reading.items.get_mut(item) {
                let before = self.sets.get(&set(record)).map_or(0, |met| met.rows);
                record.id = (before + number).to_string();
            }
        }
        let of_sets: BTreeSet<_> = reading.items.iter().map(set).collect();
        for set in &of_sets {
            let met = self.sets.entry(set.clone()).or_default();
            let same = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
            if !met.files.insert(same) && self.repeats == Repeats::LeftOut {
                bail!("{}: the file is given twice for `{}`", path.display(), set.0);
            }
            met.rows += rows;
        }
        for (record, place) in reading.items.iter().zip(&places) {
            let met = self.sets.entry(set(record)).or_default();
            met.add(path, *place, record, self.repeats)?;
        }
        let items = places.into_iter().zip(reading.items).collect();
        Ok(Reading { items, problems: reading.problems })
    }
}

impl Met {
    /// Keeps a row's id.
    fn add(&mut self, path: &Path, place: Place, record: &Record, repeats: Repeats) -> Result<()> {
        let hash = match repeats {
            Repeats::Kept => Some(blake3::hash(&serde_json::to_vec(record)?)),
            Repeats::LeftOut => None,
        };
        if let Some(first) = self.ids.get(&record.id) {
            if hash.is_some() && first.hash == hash {
                return Ok(());
            }
            bail!(
                "{}{place}: the id {:?} was met before in `{}`, in {}{}: expected ids of their own for a language's rows",
                path.display(),
                record.id,
                record.language,
                first.file.display(),
                first.place,
            );
        }
        self.ids.insert(record.id.clone(), First { file: path.to_path_buf(), place, hash });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of files of JSON Lines, file by file, or the error.
    fn ids(repeats: Repeats, files: &[(&str, &str)]) -> Result<Vec<Vec<String>>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut sets = SetFiles::new(repeats);
        let read = files.iter().enumerate().map(|(number, (code, text))| {
            let path = folder.path().join(format!("{number}.jsonl"));
            std::fs::write(&path, text).expect("written");
            let language = code.parse().expect("a language");
            let reading = sets.read(&path, &language, |record| record.origin.unwrap_or_default());
            let reading =
                reading.map_err(|error| error.to_string().replace(&*folder.path().to_string_lossy(), ""))?;
            Ok(reading.items.into_iter().map(|(_, record)| record.id).collect())
        });
        read.collect()
    }

    const ROW: &str = "{\"instruction\": \"a\", \"output\": \"b\"}\n";

    fn row(id: &str, output: &str) -> String {
        format!("{{\"id\": \"{id}\", \"instruction\": \"a\", \"output\": \"{output}\"}}\n")
    }

    #[test]
    fn rows_without_ids_are_numbered_through_the_files_of_their_set() {
        let two = ROW.repeat(2);
        // A line that is no record has its number all the same.
        let broken = format!("{ROW}{{\"instruction\": 3}}\n{ROW}");
        let found = ids(Repeats::LeftOut, &[("en", &broken), ("fi", &two), ("en", &two), ("fi", &two)]);
        let expected = [&["0", "2"][..], &["0", "1"], &["3", "4"], &["2", "3"]];
        assert_eq!(found.expect("readable"), expected);
    }

    #[test]
    fn sets_of_other_origins_have_numbers_of_their_own() {
        let translated = "{\"instruction\": \"a\", \"output\": \"b\", \"origin\": \"translated\"}\n";
        let found =
            ids(Repeats::LeftOut, &[("fi", ROW), ("fi", translated), ("fi", ROW), ("fi", translated)]);
        assert_eq!(found.expect("readable"), [["0"], ["0"], ["1"], ["1"]]);
    }

    #[test]
    fn an_id_that_two_files_of_a_set_have_is_refused_by_name() {
        let said =
            ids(Repeats::LeftOut, &[("en", &row("7", "b")), ("en", &format!("{ROW}{}", row("7", "b")))]);
        let expected = "/1.jsonl, row 1 (line 2): the id \"7\" was met before in `en`, in /0.jsonl, row 0 (line 1): \
                        expected ids of their own for a language's rows";
        assert_eq!(said, Err(expected.to_owned()));
        // Its own number may be another row's id too.
        let said = ids(Repeats::LeftOut, &[("en", ROW), ("en", &format!("{ROW}{}", row("1", "b")))]);
        assert!(said.is_err_and(|said| said.contains("the id \"1\"")));
        // In another language it is the same row.
        assert!(ids(Repeats::LeftOut, &[("en", &row("7", "b")), ("fi", &row("7", "b"))]).is_ok());
    }

    #[test]
    fn rows_that_come_again_count_again_where_they_may() {
        let copies = row("7", "b").repeat(2);
        let kept = ids(Repeats::Kept, &[("en", &copies), ("en", &copies)]);
        assert_eq!(kept.expect("readable"), [["7", "7"], ["7", "7"]]);
        assert_eq!(ids(Repeats::LeftOut, &[("en", &copies)]).expect("readable"), [["7"]]);
        // Another row under the id is none of them.
        let other = format!("{}{}", row("7", "b"), row("7", "c"));
        assert_eq!(ids(Repeats::Kept, &[("en", &other)]).expect("readable"), [["7"]]);
        assert!(ids(Repeats::Kept, &[("en", &row("7", "b")), ("en", &row("7", "c"))]).is_err());
    }
}
