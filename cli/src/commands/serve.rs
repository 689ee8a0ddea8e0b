//! `polypaca serve`: systems over HTTP, as OpenAI's API has it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use answer::server::{CacheTooSmall, ServedModel, ServerSettings, check_names, serve};
use answer::{AnswerModel, Conversation, MOST_BATCH_TOKENS};
use anyhow::anyhow;
use clap::Args;
use engine::Cpu;
use engine::kernels::Kernels;
use instructions::template::TemplateChoice;
use serde_json::json;

use super::tune::{load_template, open};
use crate::device::{Device, FLAG, cuda};
use crate::failure::Failure;
use crate::output::Output;

/// Serves a base model and adapters on it as an OpenAI-compatible API: chat completions and completions, streamed or
/// whole. Ends on SIGTERM or an interrupt, when what is under way is finished
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// PEFT folders on it, each with the name that clients ask for as `model`
    #[arg(long, visible_alias = "lora-modules", value_name = "NAME=DIR", num_args = 1.., value_parser = named)]
    adapter: Vec<(String, PathBuf)>,

    /// What clients call the base model; its folder's name unless given
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    address: SocketAddr,

    /// chat (the model's own), alpaca, stanford-alpaca or a file; the model's own, and Alpaca's where it has none,
    /// unless given
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<TemplateChoice>,

    /// Most new tokens of an answer, and how many where a client names none
    #[arg(long, value_name = "N", default_value_t = ServerSettings::default().new_tokens)]
    new_tokens: usize,

    /// Most answers under way, those that wait among them; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = ServerSettings::default().queue)]
    queue: usize,

    /// Most bytes of a request's body; more are refused with status 413
    #[arg(long, value_name = "BYTES", default_value_t = ServerSettings::default().body_bytes)]
    body_bytes: usize,

    /// Most tokens of one pass over the model; changes the speed and the memory, and no answer
    #[arg(long, value_name = "N", default_value_t = ServerSettings::default().batch_tokens)]
    batch_tokens: usize,

    /// Bytes of keys and values
    #[arg(long, value_name = "BYTES", default_value_t = ServerSettings::default().cache_bytes)]
    cache_bytes: usize,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

/// More answers under way than any machine has memory for.
const MOST_QUEUED: usize = 1 << 20;

impl Serve {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        for (flag, value) in [
            ("new-tokens", self.new_tokens),
            ("queue", self.queue),
            ("batch-tokens", self.batch_tokens),
            ("body-bytes", self.body_bytes),
        ] {
            if value == 0 {
                return Err(Failure::wrong_input(anyhow!("--{flag} is 0; expected at least 1")));
            }
        }
        for (flag, value, most) in
            [("batch-tokens", self.batch_tokens, MOST_BATCH_TOKENS), ("queue", self.queue, MOST_QUEUED)]
        {
            if value > most {
                return Err(Failure::wrong_input(anyhow!("--{flag} is {value}; expected at most {most}")));
            }
        }
        match self.device {
            Device::Cpu => self.serve_on(Cpu, output),
            Device::Cuda => self.serve_on(cuda(FLAG, output)?, output),
        }
    }

    fn serve_on<K: Kernels>(self, kernels: K, output: &Output) -> Result<ExitCode, Failure> {
        let base = open(&self.model, output)?;
        let name = self.served_model_name.clone().unwrap_or_else(|| base.name());
        let mut model = AnswerModel::load(kernels, base, &[]).map_err(Failure::wrong_input)?;
        let mut models = vec![ServedModel {
            name,
            adapter: None,
            conversation: conversation(self.template.as_ref(), None, &model)?,
        }];
        for (name, folder) in &self.adapter {
            let adapter = model.add_adapter(name, folder).map_err(Failure::wrong_input)?;
            let conversation = conversation(self.template.as_ref(), Some(folder), &model)?;
            models.push(ServedModel { name: name.clone(), adapter: Some(adapter), conversation });
        }
        check_names(models.iter().map(|model| model.name.as_str())).map_err(Failure::wrong_input)?;
        let listener = TcpListener::bind(self.address)
            .map_err(|error| Failure::failed(anyhow!("{}: {error}", self.address)))?;
        let url = format!("http://{}/v1", listener.local_addr()?);
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        if output.json() {
            output.object(&json!({ "url": url, "models": names }))?;
        } else {
            output.line(format!("{url}\t{}", names.join(" ")))?;
        }
        let settings = ServerSettings {
            new_tokens: self.new_tokens,
            queue: self.queue,
            body_bytes: self.body_bytes,
            batch_tokens: self.batch_tokens,
            cache_bytes: self.cache_bytes,
        };
        serve(&model, models, settings, listener).map_err(|error| match error.is::<CacheTooSmall>() {
            true => Failure::wrong_input(error.context("--cache-bytes")),
            false => Failure::failed(error),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How a system's conversations become prompts: by the template asked for, else by the adapter's or the model's own, else
/// by Alpaca's.
pub(super) fn conversation<K: Kernels>(
    template: Option<&TemplateChoice>,
    adapter: Option<&Path>,
    model: &AnswerModel<K>,
) -> Result<Conversation, Failure> {
    let tokenizer = model.base.tokenizer();
    let own = || -> anyhow::Result<Conversation> {
        if let Some(folder) = adapter
            && let Some(own) = Conversation::of_adapter(folder, tokenizer)?
        {
            return Ok(own);
        }
        Conversation::of_model(tokenizer)
    };
    match template {
        None => own().map_err(Failure::wrong_input),
        Some(TemplateChoice::Chat) => match own().map_err(Failure::wrong_input)? {
            Conversation::Instruction(_) => {
                Err(Failure::wrong_input(anyhow!("--template chat: this model has no chat template")))
            }
            jinja => Ok(jinja),
        },
        Some(choice) => Ok(Conversation::Instruction(load_template(choice, Some(tokenizer))?)),
    }
}

/// A flag's `NAME=DIR`.
pub(super) fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.to_owned(), folder.into()))
        }
        _ => Err("expected NAME=DIR".to_owned()),
    }
}
