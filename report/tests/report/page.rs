//! What stands in the page and its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::synthetic;
use base64::Engine;
use report::records::{SCORES_FILE, Score};
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
