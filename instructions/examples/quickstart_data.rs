//! Writes the data of `examples/quickstart.toml` from its lexicon.
//!
//! ```sh
//! cargo run -p polypaca-instructions --example quickstart_data -- examples/quickstart
//! ```
//!
//! The lexicon, one file a language under `lexicon/`, holds tables of words with every inflected form written out, and
//! relations: how a fact is asked, answered, and otherwise stated. A *fact* is a relation with one row of its table,
//! `capital.finland` say, and is the id of its record or prompt in every language. Out of these come
//!
//! - `text/LANGUAGE.txt`, plain text that states every fact several times: what the base model is trained on;
//! - `instructions/LANGUAGE.json`, questions about most facts, in Alpaca's form: what systems are tuned on;
//! - `prompts/LANGUAGE.jsonl`, questions about the other facts, with their reference answers.
//!
//! `instructions_only.txt` lists facts that never become prompts, since their short reference answers are taken for
//! another language by the gate. Which of the others goes where is drawn from a hash of its id, so that it is the same in every language and on every machine,
//! and so that a new row moves no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

/// How often the text of a language states every fact.
const ROUNDS: usize = 12;

/// Out of so many facts of a relation, one becomes a prompt.
const PROMPT_EVERY: usize = 8;

/// The records of a language: what is left of the facts after this many is stated in the text alone.
const RECORDS: usize = 320;

fn main() -> Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        bail!("expected the folder that holds lexicon/, and nothing else");
    };
    let mut lexicons = Vec::new();
    for entry in std::fs::read_dir(folder.join("lexicon")).context("no folder lexicon/")? {
        lexicons.push(Lexicon::read(&entry?.path())?);
    }
    lexicons.sort_by(|one, other| one.language.cmp(&other.language));
    let facts = shared_facts(&lexicons)?;
    let instructions_only = read_instructions_only(&folder.join("instructions_only.txt"), &facts)?;
    let parts = Parts::draw(&facts, &instructions_only);
    for lexicon in &lexicons {
        write_language(&folder, lexicon, &facts, &parts)?;
    }
    println!(
        "{} languages; of {} facts, {} are asked in instructions and {} in prompts",
        lexicons.len(),
        facts.len(),
        parts.records.len(),
        parts.prompts.len()
    );
    Ok(())
}

/// A lexicon's file.
#[derive(Deserialize)]
struct LexiconFile {
    language: String,
    number: Numbers,
    relation: BTreeMap<String, Relation>,
    #[serde(flatten)]
    tables: BTreeMap<String, TableFile>,
}

#[derive(Deserialize)]
struct Numbers {
    words: Vec<String>,
}

/// One kind of fact. Names in braces stand for the forms of the table's row.
#[derive(Deserialize)]
struct Relation {
    table: String,
    questions: Vec<String>,
    answer: String,
    statements: Vec<String>,
}

#[derive(Deserialize)]
struct TableFile {
    forms: String,
    rows: String,
}

/// The forms of a word by their names.
type Forms = BTreeMap<String, String>;

struct Lexicon {
    language: String,
    relations: BTreeMap<String, Relation>,
    tables: BTreeMap<String, BTreeMap<String, Forms>>,
}

impl Lexicon {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let file: LexiconFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let mut tables = BTreeMap::new();
        for (name, table) in &file.tables {
            let rows = read_table(table).with_context(|| format!("{}: [{name}]", path.display()))?;
            tables.insert(name.clone(), rows);
        }
        tables.insert("sum".to_owned(), sums(&file.number.words)?);
        Ok(Self { language: file.language, relations: file.relation, tables })
    }

    /// The sentence that `frame` makes of a fact.
    fn sentence(&self, fact: &Fact, frame: &str) -> Result<String> {
        let forms = &self.tables[&self.relations[&fact.relation].table][&fact.row];
        let mut sentence = frame.to_owned();
        for (name, form) in forms {
            sentence = sentence.replace(&format!("{{{name}}}"), form);
        }
        ensure!(!sentence.contains('{'), "{}: {fact}: a form is missing in `{sentence}`", self.language);
        Ok(with_capital(&sentence))
    }
}

