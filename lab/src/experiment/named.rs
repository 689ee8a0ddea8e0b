//! What an experiment file names, opened: models, the judge's wording, and the keys of endpoints.

use std::collections::BTreeMap;
use std::path::Path;

use endpoint::settings::EndpointSettings;
use engine::decoder::config::DecoderConfig;
use judge::identify::{Identifier, identifier};
use judge::prompt_template::PromptTemplate;
use model::adapter::{Adapter, AdapterConfig, Targets};
use model::{BaseModel, Family};

use super::{Experiment, ExperimentError, JudgeKind, Method, Problem, Source};

impl Experiment {
    /// Opens the base models, adapters, the gate's model, the judge's model and its wording, and looks for the endpoints'
    /// keys, so that what is wrong with them is told before any work and at its place in the file. For whoever plans or
    /// runs the whole: a job on a cluster's node may have no key, and asks nobody.
    ///
    /// # Errors
    /// Every problem found, each with file, line and column.
    pub fn open_named(&self, path: &Path) -> Result<(), ExperimentError> {
        let source = Source::read(path)?;
        let mut problems = Vec::new();
        let mut bases = BTreeMap::new();
        for (number, model) in self.base_model.iter().enumerate() {
            let Some(path) = &model.path else { continue };
            match BaseModel::open(path) {
                Ok(base) => {
                    problems.extend(self.wrong_modules(&source, base.family(), base.config()));
                    bases.insert(model.name.as_str(), base);
                }
                Err(error) => {
                    let key = ["base_model", &number.to_string(), "path"];
                    problems.push(source.at(&key, format!("{:#}", anyhow::Error::from(error))));
                }
            }
        }
        match identifier(self.gate.lid.as_deref(), None) {
            Ok(identifier) => problems.extend(self.unknown_languages(&source, &*identifier)),
            Err(error) => problems.push(source.at(&["gate", "lid"], error.to_string())),
        }
        if let Some(Err(error)) = self.judge.path.as_deref().map(BaseModel::open) {
            problems.push(source.at(&["judge", "path"], format!("{:#}", anyhow::Error::from(error))));
        }
        if let Some(Err(error)) = self.judge.prompt_template.as_deref().map(PromptTemplate::from_file) {
            problems.push(source.at(&["judge", "prompt_template"], error.to_string()));
        }
        if self.judge.kind == JudgeKind::Openai {
            problems.extend(missing_key(
                &source,
                &["judge", "key_variable"],
                self.judge.key_variable.as_ref(),
            ));
        }
        for (number, system) in self.system.iter().enumerate() {
            let key = ["system", &number.to_string(), "key_variable"];
            problems.extend(missing_key(&source, &key, system.key_variable.as_ref()));
            let base = system.base_model.as_deref().and_then(|name| bases.get(name));
            if let (Some(adapter), Some(base)) = (&system.adapter, base)
                && let Err(error) = Adapter::read(adapter, base.family(), base.config())
            {
                let key = ["system", &number.to_string(), "adapter"];
                problems.push(source.at(&key, format!("{:#}", anyhow::Error::from(error))));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(ExperimentError::Problems(problems)) }
    }

    /// Languages of the prompts that the gate's identifier has no label for.
    fn unknown_languages(&self, source: &Source, identifier: &dyn Identifier) -> Vec<Problem> {
        let known = |code: &str| code.parse().is_ok_and(|language| identifier.knows(&language));
        let name = self.gate.identifier_name();
        let told = |code: &str| {
            let advice = if self.gate.lid.is_some() { "" } else { "; `lid` names a fastText model" };
            let message =
                format!("{name} has no label for `{code}`: every response in it would score 0{advice}");
            source.at(&["prompts", code], message)
        };
        self.all_languages().filter(|code| !known(code)).map(told).collect()
    }

    /// Modules that are to have an adapter and that a base model does not have: each family has names of its own.
    pub(super) fn wrong_modules(
        &self,
        source: &Source,
        family: Family,
        config: &DecoderConfig,
    ) -> Option<Problem> {
        if !self.experiment.methods.contains(&Method::Lora) {
            return None;
        }
        let modules = self.tune.for_method(Method::Lora).modules.filter(|modules| !modules.is_empty())?;
        let own = self.tune.lora.as_ref().is_some_and(|own| own.modules.is_some());
        let key: &[&str] = if own { &["tune", "lora", "modules"] } else { &["tune", "modules"] };
        let adapter = AdapterConfig { targets: Targets::Names(modules), ..AdapterConfig::paper(family) };
        match adapter.modules(family, config) {
            Err(model::Error::Adapter { reason, .. }) => Some(source.at(key, reason)),
            Err(error) => Some(source.at(key, error.to_string())),
            Ok(_) => None,
        }
    }
}

fn missing_key(source: &Source, place: &[&str], variable: Option<&String>) -> Option<Problem> {
    let settings = EndpointSettings { key_variable: variable.cloned(), ..EndpointSettings::default() };
    settings.key().err().map(|error| source.at(place, error.to_string()))
}
