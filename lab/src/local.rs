//! An experiment from its file to its page. Who does its cells is the caller's choice: this program all of them, this
//! program some of them, or a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use instructions::language::Language;
use instructions::mix::TooFewToHoldOut;
use instructions::template::TemplateChoice;
use judge::asking::TextJudge;
use judge::identify::Identifier;
use judge::judging::{self, Judge, Verdict};
use judge::openai::{OpenAiJudge, OpenAiSettings};
use judge::prompt_template::PromptTemplate;
use judge::reference::{ReferenceJudge, References, Thresholds};

use crate::experiment::{Experiment, ExperimentError, JudgeKind, Source};
use crate::inputs::{Inputs, Prompts};
use crate::local_judge;
use crate::mixes::Mixing;
use crate::plan::{Answerer, Cell, Plan, Unmixed, Work};
use crate::progress::Progress;
use crate::records::{self, ModelFacts};
use crate::run::{Outcome, Run};
use crate::stop::Stop;
use crate::store::{FolderLock, INCOMPLETE_FILE, Store, StoreError};
use crate::work::{AnswerRoom, MODEL_FOLDER, Rooms, Tuner};

/// Where an experiment's results go.
#[derive(Debug, Clone)]
pub struct Places {
    /// `runs/NAME` unless given.
    pub out: PathBuf,
    /// The store: `store` in `out` unless given.
    pub store: PathBuf,
}

impl Places {
    /// The places of an experiment, as far as they are not given.
    pub fn new(experiment: &Experiment, out: Option<PathBuf>, store: Option<PathBuf>) -> Self {
        let out = out.unwrap_or_else(|| Path::new("runs").join(&experiment.experiment.name));
        let store = store.unwrap_or_else(|| out.join("store"));
        Self { out, store }
    }

    /// Where the records and the page are written.
    pub fn report(&self) -> PathBuf {
        self.out.join("report")
    }
}

/// An experiment that is checked, read and planned: nothing of it is wrong but what may go wrong on the way.
#[derive(Debug)]
pub struct Prepared {
    /// The experiment file.
    pub experiment: Experiment,
    /// Its sets and prompts.
    pub inputs: Inputs,
    /// What its mixes are made under.
    pub mixing: Mixing,
    /// Its cells.
    pub plan: Plan,
}

/// What a run came to.
#[derive(Debug)]
pub struct Finished {
    /// The page.
    pub page: PathBuf,
    /// The report's findings, in words.
    pub findings: Vec<String>,
    /// What is worth a warning.
    pub warnings: Vec<String>,
    /// Cells that were finished before.
    pub kept: usize,
    /// Cells that were done now.
    pub done: usize,
    /// Cells that failed, by label, with their reasons.
    pub failed: Vec<(String, String)>,
    /// Cells that could not be tried, because one that they need failed.
    pub blocked: usize,
    /// Score cells with responses that are unrated.
    pub incomplete: usize,
}

/// The rooms that compute.
pub struct Machinery<'a> {
    /// Trains base models and tunes them.
    pub tuner: &'a dyn Tuner,
    /// Answers prompts.
    pub answerer: &'a dyn AnswerRoom,
    /// Opens a base model and tells its family, its size, and its fertility on prompts; fails where it is damaged.
    pub open_model: &'a dyn Fn(&Path, &Prompts) -> Result<ModelFacts>,
}

/// Reads, checks and plans an experiment.
///
/// # Errors
/// Everything that is wrong with the file and with what it names.
pub fn prepare(path: &Path) -> Result<Prepared> {
    let experiment = Experiment::load(path)?;
    let inputs = Inputs::read(&experiment)?;
    let mixing = Mixing::new(&experiment)?;
    let plan =
        Plan::new(&experiment, &inputs, &mixing).map_err(|error| match error.downcast::<Unmixed>() {
            Ok(unmixed) => placed(&unmixed, path, &experiment).into(),
            Err(error) => error,
        })?;
    Ok(Prepared { experiment, inputs, mixing, plan })
}

