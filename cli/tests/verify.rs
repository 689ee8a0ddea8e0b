//! `verify` as a user runs it: a sound model, and one whose weights are not numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(name).join("model")
}

fn verify(model: &Path) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    let output = command.arg("verify").arg(model).arg("--json").output().expect("the program starts");
    let object = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (output, object)
}

#[test]
fn every_family_passes_its_own_tests() {
    for name in ["llama-grouped", "gpt-neox-sequential", "bloom", "baichuan-13b-like", "qwen3", "mistral"] {
        let (output, found) = verify(&model(name));
        assert!(output.status.success(), "{name}: {found:#}");
        assert_eq!(found["good"], true);
        let tests = found["tests"].as_array().expect("the tests");
        assert_eq!(tests.len(), 8, "{name}");
        // The weights are random: the loss is no better than a guess, and that is a note.
        let verdicts: Vec<&str> = tests.iter().filter_map(|test| test["verdict"].as_str()).collect();
        assert!(verdicts.iter().all(|verdict| ["good", "note"].contains(verdict)), "{name}: {verdicts:?}");
    }
}

#[test]
fn a_chat_template_may_write_tokens_with_a_meaning_of_their_own() {
    let folder = copy_of("qwen3");
    let template =
        "{% for message in messages %}<|endoftext|>{{ message['content'] }}{% endfor %}<|endoftext|>";
    fs::write(folder.path().join("chat_template.jinja"), template).expect("the folder takes files");
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    let output = command.arg("verify").arg(folder.path()).args(["--template", "chat"]).output();
    let output = output.expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("good  the tokenizer gives the prompt back"), "{text}");
}

/// A golden's model in a folder of the test's own.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(model(name)).expect("the model").flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    folder
}

#[test]
fn a_model_whose_weights_are_not_numbers_fails() {
    let folder = copy_of("llama-grouped");
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("the weights");
    let end = bytes.len();
    bytes[end - 4096..].fill(0xff);
    fs::write(&weights, bytes).expect("the folder takes files");
    let (output, found) = verify(folder.path());
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    assert_eq!(found["good"], false);
}
