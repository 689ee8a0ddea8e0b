//! Repositories of the Hugging Face Hub by name: sets of instruction data, and the files of base models.
//!
//! Files come through `hf-hub` into its cache, where other programs find them too. As for those, `HF_HOME` says where
//! the cache lies, `HF_ENDPOINT` which server is asked, and `HF_TOKEN`, or the token of a log-in, opens private
//! repositories. What is in the cache is not fetched again.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

use crate::files::{Place, Problem, Reading, read_bytes};
use crate::language::Language;
use crate::record::{Numbered, Record, Repeats, read_numbered};

/// Asks again this often when a connection breaks; what has come is kept.
const RETRIES: usize = 3;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Instruction data.
    Dataset,
    /// A base model.
    Model,
}

/// A repository's name and the state of it that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`, or a name alone for the oldest ones.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// Which of a dataset's files are its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of files that are named after a split (`train-00000-of-00002.parquet`, `fi/test.jsonl`), those of this one.
    pub split: String,
    /// Only files below this folder, which is what a configuration most often is.
    pub folder: Option<String>,
    /// These files, whatever their names; `split` and `folder` do not count then.
    pub files: Vec<String>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { split: "train".to_owned(), folder: None, files: Vec::new() }
    }
}

/// A dataset's rows, and where they come from.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The records of all files, and what was wrong with them.
    pub reading: Reading<Record>,
    /// The files that were read.
    pub files: Vec<String>,
    /// Files with rows that were not asked for: other splits and folders.
    pub passed_over: Vec<String>,
    /// The commit that the rows are of.
    pub commit: String,
}

/// The files that were asked for are not in the repository of this name, which was reached: in an error's chain.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotInRepository(String);

/// Words that name a part of a dataset in its files' names.
const SPLITS: [&str; 8] = ["train", "training", "test", "validation", "valid", "val", "dev", "eval"];

/// Files that describe a dataset and hold no rows.
const DESCRIPTIONS: [&str; 3] = ["dataset_infos.json", "dataset_info.json", "package.json"];

/// The files of a base model that are read: weights, configuration, tokenizer, and its chat template.
const MODEL_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

impl Repository {
    /// A repository by its name as a user writes it: `owner/name`, with `@revision` behind it where another state than
    /// `main` is wanted.
    ///
    /// # Errors
    /// Where it is no such name.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_name(part)) {
            bail!("`{text}` is no name of a repository: expected owner/name, or owner/name@revision");
        }
        if !revision.split('/').all(is_name) {
            bail!("`{text}`: `{revision}` is no name of a branch, a tag or a commit");
        }
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// Letters, digits, `-`, `_` and `.`, and not dots alone.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty() && part.chars().all(allowed) && !part.chars().all(|c| c == '.')
}

/// Fetches the rows of a dataset; `begin` is told each file's name before it comes.
///
/// Rows without an id get their number, counted through all files. An id that comes again in another file is made
/// distinct, and noted among the problems.
///
/// # Errors
/// Where the repository cannot be reached or has no such file ([`NotInRepository`]), or a file is no set.
pub fn fetch_dataset(
    repository: &Repository,
    selection: &Selection,
    language: &Language,
    begin: &dyn Fn(&str),
) -> Result<Fetched> {
    let (repo, files, commit) = open(repository, Kind::Dataset)?;
    let (chosen, passed_over) =
        choose(&files, selection).with_context(|| NotInRepository(repository.name.clone()))?;
    let mut joined = Joined::default();
    for file in &chosen {
        begin(file);
        let path = get(&repo, repository, file)?;
        let part =
            read_bytes(&path).and_then(|bytes| read_numbered(&path, bytes, language, Repeats::LeftOut));
        joined.add(&path, part.with_context(|| format!("{}: {file}", repository.name))?);
    }
    Ok(Fetched { reading: joined.reading, files: chosen, passed_over, commit })
}

/// The rows of several files as one set, in which no id comes twice.
#[derive(Default)]
struct Joined {
    reading: Reading<Record>,
    ids: BTreeSet<(Language, String)>,
    files: usize,
    /// Rows of the files, those that were left out too.
    rows: usize,
}

