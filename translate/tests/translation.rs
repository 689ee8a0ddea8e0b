//! Translation against a server that shows every kind of fault, and a translator that returns its input.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use endpoint::cache::Cache;
use endpoint::price::Price;
use endpoint::settings::EndpointSettings;
use instructions::language::Language;
use instructions::record::{Record, read_records};
use translate::checks::{Checks, FaultKind};
use translate::layout::{Layout, Split};
use translate::libre_translate::{LibreSettings, LibreTranslator};
use translate::openai::OpenAiTranslator;
use translate::run::{Breaking, Identify, Room, TranslateSettings, Translated, estimate, translate_records};
use translate::translator::{Direction, Give, Progress, Silent, Translator};

mod common;
use common::{Plan, Reaction, StandIn, backwards};

const FAULTS: [Reaction; 11] = [
    Reaction::Echo,
    Reaction::Error,
    Reaction::TooMany,
    Reaction::Truncate,
    Reaction::Half,
    Reaction::Loop,
    Reaction::Swap,
    Reaction::DropMasks,
    Reaction::Empty,
    Reaction::Malformed,
    Reaction::Hang,
];

fn direction() -> Direction {
    Direction { source: Language::english(), target: "fi".parse().unwrap() }
}

/// A name in letters: numbers are masked, and all rows would be one text.
fn name(number: usize) -> String {
    let letter = |value: usize| char::from(b'a' + (value % 26) as u8);
    format!("Kassandra{}{}", letter(number), letter(number / 26))
}

fn record(number: usize) -> Record {
    let name = name(number);
    let input = if number.is_multiple_of(3) {
        String::new()
    } else {
        format!(
            "- Use `code {number}` for {name}, please.\n- See https://example.org/{number} for more of {name}."
        )
    };
    Record {
        id: number.to_string(),
        language: Language::english(),
        instruction: format!("Tell {name} about the weather of {} in [CITY].", 1900 + number),
        input,
        output: format!(
            "The weather was {number} degrees and rather pleasant for {name} and the people of the town.\n\n```\nlet x = \
             {number};\n```\n\n1. **Mornings** were cold for {name} and the streets were empty.\n2. Evenings were warm, as \
             {name} remembers."
        ),
        origin: None,
    }
}

fn records(count: usize) -> Vec<Record> {
    (0..count).map(record).collect()
}

/// What a field is when every piece of it went through the server well.
fn expected(field: &str, split: Split) -> String {
    let layout = Layout::of(field, split);
    let form = translate::mask::MaskForm::Brackets;
    let pieces: Vec<String> =
        layout.pieces().map(|piece| piece.unmasked(&backwards(&piece.masked(form)), form).unwrap()).collect();
    layout.rejoined(&pieces, &direction().source, &direction().target)
}

fn settings() -> EndpointSettings {
    EndpointSettings {
        tries: 2,
        backoff: Duration::from_millis(2),
        timeout: Duration::from_millis(400),
        ..EndpointSettings::default()
    }
}

fn openai(server: &StandIn, cache: &Arc<Cache>) -> OpenAiTranslator {
    OpenAiTranslator::new(&server.url(), "stand-in", None, 2000, settings(), Arc::clone(cache)).unwrap()
}

fn libre(server: &StandIn, cache: &Arc<Cache>) -> LibreTranslator {
    let own = LibreSettings { batch: 3, ..LibreSettings::default() };
    LibreTranslator::new(&server.url(), own, settings(), Arc::clone(cache)).unwrap()
}

/// Backwards English passes as Finnish; Han is Chinese; what has English words is English.
fn identify(text: &str) -> (Language, f32) {
    let code = if text.contains('這') {
        "zh"
    } else if text.split_whitespace().any(|word| matches!(word, "the" | "The" | "about" | "more")) {
        "en"
    } else {
        "fi"
    };
    (code.parse().unwrap(), 0.99)
}

