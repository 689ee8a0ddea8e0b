//! Records: one instruction, an optional input, and an output, with an id and a language.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::files::{
    Place, Problem, Reading, atomic_write, for_each_line, json_fault, read_bytes, without_byte_order_mark,
    write_json_lines,
};
use crate::language::Language;
use crate::parquet_file::{self, write_parquet};
use crate::prompt::kind;
use crate::recipe::Origin;

/// One instruction row, with Alpaca's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Shared by the same row in parallel sets; the row's number where the file has none.
    pub id: String,
    /// The language of the set that it belongs to.
    pub language: Language,
    /// What is asked.
    pub instruction: String,
    /// What it is asked about; empty where there is nothing.
    #[serde(default)]
    pub input: String,
    /// The answer to learn.
    pub output: String,
    /// Where its text comes from, where its file tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Reads a set, whatever its form; the form is told by the content, not by the file's name:
///
/// - Alpaca's JSON array, or one such object a line (JSON Lines): `instruction`, `input`, `output`, and `id`,
///   `language` and `origin` where there are; Dolly's `context` and `response` are read as `input` and `output`;
/// - chats: ShareGPT's `conversations` (`from`, `value`) or `messages` (`role`, `content`), one a row: the first user
///   turn and the assistant's answer to it become a record; what follows, and a system message, is left out and noted;
/// - a JSON object whose `data` is such an array;
/// - a Parquet file with columns of these names.
///
/// A row without an id gets its number, from 0, so that sets without ids are parallel by row. `language` holds for
/// rows that name none. A row that is no record is left out and named among the problems. An empty output is read:
/// whether it may stay is for the check to say.
///
/// # Errors
/// Where the file cannot be read, is cut short, or is in none of these forms.
pub fn read_records(path: &Path, language: &Language) -> Result<Reading<Record>> {
    let bytes = read_bytes(path)?;
    read_record_bytes(path, bytes, language)
}

/// Reads a set from a file's bytes, as [`read_records`] does; `path` is for messages.
///
/// # Errors
/// As [`read_records`].
pub fn read_record_bytes(path: &Path, bytes: Vec<u8>, language: &Language) -> Result<Reading<Record>> {
    Ok(read_numbered(path, bytes, language, Repeats::LeftOut)?.reading)
}

/// What becomes of a row that is an earlier one again, id, texts and all: a recipe that takes rows again writes such.
/// Another row under an earlier one's id is always left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It is left out, and named: a set has every row once.
    LeftOut,
    /// It counts once more.
    Kept,
}

/// A set, where its rows stand in their file, and which ids its file did not give.
pub(crate) struct Numbered {
    pub(crate) reading: Reading<Record>,
    /// Where each item stands.
    pub(crate) places: Vec<Place>,
    /// The file's rows, those that were left out too.
    pub(crate) rows: usize,
    /// The items whose id is their row's number, in order: the item's place and that number.
    pub(crate) numbered: Vec<(usize, usize)>,
}

/// As [`read_record_bytes`], with where rows stand, and which ids are the rows' numbers.
pub(crate) fn read_numbered(
    path: &Path,
    bytes: Vec<u8>,
    language: &Language,
    repeats: Repeats,
) -> Result<Numbered> {
    let mut reader = RowReader::new(path, language, repeats);
    if bytes.starts_with(parquet_file::MAGIC) {
        parquet_file::read_rows(path, bytes, &mut reader)?;
        return Ok(reader.finish());
    }
    let start = bytes.iter().find(|byte| !byte.is_ascii_whitespace() && !b"\xEF\xBB\xBF".contains(byte));
    match start {
        None => bail!("{}: is empty: expected a JSON array of records, or one record a line", path.display()),
        Some(b'[') => reader.read_array(&bytes)?,
        Some(b'{') => reader.read_objects(&bytes)?,
        Some(byte) => bail!(
            "{}: begins with `{}`: expected a JSON array of records, or one record a line",
            path.display(),
            byte.escape_ascii()
        ),
    }
    Ok(reader.finish())
}

/// Writes Alpaca's form: one JSON array, with `id` and `language` besides Alpaca's keys. Atomic.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_alpaca_json(path: &Path, records: &[Record]) -> Result<()> {
    atomic_write(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, records)?;
        writer.write_all(b"\n")?;
        Ok(())
    })
}

