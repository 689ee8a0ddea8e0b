//! `data translate` as a user runs it: an estimate, a kill, the way on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use serde_json::{Value, json};

/// How often each text was answered.
type Answered = Arc<Mutex<HashMap<String, usize>>>;

/// A server that answers in a Finnish of its own, slowly enough to be killed in between.
fn server(answered: &Answered) -> (String, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/translate", post(translate)).with_state(Arc::clone(answered));
    runtime.spawn(async move { axum::serve(listener, router).await });
    (url, runtime)
}

async fn translate(State(answered): State<Answered>, body: Bytes) -> axum::Json<Value> {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let texts: Vec<&str> =
        request["q"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for text in &texts {
        *answered.lock().unwrap().entry((*text).to_owned()).or_default() += 1;
    }
    let finnish = |text: &&str| {
        text.replace("Tell me a story about", "Kerro minulle kertomus aiheesta")
            .replace("Once upon a time there was", "Olipa kerran kauan sitten")
            .replace("that lived in the forest.", "joka asui metsässä.")
    };
    axum::Json(json!({ "translatedText": texts.iter().map(finnish).collect::<Vec<_>>() }))
}

fn command(folder: &Path, url: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command.current_dir(folder).args([
        "--json",
        "data",
        "translate",
        "set.json",
        "--from",
        "en",
        "--to",
        "fi",
    ]);
    command.args(["--out", "fi.jsonl", "--engine", "libretranslate", "--endpoint", url, "--texts", "1"]);
    command.args(["--concurrency", "2", "--backoff", "0.01", "--tries", "2"]).args(more);
    command
}

fn json_of(folder: &Path, url: &str, more: &[&str]) -> Value {
    let output = command(folder, url, more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Letters stand for numbers, as a number is masked and all rows would be one text.
fn name(number: usize) -> String {
    format!(
        "Kassandra{}",
        "abcdefghijklmnopqrstuvwxyz".get(number % 26..=number % 26).unwrap().repeat(1 + number / 26)
    )
}

#[test]
fn a_translation_is_estimated_killed_and_taken_up_without_asking_again() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Value> = (0..60)
        .map(|number| {
            let name = name(number);
            json!({
                "id": format!("row {number}"), "instruction": format!("Tell me a story about {name}."),
                "output": format!("Once upon a time there was {name} that lived in the forest."),
            })
        })
        .chain([json!({"id": "sea", "instruction": "Write a haiku about the sea.", "output": "Blue."})])
        .collect();
    fs::write(folder.path().join("set.json"), json!(rows).to_string()).unwrap();
    let answered = Answered::default();
    let (url, _runtime) = server(&answered);

    let estimate =
        json_of(folder.path(), &url, &["--estimate", "--price-characters", "20", "--breaking", "pass"]);
    assert_eq!(
        (&estimate["rows"], &estimate["texts"], &estimate["flagged"]),
        (&json!(60), &json!(120), &json!(1))
    );
    assert!(estimate["dollars_at_most"].as_f64().unwrap() > 0.05);
    assert!(answered.lock().unwrap().is_empty());

    let mut killed = command(folder.path(), &url, &["--breaking", "pass"]);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while answered.lock().unwrap().len() < 30 {
        assert!(killed.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!folder.path().join("fi.jsonl").exists());

    let counts = json_of(folder.path(), &url, &["--breaking", "pass"]);
    assert_eq!((&counts["rows"], &counts["passed"], &counts["flagged"]), (&json!(60), &json!(1), &json!(1)));
    // What was under way when it was killed: a text a worker, and what each had in its hands.
    let again: usize = answered.lock().unwrap().values().map(|times| times - 1).sum();
    assert!(again <= 4, "{again} texts were asked for again");

    let translated = lines(&folder.path().join("fi.jsonl"));
    assert_eq!(translated[7]["instruction"], format!("Kerro minulle kertomus aiheesta {}.", name(7)));
    assert_eq!((&translated[7]["language"], &translated[7]["origin"]), (&json!("fi"), &json!("translated")));
    assert_eq!(translated[7]["id"], "row 7");
    assert_eq!(lines(&folder.path().join("fi.jsonl.passed.jsonl"))[0]["language"], "en");
    assert_eq!(lines(&folder.path().join("fi.jsonl.flagged.jsonl"))[0]["task"], "rhyme");
    assert!(lines(&folder.path().join("fi.jsonl.dropped.jsonl")).is_empty());
    assert!(folder.path().join("fi.jsonl.manifest.json").exists());

    let done = json_of(folder.path(), &url, &["--breaking", "pass"]);
    assert_eq!((&done["asked"], &done["known"]), (&json!(0), &json!(120)));
}

#[test]
fn a_server_that_is_not_there_leaves_every_row_listed_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let set = json!([{"instruction": "Tell me a story about Kassandra.", "output": "No."}]);
    fs::write(folder.path().join("set.json"), set.to_string()).unwrap();
    let output = command(folder.path(), "http://127.0.0.1:9", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let dropped = lines(&folder.path().join("fi.jsonl.dropped.jsonl"));
    assert_eq!((&dropped[0]["id"], &dropped[0]["fault"]), (&json!("0"), &json!("unanswered")));
    assert!(dropped[0]["reason"].as_str().unwrap().contains("no connection"));

    let output = command(folder.path(), "no URL", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn flags_that_would_do_nothing_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let set = json!([{"instruction": "Tell me a story about Kassandra.", "output": "No."}]);
    fs::write(folder.path().join("set.json"), set.to_string()).unwrap();
    let translating = ["data", "translate", "set.json", "--from", "en", "--to", "fi", "--out", "fi.jsonl"];
    let libre = ["--engine", "libretranslate", "--endpoint", "http://127.0.0.1:9"];
    let openai = ["--engine", "openai", "--model", "m", "--endpoint", "http://127.0.0.1:9"];
    let model = ["--engine", "ctranslate2", "--model", "opus"];
    for (engine, flag, value) in [
        (&libre[..], "--price-characters", "nan"),
        (&libre, "--price-characters", "-5"),
        (&libre, "--cap", "inf"),
        (&libre, "--length", "nan"),
        (&libre, "--length", "-1"),
        (&libre, "--length", "0.5"),
        (&libre, "--rounds", "0"),
        (&libre, "--longest", "0"),
        (&libre, "--texts", "0"),
        (&libre, "--tries", "0"),
        (&libre, "--concurrency", "0"),
        (&libre, "--backoff", "nan"),
        (&libre, "--backoff", "1e300"),
        (&libre, "--timeout", "0"),
        (&libre, "--requests-per-minute", "0"),
        (&model, "--beams", "0"),
        (&libre, "--wording", "words.txt"),
        (&libre, "--model", "m"),
        (&libre, "--beams", "2"),
        (&libre, "--prices", "prices.toml"),
        (&openai, "--texts", "16"),
        (&openai, "--codes", "zh=zh-Hans"),
        (&openai, "--price-characters", "20"),
        (&model, "--endpoint", "http://127.0.0.1:9"),
        (&model, "--longest", "1000"),
        (&model, "--cap", "1"),
    ] {
        let given = format!("{flag}={value}");
        let output = Command::new(env!("CARGO_BIN_EXE_polypaca"))
            .current_dir(folder.path())
            .args(translating)
            .args(engine)
            .arg(&given)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{given}: {said}");
        assert!(said.contains(flag), "{given}: {said}");
    }
    let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = files.filter(|name| !name.to_string_lossy().contains(".cache.sqlite")).collect();
    assert_eq!(left, ["set.json"]);
}

/// A full disk behind standard error, where messages go: the work is what counts.
#[cfg(target_os = "linux")]
#[test]
fn messages_that_cannot_be_written_do_not_end_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let set = json!([{"instruction": "Tell me a story about Kassandra.", "output": "No."}]);
    fs::write(folder.path().join("set.json"), set.to_string()).unwrap();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut translating = command(folder.path(), "http://127.0.0.1:9", &[]);
    let status = translating.stdout(Stdio::null()).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(lines(&folder.path().join("fi.jsonl.dropped.jsonl"))[0]["fault"], "unanswered");
}