/// A recipe that cannot be mixed, at the setting of the file that asks for too much.
fn placed(unmixed: &Unmixed, path: &Path, experiment: &Experiment) -> ExperimentError {
    let source = match Source::read(path) {
        Ok(source) => source,
        Err(error) => return error,
    };
    let recipes = &experiment.experiment.recipes;
    let place = recipes.iter().position(|recipe| *recipe == unmixed.recipe).unwrap_or(0).to_string();
    let held_out = unmixed.error.is::<TooFewToHoldOut>();
    let key: &[&str] = match (&experiment.budget.rows, &experiment.budget.c) {
        _ if held_out && experiment.tune.validation_rows.is_some() => &["tune", "validation_rows"],
        _ if held_out => &["tune"],
        (Some(_), _) => &["budget", "rows"],
        (None, Some(_)) => &["budget", "c"],
        (None, None) => &["experiment", "recipes", &place],
    };
    let advice = match held_out && experiment.tune.validation_rows.is_none() {
        true => "; `validation_rows` of [tune] says how many are",
        false => "",
    };
    ExperimentError::Problems(vec![source.at(key, format!("{unmixed}{advice}"))])
}

/// What a run needs beside the plan, opened before anything starts.
pub struct Ready<'a> {
    prepared: &'a Prepared,
    machinery: &'a Machinery<'a>,
    judge: Box<dyn Judge>,
    identifier: Box<dyn Identifier>,
    models: BTreeMap<String, ModelFacts>,
}

/// Opens the base models, the gate and the judge, so that what is wrong with them is told before any work.
///
/// # Errors
/// A model that is damaged, a judge whose key is missing.
pub fn ready<'a>(prepared: &'a Prepared, places: &Places, machinery: &'a Machinery) -> Result<Ready<'a>> {
    let mut models = BTreeMap::new();
    for model in &prepared.experiment.base_model {
        if let Some(path) = &model.path {
            let facts = (machinery.open_model)(path, &prepared.inputs.prompts)
                .with_context(|| format!("base model `{}`", model.name))?;
            models.insert(model.name.clone(), facts);
        }
    }
    Ok(Ready {
        prepared,
        machinery,
        judge: open_judge(&prepared.experiment, places)?,
        identifier: open_identifier(&prepared.experiment)?,
        models,
    })
}

/// Holds an experiment's results, so that no second program writes its records and its page.
///
/// # Errors
/// [`StoreError::InUse`] where another program holds them; [`StoreError::File`].
pub fn hold(places: &Places) -> Result<FolderLock, StoreError> {
    std::fs::create_dir_all(&places.out).map_err(|error| StoreError::File {
        action: "make the folder",
        path: places.out.clone(),
        error,
    })?;
    FolderLock::alone(&places.out)
}

/// Opens what some cells alone need: the judge where one of them is rated, and no base model beforehand.
///
/// # Errors
/// A gate or a judge that cannot be opened.
pub fn ready_for<'a>(
    prepared: &'a Prepared,
    places: &Places,
    machinery: &'a Machinery,
    cells: &BTreeSet<usize>,
) -> Result<Ready<'a>> {
    let rates = cells.iter().any(|cell| matches!(prepared.plan.cells[*cell].work, Work::Scores { .. }));
    let judge: Box<dyn Judge> =
        if rates { open_judge(&prepared.experiment, places)? } else { Box::new(NoJudge) };
    let identifier = open_identifier(&prepared.experiment)?;
    Ok(Ready { prepared, machinery, judge, identifier, models: BTreeMap::new() })
}

/// Whether a cell takes no time to speak of, or only waits for an endpoint: its rate and its cap hold for one program,
/// and a cluster's nodes may see no network. The Slurm runner does these itself.
pub fn is_done_by_the_submitter(experiment: &Experiment, cell: &Cell) -> bool {
    match &cell.work {
        Work::Mix { .. } | Work::Answers { answerer: Answerer::Endpoint(_), .. } => true,
        Work::Scores { .. } => experiment.judge.kind == JudgeKind::Openai,
        _ => false,
    }
}

/// Where nothing is rated.
struct NoJudge;

impl Judge for NoJudge {
    fn name(&self) -> String {
        "none".to_owned()
    }

    fn setting(&self) -> String {
        String::new()
    }

    fn rate(
        &self,
        _: &[instructions::prompt::Response],
        _: &dyn judging::Progress,
        _: &mut dyn FnMut(usize, Verdict) -> Result<()>,
    ) -> Result<()> {
        anyhow::bail!("no judge was opened for these cells, which is a bug in this program")
    }
}

