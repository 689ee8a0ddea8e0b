//! The gate as its users meet it: the paper's Table 2, files of responses, settings, pass rates.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use instructions::language::Language;
use judge::confusion::{ConfusionCheck, ConfusionMatrix, WordLists};
use judge::gate::{GateLine, GateRules, SetAside, Short, read_gate_rows, score, sweep, write_gate_lines};
use judge::identify::{FastText, Identified, Identifier, Lingua, disagreements};

fn language(code: &str) -> Language {
    code.parse().expect("a code")
}

fn lid() -> Option<PathBuf> {
    let root = std::env::var_os("POLYPACA_REAL")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/real"), PathBuf::from);
    let path = root.join("lid/lid.176.ftz");
    if !path.exists() {
        println!("lid.176.ftz is skipped: {} is absent", path.display());
    }
    path.exists().then_some(path)
}

/// Gives the label and the probability that a text names: `da 0.5`.
struct Told;

impl Identifier for Told {
    fn identify(&self, text: &str) -> Identified {
        let mut parts = text.split_whitespace();
        let label = parts.next().unwrap_or("und").to_owned();
        let probability = parts.next().and_then(|part| part.parse().ok()).unwrap_or(1.0);
        Identified { language: Language::from_label(&label), label, probability }
    }

    fn knows(&self, _: &Language) -> bool {
        true
    }
}

/// Takes every text for English.
struct AllEnglish;

impl Identifier for AllEnglish {
    fn identify(&self, _: &str) -> Identified {
        Identified { language: Language::english(), label: "en".to_owned(), probability: 1.0 }
    }

    fn knows(&self, _: &Language) -> bool {
        true
    }
}

#[test]
fn a_chinese_prompt_answered_in_english_and_rated_3_scores_0() {
    let response = "Sure, I would be happy to help you plan your wedding. Can you tell me a little bit more about \
                    your wedding plans and what you are looking for in a wedding planner?";
    let mut identifiers: Vec<Box<dyn Identifier>> = vec![Box::new(Lingua::new(None).expect("lingua"))];
    if let Some(path) = lid() {
        identifiers.push(Box::new(FastText::open(&path, None).expect("a model")));
    }
    for identifier in &identifiers {
        let gated = GateRules::default().check(&**identifier, response, &language("zh"));
        assert_eq!(gated.identified.language.code(), "en");
        assert_eq!(score(3.0, gated.passes), 0.0);
        let answered = "当然可以！请告诉我婚礼的日期、预算和大概的人数，我来帮你安排。";
        assert_eq!(
            score(3.0, GateRules::default().check(&**identifier, answered, &language("zh")).passes),
            3.0
        );
    }
}

#[test]
fn norwegian_accepts_bokmal_and_not_nynorsk() {
    let rules = GateRules::default();
    for (label, passes) in
        [("no", true), ("nb", true), ("nob_Latn", true), ("nn", false), ("nno_Latn", false), ("da", false)]
    {
        assert_eq!(rules.check(&Told, label, &language("no")).passes, passes, "{label}");
    }
    for (label, passes) in
        [("zh", true), ("zho_Hans", true), ("zho_Hant", true), ("yue", false), ("ja", false)]
    {
        assert_eq!(rules.check(&Told, label, &language("zh")).passes, passes, "{label}");
    }
}