fn run(translator: &dyn Translator, cache: &Cache, records: &[Record]) -> Translated {
    let room = Room { translator, cache, identify: Some(&identify as &Identify<'_>), progress: &Silent };
    translate_records(records, &room, &TranslateSettings::new(direction())).unwrap()
}

/// Every row is translated well or listed, and nothing else.
fn check(translated: &Translated, records: &[Record], split: Split) {
    let good: HashSet<&str> = translated.rows.iter().map(|row| row.id.as_str()).collect();
    let listed: HashSet<&str> = translated.dropped.iter().map(|row| row.id.as_str()).collect();
    assert!(good.is_disjoint(&listed));
    assert_eq!(good.len() + listed.len(), records.len());
    for row in &translated.rows {
        let source = &records[row.id.parse::<usize>().unwrap()];
        assert_eq!(row.language.code(), "fi");
        for (text, source) in [
            (&row.instruction, &source.instruction),
            (&row.input, &source.input),
            (&row.output, &source.output),
        ] {
            assert_eq!(*text, expected(source, split), "row {}", row.id);
        }
    }
    assert!(translated.dropped.iter().all(|row| !row.reason.is_empty() && row.field.is_some()));
}

/// A hash that is the same on every machine and in every run: FNV-1a.
fn fate(text: &str) -> usize {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        as usize
        >> 8
}

/// One text in three has faults: a third of these for as long as it is asked, each time another, the rest once.
fn faulty() -> Plan {
    Box::new(|text, time| {
        let fate = fate(text);
        let fault = FAULTS[(fate / 9 + time) % FAULTS.len()];
        match fate % 9 {
            0 => fault,
            3 | 6 if time < 1 => fault,
            _ => Reaction::Translate,
        }
    })
}

#[test]
fn with_every_fault_each_row_is_translated_or_listed_and_nothing_is_silently_wrong() {
    for protocol in ["openai", "libretranslate"] {
        let server = StandIn::start(faulty());
        let cache = Arc::new(Cache::in_memory().unwrap());
        let records = records(120);
        let translator: Box<dyn Translator> = if protocol == "openai" {
            Box::new(openai(&server, &cache))
        } else {
            Box::new(libre(&server, &cache))
        };
        let first = run(&*translator, &cache, &records);
        check(&first, &records, translator.split());
        eprintln!("{protocol}: {} rows translated, {:?} listed", first.rows.len(), first.reasons());
        assert!(!first.rows.is_empty() && !first.dropped.is_empty());

        // The server recovers: only what is missing is asked for, and every row comes through.
        server.change(Box::new(|_, _| Reaction::Translate));
        let before = server.times();
        let second = run(&*translator, &cache, &records);
        check(&second, &records, translator.split());
        assert_eq!(second.rows.len(), records.len(), "{:?}", second.dropped);
        assert!(second.known > 0);
        if protocol == "openai" {
            // A request is a text there: none that was translated well is asked for again.
            let again = server
                .times()
                .iter()
                .filter(|(text, (came, _))| {
                    before.get(*text).is_some_and(|(came_before, well)| *well > 0 && came > came_before)
                })
                .count();
            assert_eq!(again, 0);
        }
    }
}

#[test]
fn each_kind_of_fault_is_told_by_its_name() {
    for (reaction, kind) in [
        (Reaction::Echo, FaultKind::Untranslated),
        (Reaction::Error, FaultKind::Unanswered),
        (Reaction::TooMany, FaultKind::Unanswered),
        (Reaction::Truncate, FaultKind::Unanswered),
        (Reaction::Loop, FaultKind::Looping),
        (Reaction::Swap, FaultKind::WrongLanguage),
        (Reaction::Empty, FaultKind::Empty),
        (Reaction::Malformed, FaultKind::Unanswered),
        (Reaction::Hang, FaultKind::Unanswered),
        (Reaction::Half, FaultKind::WrongLength),
    ] {
        let server = StandIn::start(Box::new(move |_, _| reaction));
        let cache = Arc::new(Cache::in_memory().unwrap());
        let text = "Everybody in the small town was very fond of rain and snow and of long walks.";
        let row = Record { instruction: text.into(), input: String::new(), output: text.into(), ..record(1) };
        let translated = run(&openai(&server, &cache), &cache, &[row]);
        assert_eq!(translated.dropped.len(), 1, "{reaction:?}");
        assert_eq!(translated.dropped[0].fault, Some(kind), "{reaction:?}: {:?}", translated.dropped);
    }
    let server = StandIn::start(Box::new(|_, _| Reaction::DropMasks));
    let cache = Arc::new(Cache::in_memory().unwrap());
    let translated = run(&libre(&server, &cache), &cache, &records(1));
    assert_eq!(translated.dropped[0].fault, Some(FaultKind::Masks), "{:?}", translated.dropped);
}

/// Stops everything after some texts, as a kill does.
struct Killed<'a>(&'a dyn Translator, AtomicUsize);

impl Translator for Killed<'_> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn setting(&self) -> String {
        self.0.setting()
    }

    fn split(&self) -> Split {
        self.0.split()
    }

    fn translate(
        &self,
        texts: &[String],
        direction: &Direction,
        round: u32,
        progress: &dyn Progress,
        give: &mut Give<'_>,
    ) -> anyhow::Result<()> {
        self.0.translate(texts, direction, round, progress, &mut |index, reply| {
            anyhow::ensure!(self.1.fetch_sub(1, Ordering::Relaxed) > 1, "killed");
            give(index, reply)
        })
    }
}