impl Ready<'_> {
    /// Does what is missing on this machine: of all cells, or of some.
    ///
    /// # Errors
    /// What stops every cell: a full disk. Failed cells are in [`Outcome::failed`].
    pub fn run(
        &self,
        store: &Store,
        only: Option<&BTreeSet<usize>>,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<Outcome, StoreError> {
        let Prepared { experiment, inputs, mixing, plan } = self.prepared;
        let rooms = Rooms {
            experiment,
            inputs,
            mixing,
            plan,
            tuner: self.machinery.tuner,
            answerer: self.machinery.answerer,
            identifier: &*self.identifier,
            judge: &*self.judge,
        };
        let name = &experiment.experiment.name;
        Run { plan, store, experiment: name, worker: &rooms, progress, stop, only }.all()
    }

    /// Writes the report of what a run came to.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn report(mut self, outcome: &Outcome, places: &Places) -> Result<Finished> {
        let Prepared { experiment, inputs, plan, .. } = self.prepared;
        for (place, cell) in plan.cells.iter().enumerate() {
            if let (Work::BaseModel { base_model }, Some(folder)) = (&cell.work, outcome.finished.get(&place))
            {
                let name = experiment.base_model[*base_model].name.clone();
                self.models
                    .insert(name, (self.machinery.open_model)(&folder.join(MODEL_FOLDER), &inputs.prompts)?);
            }
        }
        let report = places.report();
        let sources = records::Sources {
            experiment,
            inputs,
            plan,
            outcome,
            models: &self.models,
            identifier: &experiment.gate.identifier_name(),
            judge: &self.judge.name(),
        };
        records::write(&sources, &report)?;
        records::write_responses(&sources, &report)?;
        let summary = report::build(&report, &report, &report::Options::default()).context("the report")?;
        let failed = outcome
            .failed
            .iter()
            .map(|(cell, reason)| (plan.cells[*cell].determinants.label.clone(), reason.clone()));
        Ok(Finished {
            page: summary.page,
            findings: summary.findings,
            warnings: summary.warnings,
            kept: outcome.kept,
            done: outcome.finished.len() - outcome.kept,
            failed: failed.collect(),
            blocked: outcome.blocked.len(),
            incomplete: outcome
                .finished
                .values()
                .filter(|folder| folder.join(INCOMPLETE_FILE).exists())
                .count(),
        })
    }
}

fn open_judge(experiment: &Experiment, places: &Places) -> Result<Box<dyn Judge>> {
    let wanted = &experiment.judge;
    match wanted.kind {
        JudgeKind::Reference => {
            let thresholds = match wanted.thresholds {
                Some([medium, good]) => Thresholds { medium, good },
                None => Thresholds::default(),
            };
            Ok(Box::new(ReferenceJudge::new(thresholds, References::default())?))
        }
        JudgeKind::Local => {
            let path = wanted.path.as_deref().context("[judge] `path` is missing")?;
            let template = match &wanted.prompt_template {
                Some(path) => PromptTemplate::from_file(path)?,
                None => PromptTemplate::default(),
            };
            let asker = local_judge::open(path, None, &TemplateChoice::default(), local_judge::decoding())?;
            Ok(Box::new(TextJudge { asker, template }))
        }
        JudgeKind::Openai => {
            std::fs::create_dir_all(&places.store)
                .with_context(|| format!("cannot make the folder {}", places.store.display()))?;
            let mut settings = OpenAiSettings::new(
                wanted.endpoint.as_deref().unwrap_or_default(),
                wanted.model.as_deref().unwrap_or_default(),
                places.store.join("judge.sqlite"),
            );
            settings.key_variable.clone_from(&wanted.key_variable);
            settings.concurrency = wanted.concurrency.unwrap_or(settings.concurrency);
            settings.requests_per_minute = wanted.requests_per_minute;
            settings.price = wanted.price;
            settings.cap = wanted.cap;
            settings.scope.clone_from(&experiment.experiment.name);
            if let Some(tries) = wanted.tries {
                settings.tries = tries;
            }
            if let Some(seconds) = wanted.backoff {
                settings.backoff = Duration::try_from_secs_f64(seconds).context("[judge] backoff")?;
            }
            if let Some(path) = &wanted.prompt_template {
                settings.template = PromptTemplate::from_file(path)?;
            }
            Ok(Box::new(OpenAiJudge::new(settings)?))
        }
    }
}

fn open_identifier(experiment: &Experiment) -> Result<Box<dyn Identifier>> {
    let identifier = judge::identify::identifier(experiment.gate.lid.as_deref(), None)?;
    for code in experiment.all_languages() {
        let language: Language = code.parse()?;
        anyhow::ensure!(
            identifier.knows(&language),
            "[gate]: {} has no label for `{code}`: every response in it would score 0",
            experiment.gate.identifier_name()
        );
    }
    Ok(identifier)
}