#[test]
fn empty_and_short_responses_go_by_the_stated_rule() {
    let english = language("en");
    for empty in ["", " \n\t", "\u{0}"] {
        let rules = GateRules { shortest: 3, short: Short::Pass, ..GateRules::default() };
        assert!(!rules.check(&Told, empty, &english).passes);
    }
    let invisible =
        "\u{2060}\u{feff}\u{200b}\u{200d}\u{200e}\u{200f}\u{ad}\u{3164}\u{115f}\u{2800}\u{fe0f}\u{e0020}";
    for sign in invisible.chars().map(String::from).chain([invisible.to_owned()]) {
        assert!(!GateRules::default().check(&AllEnglish, &sign, &english).passes, "{sign:?}");
        let visible = format!("{sign}a");
        assert!(GateRules::default().check(&AllEnglish, &visible, &english).passes, "{visible:?}");
    }
    let rules = |short| GateRules { shortest: 3, short, ..GateRules::default() };
    assert!(rules(Short::Pass).check(&Told, "42", &english).passes);
    assert!(!rules(Short::Fail).check(&Told, "en", &english).passes);
    assert!(rules(Short::Identify).check(&Told, "en", &english).passes);
}

#[test]
fn thresholds_are_swept() {
    let (english, danish) = (language("en"), language("da"));
    let responses = [("en 0.9", &english), ("en 0.4", &english), ("en 0.99", &danish)];
    let points = sweep(&GateRules::default(), &Told, &responses, &[0.0, 0.5, 0.95]);
    let passed: Vec<usize> = points.iter().map(|point| point.passed).collect();
    assert_eq!(passed, [2, 1, 0]);
}

#[test]
fn code_addresses_and_quotations_are_set_aside_only_when_asked() {
    let text = "Voici le code :\n```python\nprint('hello')\n```\nVoir https://example.org/a?b et « good morning » ou `x = 1`.";
    assert_eq!(SetAside::default().apply(text), text);
    let all = SetAside { code: true, urls: true, quotations: true };
    let rest: Vec<String> = all.apply(text).split_whitespace().map(str::to_owned).collect();
    assert_eq!(rest.join(" "), "Voici le code : Voir et ou .");
    let code = SetAside { code: true, ..SetAside::default() };
    assert_eq!(code.apply("a\n```\nnever closed").trim(), "a");
    // Backquotes behind the first ones: no block, whose end would be that of the text.
    assert!(
        code.apply("```ls -l``` näyttää tiedostot.\nJa muuta.").ends_with("näyttää tiedostot.\nJa muuta.")
    );
    // Nothing but code is identified as it stands.
    let rules = GateRules { set_aside: all, ..GateRules::default() };
    assert_eq!(rules.identify(&Told, "```\nen\n```").label, "```");
}

#[test]
fn a_file_of_responses_becomes_a_line_each_and_bad_lines_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("responses.jsonl");
    let text = "{\"id\":\"a\",\"language\":\"no\",\"response\":\"nb\\n0.75\",\"system\":\"s\",\"prompt\":\"?\"}\r\n\
                {\"id\":7,\"language\":\"no\",\"response_language\":\"en\",\"response\":\"nb\"}\n\n\
                {\"id\":\"c\",\"response\":\"\"}\n{\"id\":\"d\"}\nnothing\n";
    std::fs::write(&path, text).expect("written");
    let mut out = Vec::new();
    let (rows, bad) = read_gate_rows(&path, None).expect("readable");
    write_gate_lines(rows, &GateRules::default(), &Told, &mut out).expect("written");
    let out = String::from_utf8(out).expect("text");
    let lines: Vec<GateLine> = out.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    assert_eq!(
        out.lines().next(),
        Some(r#"{"id":"a","label":"nb","language":"nb","probability":0.75,"gate":1}"#)
    );
    assert_eq!(lines.iter().map(|line| line.gate).collect::<Vec<_>>(), [Some(1), Some(0), None]);
    assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [5, 6]);
    assert!(bad[0].to_string().contains("missing field `response`"), "{}", bad[0]);
}

