//! `polypaca data translate`: a set in another language.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::translate::checks::Checks;
use ::translate::libre_translate::{LibreSettings, LibreTranslator};
use ::translate::openai::OpenAiTranslator;
use ::translate::run::{
    Breaking, Dropped, Identify, Room, TranslateSettings, Translated, estimate, translate_records,
    write_translated,
};
use ::translate::translator::{Direction, Progress, Translator};
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use endpoint::cache::Cache;
use endpoint::price::PriceList;
use endpoint::settings::EndpointSettings;
use indicatif::ProgressBar;
use instructions::files::{Problem, write_json, write_json_lines};
use instructions::language::Language;
use instructions::record::{Record, read_records, write_records};
use judge::identify::{Identifier, identifier};
use serde_json::{Value, json};

use crate::commands::places::check_outputs;
use crate::commands::values::{above_0, at_least_0, one_or_more, times_or_any};
use crate::failure::Failure;
use crate::output::Output;

/// What the names of the files beside the translated set end in.
const DROPPED: &str = "dropped.jsonl";
const FLAGGED: &str = "flagged.jsonl";
const PASSED: &str = "passed.jsonl";
const MANIFEST: &str = "manifest.json";

/// Translates a set. Run again, it asks only for what is missing. Exit code 1 if rows are left unanswered
#[derive(Debug, Args)]
pub(crate) struct Translate {
    /// The set: Alpaca's JSON, JSON Lines, Parquet, or chats
    #[arg(value_name = "FILE")]
    set: PathBuf,

    /// The set's language
    #[arg(long, value_name = "CODE")]
    from: Language,

    /// The language to translate into
    #[arg(long, value_name = "CODE")]
    to: Language,

    /// The translated set, in the form its name ends in: .jsonl, .parquet, else Alpaca's JSON. Beside it: FILE.dropped.jsonl, FILE.flagged.jsonl, FILE.manifest.json
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Who translates
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Engine,

    /// openai, libretranslate: the endpoint's base URL
    #[arg(long, value_name = "URL", required_if_eq_any([("engine", "openai"), ("engine", "libretranslate")]))]
    endpoint: Option<String>,

    /// openai: the model that translates. ctranslate2: the model's folder
    #[arg(long, value_name = "MODEL", required_if_eq_any([("engine", "openai"), ("engine", "ctranslate2")]))]
    model: Option<String>,

    /// openai, libretranslate: the environment variable that holds the endpoint's key
    #[arg(long, value_name = "NAME")]
    key_variable: Option<String>,

    /// openai: another wording of the system message, with {source} and {target}
    #[arg(long, value_name = "FILE")]
    wording: Option<PathBuf>,

    /// libretranslate, ctranslate2: the engine's own code of a language, as in zh=zh-Hans or fi=fin_Latn
    #[arg(long, value_name = "LANGUAGE=CODE", num_args = 1..)]
    codes: Vec<OwnCode>,

    /// Translate back again: rows in the set's language, of origin round_trip
    #[arg(long)]
    round_trip: bool,

