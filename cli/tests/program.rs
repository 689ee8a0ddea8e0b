//! The program as a user runs it: a very small experiment, killed at any moment, and input that is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const EXPERIMENT: &str = r#"
[experiment]
name = "tiny"
preset = "fair"
languages = ["en", "fi"]
seeds = [1]

[[base_model]]
name = "tiny"
config = "tiny.json"
tokenizer_vocabulary = 400

[base_model.text]
en = "text.txt"

[base_model.pretraining]
updates = 40
batch = 4
cutoff = 64
lr = 1e-3

[instructions]
en = "en.json"
fi = "fi.json"

[budget]
rows = 12

[prompts]
en = "prompts-en.jsonl"
fi = "prompts-fi.jsonl"

[tune]
updates = 20
batch = 4
cutoff = 400
validation_rows = 4
validate_every = 5
checkpoint_every = 3

[answer]
beams = 1
no_repeat_ngram = 0
new_tokens = 8
"#;

const MODEL: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
"hidden_act": "silu", "max_position_embeddings": 512, "initializer_range": 0.02, "rms_norm_eps": 1e-05,
"rope_theta": 10000.0, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "vocab_size": 400}"#;

/// Writes the experiment, and gives its file's path.
fn write(folder: &Path) -> PathBuf {
    let put = |name: &str, text: &str| fs::write(folder.join(name), text).expect("the folder takes files");
    put("tiny.json", MODEL);
    let lines: Vec<String> = (0..300).map(|n| format!("Number {n} follows {} and is calm.", n - 1)).collect();
    put("text.txt", &lines.join("\n"));
    for (language, asks, says) in
        [("en", "Which number follows", "It is"), ("fi", "Mikä luku seuraa", "Se on")]
    {
        let rows: Vec<String> = (0..20)
            .map(|n| {
                format!(
                    r#"{{"id":"{n}","instruction":"{asks} {n}?","input":"","output":"{says} {}."}}"#,
                    n + 1
                )
            })
            .collect();
        put(&format!("{language}.json"), &format!("[{}]", rows.join(",")));
        let prompts: Vec<String> = (30..34)
            .map(|n| format!(r#"{{"id":"{n}","prompt":"{asks} {n}?","reference":"{says} {}."}}"#, n + 1))
            .collect();
        put(&format!("prompts-{language}.jsonl"), &prompts.join("\n"));
    }
    put("tiny.toml", EXPERIMENT);
    folder.join("tiny.toml")
}

fn polypaca() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command.stdin(Stdio::null());
    command
}

fn run(experiment: &Path, out: &Path) -> Output {
    polypaca().arg("run").arg(experiment).arg("--out").arg(out).output().expect("the program starts")
}

/// What must not depend on kills: every response with its scores.
fn scores(out: &Path) -> String {
    fs::read_to_string(out.join("report/scores.jsonl")).expect("scores")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn killed_at_ten_moments_a_run_ends_with_the_tables_of_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let whole = folder.path().join("whole");
    let start = Instant::now();
    let output = run(&experiment, &whole);
    let took = start.elapsed();
    assert!(output.status.success(), "{}", said(&output));
    let again = run(&experiment, &whole);
    assert!(String::from_utf8_lossy(&again.stdout).contains("0 cells done"), "{}", said(&again));

    let broken = folder.path().join("broken");
    for number in 0..10_u32 {
        let mut child = polypaca()
            .arg("run")
            .arg(&experiment)
            .arg("--out")
            .arg(&broken)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Moments spread over a whole run, no two alike: each run goes on from the last, so later ones reach further.
        std::thread::sleep(took.mul_f64(f64::from(number * 37 % 100) / 200.0) + Duration::from_millis(20));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = run(&experiment, &broken);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(scores(&broken), scores(&whole));
    for table in fs::read_dir(whole.join("report/tables")).unwrap() {
        let table = table.unwrap().file_name();
        // What a tuning took in seconds is not the same twice.
        if !table.to_string_lossy().starts_with("cost") {
            let read = |out: &Path| fs::read(out.join("report/tables").join(&table)).unwrap();
            assert_eq!(read(&broken), read(&whole), "{table:?}");
        }
    }
}

#[test]
fn wrong_usage_and_wrong_input_end_with_2_and_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let out = folder.path().join("out");
    assert_eq!(polypaca().arg("--nonsense").output().unwrap().status.code(), Some(2));
    let missing = run(&folder.path().join("gone.toml"), &out);
    assert_eq!(missing.status.code(), Some(2));
    assert!(said(&missing).contains("gone.toml"), "{}", said(&missing));
    for (from, to, expected) in [
        ("languages = [\"en\", \"fi\"]", "languages = [\"en\", \"xx\"]", "unknown language code `xx`"),
        ("en = \"en.json\"", "en = \"gone.json\"", "gone.json"),
    ] {
        fs::write(&experiment, EXPERIMENT.replacen(from, to, 1)).unwrap();
        let output = run(&experiment, &out);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}

#[test]
fn a_truncated_model_file_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let (before, rest) = EXPERIMENT.split_once("config = \"tiny.json\"").unwrap();
    let (_, after) = rest.split_once("[instructions]").unwrap();
    fs::write(&experiment, format!("{before}path = \"cut.gguf\"\n\n[instructions]{after}")).unwrap();
    fs::write(folder.path().join("cut.gguf"), b"GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0\x07").unwrap();
    let out = folder.path().join("out");
    let output = run(&experiment, &out);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("cut.gguf"), "{}", said(&output));
    assert!(!out.join("store/cells").exists());
}

#[test]
fn a_row_without_output_is_named_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let path = folder.path().join("fi.json");
    let rows = fs::read_to_string(&path).unwrap();
    fs::write(&path, rows.replacen(",\"output\":\"Se on 4.\"", "", 1)).unwrap();
    let output = polypaca().arg("plan").arg(&experiment).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("fi.json") && said(&output).contains("output"), "{}", said(&output));
}

#[test]
fn a_judge_that_is_not_there_fails_its_cells_and_loses_nothing_finished() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let out = folder.path().join("out");
    // Nobody listens on the discard port.
    let judge = "\n[judge]\nkind = \"openai\"\nendpoint = \"http://127.0.0.1:9\"\nmodel = \"m\"\ntries = 1\nbackoff = 0\n";
    fs::write(&experiment, format!("{EXPERIMENT}{judge}")).unwrap();
    let output = run(&experiment, &out);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(out.join("report/index.html").exists());
    // With a judge that is there, no tuning and no answer is made again.
    fs::write(&experiment, EXPERIMENT).unwrap();
    let output = run(&experiment, &out);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!said(&output).contains("tuning/"), "{}", said(&output));
}
