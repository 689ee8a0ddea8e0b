//! What an experiment file must hold beyond its form, checked before anything starts.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;

use endpoint::EndpointError;
use endpoint::chat::completions_url;
use endpoint::settings::{MOST_DOLLARS, REQUESTS_PER_MINUTE};
use instructions::files::is_file_name;
use instructions::language::Language;
use instructions::recipe::Recipe;
use model::Family;
use report::results::UNTUNED;
use serde_json::Value;

use super::error::nearest;
use super::{Experiment, ExtraSystem, Files, Held, JudgeKind, Method, Preset, Problem, Source, Tune};
use crate::settings;

/// Four times the pieces of the largest vocabularies: a tokenizer's training sets memory aside for each.
const MOST_PIECES: usize = 1 << 20;
/// More than any search has kept, and few enough to be laid out in memory.
const MOST_BEAMS: usize = 1 << 10;
/// More than any model's context, and few enough to be counted.
const MOST_NEW_TOKENS: usize = 1 << 20;
/// Of OpenAI's chat completions.
const MOST_STOPS: usize = 4;
/// Seconds: whoever waits longer before a second try has meant something else.
const LONGEST_BACKOFF: f64 = 3600.0;

/// Every problem of an experiment whose paths are resolved.
pub(super) fn check(experiment: &Experiment, source: &Source) -> Vec<Problem> {
    let mut checker = Checker { experiment, source, problems: Vec::new() };
    checker.grid();
    checker.languages();
    checker.recipes();
    checker.base_models();
    checker.files();
    checker.settings();
    checker.judge();
    checker.systems();
    checker.problems
}

