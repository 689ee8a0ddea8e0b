//! `polypaca data stats`: rows, characters and tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use instructions::check::fertility;
use instructions::mix::Set;
use instructions::record::Record;
use instructions::template::{Template, TemplateChoice};
use model::Tokenizer;
use rayon::prelude::*;
use serde::Serialize;
use tune::{Method, Preset, Settings, count_tokens};

use super::{Read, SetFile, Tokenized, read};
use crate::commands::tune::load_template;
use crate::failure::Failure;
use crate::output::Output;

/// Counts the rows of sets and the lengths of their texts; with a tokenizer, tokens too
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// A set's file: LANGUAGE=FILE, or LANGUAGE:ORIGIN=FILE (native, translated, round_trip)
    #[arg(value_name = "LANGUAGE=FILE", required = true)]
    files: Vec<SetFile>,

    /// Count tokens with this tokenizer: a model's folder or GGUF file, or a tokenizer.json
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,

    /// Tokens of the longest sequence; how many rows are longer is told
    #[arg(long, value_name = "TOKENS", default_value_t = Settings::preset(Preset::Paper, Method::Lora).cutoff)]
    cutoff: usize,

    /// The template around a row's texts: alpaca, stanford-alpaca, chat (the model's own) or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "alpaca")]
    template: TemplateChoice,
}

impl Stats {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let tokenized = self.tokenizer.as_deref().map(|path| Tokenized::open(path, output)).transpose()?;
        let template = load_template(&self.template, tokenized.as_ref().map(Tokenized::tokenizer))?;
        let Read { sets, .. } = read(&self.files, output)?;
        let mut counted = Vec::new();
        for set in sets.iter() {
            let tokens = tokenized
                .as_ref()
                .map(|tokenized| Tokens::count(&set.records, &template, tokenized.tokenizer(), self.cutoff));
            let tokens = tokens.transpose().map_err(Failure::failed)?;
            counted.push(Counted::new(set, tokens));
        }
        if output.json() {
            output.object(&serde_json::json!({ "sets": counted }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for count in counted {
            output.line(format!(
                "{} ({}): {} rows, {} with an input; characters: instruction {:.1}, input {:.1}, output {:.1} on average, {} in the longest output",
                count.language,
                count.origin,
                count.rows,
                count.with_input,
                count.instruction_characters,
                count.input_characters,
                count.output_characters,
                count.longest_output
            ))?;
            if let Some(tokens) = count.tokens {
                output.line(format!(
                    "    {} tokens as trained on, {:.1} a row, {} in the longest; {} rows are cut off after {}; {:.2} tokens a word",
                    tokens.total, tokens.mean, tokens.longest, tokens.cut_off, self.cutoff, tokens.per_word
                ))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Serialize)]
struct Counted {
    language: String,
    origin: &'static str,
    rows: usize,
    with_input: usize,
    instruction_characters: f64,
    input_characters: f64,
    output_characters: f64,
    longest_output: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Tokens>,
}

impl Counted {
    fn new(set: &Set, tokens: Option<Tokens>) -> Self {
        let records = &set.records;
        let mean = |length: fn(&Record) -> usize| {
            records.iter().map(length).sum::<usize>() as f64 / records.len().max(1) as f64
        };
        let output = |record: &Record| record.output.chars().count();
        Self {
            language: set.language.to_string(),
            origin: set.origin.name(),
            rows: records.len(),
            with_input: records.iter().filter(|record| !record.input.is_empty()).count(),
            instruction_characters: mean(|record| record.instruction.chars().count()),
            input_characters: mean(|record| record.input.chars().count()),
            output_characters: mean(output),
            longest_output: records.iter().map(output).max().unwrap_or_default(),
            tokens,
        }
    }
}

/// A set's tokens.
#[derive(Serialize)]
struct Tokens {
    /// As the rows are trained on: template, response and end token, cut off.
    total: usize,
    mean: f64,
    /// Before it is cut off.
    longest: usize,
    cut_off: usize,
    /// Of the bare texts: the fertility.
    per_word: f64,
}

impl Tokens {
    fn count(
        records: &[Record],
        template: &Template,
        tokenizer: &Tokenizer,
        cutoff: usize,
    ) -> anyhow::Result<Self> {
        let lengths: Vec<usize> = records
            .par_iter()
            .map(|record| count_tokens(record, template, tokenizer, usize::MAX))
            .collect::<Result<_, _>>()?;
        let texts: Vec<&str> = records
            .iter()
            .flat_map(|record| [record.instruction.as_str(), &record.input, &record.output])
            .collect();
        let bare: Vec<usize> = texts
            .par_iter()
            .map(|text| Ok(tokenizer.encode_plain(text)?.len()))
            .collect::<anyhow::Result<_>>()?;
        let total: usize = lengths.iter().map(|length| (*length).min(cutoff)).sum();
        Ok(Self {
            total,
            mean: total as f64 / records.len().max(1) as f64,
            longest: lengths.iter().copied().max().unwrap_or_default(),
            cut_off: lengths.iter().filter(|length| **length > cutoff).count(),
            per_word: fertility(texts.into_iter().zip(bare)).unwrap_or_default(),
        })
    }
}
