//! A very small experiment on disk, and the program to run it with.
#![allow(clippy::allow_attributes, dead_code, reason = "each test takes what it needs")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub(crate) const EXPERIMENT: &str = r#"
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
pub(crate) fn write(folder: &Path) -> PathBuf {
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

pub(crate) fn polypaca() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run(experiment: &Path, out: &Path) -> Output {
    polypaca().arg("run").arg(experiment).arg("--out").arg(out).output().expect("the program starts")
}

/// What must not depend on kills: every response with its scores.
pub(crate) fn scores(out: &Path) -> String {
    fs::read_to_string(out.join("report/scores.jsonl")).expect("scores")
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that two runs came to the same: every response with its scores, and all tables.
pub(crate) fn assert_same(found: &Path, expected: &Path) {
    assert_eq!(scores(found), scores(expected));
    let mut compared = 0;
    for table in fs::read_dir(expected.join("report/tables")).expect("the tables") {
        let table = table.expect("the tables").file_name();
        // What a tuning took in seconds is not the same twice.
        if !table.to_string_lossy().starts_with("cost") {
            let read = |out: &Path| fs::read(out.join("report/tables").join(&table)).expect("a table");
            assert_eq!(read(found), read(expected), "{table:?}");
            compared += 1;
        }
    }
    assert!(compared > 0, "there is no table");
}

/// Sends a signal by its name, `INT`.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status();
    assert!(sent.expect("kill starts").success());
}

/// Waits until something is so; fails where it has not become so after two minutes, which only a hang takes.
pub(crate) fn wait_until(what: &str, so: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !so() {
        assert!(begin.elapsed().as_secs() < 120, "waited in vain until {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
