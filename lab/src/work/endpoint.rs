//! Answers of a system behind an OpenAI-compatible endpoint.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use endpoint::asking::{Check, Endpoint, Question, Reply, Told};
use endpoint::cache::Cache;
use endpoint::chat::{completions_url, read_answer};
use endpoint::settings::EndpointSettings;
use instructions::prompt::Prompt;
use serde_json::{Value, json};

use crate::experiment::{Answer, ExtraSystem};
use crate::progress::CellProgress;
use crate::rooms::Kept;
use crate::settings::endpoint_decoding;
use crate::stop::Stopped;

/// Asks every prompt as one user turn of its own. Responses are kept in the file `kept` as they come: a killed or failed
/// asking goes on where it was.
pub(super) fn answer(
    system: &ExtraSystem,
    settings: &Answer,
    prompts: &[Prompt],
    kept: &Path,
    progress: &CellProgress,
) -> Result<Vec<String>> {
    let mut kept = Kept::open(kept, prompts)?;
    let left: Vec<&Prompt> = prompts.iter().filter(|prompt| !kept.has(prompt)).collect();
    let questions = left.iter().map(|prompt| question(system, settings, prompt)).collect();
    // Any text is a response, an empty one too: what it is worth is the gate's and the judge's to say.
    let check: Arc<Check> = Arc::new(|_, _| Ok(()));
    let mut unanswered = Vec::new();
    asked(system)?.ask(questions, &check, &mut |told| {
        match told {
            Told::Reply(place, Reply::Text(text)) => kept.add(&left[place].id, &text)?,
            Told::Reply(place, Reply::Unanswered { reason, .. }) => {
                unanswered.push(format!("prompt {:?}: {reason}", left[place].id));
            }
            Told::Retry { .. } => {}
        }
        progress.step(kept.len() as u64, prompts.len() as u64, "responses");
        if progress.should_stop() { Err(Stopped.into()) } else { Ok(()) }
    })?;
    if let Some(first) = unanswered.first() {
        bail!(
            "{} of {} prompts were not answered, and are asked again in the next run: {first}",
            unanswered.len(),
            prompts.len()
        );
    }
    kept.in_order(prompts)
}

/// Where and how the prompts go out. The responses are the cell's own to keep, and no price is known.
fn asked(system: &ExtraSystem) -> Result<Endpoint> {
    let endpoint = system.endpoint.as_deref().context("a system has neither `adapter` nor `endpoint`")?;
    let settings = EndpointSettings {
        key_variable: system.key_variable.clone(),
        requests_per_minute: system.requests_per_minute,
        ..EndpointSettings::default()
    };
    settings.check()?;
    let url = completions_url(endpoint)?;
    let client = settings.client(&url)?;
    let cache = Arc::new(Cache::in_memory()?);
    Ok(Endpoint { settings, url, client, read: read_answer, cache, keep: false })
}