impl Joined {
    /// Adds a file's rows. Those without an id have their number, counted through all files. What then has an id of a
    /// row before it gets the file's number in front, from 0, so that the files of parallel sets stay parallel.
    fn add(&mut self, path: &Path, part: Numbered) {
        let Numbered { mut reading, rows, numbered, .. } = part;
        for (place, number) in numbered {
            if let Some(record) = reading.items.get_mut(place) {
                record.id = (self.rows + number).to_string();
            }
        }
        let mut renamed: Vec<(String, String)> = Vec::new();
        for record in &mut reading.items {
            let found = record.id.clone();
            while !self.ids.insert((record.language.clone(), record.id.clone())) {
                record.id = format!("{}:{}", self.files, record.id);
            }
            if record.id != found {
                renamed.push((found, record.id.clone()));
            }
        }
        if let Some((found, now)) = renamed.first() {
            reading.problems.push(Problem {
                file: path.to_path_buf(),
                place: Place::File,
                what: format!(
                    "{} ids were met before, in this or an earlier file, and got this file's number in front: \
                     the first is {found}, now {now}",
                    renamed.len()
                ),
                dropped: false,
            });
        }
        self.reading.extend(reading);
        self.files += 1;
        self.rows += rows;
    }
}

/// Fetches a base model's files, and gives the folder that they lie in: safetensors where there are any, and else its
/// one GGUF file, whose path is then given. `begin` is told each file's name before it comes.
///
/// # Errors
/// Where the repository cannot be reached, or has no weights that can be read.
pub fn fetch_model(repository: &Repository, begin: &dyn Fn(&str)) -> Result<PathBuf> {
    let (repo, files, _) = open(repository, Kind::Model)?;
    let ends = |ending: &str| -> Vec<&String> {
        // Weights in folders are other forms of the same model.
        files.iter().filter(|file| file.ends_with(ending) && !file.contains('/')).collect()
    };
    let (weights, gguf) = (ends(".safetensors"), ends(".gguf"));
    if weights.is_empty() {
        let [file] = gguf.as_slice() else {
            bail!(
                "{}: expected .safetensors files or one GGUF file, found {} GGUF files: name one by its path",
                repository.name,
                gguf.len()
            );
        };
        begin(file);
        return get(&repo, repository, file);
    }
    let others = files.iter().filter(|file| MODEL_FILES.contains(&file.as_str()));
    let mut folder = None;
    for file in others.chain(weights) {
        begin(file);
        let path = get(&repo, repository, file)?;
        folder = path.parent().map(Path::to_path_buf);
    }
    folder.with_context(|| format!("{}: has no file", repository.name))
}

/// The repository, its files' names and its commit.
fn open(repository: &Repository, kind: Kind) -> Result<(ApiRepo, Vec<String>, String)> {
    let mut builder =
        ApiBuilder::from_env().with_progress(std::io::stderr().is_terminal()).with_retries(RETRIES);
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()) {
        builder = builder.with_token(Some(token.trim().to_owned()));
    }
    let api: Api = builder.build().map_err(|error| anyhow!("{error}"))?;
    let repo_type = match kind {
        Kind::Dataset => RepoType::Dataset,
        Kind::Model => RepoType::Model,
    };
    let at = |revision: &str| {
        api.repo(Repo::with_revision(repository.name.clone(), repo_type, revision.to_owned()))
    };
    let info = at(&repository.revision).info().map_err(|error| told(repository, None, &error))?;
    // The commit, not the branch, names the files from here on: they cannot change halfway.
    if !is_name(&info.sha) {
        bail!("{}: the server names the commit `{}`: expected its digits", repository.name, info.sha);
    }
    let mut files = Vec::new();
    for sibling in info.siblings {
        let path = Path::new(&sibling.rfilename);
        // A name from outside becomes a path in the cache.
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            bail!("{}: the server names a file `{}`, outside of it", repository.name, sibling.rfilename);
        }
        files.push(sibling.rfilename);
    }
    files.sort();
    Ok((at(&info.sha), files, info.sha))
}