#[test]
fn ended_at_any_moment_a_translation_goes_on_without_asking_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.sqlite");
    let server = StandIn::start(Box::new(|_, _| Reaction::Translate));
    let records = records(40);
    let mut runs = 0;
    let translated = loop {
        runs += 1;
        let cache = Arc::new(Cache::open(&path).unwrap());
        let translator = openai(&server, &cache);
        let killed = Killed(&translator, AtomicUsize::new(23));
        let room = Room { translator: &killed, cache: &cache, identify: None, progress: &Silent };
        if let Ok(translated) = translate_records(&records, &room, &TranslateSettings::new(direction())) {
            break translated;
        }
        assert!(runs < 100);
    };
    check(&translated, &records, Split { sentences: false, longest: 2000 });
    assert_eq!(translated.rows.len(), 40);
    assert!(runs > 3, "{runs} runs");
    // What was under way at a kill is asked for again: a text a worker, one told, and the one that was not kept.
    let again: usize = server.times().values().map(|(came, _)| came - 1).sum();
    assert!(again <= (runs - 1) * (EndpointSettings::default().concurrency + 2), "{again} in {runs} runs");
}

#[test]
fn a_round_trip_comes_back_in_its_language_and_rows_whose_task_breaks_go_where_they_are_sent() {
    let server = StandIn::start(Box::new(|_, _| Reaction::Translate));
    let cache = Arc::new(Cache::in_memory().unwrap());
    let mut records = records(3);
    records[1].instruction = "Write a limerick about a cat.".into();
    let translator = openai(&server, &cache);
    let room = Room { translator: &translator, cache: &cache, identify: None, progress: &Silent };
    let settings = TranslateSettings { round_trip: true, ..TranslateSettings::new(direction()) };
    let kept = translate_records(&records, &room, &settings).unwrap();
    assert_eq!(kept.rows, records, "backwards and backwards again");
    assert_eq!((kept.flagged.len(), kept.dropped.len()), (1, 0));
    for (breaking, passed, dropped) in [(Breaking::Pass, 1, 0), (Breaking::Drop, 0, 1)] {
        let settings = TranslateSettings { breaking, ..settings.clone() };
        let translated = translate_records(&records, &room, &settings).unwrap();
        assert_eq!((translated.rows.len(), translated.flagged.len()), (2, 1));
        assert_eq!((translated.passed.len(), translated.dropped.len()), (passed, dropped));
    }
}

#[test]
fn an_estimate_asks_nothing_and_a_cap_holds() {
    let server = StandIn::start(Box::new(|_, _| Reaction::Translate));
    let cache = Arc::new(Cache::in_memory().unwrap());
    let price = Some(Price { prompt: 1.0, completion: 2.0 });
    let priced = EndpointSettings { price, cap: Some(0.002), concurrency: 1, ..settings() };
    let make = |settings| {
        OpenAiTranslator::new(&server.url(), "m", None, 2000, settings, Arc::clone(&cache)).unwrap()
    };
    let translator = make(priced.clone());
    let records = records(20);
    let room = Room { translator: &translator, cache: &cache, identify: None, progress: &Silent };
    let settings = TranslateSettings::new(direction());
    let first = estimate(&records, &room, &settings).unwrap();
    assert!(server.times().is_empty());
    assert!(first.dollars_at_most.unwrap() > 0.002 && first.known == 0, "{first:?}");
    let translated = translate_records(&records, &room, &settings).unwrap();
    assert!(translated.unanswered() > 0 && translated.dropped[0].reason.contains("cap"), "{translated:?}");
    assert!(cache.spent("").unwrap() <= 2_000_000);
    let rest = make(EndpointSettings { cap: None, ..priced });
    let room = Room { translator: &rest, ..room };
    assert_eq!(translate_records(&records, &room, &settings).unwrap().rows.len(), 20);
    assert_eq!(estimate(&records, &room, &settings).unwrap().characters, 0);
}

#[test]
fn what_a_filter_held_back_counts_as_spent() {
    let server = StandIn::start(Box::new(|_, _| Reaction::Filter));
    let cache = Arc::new(Cache::in_memory().unwrap());
    let price = Some(Price { prompt: 1.0, completion: 2.0 });
    let priced = EndpointSettings { price, ..settings() };
    let translator =
        OpenAiTranslator::new(&server.url(), "m", None, 2000, priced, Arc::clone(&cache)).unwrap();
    let row = Record { input: String::new(), output: String::new(), ..record(1) };
    let room = Room { translator: &translator, cache: &cache, identify: None, progress: &Silent };
    let settings = TranslateSettings::new(direction());
    let most = estimate(std::slice::from_ref(&row), &room, &settings).unwrap().dollars_at_most.unwrap();
    let translated = translate_records(&[row], &room, &settings).unwrap();
    assert!(translated.dropped[0].reason.contains("filter"), "{:?}", translated.dropped);
    assert_eq!(cache.spent("").unwrap(), (most * 1e9).round() as i64);
}

