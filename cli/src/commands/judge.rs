//! `polypaca judge`: ratings of responses.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use instructions::prompt::read_responses;
use judge::judging::{Progress, judge_responses};
use judge::openai::{OpenAiJudge, OpenAiSettings};
use judge::price::PriceList;
use judge::prompt_template::PromptTemplate;
use judge::rating::Rating;
use judge::reference::{ReferenceJudge, References, Thresholds};

use crate::failure::Failure;
use crate::output::Output;

/// Rates responses, 1 to 3. Run again, it asks only for what is missing, unrated or changed
#[derive(Debug, Args)]
pub(crate) struct Judge {
    /// Responses: JSONL with a prompt's keys, `response` and `system`
    #[arg(long, value_name = "FILE")]
    responses: PathBuf,

    /// The ratings, JSONL
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Who rates
    #[arg(long, value_enum, value_name = "JUDGE")]
    judge: Kind,

    /// openai: the endpoint's base URL
    #[arg(long, value_name = "URL", required_if_eq("judge", "openai"))]
    endpoint: Option<String>,

    /// openai: the model that judges
    #[arg(long, value_name = "NAME", required_if_eq("judge", "openai"))]
    model: Option<String>,

    /// openai: the environment variable that holds the endpoint's key
    #[arg(long, value_name = "NAME")]
    key_variable: Option<String>,

    /// openai: another wording of the request, with {instruction} and {response}
    #[arg(long, value_name = "FILE")]
    prompt_template: Option<PathBuf>,

    /// openai: requests under way at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    concurrency: usize,

    /// openai: how often a response is asked for before it is left unrated
    #[arg(long, value_name = "N", default_value_t = 6)]
    tries: u32,

    /// openai: seconds of the wait after the first failure, doubled after each further one
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    backoff: f64,

    /// openai: the most that may be spent on this file of ratings, in dollars
    #[arg(long, value_name = "DOLLARS", requires = "prices")]
    cap: Option<f64>,

    /// openai: prices by model, TOML: ["MODEL"] with prompt and completion in dollars a million tokens
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,

    /// openai: answers that were paid for, kept in SQLite [default: FILE.cache.sqlite beside the ratings]
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,

    /// reference: reference answers, JSONL with `id` and `reference`, beside those that the prompts bring along
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,

    /// reference: the chrF++ from which a response is rated 2
    #[arg(long, value_name = "SCORE", default_value_t = Thresholds::default().medium)]
    medium: f64,

    /// reference: the chrF++ from which a response is rated 3
    #[arg(long, value_name = "SCORE", default_value_t = Thresholds::default().good)]
    good: f64,
}

/// Who rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// An OpenAI-compatible endpoint
    Openai,
    /// chrF++ against reference answers: no network, and no model of quality
    Reference,
}

impl Judge {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let reading = read_responses(&self.responses).map_err(Failure::wrong_input)?;
        for problem in &reading.problems {
            output.warning(problem.to_string());
        }
        let judge = self.judge().map_err(Failure::wrong_input)?;
        let progress = Bar::default();
        let judged =
            judge_responses(&*judge, &reading.items, &self.out, &progress).map_err(Failure::failed)?;
        for (reason, count) in &judged.unrated {
            output.warning(format!("{count} unrated: {reason}"));
        }
        let unrated: usize = judged.unrated.iter().map(|(_, count)| count).sum();
        let mut marks: HashMap<String, usize> = HashMap::new();
        for mark in judged.ratings.iter().filter_map(|rating| rating.rating) {
            *marks.entry(mark.to_string()).or_default() += 1;
        }
        if output.json() {
            output.object(&serde_json::json!({
                "judge": judge.name(),
                "responses": judged.ratings.len(),
                "kept": judged.kept,
                "outdated": judged.outdated,
                "unrated": unrated,
                "ratings": marks,
            }))?;
        } else {
            output.line(format!(
                "{} responses: {} rated before, {} unrated; ratings in {}",
                judged.ratings.len(),
                judged.kept,
                unrated,
                self.out.display()
            ))?;
        }
        Ok(if unrated == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn judge(&self) -> anyhow::Result<Box<dyn judge::judging::Judge>> {
        if self.judge == Kind::Reference {
            let references = match &self.references {
                Some(path) => References::from_file(path)?,
                None => References::default(),
            };
            let thresholds = Thresholds { medium: self.medium, good: self.good };
            return Ok(Box::new(ReferenceJudge::new(thresholds, references)?));
        }
        let model = self.model.as_deref().unwrap_or_default();
        let cache = self.cache.clone().unwrap_or_else(|| {
            let mut name = self.out.file_name().unwrap_or_default().to_owned();
            name.push(".cache.sqlite");
            self.out.with_file_name(name)
        });
        let mut settings = OpenAiSettings::new(self.endpoint.as_deref().unwrap_or_default(), model, cache);
        settings.key_variable.clone_from(&self.key_variable);
        settings.concurrency = self.concurrency;
        settings.tries = self.tries;
        settings.backoff = Duration::try_from_secs_f64(self.backoff).context("--backoff")?;
        settings.cap = self.cap;
        settings.scope = self.out.display().to_string();
        if let Some(path) = &self.prices {
            settings.price = PriceList::from_file(path)?.price(model);
        }
        if let Some(path) = &self.prompt_template {
            settings.template = PromptTemplate::from_file(path)?;
        }
        Ok(Box::new(OpenAiJudge::new(settings)?))
    }
}

/// A bar on a terminal, a line in a hundred elsewhere.
struct Bar {
    bar: ProgressBar,
    rated: AtomicUsize,
}

impl Default for Bar {
    fn default() -> Self {
        Self { bar: ProgressBar::no_length(), rated: AtomicUsize::new(0) }
    }
}

const LINE_EVERY: usize = 100;

impl Progress for Bar {
    fn begin(&self, total: usize, done: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    fn rated(&self, _: &Rating) {
        self.bar.inc(1);
        let rated = self.rated.fetch_add(1, Ordering::Relaxed) + 1;
        if self.bar.is_hidden() && rated.is_multiple_of(LINE_EVERY) {
            eprintln!("{rated} rated");
        }
    }

    fn retry(&self, reason: &str, next: u32, wait: Duration) {
        let line = format!("{reason}; try {next} in {:.0} s", wait.as_secs_f64());
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