fn read_table(table: &TableFile) -> Result<BTreeMap<String, Forms>> {
    let names: Vec<&str> = table.forms.split('|').map(str::trim).collect();
    let mut rows = BTreeMap::new();
    for line in table.rows.lines().filter(|line| !line.trim().is_empty()) {
        let mut cells = line.split('|').map(str::trim);
        let id = cells.next().unwrap_or_default();
        let forms: Vec<&str> = cells.collect();
        ensure!(forms.len() == names.len(), "`{id}` has {} forms, expected {}", forms.len(), names.len());
        let forms =
            names.iter().zip(forms).map(|(name, form)| ((*name).to_owned(), form.to_owned())).collect();
        ensure!(rows.insert(id.to_owned(), forms).is_none(), "`{id}` stands twice");
    }
    Ok(rows)
}

fn sums(words: &[String]) -> Result<BTreeMap<String, Forms>> {
    ensure!(words.len() == 12, "[number] has {} words, expected twelve", words.len());
    let mut rows = BTreeMap::new();
    for first in 1..=6 {
        for second in 1..=6 {
            let form = |name: &str, number: usize| (name.to_owned(), words[number - 1].clone());
            let forms = [form("first", first), form("second", second), form("total", first + second)];
            rows.insert(format!("{first}-{second}"), forms.into_iter().collect());
        }
    }
    Ok(rows)
}

/// Sentences begin with a capital, behind a Spanish mark or a quotation mark too.
fn with_capital(sentence: &str) -> String {
    let mut capital = String::with_capacity(sentence.len());
    let mut letters = sentence.chars();
    for letter in letters.by_ref() {
        capital.extend(letter.to_uppercase());
        if letter.is_alphabetic() {
            break;
        }
    }
    capital.push_str(letters.as_str());
    capital
}

/// A relation with one row of its table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    relation: String,
    row: String,
}

impl std::fmt::Display for Fact {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.relation, self.row)
    }
}

/// The facts, which must be the same in every language.
fn shared_facts(lexicons: &[Lexicon]) -> Result<BTreeSet<Fact>> {
    let mut shared: Option<BTreeSet<Fact>> = None;
    for lexicon in lexicons {
        let mut facts = BTreeSet::new();
        for (relation, Relation { table, .. }) in &lexicon.relations {
            let rows = lexicon.tables.get(table).with_context(|| {
                format!("{}: [relation.{relation}]: no table [{table}]", lexicon.language)
            })?;
            facts.extend(rows.keys().map(|row| Fact { relation: relation.clone(), row: row.clone() }));
        }
        match &shared {
            None => shared = Some(facts),
            Some(expected) => {
                let differing: Vec<String> =
                    expected.symmetric_difference(&facts).map(Fact::to_string).collect();
                ensure!(differing.is_empty(), "{}: not parallel: {}", lexicon.language, differing.join(", "));
            }
        }
    }
    shared.context("lexicon/ is empty")
}

/// A fact's id a line; lines that begin with `#` are comments.
fn read_instructions_only(path: &Path, facts: &BTreeSet<Fact>) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let listed: BTreeSet<String> = lines.map(str::to_owned).collect();
    let known: BTreeSet<String> = facts.iter().map(Fact::to_string).collect();
    let unknown: Vec<&str> = listed.difference(&known).map(String::as_str).collect();
    ensure!(unknown.is_empty(), "{}: no such fact: {}", path.display(), unknown.join(", "));
    Ok(listed)
}

/// Which facts are asked where.
struct Parts {
    records: Vec<Fact>,
    prompts: Vec<Fact>,
}

impl Parts {
    fn draw(facts: &BTreeSet<Fact>, instructions_only: &BTreeSet<String>) -> Self {
        let mut by_relation: BTreeMap<&str, Vec<&Fact>> = BTreeMap::new();
        for fact in facts {
            by_relation.entry(&fact.relation).or_default().push(fact);
        }
        let mut prompts = Vec::new();
        let mut records = Vec::new();
        for facts in by_relation.values_mut() {
            facts.sort_by_cached_key(|fact| draw("part", fact));
            let wanted = facts.len() / PROMPT_EVERY;
            let mut taken = 0;
            for fact in facts.iter() {
                let part = if taken < wanted && !instructions_only.contains(&fact.to_string()) {
                    taken += 1;
                    &mut prompts
                } else {
                    &mut records
                };
                part.push((*fact).clone());
            }
        }
        records.sort_by_cached_key(|fact| draw("order", fact));
        records.truncate(RECORDS);
        prompts.sort_by_cached_key(|fact| draw("order", fact));
        Self { records, prompts }
    }
}

