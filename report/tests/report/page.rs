//! What stands in the page and its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::synthetic;
use base64::Engine;
use report::records::{SCORES_FILE, SYSTEMS_FILE, Score, ScoreStatus, System};
use serde_json::{Value, json};

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

/// Every number that the page shows stands in the JSON: as it is written, or in full and rounded on the page.
#[test]
fn every_number_of_the_page_is_in_the_json() {
    let (_folder, json, page) = built(&synthetic::Size::small());
    let mut known = BTreeSet::new();
    collect(&json, &mut known);
    let text = visible(&page);
    let shown: BTreeSet<String> = numbers(&text).collect();
    let strange: Vec<&String> = shown.difference(&known).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(shown.len() > 150, "{}", shown.len());
}

fn collect(value: &Value, known: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => known.extend(numbers(text)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, known)),
        Value::Object(values) => values.values().for_each(|value| collect(value, known)),
        Value::Number(number) => {
            let number = number.as_f64().unwrap().abs();
            // A total, above a bar, a share of 100.
            known.extend([
                format!("{number:.1}"),
                format!("{number:.0}"),
                format!("{:.0}", (number * 100.0).round()),
            ]);
        }
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

/// The page's text and its drawings': no scripts, styles or tags.
fn visible(page: &str) -> String {
    let mut text = page.to_owned();
    for tag in ["script", "style"] {
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

/// Behind its numbers the page carries every line of the scores as it is.
#[test]
fn every_response_is_behind_a_number() {
    let (folder, _, page) = built(&synthetic::Size::small());
    let mut left: BTreeMap<(String, String, String), Score> = lines::<Score>(folder.path(), SCORES_FILE)
        .into_iter()
        .map(|score| ((score.system.clone(), score.language.clone(), score.prompt_id.clone()), score))
        .collect();
    for packet in page.split("data-packet=\"").skip(1) {
        let (key, rest) = packet.split_once("\">").unwrap();
        let language = key.rsplit('|').next().unwrap();
        let packed =
            base64::engine::general_purpose::STANDARD.decode(rest.split_once('<').unwrap().0).unwrap();
        let packet: Value = serde_json::from_reader(flate2::read::GzDecoder::new(packed.as_slice())).unwrap();
        for system in packet["systems"].as_array().unwrap() {
            for (id, response) in system["responses"].as_object().unwrap() {
                let key = (system["id"].as_str().unwrap().to_owned(), language.to_owned(), id.clone());
                let Some(score) = left.remove(&key) else { continue };
                assert_eq!(packet["prompts"][id]["prompt"], score.prompt);
                let raw = json!([
                    score.response,
                    score.gate,
                    score.label,
                    score.probability,
                    score.rating,
                    score.reason,
                    score.explanation,
                    score.status
                ]);
                assert_eq!(response, &raw);
            }
        }
    }
    assert!(left.is_empty(), "{} responses are not on the page", left.len());
}

/// With the bundle alone someone else gets the same bytes.
#[test]
fn the_bundle_gives_the_same_report() {
    let (folder, _, _) = built(&synthetic::Size::small());
    let packed = fs::read(folder.path().join(report::bundle::BUNDLE_FILE)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice())).unpack(elsewhere.path()).unwrap();
    let unpacked = elsewhere.path().join("bundle");
    let bundle: Value = serde_json::from_slice(&fs::read(unpacked.join("bundle.json")).unwrap()).unwrap();
    for part in ["versions", "hashes", "settings", "seeds", "hardware", "licences"] {
        assert!(!bundle[part].is_null(), "{part}");
    }
    let again = tempfile::tempdir().unwrap();
    let summary = report::build(&unpacked, again.path(), &options()).unwrap();
    let json = fs::read(summary.json).unwrap();
    assert_eq!(json, fs::read(folder.path().join("report.json")).unwrap());
    assert_eq!(bundle["report"]["blake3"], blake3::hash(&json).to_hex().to_string());
    let second = fs::read(again.path().join(report::bundle::BUNDLE_FILE)).unwrap();
    assert!(second == packed, "the bundle of the bundle is another");
}

/// What is not there is named where its number would stand, and is never a zero.
#[test]
fn what_is_missing_is_no_zero() {
    let (folder, json, page) = built(&synthetic::Size { prompts: 8, ..synthetic::Size::paper() });
    let blocks = json["grid"]["blocks"].as_array().unwrap();
    let block = blocks.iter().find(|block| block["title"] == "birch-1b, full").unwrap();
    let row = block["rows"].as_array().unwrap().iter().find(|row| row["recipe"] == "downsampled").unwrap();
    for cell in row["cells"].as_array().unwrap() {
        assert_eq!((cell["gated"].as_str(), cell["raw"].as_str()), (Some("failed"), Some("")), "{cell}");
    }
    assert!(
        page.contains("<td class=\"empty\">") && page.contains("<sup>†</sup>") && page.contains("1 unrated")
    );
    let csv = fs::read_to_string(folder.path().join("figures/scores-full-birch.csv")).unwrap();
    assert!(csv.contains("Bulgarian · български,,downsampled,0.0,,,,empty"), "{csv}");
    assert!(page.contains("what it took is not known: downsampled on birch-1b by full."));
    let totals = fs::read_to_string(folder.path().join("tables/totals.csv")).unwrap();
    assert!(totals.contains("birch-1b,Birch,1000000000,full,downsampled,en,true,empty,8,,,,,,3,3,0,0"));
    let latex = fs::read_to_string(folder.path().join("tables/totals.tex")).unwrap();
    assert!(latex.contains("downsampled & \\emph{failed} & \\emph{failed}"));
}

/// A report of the small experiment whose runs are all there and whose ratings and gates `mark` gives, told the recipe
/// and the prompt's number.
fn marked(mark: fn(&str, u64) -> (f64, u8)) -> (tempfile::TempDir, Value) {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &synthetic::Size::small());
    let recipes: BTreeMap<String, String> = lines::<System>(folder.path(), SYSTEMS_FILE)
        .into_iter()
        .map(|system| {
            let english = system.languages == ["en"];
            let recipe = system.recipe.unwrap_or_else(|| "untuned".to_owned());
            (system.id, if english { "english".to_owned() } else { recipe })
        })
        .collect();
    let scores = lines::<Score>(folder.path(), SCORES_FILE).into_iter().map(|mut score| {
        let (rating, gate) = mark(&recipes[&score.system], score.prompt_id.parse().unwrap());
        (score.rating, score.gate, score.status) = (Some(rating), Some(gate), ScoreStatus::Rated);
        serde_json::to_string(&score).unwrap() + "\n"
    });
    fs::write(folder.path().join(SCORES_FILE), scores.collect::<String>()).unwrap();
    let summary = report::build(folder.path(), folder.path(), &options()).unwrap();
    let json = serde_json::from_str(&fs::read_to_string(&summary.json).unwrap()).unwrap();
    (folder, json)
}

