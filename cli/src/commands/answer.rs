//! `polypaca answer`: a system's responses to prompts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use answer::{AnswerModel, Decoding, Request, Sampling, prompt_tokens};
use anyhow::anyhow;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use engine::Cpu;
use engine::kernels::Kernels;
use instructions::language::Language;
use instructions::prompt::{Prompt, Response, read_prompts, write_responses};
use instructions::template::{Template, TemplateChoice};
use lab::progress;
use serde_json::json;

use super::places::check_outputs;
use super::tune::{load_template, open};
use crate::device::{Device, FLAG, cuda};
use crate::failure::Failure;
use crate::output::Output;

/// Answers prompts. The defaults are the paper's: beam 4, no repeated 6-gram, 256 new tokens
#[derive(Debug, Args)]
pub(crate) struct Answer {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// A PEFT folder on it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// What the responses say under `system`; the adapter's or model's folder's name unless given
    #[arg(long, value_name = "NAME")]
    system: Option<String>,

    /// Prompts: JSONL with id, prompt and language
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: PathBuf,

    /// The language of prompts that name none
    #[arg(long, value_name = "CODE")]
    language: Option<Language>,

    /// The responses: JSONL with the prompt's keys, response and system
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,

    /// Beams; 1 is greedy search, or sampling. 4 unless given, and 1 with --sample
    #[arg(long, value_name = "N")]
    beams: Option<usize>,

    /// No n-gram of this many tokens occurs twice; 0: any may
    #[arg(long, value_name = "N", default_value_t = Decoding::default().no_repeat_ngram)]
    no_repeat_ngram: usize,

    /// Scores of tokens that are there already are divided by this; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = Decoding::default().repetition_penalty)]
    repetition_penalty: f32,

    /// The power of its length by which a beam's score is divided; above 0 favours long responses
    #[arg(long, value_name = "X", default_value_t = Decoding::default().length_penalty, allow_negative_numbers = true)]
    length_penalty: f64,

    /// Most new tokens, the end token included
    #[arg(long, value_name = "N", default_value_t = Decoding::default().new_tokens)]
    new_tokens: usize,

    /// A response ends in front of the first of these texts; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,

    #[command(flatten)]
    drawing: Drawing,

    /// Most tokens of one pass over the model; changes the speed and the memory, and no response
    #[arg(long, value_name = "N", default_value_t = Decoding::default().batch_tokens)]
    batch_tokens: usize,

    /// alpaca, stanford-alpaca, chat (the model's own) or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "alpaca")]
    template: TemplateChoice,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

/// How tokens are drawn.
#[derive(Debug, Args)]
pub(super) struct Drawing {
    /// Draw tokens instead of taking the best one
    #[arg(long)]
    sample: bool,

    /// Logits are divided by this
    #[arg(long, value_name = "X", requires = "sample", default_value_t = Sampling::default().temperature)]
    temperature: f32,

    /// Only the best tokens whose probabilities reach this together; 1: all
    #[arg(long, value_name = "P", requires = "sample", default_value_t = Sampling::default().top_p)]
    top_p: f32,

    /// Only this many of the best tokens; 0: all
    #[arg(long, value_name = "K", requires = "sample", default_value_t = Sampling::default().top_k)]
    top_k: usize,

    /// For drawing tokens
    #[arg(long, value_name = "N", requires = "sample", default_value_t = Sampling::default().seed)]
    seed: u64,
}

impl Drawing {
    /// As settings; none where the best token is taken.
    pub(super) fn sampling(&self) -> Option<Sampling> {
        self.sample.then_some(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
        })
    }
}

/// That the responses can be written, before any is asked for.
fn check_place(out: &Path) -> Result<(), Failure> {
    if out.is_dir() {
        return Err(Failure::wrong_input(anyhow!(
            "--out {}: expected a file, found a folder",
            out.display()
        )));
    }
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)
            .map_err(|error| Failure::failed(anyhow!("--out {}: {error}", folder.display())))?;
    }
    Ok(())
}

