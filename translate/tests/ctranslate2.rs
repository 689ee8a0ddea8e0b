//! A real trained model through CTranslate2, against CTranslate2's own Python package (`oracle/ctranslate2_goldens.py`).

#![cfg(feature = "ctranslate2")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use endpoint::cache::Cache;
use instructions::record::Record;
use serde::Deserialize;
use translate::checks::Checks;
use translate::ctranslate2::{ModelSettings, ModelTranslator};
use translate::run::{Room, TranslateSettings, translate_records};
use translate::translator::{Direction, Silent};

#[derive(Deserialize)]
struct Goldens {
    beams: BTreeMap<String, BTreeMap<String, String>>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("goldens/ctranslate2.json")).unwrap()
}

fn model() -> Option<PathBuf> {
    let root = std::env::var_os("POLYPACA_REAL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/real"), PathBuf::from);
    let path = root.join("mt/aren-transliteration");
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn a_trained_model_gives_what_the_python_package_gives() {
    let Some(folder) = model() else { return };
    for (beams, words) in goldens().beams {
        let settings =
            ModelSettings { beams: beams.parse().unwrap(), threads: 1, ..ModelSettings::default() };
        let translator = ModelTranslator::open(&folder, settings).unwrap();
        let (words, expected): (Vec<String>, Vec<String>) = words.into_iter().unzip();
        assert_eq!(translator.translations(&words).unwrap(), expected, "{beams} beams");
        eprintln!("{beams} beams: {} of {} words equal", words.len(), words.len());
    }
}

#[test]
fn a_set_goes_through_the_model_and_its_words_are_the_packages() {
    let Some(folder) = model() else { return };
    let translator = ModelTranslator::open(&folder, ModelSettings::default()).unwrap();
    let words = &goldens().beams["2"];
    let records: Vec<Record> = words
        .keys()
        .enumerate()
        .map(|(number, word)| Record {
            id: number.to_string(),
            language: "ar".parse().unwrap(),
            instruction: word.clone(),
            input: String::new(),
            output: word.clone(),
            origin: None,
        })
        .collect();
    let cache = Cache::in_memory().unwrap();
    let room = Room { translator: &translator, cache: &cache, identify: None, progress: &Silent };
    let direction = Direction { source: "ar".parse().unwrap(), target: "en".parse().unwrap() };
    let checks = Checks { looping: false, ..Checks::default() };
    let settings = TranslateSettings { checks, ..TranslateSettings::new(direction) };
    let translated = translate_records(&records, &room, &settings).unwrap();
    assert!(translated.dropped.is_empty(), "{:?}", translated.dropped);
    for (row, (_, expected)) in translated.rows.iter().zip(words) {
        assert_eq!(row.output, *expected);
    }
}

#[test]
fn a_folder_without_a_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = ModelTranslator::open(folder.path(), ModelSettings::default()).unwrap_err().to_string();
    assert!(error.contains("model.bin") && error.contains("expected a CTranslate2 model"), "{error}");
    std::fs::write(folder.path().join("model.bin"), b"no model").unwrap();
    let error = ModelTranslator::open(folder.path(), ModelSettings::default()).unwrap_err().to_string();
    assert!(error.contains("no tokenizer"), "{error}");
}
