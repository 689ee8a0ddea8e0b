//! The fastText predictor against fastText's own answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use judge::fasttext::{Model, Scratch};
use proptest::prelude::*;

/// fastText's float32 figures, written with six digits; the sums of its vectors and ours may differ in the last one.
const PROBABILITY_TOLERANCE: f32 = 1e-4;

fn real(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("POLYPACA_REAL")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/real"), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent", path.display());
    None
}

fn lines(language: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(real(&format!("ntrex/{language}.txt"))?).expect("readable");
    Some(text.lines().map(str::to_owned).collect())
}

#[test]
fn the_first_two_hundred_lines_of_ten_languages_are_labelled_as_by_fasttext() {
    let (Some(model), Some(answers)) = (real("lid/lid.176.ftz"), real("lid/derived_top1_ntrex.tsv")) else {
        return;
    };
    let model = Model::open(&model).expect("a model");
    let answers = std::fs::read_to_string(answers).expect("readable");
    let mut scratch = Scratch::default();
    let mut compared = 0;
    let mut current = (String::new(), Vec::new());
    for answer in answers.lines().skip(1) {
        let fields: Vec<&str> = answer.split('\t').collect();
        let [file, line, label, probability] = fields[..] else { panic!("four columns: {answer}") };
        if current.0 != file {
            let Some(lines) = lines(file) else { return };
            current = (file.to_owned(), lines);
        }
        let line: usize = line.parse().expect("a line's number");
        let found = model.predict_best(&current.1[line - 1], &mut scratch).expect("a label");
        assert_eq!(model.labels()[found.label], format!("__label__{label}"), "{file} {line}");
        let probability: f32 = probability.parse().expect("a probability");
        assert!((found.probability - probability).abs() < PROBABILITY_TOLERANCE, "{file} {line}: {found:?}");
        compared += 1;
    }
    assert_eq!(compared, 2000);
}

/// What fastText's own program answers for all 1,997 lines of each file.
const TABLE: &[(&str, &[(&str, usize)])] = &[
    ("eng", &[("en", 1994), ("fr", 1), ("de", 1), ("es", 1)]),
    ("bul", &[("bg", 1947), ("ru", 39), ("mk", 7), ("uk", 2)]),
    ("ces", &[("cs", 1970), ("pl", 8), ("sl", 6), ("fr", 3)]),
    ("zho", &[("zh", 1929), ("ja", 47), ("wuu", 4), ("pl", 3)]),
    ("deu", &[("de", 1993), ("lt", 1), ("sv", 1), ("fr", 1)]),
    ("fin", &[("fi", 1988), ("it", 4), ("en", 2), ("fr", 1)]),
    ("fra", &[("fr", 1996), ("eo", 1)]),
    ("rus", &[("ru", 1996), ("fr", 1)]),
    ("spa", &[("es", 1981), ("en", 6), ("pt", 4), ("fr", 2)]),
    ("nob", &[("no", 1641), ("da", 228), ("sv", 56), ("nn", 52)]),
];

#[test]
fn all_lines_of_ten_languages_are_counted_as_by_fasttext() {
    let Some(model) = real("lid/lid.176.ftz") else { return };
    let model = Model::open(&model).expect("a model");
    let mut scratch = Scratch::default();
    for (file, expected) in TABLE {
        let Some(lines) = lines(file) else { return };
        assert_eq!(lines.len(), 1997);
        let mut counts = vec![0; model.labels().len()];
        for line in &lines {
            counts[model.predict_best(line, &mut scratch).expect("a label").label] += 1;
        }
        for (label, count) in *expected {
            let label = format!("__label__{label}");
            let place = model.labels().iter().position(|known| *known == label).expect("a label of lid.176");
            assert_eq!(counts[place], *count, "{file}: {label}");
        }
    }
}

#[derive(serde::Deserialize)]
struct Goldens {
    texts: Vec<String>,
    /// For each model and text.
    answers: BTreeMap<String, Vec<Answer>>,
}

#[derive(serde::Deserialize)]
struct Answer {
    /// The label given when asked for one: among equal scores, it can be another than the first of five.
    alone: String,
    /// The five best labels and their probabilities, best first.
    best: Vec<(String, f32)>,
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/fasttext")
}

fn read_goldens() -> Goldens {
    let text = std::fs::read_to_string(goldens().join("answers.json")).expect("readable");
    serde_json::from_str(&text).expect("goldens")
}

