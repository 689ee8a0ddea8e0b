//! The program as a user runs it: a very small experiment, killed at any moment, and input that is wrong.

mod tiny;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use tiny::{EXPERIMENT, assert_same, polypaca, run, said, write};

#[test]
fn killed_at_fifty_moments_a_run_ends_with_the_tables_of_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let whole = folder.path().join("whole");
    let start = Instant::now();
    let output = run(&experiment, &whole);
    let took = start.elapsed();
    assert!(output.status.success(), "{}", said(&output));
    let again = run(&experiment, &whole);
    assert!(String::from_utf8_lossy(&again.stdout).contains("0 cells done"), "{}", said(&again));

    // Each run goes on from the last. When one has come to its end, the next begins anew.
    let mut kills = 0_u32;
    let mut ended = 0_u32;
    let mut moments = Moments(2024);
    while kills < 50 || ended == 0 {
        let broken = folder.path().join(format!("broken-{ended}"));
        let mut child = polypaca()
            .arg("run")
            .arg(&experiment)
            .arg("--out")
            .arg(&broken)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // After the fifty, it may come to its end.
        if kills < 50 {
            std::thread::sleep(took.mul_f64(moments.next() * 0.4));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.code().is_none() {
            kills += 1;
        } else {
            assert!(status.success(), "{status}");
            assert_same(&broken, &whole);
            ended += 1;
        }
    }
}

/// Numbers from 0 to 1 without a pattern, the same in every run of the test (Knuth's MMIX generator).
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(u32::MAX >> 1)
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

    // The mixes of its language list it.
    let rows = fs::read_to_string(&path).unwrap();
    fs::write(&path, rows.replacen("Se on 6.", "", 1)).unwrap();
    let out = folder.path().join("out");
    let output = run(&experiment, &out);
    assert!(output.status.success(), "{}", said(&output));
    let manifests = fs::read_dir(out.join("store/cells")).unwrap().filter_map(|cell| {
        let manifest = fs::read(cell.unwrap().path().join("manifest.json")).ok()?;
        Some(serde_json::from_slice::<Value>(&manifest).unwrap())
    });
    let mut of_finnish = 0;
    for manifest in manifests.filter(|manifest| manifest["languages"].get("fi").is_some()) {
        of_finnish += 1;
        let left_out = manifest["left_out"].as_array().unwrap();
        let has = |reason: &str, id: &str| {
            let of_reason = |left: &&Value| left["reason"].as_str().unwrap().starts_with(reason);
            left_out.iter().filter(of_reason).any(|left| left["ids"][0].as_str().unwrap().ends_with(id))
        };
        assert!(has("could not be read: has no `output`", "fi.json, row 3"), "{left_out:?}");
        assert!(has("the output is empty", "5"), "{left_out:?}");
    }
    assert!(of_finnish > 0);
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
    assert!(!lines_of(&out.join("report/responses.jsonl")).is_empty());
    assert!(lines_of(&out.join("report/ratings.jsonl")).iter().all(|rating| rating["unrated"].is_string()));
    // With a judge that is there, no tuning and no answer is made again.
    fs::write(&experiment, EXPERIMENT).unwrap();
    let output = run(&experiment, &out);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!said(&output).contains("tuning/"), "{}", said(&output));
}

#[test]
fn what_a_run_leaves_goes_to_people_and_their_marks_stand_beside_the_judges() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let output = run(&write(folder.path()), &out);
    assert!(output.status.success(), "{}", said(&output));
    let (responses, ratings) = (out.join("report/responses.jsonl"), out.join("report/ratings.jsonl"));
    let scores = lines_of(&out.join("report/scores.jsonl"));
    let rated = lines_of(&ratings);
    assert_eq!(lines_of(&responses).len(), scores.len());
    let of = |line: &Value, id: &str| {
        [&line["system"], &line["language"], &line[id], &line["rating"]].map(Value::clone)
    };
    let told = |lines: &[Value], id: &str| -> Vec<_> { lines.iter().map(|line| of(line, id)).collect() };
    assert_eq!(told(&rated, "id"), told(&scores, "prompt_id"));

    let database = folder.path().join("rate.sqlite");
    let chosen =
        [scores[0]["system"].as_str().unwrap(), scores[scores.len() - 1]["system"].as_str().unwrap()];
    let draw = |systems: &[&str]| {
        let mut command = polypaca();
        command
            .args(["--json", "rate", "draw", "--database"])
            .arg(&database)
            .arg("--responses")
            .arg(&responses);
        command.arg("--system").args(systems).output().unwrap()
    };
    let output = draw(&["nobody"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("no response of the system \"nobody\"; expected some of \""),
        "{}",
        said(&output)
    );
    let output = draw(&chosen);
    assert!(output.status.success(), "{}", said(&output));
    let drawn: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_chosen = scores.iter().filter(|score| chosen.contains(&score["system"].as_str().unwrap()));
    assert_eq!(drawn["responses"], of_chosen.count());

    // Nobody has marked anything yet: the table is empty, but the ratings are those of the responses drawn.
    let table = folder.path().join("marks.csv");
    let mut export = polypaca();
    export.args(["rate", "export", "--database"]).arg(&database).arg("--ratings").arg(&ratings);
    let output = export.arg("--out").arg(&table).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let output = polypaca().arg("identify").arg(&responses).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

fn lines_of(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the run wrote it");
    text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}