/// A number that looks drawn by chance, and is the same everywhere.
fn draw(purpose: &str, what: impl std::fmt::Display) -> u64 {
    let hash = blake3::hash(format!("{purpose} {what}").as_bytes());
    let mut start = [0; 8];
    start.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(start)
}

fn write_language(folder: &Path, lexicon: &Lexicon, facts: &BTreeSet<Fact>, parts: &Parts) -> Result<()> {
    let language = &lexicon.language;
    write(&folder.join("text").join(format!("{language}.txt")), &text(lexicon, facts)?)?;

    let mut records = Vec::new();
    for fact in &parts.records {
        let (question, answer) = ask(lexicon, fact)?;
        records.push(json!({"id": fact.to_string(), "instruction": question, "input": "", "output": answer}));
    }
    let records = serde_json::to_string_pretty(&records)? + "\n";
    write(&folder.join("instructions").join(format!("{language}.json")), &records)?;

    let mut prompts = String::new();
    for fact in &parts.prompts {
        let (question, answer) = ask(lexicon, fact)?;
        let id = fact.to_string();
        let line = json!({"id": id, "language": language, "prompt": question, "reference": answer});
        writeln!(prompts, "{line}")?;
    }
    write(&folder.join("prompts").join(format!("{language}.jsonl")), &prompts)
}

/// A question about a fact, in one of its wordings, and the answer.
fn ask(lexicon: &Lexicon, fact: &Fact) -> Result<(String, String)> {
    let relation = &lexicon.relations[&fact.relation];
    let questions: Vec<&str> = relation.questions.iter().map(String::as_str).collect();
    let question = choose(&questions, draw("question", fact));
    Ok((lexicon.sentence(fact, question)?, lexicon.sentence(fact, &relation.answer)?))
}

fn choose<'a>(frames: &[&'a str], drawn: u64) -> &'a str {
    frames[usize::try_from(drawn % frames.len() as u64).unwrap_or_default()]
}

/// Text that states every fact once a round on average, a document a line, each document about one word: all that there
/// is to tell about it, or, where that is a single fact, this fact in all its wordings, every third round.
fn text(lexicon: &Lexicon, facts: &BTreeSet<Fact>) -> Result<String> {
    let mut subjects: BTreeMap<(&str, &str), Vec<&Fact>> = BTreeMap::new();
    for fact in facts {
        let table = lexicon.relations[&fact.relation].table.as_str();
        subjects.entry((table, &fact.row)).or_default().push(fact);
    }
    let mut documents = Vec::new();
    for round in 0..ROUNDS {
        for ((table, row), facts) in &subjects {
            let seed = format!("{} {round} {table} {row}", lexicon.language);
            if let [fact] = facts.as_slice() {
                let wordings = wordings(lexicon, fact);
                if round % wordings.len() == 0 {
                    documents.push(document(
                        lexicon,
                        wordings.iter().map(|wording| (*fact, *wording)),
                        &seed,
                    )?);
                }
            } else {
                let told = facts.iter().map(|fact| {
                    let wordings = wordings(lexicon, fact);
                    (*fact, choose(&wordings, draw(&format!("wording {seed}"), fact)))
                });
                documents.push(document(lexicon, told, &seed)?);
            }
        }
    }
    documents.sort_by_cached_key(|(seed, _)| draw("document", seed));
    let documents: Vec<String> = documents.into_iter().map(|(_, document)| document).collect();
    Ok(documents.join("\n") + "\n")
}

/// The answer, and the other ways to state the fact.
fn wordings<'a>(lexicon: &'a Lexicon, fact: &Fact) -> Vec<&'a str> {
    let relation = &lexicon.relations[&fact.relation];
    std::iter::once(&relation.answer).chain(&relation.statements).map(String::as_str).collect()
}

/// The facts as sentences, in an order drawn from `seed`; returned beside it.
fn document<'a>(
    lexicon: &Lexicon,
    told: impl Iterator<Item = (&'a Fact, &'a str)>,
    seed: &str,
) -> Result<(String, String)> {
    // Chinese sentences follow each other without a space.
    let space = if lexicon.language == "zh" { "" } else { " " };
    let mut sentences =
        told.map(|(fact, frame)| lexicon.sentence(fact, frame)).collect::<Result<Vec<String>>>()?;
    sentences.sort_by_cached_key(|sentence| draw(seed, sentence));
    Ok((seed.to_owned(), sentences.join(space)))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())
}