#[test]
fn models_of_every_kind_answer_as_fasttext_does() {
    let Goldens { texts, answers } = read_goldens();
    let mut scratch = Scratch::default();
    for (name, answers) in &answers {
        let model = Model::open(&goldens().join(name)).expect("a model");
        for (text, answer) in texts.iter().zip(answers) {
            let found = model.predict(text, 5, 0.0, &mut scratch);
            let labels: Vec<&str> = found.iter().map(|found| model.labels()[found.label].as_str()).collect();
            let expected: Vec<&str> = answer.best.iter().map(|(label, _)| label.as_str()).collect();
            assert_eq!(labels, expected, "{name}: {text:?}");
            for (found, (label, probability)) in found.iter().zip(&answer.best) {
                let difference = (found.probability - probability).abs();
                assert!(
                    difference < PROBABILITY_TOLERANCE,
                    "{name}: {text:?}: {label}: {found:?}, {probability}"
                );
            }
            let alone = model.predict_best(text, &mut scratch).expect("a label");
            assert_eq!(model.labels()[alone.label], answer.alone, "{name}: {text:?}");
            assert_eq!(alone.probability, found[0].probability, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_negative_threshold_leaves_out_no_label() {
    let model = Model::open(&goldens().join("output-norms.ftz")).expect("a model");
    let found = model.predict("bread", usize::MAX, -1.0, &mut Scratch::default());
    let labels: std::collections::BTreeSet<usize> = found.iter().map(|found| found.label).collect();
    assert_eq!(labels.len(), model.labels().len());
    assert!(found.is_sorted_by(|a, b| a.probability >= b.probability));
}

#[test]
fn every_truncation_is_an_error() {
    for name in read_goldens().answers.keys() {
        let bytes = std::fs::read(goldens().join(name)).expect("readable");
        // The head and the dictionary at every byte, the long rows of numbers at some.
        let ends = (0..1500.min(bytes.len())).chain((1500..bytes.len()).step_by(97)).chain([bytes.len() - 1]);
        for end in ends {
            assert!(Model::from_bytes(bytes[..end].to_vec()).is_err(), "{name} cut at {end}");
        }
    }
}

#[test]
fn what_is_no_model_is_named() {
    let error = |bytes: &[u8]| Model::from_bytes(bytes.to_vec()).err().expect("an error").to_string();
    assert!(error(b"").contains("ends at byte 0 inside the magic number"), "{}", error(b""));
    assert!(error(b"PK\x03\x04 a zip").contains("expected 793712314"), "{}", error(b"PK\x03\x04 a zip"));
    let missing = Model::open(&goldens().join("none.bin")).err().expect("an error").to_string();
    assert!(missing.contains("none.bin"), "{missing}");

    let bytes = std::fs::read(goldens().join("hierarchical.bin")).expect("readable");
    let changed = |offset: usize, value: i32| {
        let mut bytes = bytes.clone();
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        error(&bytes)
    };
    // dim, loss, model, bucket, maxn, the dictionary's size, the number of words.
    for (offset, value, what) in [
        (8, i32::MAX, "wide"),
        (8, -1, "dim"),
        (32, 9, "loss"),
        (36, 1, "word vectors predict no labels"),
        (40, 0, "bucket"),
        (40, i32::MAX, "rows of the input matrix"),
        (48, i32::MAX, "maxn"),
        (64, i32::MAX, "the dictionary's size"),
        (68, -5, "nwords"),
    ] {
        let message = changed(offset, value);
        assert!(message.contains(what), "{what}: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A changed file is an error or a model that answers something: never a panic, an endless loop or a huge
    /// allocation.
    #[test]
    fn a_changed_model_never_panics(
        which in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<bool>(), any::<u8>()), 1..6),
    ) {
        let names: Vec<String> = read_goldens().answers.into_keys().collect();
        let mut bytes = std::fs::read(goldens().join(which.get(&names))).expect("readable");
        for (place, in_head, value) in changes {
            let end = if in_head { 200 } else { bytes.len() };
            let place = place.index(end);
            bytes[place] = value;
        }
        if let Ok(model) = Model::from_bytes(bytes) {
            let mut scratch = Scratch::default();
            for text in ["", "My sister waits for the bus", "我们的司机 ждёт"] {
                let _ = model.predict_best(text, &mut scratch);
                let _ = model.predict(text, 5, -1.0, &mut scratch);
            }
        }
    }
}
