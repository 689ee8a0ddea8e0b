//! `plan` beforehand against what `run` then does; `watch` beside it; `--version`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use model::Tokenizer;
use serde_json::Value;

/// The quickstart's data and shape at a size that is tuned in a second.
const EXPERIMENT: &str = r#"
[experiment]
name = "planned"
languages = ["en", "fi"]
seeds = [1, 2]

[[base_model]]
name = "small"
config = "QUICKSTART/model.json"
tokenizer_vocabulary = 600
[base_model.text]
en = "QUICKSTART/text/en.txt"
[base_model.pretraining]
updates = 3
batch = 2
cutoff = 32
lr = 1e-3

[instructions]
en = "QUICKSTART/instructions/en.json"
fi = "QUICKSTART/instructions/fi.json"
[prompts]
en = "prompts-en.jsonl"
fi = "prompts-fi.jsonl"
[budget]
rows = 10
[tune]
updates = 7
batch = 4
cutoff = 96
validation_rows = 2
validate_every = 3
[tune.full]
supervise = "response"
[answer]
beams = 2
new_tokens = 6
[judge]
kind = "reference"
[tracking]
tensorboard = true
"#;

fn polypaca(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command.args(arguments).current_dir(folder).output().unwrap()
}

fn succeeds(arguments: &[&str], folder: &Path) -> String {
    let output = polypaca(arguments, folder);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str], folder: &Path) -> Value {
    serde_json::from_str(&succeeds(arguments, folder)).unwrap()
}

fn write(folder: &Path) {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart");
    for language in ["en", "fi"] {
        let prompts = fs::read_to_string(quickstart.join(format!("prompts/{language}.jsonl"))).unwrap();
        let few: Vec<&str> = prompts.lines().take(3).collect();
        fs::write(folder.join(format!("prompts-{language}.jsonl")), few.join("\n")).unwrap();
    }
    let text = EXPERIMENT.replace("QUICKSTART", &quickstart.display().to_string());
    fs::write(folder.join("planned.toml"), text).unwrap();
}

/// The finished cells' folders, by name.
fn cell(folder: &Path, name: &str) -> PathBuf {
    let store = folder.join("runs/planned/store/cells");
    let found = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).find(|cell| {
        let manifest: Value = serde_json::from_slice(&fs::read(cell.join("cell.json")).unwrap()).unwrap();
        manifest["determinants"]["label"] == name
    });
    found.unwrap_or_else(|| panic!("no cell {name}"))
}

/// What went through a model at least: each prompt (its template left out), and each response on both beams.
fn tokens_of(tokenizer: &Tokenizer, responses: &Path) -> u64 {
    let lines = fs::read_to_string(responses).unwrap();
    let count = |text: &Value| tokenizer.encode_bare(text.as_str().unwrap()).unwrap().len() as u64;
    let responses = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    responses.map(|response| count(&response["prompt"]) + 2 * count(&response["response"])).sum()
}

