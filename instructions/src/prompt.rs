//! Prompts to be answered, and the responses to them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{Place, Problem, Reading, for_each_line, json_fault, read_bytes, write_json_lines};
use crate::language::Language;

/// A prompt: one line of a prompts file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Shared by the same prompt in other languages.
    pub id: String,
    /// The language it is written in.
    pub language: Language,
    /// What is asked.
    pub prompt: String,
    /// The language asked for, where it is another than the prompt's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_language: Option<Language>,
    /// Any other keys of the line (a `reference`, say), passed through to the response, but for its own.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A system's answer to a prompt: the prompt's keys, and these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The prompt answered.
    #[serde(flatten)]
    pub prompt: Prompt,
    /// The text.
    pub response: String,
    /// Who answered.
    pub system: String,
}

/// What a [`Response`] has beside its prompt.
const RESPONSE_KEYS: [&str; 2] = ["response", "system"];

impl Prompt {
    /// The language that a response must be in to pass the gate.
    pub fn expected_language(&self) -> &Language {
        self.response_language.as_ref().unwrap_or(&self.language)
    }

    /// The line's `reference`, a good answer, where it has one that is a text.
    pub fn reference(&self) -> Option<&str> {
        self.extra.get("reference").and_then(Value::as_str)
    }
}

/// Reads prompts: JSON Lines with `id` and `prompt`; `language`, unless `default_language` is given; and
/// `response_language`. Other keys are passed through, but for `response` and `system`: a line that was answered before
/// is a prompt as any other, and they are its new response's to have.
///
/// A line that is no prompt (broken JSON, a missing or wrong key, an unknown language code, an empty prompt, an id
/// met before in that language) is left out and named among the problems. CRLF ends, a byte-order mark and a missing
/// final line feed are read; the first two are noted.
///
/// # Errors
/// Only where the file cannot be read at all.
pub fn read_prompts(path: &Path, default_language: Option<&Language>) -> Result<Reading<Prompt>> {
    let bytes = read_bytes(path)?;
    let mut prompts: Vec<Prompt> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    let mut answered = 0;
    for_each_line(&bytes, path, &mut problems, |line, text, problems| {
        let what = match parse_prompt(text, default_language) {
            Ok(mut prompt) if seen.insert((prompt.language.clone(), prompt.id.clone())) => {
                let keys = RESPONSE_KEYS.map(|key| prompt.extra.shift_remove(key));
                answered += usize::from(keys.iter().any(Option::is_some));
                return prompts.push(prompt);
            }
            Ok(prompt) => format!("the id {} was met before in {}", prompt.id, prompt.language),
            Err(what) => what,
        };
        problems.push(Problem { file: path.to_path_buf(), place: Place::Line(line), what, dropped: true });
    });
    if answered > 0 {
        let what =
            format!("{answered} prompts have a `response` or a `system` already, which are left aside");
        problems.push(Problem { file: path.to_path_buf(), place: Place::File, what, dropped: false });
    }
    Ok(Reading { items: prompts, problems })
}

/// Reads several prompts files, each with its default language: a file that cannot be read is a problem, and the
/// others are read all the same.
pub fn read_prompt_files(files: &[(PathBuf, Option<Language>)]) -> Reading<Prompt> {
    let mut all = Reading::default();
    for (path, language) in files {
        match read_prompts(path, language.as_ref()) {
            Ok(reading) => all.extend(reading),
            Err(error) => all.problems.push(Problem {
                file: path.clone(),
                place: Place::File,
                what: error.root_cause().to_string(),
                dropped: true,
            }),
        }
    }
    all
}

/// Writes prompts as JSON Lines, atomically.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_prompts(path: &Path, prompts: &[Prompt]) -> Result<()> {
    write_json_lines(path, prompts)
}

/// Reads responses: JSON Lines with a prompt's keys, and `response` and `system`. A line that is none is left out and
/// named among the problems.
///
/// # Errors
/// Only where the file cannot be read at all.
pub fn read_responses(path: &Path) -> Result<Reading<Response>> {
    let Reading { items, problems } = read_numbered_responses(path)?;
    Ok(Reading { items: items.into_iter().map(|(_, response)| response).collect(), problems })
}

/// Reads responses as [`read_responses`] does, each with its line, from 1.
///
/// # Errors
/// Only where the file cannot be read at all.
pub fn read_numbered_responses(path: &Path) -> Result<Reading<(usize, Response)>> {
    let bytes = read_bytes(path)?;
    let mut responses = Vec::new();
    let mut problems = Vec::new();
    for_each_line(&bytes, path, &mut problems, |line, text, problems| match parse_response(text) {
        Ok(response) => responses.push((line, response)),
        Err(what) => {
            problems.push(Problem {
                file: path.to_path_buf(),
                place: Place::Line(line),
                what,
                dropped: true,
            });
        }
    });
    Ok(Reading { items: responses, problems })
}