/// Writes one record a line. Atomic.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_records(path: &Path, records: &[Record]) -> Result<()> {
    write_json_lines(path, records)
}

/// Writes a set in the form that the file's name ends in: `.parquet`, `.jsonl`, or else Alpaca's JSON. Atomic.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_set(path: &Path, records: &[Record]) -> Result<()> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => write_parquet(path, records),
        Some("jsonl") => write_records(path, records),
        _ => write_alpaca_json(path, records),
    }
}

/// A row as it may be found. Values are looked at one by one, so that a fault names its key.
#[derive(Default, Deserialize)]
#[serde(default, expecting = "a record's object in braces")]
pub(crate) struct Row {
    pub(crate) id: Option<Value>,
    pub(crate) language: Option<Value>,
    pub(crate) instruction: Option<Value>,
    pub(crate) input: Option<Value>,
    pub(crate) context: Option<Value>,
    pub(crate) output: Option<Value>,
    pub(crate) response: Option<Value>,
    pub(crate) origin: Option<Value>,
    pub(crate) conversations: Option<Vec<Turn>>,
    pub(crate) messages: Option<Vec<Turn>>,
}

impl Row {
    /// A row of JSON. What serde takes for an object besides, an array of the values in order, is none.
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('[') {
            return Err("expected a record's object in braces, found an array".to_owned());
        }
        serde_json::from_str(text).map_err(|error| json_fault(&error))
    }
}

/// One turn of a chat, in either form.
#[derive(Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub(crate) struct Turn {
    role: String,
    content: String,
}

impl TryFrom<Map<String, Value>> for Turn {
    type Error = String;

    fn try_from(mut keys: Map<String, Value>) -> Result<Self, String> {
        let mut take = |names: [&str; 2]| {
            let value = names.into_iter().find_map(|name| keys.remove(name));
            text(names[0], value).map_err(|what| format!("a turn of the chat: {what}"))
        };
        Ok(Self { role: take(["role", "from"])?, content: take(["content", "value"])? })
    }
}

/// Turns rows into records, and gathers what is wrong with them.
pub(crate) struct RowReader<'a> {
    path: &'a Path,
    language: &'a Language,
    repeats: Repeats,
    reading: Reading<Record>,
    places: Vec<Place>,
    /// The first item with each id of a language.
    seen: BTreeMap<(Language, String), usize>,
    row: usize,
    numbered: Vec<(usize, usize)>,
    later_turns: usize,
    system_messages: usize,
}

impl<'a> RowReader<'a> {
    pub(crate) fn new(path: &'a Path, language: &'a Language, repeats: Repeats) -> Self {
        Self {
            path,
            language,
            repeats,
            reading: Reading::default(),
            places: Vec::new(),
            seen: BTreeMap::new(),
            row: 0,
            numbered: Vec::new(),
            later_turns: 0,
            system_messages: 0,
        }
    }