    /// What becomes of rows whose task a translation breaks: spelling, grammar, rhyme, translation, code alone
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = BreakingRows::Keep)]
    breaking: BreakingRows,

    /// How often a text is translated, each time in another way, before its row is dropped
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = one_or_more::<u32>())]
    rounds: u32,

    /// A fastText model, .bin or .ftz, that tells the language of translations; the embedded lingua unless given
    #[arg(long, value_name = "MODEL")]
    lid: Option<PathBuf>,

    /// Letters from which a text's language is identified; a sign of Chinese counts as three
    #[arg(long, value_name = "N", default_value_t = Checks::default().shortest)]
    shortest: usize,

    /// How many times longer or shorter than its source a translation may be; 0 for any length
    #[arg(long, value_name = "TIMES", value_parser = times_or_any, default_value_t = Checks::default().length.unwrap_or_default())]
    length: f64,

    // Without clap's defaults, so that those which were given to another engine can be told.
    /// openai, libretranslate: characters of a text, at most; longer lines are split into sentences [default: 1000]
    #[arg(long, value_name = "N", value_parser = one_or_more::<usize>())]
    longest: Option<usize>,

    /// libretranslate: texts of a request, at most [default: 16]
    #[arg(long, value_name = "N", value_parser = one_or_more::<usize>())]
    texts: Option<usize>,

    /// ctranslate2: beams; 1 is greedy [default: 2]
    #[arg(long, value_name = "N", value_parser = one_or_more::<usize>())]
    beams: Option<usize>,

    /// openai, libretranslate: requests under way at once [default: 8]
    #[arg(long, value_name = "N", value_parser = one_or_more::<usize>())]
    concurrency: Option<usize>,

    /// openai, libretranslate: requests that go out in a minute, at most; tries again count
    #[arg(long, value_name = "N", value_parser = above_0)]
    requests_per_minute: Option<f64>,

    /// openai, libretranslate: how often a request is sent before its rows are left for another run [default: 6]
    #[arg(long, value_name = "N", value_parser = one_or_more::<u32>())]
    tries: Option<u32>,

    /// openai, libretranslate: seconds of the wait after the first failure, doubled after each further one [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = at_least_0)]
    backoff: Option<f64>,

    /// openai, libretranslate: seconds that a request may take [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = above_0)]
    timeout: Option<f64>,

    /// openai: prices by model, TOML: ["MODEL"] with prompt and completion in dollars a million tokens
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,

    /// libretranslate: dollars for a million characters
    #[arg(long, value_name = "DOLLARS", value_parser = at_least_0)]
    price_characters: Option<f64>,

    /// openai, libretranslate: the most that may be spent on this file, in dollars
    #[arg(long, value_name = "DOLLARS", value_parser = at_least_0)]
    cap: Option<f64>,

    /// Translations, kept in SQLite [default: FILE.cache.sqlite beside the translated set]
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,

    /// Ask nothing: say how much there is to translate and what it can cost
    #[arg(long)]
    estimate: bool,
}

/// Who translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// A model at an OpenAI-compatible endpoint
    Openai,
    /// A server that speaks LibreTranslate's protocol
    Libretranslate,
    /// A CTranslate2 model on this machine (OPUS-MT, NLLB, Argos); only in a program built with it
    Ctranslate2,
}

impl Engine {
    /// The name in flags.
    fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Libretranslate => "libretranslate",
            Self::Ctranslate2 => "ctranslate2",
        }
    }
}

/// What becomes of rows whose task a translation breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BreakingRows {
    /// They are translated like the others, and listed
    Keep,
    /// They are dropped
    Drop,
    /// They are left as they are, in FILE.passed.jsonl
    Pass,
}

/// `zh=zh-Hans`
#[derive(Debug, Clone)]
struct OwnCode {
    language: Language,
    code: String,
}

impl FromStr for OwnCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (language, code) = text.split_once('=').ok_or("expected LANGUAGE=CODE, as in zh=zh-Hans")?;
        let language = language.parse::<Language>().map_err(|error| error.to_string())?;
        Ok(Self { language, code: code.to_owned() })
    }
}