/// Writes responses as JSON Lines, atomically.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_responses(path: &Path, responses: &[Response]) -> Result<()> {
    write_json_lines(path, responses)
}

fn parse_response(line: &str) -> Result<Response, String> {
    let mut keys = parse_object(line)?;
    let response = take_text(&mut keys, "response")?;
    let system = take_text(&mut keys, "system")?;
    Ok(Response { prompt: prompt_of(keys, None)?, response, system })
}

fn parse_prompt(line: &str, default_language: Option<&Language>) -> Result<Prompt, String> {
    let prompt = prompt_of(parse_object(line)?, default_language)?;
    if prompt.prompt.trim().is_empty() {
        return Err(format!("the prompt of id {} is empty", prompt.id));
    }
    Ok(prompt)
}

fn prompt_of(mut keys: Map<String, Value>, default_language: Option<&Language>) -> Result<Prompt, String> {
    let id = match keys.shift_remove("id") {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => return Err(format!("`id` must be a text, found {}", kind(&other))),
        None => return Err("has no `id`".to_owned()),
    };
    let prompt = take_text(&mut keys, "prompt")?;
    let language = match take_language(&mut keys, "language")? {
        Some(language) => language,
        None => default_language.cloned().ok_or_else(|| {
            format!("id {id} has no `language`, and no language was given for the whole file")
        })?,
    };
    let response_language = take_language(&mut keys, "response_language")?;
    Ok(Prompt { id, language, prompt, response_language, extra: keys })
}

fn parse_object(line: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(line) {
        Ok(Value::Object(keys)) => Ok(keys),
        Ok(other) => Err(format!("expected an object in braces, found {}", kind(&other))),
        Err(error) => Err(match id_of_broken(line) {
            Some(id) => format!("{} (its id reads {id})", json_fault(&error)),
            None => json_fault(&error),
        }),
    }
}

/// The id that a line of broken JSON seems to have, so that its user finds the prompt that is lost.
fn id_of_broken(line: &str) -> Option<&str> {
    let rest = line.split_once("\"id\"")?.1.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    rest.split_once('"').map(|(id, _)| id).filter(|id| !id.is_empty())
}

