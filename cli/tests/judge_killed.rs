//! `polypaca judge` killed again and again, at an endpoint that shows faults.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

#[path = "../../judge/tests/common/mod.rs"]
#[expect(dead_code, reason = "the judge's own tests use the rest")]
mod common;
use common::{Reaction, StandIn};

const RESPONSES: usize = 60;
const CONCURRENCY: usize = 4;
const FAULTS: [Reaction; 6] = [
    Reaction::Error,
    Reaction::TooMany(None),
    Reaction::Nonsense,
    Reaction::NotJson,
    Reaction::Truncated,
    Reaction::Close,
];

fn judge(folder: &Path, server: &StandIn, out: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command
        .current_dir(folder)
        .args(["judge", "--responses", "responses.jsonl", "--out", out, "--judge", "openai"])
        .args(["--endpoint", &server.url(), "--model", "stand-in", "--concurrency", &CONCURRENCY.to_string()])
        .args(["--requests-per-minute", "12000", "--tries", "3", "--backoff", "0.002", "--timeout", "5"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn ratings(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("ratings");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_table_and_asks_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let line = |number| {
        json!({"id": format!("{number}"), "language": "fi", "prompt": format!("Kysymys {number}: mitä?"),
            "system": "a", "response": format!("Vastaus {number}. [[3]]")})
        .to_string()
    };
    let lines: Vec<String> = (0..RESPONSES).map(line).collect();
    fs::write(folder.join("responses.jsonl"), lines.join("\n")).expect("the folder takes files");

    // A fault first for two questions in three, so that kills meet waits and tries again too.
    let plan: common::Plan = Box::new(|message, time| {
        let hash = message.bytes().map(usize::from).sum::<usize>();
        if time == 0 && !hash.is_multiple_of(3) { FAULTS[hash % FAULTS.len()] } else { Reaction::Answer }
    });
    let server = StandIn::start(0, plan).expect("a server");
    let mut kills = 0;
    for round in 0..12_u64 {
        let mut process = judge(folder, &server, "ratings.jsonl").spawn().expect("the program starts");
        std::thread::sleep(Duration::from_millis(25 + 13 * round));
        if process.try_wait().expect("a process").is_none() {
            process.kill().expect("a process that runs");
            kills += 1;
        }
        process.wait().expect("a process");
    }
    assert!(kills > 2, "{kills} kills");
    // A question first asked now may be answered with nonsense: the run after it asks again.
    let ends = || judge(folder, &server, "ratings.jsonl").status().expect("the program starts").success();
    assert!(ends() || ends(), "responses are unrated");
    let found = ratings(&folder.join("ratings.jsonl"));
    assert_eq!(found.len(), RESPONSES);
    assert!(found.iter().all(|rating| rating["rating"].is_number()), "{found:?}");

    // What was answered and could not be kept was on its way when the program was killed.
    let mut answers: HashMap<String, usize> = HashMap::new();
    for asked in server.asked().into_iter().filter(|asked| asked.reaction == Reaction::Answer) {
        *answers.entry(asked.message).or_default() += 1;
    }
    assert_eq!(answers.len(), RESPONSES);
    let again = answers.values().sum::<usize>() - RESPONSES;
    assert!(again <= kills * CONCURRENCY, "{again} answers were asked for again, after {kills} kills");

    // Nothing is asked for any more, and a run without kills and faults gives the same table.
    server.change(Box::new(|_, _| Reaction::Answer));
    assert!(judge(folder, &server, "ratings.jsonl").status().expect("the program starts").success());
    assert_eq!(server.asked().len(), 0);
    assert!(judge(folder, &server, "unbroken.jsonl").status().expect("the program starts").success());
    assert_eq!(server.asked().len(), RESPONSES);
    let text = |name: &str| fs::read_to_string(folder.join(name)).expect("ratings");
    assert_eq!(text("ratings.jsonl"), text("unbroken.jsonl"));
}
