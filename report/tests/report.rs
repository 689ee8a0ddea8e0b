//! A report as a user builds it, against its own records.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

mod synthetic;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use report::records::{SCORES_FILE, Score, System};
use serde_json::Value;

fn options() -> report::Options {
    report::Options { resamples: 200, png: false, ..report::Options::default() }
}

fn built(size: &synthetic::Size) -> (tempfile::TempDir, Value, String) {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), size);
    let summary = report::build(folder.path(), folder.path(), &options()).unwrap();
    let json = serde_json::from_str(&fs::read_to_string(&summary.json).unwrap()).unwrap();
    let page = fs::read_to_string(&summary.page).unwrap();
    (folder, json, page)
}

fn lines<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> Vec<T> {
    let text = fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Sums taken the plain way, from the raw lines, agree with every total of the JSON.
#[test]
fn totals_are_those_of_the_records() {
    let (folder, json, _) = built(&synthetic::Size::small());
    let scores: Vec<Score> = lines(folder.path(), SCORES_FILE);
    let mut sums: BTreeMap<(String, String), (f64, f64, f64)> = BTreeMap::new();
    for score in &scores {
        if let (Some(rating), Some(gate)) = (score.rating, score.gate) {
            let sum = sums.entry((score.system.clone(), score.language.clone())).or_default();
            sum.0 += rating * f64::from(gate);
            sum.1 += rating;
            sum.2 += 1.0;
        }
    }
    let systems: Vec<System> = lines(folder.path(), "systems.jsonl");
    let mut compared = 0;
    for line in json["results"]["lines"].as_array().unwrap() {
        for cell in line["cells"].as_array().unwrap() {
            let language = cell["language"].as_str().unwrap();
            let totals: Vec<(f64, f64)> = systems
                .iter()
                .filter(|system| {
                    let recipe = line["recipe"].as_str().unwrap();
                    let english = system.languages == ["en"];
                    match recipe {
                        "untuned" => system.recipe.is_none(),
                        "english" => english,
                        "monolingual" => system.languages == [language],
                        other => system.recipe.as_deref() == Some(other),
                    }
                })
                .filter_map(|system| sums.get(&(system.id.clone(), language.to_owned())))
                .map(|(gated, raw, rated)| (gated * 20.0 / rated, raw * 20.0 / rated))
                .collect();
            if totals.is_empty() {
                assert!(cell["gated"].is_null() && cell["raw"].is_null(), "{cell}");
                continue;
            }
            let count = totals.len() as f64;
            let gated = totals.iter().map(|total| total.0).sum::<f64>() / count;
            let raw = totals.iter().map(|total| total.1).sum::<f64>() / count;
            // Sums of small numbers in another order: the last bits of a double.
            assert!((cell["gated"]["value"].as_f64().unwrap() - gated).abs() < 1e-9, "{cell}");
            assert!((cell["raw"].as_f64().unwrap() - raw).abs() < 1e-9, "{cell}");
            assert!((cell["dropped"].as_f64().unwrap() - (raw - gated)).abs() < 1e-9, "{cell}");
            compared += 1;
        }
    }
    assert_eq!(compared, 24);
}

#[test]
fn what_was_never_planned_is_absent_and_what_failed_is_named() {
    let (_folder, json, page) = built(&synthetic::Size::small());
    let lines = json["results"]["lines"].as_array().unwrap();
    let monolingual = lines.iter().find(|line| line["recipe"] == "monolingual").unwrap();
    let bengali = monolingual["cells"].as_array().unwrap().last().unwrap();
    assert_eq!(bengali["state"], "absent");
    assert!(bengali["gated"].is_null());
    assert!(page.contains("1 of 3 runs failed"));
    assert!(page.contains("out of memory at update 3"));
    assert!(page.contains("invented ratings: a synthetic experiment"));
}

/// Every number that the page shows stands in the JSON.
#[test]
fn every_number_of_the_page_is_in_the_json() {
    let (_folder, json, page) = built(&synthetic::Size::small());
    let mut known = BTreeSet::new();
    collect(&json, &mut known);
    let text = visible(&page);
    let shown: BTreeSet<String> = numbers(&text).collect();
    let strange: Vec<&String> = shown.difference(&known).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(shown.len() > 60, "{}", shown.len());
}

fn collect(value: &Value, known: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => known.extend(numbers(text)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, known)),
        Value::Object(values) => values.values().for_each(|value| collect(value, known)),
        _ => {}
    }
}

/// Runs of digits, with a point between them.
fn numbers(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
    words
        .map(|word| word.trim_matches('.').to_owned())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .into_iter()
}

/// The page's text: no scripts, styles, drawings or tags.
fn visible(page: &str) -> String {
    let mut text = page.to_owned();
    for tag in ["script", "style", "svg"] {
        while let Some(start) = text.find(&format!("<{tag}")) {
            let close = format!("</{tag}>");
            let end = text[start..].find(&close).unwrap() + start + close.len();
            text.replace_range(start..end, "");
        }
    }
    let mut plain = String::new();
    let mut inside = false;
    for letter in text.chars() {
        match letter {
            '<' => inside = true,
            '>' => {
                inside = false;
                plain.push(' ');
            }
            letter if !inside => plain.push(letter),
            _ => {}
        }
    }
    plain.replace("&#x27;", "'").replace("&#x2f;", "/").replace("&#39;", "'")
}

#[test]
fn text_of_the_records_is_never_markup() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &synthetic::Size::small());
    let path = folder.path().join("experiment.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("A synthetic experiment", "<script>alert(1)</script>")).unwrap();
    let summary = report::build(folder.path(), folder.path(), &options()).unwrap();
    assert!(!fs::read_to_string(summary.page).unwrap().contains("<script>alert(1)"));
}

#[test]
fn a_bad_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &synthetic::Size::small());
    let path = folder.path().join(SCORES_FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"gate\":1", "\"gate\":2", 1)).unwrap();
    let error = report::build(folder.path(), folder.path(), &options()).unwrap_err();
    assert!(format!("{error:#}").contains("scores.jsonl:1: gate: found 2, expected 0 or 1"), "{error:#}");
}

/// The paper's figures: 1, 2 and 7 have a panel a seen language; 3 a method and unseen language; 4 a method and family;
/// 8 a language.
#[test]
fn the_papers_size_has_the_papers_panels() {
    let (folder, json, _) = built(&synthetic::Size { prompts: 8, ..synthetic::Size::paper() });
    let panels: BTreeMap<&str, (usize, u64)> = json["figures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|figure| {
            let count = figure["panels"].as_array().unwrap().len();
            (figure["id"].as_str().unwrap(), (count, figure["columns"].as_u64().unwrap()))
        })
        .collect();
    for method in ["lora", "full"] {
        assert_eq!(panels[format!("scores-{method}-alder").as_str()], (6, 3));
        assert_eq!(panels[format!("families-{method}").as_str()].0, 8);
    }
    assert_eq!(panels["unseen-birch"], (4, 2));
    assert_eq!(panels["gate"], (6, 3));
    assert_eq!(panels["seeds-lora"], (8, 4));
    let svg = fs::read_to_string(folder.path().join("figures/scores-lora-alder.svg")).unwrap();
    assert!(["български", "中文"].iter().all(|name| svg.contains(name)));
    let svg = fs::read_to_string(folder.path().join("figures/unseen-alder.svg")).unwrap();
    assert!(svg.contains("বাংলা"));
}
