//! The report's records, from what a run came to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use instructions::language::Language;
use instructions::prompt::{Prompt, Response, read_responses};
use instructions::recipe::Mixes;
use judge::rating::read_ratings;
use report::records::{
    self, Budget, Cost, EXPERIMENT_FILE, Gate, JudgeKind, SCORES_FILE, SYSTEMS_FILE, Score, ScoreStatus,
    SystemStatus,
};

use crate::experiment::{self, Experiment, Held, Method};
use crate::inputs::Inputs;
use crate::plan::{Plan, System, flattened};
use crate::run::Outcome;
use crate::settings;
use crate::store::{hash_file, write_atomically};
use crate::work::{RATINGS_FILE, RESPONSES_FILE, read_scores, read_tuning};

/// What is known of a base model beside its name.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    /// `llama`.
    pub family: String,
    /// How many.
    pub parameters: u64,
    /// Its tokenizer's tokens a word of the prompts, by language code.
    pub fertility: BTreeMap<String, f64>,
}

/// Everything that records are made from.
pub struct Sources<'a> {
    /// What was asked for.
    pub experiment: &'a Experiment,
    /// Its sets and prompts.
    pub inputs: &'a Inputs,
    /// Its cells.
    pub plan: &'a Plan,
    /// What became of them.
    pub outcome: &'a Outcome,
    /// By base model.
    pub models: &'a BTreeMap<String, ModelFacts>,
    /// The identifier's name.
    pub identifier: &'a str,
    /// The judge's name.
    pub judge: &'a str,
}

/// Writes `experiment.json`, `systems.jsonl` and `scores.jsonl` into a folder.
///
/// # Errors
/// A cell's file that cannot be read, or a record that cannot be written.
pub fn write(sources: &Sources, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut systems = Vec::new();
    let mut scores = Vec::new();
    for system in &sources.plan.systems {
        line(&mut systems, &sources.system(system)?)?;
        for (language, answers, cell) in &system.answers {
            for score in sources.scores(system, language, *answers, *cell)? {
                line(&mut scores, &score)?;
            }
        }
    }
    let mut experiment = serde_json::to_vec_pretty(&sources.experiment()?)?;
    experiment.push(b'\n');
    write_atomically(&folder.join(SCORES_FILE), &scores)?;
    write_atomically(&folder.join(SYSTEMS_FILE), &systems)?;
    write_atomically(&folder.join(EXPERIMENT_FILE), &experiment)?;
    Ok(())
}

/// Writes the responses and the ratings of all systems into a folder, `responses.jsonl` and `ratings.jsonl`, in the forms
/// of `answer` and `judge`, which the gate, other judges and people's rating read. Systems have their names of the
/// records.
///
/// # Errors
/// A cell's file that cannot be read, or a file that cannot be written.
pub fn write_responses(sources: &Sources, folder: &Path) -> Result<()> {
    let mut responses = Vec::new();
    let mut ratings = Vec::new();
    for system in &sources.plan.systems {
        for (language, answers, cell) in &system.answers {
            let prompts = sources.inputs.prompts.get(language).map(Vec::as_slice).unwrap_or_default();
            let asked: BTreeMap<&str, &Prompt> =
                prompts.iter().map(|prompt| (prompt.id.as_str(), prompt)).collect();
            if let Some(folder) = sources.outcome.finished.get(answers) {
                for response in read_responses(&folder.join(RESPONSES_FILE))?.items {
                    // The prompt as it is now: its reference may be newer than its response.
                    if let Some(&prompt) = asked.get(response.prompt.id.as_str()) {
                        let (prompt, system) = (prompt.clone(), system.id.clone());
                        line(&mut responses, &Response { prompt, system, ..response })?;
                    }
                }
            }
            if let Some(folder) = sources.outcome.finished.get(cell) {
                for mut rating in read_ratings(&folder.join(RATINGS_FILE))?.ratings {
                    if asked.contains_key(rating.key.id.as_str()) {
                        rating.key.system.clone_from(&system.id);
                        line(&mut ratings, &rating)?;
                    }
                }
            }
        }
    }
    write_atomically(&folder.join(RESPONSES_FILE), &responses)?;
    write_atomically(&folder.join(RATINGS_FILE), &ratings)?;
    Ok(())
}

