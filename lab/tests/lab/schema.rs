//! The schema that editors check experiment files by, its page, and the examples.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lab::experiment::{Experiment, Source, schema};
use lab::inputs::Inputs;
use lab::mixes::Mixing;
use lab::plan::Plan;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("examples")).expect("the examples");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

/// What a value has against a schema, in the words that the schema of experiments uses.
fn faults(value: &Value, schema: &Value, root: &Value, place: &str) -> Vec<String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference.trim_start_matches('#');
        let target = root.pointer(target).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return faults(value, target, root, place);
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(ways) = schema.get(word).and_then(Value::as_array) {
            let tried: Vec<_> = ways.iter().map(|way| faults(value, way, root, place)).collect();
            return if tried.iter().any(Vec::is_empty) { Vec::new() } else { tried.concat() };
        }
    }
    let mut found = Vec::new();
    if let Some(constant) = schema.get("const")
        && constant != value
    {
        found.push(format!("{place}: {value} is not {constant}"));
    }
    if let Some(names) = schema.get("enum").and_then(Value::as_array)
        && !names.contains(value)
    {
        found.push(format!("{place}: {value} is none of {names:?}"));
    }
    let types = match schema.get("type") {
        Some(Value::Array(types)) => types.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    let fits = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        _ => false,
    };
    if !types.is_empty() && !types.iter().any(fits) {
        found.push(format!("{place}: {value} is not of type {types:?}"));
    }
    if let Value::Object(entries) = value {
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, value) in entries {
            let place = format!("{place}.{name}");
            match (properties.and_then(|known| known.get(name)), schema.get("additionalProperties")) {
                (Some(schema), _) => found.extend(faults(value, schema, root, &place)),
                (None, Some(Value::Bool(false))) => found.push(format!("{place}: unknown")),
                (None, Some(rest)) if rest.is_object() => found.extend(faults(value, rest, root, &place)),
                (None, _) => {}
            }
        }
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if name.as_str().is_some_and(|name| !entries.contains_key(name)) {
                found.push(format!("{place}: {name} is missing"));
            }
        }
    }
    if let (Value::Array(items), Some(schema)) = (value, schema.get("items")) {
        let of_items = items.iter().enumerate();
        found.extend(of_items.flat_map(|(i, item)| faults(item, schema, root, &format!("{place}[{i}]"))));
    }
    found
}

fn faults_of(text: &str) -> Vec<String> {
    let schema: Value = serde_json::from_str(&schema().expect("a schema")).expect("JSON");
    let value: toml::Table = toml::from_str(text).expect("TOML");
    faults(&serde_json::to_value(value).expect("JSON"), &schema, &schema, "")
}

#[test]
fn the_schema_that_lies_in_docs_is_the_programs() {
    let kept = fs::read_to_string(root().join("docs/experiment.schema.json")).unwrap_or_default();
    let made = schema().expect("a schema");
    assert_eq!(kept.trim_end(), made, "run `polypaca plan --schema > docs/experiment.schema.json`");
}

#[test]
fn every_example_names_the_schema_and_fits_it() {
    let examples = examples();
    assert!(examples.len() >= 3, "{examples:?}");
    for path in examples {
        let text = fs::read_to_string(&path).expect("an example");
        assert!(text.starts_with("#:schema ../docs/experiment.schema.json\n"), "{}", path.display());
        assert_eq!(faults_of(&text), [""; 0], "{}", path.display());
        Experiment::parse(&Source { path, text }).expect("an experiment");
    }
}

#[test]
fn the_schema_refuses_what_the_program_refuses() {
    let text = fs::read_to_string(root().join("examples/paper.toml")).expect("an example");
    for (from, to) in [
        ("preset = \"paper\"", "preset = \"best\""),
        ("cutoff = 512", "cut_off = 512"),
        ("cutoff = 512", "cutoff = \"long\""),
        ("methods = [\"lora\", \"full\"]", "methods = \"lora\""),
        ("name = \"paper\"\n", ""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        assert_ne!(faults_of(&changed), [""; 0], "{to}");
        let source = Source { path: "paper.toml".into(), text: changed };
        assert!(Experiment::parse(&source).is_err(), "{to}");
    }
}

/// The names of all keys of a schema.
fn keys(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(entries) => {
            if let Some(Value::Object(properties)) = entries.get("properties") {
                found.extend(properties.keys().cloned());
            }
            entries.values().for_each(|value| keys(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn the_page_tells_every_key() {
    let page = fs::read_to_string(root().join("docs/experiment.md")).expect("docs/experiment.md");
    let schema: Value = serde_json::from_str(&schema().expect("a schema")).expect("JSON");
    let mut all = BTreeSet::new();
    keys(&schema, &mut all);
    let told = |key: &String| page.contains(&format!("`{key}`")) || page.contains(&format!("[{key}]"));
    let untold: Vec<_> = all.iter().filter(|key| !told(key)).collect();
    assert!(untold.is_empty(), "not in docs/experiment.md: {untold:?}");
}

/// The paper's own grid, over files of its names.
#[test]
fn the_papers_grid_is_planned_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = fs::read_to_string(root().join("examples/paper.toml")).expect("an example");
    let experiments = folder.path().join("examples");
    fs::create_dir_all(&experiments).expect("a folder");
    let path = experiments.join("paper.toml");
    fs::write(&path, &text).expect("a file");
    let place = |name: &str| {
        let place = folder.path().join(name);
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        place
    };
    for line in text.lines().filter_map(|line| line.strip_prefix("path = \"../")) {
        fs::write(place(line.trim_end_matches('"')), line).expect("a file");
    }
    fs::write(place("models/lid201-model.bin"), "a model").expect("a file");
    for language in ["en", "es", "fr", "bg", "ru", "zh", "cs", "de", "fi", "bn", "no"] {
        let rows: Vec<String> = (0..1012)
            .map(|id| {
                format!(r#"{{"id":"{id}","instruction":"{language} {id}","input":"","output":"{language}"}}"#)
            })
            .collect();
        fs::write(place(&format!("data/alpaca/{language}.json")), format!("[{}]", rows.join(",")))
            .expect("a file");
        let prompts: Vec<String> =
            (0..50).map(|id| format!(r#"{{"id":"{id}","prompt":"{language} {id}"}}"#)).collect();
        fs::write(place(&format!("data/prompts/test_{language}.jsonl")), prompts.join("\n")).expect("a file");
    }
    let experiment = Experiment::load(&path).unwrap_or_else(|error| panic!("{error}"));
    let inputs = Inputs::read(&experiment).expect("the inputs");
    let plan =
        Plan::new(&experiment, &inputs, &Mixing::new(&experiment).expect("its budget")).expect("a plan");
    let count = |kind: &str| plan.cells.iter().filter(|cell| cell.determinants.kind == kind).count();
    // Eight mixes: six languages (English's serves two recipes; nobody asks a system of a language that is not tested),
    // multilingual and downsampled. Sixteen base models by LoRA and the five of BLOOM in full.
    assert_eq!(count("mix"), 8);
    assert_eq!(count("tuning"), (16 + 5) * 8);
    // English, multilingual and downsampled systems answer eight languages, the five others one, the base models eight.
    assert_eq!(count("answers"), (16 + 5) * (3 * 8 + 5) + 16 * 8);
    let families: BTreeSet<_> =
        experiment.base_model.iter().filter_map(|model| model.family.clone()).collect();
    assert_eq!(families.len(), 5);
}