#[test]
fn identify_equals_fasttext_on_the_flattened_text_and_candidates_restrict_it() {
    let Some(path) = lid() else { return };
    let free = FastText::open(&path, None).expect("a model");
    let text = "Jeg har aldri\nsett en slik\r\nhest før.";
    assert_eq!(free.identify(text), free.identify(&text.replace('\n', " ")));
    // A line feed would end fastText's line: the second line is read too.
    assert_eq!(free.identify("ok\n我们明天一起去北京看朋友。").language.code(), "zh");

    let candidates = [language("no"), language("en")];
    let restricted = FastText::open(&path, Some(&candidates)).expect("a model");
    for text in ["Hvor er du?", "你好", "Bonjour à tous", ""] {
        assert!(["no", "en"].contains(&restricted.identify(text).label.as_str()), "{text}");
    }
    let text = "This is an English sentence.";
    assert_eq!(restricted.identify(text), free.identify(text));

    let lingua = Lingua::new(None).expect("lingua");
    let found = disagreements(&[&free, &lingua], &[text, "1234"]);
    assert_eq!(found.iter().map(|found| found.text).collect::<Vec<_>>(), [1]);
}

#[test]
fn pass_rates_by_line_and_by_word() {
    let (russian, english) = (language("ru"), language("en"));
    let lingua = Lingua::new(Some(&[russian.clone(), english.clone()])).expect("lingua");
    let lists = WordLists::new();
    let check = ConfusionCheck::new(&russian, &lingua, GateRules::default(), &lists).expect("a check");
    let responses = [
        "Сегодня хорошая погода, и мы пойдём гулять.\nOk.",
        "Сегодня хорошая погода, и мы пойдём гулять.\nThe weather is fine today, let us walk.",
        "Сегодня хорошая weather, и мы пойдём гулять в парк.",
        "Мы живём в Берлине рядом с музеем Pergamon уже три года.",
        "",
    ];
    let counts = check.count(responses);
    assert_eq!((counts.responses, counts.pass_by_line, counts.pass_by_word), (5, 3, 2));
    assert_eq!(counts.line_pass_rate(), Some(0.6));
    assert_eq!(counts.word_pass_rate(), Some(2.0 / 3.0));
    let expected = 2.0 * 0.6 * (2.0 / 3.0) / (0.6 + 2.0 / 3.0);
    assert!((counts.language_confusion_pass_rate().expect("a rate") - expected).abs() < 1e-12);

    // In one script, lists tell words apart.
    let german = language("de");
    let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<HashSet<_>>();
    let lists =
        HashMap::from([(english, list(&["weather", "name", "fine"])), (german.clone(), list(&["name"]))]);
    let check = ConfusionCheck::new(&german, &lingua, GateRules::default(), &lists).expect("a check");
    assert_eq!(check.foreign_words("Das weather ist heute schön, mein Name ist 北京."), ["weather", "北京"]);
}

/// A response that a reader sees nothing of fails by line as it fails the gate.
#[test]
fn what_nobody_sees_passes_neither_by_line_nor_by_word() {
    let russian = language("ru");
    let lingua = Lingua::new(Some(&[russian.clone(), language("en")])).expect("lingua");
    let lists = WordLists::new();
    let check = ConfusionCheck::new(&russian, &lingua, GateRules::default(), &lists).expect("a check");
    let unseen = ["", " \n", "\u{200b}", "\u{feff}\n\u{2060}", "\u{3164}\u{ad}", "\u{2800}", "\u{0}"];
    let counts = check.count(unseen);
    assert_eq!((counts.responses, counts.pass_by_line, counts.pass_by_word), (7, 0, 0));
    for response in unseen {
        assert!(!GateRules::default().check(&lingua, response, &russian).passes, "{response:?}");
    }
    // Too short to tell its language, but there.
    assert!(check.passes_by_line("42"));
}

#[test]
fn the_confusion_matrix_counts_what_the_gate_accepts() {
    let mut matrix = ConfusionMatrix::default();
    for label in ["no", "nb", "nn", "da"] {
        matrix.add(&language("no"), &Language::from_label(label));
    }
    assert_eq!(matrix.accuracy(&language("no")), Some(0.5));
    assert_eq!(matrix.count(&language("no"), &language("da")), 1);
    assert_eq!(matrix.accuracy(&language("en")), None);
}