impl Translate {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        if self.from == self.to {
            let (from, to) = (self.from.code(), self.to.code());
            return Err(Failure::wrong_input(anyhow!(
                "--to {to}: expected another language than --from {from}"
            )));
        }
        self.check_engine()?;
        self.check_places()?;
        let reading = read_records(&self.set, &self.from).map_err(Failure::wrong_input)?;
        for problem in &reading.problems {
            output.warning(problem.to_string());
        }
        self.check_languages(&reading.items).map_err(Failure::wrong_input)?;
        let cache = Arc::new(Cache::open(&self.cache_path()).map_err(Failure::failed)?);
        let translator = self.translator(&cache).map_err(Failure::wrong_input)?;
        let identifier = self.identifier(output)?;
        let identify = identifier.as_ref().map(|identifier| {
            move |text: &str| {
                let identified = identifier.identify(text);
                (identified.language, identified.probability)
            }
        });
        let room = Room {
            translator: &*translator,
            cache: &cache,
            identify: identify.as_ref().map(|identify| identify as &Identify<'_>),
            progress: &Bar::new(output),
        };
        let settings = self.settings();
        if self.estimate {
            let estimate = estimate(&reading.items, &room, &settings).map_err(Failure::failed)?;
            if output.json() {
                output.object(&estimate)?;
                return Ok(ExitCode::SUCCESS);
            }
            let cost = estimate.dollars_at_most.map_or("no price known".to_owned(), |dollars| {
                format!("at most ${dollars:.4} if each is answered well at the first try")
            });
            output.line(format!(
                "{} rows, {} with a task that translation breaks; {} texts, {} in the cache; {} characters to translate: {cost}",
                estimate.rows, estimate.flagged, estimate.texts, estimate.known, estimate.characters
            ))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut translated = translate_records(&reading.items, &room, &settings).map_err(Failure::failed)?;
        let unread = reading.problems.iter().filter(|problem| problem.dropped).map(unread);
        translated.dropped.extend(unread);
        self.write(&translated, &settings, &*translator).map_err(Failure::failed)?;
        self.tell(&translated, output)?;
        Ok(if translated.unanswered() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// A flag that only other engines know would change nothing: it was meant for one of them.
    fn check_engine(&self) -> Result<(), Failure> {
        use Engine::{Ctranslate2, Libretranslate, Openai};
        let asked = &[Openai, Libretranslate][..];
        let flags = [
            ("endpoint", self.endpoint.is_some(), asked),
            ("model", self.model.is_some(), &[Openai, Ctranslate2]),
            ("key-variable", self.key_variable.is_some(), asked),
            ("wording", self.wording.is_some(), &[Openai]),
            ("codes", !self.codes.is_empty(), &[Libretranslate, Ctranslate2]),
            ("longest", self.longest.is_some(), asked),
            ("texts", self.texts.is_some(), &[Libretranslate]),
            ("beams", self.beams.is_some(), &[Ctranslate2]),
            ("concurrency", self.concurrency.is_some(), asked),
            ("requests-per-minute", self.requests_per_minute.is_some(), asked),
            ("tries", self.tries.is_some(), asked),
            ("backoff", self.backoff.is_some(), asked),
            ("timeout", self.timeout.is_some(), asked),
            ("prices", self.prices.is_some(), &[Openai]),
            ("price-characters", self.price_characters.is_some(), &[Libretranslate]),
            ("cap", self.cap.is_some(), asked),
        ];
        let lost = |(_, given, engines): &&(&str, bool, &[Engine])| *given && !engines.contains(&self.engine);
        let Some((flag, _, engines)) = flags.iter().find(lost) else { return Ok(()) };
        let engines: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
        Err(Failure::wrong_input(anyhow!(
            "--{flag}: is only for --engine {}; found {}",
            engines.join(" or "),
            self.engine.name()
        )))
    }

    /// Nothing that is read may be written over.
    fn check_places(&self) -> Result<(), Failure> {
        let beside = [DROPPED, FLAGGED, PASSED, MANIFEST].map(|end| ("--out", self.beside(end)));
        let mut outputs = vec![("--out", self.out.clone())];
        outputs.extend(beside);
        outputs.push(("--cache", self.cache_path()));
        let more = [&self.wording, &self.prices, &self.lid].into_iter().flatten();
        check_outputs(&outputs, std::iter::once(&self.set).chain(more).map(PathBuf::as_path))
    }

    /// Rows of a set are in its language: what names another was not meant to be read as this one.
    fn check_languages(&self, records: &[Record]) -> Result<()> {
        match records.iter().find(|record| record.language != self.from) {
            None => Ok(()),
            Some(record) => Err(anyhow!(
                "{}: row {}: expected the language {} of --from, found {}",
                self.set.display(),
                record.id,
                self.from.code(),
                record.language.code()
            )),
        }
    }

    fn settings(&self) -> TranslateSettings {
        let direction = Direction { source: self.from.clone(), target: self.to.clone() };
        let checks = Checks {
            length: (self.length > 0.0).then_some(self.length),
            shortest: self.shortest,
            ..Checks::default()
        };
        let breaking = match self.breaking {
            BreakingRows::Keep => Breaking::Keep,
            BreakingRows::Drop => Breaking::Drop,
            BreakingRows::Pass => Breaking::Pass,
        };
        TranslateSettings { direction, round_trip: self.round_trip, checks, breaking, rounds: self.rounds }
    }

    /// What tells the language of translations; nothing where it would know none of theirs.
    fn identifier(&self, output: &Output) -> Result<Option<Box<dyn Identifier>>, Failure> {
        let identifier = identifier(self.lid.as_deref(), None).map_err(Failure::wrong_input)?;
        let languages = if self.round_trip { vec![&self.to, &self.from] } else { vec![&self.to] };
        match languages.into_iter().find(|language| !identifier.knows(language)) {
            None => Ok(Some(identifier)),
            Some(language) => {
                output.warning(format!(
                    "the identifier has no label for {}: the language of translations is not checked; name a model with --lid",
                    language.code()
                ));
                Ok(None)
            }
        }
    }

    fn translator(&self, cache: &Arc<Cache>) -> Result<Box<dyn Translator>> {
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        let model = self.model.as_deref().unwrap_or_default();
        match self.engine {
            Engine::Openai => {
                let wording = match &self.wording {
                    None => None,
                    Some(path) => Some(
                        std::fs::read_to_string(path)
                            .with_context(|| format!("{}: the wording", path.display()))?,
                    ),
                };
                let settings = self.endpoint_settings(model)?;
                let cache = Arc::clone(cache);
                Ok(Box::new(OpenAiTranslator::new(
                    endpoint,
                    model,
                    wording,
                    self.longest(),
                    settings,
                    cache,
                )?))
            }
            Engine::Libretranslate => {
                let codes = self.codes.iter().map(|own| (own.language.clone(), own.code.clone())).collect();
                let price = self.price_characters;
                let batch = self.texts.unwrap_or(LibreSettings::default().batch);
                let own = LibreSettings { codes, batch, longest: self.longest(), price };
                let settings = self.endpoint_settings(model)?;
                Ok(Box::new(LibreTranslator::new(endpoint, own, settings, Arc::clone(cache))?))
            }
            Engine::Ctranslate2 => self.ctranslate2(Path::new(model)),
        }
    }

    #[cfg(feature = "ctranslate2")]
    fn ctranslate2(&self, folder: &Path) -> Result<Box<dyn Translator>> {
        use ::translate::ctranslate2::{ModelSettings, ModelTranslator};
        anyhow::ensure!(
            !self.round_trip,
            "--round-trip: a CTranslate2 model translates one way; translate back with the other model"
        );
        let code = |language: &Language| {
            self.codes.iter().find(|own| own.language == *language).map(|own| own.code.clone())
        };
        let codes = code(&self.from).zip(code(&self.to));
        let settings = ModelSettings { beams: self.beams(), codes, ..ModelSettings::default() };
        Ok(Box::new(ModelTranslator::open(folder, settings)?))
    }

    #[cfg(not(feature = "ctranslate2"))]
    fn ctranslate2(&self, _folder: &Path) -> Result<Box<dyn Translator>> {
        Err(anyhow!(
            "--engine ctranslate2 with {} beams: this program was built without it; build it with --features ctranslate2 (cmake and a C++ compiler are needed)",
            self.beams()
        ))
    }

    fn endpoint_settings(&self, model: &str) -> Result<EndpointSettings> {
        let price = match &self.prices {
            Some(path) => PriceList::from_file(path)?.price(model),
            None => None,
        };
        let base = EndpointSettings::default();
        let seconds = |given: Option<f64>, base, flag| {
            given.map_or(Ok(base), |seconds| Duration::try_from_secs_f64(seconds).context(flag))
        };
        Ok(EndpointSettings {
            // An estimate asks nothing.
            key_variable: self.key_variable.clone().filter(|_| !self.estimate),
            concurrency: self.concurrency.unwrap_or(base.concurrency),
            requests_per_minute: self.requests_per_minute,
            tries: self.tries.unwrap_or(base.tries),
            backoff: seconds(self.backoff, base.backoff, "--backoff")?,
            timeout: seconds(self.timeout, base.timeout, "--timeout")?,
            price,
            cap: self.cap,
            scope: self.out.display().to_string(),
            ..base
        })
    }

    /// Characters of a text, at most.
    fn longest(&self) -> usize {
        self.longest.unwrap_or(LibreSettings::default().longest)
    }

    fn beams(&self) -> usize {
        self.beams.unwrap_or(2)
    }

    fn cache_path(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| self.beside("cache.sqlite"))
    }

    /// A file beside the translated set, its name with `end`.
    fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.out.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(end);
        self.out.with_file_name(name)
    }

    fn write(
        &self,
        translated: &Translated,
        settings: &TranslateSettings,
        translator: &dyn Translator,
    ) -> Result<()> {
        write_json_lines(&self.beside(DROPPED), &translated.dropped)?;
        write_json_lines(&self.beside(FLAGGED), &translated.flagged)?;
        if self.breaking == BreakingRows::Pass {
            write_records(&self.beside(PASSED), &translated.passed)?;
        }
        write_translated(&self.out, &translated.rows, settings.origin())?;
        let manifest = json!({
            "set": self.set.display().to_string(),
            "language": settings.language().code(),
            "origin": settings.origin(),
            "from": self.from.code(),
            "through": self.to.code(),
            "translator": translator.name(),
            "setting": translator.setting(),
            "rounds": self.rounds,
            "counts": counts(translated),
        });
        write_json(&self.beside(MANIFEST), &manifest)
    }

    fn tell(&self, translated: &Translated, output: &Output) -> Result<(), Failure> {
        if output.json() {
            return Ok(output.object(&counts(translated))?);
        }
        output.line(format!(
            "{} rows translated, {} dropped, {} passed on, {} with a task that translation breaks; {} texts asked for, {} in the cache; {}",
            translated.rows.len(),
            translated.dropped.len(),
            translated.passed.len(),
            translated.flagged.len(),
            translated.asked,
            translated.known,
            self.out.display()
        ))?;
        for (fault, count) in translated.reasons() {
            output.line(format!("{count} dropped: {}", fault_name(fault)))?;
        }
        Ok(())
    }
}

/// A row of the file that was no record.
fn unread(problem: &Problem) -> Dropped {
    Dropped {
        id: String::new(),
        reason: problem.to_string(),
        fault: None,
        field: None,
        direction: None,
        said: String::new(),
    }
}

fn fault_name(fault: Option<::translate::checks::FaultKind>) -> String {
    let name = |fault| serde_json::to_value(fault).ok().and_then(|name| name.as_str().map(str::to_owned));
    fault.and_then(name).map_or_else(|| "task or row not taken".to_owned(), |name| name.replace('_', " "))
}

fn counts(translated: &Translated) -> Value {
    let dropped: serde_json::Map<String, Value> =
        translated.reasons().into_iter().map(|(fault, count)| (fault_name(fault), json!(count))).collect();
    json!({
        "rows": translated.rows.len(),
        "passed": translated.passed.len(),
        "flagged": translated.flagged.len(),
        "dropped": dropped,
        "asked": translated.asked,
        "known": translated.known,
    })
}

/// A bar on a terminal, a line in some hundreds elsewhere.
struct Bar<'a> {
    bar: ProgressBar,
    translated: AtomicUsize,
    output: &'a Output,
}

const LINE_EVERY: usize = 500;

impl<'a> Bar<'a> {
    fn new(output: &'a Output) -> Self {
        Self { bar: ProgressBar::no_length(), translated: AtomicUsize::new(0), output }
    }

    fn say(&self, line: String) {
        if self.bar.is_hidden() { self.output.note(line) } else { self.bar.println(line) }
    }
}

impl Progress for Bar<'_> {
    fn begin(&self, round: u32, total: usize, known: usize) {
        if round > 0 && total > 0 {
            self.say(format!("round {}: {total} texts once more", round + 1));
        }
        self.bar.set_length(total as u64);
        self.bar.set_position(known as u64);
    }

    fn translated(&self) {
        self.bar.inc(1);
        let done = self.translated.fetch_add(1, Ordering::Relaxed) + 1;
        if self.bar.is_hidden() && done.is_multiple_of(LINE_EVERY) {
            self.output.note(format!("{done} texts translated"));
        }
    }

    fn retry(&self, reason: &str, next: u32, wait: Duration) {
        self.say(format!("{reason}; try {next} in {:.0} s", wait.as_secs_f64()));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
