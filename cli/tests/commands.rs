//! `tune`, `loss` and `answer` as a user runs them, on a small model with random weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model")
}

/// Six rows in two languages; the third has no output.
const ROWS: &str = r#"[
{"id": "0", "instruction": "Name a sea.", "input": "", "output": "The Baltic."},
{"id": "1", "instruction": "Make it plural.", "input": "one mouse", "output": "two mice"},
{"id": "2", "instruction": "Say nothing.", "input": "", "output": ""},
{"id": "3", "instruction": "Reply with the word yes.", "input": "", "output": "yes"},
{"id": "0", "language": "fi", "instruction": "Nimeä meri.", "input": "", "output": "Itämeri."},
{"id": "1", "language": "fi", "instruction": "Anna monikko.", "input": "hiiri", "output": "hiiret"}
]"#;

/// What stands in a folder before a command is run.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("rows.json"), ROWS).expect("the folder takes files");
    let prompts = "{\"id\": \"a\", \"prompt\": \"Name a sea.\"}\n{\"id\": \"b\", \"language\": \"fi\", \
                   \"prompt\": \"Nimeä meri.\", \"reference\": \"Itämeri.\"}\n";
    fs::write(folder.path().join("prompts.jsonl"), prompts).expect("the folder takes files");
    folder
}

fn polypaca(folder: &Path, command: &str, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .arg(command)
        .arg("--model")
        .arg(model())
        .args(flags)
        .output()
        .expect("the program starts")
}

/// Runs a command that must come to its end, and gives its one JSON object.
fn figures(folder: &Path, command: &str, flags: &[&str]) -> Value {
    let output = polypaca(folder, command, &[flags, &["--json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const TUNE: &[&str] = &[
    "--data",
    "rows.json",
    "--updates",
    "2",
    "--batch",
    "3",
    "--lr",
    "1e-2",
    "--warmup",
    "0",
    "--seed",
    "7",
];

fn tune(folder: &Path, out: &str, more: &[&str]) -> Value {
    figures(folder, "tune", &[TUNE, &["--out", out], more].concat())
}

#[test]
fn metrics_that_cannot_be_written_are_told_before_anything_is_done() {
    let folder = folder();
    for (metrics, told) in [("missing/metrics.jsonl", "missing: No such file"), (".", ".: is a directory")] {
        let flags = [TUNE, &["--out", "out", "--metrics", metrics]].concat();
        let output = polypaca(folder.path(), "tune", &flags);
        let said = said(&output);
        assert!(!output.status.success() && said.contains(told), "{metrics}: {said}");
        assert!(!folder.path().join("out").exists(), "{metrics}");
    }
}

#[test]
fn what_would_be_lost_or_has_no_meaning_is_refused() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("one line.json"), "[{\"id\": \"7\"}]").unwrap();
    fs::write(folder.join("foreign.jsonl"), "{\"id\": \"7\"}\n").unwrap();
    fs::create_dir(folder.join("model")).unwrap();
    fs::write(folder.join("model/config.json"), "{}").unwrap();
    let refused: [(&[&str], &str); 12] = [
        (&["--out", "rows.json"], "--out rows.json: is a file; expected a folder"),
        (&["--out", "out", "--modules", "nothing"], "--modules: module `nothing` is none of a"),
        (&["--out", "out", "--metrics", "rows.json"], "--metrics"),
        (&["--out", "out", "--metrics", "one line.json"], "one line.json:1: expected a tuning's metrics"),
        (&["--out", "out", "--metrics", "foreign.jsonl"], "foreign.jsonl:1: expected a tuning's metrics"),
        (&["--out", "out", "--metrics", "/dev/null"], "expected a file for the metrics"),
        (&["--out", "model"], "model: holds a model (config.json)"),
        (
            &["--out", "out", "--method", "full", "--rank", "4"],
            "--rank: has a meaning with --method lora alone",
        ),
        (&["--out", "out", "--patience", "1"], "--patience: has a meaning with --validation-rows alone"),
        (&["--out", "out", "--keep", "best"], "--keep best: has a meaning with --validation-rows alone"),
        (&["--out", "out", "--clip", "nan"], "--clip is NaN: expected above 0"),
        (&["--out", "out", "--rank", "0"], "--rank is 0: expected above 0"),
    ];
    for (flags, told) in refused {
        let output = polypaca(folder, "tune", &[TUNE, flags].concat());
        let said = said(&output);
        assert!(output.status.code() == Some(2) && said.contains(told), "{flags:?}: {said}");
    }
    assert_eq!(fs::read_to_string(folder.join("rows.json")).unwrap(), ROWS);
    let responses = polypaca(folder, "answer", &["--prompts", "prompts.jsonl", "--out", "model"]);
    assert!(said(&responses).contains("expected a file, found a folder"), "{}", said(&responses));
    let beams = ["--prompts", "prompts.jsonl", "--out", "r.jsonl", "--beams", "390"];
    let output = polypaca(folder, "answer", &beams);
    assert!(said(&output).contains("--beams is 390; expected at most 389"), "{}", said(&output));
}

#[test]
fn a_tuned_adapter_changes_the_loss_and_is_the_same_each_time() {
    let folder = folder();
    let folder = folder.path();
    let tuned = tune(folder, "one", &["--metrics", "metrics.jsonl"]);
    assert_eq!((&tuned["updates"], &tuned["rows"]), (&2.into(), &5.into()));
    tune(folder, "two", &["--threads", "1"]);
    let weights = |out: &str| fs::read(folder.join(out).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("one"), weights("two"));

    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2);
    let line: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    for key in ["update", "loss", "learning_rate", "tokens", "tokens_per_second", "peak_bytes"] {
        assert!(line[key].is_number(), "{key}: {line}");
    }

    let loss = |flags: &[&str]| figures(folder, "loss", &[&["--data", "rows.json"], flags].concat());
    let (before, after) = (loss(&[]), loss(&["--adapter", "one"]));
    let (first, last) = (before["loss"].as_f64().unwrap(), after["loss"].as_f64().unwrap());
    assert!(last < first, "{first} before, {last} after");
    assert_eq!(before["supervised_tokens"], after["supervised_tokens"]);
    assert!(after["by_language"]["en"].is_number() && after["by_language"]["fi"].is_number());
    let responses = loss(&["--supervise", "response"]);
    assert!(responses["supervised_tokens"].as_u64() < before["supervised_tokens"].as_u64());
}

