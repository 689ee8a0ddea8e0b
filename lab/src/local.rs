//! An experiment from its file to its page, on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use instructions::language::Language;
use instructions::template::TemplateChoice;
use judge::asking::TextJudge;
use judge::identify::Identifier;
use judge::judging::Judge;
use judge::openai::{OpenAiJudge, OpenAiSettings};
use judge::prompt_template::PromptTemplate;
use judge::reference::{ReferenceJudge, References, Thresholds};

use crate::experiment::{Experiment, JudgeKind};
use crate::inputs::{Inputs, Prompts};
use crate::local_judge;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::records::{self, ModelFacts};
use crate::run::{self, INCOMPLETE_FILE};
use crate::store::Store;
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
    let plan = Plan::new(&experiment, &inputs)?;
    Ok(Prepared { experiment, inputs, plan })
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

impl Ready<'_> {
    /// Runs what is missing, and writes the report.
    ///
    /// # Errors
    /// What stops the whole run: a store in use, a full disk. Failed cells are in [`Finished::failed`].
    pub fn run(mut self, store: &Store, places: &Places, progress: &dyn Progress) -> Result<Finished> {
        let Prepared { experiment, inputs, plan } = self.prepared;
        let rooms = Rooms {
            experiment,
            inputs,
            plan,
            tuner: self.machinery.tuner,
            answerer: self.machinery.answerer,
            identifier: &*self.identifier,
            judge: &*self.judge,
        };
        let outcome = run::run(plan, store, &experiment.experiment.name, &rooms, progress)?;
        for (place, cell) in plan.cells.iter().enumerate() {
            if let (crate::plan::Work::BaseModel { base_model }, Some(folder)) =
                (&cell.work, outcome.finished.get(&place))
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
            outcome: &outcome,
            models: &self.models,
            identifier: &identifier_name(experiment),
            judge: &self.judge.name(),
        };
        records::write(&sources, &report)?;
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
            settings.concurrency = wanted.concurrency;
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
            identifier_name(experiment)
        );
    }
    Ok(identifier)
}

fn identifier_name(experiment: &Experiment) -> String {
    let file = experiment.gate.lid.as_deref().and_then(Path::file_name);
    file.map_or("lingua".to_owned(), |name| name.to_string_lossy().into_owned())
}
