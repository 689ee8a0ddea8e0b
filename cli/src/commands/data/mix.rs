//! `polypaca data mix`: the mixes of recipes under a budget.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use instructions::budget::{Budget, CountFlops, CountTokens, Held};
use instructions::language::Language;
use instructions::mix::{MixOptions, Split, describe_c, for_each_mix};
use instructions::recipe::{Recipe, RecipeFile};
use instructions::record::Record;
use instructions::template::TemplateChoice;
use serde::Serialize;
use tune::cost::{Shape, sequence_flops};
use tune::{Method, Preset, Settings, TokenCounter};

use super::{Read, RowBar, SetFile, Tokenized, read};
use crate::commands::places::check_outputs;
use crate::commands::tune::{load_template, named, open};
use crate::commands::values::one_or_more;
use crate::failure::Failure;
use crate::output::Output;

/// A mix's files in its folder.
const FILES: [&str; 3] = ["rows.jsonl", "validation.jsonl", "manifest.json"];

/// Makes the mixes of recipes: a folder each, with rows.jsonl, validation.jsonl and manifest.json
#[derive(Debug, Args)]
pub(crate) struct Mix {
    /// A set's file: LANGUAGE=FILE, or LANGUAGE:ORIGIN=FILE (native, translated, round_trip)
    #[arg(value_name = "LANGUAGE=FILE", required = true)]
    files: Vec<SetFile>,

    /// monolingual, multilingual, english, downsampled, or one of --recipes; all of --recipes unless given
    #[arg(long, value_name = "NAME", required_unless_present = "recipes")]
    recipe: Vec<String>,

    /// Recipes of one's own: TOML with `[[recipe]]` tables and, if need be, a `[budget]`
    #[arg(long, value_name = "FILE")]
    recipes: Option<PathBuf>,

    /// What recipes are held equal in; as in --recipes, or rows. Tokens need --tokenizer or --model, FLOPs --model
    #[arg(long, value_parser = named::<Held>(&["rows", "tokens", "updates", "flops"]))]
    held: Option<Held>,

    /// C, the cost of one monolingual run, in what is held; what the smallest set costs unless given
    #[arg(long, value_name = "C", value_parser = one_or_more::<u64>())]
    budget: Option<u64>,

    /// With --held updates: sequences an update [default: as in --recipes, or 128]
    #[arg(long, value_name = "N", value_parser = one_or_more::<u64>())]
    batch: Option<u64>,

    /// With --held updates: passes over the smallest set [default: as in --recipes, or 5]
    #[arg(long, value_name = "N", value_parser = one_or_more::<u64>())]
    epochs: Option<u64>,

    /// Rows of each set that are held out for validation
    #[arg(long, value_name = "N", default_value_t = 0)]
    validation_rows: usize,

    /// Hold validation rows out by id, so that none is trained on in another language, or each set by itself
    #[arg(long, default_value = "id", value_parser = named::<Split>(&["id", "row"]))]
    split: Split,

    /// For every draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Count tokens with this tokenizer: a model's folder or GGUF file, or a tokenizer.json
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    tokenizer: Option<PathBuf>,

    /// Count tokens and FLOPs with this base model: a Hugging Face folder, a GGUF file, or its name on the Hub
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,

    /// The method that FLOPs are counted for
    #[arg(long, default_value = "lora", value_parser = named::<Method>(&["lora", "full"]))]
    method: Method,

    /// Tokens of the longest sequence, when counting
    #[arg(long, value_name = "TOKENS", default_value_t = Settings::preset(Preset::Paper, Method::Lora).cutoff)]
    cutoff: usize,

    /// The template, when counting: alpaca, stanford-alpaca, chat (the model's own) or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "alpaca")]
    template: TemplateChoice,