#[test]
fn the_loss_is_that_of_transformers_and_peft() {
    let folder = folder();
    let oracle = model().join("../../..");
    let read =
        |path: &str| -> Value { serde_json::from_slice(&fs::read(oracle.join(path)).unwrap()).unwrap() };
    let goldens = read("goldens/llama-grouped/loss.json");
    let rows = read("rows.json");
    // The goldens are of the first six rows.
    let first = Value::from(rows.as_array().unwrap()[..6].to_vec());
    fs::write(folder.path().join("first.json"), first.to_string()).unwrap();
    let adapter = model().join("../adapter");
    for (name, with_adapter) in [("base", false), ("adapter", true)] {
        for supervise in ["all", "response"] {
            let mut flags = vec!["--data", "first.json", "--cutoff", "64", "--supervise", supervise];
            if with_adapter {
                flags.extend(["--adapter", adapter.to_str().unwrap()]);
            }
            let found = figures(folder.path(), "loss", &flags);
            let expected = &goldens["losses"][format!("{name}/{supervise}")];
            assert_eq!(found["supervised_tokens"], expected["tokens"]);
            let (found, expected) = (found["loss"].as_f64().unwrap(), expected["mean"].as_f64().unwrap());
            // Both compute in f32, in another order: about 1e-7 for each of some hundred sums.
            assert!((found - expected).abs() < 1e-5 * expected, "{name}/{supervise}: {found}, {expected}");
        }
    }
}

#[test]
fn validation_rows_are_set_apart_in_all_languages() {
    let folder = folder();
    let tuned = tune(folder.path(), "out", &["--validation-rows", "1"]);
    // The last id of en is 3; that of fi is 1, whose row in en goes with it.
    assert_eq!((&tuned["rows"], &tuned["validation_rows"]), (&2.into(), &3.into()));
    assert!(tuned["validation_loss"].is_number() && tuned["validation_loss_by_language"]["fi"].is_number());
}

#[test]
fn rows_without_ids_are_numbered_through_files_and_repeated_rows_count_again() {
    let folder = folder();
    let row = |text: &str| format!("{{\"instruction\": \"Say {text}.\", \"output\": \"{text}\"}}\n");
    for (file, texts) in [("first.jsonl", ["one", "two"]), ("second.jsonl", ["three", "four"])] {
        fs::write(folder.path().join(file), texts.map(row).concat()).unwrap();
    }
    // Were the second file's rows 0 and 1 too, two rows would be set apart.
    let data = ["--data", "first.jsonl", "second.jsonl", "--validation-rows", "1"];
    let tuned = figures(folder.path(), "tune", &[&TUNE[2..], &data, &["--out", "out"]].concat());
    assert_eq!((&tuned["rows"], &tuned["validation_rows"]), (&3.into(), &1.into()));
    // What a recipe with `repeat` writes.
    let again = "{\"id\": \"7\", \"instruction\": \"Say a.\", \"output\": \"a\"}\n".repeat(3);
    fs::write(folder.path().join("mix.jsonl"), again).unwrap();
    let tuned =
        figures(folder.path(), "tune", &[&TUNE[2..], &["--data", "mix.jsonl", "--out", "mixed"]].concat());
    assert_eq!(tuned["rows"], 3);
}

