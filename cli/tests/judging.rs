//! `judge`, `identify` and `agree` as a user runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn polypaca(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON lines that a command prints; it must come to its end.
fn lines(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = polypaca(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A folder with the responses of two systems in Finnish.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut text = String::new();
    for (system, id, response) in [
        ("a", "1", "Kissa nukkuu sohvalla koko pitkän iltapäivän."),
        ("b", "1", "The cat sleeps on the sofa all afternoon long."),
        ("a", "2", "Katso: \"The weather is fine today, let us walk.\" Niin hän sanoi."),
        ("b", "2", "Tänään on kaunis sää, lähdetään kävelylle."),
    ] {
        let line = json!({
            "id": id, "language": "fi", "prompt": "Kerro jotain.", "system": system, "response": response,
            "reference": "Kissa nukkuu sohvalla koko pitkän iltapäivän."
        });
        text += &format!("{line}\n");
    }
    fs::write(folder.path().join("responses.jsonl"), text).expect("the folder takes files");
    folder
}

#[test]
fn identify_sweeps_compares_and_counts_pass_rates() {
    let folder = folder();
    let identify = |more: &[&str]| lines(folder.path(), &[&["identify", "responses.jsonl"], more].concat());
    let gates =
        |more: &[&str]| -> Vec<Value> { identify(more).iter().map(|line| line["gate"].clone()).collect() };
    assert_eq!(gates(&[])[..2], [json!(1), json!(0)]);
    assert_eq!(gates(&["--labels", "fi", "sv"])[1], json!(0), "English is taken for one of the two");
    assert_eq!(gates(&["--set-aside-quotations"])[2], json!(1), "what is left of it is Finnish");
    assert_eq!(gates(&["--shortest", "1000", "--short", "pass"]), [1, 1, 1, 1]);
    let sweep = identify(&["--sweep", "0", "0.5"]);
    assert_eq!((&sweep[0]["responses"], &sweep[1]["threshold"]), (&json!(4), &json!(0.5)));
    for threshold in ["1.5", "nan"] {
        let output = polypaca(folder.path(), &["identify", "responses.jsonl", "--sweep", threshold]);
        assert_eq!(output.status.code(), Some(2), "{threshold}");
    }
    assert_eq!(identify(&["--compare", "lingua"]), [] as [Value; 0]);
    let rates = identify(&["--pass-rates"]);
    assert_eq!((&rates[1]["system"], &rates[1]["counts"]["pass_by_line"]), (&json!("b"), &json!(1)));
}

#[test]
fn a_language_that_the_identifier_has_no_label_for_is_told() {
    let folder = folder();
    let lines = "{\"id\": \"1\", \"language\": \"he\", \"response\": \"a\"}\n{\"id\": \"2\", \"language\": \"is\", \"response\": \"b\"}\n";
    fs::write(folder.path().join("two.jsonl"), lines).expect("written");
    let output = polypaca(folder.path(), &["identify", "two.jsonl"]);
    let told = "lingua has no label for is: none of its 1 responses can pass; --lid names a fastText model";
    assert!(said(&output).contains(told), "{}", said(&output));
}

#[test]
fn a_model_on_this_machine_judges_and_compares() {
    let folder = folder();
    let model: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
    let model = model.to_str().expect("a path of text");
    let base = [
        "judge",
        "--responses",
        "responses.jsonl",
        "--judge",
        "local",
        "--model",
        model,
        "--new-tokens",
        "4",
    ];
    fs::write(folder.path().join("own.txt"), "{instruction} {response}").expect("the folder takes files");
    // Random weights give no rating: every response is unrated and counted, none is 0.
    let own = ["--out", "ratings.jsonl", "--prompt-template", "own.txt", "--json"];
    let judged = polypaca(folder.path(), &[&base[..], &own].concat());
    let summary: Value =
        serde_json::from_slice(&judged.stdout).unwrap_or_else(|_| panic!("{}", said(&judged)));
    assert_eq!((&summary["unrated"], judged.status.code()), (&json!(4), Some(1)));
    assert!(said(&judged).contains("unrated: no [[n]] in the reply"), "{}", said(&judged));
    let pairwise = polypaca(
        folder.path(),
        &[&base[..], &["--out", "pairs.jsonl", "--pairwise", "--prompt-template", "own.txt"]].concat(),
    );
    assert!(said(&pairwise).contains("found no {first}"), "{}", said(&pairwise));
    assert_eq!(pairwise.status.code(), Some(2));
}

#[test]
fn agree_shows_raters_differences_and_drift() {
    let folder = folder();
    let rows = "system,language,id,rater,judge,human\na,fi,1,x,3,2.5\na,fi,1,y,3,3\nb,fi,1,x,1,1\nb,fi,1,y,1,0\n\
                a,fi,2,x,2,1\na,fi,2,y,2,2\nb,fi,2,x,3,3\nb,fi,2,y,3,2.5\n";
    fs::write(folder.path().join("marks.csv"), rows).expect("the folder takes files");
    let shown = polypaca(folder.path(), &["agree", "marks.csv", "--differences"]);
    let warned = said(&shown);
    assert!(warned.contains("2 systems: a correlation says nothing of fewer than 3"), "{warned}");
    let shown = String::from_utf8(shown.stdout).expect("text");
    for part in [
        // A line goes through any two points.
        "fi: 2 systems, Pearson -, Spearman -, Kendall -\n",
        "fi: 4 responses",
        "fi: 2 people, Krippendorff's alpha",
        "x and y: 4 responses, kappa",
        "judge 1, people 0.50",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    for (medium, out) in [("25", "before.jsonl"), ("99", "after.jsonl")] {
        let judged = polypaca(
            folder.path(),
            &[
                "judge",
                "--responses",
                "responses.jsonl",
                "--judge",
                "reference",
                "--out",
                out,
                "--medium",
                medium,
                "--good",
                "99.5",
            ],
        );
        assert!(judged.status.success(), "{}", said(&judged));
    }
    let drift = lines(folder.path(), &["agree", "--drift", "before.jsonl", "after.jsonl", "--json"]);
    assert_eq!((&drift[0]["compared"], &drift[0]["only_once"]), (&json!(4), &json!(0)));
    assert_eq!(polypaca(folder.path(), &["agree"]).status.code(), Some(2));
}

/// The message of a command that must end with this code.
fn ends(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = polypaca(folder, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    said(&output)
}

const JUDGE: [&str; 7] =
    ["judge", "--responses", "responses.jsonl", "--out", "ratings.jsonl", "--judge", "reference"];

#[test]
fn what_is_wrong_with_a_judging_is_named_before_it_begins() {
    let folder = folder();
    let folder = folder.path();
    let model = ["--model", "x"];
    let openai = ["--endpoint", "http://127.0.0.1:9", "--model", "x"];
    let of = |judge: &'static str| [&JUDGE[..6], &[judge]].concat();
    for (arguments, expected) in [
        (
            [&of("reference")[..], &model].concat(),
            "--model: expected --judge openai or local, found reference",
        ),
        ([&of("openai")[..], &openai, &["--medium", "nan"]].concat(), "--medium: expected --judge reference"),
        (
            [&of("openai")[..], &openai, &["--template", "chat"]].concat(),
            "--template: expected --judge local",
        ),
        ([&of("local")[..], &model, &["--tries", "2"]].concat(), "--tries: expected --judge openai"),
        ([&of("openai")[..], &openai, &["x"]].concat(), "--model: expected each model once, found x twice"),
        ([&of("reference")[..], &["--good", "nan"]].concat(), "NaN"),
    ] {
        let said = ends(folder, &arguments, 2);
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(!folder.join("ratings.jsonl").exists(), "{arguments:?}");
    }

    let text = fs::read_to_string(folder.join("responses.jsonl")).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    fs::write(folder.join("ratings.jsonl"), format!("{text}\n")).expect("the folder takes files");
    let said = ends(folder, &JUDGE, 2);
    assert!(said.contains("ratings.jsonl, line 1: expected a judge's verdict"), "{said}");
    fs::remove_file(folder.join("ratings.jsonl")).expect("a file");

    fs::write(folder.join("responses.jsonl"), format!("{text}\n{}\n", lines[0])).expect("a file");
    let said = ends(folder, &JUDGE, 2);
    assert!(said.contains("responses.jsonl, line 6") && said.contains("responses.jsonl, line 1"), "{said}");

    // A system alone cannot be compared; this is found before the model is asked.
    fs::write(folder.join("responses.jsonl"), lines[0]).expect("the folder takes files");
    let pairwise = [&of("openai")[..], &openai, &["--pairwise"]].concat();
    let said = ends(folder, &pairwise, 2);
    assert!(said.contains("two systems' responses"), "{said}");

    // What was left out is told by the exit code, too.
    fs::write(folder.join("responses.jsonl"), format!("{}\nnothing\n", lines[0])).expect("a file");
    let said = ends(folder, &JUDGE, 1);
    assert!(said.contains("line 2"), "{said}");
    fs::write(folder.join("responses.jsonl"), "nothing\n").expect("the folder takes files");
    let said = ends(folder, &JUDGE, 1);
    assert!(said.contains("expected responses, found none"), "{said}");
    fs::write(folder.join("responses.jsonl"), "").expect("the folder takes files");
    ends(folder, &JUDGE, 2);
}

#[test]
fn two_judgings_do_not_write_one_file() {
    let folder = folder();
    let path = folder.path().join("ratings.jsonl.lock");
    fs::write(&path, "process 1 on another").expect("the folder takes files");
    let lock = fs::File::open(&path).expect("a file");
    lock.try_lock().expect("nobody has it");
    let said = ends(folder.path(), &JUDGE, 1);
    assert!(said.contains("ratings.jsonl is in use") && said.contains("process 1 on another"), "{said}");
    drop(lock);
    ends(folder.path(), &JUDGE, 0);
    assert!(!path.exists());
}

#[test]
fn a_table_that_contradicts_itself_and_draws_without_end_are_refused() {
    let folder = folder();
    let folder = folder.path();
    let table = "system,language,judge,human\na,en,1,2\nb,en,2,1\n";
    fs::write(folder.join("marks.csv"), table).expect("the folder takes files");
    for draws in ["0", "100000000000"] {
        let said = ends(folder, &["agree", "marks.csv", "--draws", draws], 2);
        assert!(said.contains("--draws"), "{said}");
    }
    let said = ends(folder, &["agree", "marks.csv", "--judge", "x"], 2);
    assert!(said.contains("--judge"), "{said}");
    fs::write(folder.join("marks.csv"), format!("{table}a,en,3,1\n")).expect("the folder takes files");
    let said = ends(folder, &["agree", "marks.csv"], 2);
    assert!(said.contains("marks.csv, line 4") && said.contains("line 2"), "{said}");
    ends(folder, &["identify", "responses.jsonl", "--word-lists", ".", "--sweep", "0.5"], 2);
}

/// The device that is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_fails_and_a_terminal_that_is_gone_stops_nothing() {
    let folder = folder();
    let folder = folder.path();
    let full = || fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let identify = Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .args(["identify", "responses.jsonl"])
        .stdout(full())
        .output()
        .expect("the program starts");
    assert_eq!(identify.status.code(), Some(1), "{}", said(&identify));
    assert!(said(&identify).contains("No space left"), "{}", said(&identify));

    // As many that what is done is told on the way; what the earlier file ended in is warned of.
    let line = |id| {
        json!({"id": format!("{id}"), "language": "fi", "prompt": "Kuka?", "system": "a", "response": "Minä.",
            "reference": "Minä."})
        .to_string()
    };
    let lines: Vec<String> = (0..250).map(line).collect();
    fs::write(folder.join("responses.jsonl"), lines.join("\n")).expect("the folder takes files");
    fs::write(folder.join("ratings.jsonl"), "{\"system\": ").expect("the folder takes files");
    let judge = Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .args(JUDGE)
        .stderr(full())
        .status()
        .expect("the program starts");
    assert!(judge.success(), "{judge}");
    let ratings = fs::read_to_string(folder.join("ratings.jsonl")).expect("ratings");
    assert_eq!(ratings.lines().count(), 250);
}
