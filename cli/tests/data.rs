//! `data fetch`, `check`, `mix` and `stats` as a user runs them, on faults planted in real rows too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A part of the real test material; says so and gives none where it is absent.
fn real(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("POLYPACA_REAL").map_or_else(|| root("../shared/real"), PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent (set POLYPACA_REAL)", path.display());
        return None;
    }
    Some(path)
}

fn polypaca(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command.current_dir(folder).stdin(Stdio::null()).env_remove("HF_TOKEN");
    command
}

fn run(folder: &Path, flags: &[&str]) -> Output {
    polypaca(folder).arg("data").args(flags).output().expect("the program starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command and gives its one JSON object, whatever its exit code.
fn figures(folder: &Path, flags: &[&str]) -> Value {
    let output = run(folder, &[flags, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("one JSON object: {}", said(&output)))
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("text");
    if path.extension().is_some_and(|ending| ending == "jsonl") {
        return text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    }
    serde_json::from_str(&text).expect("an array")
}

fn write(path: &Path, rows: &[Value]) {
    fs::write(path, Value::from(rows.to_vec()).to_string()).expect("written");
}

/// Eight rows of a language.
fn small(code: &str) -> Vec<Value> {
    let row = |number: usize| {
        json!({"id": number.to_string(), "instruction": format!("{code} {number}?"), "input": "",
               "output": format!("{code} {number}.")})
    };
    (0..8).map(row).collect()
}

#[test]
fn a_cleaned_copy_is_written_in_the_form_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut english = small("en");
    english[2]["output"] = "".into();
    english[3]["input"] = "N/A".into();
    english[4]["output"] = "A</s>".into();
    write(&folder.join("en.json"), &english);
    let output = run(folder, &["check", "en=en.json", "--skip-languages", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for form in ["json", "jsonl", "parquet"] {
        let flags = ["check", "en=en.json", "--skip-languages", "--clean", "clean", "--form", form];
        let found = figures(folder, &flags);
        assert_eq!(
            (&found["faults"], &found["dropped_rows"], &found["mended_rows"]),
            (&3.into(), &2.into(), &1.into())
        );
        let again = run(folder, &["check", &format!("en=clean/en.{form}"), "--skip-languages", "--json"]);
        assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    }
    let cleaned = rows(&folder.join("clean/cleaned.jsonl"));
    let reasons: Vec<&Value> = cleaned.iter().map(|row| &row["reasons"][0]).collect();
    assert_eq!(
        reasons,
        [
            "empty: the output is empty",
            "placeholder_input: the input is `N/A`",
            "template_leftover: the output has `</s>`"
        ]
    );
    // The copies of rows that are given as translated tell so.
    run(folder, &["check", "en:translated=en.json", "--skip-languages", "--clean", "clean", "--json"]);
    let counted = figures(folder, &["stats", "en=clean/en-translated.json", "en=clean/en.json"]);
    let origins: Vec<&Value> =
        counted["sets"].as_array().expect("sets").iter().map(|set| &set["origin"]).collect();
    assert_eq!(origins, ["translated", "native"], "{counted}");
    let told = ["check", "en=clean/en-translated.json", "--skip-languages", "--clean", "again", "--json"];
    assert_eq!(run(folder, &told).status.code(), Some(0));
    let counted = figures(folder, &["stats", "en=again/en.json"]);
    assert_eq!(counted["sets"][0]["origin"], "translated", "{counted}");
    let counted = figures(folder, &["stats", "en:round_trip=clean/en-translated.json"]);
    assert_eq!(counted["sets"][0]["origin"], "round_trip", "{counted}");
    let kept =
        figures(folder, &["check", "en=en.json", "--skip-languages", "--clean", "kept", "--drop", "empty"]);
    assert_eq!(kept["dropped_rows"], 1);
    let refused = run(folder, &["check", "en=en.json", "--clean", "x", "--drop", "dull"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("unknown kind of fault `dull`"), "{}", said(&refused));
}

#[test]
fn a_row_that_cannot_be_read_is_among_the_faults_and_what_was_cleaned() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut english = small("en");
    english[1]["instruction"] = 3.into();
    write(&folder.join("en.json"), &english);
    let flags = ["check", "en=en.json", "--skip-languages", "--faults", "faults.jsonl", "--clean", "clean"];
    let found = figures(folder, &flags);
    assert_eq!((&found["faults"], &found["unreadable_rows"]), (&0.into(), &1.into()));
    let what = "`instruction` must be a text, found the number 3";
    let fault =
        json!({"language": "en", "file": "en.json", "row": 1, "line": 1, "kind": "unreadable", "what": what});
    assert_eq!(rows(&folder.join("faults.jsonl")), [fault]);
    let cleaned = json!({"language": "en", "file": "en.json", "row": 1, "line": 1, "dropped": true,
                         "reasons": [format!("unreadable: {what}")]});
    assert_eq!(rows(&folder.join("clean/cleaned.jsonl")), [cleaned]);
    // An id that two files of a language have.
    write(&folder.join("more.json"), &small("en"));
    let refused = run(folder, &["stats", "en=en.json", "en=more.json"]);
    assert_eq!(refused.status.code(), Some(2));
    let told = "more.json, row 0 (line 1): the id \"0\" was met before in `en`, in en.json, row 0 (line 1)";
    assert!(said(&refused).contains(told), "{}", said(&refused));
    assert!(run(folder, &["stats", "en=en.json", "en:translated=more.json"]).status.success());
}

#[test]
fn mixes_of_a_recipe_file_are_made_under_its_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    write(&folder.join("en.json"), &small("en"));
    write(&folder.join("fi.json"), &small("fi"));
    write(&folder.join("fi-mt.json"), &small("fi"));
    let recipes = "[budget]\nheld = \"tokens\"\nc = 300\n[[recipe]]\nname = \"translated\"\nlanguages = [\"fi\"]\n\
                   origin = \"translated\"\n[[recipe]]\nname = \"even\"\n";
    fs::write(folder.join("recipes.toml"), recipes).expect("written");
    let tokenizer = root("oracle/goldens/llama-grouped/model");
    let tokenizer = tokenizer.to_str().expect("UTF-8");
    let sets = ["mix", "en=en.json", "fi=fi.json", "fi:translated=fi-mt.json"];
    let mixed = |flags: &[&str]| figures(folder, &[&sets, flags].concat());
    let made = mixed(&["--recipes", "recipes.toml", "--tokenizer", tokenizer, "--out", "mixes"]);
    assert_eq!(made["held"], "tokens");
    let mixes = made["mixes"].as_array().expect("mixes");
    assert_eq!(mixes.len(), 2);
    for mix in mixes {
        let tokens = mix["tokens"].as_u64().expect("tokens");
        assert!(tokens <= 300 && mix["amount"] == tokens && mix["c"] == 300, "{mix}");
    }
    let manifest = fs::read_to_string(folder.join("mixes/translated/manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    assert!(manifest["rows"].as_array().expect("rows").iter().all(|row| row["origin"] == "translated"));
    assert!(manifest["languages"]["fi"]["tokens"].is_u64());

    let base = ["--recipe", "english", "--recipe", "multilingual"];
    let flops = mixed(&[&base[..], &["--held", "flops", "--model", tokenizer, "--out", "flops"]].concat());
    assert!(flops["mixes"][0]["in_c"].as_f64().is_some_and(|part| part > 0.8 && part <= 1.0), "{flops}");
    let updates = ["--held", "updates", "--batch", "3", "--epochs", "2", "--out", "updates"];
    let updates = mixed(&[&base[..], &updates].concat());
    assert_eq!((&updates["mixes"][0]["updates"], &updates["mixes"][1]["updates"]), (&6.into(), &12.into()));
    let split = ["--validation-rows", "2", "--out", "split", "--split"];
    for (way, shared) in [("id", 0), ("row", 1)] {
        mixed(&[&base[..], &split, &[way]].concat());
        let ids = |file: &str| -> BTreeSet<String> {
            let rows = rows(&folder.join("split/multilingual").join(file));
            rows.iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
        };
        let both = ids("rows.jsonl").intersection(&ids("validation.jsonl")).count();
        assert_eq!(both.min(1), shared, "{way}");
    }
    for (flags, expected) in [
        (["--held", "tokens", "--out", "x"], "needs a tokenizer"),
        (["--held", "flops", "--out", "x"], "needs a base model"),
        (["--recipe", "odd", "--out", "x"], "unknown recipe `odd`"),
    ] {
        let output = run(folder, &[&sets[..], &["--recipe", "english"], &flags[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(said(&output).contains(expected), "{flags:?}: {}", said(&output));
    }
    let counted = figures(folder, &["stats", "en=en.json", "--tokenizer", tokenizer, "--cutoff", "20"]);
    let tokens = &counted["sets"][0]["tokens"];
    assert_eq!((&tokens["total"], &tokens["cut_off"]), (&160.into(), &8.into()));
    assert!(tokens["per_word"].as_f64().is_some_and(|part| part > 1.0));
}

#[test]
fn every_example_recipe_file_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (name, rows, made) in
        [("shaham-2024", 1200, 18), ("kew-2023", 120, 9), ("ji-chen-2024", 80, 105), ("chen-2024", 120, 11)]
    {
        let recipes = root("examples/recipes").join(format!("{name}.toml"));
        let file = instructions::recipe::RecipeFile::read(&recipes).expect(name);
        let mut codes: BTreeSet<String> = BTreeSet::new();
        for recipe in &file.recipe {
            codes.extend(recipe.languages.iter().map(ToString::to_string));
            codes.extend(recipe.replace.iter().flat_map(|replace| &replace.with).map(ToString::to_string));
        }
        let mut flags = vec!["mix".to_owned()];
        for code in codes {
            let row = |number: usize| json!({"id": number.to_string(), "instruction": format!("{code} {number}?"), "output": "x"});
            let file = format!("{code}.json");
            write(&folder.join(&file), &(0..rows).map(row).collect::<Vec<_>>());
            flags.extend(
                ["native", "translated", "round_trip"].map(|origin| format!("{code}:{origin}={file}")),
            );
        }
        flags.extend(["--validation-rows", "10", "--out", name, "--recipes"].map(str::to_owned));
        flags.push(recipes.display().to_string());
        let found = figures(folder, &flags.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found["mixes"].as_array().map(Vec::len), Some(made), "{name}");
    }
    let files = fs::read_dir(root("examples/recipes")).expect("the folder").count();
    assert_eq!(files, 4, "each of the example files is run here");
}

/// What was asked of the stand-in for the Hub.
type Asked = Arc<Mutex<Vec<String>>>;

/// Speaks the Hub's protocol for a few repositories: `/api/KIND/NAME/revision/REVISION` lists the files, and
/// `/KIND/NAME/resolve/REVISION/FILE` gives them, in ranges, with `etag` and `x-repo-commit`.
async fn hub(State(asked): State<Asked>, uri: Uri, headers: HeaderMap) -> Response {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let path = uri.path().replace("%2F", "/");
    asked.lock().expect("a list").push(path.clone());
    let list = |files: &[&str]| {
        let files: Vec<Value> = files.iter().map(|file| json!({"rfilename": file})).collect();
        axum::Json(json!({"sha": COMMIT, "siblings": files})).into_response()
    };
    let model = root("oracle/goldens/llama-grouped/model");
    match path.as_str() {
        "/api/datasets/lab/alpaca/revision/main" => {
            return list(&[
                ".gitattributes",
                "README.md",
                "data/test-0.parquet",
                "data/train-0.parquet",
                "data/train-1.parquet",
            ]);
        }
        "/api/datasets/lab/hostile/revision/main" => return list(&["../../train.json"]),
        "/api/datasets/lab/private/revision/main" => return StatusCode::UNAUTHORIZED.into_response(),
        "/api/models/lab/small/revision/main" => {
            let files = fs::read_dir(&model).expect("the model");
            let names = files.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
            let names: Vec<String> = names.collect();
            return list(&names.iter().map(String::as_str).collect::<Vec<_>>());
        }
        _ => {}
    }
    let at = format!("/resolve/{COMMIT}/");
    let bytes = match path.split_once(&at) {
        Some(("/datasets/lab/alpaca", file)) if file.starts_with("data/train-") => {
            fs::read(root("oracle/goldens/parquet/alpaca-zstd.parquet")).ok()
        }
        Some(("/lab/small", file)) => fs::read(model.join(file)).ok(),
        _ => None,
    };
    let Some(bytes) = bytes else { return StatusCode::NOT_FOUND.into_response() };
    let etag = format!("\"{}\"", path.rsplit('/').next().unwrap_or_default());
    let range = headers.get("range").and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let (first, last) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let first = first.parse().unwrap_or(0).min(bytes.len());
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let range = format!("bytes {first}-{last}/{}", bytes.len());
    let part = bytes.get(first..=last).unwrap_or_default().to_vec();
    let headers = [("etag", etag), ("x-repo-commit", COMMIT.to_owned()), ("content-range", range)];
    (StatusCode::PARTIAL_CONTENT, headers, part).into_response()
}

#[test]
fn datasets_and_models_come_from_the_hub_by_name() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asked = Asked::default();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let app = Router::new().fallback(hub).with_state(asked.clone());
    runtime.spawn(async move { axum::serve(listener, app).await });
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let with_hub = |flags: &[&str]| {
        let mut command = polypaca(folder);
        command.args(flags).env("HF_ENDPOINT", &endpoint).env("HF_HOME", folder.join("cache"));
        command.output().expect("the program starts")
    };
    let fetch = |name: &str, more: &[&str]| {
        let flags = ["data", "fetch", name, "--language", "en", "--out", "rows.json", "--json"];
        with_hub(&[&flags[..], more].concat())
    };
    let fetched = fetch("lab/alpaca", &[]);
    assert!(fetched.status.success(), "{}", said(&fetched));
    let told: Value = serde_json::from_slice(&fetched.stdout).expect("JSON");
    assert_eq!((&told["rows"], &told["left_out"]), (&24.into(), &0.into()));
    assert_eq!(told["files"], json!(["data/train-0.parquet", "data/train-1.parquet"]));
    assert_eq!(told["passed_over"], json!(["data/test-0.parquet"]));
    let golden = fs::read_to_string(root("oracle/goldens/parquet/rows.json")).expect("the golden");
    let golden: Value = serde_json::from_str(&golden).expect("JSON");
    let found = rows(&folder.join("rows.json"));
    for (number, row) in found.iter().enumerate() {
        let expected = &golden["rows"][number % 12];
        assert_eq!(row["id"], number.to_string());
        for key in ["instruction", "input", "output"] {
            assert_eq!(row[key], expected[key]);
        }
    }
    // What is in the cache is not asked for again, but for the list of files.
    let before = asked.lock().expect("a list").len();
    assert!(fetch("lab/alpaca", &[]).status.success());
    assert_eq!(asked.lock().expect("a list").len(), before + 1);

    let (hostile, private) = (fetch("lab/hostile", &[]), fetch("lab/private", &[]));
    let gone = fetch("lab/alpaca", &["--file", "data/train-9.parquet"]);
    let missing = fetch("lab/none", &[]);
    let (split, other) = (fetch("lab/alpaca", &["--split", "odd"]), fetch("lab/alpaca", &["--folder", "fi"]));
    for (output, code, expected) in [
        (hostile, 1, "names a file `../../train.json`, outside of it"),
        (private, 1, "HF_TOKEN opens it"),
        (missing, 1, "there is no such repository"),
        (gone, 2, "has no file `data/train-9.parquet`"),
        (split, 2, "has no file with rows of the split `odd`"),
        (other, 2, "in fi: its files are"),
    ] {
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
    let before = asked.lock().expect("a list").len();
    let odd = with_hub(&["data", "fetch", "lab/alpaca", "--language", "en", "--out", "rows.txt"]);
    assert_eq!(odd.status.code(), Some(2), "{}", said(&odd));
    assert!(said(&odd).contains("ends in .json, .jsonl or .parquet"), "{}", said(&odd));
    assert_eq!(asked.lock().expect("a list").len(), before, "nothing was asked");

    write(&folder.join("few.json"), &small("en"));
    let loss = with_hub(&["loss", "--model", "lab/small", "--data", "few.json", "--json"]);
    assert!(loss.status.success(), "{}", said(&loss));
    let local = root("oracle/goldens/llama-grouped/model");
    let flags = ["loss", "--model", local.to_str().expect("UTF-8"), "--data", "few.json", "--json"];
    assert_eq!(loss.stdout, with_hub(&flags).stdout);
    let gone = with_hub(&["loss", "--model", "lab/gone", "--data", "few.json"]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(said(&gone).contains("there is no such file or folder"), "{}", said(&gone));
}

/// The kinds of fault and how each is planted in a Finnish row: given its number, its English parallel row, an earlier
/// Finnish row, and the test prompts. Says whether the row takes it.
type Plant = fn(usize, &mut Value, &Value, &Value, &[String]) -> bool;

/// So many of each kind.
const PLANTED: usize = 200;

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn is_long(text: &str) -> bool {
    text.chars().count() >= 40
}

const PLANTS: [(&str, Plant); 11] = [
    ("empty", |number, row, _, _, _| {
        row[if number % 2 == 0 { "output" } else { "instruction" }] = " \n".into();
        true
    }),
    ("duplicate", |_, row, _, earlier, _| {
        for key in ["instruction", "input", "output"] {
            row[key] = earlier[key].clone();
        }
        true
    }),
    ("repeated_instruction", |_, row, _, earlier, _| {
        for key in ["instruction", "input"] {
            row[key] = earlier[key].clone();
        }
        row["output"] != earlier["output"]
    }),
    ("wrong_language", |_, row, english, _, _| {
        row["output"] = english["output"].clone();
        is_long(text(row, "output"))
    }),
    ("template_leftover", |number, row, _, _, _| {
        let leftover =
            ["\n\n### Instruction:\n", "</s>", "<|im_end|>", "[/INST] ", "### Response:"][number % 5];
        row["output"] = format!("{}{leftover}", text(row, "output")).into();
        true
    }),
    ("broken_encoding", |number, row, _, _, _| {
        let output = text(row, "output");
        let broken: String = if number % 2 == 0 {
            // UTF-8 read as Windows-1252, whose few gaps are C1 controls.
            output.bytes().map(char::from).collect()
        } else {
            output.replacen(|c: char| !c.is_ascii(), "\u{FFFD}", 1)
        };
        let changed = broken != output;
        row["output"] = broken.into();
        changed
    }),
    ("too_long", |_, row, _, _, _| {
        let output = text(row, "output").to_owned();
        row["output"] = format!("{output} ").repeat(5).into();
        is_long(&output)
    }),
    ("too_short", |_, row, english, _, _| {
        let output = text(row, "output").to_owned();
        row["output"] = output.chars().take(output.chars().count() / 5).collect::<String>().into();
        is_long(&output) && is_long(text(english, "output"))
    }),
    ("test_overlap", |number, row, _, _, prompts| {
        let prompt = &prompts[number % prompts.len()];
        let planted = if number % 2 == 0 { prompt.to_uppercase() } else { format!("Hei! {prompt} Kiitos.") };
        row["instruction"] = planted.into();
        // Five words are what is compared.
        number % 2 == 0 || prompt.split_whitespace().count() >= 5
    }),
    ("same_output", |_, row, english, _, _| {
        row["output"] = english["output"].clone();
        true
    }),
    ("placeholder_input", |number, row, _, _, _| {
        row["input"] = ["N/A", "<no input>", "Ei syötettä.", "None"][number % 4].into();
        true
    }),
];

/// The ids of a language's rows that a check finds with each kind of fault.
fn found(
    folder: &Path,
    finnish: &Path,
    english: &Path,
    prompts: &Path,
    lid: &Path,
) -> BTreeMap<String, BTreeSet<String>> {
    let shown = |path: &Path| path.display().to_string();
    let flags = [
        "check".to_owned(),
        format!("en={}", shown(english)),
        format!("fi={}", shown(finnish)),
        "--lid".to_owned(),
        shown(lid),
        "--prompts".to_owned(),
        format!("fi={}", shown(prompts)),
        "--faults".to_owned(),
        "faults.jsonl".to_owned(),
    ];
    let output = run(folder, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for fault in rows(&folder.join("faults.jsonl")) {
        if fault["language"] == "fi" {
            kinds.entry(text(&fault, "kind").to_owned()).or_default().insert(text(&fault, "id").to_owned());
        }
    }
    kinds
}

#[test]
fn faults_planted_in_all_real_rows_are_found() {
    let (Some(english), Some(finnish), Some(lid), Some(prompts)) = (
        real("instructions/dolly_en.json"),
        real("instructions/dolly_fi.json"),
        real("lid/lid.176.ftz"),
        real("prompts/test_fi.jsonl"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let test_prompts: Vec<String> = rows(&prompts).iter().map(|row| text(row, "prompt").to_owned()).collect();
    let (of_english, of_finnish) = (rows(&english), rows(&finnish));
    let before = found(folder, &finnish, &english, &prompts, &lid);
    let had = |kind: &str, id: &str| before.get(kind).is_some_and(|ids| ids.contains(id));
    let faulty = folder.join("faulty.json");
    println!("| kind | recall | precision |\n| --- | --- | --- |");
    for (kind, plant) in PLANTS {
        // Each kind by itself: the same output in two languages is also one in the wrong language.
        let mut rows = of_finnish.clone();
        let mut planted = BTreeSet::new();
        // Spread over the set by a stride that has no factor in common with the number of its rows.
        for step in 0..rows.len() {
            let number = (step * 1_709 + 1) % rows.len();
            let id = text(&rows[number], "id").to_owned();
            let Some(earlier) = number.checked_sub(7).map(|earlier| of_finnish[earlier].clone()) else {
                continue;
            };
            let mut row = rows[number].clone();
            if planted.len() < PLANTED
                && !had(kind, &id)
                && plant(number, &mut row, &of_english[number], &earlier, &test_prompts)
            {
                rows[number] = row;
                planted.insert(id);
            }
        }
        assert_eq!(planted.len(), PLANTED, "{kind}: rows to plant in");
        write(&faulty, &rows);
        let found = found(folder, &faulty, &english, &prompts, &lid).remove(kind).unwrap_or_default();
        let found: BTreeSet<&String> = found.iter().filter(|id| !had(kind, id)).collect();
        let hits = found.iter().filter(|id| planted.contains(**id)).count();
        let (recall, precision) = (hits as f64 / PLANTED as f64, hits as f64 / found.len().max(1) as f64);
        println!("| `{kind}` | {recall:.3} | {precision:.3} |");
        assert!(recall >= 0.95 && precision >= 0.9, "{kind}: recall {recall}, precision {precision}");
    }
}

#[test]
fn nothing_that_is_read_is_written_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut english = small("en");
    english[2]["output"] = "".into();
    write(&folder.join("en.json"), &english);
    let before = fs::read(folder.join("en.json")).expect("the set");
    let mixed = run(folder, &["mix", "en=en.json", "--recipe", "english", "--out", "mixes"]);
    assert!(mixed.status.success(), "{}", said(&mixed));
    let mix = fs::read(folder.join("mixes/english/rows.jsonl")).expect("a mix");
    for flags in [
        &["check", "en=en.json", "--skip-languages", "--faults", "./en.json"][..],
        &["check", "en=en.json", "--skip-languages", "--clean", "."],
        &["check", "en=./en.json", "--skip-languages", "--clean", "mixes/.."],
        &["check", "en=en.json", "--skip-languages", "--clean", "c", "--faults", "./en.json"],
        &["translate", "en.json", "--from", "en", "--to", "fi", "--out", "mixes/../en.json", "--engine"],
        &[
            "translate",
            "en.json",
            "--from",
            "en",
            "--to",
            "fi",
            "--cache",
            "en.json",
            "--out",
            "fi.json",
            "--engine",
        ],
        &["mix", "en=mixes/english/rows.jsonl", "--recipe", "english", "--out", "./mixes"],
    ] {
        let engine = ["libretranslate", "--endpoint", "http://127.0.0.1:9"];
        let more = if flags[0] == "translate" { &engine[..] } else { &[] };
        let output = run(folder, &[flags, more].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", said(&output));
        assert!(said(&output).contains("is read too; expected another place"), "{}", said(&output));
        assert_eq!(fs::read(folder.join("en.json")).expect("the set"), before, "{flags:?}");
        assert_eq!(fs::read(folder.join("mixes/english/rows.jsonl")).expect("the mix"), mix, "{flags:?}");
        assert_eq!(fs::read_dir(folder).expect("the folder").count(), 2, "{flags:?}: nothing new");
    }
    let twice = ["check", "en=en.json", "--skip-languages", "--clean", ".", "--form", "jsonl", "--faults"];
    let output = run(folder, &[&twice[..], &["cleaned.jsonl"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("is written by --faults too"), "{}", said(&output));
}

#[test]
fn numbers_that_cannot_be_are_refused_by_their_flag() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    write(&folder.join("en.json"), &small("en"));
    let check = ["check", "en=en.json", "--skip-languages"];
    let mix = ["mix", "en=en.json", "--recipe", "english", "--out", "mixes"];
    let updates = [&mix[..], &["--held", "updates"]].concat();
    for (command, flag) in [
        (&check[..], "--length-factor=nan"),
        (&check, "--length-factor=0"),
        (&check, "--length-factor=-1"),
        (&updates, "--epochs=0"),
        (&updates, "--batch=0"),
        (&mix, "--budget=0"),
        (&mix, "--epochs=3"),
        (&mix, "--batch=16"),
    ] {
        let output = run(folder, &[command, &[flag]].concat());
        assert_eq!(output.status.code(), Some(2), "{flag}: {}", said(&output));
        let name = flag.split('=').next().expect("a flag");
        assert!(said(&output).contains(name), "{flag}: {}", said(&output));
    }
    assert!(!folder.join("mixes").exists());
}

#[test]
fn a_mix_lists_the_rows_that_could_not_be_read_and_keeps_its_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut english = small("en");
    write(&folder.join("whole.json"), &english);
    english.push(json!({"id": "odd", "instruction": 7, "output": "x"}));
    english.push(json!(5));
    write(&folder.join("en.json"), &english);
    let manifest = |set: &str, out: &str| -> Value {
        let mixed = run(folder, &["mix", set, "--recipe", "english", "--out", out]);
        assert!(mixed.status.success(), "{}", said(&mixed));
        let path = folder.join(out).join("english/manifest.json");
        serde_json::from_slice(&fs::read(path).expect("a manifest")).expect("JSON")
    };
    let (whole, mixed) = (manifest("en=whole.json", "one"), manifest("en=en.json", "two"));
    assert_eq!(whole["hash"], mixed["hash"]);
    assert_eq!(whole["left_out"], json!([]));
    let left = mixed["left_out"].as_array().expect("a list");
    let ids: Vec<&Value> = left.iter().flat_map(|left| left["ids"].as_array().expect("ids")).collect();
    assert_eq!(ids, ["en.json, row 8", "en.json, row 9"]);
    let reasons = left.iter().map(|left| text(left, "reason"));
    assert!(reasons.into_iter().all(|reason| reason.starts_with("could not be read: ")), "{mixed}");
}

#[test]
fn a_recipes_name_is_no_path_out_of_the_mixes_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    write(&folder.join("en.json"), &small("en"));
    for name in ["../x", ".", "/tmp/abs"] {
        fs::write(folder.join("own.toml"), format!("[[recipe]]\nname = \"{name}\"\n")).expect("written");
        let output = run(folder, &["mix", "en=en.json", "--recipes", "own.toml", "--out", "mixes"]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", said(&output));
        assert!(
            said(&output).contains("own.toml") && said(&output).contains("its name names a folder"),
            "{name}"
        );
        assert_eq!(fs::read_dir(folder).expect("the folder").count(), 2, "{name}: nothing new");
    }
}
