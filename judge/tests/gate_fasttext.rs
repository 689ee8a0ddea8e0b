//! The fastText predictor against fastText's own answers.

use std::path::PathBuf;

use judge::fasttext::{Model, Scratch};

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
const TABLE: &[(&str, &str, &[(&str, usize)])] = &[
    ("eng", "en", &[("en", 1994), ("fr", 1), ("de", 1), ("es", 1)]),
    ("bul", "bg", &[("bg", 1947), ("ru", 39), ("mk", 7), ("uk", 2)]),
    ("ces", "cs", &[("cs", 1970), ("pl", 8), ("sl", 6), ("fr", 3)]),
    ("zho", "zh", &[("zh", 1929), ("ja", 47), ("wuu", 4), ("pl", 3)]),
    ("deu", "de", &[("de", 1993), ("lt", 1), ("sv", 1), ("fr", 1)]),
    ("fin", "fi", &[("fi", 1988), ("it", 4), ("en", 2), ("fr", 1)]),
    ("fra", "fr", &[("fr", 1996), ("eo", 1)]),
    ("rus", "ru", &[("ru", 1996), ("fr", 1)]),
    ("spa", "es", &[("es", 1981), ("en", 6), ("pt", 4), ("fr", 2)]),
    ("nob", "no", &[("no", 1641), ("da", 228), ("sv", 56), ("nn", 52)]),
];

#[test]
fn all_lines_of_ten_languages_are_counted_as_by_fasttext() {
    let Some(model) = real("lid/lid.176.ftz") else { return };
    let model = Model::open(&model).expect("a model");
    let mut scratch = Scratch::default();
    for (file, _, expected) in TABLE {
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
