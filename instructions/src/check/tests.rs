//! Faults planted in real rows, and those that real files are known to have.

use std::collections::HashMap;

use serde_json::Map;

use super::*;
use crate::prompt::read_prompts;
use crate::recipe::Origin;
use crate::record::read_records;
use crate::testing::real;

fn language(code: &str) -> Language {
    code.parse().expect("a known code")
}

fn set(name: &str, code: &str) -> Option<Set> {
    let path = real("instructions")?.join(format!("{name}.json"));
    let records = read_records(&path, &language(code)).expect("readable").items;
    Some(Set { language: language(code), origin: Origin::Native, records })
}

fn sets(all: impl IntoIterator<Item = Set>) -> Sets {
    let mut sets = Sets::new();
    all.into_iter().for_each(|set| sets.add(set));
    sets
}

/// A small identifier of the test's own: which language's news use a text's runs of three characters most.
struct Trigrams(Vec<(Language, HashMap<[char; 3], f64>)>);

impl Trigrams {
    fn new() -> Option<Self> {
        let folder = real("ntrex")?;
        let files =
            [("eng", "en"), ("fin", "fi"), ("fra", "fr"), ("spa", "es"), ("deu", "de"), ("nob", "no")];
        let model = files.map(|(file, code)| {
            let text = std::fs::read_to_string(folder.join(format!("{file}.txt"))).expect("text");
            let mut counts: HashMap<[char; 3], f64> = HashMap::new();
            let all = trigrams(&text);
            let total = all.len() as f64;
            all.into_iter().for_each(|trigram| *counts.entry(trigram).or_default() += 1.0);
            (language(code), counts.into_iter().map(|(key, count)| (key, (count / total).ln())).collect())
        });
        Some(Self(model.into()))
    }

    fn identify(&self, text: &str) -> Option<(Language, f64)> {
        const UNSEEN: f64 = -14.0;
        let trigrams = trigrams(text);
        let score = |model: &HashMap<[char; 3], f64>| -> f64 {
            trigrams.iter().map(|trigram| model.get(trigram).copied().unwrap_or(UNSEEN)).sum()
        };
        let best = self.0.iter().map(|(language, model)| (score(model), language));
        best.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, language)| (language.clone(), 1.0))
    }
}

fn trigrams(text: &str) -> Vec<[char; 3]> {
    let letters: Vec<char> = text
        .to_lowercase()
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty())
        .flat_map(|word| std::iter::once(' ').chain(word.chars().collect::<Vec<_>>()))
        .collect();
    letters.windows(3).map(|window| [window[0], window[1], window[2]]).collect()
}

/// Rows that faults are planted in.
const PLANTED_IN: usize = 2000;

/// Plants one kind of fault in 200 rows of the Finnish set, and gives recall and precision of what a check finds that
/// it had not found before.
fn planted(
    kind: FaultKind,
    options: &CheckOptions,
    english: &Set,
    finnish: &Set,
    plant: impl Fn(usize, &mut Record, &Record) -> bool,
) -> (f64, f64) {
    let flagged = |finnish: &Set| -> BTreeSet<String> {
        let report = check(&sets([english.clone(), finnish.clone()]), options);
        let faults = report.faults.into_iter();
        faults
            .filter(|fault| fault.kind == kind && fault.language == finnish.language)
            .map(|fault| fault.id)
            .collect()
    };
    let before = flagged(finnish);
    let mut faulty = finnish.clone();
    let mut ids = BTreeSet::new();
    // Spread over the set by a stride that has no factor in common with their number.
    for step in 0..faulty.records.len() {
        let row = (step * 1_709 + 1) % faulty.records.len();
        let id = faulty.records[row].id.clone();
        if ids.len() < 200
            && !before.contains(&id)
            && plant(row, &mut faulty.records[row], &english.records[row])
        {
            ids.insert(id);
        }
    }
    assert_eq!(ids.len(), 200, "{kind}: rows to plant in");
    let found: BTreeSet<String> = flagged(&faulty).difference(&before).cloned().collect();
    let hits = found.intersection(&ids).count() as f64;
    let (recall, precision) = (hits / 200.0, hits / found.len().max(1) as f64);
    println!("{kind}: recall {recall:.3}, precision {precision:.3}");
    (recall, precision)
}

fn as_windows_1252(text: &str) -> String {
    // The C1 controls stand for the few bytes that Windows-1252 has no character for.
    text.bytes().map(char::from).collect()
}

