//! `polypaca judge`: ratings of responses, and comparisons of two at once.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use instructions::prompt::{Response, read_responses};
use instructions::template::TemplateChoice;
use judge::asking::{Asker, TextJudge};
use judge::judging::{Judged, Progress, judge_by_all};
use judge::openai::{OpenAiJudge, OpenAiSettings};
use judge::pairwise::compare_responses;
use judge::price::PriceList;
use judge::prompt_template::PromptTemplate;
use judge::rating::Rating;
use judge::reference::{ReferenceJudge, References, Thresholds};
use lab::local_judge;
use serde_json::{Value, json};

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

    /// Compare every two systems' responses to a prompt instead, in both orders
    #[arg(long)]
    pairwise: bool,

    /// openai: the endpoint's base URL
    #[arg(long, value_name = "URL", required_if_eq("judge", "openai"))]
    endpoint: Option<String>,

    /// openai: the model that judges; several judge at once. local: a model's folder or GGUF file
    #[arg(
        long,
        value_name = "NAME",
        num_args = 1..,
        required_if_eq_any([("judge", "openai"), ("judge", "local")])
    )]
    model: Vec<String>,

    /// local: a PEFT folder on the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// local: the template that the model was tuned with: alpaca, stanford-alpaca, chat (its own) or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "alpaca")]
    template: TemplateChoice,

    /// openai: the environment variable that holds the endpoint's key
    #[arg(long, value_name = "NAME")]
    key_variable: Option<String>,

    /// Another wording of the request, with {instruction} and {response}; with --pairwise {instruction}, {first} and
    /// {second}
    #[arg(long, value_name = "FILE")]
    prompt_template: Option<PathBuf>,

    /// openai: requests under way at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    concurrency: usize,

    /// openai: requests that go out in a minute, at most, for each model; tries again count
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<f64>,

    /// openai: how often a response is asked for before it is left unrated
    #[arg(long, value_name = "N", default_value_t = 6)]
    tries: u32,

    /// openai: seconds of the wait after the first failure, doubled after each further one
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    backoff: f64,

    /// openai: seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    timeout: f64,

    /// openai: tokens of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    new_tokens: usize,

    /// openai: ask through the endpoint's batches, which take up to a day and mostly cost half
    #[arg(long)]
    batch: bool,

    /// openai: with --batch, seconds between two looks at a batch
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, requires = "batch")]
    batch_look: f64,

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
    /// A model on this machine: any that `answer` can run
    Local,
    /// chrF++ against reference answers: no network, and no model of quality
    Reference,
}