impl Answer {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match self.device {
            Device::Cpu => self.run_on(Cpu, output),
            Device::Cuda => self.run_on(cuda(FLAG, output)?, output),
        }
    }

    fn run_on<K: Kernels>(self, kernels: K, output: &Output) -> Result<ExitCode, Failure> {
        self.check_places()?;
        let decoding = self.decoding();
        decoding.check().map_err(|fault| Failure::wrong_input(anyhow!("decoding: {fault}")))?;
        let reading = read_prompts(&self.prompts, self.language.as_ref()).map_err(Failure::wrong_input)?;
        for problem in &reading.problems {
            output.warning(problem.to_string());
        }
        let left_out = reading.dropped();
        let prompts = reading.items;
        if prompts.is_empty() {
            return Err(Failure::wrong_input(anyhow!("{}: there is no prompt", self.prompts.display())));
        }
        check_place(&self.out)?;
        let base = open(&self.model, output)?;
        let vocabulary = base.config().vocabulary;
        if decoding.beams > vocabulary {
            return Err(Failure::wrong_input(anyhow!(
                "--beams is {}; expected at most {vocabulary}, the tokens of the model",
                decoding.beams
            )));
        }
        let template = load_template(&self.template, Some(base.tokenizer()))?;
        let name = self.system_name(&base);
        let mut model = AnswerModel::load(kernels, base, &[]).map_err(Failure::wrong_input)?;
        let adapter = self.adapter.as_deref().map(|folder| model.add_adapter(&name, folder)).transpose();
        let requests = requests(&model, adapter.map_err(Failure::wrong_input)?, &prompts, &template)?;

        let progress = progress::on_standard_error();
        progress.cell("answering");
        let begin = Instant::now();
        let mut done = 0;
        let answers = answer::answer(&model, &requests, &decoding, &mut |_, _| {
            done += 1;
            progress.step("answering", done, requests.len() as u64, "responses");
        });
        progress.end();
        let answers = answers.map_err(Failure::failed)?;
        let seconds = begin.elapsed().as_secs_f64();

        let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
        let responses: Vec<Response> = prompts
            .into_iter()
            .zip(answers)
            .map(|(prompt, answer)| Response { prompt, response: answer.text, system: name.clone() })
            .collect();
        write_responses(&self.out, &responses).map_err(Failure::failed)?;
        let speed = tokens as f64 / seconds.max(f64::MIN_POSITIVE);
        if output.json() {
            output.object(&json!({
                "out": self.out.display().to_string(),
                "system": name,
                "responses": responses.len(),
                "left_out": left_out,
                "new_tokens": tokens,
                "seconds": seconds,
                "tokens_per_second": speed,
            }))?;
        }
        output.note(format!(
            "{} responses, {tokens} new tokens in {seconds:.1} s: {speed:.1} tokens/s",
            responses.len()
        ));
        Ok(if left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Nothing that is read may be written over.
    fn check_places(&self) -> Result<(), Failure> {
        let template = match &self.template {
            TemplateChoice::File(path) => Some(path),
            _ => None,
        };
        let inputs = [&self.prompts, &self.model].into_iter().chain(template);
        check_outputs(&[("--out", self.out.clone())], inputs.map(PathBuf::as_path))
    }

    fn decoding(&self) -> Decoding {
        let sample = self.drawing.sampling();
        let beams = if sample.is_some() { 1 } else { Decoding::default().beams };
        Decoding {
            beams: self.beams.unwrap_or(beams),
            no_repeat_ngram: self.no_repeat_ngram,
            repetition_penalty: self.repetition_penalty,
            length_penalty: self.length_penalty,
            new_tokens: self.new_tokens,
            stops: self.stop.clone(),
            sample,
            batch_tokens: self.batch_tokens,
            ..Decoding::default()
        }
    }

    fn system_name(&self, base: &model::BaseModel) -> String {
        let of_adapter = || Some(self.adapter.as_deref()?.file_name()?.to_string_lossy().into_owned());
        self.system.clone().or_else(of_adapter).unwrap_or_else(|| base.name())
    }
}

/// The prompts as tokens. Ids are as in an experiment, so that a seed draws the same tokens here and there.
fn requests<K: Kernels>(
    model: &AnswerModel<K>,
    adapter: Option<usize>,
    prompts: &[Prompt],
    template: &Template,
) -> Result<Vec<Request>, Failure> {
    let request = |prompt: &Prompt| {
        Ok(Request {
            id: format!("{} ({})", prompt.id, prompt.language.code()),
            prompt_tokens: prompt_tokens(model.base.tokenizer(), template, prompt)?,
            adapter,
        })
    };
    prompts.iter().map(request).collect::<anyhow::Result<_>>().map_err(Failure::wrong_input)
}
