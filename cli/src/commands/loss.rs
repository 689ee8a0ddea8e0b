//! `polypaca loss`: a system's mean cross-entropy on instruction data.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use engine::Cpu;
use instructions::template::TemplateChoice;
use serde_json::json;
use tune::{Method, Preset, Settings, Supervise};

use super::tune::{DataArguments, encode, failure, load_template, named, open, read_adapter};
use crate::device::{Device, FLAG, cuda};
use crate::failure::Failure;
use crate::output::Output;

/// Measures the mean cross-entropy of a system on instruction data, in nats over the supervised tokens, in all and
/// for each language
#[derive(Debug, Args)]
pub(crate) struct Loss {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// A PEFT folder on it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    #[command(flatten)]
    data: DataArguments,

    /// Take the loss over prompt and response, or over the response alone
    #[arg(long, default_value = "all", value_parser = named::<Supervise>(&["all", "response"]))]
    supervise: Supervise,

    /// Tokens of the longest sequence; the rest of a longer one is cut off
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    cutoff: usize,

    /// alpaca, stanford-alpaca, chat (the model's own) or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "alpaca")]
    template: TemplateChoice,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

impl Loss {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let records = self.data.read(output)?;
        let base = open(&self.model, output)?;
        let template = load_template(&self.template, Some(base.tokenizer()))?;
        let adapter = self.adapter.as_deref().map(|folder| read_adapter(folder, &base)).transpose()?;
        let settings = Settings {
            supervise: self.supervise,
            cutoff: self.cutoff,
            ..Settings::preset(Preset::Paper, Method::Lora)
        };
        let rows = encode(&records, &template, &base, &settings, "to measure", output)?;
        let most = settings.micro_batch_tokens;
        let loss = match self.device {
            Device::Cpu => tune::loss(&Cpu, &base, adapter.as_ref(), &rows, most),
            Device::Cuda => tune::loss(&cuda(FLAG, output)?, &base, adapter.as_ref(), &rows, most),
        }
        .map_err(failure)?;
        if loss.supervised_tokens == 0 {
            return Err(Failure::wrong_input(anyhow!(
                "no row has a supervised token: is --cutoff {} shorter than the prompts?",
                self.cutoff
            )));
        }
        if output.json() {
            output.object(&json!({
                "loss": loss.loss,
                "supervised_tokens": loss.supervised_tokens,
                "rows": rows.rows.len(),
                "by_language": loss.by_language,
            }))?;
        } else {
            output.line(format!(
                "loss {:.6} over {} supervised tokens of {} rows",
                loss.loss,
                loss.supervised_tokens,
                rows.rows.len()
            ))?;
            for (language, loss) in &loss.by_language {
                output.line(format!("{language} {loss:.6}"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