fn get(repo: &ApiRepo, repository: &Repository, file: &str) -> Result<PathBuf> {
    repo.get(file).map_err(|error| told(repository, Some(file), &error))
}

/// What went wrong, with what was asked for.
fn told(repository: &Repository, file: Option<&str>, error: &ApiError) -> anyhow::Error {
    let what = file.map_or_else(String::new, |file| format!(": {file}"));
    let text = error.to_string();
    let hint = if text.contains("404") {
        ": there is no such repository, revision or file"
    } else if text.contains("401") || text.contains("403") {
        ": it is private or asks for consent; HF_TOKEN opens it"
    } else {
        ""
    };
    anyhow!("{}@{}{what}: {text}{hint}", repository.name, repository.revision)
}

/// The files that are asked for, and those with rows that are not.
fn choose(files: &[String], selection: &Selection) -> Result<(Vec<String>, Vec<String>)> {
    if !selection.files.is_empty() {
        if let Some(lacking) = selection.files.iter().find(|file| !files.contains(file)) {
            bail!("has no file `{lacking}`: it has {}", files.join(", "));
        }
        return Ok((selection.files.clone(), Vec::new()));
    }
    let with_rows: Vec<&String> = files.iter().filter(|file| has_rows(file)).collect();
    let in_folder = |file: &str| {
        let Some(folder) = &selection.folder else { return true };
        file.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
    };
    let named = |file: &str| split_of(file).is_some();
    let any_named = with_rows.iter().any(|file| in_folder(file) && named(file));
    let is_chosen =
        |file: &str| in_folder(file) && (!any_named || split_of(file) == Some(canonical(&selection.split)));
    let (chosen, passed_over): (Vec<&String>, Vec<&String>) =
        with_rows.into_iter().partition(|file| is_chosen(file));
    let folders: Vec<&str> = {
        let mut folders: Vec<&str> =
            chosen.iter().map(|file| file.rsplit_once('/').map_or("", |(folder, _)| folder)).collect();
        folders.dedup();
        folders
    };
    if chosen.is_empty() {
        bail!(
            "has no file with rows of the split `{}`{}: its files are {}",
            selection.split,
            selection.folder.as_ref().map_or_else(String::new, |folder| format!(" in {folder}")),
            files.join(", ")
        );
    }
    if folders.len() > 1 && selection.folder.is_none() {
        bail!("has rows in several folders ({}): name one, or the files", folders.join(", "));
    }
    Ok((chosen.into_iter().cloned().collect(), passed_over.into_iter().cloned().collect()))
}

/// Whether a file's name is that of rows.
fn has_rows(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    matches!(ending, "parquet" | "json" | "jsonl") && !name.starts_with('.') && !DESCRIPTIONS.contains(&name)
}

/// The split that a file is named after: a word of its name, or else of a folder's.
fn split_of(file: &str) -> Option<&'static str> {
    let words = |part: &str| {
        let mut words = part.split(|c: char| !c.is_ascii_alphanumeric());
        words.find_map(|word| SPLITS.iter().find(|split| word.eq_ignore_ascii_case(split)).copied())
    };
    file.rsplit('/').find_map(words).map(canonical)
}