fn question(system: &ExtraSystem, settings: &Answer, prompt: &Prompt) -> Question {
    let mut body = endpoint_decoding(settings);
    body.insert("model".to_owned(), json!(system.model.as_deref().unwrap_or_default()));
    body.insert("messages".to_owned(), json!([{"role": "user", "content": prompt.prompt}]));
    Question { key: prompt.id.clone(), body: Value::Object(body).to_string(), most: None }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::Mutex;

    use instructions::language::Language;

    use super::*;
    use crate::progress::Silent;
    use crate::stop::Stop;

    /// An endpoint that says of each prompt, by how often it was asked before, its status and headers, and its content;
    /// and the bodies of all requests that came.
    fn serve(says: fn(&str, usize) -> (&'static str, Value)) -> (ExtraSystem, Arc<Mutex<Vec<Value>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.expect("a connection"));
                let (mut line, mut length) = (String::new(), 0);
                while stream.read_line(&mut line).expect("a header") > 2 {
                    let header = line.to_lowercase();
                    length = header
                        .strip_prefix("content-length:")
                        .map_or(length, |n| n.trim().parse().expect("a number"));
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).expect("the body");
                let asked: Value = serde_json::from_slice(&body).expect("JSON");
                let mut all = all.lock().expect("no test panics here");
                let before = all.iter().filter(|other| prompt_of(other) == prompt_of(&asked)).count();
                let (status, content) = says(prompt_of(&asked), before);
                all.push(asked);
                let body = json!({"choices": [{"message": {"content": content}}]}).to_string();
                let length = body.len();
                write!(
                    stream.get_mut(),
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                )
                .expect("an answer");
            }
        });
        let system = ExtraSystem {
            name: "other".to_owned(),
            base_model: None,
            adapter: None,
            endpoint: Some(endpoint),
            model: Some("m".to_owned()),
            key_variable: None,
            requests_per_minute: None,
        };
        (system, asked)
    }

    /// The prompt that a request's body asks.
    fn prompt_of(body: &Value) -> &str {
        body["messages"][0]["content"].as_str().expect("a prompt")
    }

    fn prompts() -> Vec<Prompt> {
        let prompt = |id: &&str| Prompt {
            id: (*id).to_owned(),
            language: Language::english(),
            prompt: format!("says {id}"),
            response_language: None,
            extra: serde_json::Map::new(),
        };
        ["a", "b", "c"].iter().map(prompt).collect()
    }

    fn ask(system: &ExtraSystem, settings: &Answer, kept: &Path) -> Result<Vec<String>> {
        let stop = Stop::default();
        answer(system, settings, &prompts(), kept, &CellProgress::new("answers", &Silent, &stop))
    }

    #[test]
    fn what_answer_says_goes_over_the_wire_under_the_protocols_names() {
        let folder = tempfile::tempdir().unwrap();
        let (system, asked) = serve(|prompt, _| ("200 OK", json!(prompt)));
        // What goes out for the first prompt.
        let sent = |name: &str, settings: &Answer| {
            ask(&system, settings, &folder.path().join(name)).unwrap();
            let all = std::mem::take(&mut *asked.lock().unwrap());
            assert_eq!(all.len(), 3);
            all.into_iter().find(|body| prompt_of(body) == "says a").unwrap()
        };
        let messages = json!([{"role": "user", "content": "says a"}]);
        // No `stop` at all where none is given: not every endpoint takes an empty list.
        let paper = json!({"model": "m", "messages": messages, "max_tokens": 256, "temperature": 0});
        assert_eq!(sent("paper", &Answer::default()), paper);
        assert_eq!(sent("empty", &Answer { stop: Some(Vec::new()), ..Answer::default() }), paper);
        let stop = vec!["###".to_owned(), "\n\n".to_owned()];
        let given = Answer { new_tokens: Some(7), stop: Some(stop.clone()), ..Answer::default() };
        let expected =
            json!({"model": "m", "messages": messages, "max_tokens": 7, "temperature": 0, "stop": stop});
        assert_eq!(sent("stop", &given), expected);
        let given = Answer { sample: Some(true), temperature: Some(0.5), top_p: Some(0.9), ..given };
        let expected = json!({
            "model": "m", "messages": messages, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": stop,
        });
        assert_eq!(sent("sample", &given), expected);
    }

    #[test]
    fn who_asks_to_wait_is_waited_for_and_a_response_may_be_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (system, asked) = serve(|prompt, before| match (prompt, before) {
            ("says b", 0) => ("429 Too Many Requests\r\nretry-after: 0", json!(null)),
            ("says c", _) => ("200 OK", json!(null)),
            _ => ("200 OK", json!(prompt)),
        });
        assert_eq!(
            ask(&system, &Answer::default(), &folder.path().join("kept")).unwrap(),
            ["says a", "says b", ""]
        );
        assert_eq!(asked.lock().unwrap().len(), 4);
    }

    #[test]
    fn no_more_requests_go_out_in_a_minute_than_a_system_says() {
        let (system, _) = serve(|prompt, _| ("200 OK", json!(prompt)));
        let asked = |rate| asked(&ExtraSystem { requests_per_minute: rate, ..system.clone() });
        assert_eq!(asked(Some(30.0)).unwrap().settings.requests_per_minute, Some(30.0));
        assert_eq!(asked(None).unwrap().settings.requests_per_minute, None);
        assert!(asked(Some(0.0)).unwrap_err().to_string().starts_with("requests a minute: expected"));
    }

    #[test]
    fn what_was_answered_is_kept_and_the_rest_alone_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let (system, asked) = serve(|prompt, before| match (prompt, before) {
            ("says b", 0) => ("400 Bad Request", json!(null)),
            _ => ("200 OK", json!(prompt)),
        });
        let kept = folder.path().join("kept");
        let error = ask(&system, &Answer::default(), &kept).unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 3 prompts were not answered") && error.contains("prompt \"b\""),
            "{error}"
        );
        assert_eq!(ask(&system, &Answer::default(), &kept).unwrap(), ["says a", "says b", "says c"]);
        let asked = asked.lock().unwrap();
        assert_eq!((asked.len(), asked.last().map(prompt_of)), (4, Some("says b")));
    }
}