/// A translator that makes each text's translation by a function.
struct By<F>(Split, F);

impl<F: Fn(&str) -> String + Sync> Translator for By<F> {
    fn name(&self) -> String {
        "by a function".into()
    }

    fn setting(&self) -> String {
        self.name()
    }

    fn split(&self) -> Split {
        self.0
    }

    fn translate(
        &self,
        texts: &[String],
        _: &Direction,
        _: u32,
        _: &dyn Progress,
        give: &mut Give<'_>,
    ) -> anyhow::Result<()> {
        texts.iter().enumerate().try_for_each(|(index, text)| give(index, Ok((self.1)(text))))
    }
}

#[test]
fn of_a_row_with_two_wrong_fields_both_are_asked_for_again() {
    let cache = Cache::in_memory().unwrap();
    // Makes headings of what it is given, which shows in no piece, until it is told to stop; then it writes backwards.
    let heading = AtomicBool::new(true);
    let translator = By(Split { sentences: false, longest: 2000 }, |text: &str| {
        format!("{}{}", if heading.load(Ordering::Relaxed) { "# " } else { "" }, backwards(text))
    });
    let row = Record {
        instruction: "Tell everybody something pleasant.".into(),
        input: String::new(),
        output: "Everybody in town was rather fond of snow.".into(),
        ..record(1)
    };
    let rows = [row];
    let first = run(&translator, &cache, &rows);
    assert_eq!(first.dropped[0].fault, Some(FaultKind::Structure), "{:?}", first.dropped);
    heading.store(false, Ordering::Relaxed);
    let second = run(&translator, &cache, &rows);
    assert_eq!(second.rows.len(), 1, "{:?}", second.dropped);
    assert_eq!((second.known, second.asked), (0, 2));
}

/// Real material, where it lies.
fn real(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("POLYPACA_REAL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/real"), PathBuf::from);
    let path = root.join(file);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn real_rows_with_code_addresses_and_lists_come_back_to_the_byte() {
    let Some(path) = real("instructions/dolly_en.json") else { return };
    let reading = read_records(&path, &Language::english()).unwrap();
    // Rows with code, addresses and lists first, then as they come.
    let marks = ["```", "http", "\n- ", "\n* ", "\n1.", "`", "|", "();"];
    let rank = |row: &Record| !marks.iter().any(|mark| row.output.contains(mark) || row.input.contains(mark));
    let mut rows = reading.items;
    rows.sort_by_key(rank);
    let structured = rows.iter().filter(|row| !rank(row)).count();
    rows.truncate(500);
    assert_eq!(rows.len(), 500);
    eprintln!("{} of the 500 rows have code, addresses or lists", structured.min(500));
    for split in [
        Split { sentences: true, longest: 200 },
        Split { sentences: false, longest: 1000 },
        Split { sentences: true, longest: 20 },
    ] {
        let cache = Cache::in_memory().unwrap();
        let translator = By(split, str::to_owned);
        let room = Room { translator: &translator, cache: &cache, identify: None, progress: &Silent };
        let same = Direction { source: Language::english(), target: Language::english() };
        let checks = Checks { untranslated: None, ..Checks::default() };
        let settings = TranslateSettings { checks, ..TranslateSettings::new(same) };
        let translated = translate_records(&rows, &room, &settings).unwrap();
        assert!(translated.dropped.is_empty(), "{:?}", translated.dropped);
        assert_eq!(translated.rows, rows);
        assert!(translated.asked > 500);
    }
}

#[test]
fn a_price_that_would_keep_no_cap_is_refused() {
    let made = |price: f64| {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(&folder.path().join("cache.sqlite")).unwrap());
        let own = LibreSettings { price: Some(price), ..LibreSettings::default() };
        let settings = EndpointSettings { cap: Some(1.0), ..EndpointSettings::default() };
        LibreTranslator::new("http://127.0.0.1:9", own, settings, cache)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(made(20.0), Ok(()));
    for price in [-5.0, f64::NAN, f64::INFINITY] {
        assert!(made(price).unwrap_err().starts_with("the price: expected dollars, at least 0"), "{price}");
    }
}