    /// One JSON array of rows.
    fn read_array(&mut self, bytes: &[u8]) -> Result<()> {
        let bytes = without_byte_order_mark(bytes, self.path, &mut self.reading.problems);
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = count_line_feeds(&bytes[..error.valid_up_to()]) + 1;
            anyhow!("{}, line {line}: not UTF-8", self.path.display())
        })?;
        self.read_array_in(bytes, text)
    }

    /// One JSON array of rows, a part of the file's bytes, from whose beginning lines are counted.
    fn read_array_in(&mut self, file: &[u8], array: &str) -> Result<()> {
        let path = self.path;
        let mut lines = LineCounter { bytes: file, at: 0, line: 1 };
        let mut deserializer = serde_json::Deserializer::from_str(array);
        deserializer
            .deserialize_seq(Rows(|row: &RawValue| {
                let line = lines.line_of(row.get());
                self.add(Some(line), Row::parse(row.get()));
            }))
            .and_then(|()| deserializer.end())
            .with_context(|| {
                format!("{}: not a whole JSON array of records: cut short or broken", path.display())
            })
    }

    /// One object a line, or one object with the rows under `data`.
    fn read_objects(&mut self, bytes: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Wrapped<'a> {
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let bytes = without_byte_order_mark(bytes, self.path, &mut self.reading.problems);
        if let Ok(Wrapped { data }) = serde_json::from_slice(bytes) {
            return self.read_array_in(bytes, data.get());
        }
        let mut problems = std::mem::take(&mut self.reading.problems);
        for_each_line(bytes, self.path, &mut problems, |line, text, problems| {
            self.add(Some(line), Row::parse(text));
            problems.append(&mut self.reading.problems);
        });
        self.reading.problems = problems;
        if self.reading.items.is_empty() && self.row > 0 {
            let first = self.reading.problems.iter().find(|problem| problem.dropped);
            bail!(
                "{}: none of its {} lines is a record; the first fault: {}",
                self.path.display(),
                self.row,
                first.map_or("unknown", |problem| problem.what.as_str())
            );
        }
        Ok(())
    }

    /// One row more.
    pub(crate) fn add(&mut self, line: Option<usize>, row: Result<Row, String>) {
        let number = self.row;
        self.row += 1;
        let place = Place::Row { row: number, line };
        let has_no_id = row.as_ref().is_ok_and(|row| row.id.is_none());
        let what = match row.and_then(|row| self.record(number, row)) {
            Ok(record) if self.is_wanted(&record) => {
                if has_no_id {
                    self.numbered.push((self.reading.items.len(), number));
                }
                self.places.push(place);
                return self.reading.items.push(record);
            }
            Ok(record) => format!("the id {} was met before", record.id),
            Err(what) => what,
        };
        self.reading.problems.push(Problem { file: self.path.to_path_buf(), place, what, dropped: true });
    }

    /// Whether a record is the next item: its id is new, or it is to count again.
    fn is_wanted(&mut self, record: &Record) -> bool {
        let next = self.reading.items.len();
        let first = *self.seen.entry((record.language.clone(), record.id.clone())).or_insert(next);
        let again = || self.repeats == Repeats::Kept && self.reading.items.get(first) == Some(record);
        first == next || again()
    }

    fn record(&mut self, number: usize, row: Row) -> Result<Record, String> {
        let id = match row.id {
            Some(Value::String(id)) => id,
            Some(Value::Number(id)) => id.to_string(),
            None => number.to_string(),
            Some(other) => return Err(format!("`id` must be a text, found {}", kind(&other))),
        };
        let language = match row.language {
            Some(Value::String(code)) => code.parse().map_err(|error| format!("`language`: {error}"))?,
            None => self.language.clone(),
            Some(other) => return Err(format!("`language` must be a code, found {}", kind(&other))),
        };
        // What is no origin of ours is a key of another meaning.
        let origin = row.origin.as_ref().and_then(Value::as_str).and_then(|name| name.parse().ok());
        if let Some(turns) = row.conversations.or(row.messages) {
            let (instruction, output) = self.first_exchange(turns)?;
            return Ok(Record { id, language, instruction, input: String::new(), output, origin });
        }
        let instruction = text("instruction", row.instruction)?;
        let input = match row.input.or(row.context) {
            None => String::new(),
            input => text("input", input)?,
        };
        let output = text("output", row.output.or(row.response))?;
        Ok(Record { id, language, instruction, input, output, origin })
    }

    /// The first user turn and the answer to it.
    fn first_exchange(&mut self, turns: Vec<Turn>) -> Result<(String, String), String> {
        let mut instruction = None;
        let mut turns = turns.into_iter();
        for turn in turns.by_ref() {
            match (turn.role.as_str(), &instruction) {
                ("system", _) => self.system_messages += 1,
                ("user" | "human", None) => instruction = Some(turn.content),
                ("assistant" | "gpt" | "chatgpt" | "model" | "bot", Some(_)) => {
                    if turns.next().is_some() {
                        self.later_turns += 1;
                    }
                    return Ok((instruction.unwrap_or_default(), turn.content));
                }
                (role, None) => {
                    return Err(format!("the chat begins with a turn of `{role}`: expected a user's"));
                }
                (role, Some(_)) => {
                    return Err(format!("a turn of `{role}` follows the user's: expected the assistant's"));
                }
            }
        }
        Err("the chat has no user turn with an answer to it".to_owned())
    }

    pub(crate) fn finish(mut self) -> Numbered {
        let file = self.path.to_path_buf();
        let mut note = |count: usize, what: &str| {
            if count > 0 {
                let what = format!("{count} {what}");
                self.reading.problems.push(Problem {
                    file: file.clone(),
                    place: Place::File,
                    what,
                    dropped: false,
                });
            }
        };
        note(self.later_turns, "chats go on after the first answer: their later turns were left out");
        note(self.system_messages, "system messages of chats were left out");
        let Self { reading, places, row: rows, numbered, .. } = self;
        Numbered { reading, places, rows, numbered }
    }
}