/// One name for each split.
fn canonical(split: &str) -> &'static str {
    match split.to_ascii_lowercase().as_str() {
        "train" | "training" => "train",
        "test" => "test",
        "validation" | "valid" | "val" | "dev" | "eval" => "validation",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], selection: &Selection) -> Result<Vec<String>> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        choose(&files, selection).map(|(chosen, _)| chosen)
    }

    #[test]
    fn names_are_told_from_paths() {
        let main = |name: &str| Repository { name: name.to_owned(), revision: "main".to_owned() };
        assert_eq!(Repository::parse("yahma/alpaca-cleaned").expect("a name"), main("yahma/alpaca-cleaned"));
        assert_eq!(Repository::parse("gpt2").expect("a name"), main("gpt2"));
        let other = Repository::parse("a/b@refs/convert/parquet").expect("a name");
        assert_eq!(other.revision, "refs/convert/parquet");
        for odd in ["", "a/b/c", "../a", "a/..", "a b/c", "a/b@", "a/b@../x", "/a", "a\\b"] {
            assert!(Repository::parse(odd).is_err(), "{odd}");
        }
    }

    /// The rows of files of such JSON Lines as one set: ids, and what was noted of each file.
    fn joined(files: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut joined = Joined::default();
        for (number, lines) in files.iter().enumerate() {
            let path = PathBuf::from(format!("file-{number}"));
            let bytes = lines.as_bytes().to_vec();
            let part = read_numbered(&path, bytes, &Language::english(), Repeats::LeftOut);
            joined.add(&path, part.expect("readable"));
        }
        let ids = joined.reading.items.iter().map(|record| record.id.clone()).collect();
        (ids, joined.reading.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn rows_without_ids_are_numbered_through_all_files() {
        const ROW: &str = "{\"instruction\": \"a\", \"output\": \"b\"}\n";
        let (broken, own) = ("{}\n", "{\"id\": \"own\", \"instruction\": \"a\", \"output\": \"b\"}\n");
        let files = [[ROW, broken, ROW].concat(), [broken, ROW, own, ROW].concat(), ROW.to_owned()];
        let (ids, problems) = joined(&files.each_ref().map(String::as_str));
        // A row that was left out keeps its number, as within one file.
        assert_eq!(ids, ["0", "2", "4", "own", "6", "7"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.contains("has no `instruction`")), "{problems:?}");
    }

    #[test]
    fn ids_that_come_again_are_made_distinct_and_noted() {
        let row = |id: &str| format!("{{\"id\": \"{id}\", \"instruction\": \"a\", \"output\": \"b\"}}\n");
        let numbers =
            [row("0"), row("1"), "{\"instruction\": \"a\", \"output\": \"b\"}\n".to_owned()].concat();
        let again = [row("1"), row("1:1"), row("new"), row("0")].concat();
        let (ids, problems) = joined(&[&numbers, &again, &numbers]);
        assert_eq!(ids, ["0", "1", "2", "1:1", "1:1:1", "new", "1:0", "2:0", "2:1", "9"]);
        assert_eq!(
            problems,
            [
                "file-1: 3 ids were met before, in this or an earlier file, and got this file's number in front: \
                 the first is 1, now 1:1",
                "file-2: 2 ids were met before, in this or an earlier file, and got this file's number in front: \
                 the first is 0, now 2:0",
            ]
        );
        // What a row without an id is numbered may be another's own id, in the same file too.
        let (ids, problems) =
            joined(&[&row("a"), &[&row("2"), "{\"instruction\": \"a\", \"output\": \"b\"}\n"].concat()]);
        assert_eq!((ids.join(" "), problems.len()), ("a 2 1:2".to_owned(), 1));
    }

    #[test]
    fn the_files_of_the_split_are_chosen() {
        let train = Selection::default();
        let files =
            ["README.md", "data/test-0.parquet", "data/train-00000-of-00001.parquet", "dataset_infos.json"];
        assert_eq!(chosen(&files, &train).expect("chosen"), ["data/train-00000-of-00001.parquet"]);
        assert_eq!(chosen(&["alpaca.json", ".gitattributes"], &train).expect("chosen"), ["alpaca.json"]);
        let folders = ["en/train.jsonl", "fi/train.jsonl", "fi/dev.jsonl"];
        assert!(
            format!("{:#}", chosen(&folders, &train).expect_err("two")).contains("several folders (en, fi)")
        );
        let finnish = Selection { folder: Some("fi".to_owned()), ..train.clone() };
        assert_eq!(chosen(&folders, &finnish).expect("chosen"), ["fi/train.jsonl"]);
        let validation = Selection { split: "validation".to_owned(), ..finnish };
        assert_eq!(chosen(&folders, &validation).expect("chosen"), ["fi/dev.jsonl"]);
        let named = Selection { files: vec!["en/train.jsonl".to_owned()], ..train.clone() };
        assert_eq!(chosen(&folders, &named).expect("chosen"), ["en/train.jsonl"]);
        let error = chosen(&["README.md"], &train).expect_err("none");
        assert!(error.to_string().contains("README.md"), "{error}");
    }
}