/// The finding that contains these words: its text and its detail.
fn finding(json: &Value, words: &str) -> (String, String) {
    let findings = json["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["text"].as_str().unwrap().contains(words));
    let found = found.unwrap_or_else(|| panic!("{words}: {findings:?}"));
    (found["text"].as_str().unwrap().to_owned(), found["detail"].as_str().unwrap().to_owned())
}

/// Resamples of a difference that is the same on every prompt are all alike: there is no standard error, so no p, and
/// nothing to say of what the prompts could find.
#[test]
fn a_difference_without_spread_has_no_p() {
    let constant = |recipe: &str, _| match recipe {
        "monolingual" => (3.0, 1),
        "untuned" => (1.0, 1),
        _ => (2.1, 1),
    };
    let (folder, json) = marked(constant);
    let cases = json["results"]["cases"].as_array().unwrap();
    let pairs: Vec<&Value> = cases.iter().flat_map(|case| case["pairs"].as_array().unwrap()).collect();
    assert!(pairs.iter().all(|pair| pair["detectable"].is_null()));
    let (equal, apart): (Vec<&Value>, Vec<&Value>) =
        pairs.into_iter().partition(|pair| pair["difference"]["value"] == 0.0);
    assert!(!equal.is_empty() && !apart.is_empty());
    assert!(equal.iter().all(|pair| pair["p"] == 1.0 && pair["p_corrected"] == 1.0));
    assert!(apart.iter().all(|pair| pair["p"].is_null() && pair["p_corrected"].is_null()));

    let (text, _) = finding(&json, "find a difference");
    assert!(text.contains("cannot be told") && !text.contains("0.0"), "{text}");
    for row in json["comparisons"]["rows"].as_array().unwrap() {
        let ends: Vec<&str> =
            row.as_array().unwrap()[9..].iter().map(|cell| cell.as_str().unwrap()).collect();
        assert!(ends == ["–", "–", "–"] || ends == ["1.0000", "1.0000", "–"], "{row}");
    }
    let csv = fs::read_to_string(folder.path().join("tables/comparisons.csv")).unwrap();
    let ends = csv.lines().skip(1).all(|row| row.ends_with(",true,,,") || row.ends_with(",false,1.0,1.0,"));
    assert!(ends, "{csv}");
    let latex = fs::read_to_string(folder.path().join("tables/comparisons.tex")).unwrap();
    assert!(latex.contains("yes & -- & -- & --") && !latex.contains("0.0001"), "{latex}");
}

/// Where some differences have a spread and some have none, the first alone are counted, and the others told.
#[test]
fn what_prompts_can_find_is_counted_where_differences_have_a_spread() {
    let mixed = |recipe: &str, prompt: u64| match recipe {
        "multilingual" => (1.0 + (prompt % 3) as f64, 1),
        "monolingual" => (3.0, 1),
        _ => (2.0, 1),
    };
    let (_folder, json) = marked(mixed);
    let cases = json["results"]["cases"].as_array().unwrap();
    let pairs = cases.iter().flat_map(|case| case["pairs"].as_array().unwrap());
    let recipes: Vec<&Value> = pairs.filter(|pair| pair["right"] != "untuned").collect();
    let spread = recipes.iter().filter(|pair| !pair["detectable"].is_null()).count();
    assert!(spread > 0 && spread < recipes.len());
    let (text, detail) = finding(&json, "find a difference");
    assert!(text.contains(&format!("Of {spread} differences")) && !text.contains("about 0.0"), "{text}");
    assert!(detail.contains(&format!("{} further differences", recipes.len() - spread)), "{detail}");
}

/// Recipes from which the gate takes as much are neither better nor worse than each other.
#[test]
fn the_gates_ties_are_told_as_ties() {
    let (_folder, json) = marked(|_, _| (2.0, 1));
    let (text, _) = finding(&json, "The language gate");
    assert_eq!(text, "The language gate takes as much from every recipe: 0.0.");
    for (mark, expected) in [
        (
            (|recipe, prompt| match recipe {
                "multilingual" => (3.0, (prompt % 2) as u8),
                "english" => (2.0, u8::from(prompt % 4 != 0)),
                _ => (2.0, 1),
            }) as fn(&str, u64) -> (f64, u8),
            "most from multilingual, 30.0 of its raw 60.0, and least from downsampled, 0.0 of 40.0.",
        ),
        (
            |recipe, prompt| match recipe {
                "multilingual" => (2.0, (prompt % 2) as u8),
                "english" => (1.0, 0),
                _ => (2.0, 1),
            },
            "most from multilingual and english alike, 20.0 of their raw 40.0 and 20.0, and least from downsampled, \
             0.0 of 40.0.",
        ),
        (
            |recipe, prompt| (2.0, if recipe == "multilingual" { (prompt % 2) as u8 } else { 1 }),
            "most from multilingual, 20.0 of its raw 40.0, and least from monolingual, english and downsampled \
             alike, 0.0 of 40.0, 40.0 and 40.0.",
        ),
    ] {
        let (_folder, json) = marked(mark);
        let (text, _) = finding(&json, "The language gate");
        assert_eq!(text, format!("The language gate takes {expected}"));
    }
}

/// What is equal is highest together, and not the last of it alone.
#[test]
fn a_highest_total_that_several_have_is_counted_for_each() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &synthetic::Size { prompts: 6, ..synthetic::Size::paper() });
    let scores = lines::<Score>(folder.path(), SCORES_FILE).into_iter().map(|mut score| {
        (score.rating, score.gate, score.status) = (Some(1.0), Some(1), ScoreStatus::Rated);
        serde_json::to_string(&score).unwrap() + "\n"
    });
    fs::write(folder.path().join(SCORES_FILE), scores.collect::<String>()).unwrap();
    let summary = report::build(folder.path(), folder.path(), &options()).unwrap();
    let json: Value = serde_json::from_str(&fs::read_to_string(&summary.json).unwrap()).unwrap();
    let (text, detail) = finding(&json, "language × base model × method cases");
    assert!(text.contains("monolingual in 0, multilingual in 0"), "{text}");
    // 15 base models × 2 methods × 6 seen languages; english is monolingual in English, and downsampled failed once.
    let highest =
        "equal ones counted for each: monolingual 180, multilingual 180, downsampled 174 and english 150.";
    assert!(detail.contains(highest), "{detail}");
}

/// Untuned base models alone are beaten by nothing, and not in 0 of 0 cases.
#[test]
fn nothing_is_said_of_tunings_that_are_not_there_yet() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &synthetic::Size::small());
    let systems = lines::<System>(folder.path(), SYSTEMS_FILE);
    let untuned = systems.iter().find(|system| system.recipe.is_none()).unwrap();
    let text = fs::read_to_string(folder.path().join(SCORES_FILE)).unwrap();
    let own = format!("{:?}", untuned.id);
    let kept: Vec<&str> = text.lines().filter(|line| line.contains(&own)).collect();
    fs::write(folder.path().join(SCORES_FILE), kept.join("\n") + "\n").unwrap();
    let summary = report::build(folder.path(), folder.path(), &options()).unwrap();
    let said = |words: &str| summary.findings.iter().any(|finding| finding.contains(words));
    assert!(said("No recipe has a score in a seen language yet.") && !said("Tuning beats"));
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