fn text(key: &str, value: Option<Value>) -> Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` must be a text, found {}", kind(&other))),
        None => Err(format!("has no `{key}`")),
    }
}

/// Hands every element of an array on as it stands, so that a fault in one does not end the others.
struct Rows<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Rows<F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element()? {
            self.0(row);
        }
        Ok(())
    }
}

/// Counts lines as the rows go by, each line feed once.
struct LineCounter<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl LineCounter<'_> {
    /// The line on which `part`, a slice of the bytes behind the last one asked for, starts.
    fn line_of(&mut self, part: &str) -> usize {
        let offset = (part.as_ptr() as usize).saturating_sub(self.bytes.as_ptr() as usize);
        if let Some(between) = self.bytes.get(self.at..offset) {
            self.line += count_line_feeds(between);
            self.at = offset;
        }
        self.line
    }
}

fn count_line_feeds(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::real;

    fn read(bytes: &[u8]) -> Result<Reading<Record>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("set");
        std::fs::write(&path, bytes).expect("written");
        read_records(&path, &Language::english())
    }

    fn said(reading: &Reading<Record>) -> Vec<String> {
        let shown = |problem: &Problem| match problem.place {
            Place::Row { row, line: Some(line) } => format!("{row}/{line} {}", problem.what),
            _ => problem.what.clone(),
        };
        reading.problems.iter().map(shown).collect()
    }

    #[test]
    fn a_rows_origin_is_read_where_it_tells_one_and_written_back() {
        let row = |id: &str, key: &str| {
            format!("{{\"id\": \"{id}\", \"instruction\": \"a\", \"output\": \"b\"{key}}}")
        };
        // A key of this name may have another meaning in a set from elsewhere.
        let rows = [
            row("0", ", \"origin\": \"translated\""),
            row("1", ""),
            row("2", ", \"origin\": \"dolly\""),
            row("3", ", \"origin\": 3"),
        ];
        let folder = tempfile::tempdir().expect("a folder");
        for text in [rows.join("\n"), format!("[{}]", rows.join(",\n"))] {
            let reading = read(text.as_bytes()).expect("readable");
            let origins: Vec<Option<Origin>> = reading.items.iter().map(|record| record.origin).collect();
            assert_eq!(origins, [Some(Origin::Translated), None, None, None]);
            for name in ["set.json", "set.jsonl", "set.parquet"] {
                let path = folder.path().join(name);
                write_set(&path, &reading.items).expect("written");
                assert_eq!(
                    read_records(&path, &Language::english()).expect(name).items,
                    reading.items,
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn rows_of_an_array_are_read_and_faults_name_row_and_line() {
        let reading = read(
            b"[\n{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\"},\n{\"instruction\": \"a\",\n\
              \"input\": null},\n{\"id\": \"x\", \"instruction\": 3, \"output\": \"\"}, 5,\n\
              {\"id\": \"x\", \"instruction\": \"q\", \"input\": null, \"output\": \"\", \"language\": \"fin\"}]",
        )
        .expect("readable");
        assert_eq!(reading.items.len(), 2);
        assert_eq!((reading.items[0].id.as_str(), reading.items[0].input.as_str()), ("0", "b"));
        assert_eq!((reading.items[1].id.as_str(), reading.items[1].language.code()), ("x", "fi"));
        assert_eq!(
            said(&reading),
            [
                "1/3 has no `output`",
                "2/5 `instruction` must be a text, found the number 3",
                "3/5 invalid type: integer `5`, expected a record's object in braces",
            ]
        );
    }

    #[test]
    fn rows_under_data_have_the_files_lines_and_a_byte_order_mark_is_noted() {
        let reading = read(
            b"\xEF\xBB\xBF{\n  \"version\": 1,\n  \"data\": [\n    {\"instruction\": \"a\", \"output\": \"b\"},\n    5\n  ]\n}\n",
        )
        .expect("readable");
        assert_eq!(reading.items.len(), 1);
        assert_eq!(
            said(&reading),
            [
                "starts with a byte-order mark, which was passed over",
                "1/5 invalid type: integer `5`, expected a record's object in braces",
            ]
        );
    }

    #[test]
    fn lines_dolly_and_chats_are_read() {
        let reading = read(
            b"{\"instruction\": \"a\", \"context\": \"b\", \"response\": \"c\", \"category\": \"qa\"}\r\n\
              {\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"}, \
               {\"role\": \"assistant\", \"content\": \"v\"}, {\"role\": \"user\", \"content\": \"w\"}]}\r\n\
              {\"id\": 7, \"conversations\": [{\"from\": \"human\", \"value\": \"h\"}, {\"from\": \"gpt\", \"value\": \"g\"}]}\r\n\
              {\"conversations\": [{\"from\": \"gpt\", \"value\": \"g\"}]}\r\n\
              {\"instruction\": \"a\", \"output\r\n",
        )
        .expect("readable");
        let rows: Vec<_> = reading
            .items
            .iter()
            .map(|row| (&*row.id, &*row.instruction, &*row.input, &*row.output))
            .collect();
        assert_eq!(rows, [("0", "a", "b", "c"), ("1", "u", "", "v"), ("7", "h", "", "g")]);
        let said = said(&reading);
        assert_eq!(said.len(), 5, "{said:?}");
        assert_eq!(said[0], "5 lines end in CRLF, read as if in LF");
        assert_eq!(said[1], "3/4 the chat begins with a turn of `gpt`: expected a user's");
        assert!(said[2].starts_with("4/5 not valid JSON: EOF while parsing a string"), "{}", said[2]);
        assert!(said[3].starts_with("1 chats go on"));
        assert!(said[4].starts_with("1 system messages"));
    }

    #[test]
    fn what_is_no_set_is_an_error_that_names_the_file() {
        for bytes in [
            b"".as_slice(),
            b"  \n",
            b"hello",
            b"[{\"instruction\": \"a\", \"output\": \"b\"}, {\"instru",
            b"[1,2] 3",
            b"{\"a\": 1}",
            b"[\"\xFF\"]",
            b"PAR1",
        ] {
            let error = read(bytes).expect_err("no set");
            assert!(format!("{error:#}").contains("set"), "{error:#}");
        }
        let error = read_records(Path::new("/nowhere/set.json"), &Language::english()).expect_err("absent");
        assert!(format!("{error:#}").contains("/nowhere/set.json: cannot read"), "{error:#}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let reading = read("{\"data\": [{\"instruction\": \"ä\", \"output\": \"\u{2028}\\n\"}]}".as_bytes());
        let records = reading.expect("readable").items;
        assert_eq!(records.len(), 1);
        for (name, write) in
            [("a.json", write_alpaca_json as fn(&Path, &[Record]) -> Result<()>), ("b.jsonl", write_records)]
        {
            let path = folder.path().join(name);
            write(&path, &records).expect("written");
            let again = read_records(&path, &Language::english()).expect("readable");
            assert_eq!(again.items, records);
            assert!(again.problems.is_empty());
        }
    }

    #[test]
    fn real_sets_are_read_whole() {
        let Some(folder) = real("instructions") else { return };
        for (name, code, rows) in [
            ("alpaca_en_demo", "en", 999),
            ("alpaca_zh_10k", "zh", 10_021),
            ("dolly_en", "en", 5000),
            ("dolly_fi", "fi", 5000),
            ("seed_tasks_ru", "ru", 137),
        ] {
            let language = code.parse().expect("a code");
            let reading = read_records(&folder.join(format!("{name}.json")), &language).expect("readable");
            assert_eq!((reading.items.len(), reading.problems.len()), (rows, 0), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = read(&bytes);
        }
    }
}