#[test]
fn what_is_planned_is_what_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder);
    let before = json(&["plan", "planned.toml", "--json"], folder);
    assert_eq!(before["left"]["hours"], Value::Null, "nothing was measured");
    let calibrated = json(&["plan", "planned.toml", "--json", "--calibrate"], folder);
    assert!(calibrated["left"]["hours"].as_f64().unwrap() > 0.0);
    let said = String::from_utf8(polypaca(&["plan", "planned.toml"], folder).stderr).unwrap();
    assert!(said.contains("the learning rate rises for 100 updates, and the run has 7"), "{said}");
    assert_eq!(calibrated["missing"], before["missing"], "measuring finishes no cell");
    // A thousandth of a second is too little for anything, and a thousand hours are enough for all.
    let drops = json(&["plan", "planned.toml", "--json", "--within", "0.0000001h"], folder);
    assert_eq!(drops["drops"]["lost"], drops["drops"]["of"]);
    let drops = json(&["plan", "planned.toml", "--json", "--within", "1000h"], folder);
    assert_eq!((&drops["drops"]["fits"], &drops["drops"]["lost"]), (&Value::Bool(true), &Value::from(0)));
    assert_eq!(polypaca(&["plan", "planned.toml", "--within", "soon"], folder).status.code(), Some(2));
    // References ask for no money. What an endpoint's judge asks for is not known without its price.
    let drops = json(&["plan", "planned.toml", "--json", "--within", "$1"], folder);
    assert_eq!((&drops["drops"]["rest"], &drops["drops"]["fits"]), (&Value::from(0.0), &Value::Bool(true)));
    let text = fs::read_to_string(folder.join("planned.toml")).unwrap();
    let judge = "kind = \"openai\"\nendpoint = \"http://127.0.0.1:9\"\nmodel = \"m\"";
    fs::write(folder.join("judged.toml"), text.replace("kind = \"reference\"", judge)).unwrap();
    let unpriced = polypaca(&["plan", "judged.toml", "--within", "$1"], folder);
    let said = String::from_utf8_lossy(&unpriced.stderr).into_owned();
    assert!(unpriced.status.code() == Some(2) && said.contains("[judge] has no `price ="), "{said}");

    succeeds(&["run", "planned.toml"], folder);
    let mut tunings = 0;
    for planned in before["cells"].as_array().unwrap() {
        let name = planned["cell"].as_str().unwrap();
        let cost = &planned["cost"];
        if name.starts_with("tuning/") {
            let record = fs::read(cell(folder, name).join("tuning.json")).unwrap();
            let record: Value = serde_json::from_slice(&record).unwrap();
            assert_eq!(cost["tokens"], record["tokens"], "{name}");
            assert_eq!(cost["flops"], record["flops"], "{name}");
            assert_eq!(cost["at_most"], false);
            let events = fs::read_dir(cell(folder, name).join("tensorboard")).unwrap().count();
            assert_eq!(events, 1, "{name}");
            tunings += 1;
        }
    }
    assert_eq!(tunings, 2 * 4);
    let base = Tokenizer::from_folder(&cell(folder, "base-model/small").join("model")).unwrap();
    let mut bounded = 0;
    for planned in before["cells"].as_array().unwrap() {
        let name = planned["cell"].as_str().unwrap();
        if !name.starts_with("answers/") && !name.starts_with("scores/") {
            continue;
        }
        let (cost, kept) = (&planned["cost"], cell(folder, name));
        assert_eq!(cost["at_most"], true, "{name}");
        let written = |file: &str| fs::read_to_string(kept.join(file)).map_or(0, |text| text.len() as u64);
        let disk: u64 = ["responses.jsonl", "scores.jsonl", "ratings.jsonl"].map(written).iter().sum();
        assert!(disk > 0 && disk <= cost["disk_bytes"].as_u64().unwrap(), "{name}: {disk} bytes, {cost}");
        if name.starts_with("answers/") {
            let tokens = tokens_of(&base, &kept.join("responses.jsonl"));
            assert!(tokens <= cost["tokens"].as_u64().unwrap(), "{name}: {tokens} tokens, {cost}");
        }
        bounded += 1;
    }
    assert!(bounded > 0);
    let after = json(&["plan", "planned.toml", "--json"], folder);
    assert_eq!((&after["missing"], &after["stale"]), (&Value::from(0), &Value::from(0)));
    assert_eq!(after["left"]["flops"], 0.0);

    let page = succeeds(&["watch", "runs/planned", "--once"], folder);
    assert!(page.contains("ended after"), "{page}");
    assert!(page.contains("done\n"), "{page}");
    let lines = succeeds(&["watch", "planned.toml"], folder);
    assert!(lines.contains("tuning/small/lora/multilingual/seed-1 done in"), "{lines}");
    assert!(lines.ends_with("the run has ended\n"), "{lines}");
}

#[test]
fn watch_names_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let output = polypaca(&["watch", "."], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no run has begun here"));
}

#[test]
fn the_version_names_commit_target_and_features() {
    let version = succeeds(&["--version"], Path::new("."));
    let expected = format!("polypaca {} (", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected), "{version}");
    assert!(version.contains("; features: "), "{version}");
}

#[test]
fn the_schema_is_json() {
    let schema = json(&["plan", "--schema"], Path::new("."));
    assert_eq!(schema["title"], "Experiment");
}