#[test]
fn planted_faults_are_found_in_real_rows() {
    let (Some(mut english), Some(mut finnish), Some(trigrams)) =
        (set("dolly_en", "en"), set("dolly_fi", "fi"), Trigrams::new())
    else {
        return;
    };
    // A part of the set, so that the test takes seconds.
    english.records.truncate(PLANTED_IN);
    finnish.records.truncate(PLANTED_IN);
    let path = real("prompts").expect("beside the sets").join("test_fi.jsonl");
    let prompts = read_prompts(&path, Some(&language("fi"))).expect("readable").items;
    let identify = |text: &str| trigrams.identify(text);
    let options = CheckOptions { prompts: &prompts, ..CheckOptions::default() };
    let judged = CheckOptions { identify: Some(&identify), ..options.clone() };
    let earlier = finnish.clone();
    let long = |text: &str| text.chars().count() >= COMPARED_CHARACTERS;
    let figures = [
        planted(FaultKind::Empty, &options, &english, &finnish, |row, record, _| {
            if row % 2 == 0 {
                record.output.clear();
            } else {
                record.instruction = " \n".to_owned();
            }
            true
        }),
        planted(FaultKind::Duplicate, &options, &english, &finnish, |row, record, _| {
            let Some(other) = row.checked_sub(7).map(|other| &earlier.records[other]) else { return false };
            *record = Record { id: record.id.clone(), output: format!("{} ", other.output), ..other.clone() };
            true
        }),
        planted(FaultKind::RepeatedInstruction, &options, &english, &finnish, |row, record, _| {
            let Some(other) = row.checked_sub(7).map(|other| &earlier.records[other]) else { return false };
            *record = Record { id: record.id.clone(), output: record.output.clone(), ..other.clone() };
            true
        }),
        planted(FaultKind::WrongLanguage, &judged, &english, &finnish, |_, record, other| {
            record.output.clone_from(&other.output);
            long(&record.output)
        }),
        planted(FaultKind::TemplateLeftover, &options, &english, &finnish, |row, record, _| {
            let leftover =
                ["\n\n### Instruction:\n", "</s>", "<|im_end|>", "[/INST] ", "### Response:"][row % 5];
            record.output.push_str(leftover);
            true
        }),
        planted(FaultKind::BrokenEncoding, &options, &english, &finnish, |row, record, _| {
            let broken = if row % 2 == 0 {
                as_windows_1252(&record.output)
            } else {
                record.output.replacen(|c: char| !c.is_ascii(), "\u{FFFD}", 1)
            };
            let changed = broken != record.output;
            record.output = broken;
            changed
        }),
        planted(FaultKind::TooLong, &options, &english, &finnish, |_, record, _| {
            let fits = long(&record.output);
            if fits {
                record.output = format!("{} ", record.output).repeat(5);
            }
            fits
        }),
        planted(FaultKind::TooShort, &options, &english, &finnish, |_, record, other| {
            let fits = long(&record.output) && long(&other.output);
            if fits {
                record.output = record.output.chars().take(record.output.chars().count() / 5).collect();
            }
            fits
        }),
        planted(FaultKind::TestOverlap, &options, &english, &finnish, |row, record, _| {
            let prompt = &prompts[row % prompts.len()].prompt;
            record.instruction =
                if row % 2 == 0 { prompt.to_uppercase() } else { format!("Hei! {prompt} Kiitos.") };
            row % 2 == 0 || words(prompt).len() >= 5
        }),
        planted(FaultKind::SameOutput, &options, &english, &finnish, |_, record, other| {
            record.output.clone_from(&other.output);
            true
        }),
        planted(FaultKind::PlaceholderInput, &options, &english, &finnish, |row, record, _| {
            record.input = ["N/A", "<no input>", "Ei syötettä.", "None"][row % 4].to_owned();
            true
        }),
    ];
    for (kind, (recall, precision)) in FaultKind::ALL.into_iter().zip(figures) {
        assert!(recall >= 0.95 && precision >= 0.9, "{kind}: recall {recall}, precision {precision}");
    }
}

#[test]
fn known_oddities_of_real_sets_are_counted() {
    let (Some(english), Some(finnish)) = (set("dolly_en", "en"), set("dolly_fi", "fi")) else { return };
    let report = check(&sets([english, finnish]), &CheckOptions::default());
    let count = |report: &CheckReport, code: &str, kind| {
        report.counts.get(&language(code)).and_then(|counts| counts.get(&kind)).copied().unwrap_or(0)
    };
    assert_eq!(count(&report, "fi", FaultKind::SameOutput), 237);
    let repeated = |code| {
        count(&report, code, FaultKind::Duplicate) + count(&report, code, FaultKind::RepeatedInstruction)
    };
    println!("dolly: en {} repeated, fi {} repeated\n{report}", repeated("en"), repeated("fi"));
    // 44 to the byte; one more differs in white space alone.
    assert_eq!((count(&report, "en", FaultKind::Duplicate), repeated("en")), (1, 45));
    for (name, code, empty, duplicates) in
        [("alpaca_zh_10k", "zh", 6, 1), ("alpaca_en_demo", "en", 0, 14), ("alpaca_zh_demo", "zh", 0, 8)]
    {
        let report = check(&sets(set(name, code)), &CheckOptions::default());
        println!("{name}\n{report}");
        let found = (count(&report, code, FaultKind::Empty), count(&report, code, FaultKind::Duplicate));
        assert_eq!(found, (empty, duplicates), "{name}");
    }
}

