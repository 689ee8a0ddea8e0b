//! `polypaca merge`: an adapter into its base model's weights.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use engine::Cpu;
use lab::progress;
use model::BaseModel;
use model::folder::Precision;
use model::merge::{LogitDifference, Merged, compare};
use serde_json::json;

use super::places::check_outputs;
use super::tune::{open, read_adapter};
use crate::failure::Failure;
use crate::output::Output;

/// On these the logits before and after are compared.
const TEXTS: [&str; 6] = [
    "Name three rivers of Europe and say which sea each of them reaches.",
    "Kirjoita lyhyt runo ensimmäisestä lumesta ja vanhasta sillasta.",
    "¿Por qué el pan se pone duro y la galleta se pone blanda?",
    "Объясни ребёнку, почему луна идёт за нами по дороге.",
    "请用两句话说明为什么天空在傍晚是红色的。",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)",
];

/// Longest text compared: the logits of a large vocabulary take a megabyte a token.
const TOKENS: usize = 48;

/// Above this, weights in f32 are not those of base model and adapter: sums in another order differ by about 1e-6.
const ROUNDING: f64 = 1e-4;

/// Merges an adapter into its base model's weights, and prints how far the logits of what was written are from those of
/// base model and adapter
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// The PEFT folder on it
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,

    /// The merged model: a Hugging Face folder, or with --gguf a file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Write a GGUF file, as llama.cpp reads it
    #[arg(long)]
    gguf: bool,

    /// The type of the merged weights; in a GGUF file, of its matrices
    #[arg(long, value_enum, default_value_t = Weights::F32)]
    weights: Weights,
}

/// Types of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Weights {
    /// 32-bit floats
    F32,
    /// Brain floats
    Bf16,
    /// Half floats
    F16,
}

impl Weights {
    fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::F16 => Precision::F16,
        }
    }
}

impl Merge {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        self.check_places()?;
        let base = open(&self.model, output)?;
        let adapter = read_adapter(&self.adapter, &base)?;
        let merged = Merged { base: &base, adapter: Some(&adapter) };
        let progress = progress::on_standard_error();
        progress.cell("computing logits");
        let texts = self.texts(&base)?;
        let expected = merged.logits(Cpu, &texts).map_err(Failure::failed)?;
        if !expected.iter().flatten().all(|logit| logit.is_finite()) {
            return Err(Failure::failed(anyhow!(
                "the logits of base model and adapter are no numbers: weights are damaged, or overflow. Nothing was written"
            )));
        }
        progress.cell("merging");
        let precision = self.weights.precision();
        let written = if self.gguf {
            merged.write_gguf(&self.out, precision)
        } else {
            merged.write_folder(&self.out, precision)
        };
        written.map_err(|error| match error {
            model::Error::Unsupported { .. } => Failure::wrong_input(error),
            other => Failure::failed(other),
        })?;
        progress.cell("comparing logits");
        let written = BaseModel::open(&self.out).map_err(Failure::failed)?;
        let found = Merged { base: &written, adapter: None }.logits(Cpu, &texts).map_err(Failure::failed)?;
        let difference = compare(&found, &expected, base.config().vocabulary);
        progress.end();
        self.tell(&difference, output)?;
        if !difference.relative.is_finite()
            || (self.weights == Weights::F32 && difference.relative > ROUNDING)
        {
            return Err(Failure::failed(anyhow!(
                "{}: its logits are {:.1e} from those of base model and adapter; expected at most {ROUNDING:.0e}",
                self.out.display(),
                difference.relative
            )));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Nothing that is read may be written over.
    fn check_places(&self) -> Result<(), Failure> {
        let inputs = [&self.model, &self.adapter];
        check_outputs(&[("--out", self.out.clone())], inputs.map(PathBuf::as_path))?;
        let Ok(out) = self.out.canonicalize() else { return Ok(()) };
        // A file of a folder that is read: its weights, say.
        let folder = out.parent().filter(|_| out.is_file());
        if inputs.iter().any(|read| read.canonicalize().is_ok_and(|read| folder == Some(&read))) {
            let out = self.out.display();
            return Err(Failure::wrong_input(anyhow!(
                "--out {out} is there, in a folder that is read; expected another place"
            )));
        }
        if self.gguf == out.is_dir() {
            let (found, expected) = if self.gguf { ("a folder", "a file") } else { ("a file", "a folder") };
            let out = self.out.display();
            return Err(Failure::wrong_input(anyhow!("--out {out} is {found}; expected {expected}")));
        }
        model::folder::refuse_adapter(&out).map_err(Failure::wrong_input)
    }

    /// The texts that what was written is compared on, as tokens.
    fn texts(&self, base: &BaseModel) -> Result<Vec<Vec<u32>>, Failure> {
        let tokenizer = base.tokenizer();
        let tokens = |text: &str| -> Result<Vec<u32>, model::Error> {
            let mut tokens = tokenizer.encode(text)?;
            tokens.truncate(TOKENS);
            Ok(tokens)
        };
        TEXTS.into_iter().map(tokens).collect::<Result<_, _>>().map_err(Failure::failed)
    }

    fn tell(&self, difference: &LogitDifference, output: &Output) -> std::io::Result<()> {
        let LogitDifference { largest, relative, other_best, positions } = *difference;
        if output.json() {
            return output.object(&json!({
                "out": self.out.display().to_string(),
                "largest_logit_difference": largest,
                "relative_logit_difference": relative,
                "positions": positions,
                "other_best_token": other_best,
            }));
        }
        output.line(format!(
            "{}: largest logit difference {largest:.2e} ({relative:.1e} of the logits' norm) at {positions} positions, \
             another best token at {other_best}",
            self.out.display()
        ))
    }
}
