//! A small experiment on disk, without any model that could be run.

use std::fs;
use std::path::{Path, PathBuf};

use lab::experiment::Experiment;
use lab::inputs::Inputs;
use lab::mixes::Mixing;
use lab::plan::Plan;

pub(crate) const EXPERIMENT: &str = r#"
[experiment]
name = "small"
languages = ["en", "fi", "zh"]
unseen_languages = ["no"]
seeds = [1, 2]

[[base_model]]
name = "tiny"
path = "tiny.gguf"

[instructions]
en = "en.json"
fi = "fi.json"
zh = "zh.json"

[prompts]
en = "prompts-en.jsonl"
fi = "prompts-fi.jsonl"
zh = "prompts-zh.jsonl"
no = "prompts-no.jsonl"

[budget]
rows = 6

[tune]
validation_rows = 2
lr = 0.001

[answer]
new_tokens = 4
"#;

/// Writes the experiment's files, and gives the experiment file's path.
pub(crate) fn write(folder: &Path, text: &str) -> PathBuf {
    fs::write(folder.join("tiny.gguf"), "not read by the plan").expect("a small experiment can be written");
    for language in ["en", "fi", "zh", "no"] {
        let rows: Vec<String> = (0..12)
            .map(|id| {
                format!(r#"{{"id":"{id}","instruction":"{language} asks {id}","input":"","output":"{language} says {id}"}}"#)
            })
            .collect();
        fs::write(folder.join(format!("{language}.json")), format!("[{}]", rows.join(",")))
            .expect("a small experiment can be written");
        let prompts: Vec<String> = (0..3)
            .map(|id| {
                format!(r#"{{"id":"p{id}","prompt":"{language} wants {id}","reference":"{language} {id}"}}"#)
            })
            .collect();
        fs::write(folder.join(format!("prompts-{language}.jsonl")), prompts.join("\n"))
            .expect("a small experiment can be written");
    }
    let path = folder.join("small.toml");
    fs::write(&path, text).expect("a small experiment can be written");
    path
}

pub(crate) fn plan(path: &Path) -> Plan {
    let experiment = Experiment::load(path).unwrap_or_else(|error| panic!("{error}"));
    let inputs = Inputs::read(&experiment).expect("a small experiment can be written");
    Plan::new(&experiment, &inputs, &Mixing::new(&experiment).expect("its budget")).expect("a plan")
}