fn line(lines: &mut Vec<u8>, value: &impl serde::Serialize) -> Result<()> {
    serde_json::to_writer(&mut *lines, value)?;
    lines.push(b'\n');
    Ok(())
}

impl Sources<'_> {
    fn experiment(&self) -> Result<records::Experiment> {
        let grid = &self.experiment.experiment;
        let prompts = self.inputs.prompts.iter();
        Ok(records::Experiment {
            name: grid.name.clone(),
            description: grid.description.clone(),
            // The same results are the same bytes, whenever they were made.
            date: None,
            languages: self.languages()?,
            recipes: self.recipes(),
            methods: grid.methods.iter().map(|method| method.name().to_owned()).collect(),
            base_models: self.experiment.base_model.iter().map(|model| self.base_model(model)).collect(),
            seeds: grid.seeds.clone(),
            prompts: prompts.map(|(language, prompts)| (language.code().to_owned(), prompts.len())).collect(),
            rating_range: [1.0, judge::rating::HIGHEST_RATING],
            judge: self.judge(),
            gate: self.gate(),
            budget: self.budget(),
            minimum_score: grid.minimum_score,
            versions: BTreeMap::from([("polypaca".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
            hashes: self.hashes()?,
            settings: self.settings()?,
            hardware: hardware(),
            licences: self.experiment.licences.clone(),
            problems: self.problems(),
        })
    }

    fn languages(&self) -> Result<Vec<records::Language>> {
        let seen = &self.experiment.experiment.languages;
        let described = |code: &str| -> Result<records::Language> {
            let language: Language = code.parse()?;
            Ok(records::Language {
                code: code.to_owned(),
                name: language.english_name().to_owned(),
                native_name: Some(language.own_name().to_owned()),
                seen: seen.iter().any(|seen| seen == code),
            })
        };
        self.experiment.all_languages().map(described).collect()
    }

    fn recipes(&self) -> Vec<records::Recipe> {
        let names = self.experiment.experiment.recipes.iter();
        let recipes = names.filter_map(|name| self.experiment.recipe(name));
        let described = recipes.map(|recipe| records::Recipe {
            name: recipe.name,
            description: recipe.description,
            per_language: recipe.mixes == Mixes::PerLanguage,
        });
        described.collect()
    }

    fn gate(&self) -> Gate {
        let set_aside = "code and URLs are set aside before identifying";
        Gate {
            identifier: self.identifier.to_owned(),
            description: if self.experiment.gate.set_aside_code { set_aside } else { "" }.to_owned(),
        }
    }

    fn budget(&self) -> Budget {
        let budget = &self.experiment.budget;
        let given = budget.rows.is_some() || budget.c.is_some();
        let smallest = "C is the smallest set; larger sets were cut to it.";
        Budget {
            c: self.plan.c,
            held: budget.held.name().to_owned(),
            description: if given { "C is given." } else { smallest }.to_owned(),
        }
    }

    fn base_model(&self, model: &experiment::BaseModel) -> records::BaseModel {
        let facts = self.models.get(&model.name);
        let family = model.family.clone().or_else(|| facts.map(|facts| facts.family.clone()));
        records::BaseModel {
            name: model.name.clone(),
            family: family.unwrap_or_else(|| model.name.clone()),
            parameters: facts.map_or(1, |facts| facts.parameters),
            fertility: facts.map(|facts| facts.fertility.clone()).unwrap_or_default(),
        }
    }

    fn judge(&self) -> records::Judge {
        let judge = &self.experiment.judge;
        let kind = match judge.kind {
            _ if judge.stand_in => JudgeKind::StandIn,
            experiment::JudgeKind::Openai => JudgeKind::Openai,
            experiment::JudgeKind::Local => JudgeKind::Local,
            experiment::JudgeKind::Reference => JudgeKind::Reference,
        };
        records::Judge { name: self.judge.to_owned(), kind, caption: judge.caption.clone() }
    }

    /// The base models, adapters, the judge's model and wording, the gate's model, and every file of instructions and prompts, by content.
    /// Files of one language are numbered: they may have one name in several folders.
    fn hashes(&self) -> Result<BTreeMap<String, String>> {
        let bases = self.plan.base_hashes.iter();
        let bases = bases.map(|(name, hash)| (format!("base model {name}"), hash));
        let others = self.plan.model_hashes.iter().map(|(name, hash)| (name.clone(), hash));
        let mut hashes: BTreeMap<String, String> =
            bases.chain(others).map(|(name, hash)| (name, format!("blake3:{hash}"))).collect();
        let named = [
            ("the gate's model", self.experiment.gate.lid.as_deref()),
            ("the judge's wording", self.experiment.judge.prompt_template.as_deref()),
        ];
        for (name, path) in named {
            if let Some(path) = path {
                hashes.insert(name.to_owned(), format!("blake3:{}", hash_file(path)?.blake3));
            }
        }
        let kinds = [("instructions", &self.experiment.instructions), ("prompts", &self.experiment.prompts)];
        for (kind, by_language) in kinds {
            for (code, files) in by_language {
                for (number, path) in files.iter().enumerate() {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let key = format!("{kind} {code} {}: {name}", number + 1);
                    hashes.insert(key, format!("blake3:{}", hash_file(path)?.blake3));
                }
            }
        }
        Ok(hashes)
    }

    /// The settings that were given, and under `resolved` all that they come to, without paths: what lies behind those is
    /// told by its hash.
    fn settings(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        let mut settings = BTreeMap::new();
        settings.insert("preset".to_owned(), serde_json::to_value(self.experiment.experiment.preset)?);
        settings.extend(flattened("tune", &serde_json::to_value(&self.experiment.tune)?));
        settings.extend(flattened("answer", &serde_json::to_value(&self.experiment.answer)?));
        let grid = &self.experiment.experiment;
        for &method in &grid.methods {
            settings.extend(flattened(&format!("resolved.{}", method.name()), &self.resolved(method)?));
        }
        for model in self.experiment.base_model.iter().filter(|model| model.pretraining.is_some()) {
            let name = format!("base_model.{}.pretraining", model.name);
            settings.extend(flattened(&name, &serde_json::to_value(&model.pretraining)?));
        }
        for recipe in grid.recipes.iter().filter_map(|name| self.experiment.recipe(name)) {
            let mut told = serde_json::to_value(&recipe)?;
            if let Some(told) = told.as_object_mut() {
                told.retain(|key, _| key != "name" && key != "description");
            }
            settings.extend(flattened(&format!("recipe.{}", recipe.name), &told));
        }
        // A template is one of the program's by its name, or a file, of which its name is enough.
        for (_, value) in settings.iter_mut().filter(|(name, _)| name.ends_with("template")) {
            if let Some(file) = value.as_str().and_then(|path| Path::new(path).file_name()) {
                *value = file.to_string_lossy().into_owned().into();
            }
        }
        Ok(settings)
    }

    /// All that a method's settings come to, what the preset says beside what was given too.
    fn resolved(&self, method: Method) -> Result<serde_json::Value> {
        let preset = self.experiment.experiment.preset;
        let tune = self.experiment.tune.for_method(method);
        let mut resolved = serde_json::to_value(settings::tuning(preset, method, &tune, 0))?;
        if let Some(resolved) = resolved.as_object_mut() {
            resolved.retain(|name, _| name != "seed" && name != "method");
            if self.experiment.budget.held == Held::Updates {
                // Each mix says for how many updates its system is tuned.
                resolved.remove("length");
            }
            let template = settings::template(preset, Some(method), tune.template.as_deref());
            resolved.insert("template".to_owned(), template.to_string().into());
            let decoding = settings::decoding(preset, Some(method), &self.experiment.answer);
            resolved.insert("answer".to_owned(), serde_json::to_value(decoding)?);
        }
        Ok(resolved)
    }

    fn problems(&self) -> Vec<records::Problem> {
        let problems = self.inputs.problems.iter().map(|problem| records::Problem {
            place: problem.file.display().to_string(),
            message: problem.to_string(),
        });
        let differences = self
            .inputs
            .differences
            .iter()
            .map(|message| records::Problem { place: "prompts".to_owned(), message: message.clone() });
        problems.chain(differences).collect()
    }

    fn system(&self, system: &System) -> Result<records::System> {
        let reason = system.made_by.iter().find_map(|cell| self.outcome.reason(self.plan, *cell));
        let made = system.made_by.iter().all(|cell| self.outcome.finished.contains_key(cell));
        let status = match (&reason, made) {
            (Some(_), _) => SystemStatus::Failed,
            (None, true) => SystemStatus::Done,
            (None, false) => SystemStatus::Missing,
        };
        let tuned = system.tuning.and_then(|cell| self.outcome.finished.get(&cell));
        let tuning = tuned.map(|folder| read_tuning(folder)).transpose()?;
        let cost = tuning.as_ref().map(|tuning| Cost {
            rows: system.cost.map_or(tuning.rows, |(_, rows)| rows),
            tokens: tuning.tokens,
            updates: tuning.updates,
            flops: tuning.flops,
            seconds: tuning.seconds,
            in_c: system.cost.map_or(0.0, |(in_c, _)| in_c),
        });
        Ok(records::System {
            id: system.id.clone(),
            kind: system.kind,
            base_model: system.base_model.clone(),
            method: system.method.map(|method| method.name().to_owned()),
            recipe: system.recipe.clone(),
            languages: system.languages.iter().map(|language| language.code().to_owned()).collect(),
            seed: system.seed,
            status,
            message: reason,
            cost,
            learning_curve: tuning.as_ref().map(|tuning| tuning.curve.clone()).unwrap_or_default(),
            best_update: tuning.and_then(|tuning| tuning.best_update),
        })
    }

    /// The scores of one system in one language: as its cell has them, or as failed or missing.
    fn scores(
        &self,
        system: &System,
        language: &Language,
        answers: usize,
        cell: usize,
    ) -> Result<Vec<Score>> {
        if let Some(folder) = self.outcome.finished.get(&cell) {
            let mut scores = read_scores(folder)?;
            for score in &mut scores {
                score.system.clone_from(&system.id);
            }
            return Ok(scores);
        }
        let reason = self.outcome.reason(self.plan, cell).or_else(|| self.outcome.reason(self.plan, answers));
        let prompts = self.inputs.prompts.get(language).map(Vec::as_slice).unwrap_or_default();
        Ok(prompts.iter().map(|prompt| absent(system, language, prompt, reason.clone())).collect())
    }
}

fn absent(system: &System, language: &Language, prompt: &Prompt, reason: Option<String>) -> Score {
    let status = if reason.is_some() { ScoreStatus::Failed } else { ScoreStatus::Missing };
    Score {
        system: system.id.clone(),
        language: language.code().to_owned(),
        prompt_id: prompt.id.clone(),
        prompt: prompt.prompt.clone(),
        reference: prompt.reference().map(str::to_owned),
        response: None,
        gate: None,
        label: None,
        identified: None,
        probability: None,
        rating: None,
        reason,
        explanation: None,
        status,
    }
}

/// The processor's name and its cores, where the system tells them.
fn hardware() -> BTreeMap<String, String> {
    let mut hardware = BTreeMap::new();
    if let Ok(cores) = std::thread::available_parallelism() {
        hardware.insert("cores".to_owned(), cores.to_string());
    }
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    if let Some((_, name)) = name {
        hardware.insert("cpu".to_owned(), name.trim().to_owned());
    }
    hardware
}
