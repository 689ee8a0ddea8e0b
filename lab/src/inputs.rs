//! What an experiment reads before it plans: instruction sets and prompts, with every problem of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use instructions::files::{Place, Problem};
use instructions::language::Language;
use instructions::mix::{LeftOut, Set, Sets};
use instructions::parallel::prompt_differences;
use instructions::prompt::{Prompt, read_prompts};
use instructions::recipe::Origin;
use instructions::record::{Record, Repeats};
use instructions::set_files::SetFiles;

use crate::experiment::{Experiment, Files};
use crate::store::{StoreError, files_below, hash_file};

/// The prompts of each language.
pub type Prompts = BTreeMap<Language, Vec<Prompt>>;

/// The instruction sets and prompts of an experiment.
#[derive(Debug, Default)]
pub struct Inputs {
    /// A set for each seen language, in the experiment's order; where a recipe asks for origins, one for each of them.
    pub sets: Sets,
    /// The prompts of each language.
    pub prompts: Prompts,
    /// What could not be read of the instruction files of each language, among `problems` too.
    pub unread: Vec<(Language, Vec<Problem>)>,
    /// Rows of the instruction files that are left out though they could be read.
    pub left_out: Vec<LeftOut>,
    /// What was wrong with all of them, and did not stop the experiment.
    pub problems: Vec<Problem>,
    /// Languages whose prompts differ in their ids from most others', in words.
    pub differences: Vec<String>,
}

impl Inputs {
    /// Reads all instruction and prompt files.
    ///
    /// # Errors
    /// A file that cannot be read, or a language that is left with no row or no prompt.
    pub fn read(experiment: &Experiment) -> Result<Self> {
        let mut inputs = Self::default();
        let mut recipes = experiment.experiment.recipes.iter().filter_map(|name| experiment.recipe(name));
        let by_origin = recipes.any(|recipe| recipe.asks_for_origins());
        for code in experiment.tuned_languages() {
            let language: Language = code.parse()?;
            let records = inputs.records(&language, &experiment.instructions[code], by_origin)?;
            for (origin, records) in sets_of(records, by_origin) {
                inputs.sets.add(Set { language: language.clone(), origin, records });
            }
        }
        for code in experiment.all_languages() {
            let language: Language = code.parse()?;
            let prompts = inputs.prompts(&language, &experiment.prompts[code])?;
            inputs.prompts.insert(language, prompts);
        }
        let all: Vec<Prompt> = inputs.prompts.values().flatten().cloned().collect();
        inputs.differences = prompt_differences(&all).iter().map(ToString::to_string).collect();
        Ok(inputs)
    }

    /// The rows of a language. Where rows of several origins are sets of their own, they may share ids: they are parallel.
    fn records(&mut self, language: &Language, files: &Files, by_origin: bool) -> Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        let before = self.problems.len();
        let mut set_files = SetFiles::new(Repeats::LeftOut);
        let origin = |record: &Record| match by_origin {
            true => record.origin.unwrap_or_default(),
            false => Origin::default(),
        };
        let (mut foreign, mut empty) = (Vec::new(), Vec::new());
        for path in files.iter() {
            let reading = set_files.read(path, language, origin)?;
            self.unread.push((language.clone(), reading.problems.clone()));
            self.problems.extend(reading.problems);
            for (place, record) in reading.items {
                if record.language != *language {
                    let what = format!("the row is in `{}`, expected `{language}`", record.language);
                    self.dropped(path, place, what);
                    foreign.push(record.id);
                } else if record.output.trim().is_empty() {
                    let what = format!("the row with id {:?} has an empty output", record.id);
                    self.dropped(path, place, what);
                    empty.push(record.id);
                } else {
                    records.push(record);
                }
            }
        }
        for (reason, ids) in [("the row is in another language", foreign), ("the output is empty", empty)] {
            if !ids.is_empty() {
                self.left_out.push(LeftOut { language: language.clone(), reason: reason.to_owned(), ids });
            }
        }
        if records.is_empty() {
            bail!("no instruction row in `{language}` ({}) could be used{}", list(files), self.why(before));
        }
        Ok(records)
    }

    fn prompts(&mut self, language: &Language, files: &Files) -> Result<Vec<Prompt>> {
        let mut prompts: Vec<Prompt> = Vec::new();
        let before = self.problems.len();
        for path in files.iter() {
            let reading = read_prompts(path, Some(language))?;
            self.problems.extend(reading.problems);
            for prompt in reading.items {
                if prompt.language != *language {
                    let what =
                        format!("prompt {:?} is in `{}`, expected `{language}`", prompt.id, prompt.language);
                    self.dropped(path, Place::File, what);
                } else if prompts.iter().any(|other| other.id == prompt.id) {
                    self.dropped(path, Place::File, format!("prompt {:?} occurs twice", prompt.id));
                } else {
                    prompts.push(prompt);
                }
            }
        }
        if prompts.is_empty() {
            bail!("no prompt in `{language}` ({}) could be used{}", list(files), self.why(before));
        }
        Ok(prompts)
    }

    /// The first of the problems behind the first `before` of them: with an error that ends all, no other is told.
    fn why(&self, before: usize) -> String {
        self.problems.get(before).map_or_else(String::new, |problem| format!(": {problem}"))
    }

    fn dropped(&mut self, path: &Path, place: Place, what: String) {
        self.problems.push(Problem { file: path.to_owned(), place, what, dropped: true });
    }
}

/// A language's rows as sets of one origin each where recipes ask for origins, else as one set.
fn sets_of(records: Vec<Record>, by_origin: bool) -> BTreeMap<Origin, Vec<Record>> {
    let origins: BTreeSet<Origin> = records.iter().map(|record| record.origin.unwrap_or_default()).collect();
    let common = origins.first().copied().filter(|_| origins.len() == 1).unwrap_or_default();
    let mut sets: BTreeMap<Origin, Vec<Record>> = BTreeMap::new();
    for record in records {
        let origin = if by_origin { record.origin.unwrap_or_default() } else { common };
        sets.entry(origin).or_default().push(record);
    }
    sets
}

/// The content hash of a file, or of all files of a folder with their names.
///
/// # Errors
/// Where one of them cannot be read.
pub fn content_hash(path: &Path) -> Result<String, StoreError> {
    if !path.is_dir() {
        return Ok(hash_file(path)?.blake3);
    }
    let mut hasher = blake3::Hasher::new();
    for file in files_below(path)? {
        let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(hash_file(&file)?.blake3.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The content hash of a value, through its JSON.
///
/// # Errors
/// Where it has no JSON.
pub fn value_hash(value: &impl serde::Serialize) -> Result<String> {
    let json = serde_json::to_vec(value).context("a value that has no JSON")?;
    Ok(blake3::hash(&json).to_hex().to_string())
}

fn list(files: &Files) -> String {
    files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