struct Checker<'a> {
    experiment: &'a Experiment,
    source: &'a Source,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn problem(&mut self, key: &[&str], message: impl Into<String>) {
        let problem = self.source.at(key, message);
        self.problems.push(problem);
    }

    fn grid(&mut self) {
        let grid = &self.experiment.experiment;
        if !is_file_name(&grid.name) {
            let message = format!(
                "the name {:?} names the run's folder: expected letters, digits, `-`, `_` and `.`",
                grid.name
            );
            self.problem(&["experiment", "name"], message);
        }
        if grid.seeds.is_empty() {
            self.problem(&["experiment", "seeds"], "no seed: expected at least one");
        }
        self.repeated("seeds", grid.seeds.iter().map(ToString::to_string));
        if grid.methods.is_empty() {
            self.problem(&["experiment", "methods"], "no method: expected `lora`, `full` or both");
        }
        if let Some(score) = grid.minimum_score {
            self.not_negative(&["experiment", "minimum_score"], Some(score));
        }
        self.repeated("methods", grid.methods.iter().map(|method| method.name().to_owned()));
    }

    fn languages(&mut self) {
        let experiment = self.experiment;
        let grid = &experiment.experiment;
        if grid.languages.is_empty() {
            self.problem(&["experiment", "languages"], "no language: expected at least one");
        }
        let all = experiment.all_languages().chain(grid.training_languages.iter().map(String::as_str));
        self.repeated("languages", all.map(str::to_owned));
        for (key, codes) in [
            ("languages", &grid.languages),
            ("unseen_languages", &grid.unseen_languages),
            ("training_languages", &grid.training_languages),
        ] {
            for (number, code) in codes.iter().enumerate() {
                self.language(&["experiment", key, &number.to_string()], code);
            }
        }
        for code in experiment.tuned_languages() {
            if !experiment.instructions.contains_key(code) {
                self.problem(&["instructions"], format!("no instructions for the seen language `{code}`"));
            }
        }
        for code in experiment.instructions.keys() {
            if !experiment.tuned_languages().any(|tuned| tuned == code) {
                let message = format!(
                    "instructions for `{code}`, which is neither among [experiment] languages {:?} nor training_languages",
                    grid.languages
                );
                self.problem(&["instructions", code], message);
            }
        }
        for code in experiment.all_languages() {
            if !experiment.prompts.contains_key(code) {
                self.problem(&["prompts"], format!("no prompts for the language `{code}`"));
            }
        }
        for code in experiment.prompts.keys() {
            if !experiment.all_languages().any(|known| known == code) {
                let message = format!(
                    "prompts for `{code}`, which is neither among [experiment] languages nor unseen_languages"
                );
                self.problem(&["prompts", code], message);
            }
        }
    }

    fn language(&mut self, key: &[&str], code: &str) {
        if let Err(message) = known_language(code) {
            self.problem(key, message);
        }
    }

    fn recipes(&mut self) {
        let experiment = self.experiment;
        let grid = &experiment.experiment;
        self.repeated("recipes", grid.recipes.iter().cloned());
        for (number, name) in grid.recipes.iter().enumerate() {
            let key = ["experiment", "recipes", &number.to_string()];
            if experiment.recipe(name).is_none() {
                let own = experiment.recipe.iter().map(|recipe| recipe.name.as_str());
                let mut message =
                    format!("unknown recipe `{name}`: expected one of {:?}, or a [[recipe]]", Recipe::PAPER);
                if let Some(meant) = nearest(name, Recipe::PAPER.into_iter().chain(own)) {
                    message += &format!("; did you mean `{meant}`?");
                }
                self.problem(&key, message);
            }
            if name == "english" && !experiment.tuned_languages().any(|code| code == "en") {
                self.problem(&key, "the recipe `english` needs `en` among [experiment] languages");
            }
        }
        for (number, recipe) in experiment.recipe.iter().enumerate() {
            let number = number.to_string();
            if Recipe::PAPER.contains(&recipe.name.as_str()) || !is_file_name(&recipe.name) {
                let message = format!("a recipe of one's own cannot be named `{}`", recipe.name);
                self.problem(&["recipe", &number, "name"], message);
            } else if let Err(error) = recipe.check() {
                self.problem(&["recipe", &number], format!("{error:#}"));
            }
            for language in &recipe.languages {
                if !experiment.tuned_languages().any(|code| code == language.code()) {
                    let message = format!("`{language}` is not among [experiment] languages");
                    self.problem(&["recipe", &number, "languages"], message);
                }
            }
        }
        if grid.recipes.is_empty() && !grid.include_base && experiment.system.is_empty() {
            let message = "nothing to do: expected a recipe, `include_base = true` or a [[system]]";
            self.problem(&["experiment", "recipes"], message);
        }
        let custom: Vec<String> = experiment.recipe.iter().map(|recipe| recipe.name.clone()).collect();
        self.repeated_names("recipe", &custom);
    }

    fn base_models(&mut self) {
        let experiment = self.experiment;
        if experiment.base_model.is_empty() {
            self.problem(&["experiment"], "no base model: expected at least one [[base_model]]");
        }
        let names: Vec<String> = experiment.base_model.iter().map(|model| model.name.clone()).collect();
        self.repeated_names("base_model", &names);
        let grid_methods = &experiment.experiment.methods;
        for (number, model) in experiment.base_model.iter().enumerate() {
            let number = number.to_string();
            if !is_file_name(&model.name) {
                let message =
                    format!("the name {:?}: expected letters, digits, `-`, `_` and `.`", model.name);
                self.problem(&["base_model", &number, "name"], message);
            }
            let own = model.methods.as_deref();
            if own
                .is_some_and(|own| own.is_empty() || own.iter().any(|method| !grid_methods.contains(method)))
            {
                let message = format!("`{}`: expected some of [experiment] methods", model.name);
                self.problem(&["base_model", &number, "methods"], message);
            }
            let scratch = model.config.is_some();
            if model.path.is_some() == scratch {
                self.problem(
                    &["base_model", &number],
                    format!("`{}`: expected either `path`, or `config` to train it from scratch", model.name),
                );
            }
            if let Some(path) = &model.path {
                self.exists(&["base_model", &number, "path"], path);
            }
            if let Some(config) = &model.config {
                self.config(&["base_model", &number, "config"], config, model.tokenizer_vocabulary);
            }
            self.scratch(&number, model, scratch);
        }
    }

    fn scratch(&mut self, number: &str, model: &super::BaseModel, scratch: bool) {
        let given = [
            ("text", !model.text.is_empty()),
            ("tokenizer_vocabulary", model.tokenizer_vocabulary.is_some()),
            ("pretraining", model.pretraining.is_some()),
        ];
        for (key, given) in given {
            if scratch && !given {
                let message = format!("`{}` is trained from scratch: `{key}` is missing", model.name);
                self.problem(&["base_model", number, "config"], message);
            }
            if !scratch && given {
                let message = format!("`{key}` is only for a base model trained from scratch (`config`)");
                self.problem(&["base_model", number, key], message);
            }
        }
        for (code, files) in &model.text {
            self.language(&["base_model", number, "text", code], code);
            self.all_exist(&["base_model", number, "text", code], files);
            for path in files.iter() {
                self.text(&["base_model", number, "text", code], path);
            }
        }
        // Byte-level BPE starts from the 256 bytes and the end-of-text token.
        if let Some(size) = model.tokenizer_vocabulary
            && !(257..=MOST_PIECES).contains(&size)
        {
            let message = format!(
                "tokenizer_vocabulary is {size}: expected at least 257 (bytes, end of text), at most {MOST_PIECES}"
            );
            self.problem(&["base_model", number, "tokenizer_vocabulary"], message);
        }
        if let Some(pretraining) = &model.pretraining {
            let key = |name| ["base_model", number, "pretraining", name];
            self.either(
                &key("updates")[..3],
                pretraining.updates.is_some(),
                pretraining.epochs.is_some(),
                true,
            );
            for problem in settings::pretraining(pretraining).problems() {
                self.problem(&key(problem.name), problem.to_string());
            }
        }
    }

    fn files(&mut self) {
        let experiment = self.experiment;
        for (section, files) in [("instructions", &experiment.instructions), ("prompts", &experiment.prompts)]
        {
            for (code, files) in files {
                self.all_exist(&[section, code], files);
            }
        }
        if let Some(lid) = &experiment.gate.lid {
            self.exists(&["gate", "lid"], lid);
        }
    }

    fn settings(&mut self) {
        let experiment = self.experiment;
        self.budget();
        self.tune(&["tune"], &experiment.tune);
        let parts = [("lora", &experiment.tune.lora), ("full", &experiment.tune.full)];
        for (name, part) in parts {
            if let Some(part) = part {
                self.tune(&["tune", name], part);
                if part.lora.is_some() || part.full.is_some() {
                    self.problem(&["tune", name], "a method's own settings have no further `lora` or `full`");
                }
            }
        }
        let answer = &experiment.answer;
        let key = |name| ["answer", name];
        self.count(&key("beams"), answer.beams, MOST_BEAMS);
        self.count(&key("new_tokens"), answer.new_tokens, MOST_NEW_TOKENS);
        self.above_zero(&key("repetition_penalty"), answer.repetition_penalty);
        self.above_zero(&key("temperature"), answer.temperature);
        if let Some(penalty) = answer.length_penalty.filter(|penalty| !penalty.is_finite()) {
            let message = format!("length_penalty is {penalty}: expected a finite number");
            self.problem(&key("length_penalty"), message);
        }
        if answer.stop.iter().flatten().any(String::is_empty) {
            self.problem(&key("stop"), "stop holds an empty text, which every response begins with");
        }
        let endpoint = experiment.system.iter().any(|system| system.endpoint.is_some());
        if let Some(stop) = answer.stop.as_ref().filter(|stop| endpoint && stop.len() > MOST_STOPS) {
            let message = format!("stop has {} texts: an endpoint takes {MOST_STOPS}", stop.len());
            self.problem(&key("stop"), message);
        }
        self.above_zero(&key("batch_tokens"), answer.batch_tokens.map(|value| value as f64));
        self.share(&key("top_p"), answer.top_p);
        for (name, given) in [
            ("temperature", answer.temperature.is_some()),
            ("top_p", answer.top_p.is_some()),
            ("top_k", answer.top_k.is_some()),
            ("seed", answer.seed.is_some()),
        ] {
            if given && answer.sample != Some(true) {
                self.problem(&key(name), format!("`{name}` is only for `sample = true`"));
            }
        }
        if answer.sample == Some(true) && answer.beams.is_some_and(|beams| beams > 1) {
            self.problem(&key("sample"), "`sample` and `beams` above 1 exclude each other");
        }
        if let Some(template) = &answer.template {
            self.template(&key("template"), template);
        }
    }

    fn budget(&mut self) {
        let experiment = self.experiment;
        let budget = &experiment.budget;
        self.above_zero(&["budget", "rows"], budget.rows.map(|value| value as f64));
        self.above_zero(&["budget", "c"], budget.c.map(|value| value as f64));
        if budget.rows.is_some() && budget.c.is_some() {
            self.problem(&["budget", "c"], "`rows` and `c` exclude each other: expected one of them");
        }
        if budget.rows.is_some() && budget.held != Held::Rows {
            self.problem(&["budget", "rows"], "`rows` is C where rows are held: expected `c` in its place");
        }
        if budget.held == Held::Updates {
            if budget.c.is_none() {
                let message = "`updates` are held: expected `c`, the updates of one monolingual run";
                self.problem(&["budget", "held"], message);
            }
            if budget.c.is_some_and(|c| c > tune::MOST_UPDATES) {
                let message =
                    format!("c is more updates than a run can have: expected at most {}", tune::MOST_UPDATES);
                self.problem(&["budget", "c"], message);
            }
            for method in &experiment.experiment.methods {
                let tune = experiment.tune.for_method(*method);
                for (key, given) in [("updates", tune.updates.is_some()), ("epochs", tune.epochs.is_some())] {
                    if given {
                        let message = format!("`{key}` and a budget held in updates exclude each other");
                        self.problem(&["tune", key], message);
                    }
                }
            }
        }
        match &budget.base_model {
            Some(name) if !budget.counts_tokens() => {
                let message = format!("`{name}` counts nothing: expected `held` to be `tokens` or `flops`");
                self.problem(&["budget", "base_model"], message);
            }
            Some(name) => match experiment.base_model.iter().find(|model| model.name == *name) {
                None => {
                    self.problem(&["budget", "base_model"], format!("no [[base_model]] is called `{name}`"));
                }
                Some(model) => self.counts("base_model", model),
            },
            None if budget.counts_tokens() => match experiment.base_model.as_slice() {
                [only] => self.counts("held", only),
                _ => {
                    let message =
                        "with several base models `base_model` says whose tokenizer counts: it is missing";
                    self.problem(&["budget", "held"], message);
                }
            },
            None => {}
        }
    }

    /// A base model that is to count tokens has to have a tokenizer before anything runs.
    fn counts(&mut self, key: &str, model: &super::BaseModel) {
        if model.path.is_none() {
            let message =
                format!("`{}` is trained from scratch, and has no tokenizer to count with yet", model.name);
            self.problem(&["budget", key], message);
        }
    }

    fn tune(&mut self, section: &[&str], tune: &Tune) {
        let key = |name| [section, &[name]].concat();
        self.either(section, tune.updates.is_some(), tune.epochs.is_some(), false);
        // What is not given is a preset's, which has no problem.
        for problem in settings::tuning(Preset::Paper, Method::Lora, tune, 0).problems() {
            self.problem(&key(problem.name), problem.to_string());
        }
        if tune.modules.as_ref().is_some_and(Vec::is_empty) {
            let message = "modules is empty: expected at least one; left out, it is query, key and value";
            self.problem(&key("modules"), message);
        }
        if section.len() > 1 && tune.validation_rows.is_some() {
            let message = "validation rows are set apart for all methods at once: expected in [tune]";
            self.problem(&key("validation_rows"), message);
        }
        if let Some(template) = &tune.template {
            self.template(&key("template"), template);
        }
    }

    fn judge(&mut self) {
        let judge = &self.experiment.judge;
        let openai = judge.kind == JudgeKind::Openai;
        let local = judge.kind == JudgeKind::Local;
        for (key, needed, given) in [
            ("endpoint", openai, judge.endpoint.is_some()),
            ("model", openai, judge.model.is_some()),
            ("path", local, judge.path.is_some()),
        ] {
            if needed && !given {
                self.problem(&["judge", "kind"], format!("the judge `{}` needs `{key}`", judge.kind.name()));
            }
        }
        for (key, kinds, of_kind, given) in [
            ("endpoint", "\"openai\"", openai, judge.endpoint.is_some()),
            ("model", "\"openai\"", openai, judge.model.is_some()),
            ("key_variable", "\"openai\"", openai, judge.key_variable.is_some()),
            ("concurrency", "\"openai\"", openai, judge.concurrency.is_some()),
            ("requests_per_minute", "\"openai\"", openai, judge.requests_per_minute.is_some()),
            ("tries", "\"openai\"", openai, judge.tries.is_some()),
            ("backoff", "\"openai\"", openai, judge.backoff.is_some()),
            ("price", "\"openai\"", openai, judge.price.is_some()),
            ("cap", "\"openai\"", openai, judge.cap.is_some()),
            ("path", "\"local\"", local, judge.path.is_some()),
            ("prompt_template", "\"openai\" or \"local\"", openai || local, judge.prompt_template.is_some()),
            ("thresholds", "\"reference\"", !openai && !local, judge.thresholds.is_some()),
        ] {
            if given && !of_kind {
                self.problem(&["judge", key], format!("`{key}` is only for `kind = {kinds}`"));
            }
        }
        if let Some(path) = &judge.path {
            self.exists(&["judge", "path"], path);
        }
        self.spending();
        if let Some(backoff) = judge.backoff {
            self.up_to(&["judge", "backoff"], backoff, LONGEST_BACKOFF);
        }
        self.above_zero(&["judge", "tries"], judge.tries.map(f64::from));
        if let Some(endpoint) = &judge.endpoint {
            self.url(&["judge", "endpoint"], endpoint);
        }
        if let Some(template) = &judge.prompt_template {
            self.exists(&["judge", "prompt_template"], template);
        }
        if judge.concurrency == Some(0) {
            self.problem(&["judge", "concurrency"], "concurrency is 0: expected at least 1");
        }
        self.rate(&["judge", "requests_per_minute"], judge.requests_per_minute);
        if let Some([two, three]) = judge.thresholds
            && !(0.0 <= two && two <= three && three <= 100.0)
        {
            let message =
                format!("thresholds are [{two}, {three}]: expected two chrF++ from 0 to 100, rising");
            self.problem(&["judge", "thresholds"], message);
        }
    }

    /// A price or a cap that cannot be reckoned with would let a run spend without end.
    fn spending(&mut self) {
        let judge = &self.experiment.judge;
        if let Some(price) = judge.price {
            self.up_to(&["judge", "price", "prompt"], price.prompt, MOST_DOLLARS);
            self.up_to(&["judge", "price", "completion"], price.completion, MOST_DOLLARS);
        }
        if let Some(cap) = judge.cap {
            self.up_to(&["judge", "cap"], cap, MOST_DOLLARS);
            if judge.price.is_none() {
                self.problem(&["judge", "cap"], "`cap` needs `price = { prompt = ..., completion = ... }`");
            }
        }
    }

    fn systems(&mut self) {
        let experiment = self.experiment;
        let names: Vec<String> = experiment.system.iter().map(|system| system.name.clone()).collect();
        self.repeated_names("system", &names);
        for (number, system) in experiment.system.iter().enumerate() {
            let number = number.to_string();
            let key = |name| ["system", &number, name];
            if let Some(message) = self.unusable_name(&system.name) {
                self.problem(&key("name"), message);
            }
            match (&system.adapter, &system.endpoint) {
                (Some(adapter), None) => self.adapter_system(&number, system, adapter),
                (None, Some(endpoint)) => self.endpoint_system(&number, system, endpoint),
                _ => self.problem(
                    &key("name"),
                    format!("`{}`: expected either `adapter` or `endpoint`", system.name),
                ),
            }
        }
    }

    /// Why a system of one's own cannot have a name: the report tells systems apart by them.
    fn unusable_name(&self, name: &str) -> Option<String> {
        let grid = &self.experiment.experiment;
        let of_base = |model: &&super::BaseModel| {
            name.strip_prefix(model.name.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        if name.trim().is_empty() {
            Some("a system's name is empty".to_owned())
        } else if name.trim() != name || name.chars().any(char::is_control) {
            Some(format!("the name {name:?}: expected one line, with no space around it"))
        } else if name == UNTUNED || grid.recipes.iter().any(|recipe| recipe == name) {
            Some(format!(
                "the name `{name}`: expected another, the report has it for systems of the experiment's own"
            ))
        } else {
            let base = self.experiment.base_model.iter().find(of_base)?;
            Some(format!(
                "the name `{name}`: expected another, systems of the base model `{}` begin so",
                base.name
            ))
        }
    }

    fn adapter_system(&mut self, number: &str, system: &ExtraSystem, adapter: &Path) {
        let key = |name| ["system", number, name];
        self.exists(&key("adapter"), adapter);
        if adapter.exists() && !adapter.join("adapter_config.json").is_file() {
            let message = format!("{}: expected a PEFT folder, with adapter_config.json", adapter.display());
            self.problem(&key("adapter"), message);
        }
        let known = |name: &String| self.experiment.base_model.iter().any(|model| model.name == *name);
        if !system.base_model.as_ref().is_some_and(known) {
            let message =
                format!("the adapter `{}` needs `base_model`: the name of a [[base_model]]", system.name);
            self.problem(&key("base_model"), message);
        }
        for (name, given) in [
            ("model", system.model.is_some()),
            ("key_variable", system.key_variable.is_some()),
            ("requests_per_minute", system.requests_per_minute.is_some()),
        ] {
            if given {
                self.problem(&key(name), format!("`{name}` is only for a system with an `endpoint`"));
            }
        }
    }

    fn endpoint_system(&mut self, number: &str, system: &ExtraSystem, endpoint: &str) {
        let key = |name| ["system", number, name];
        self.url(&key("endpoint"), endpoint);
        if system.model.is_none() {
            self.problem(&key("endpoint"), "an endpoint needs `model`");
        }
        if system.base_model.is_some() {
            self.problem(&key("base_model"), "`base_model` is only for a system with an `adapter`");
        }
        self.rate(&key("requests_per_minute"), system.requests_per_minute);
    }

    fn all_exist(&mut self, key: &[&str], files: &Files) {
        if files.0.is_empty() {
            self.problem(key, "no file: expected at least one");
        }
        for path in files.iter() {
            self.exists(key, path);
        }
    }

    fn exists(&mut self, key: &[&str], path: &Path) {
        if !path.exists() {
            self.problem(key, format!("no such file: {}", path.display()));
        }
    }

    /// The configuration of a base model that is trained from scratch, and the modules that it has.
    fn config(&mut self, key: &[&str], path: &Path, vocabulary: Option<usize>) {
        let json = match std::fs::read(path) {
            Err(_) if !path.exists() => return self.exists(key, path),
            Err(error) => return self.problem(key, format!("{}: {error}", path.display())),
            Ok(text) => serde_json::from_slice::<Value>(&text),
        };
        let mut json = match json {
            Ok(json) if json.is_object() => json,
            Ok(_) => return self.problem(key, format!("{}: expected a JSON object", path.display())),
            Err(error) => {
                return self.problem(key, format!("{}: expected a JSON object: {error}", path.display()));
            }
        };
        // The tokenizer's own take their places, once it is trained.
        for name in ["bos_token_id", "eos_token_id"] {
            json[name] = 0.into();
        }
        json["vocab_size"] = vocabulary.unwrap_or(MOST_PIECES).clamp(257, MOST_PIECES).into();
        match Family::read_config(path, &json) {
            Err(error) => self.problem(key, error.to_string()),
            Ok(published) => {
                let wrong = self.experiment.wrong_modules(self.source, published.family, &published.config);
                self.problems.extend(wrong);
            }
        }
    }

    /// A plain text, of which the first line that is not UTF-8 is named.
    fn text(&mut self, key: &[&str], path: &Path) {
        if !path.exists() {
            return;
        }
        let told = match std::fs::File::open(path) {
            Ok(file) => not_utf8(&mut BufReader::new(file)),
            Err(error) => Some(error.to_string()),
        };
        if let Some(told) = told {
            self.problem(key, format!("the text {}: {told}", path.display()));
        }
    }

    fn template(&mut self, key: &[&str], template: &str) {
        if !super::TEMPLATES.contains(&template) && !Path::new(template).exists() {
            let message = format!(
                "no such template: {template}; expected `alpaca`, `stanford-alpaca` or the path of a file"
            );
            self.problem(key, message);
        }
    }

    fn url(&mut self, key: &[&str], url: &str) {
        let wrong = match completions_url(url) {
            Ok(_) => return,
            Err(EndpointError::Endpoint { reason, .. }) => reason,
            Err(error) => error.to_string(),
        };
        self.problem(key, format!("{url:?}: expected a URL that starts with http:// or https://: {wrong}"));
    }

    fn either(&mut self, section: &[&str], updates: bool, epochs: bool, needed: bool) {
        if updates && epochs {
            self.problem(section, "`updates` and `epochs` exclude each other: expected one of them");
        }
        if needed && !updates && !epochs {
            self.problem(section, "neither `updates` nor `epochs`: expected one of them");
        }
    }

    fn above_zero(&mut self, key: &[&str], value: Option<f64>) {
        if let Some(value) = value
            && !(value > 0.0 && value.is_finite())
        {
            self.problem(key, format!("{} is {value}: expected above 0", last(key)));
        }
    }

    fn count(&mut self, key: &[&str], value: Option<usize>, most: usize) {
        self.above_zero(key, value.map(|value| value as f64));
        if let Some(value) = value
            && value > most
        {
            self.problem(key, format!("{} is {value}: expected at most {most}", last(key)));
        }
    }

    fn not_negative(&mut self, key: &[&str], value: Option<f64>) {
        if let Some(value) = value
            && !(value >= 0.0 && value.is_finite())
        {
            self.problem(key, format!("{} is {value}: expected 0 or above", last(key)));
        }
    }

    fn up_to(&mut self, key: &[&str], value: f64, most: f64) {
        if !(0.0..=most).contains(&value) {
            self.problem(key, format!("{} is {value}: expected from 0 up to {most}", last(key)));
        }
    }

    /// Requests a minute.
    fn rate(&mut self, key: &[&str], value: Option<f64>) {
        let (least, most) = (REQUESTS_PER_MINUTE.start(), REQUESTS_PER_MINUTE.end());
        if let Some(value) = value.filter(|value| !REQUESTS_PER_MINUTE.contains(value)) {
            self.problem(key, format!("{} is {value}: expected from {least} up to {most}", last(key)));
        }
    }

    fn share(&mut self, key: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.up_to(key, value, 1.0);
        }
    }

    fn repeated(&mut self, key: &str, values: impl IntoIterator<Item = String>) {
        let mut met = BTreeSet::new();
        for value in values {
            if !met.insert(value.clone()) {
                self.problem(&["experiment", key], format!("`{value}` is given twice"));
            }
        }
    }

    fn repeated_names(&mut self, section: &str, names: &[String]) {
        for (number, name) in names.iter().enumerate() {
            if names[..number].contains(name) {
                self.problem(
                    &[section, &number.to_string(), "name"],
                    format!("two [[{section}]] have the name `{name}`"),
                );
            }
        }
    }
}

/// What is wrong with a text that is to be UTF-8, if anything.
fn not_utf8(text: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match text.read_until(b'\n', &mut line) {
            Ok(0) => return None,
            Ok(_) if std::str::from_utf8(&line).is_ok() => {}
            Ok(_) => return Some(format!("line {number} is not UTF-8")),
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

fn last<'a>(key: &[&'a str]) -> &'a str {
    key.last().copied().unwrap_or_default()
}

/// Why a code is not a language's, if it is not. Only the shortest code is taken, so that one language has one name.
fn known_language(code: &str) -> Result<(), String> {
    match code.parse::<Language>() {
        Ok(language) if language.code() == code => Ok(()),
        Ok(language) => Err(format!("the language code `{code}`: expected `{language}`")),
        Err(_) => Err(format!("unknown language code `{code}`: expected ISO 639-1, else 639-3")),
    }
}