/// Rows of a language from an id on; their outputs are long enough to be compared.
fn numbered(code: &str, ids: std::ops::Range<usize>, output: impl Fn(usize) -> String) -> Set {
    let records = ids.map(|id| Record {
        id: id.to_string(),
        language: language(code),
        instruction: format!("{code} asks {id}"),
        input: String::new(),
        output: output(id),
        origin: None,
    });
    Set { language: language(code), origin: Origin::Native, records: records.collect() }
}

#[test]
fn sets_are_compared_with_the_first_that_shares_ids() {
    let output = |id: usize| "x".repeat(if id == 103 { 600 } else { 60 });
    let faults = |all: Vec<Set>| -> Vec<(String, String, FaultKind)> {
        let report = check(&sets(all), &CheckOptions::default());
        let faults = report.faults.into_iter();
        let parallel = faults.filter(|fault| {
            matches!(fault.kind, FaultKind::TooLong | FaultKind::TooShort | FaultKind::SameOutput)
        });
        parallel.map(|fault| (fault.language.to_string(), fault.id, fault.kind)).collect()
    };
    let too_long = |code: &str| vec![(code.to_owned(), "103".to_owned(), FaultKind::TooLong)];
    let even = |code: &'static str, ids| numbered(code, ids, move |_| code.repeat(30));
    let finnish = || numbered("fi", 100..110, output);
    // English shares no id with them, and does not hide that they share theirs.
    assert_eq!(faults(vec![even("en", 0..10), even("ru", 100..110), finnish()]), too_long("fi"));
    assert_eq!(faults(vec![even("en", 100..110), even("ru", 0..10), finnish()]), too_long("fi"));
    assert_eq!(faults(vec![finnish(), even("en", 100..110)]), too_long("fi"), "English before others");
    let short = vec![("ru".to_owned(), "103".to_owned(), FaultKind::TooShort)];
    assert_eq!(faults(vec![finnish(), even("ru", 100..110)]), short, "one is held against the other");
}

#[test]
fn the_fertility_of_a_language_is_that_of_all_its_sets() {
    let long = numbered("fi", 0..3, |_| "word ".repeat(97));
    let translated = Set { origin: Origin::Translated, ..numbered("fi", 0..1, |_| "w".to_owned()) };
    let tokens = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::len).sum();
    let options = CheckOptions { tokens: Some(&tokens), ..CheckOptions::default() };
    let report = check(&sets([long, translated]), &options);
    // Three times 97 words of four letters, one of one, and four times `fi asks 0`.
    let expected = f64::from(3 * 97 * 4 + 1 + 4 * 7) / f64::from(3 * 97 + 1 + 4 * 3);
    assert_eq!(report.fertility[&language("fi")], expected);
}

#[test]
fn a_cleaned_copy_lists_what_it_dropped_and_mended() {
    let record = |id: &str, input: &str, output: &str| Record {
        id: id.to_owned(),
        language: language("en"),
        instruction: format!("Say {id}."),
        input: input.to_owned(),
        output: output.to_owned(),
        origin: None,
    };
    let records = vec![
        record("a", "N/A", "a"),
        record("b", "", ""),
        record("c", "", "c"),
        record("d", "", "What is up now then?"),
        record("e", "", "\u{200B}\u{FEFF}"),
    ];
    let sets = sets([Set { language: language("en"), origin: Origin::Native, records }]);
    let prompts = [Prompt {
        id: "p".to_owned(),
        language: language("en"),
        prompt: "Say d!".to_owned(),
        response_language: None,
        extra: Map::new(),
    }];
    let tokens = |text: &str| text.len();
    let options = CheckOptions { prompts: &prompts, tokens: Some(&tokens), ..CheckOptions::default() };
    let report = check(&sets, &options);
    assert!(report.fertility[&language("en")] > 1.0);
    let (copy, cleaned) = clean(&sets, &report, &FaultKind::DROPPED);
    let kept: Vec<(&str, &str)> =
        copy.iter().flat_map(|set| &set.records).map(|row| (row.id.as_str(), row.input.as_str())).collect();
    assert_eq!(kept, [("a", ""), ("c", "")]);
    let listed: Vec<_> =
        cleaned.iter().map(|row| (row.id.as_str(), row.dropped, row.reasons.join("; "))).collect();
    assert_eq!(
        listed,
        [
            ("a", false, "placeholder_input: the input is `N/A`".to_owned()),
            ("b", true, "empty: the output is empty".to_owned()),
            ("d", true, "test_overlap: most of the test prompt p is in it".to_owned()),
            ("e", true, "empty: the output is empty".to_owned()),
        ]
    );
}