impl Judge {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let reading = read_responses(&self.responses).map_err(Failure::wrong_input)?;
        for problem in &reading.problems {
            output.warning(problem.to_string());
        }
        let unrated = if self.pairwise {
            self.compare(&reading.items, output)?
        } else {
            self.rate(&reading.items, output)?
        };
        Ok(if unrated == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Rates the responses; gives how many are unrated.
    fn rate(&self, responses: &[Response], output: &Output) -> Result<usize, Failure> {
        let judges = self.judges().map_err(Failure::wrong_input)?;
        let judges: Vec<&dyn judge::judging::Judge> = judges.iter().map(|judge| &**judge).collect();
        let judged = judge_by_all(&judges, responses, &self.out, &Bar::default()).map_err(Failure::failed)?;
        let mut unrated = 0;
        for (judge, judged) in judges.iter().zip(&judged) {
            for (reason, count) in &judged.unrated {
                output.warning(format!("{}: {count} unrated: {reason}", judge.name()));
                unrated += count;
            }
        }
        let summaries: Vec<Value> =
            judges.iter().zip(&judged).map(|(judge, judged)| summary(&judge.name(), judged)).collect();
        match &summaries[..] {
            [summary] if output.json() => output.object(summary)?,
            several if output.json() => output.object(&json!({ "judges": several }))?,
            several => {
                for summary in several {
                    output.line(format!(
                        "{}: {} responses, {} rated before, {} unrated; ratings in {}",
                        summary["judge"].as_str().unwrap_or_default(),
                        summary["responses"],
                        summary["kept"],
                        summary["unrated"],
                        self.out.display()
                    ))?;
                }
            }
        }
        Ok(unrated)
    }

    /// Compares the responses; gives how many comparisons there are without a verdict.
    fn compare(&self, responses: &[Response], output: &Output) -> Result<usize, Failure> {
        let template = match &self.prompt_template {
            Some(path) => PromptTemplate::pair_from_file(path).map_err(Failure::wrong_input)?,
            None => PromptTemplate::pair(),
        };
        let asker = self.asker().map_err(Failure::wrong_input)?;
        let compared = compare_responses(&*asker, &template, responses, &self.out, &Bar::default())
            .map_err(Failure::failed)?;
        let unrated = compared.preferences.iter().filter(|preference| preference.better.is_none()).count();
        if unrated > 0 {
            output
                .warning(format!("{unrated} comparisons without a verdict; {} says why", self.out.display()));
        }
        if output.json() {
            output.object(&json!({
                "judge": asker.name(), "comparisons": compared.preferences.len(), "kept": compared.kept,
                "unrated": unrated, "table": compared.table,
            }))?;
            return Ok(unrated);
        }
        for row in &compared.table {
            output.line(format!(
                "{}: {} better {}, {} better {}, ties {}, another verdict in the other order {}, unrated {}",
                row.language.code(),
                row.first,
                row.first_better,
                row.second,
                row.second_better,
                row.ties,
                row.inconsistent,
                row.unrated
            ))?;
        }
        Ok(unrated)
    }

    fn judges(&self) -> Result<Vec<Box<dyn judge::judging::Judge>>> {
        match self.judge {
            Kind::Reference => {
                let references = match &self.references {
                    Some(path) => References::from_file(path)?,
                    None => References::default(),
                };
                let thresholds = Thresholds { medium: self.medium, good: self.good };
                Ok(vec![Box::new(ReferenceJudge::new(thresholds, references)?)])
            }
            Kind::Local => {
                let template = self.rating_template()?;
                let asker = self.local(self.one_model()?)?;
                Ok(vec![Box::new(TextJudge { asker, template })])
            }
            Kind::Openai => {
                let template = self.rating_template()?;
                let judge = |model: &String| -> Result<Box<dyn judge::judging::Judge>> {
                    let settings = OpenAiSettings { template: template.clone(), ..self.openai(model)? };
                    Ok(Box::new(OpenAiJudge::new(settings)?))
                };
                self.model.iter().map(judge).collect()
            }
        }
    }

    fn asker(&self) -> Result<Box<dyn Asker>> {
        match self.judge {
            Kind::Reference => Err(anyhow!("--pairwise: expected --judge openai or local, found reference")),
            Kind::Local => Ok(Box::new(self.local(self.one_model()?)?)),
            Kind::Openai => Ok(Box::new(OpenAiJudge::new(self.openai(self.one_model()?)?)?)),
        }
    }

    fn one_model(&self) -> Result<&String> {
        match &self.model[..] {
            [model] => Ok(model),
            several => Err(anyhow!("--model: expected one, found {}", several.join(", "))),
        }
    }

    fn rating_template(&self) -> Result<PromptTemplate> {
        Ok(match &self.prompt_template {
            Some(path) => PromptTemplate::from_file(path)?,
            None => PromptTemplate::default(),
        })
    }

    fn local(&self, model: &str) -> Result<impl Asker + use<>> {
        let decoding = answer::Decoding { new_tokens: self.new_tokens, ..local_judge::decoding() };
        local_judge::open(Path::new(model), self.adapter.as_deref(), &self.template, decoding)
    }

    fn openai(&self, model: &str) -> Result<OpenAiSettings> {
        let cache = self.cache.clone().unwrap_or_else(|| {
            let mut name = self.out.file_name().unwrap_or_default().to_owned();
            name.push(".cache.sqlite");
            self.out.with_file_name(name)
        });
        let mut settings = OpenAiSettings::new(self.endpoint.as_deref().unwrap_or_default(), model, cache);
        settings.key_variable.clone_from(&self.key_variable);
        settings.concurrency = self.concurrency;
        settings.requests_per_minute = self.requests_per_minute;
        settings.tries = self.tries;
        settings.backoff = Duration::try_from_secs_f64(self.backoff).context("--backoff")?;
        settings.timeout = Duration::try_from_secs_f64(self.timeout).context("--timeout")?;
        settings.sampling.insert("max_tokens".to_owned(), json!(self.new_tokens));
        if self.batch {
            settings.batch = Some(Duration::try_from_secs_f64(self.batch_look).context("--batch-look")?);
        }
        settings.cap = self.cap;
        settings.scope = self.out.display().to_string();
        if let Some(path) = &self.prices {
            settings.price = PriceList::from_file(path)?.price(model);
        }
        Ok(settings)
    }
}

/// What a judge's ratings came to.
fn summary(judge: &str, judged: &Judged) -> Value {
    let mut marks: BTreeMap<String, usize> = BTreeMap::new();
    for mark in judged.ratings.iter().filter_map(|rating| rating.rating) {
        *marks.entry(mark.to_string()).or_default() += 1;
    }
    json!({
        "judge": judge,
        "responses": judged.ratings.len(),
        "kept": judged.kept,
        "outdated": judged.outdated,
        "unrated": judged.unrated.iter().map(|(_, count)| count).sum::<usize>(),
        "ratings": marks,
    })
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

/// Where standard error cannot be written, the work goes on.
fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

impl Bar {
    fn step(&self, what: &str) {
        self.bar.inc(1);
        let done = self.rated.fetch_add(1, Ordering::Relaxed) + 1;
        if self.bar.is_hidden() && done.is_multiple_of(LINE_EVERY) {
            tell(&format!("{done} {what}"));
        }
    }
}

impl Progress for Bar {
    fn begin(&self, total: usize, done: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    fn rated(&self, _: &Rating) {
        self.step("rated");
    }

    fn compared(&self) {
        self.step("compared");
    }

    fn retry(&self, reason: &str, next: u32, wait: Duration) {
        let line = format!("{reason}; try {next} in {:.0} s", wait.as_secs_f64());
        if self.bar.is_hidden() { tell(&line) } else { self.bar.println(line) }
    }

    fn note(&self, message: &str) {
        if self.bar.is_hidden() {
            tracing::info!("{message}");
        } else {
            self.bar.set_message(message.to_owned());
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
