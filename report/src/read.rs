//! An experiment folder read and checked, so that everything after it can rely on what it names.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::records::{
    EXPERIMENT_FILE, Experiment, SCORES_FILE, SYSTEMS_FILE, Score, ScoreStatus, System, SystemKind,
};

/// The three files of an experiment folder, checked.
#[derive(Debug, Clone)]
pub struct Records {
    /// `experiment.json`.
    pub experiment: Experiment,
    /// `systems.jsonl`, in its order.
    pub systems: Vec<System>,
    /// `scores.jsonl`, in its order.
    pub scores: Vec<Score>,
}

/// Reads the records of an experiment folder.
///
/// # Errors
/// A file that cannot be read or is not what [`crate::records`] says: the error names the file, the line, what was
/// found and what was expected.
pub fn read(directory: &Path) -> Result<Records> {
    let path = directory.join(EXPERIMENT_FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let experiment: Experiment = serde_json::from_str(&text)
        .with_context(|| format!("{}: is not an experiment's description", path.display()))?;
    check_experiment(&experiment).with_context(|| path.display().to_string())?;

    let path = directory.join(SYSTEMS_FILE);
    let systems: Vec<System> = read_lines(&path)?;
    let mut ids = HashSet::new();
    for (index, system) in systems.iter().enumerate() {
        check_system(&experiment, system)
            .and_then(|()| {
                ensure!(
                    ids.insert(system.id.as_str()),
                    "system id {:?} was used before; ids are unique",
                    system.id
                );
                Ok(())
            })
            .with_context(|| format!("{}:{}", path.display(), index + 1))?;
    }

    let path = directory.join(SCORES_FILE);
    let scores: Vec<Score> = read_lines(&path)?;
    let mut seen: HashMap<(&str, &str, &str), usize> = HashMap::new();
    for (index, score) in scores.iter().enumerate() {
        check_score(&experiment, &ids, score)
            .and_then(|()| {
                let key = (score.system.as_str(), score.language.as_str(), score.prompt_id.as_str());
                match seen.insert(key, index + 1) {
                    Some(first) => {
                        bail!("the same system, language and prompt_id stand in line {first}: {key:?}")
                    }
                    None => Ok(()),
                }
            })
            .with_context(|| format!("{}:{}", path.display(), index + 1))?;
    }
    Ok(Records { experiment, systems, scores })
}

/// Reads a JSON object a line. Empty lines are refused too: a line that is there says something.
fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}:{}: is not a record", path.display(), index + 1))
        })
        .collect()
}

fn check_experiment(experiment: &Experiment) -> Result<()> {
    let [least, greatest] = experiment.rating_range;
    ensure!(least < greatest, "rating_range: found [{least}, {greatest}], expected the lesser number first");
    ensure!(!experiment.languages.is_empty(), "languages: found none, expected at least one");
    unique("languages", experiment.languages.iter().map(|language| language.code.as_str()))?;
    unique("recipes", experiment.recipes.iter().map(|recipe| recipe.name.as_str()))?;
    unique("methods", experiment.methods.iter().map(String::as_str))?;
    unique("base_models", experiment.base_models.iter().map(|base| base.name.as_str()))?;
    for language in &experiment.languages {
        let count = experiment.prompts.get(&language.code).copied().unwrap_or(0);
        ensure!(count > 0, "prompts: found none for {:?}, expected their number", language.code);
    }
    for base in &experiment.base_models {
        ensure!(base.parameters > 0, "base_models: {:?} has 0 parameters", base.name);
    }
    Ok(())
}

fn unique<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        ensure!(seen.insert(name), "{key}: {name:?} is named twice");
    }
    Ok(())
}

fn check_system(experiment: &Experiment, system: &System) -> Result<()> {
    if let Some(base) = &system.base_model
        && system.kind != SystemKind::Endpoint
    {
        ensure!(
            experiment.base_models.iter().any(|known| &known.name == base),
            "system {:?}: base_model {base:?} is not among the experiment's base_models",
            system.id
        );
    }
    if matches!(system.kind, SystemKind::Base | SystemKind::Tuned) {
        ensure!(system.base_model.is_some(), "system {:?}: base_model is missing", system.id);
    }
    if system.kind != SystemKind::Tuned {
        return Ok(());
    }
    let Some(method) = &system.method else { bail!("system {:?}: method is missing", system.id) };
    ensure!(
        experiment.methods.contains(method),
        "system {:?}: method {method:?} is not among the experiment's methods",
        system.id
    );
    let Some(recipe) = &system.recipe else { bail!("system {:?}: recipe is missing", system.id) };
    let Some(known) = experiment.recipes.iter().find(|known| &known.name == recipe) else {
        bail!("system {:?}: recipe {recipe:?} is not among the experiment's recipes", system.id)
    };
    ensure!(
        !known.per_language || system.languages.len() == 1,
        "system {:?}: recipe {recipe:?} tunes a system a language, found languages {:?}",
        system.id,
        system.languages
    );
    Ok(())
}

fn check_score(experiment: &Experiment, systems: &HashSet<&str>, score: &Score) -> Result<()> {
    ensure!(systems.contains(score.system.as_str()), "no system has the id {:?}", score.system);
    ensure!(
        experiment.languages.iter().any(|language| language.code == score.language),
        "language {:?} is not among the experiment's languages",
        score.language
    );
    if let Some(gate) = score.gate {
        ensure!(gate <= 1, "gate: found {gate}, expected 0 or 1");
    }
    if let Some(rating) = score.rating {
        let [least, greatest] = experiment.rating_range;
        ensure!(
            (least..=greatest).contains(&rating),
            "rating: found {rating}, expected {least} to {greatest}"
        );
    }
    if score.status == ScoreStatus::Rated {
        ensure!(
            score.rating.is_some() && score.gate.is_some() && score.response.is_some(),
            "status is rated, but response, gate or rating is missing"
        );
    }
    Ok(())
}