    /// The folder of the mixes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Mix {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let (recipes, budget) = self.recipes()?;
        self.check_places(&recipes)?;
        let Read { sets, problems, .. } = read(&self.files, output)?;
        let model = self.model.as_deref().map(|path| open(path, output)).transpose()?;
        let tokenized = self.tokenizer.as_deref().map(|path| Tokenized::open(path, output)).transpose()?;
        let tokenizer =
            model.as_ref().map(model::BaseModel::tokenizer).or(tokenized.as_ref().map(Tokenized::tokenizer));
        let template = load_template(&self.template, tokenizer)?;
        let counter = tokenizer.map(|tokenizer| TokenCounter::new(tokenizer, &template, self.cutoff));
        let bar = RowBar::new("counting tokens of rows", None);
        let count = |record: &Record| {
            bar.row();
            counter.as_ref().map_or(0, |counter| counter.count(record))
        };
        // Every token is taken as supervised, as in the paper's LoRA.
        let settings = Settings::preset(Preset::Paper, self.method);
        let shape = model.as_ref().map(|base| Shape::of(base, &settings)).transpose();
        let shape = shape.map_err(Failure::wrong_input)?;
        let flops_of = |tokens: usize| shape.as_ref().map_or(0, |shape| sequence_flops(shape, tokens) as u64);
        let options = MixOptions {
            languages: self.languages(),
            seed: self.seed,
            budget,
            validation_rows: self.validation_rows,
            split: self.split,
            tokens: counter.is_some().then_some(&count as CountTokens),
            flops: model.is_some().then_some(&flops_of as CountFlops),
        };
        let held = options.budget.held;
        let mut told: Vec<Told> = Vec::new();
        let mut written = Ok(());
        let made = for_each_mix(&recipes, &sets, &options, |mut mix| {
            for (language, problems) in &problems {
                if mix.manifest.languages.contains_key(language) {
                    mix.manifest.add_unread(language, problems);
                }
            }
            written = mix.write(&self.out.join(&mix.name));
            told.push(Told::new(&mix));
            if written.is_err() { bail!("a mix could not be written") } else { Ok(()) }
        });
        drop(bar);
        written.map_err(Failure::failed)?;
        made.map_err(Failure::wrong_input)?;
        counter.map_or(Ok(()), TokenCounter::finish).map_err(Failure::failed)?;
        tell(&told, held, output)
    }

    /// The recipes asked for, and what they are held equal in.
    fn recipes(&self) -> Result<(Vec<Recipe>, Budget), Failure> {
        let own = match &self.recipes {
            Some(path) => RecipeFile::read(path).map_err(Failure::wrong_input)?,
            None => RecipeFile::default(),
        };
        let mut budget = own.budget;
        budget.held = self.held.unwrap_or(budget.held);
        for (flag, given) in [("batch", self.batch), ("epochs", self.epochs)] {
            if given.is_some() && budget.held != Held::Updates {
                return Err(Failure::wrong_input(anyhow!(
                    "--{flag}: is only for --held updates; found {}",
                    budget.held
                )));
            }
        }
        budget.c = self.budget.or(budget.c);
        budget.batch = self.batch.unwrap_or(budget.batch);
        budget.epochs = self.epochs.unwrap_or(budget.epochs);
        if self.recipe.is_empty() {
            if own.recipe.is_empty() {
                return Err(Failure::wrong_input(anyhow!("--recipes: there is no [[recipe]] in the file")));
            }
            return Ok((own.recipe, budget));
        }
        let find = |name: &String| {
            let recipe = own.recipe.iter().find(|recipe| recipe.name == *name).cloned();
            recipe.or_else(|| Recipe::paper(name)).with_context(|| {
                format!("unknown recipe `{name}`: expected one of {:?}, or one of --recipes", Recipe::PAPER)
            })
        };
        let recipes =
            self.recipe.iter().map(find).collect::<anyhow::Result<_>>().map_err(Failure::wrong_input)?;
        Ok((recipes, budget))
    }

    /// Nothing that is read may be written over: a mix's rows are a set too. A mix has its recipe's name, or that with a
    /// language or the number of languages behind it.
    fn check_places(&self, recipes: &[Recipe]) -> Result<(), Failure> {
        let given = self.languages();
        let mut outputs = BTreeSet::new();
        for recipe in recipes {
            let languages = if recipe.languages.is_empty() { &given } else { &recipe.languages };
            let numbered = (1..=languages.len()).map(|number| format!("-{number}"));
            let ends = languages.iter().map(|language| format!("-{language}")).chain(numbered);
            for end in ends.chain([String::new()]) {
                let folder = self.out.join(format!("{}{end}", recipe.name));
                outputs.extend(FILES.map(|file| ("--out", folder.join(file))));
            }
        }
        let inputs = self.files.iter().map(|file| file.path.as_path()).chain(self.recipes.as_deref());
        check_outputs(&outputs.into_iter().collect::<Vec<_>>(), inputs)
    }

    /// The languages in the order in which they are given.
    fn languages(&self) -> Vec<Language> {
        let mut languages: Vec<Language> = Vec::new();
        for file in &self.files {
            if !languages.contains(&file.language) {
                languages.push(file.language.clone());
            }
        }
        languages
    }
}

/// A line a mix, or all of them as one object.
fn tell(told: &[Told], held: Held, output: &Output) -> Result<ExitCode, Failure> {
    let tunings: HashSet<_> = told.iter().map(|mix| (&mix.hash, mix.updates)).collect();
    let tunings = tunings.len();
    if output.json() {
        output.object(&serde_json::json!({ "held": held, "mixes": told, "tunings": tunings }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for mix in told {
        let tokens = mix.tokens.map_or_else(String::new, |tokens| format!(", {tokens} tokens"));
        output.line(format!(
            "{}: {} rows{tokens} ({} × C, {}), {} validation rows",
            mix.mix,
            mix.rows,
            (mix.in_c * 1000.0).round() / 1000.0,
            describe_c(mix.c, held),
            mix.validation_rows
        ))?;
    }
    output.line(format!("{} mixes, {} different tunings", told.len(), tunings))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Told {
    mix: String,
    rows: usize,
    tokens: Option<u64>,
    validation_rows: usize,
    amount: u64,
    in_c: f64,
    c: u64,
    updates: Option<u64>,
    hash: String,
}

impl Told {
    fn new(mix: &instructions::mix::Mix) -> Self {
        let manifest = &mix.manifest;
        Self {
            mix: mix.name.clone(),
            rows: mix.rows.len(),
            tokens: manifest.languages.values().map(|counts| counts.tokens).sum::<Option<u64>>(),
            validation_rows: mix.validation.len(),
            amount: manifest.cost.amount,
            in_c: manifest.cost.in_c,
            c: manifest.cost.c,
            updates: manifest.updates,
            hash: manifest.hash.clone(),
        }
    }
}