#[test]
fn a_run_that_is_all_warm_up_is_told() {
    let folder = folder();
    // All but the flag's own value.
    let output = polypaca(folder.path(), "tune", &[&TUNE[..8], &["--warmup", "2", "--out", "out"]].concat());
    let told = "--warmup: the learning rate rises for 2 updates, and the run has 2: it never comes to 0.01";
    assert!(output.status.success() && said(&output).contains(told), "{}", said(&output));
}

#[test]
fn full_tuning_writes_a_model_that_opens() {
    let folder = folder();
    tune(folder.path(), "full", &["--method", "full", "--preset", "fair"]);
    assert!(folder.path().join("full/config.json").is_file());
    let flags = ["--model", "full", "--data", "rows.json", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder.path())
        .arg("loss")
        .args(flags)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn each_prompt_is_answered_in_its_line() {
    let folder = folder();
    let folder = folder.path();
    tune(folder, "adapter", &[]);
    let flags = ["--prompts", "prompts.jsonl", "--language", "en", "--beams", "1", "--new-tokens", "5"];
    let figures_of =
        |more: &[&str], out: &str| figures(folder, "answer", &[&flags, more, &["--out", out]].concat());
    let answered = figures_of(&["--adapter", "adapter"], "out.jsonl");
    assert_eq!((&answered["responses"], &answered["system"]), (&2.into(), &"adapter".into()));
    assert!(answered["new_tokens"].as_u64().is_some_and(|tokens| (2..=10).contains(&tokens)));
    let lines_of = |out: &str| -> Vec<Value> {
        let text = fs::read_to_string(folder.join(out)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let lines = lines_of("out.jsonl");
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["id"], &lines[0]["language"]), (&"a".into(), &"en".into()));
    assert_eq!((&lines[1]["id"], &lines[1]["reference"]), (&"b".into(), &"Itämeri.".into()));
    assert!(lines.iter().all(|line| line["response"].is_string() && line["system"] == "adapter"));

    let whole = lines[0]["response"].as_str().unwrap();
    let stop = whole.trim_end().chars().last().expect("an answer").to_string();
    figures_of(&["--adapter", "adapter", "--stop", "never said", "--stop", &stop], "stopped.jsonl");
    let before = whole.split(&stop).next().unwrap();
    assert_eq!(lines_of("stopped.jsonl")[0]["response"].as_str().unwrap().trim_end(), before.trim_end());

    let sampled = |out: &str| {
        figures_of(&["--sample", "--temperature", "2", "--seed", "3", "--batch-tokens", "16"], out);
        fs::read(folder.join(out)).unwrap()
    };
    assert_eq!(sampled("first.jsonl"), sampled("second.jsonl"));
}

#[test]
fn what_is_wrong_is_named() {
    let folder = folder();
    let folder = folder.path();
    let output = polypaca(folder, "loss", &["--data", "rows.json"]);
    assert!(said(&output).contains("record 2 (en) has an empty output (left out)"), "{}", said(&output));
    let tuning = [TUNE, &["--out", "out"]].concat();
    for (command, flags, expected) in [
        ("tune", [&tuning[..], &["--device", "cuda"]].concat(), "--device cuda"),
        ("tune", [&tuning[..], &["--init-adapter", "gone"]].concat(), "gone"),
        ("tune", [&tuning[..], &["--modules", "nothing"]].concat(), "`nothing`"),
        ("loss", vec!["--data", "gone.json"], "gone.json"),
        ("loss", vec!["--data", "rows.json", "--cutoff", "3", "--supervise", "response"], "--cutoff 3"),
        ("answer", vec!["--prompts", "prompts.jsonl", "--out", "o", "--beams", "0"], "beams is 0"),
        ("answer", vec!["--prompts", "prompts.jsonl", "--out", "o", "--top-p", "0.5"], "--sample"),
    ] {
        let output = polypaca(folder, command, &flags);
        assert_eq!(output.status.code(), Some(2), "{command} {flags:?}: {}", said(&output));
        assert!(said(&output).contains(expected), "{command} {flags:?}: {}", said(&output));
    }
}

#[test]
fn what_is_read_is_not_written_over() {
    let folder = folder();
    let folder = folder.path();
    let answering = ["--prompts", "prompts.jsonl", "--language", "en", "--out", "./prompts.jsonl"];
    let tuning = [TUNE, &["--out", "out", "--metrics", "./rows.json"]].concat();
    for (command, flags, file) in
        [("answer", &answering[..], "prompts.jsonl"), ("tune", &tuning[..], "rows.json")]
    {
        let before = fs::read(folder.join(file)).unwrap();
        let output = polypaca(folder, command, flags);
        assert_eq!(output.status.code(), Some(2), "{command}: {}", said(&output));
        assert!(said(&output).contains("is read too; expected another place"), "{}", said(&output));
        assert_eq!(fs::read(folder.join(file)).unwrap(), before, "{command}");
    }
}
