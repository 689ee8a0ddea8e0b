//! `chat` and `merge` as a user runs them, on a small model with random weights.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped").join(part)
}

fn polypaca(folder: &Path, model: &Path, command: &str, flags: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .arg(command)
        .arg("--model")
        .arg(model)
        .args(flags)
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("its input");
    // Who refuses its flags does not read.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Greedy, so that `chat` must say the same.
fn answered(folder: &Path, model: &Path, flags: &[&str]) -> String {
    fs::write(folder.join("prompts.jsonl"), "{\"id\": \"a\", \"prompt\": \"Name a sea.\"}\n")
        .expect("a file");
    let greedy =
        "--prompts prompts.jsonl --language en --out out.jsonl --beams 1 --no-repeat-ngram 0 --new-tokens 12";
    let flags: Vec<&str> = greedy.split(' ').chain(flags.iter().copied()).collect();
    let output = polypaca(folder, model, "answer", &flags, "");
    assert!(output.status.success(), "{}", said(&output));
    let line = fs::read_to_string(folder.join("out.jsonl")).expect("responses");
    let response: Value = serde_json::from_str(&line).expect("a line");
    response["response"].as_str().expect("a text").to_owned()
}

#[test]
fn chat_streams_picks_its_system_and_shows_the_gate() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, adapter) = (golden("model"), golden("adapter"));
    let tuned = format!("tuned={}", adapter.display());
    let chat = |input: &str| {
        let flags = ["--adapter", &tuned, "--base-name", "base", "--new-tokens", "12"];
        let output = polypaca(folder.path(), &model, "chat", &flags, input);
        assert!(output.status.success(), "{}", said(&output));
        output
    };
    let of_adapter = answered(folder.path(), &model, &["--adapter", &adapter.display().to_string()]);
    let of_base = answered(folder.path(), &model, &[]);
    assert_ne!(of_adapter, of_base);
    let first = chat("Name a sea.\n/language en\n/clear\nName a sea.\n");
    assert_eq!(shown(&first), format!("{of_adapter}\n{of_adapter}\n"));
    assert!(said(&first).contains("which was expected is not certain"), "{}", said(&first));
    assert!(said(&first).contains("expected was en"), "{}", said(&first));
    let both = chat("Name a sea.\n/system base\n/language fi\nName a sea.\n/quit\nNever read.\n");
    assert_eq!(shown(&both), format!("{of_adapter}\n{of_base}\n"));
    assert!(said(&both).contains("expected was fi"), "{}", said(&both));
    let odd = chat("/system other\n/nonsense\n/systems\n\n");
    assert_eq!(shown(&odd), "");
    for expected in ["no system other; expected one of base, tuned", "/nonsense is not known", "* tuned"] {
        assert!(said(&odd).contains(expected), "{expected}: {}", said(&odd));
    }
    // The second turn reads the first.
    let turns = chat("Name a sea.\nName a sea.\n");
    assert!(shown(&turns).starts_with(&format!("{of_adapter}\n")));
    let unknown = polypaca(folder.path(), &model, "chat", &["--system", "other"], "");
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn a_merged_model_answers_as_base_model_and_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, adapter) = (golden("model"), golden("adapter").display().to_string());
    let expected = answered(folder.path(), &model, &["--adapter", &adapter]);
    for (out, flags) in [("merged", vec![]), ("merged.gguf", vec!["--gguf"])] {
        let flags = [&["--adapter", &adapter, "--out", out, "--json"], flags.as_slice()].concat();
        let output = polypaca(folder.path(), &model, "merge", &flags, "");
        assert!(output.status.success(), "{}", said(&output));
        let told: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert!(told["relative_logit_difference"].as_f64().expect("a number") < 1e-5, "{told}");
        assert_eq!(told["other_best_token"], 0);
        assert_eq!(answered(folder.path(), &folder.path().join(out), &[]), expected, "{out}");
    }
    let flags = ["--adapter", &adapter, "--out", "merged"];
    let refused = polypaca(folder.path(), &folder.path().join("merged"), "merge", &flags, "");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let flags = ["--adapter", &adapter, "--out", "merged.gguf"];
    let refused = polypaca(folder.path(), &model, "merge", &flags, "");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let flags = ["--adapter", &adapter, "--gguf", "--out", "merged/config.json"];
    let refused = polypaca(folder.path(), &folder.path().join("merged"), "merge", &flags, "");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("in a folder that is read"), "{}", said(&refused));
}