fn take_text(keys: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match keys.shift_remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` must be a text, found {}", kind(&other))),
        None => Err(format!("has no `{key}`")),
    }
}

fn take_language(keys: &mut Map<String, Value>, key: &str) -> Result<Option<Language>, String> {
    match keys.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(code)) => match code.parse() {
            Ok(language) => Ok(Some(language)),
            Err(error) => Err(format!("`{key}`: {error}")),
        },
        Some(other) => Err(format!("`{key}` must be a language code, found {}", kind(&other))),
    }
}

/// What sort of JSON value this is, for messages.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the truth value {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::prompt_differences;
    use crate::testing::real;

    fn read(text: &str, default: Option<&str>) -> Reading<Prompt> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("p.jsonl");
        std::fs::write(&path, text).expect("written");
        let default = default.map(|code| code.parse().expect("a code"));
        read_prompts(&path, default.as_ref()).expect("readable")
    }

    #[test]
    fn what_was_answered_before_is_asked_again_without_its_answer() {
        let text = "{\"id\": \"a\", \"prompt\": \"Hi?\", \"response\": \"Hello.\", \"system\": \"s\", \"n\": 3}\n\
            {\"id\": \"b\", \"prompt\": \"Hi?\"}";
        let reading = read(text, Some("en"));
        let said: Vec<String> = reading.problems.iter().map(|problem| problem.what.clone()).collect();
        assert_eq!(said, ["1 prompts have a `response` or a `system` already, which are left aside"]);
        let prompt = reading.items[0].clone();
        let response = Response { prompt, response: "Yes.".to_owned(), system: "t".to_owned() };
        let line = serde_json::to_string(&response).expect("JSON");
        assert_eq!(line.matches("\"response\"").count(), 1);
        assert_eq!(parse_response(&line), Ok(response));
    }

    #[test]
    fn each_bad_line_is_named_and_the_rest_is_read() {
        let text = "{\"id\": \"a\", \"prompt\": \"Hi?\", \"reference\": \"Hello.\", \"n\": 3}\n\
            {\"id\": \"b\", \"prompt\": \"?\"\"}\n\
            {\"id\": \"c\"}\n\
            {\"id\": \"d\", \"prompt\": 7}\n\
            {\"id\": \"e\", \"prompt\": \"?\", \"language\": \"xx\"}\n\
            {\"id\": \"a\", \"prompt\": \"?\"}\n\
            {\"id\": \"f\", \"prompt\": \" \"}\n\
            [1]\n\
            \n\
            {\"id\": 9, \"prompt\": \"?\", \"language\": \"zho_Hans\", \"response_language\": \"en\"}";
        let reading = read(text, Some("fi"));
        let ids: Vec<&str> = reading.items.iter().map(|prompt| prompt.id.as_str()).collect();
        assert_eq!(ids, ["a", "9"]);
        assert_eq!(reading.items[0].reference(), Some("Hello."));
        assert_eq!(reading.items[0].expected_language().code(), "fi");
        assert_eq!(reading.items[1].expected_language().code(), "en");
        let said: Vec<String> =
            reading.problems.iter().map(|problem| format!("{:?} {}", problem.place, problem.what)).collect();
        assert_eq!(
            said,
            [
                "Line(2) not valid JSON: expected `,` or `}` at column 26 (its id reads b)",
                "Line(3) has no `prompt`",
                "Line(4) `prompt` must be a text, found the number 7",
                "Line(5) `language`: unknown language code `xx`: expected a code of ISO 639-1 (`en`) or 639-3 (`yue`)",
                "Line(6) the id a was met before in fi",
                "Line(7) the prompt of id f is empty",
                "Line(8) expected an object in braces, found an array",
            ]
        );
        let without = read("{\"id\": \"a\", \"prompt\": \"Hi?\"}", None);
        assert!(without.problems[0].what.contains("has no `language`"), "{:?}", without.problems);
    }

    #[test]
    fn a_missing_file_does_not_stop_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("p.jsonl");
        std::fs::write(&path, "{\"id\": \"a\", \"prompt\": \"Hi?\", \"language\": \"en\"}").expect("written");
        let reading = read_prompt_files(&[(folder.path().join("none.jsonl"), None), (path, None)]);
        assert_eq!(reading.items.len(), 1);
        assert_eq!(reading.dropped(), 1);
        assert!(reading.problems[0].file.ends_with("none.jsonl"));
    }

    #[test]
    fn responses_are_written_with_the_prompts_keys_and_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("r.jsonl");
        let prompt = read("{\"id\": \"a\", \"prompt\": \"Hi?\", \"reference\": \"Hello.\"}", Some("en"))
            .items
            .remove(0);
        let response = Response { prompt, response: "Hello!\n".to_owned(), system: "base".to_owned() };
        write_responses(&path, std::slice::from_ref(&response)).expect("written");
        assert_eq!(
            std::fs::read_to_string(&path).expect("text"),
            "{\"id\":\"a\",\"language\":\"en\",\"prompt\":\"Hi?\",\"reference\":\"Hello.\",\"response\":\"Hello!\\n\",\
             \"system\":\"base\"}\n"
        );
        let reading = read_responses(&path).expect("readable");
        assert_eq!(reading.items, [response]);
        assert!(reading.problems.is_empty());
    }

    #[test]
    fn the_papers_own_prompts_lose_nothing_in_silence() {
        let Some(folder) = real("prompts") else { return };
        let codes = ["bg", "bn", "cs", "en", "es", "fi", "fr", "hi", "no", "ru", "zh"];
        let files: Vec<_> = codes
            .iter()
            .map(|code| (folder.join(format!("test_{code}.jsonl")), Some(code.parse().expect("a code"))))
            .collect();
        let reading = read_prompt_files(&files);
        assert_eq!(reading.items.len(), 11 * 50 - 1);
        let said: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:#?}");
        assert!(said[0].ends_with("test_es.jsonl: 50 lines end in CRLF, read as if in LF"), "{}", said[0]);
        assert!(said[1].contains("test_hi.jsonl, line 50: not valid JSON"), "{}", said[1]);
        assert!(said[1].contains("its id reads 7f06d307-8dff-445c-bf72-82862aaf3439"), "{}", said[1]);
        assert_eq!(reading.dropped(), 1);
        let differences = prompt_differences(&reading.items);
        assert_eq!(differences.len(), 2);
        assert_eq!(differences[0].language.code(), "hi");
        assert_eq!(differences[0].missing, ["7f06d307-8dff-445c-bf72-82862aaf3439"]);
        assert_eq!(differences[1].language.code(), "zh");
        assert_eq!(
            differences[1].renamed,
            [(
                "f2f5d948-6de1-4e4f-a83c-46e115c2a036".to_owned(),
                "bed57788-833a-46e3-bffd-0b271333c391".to_owned()
            )]
        );
    }
}
