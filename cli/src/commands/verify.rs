//! `polypaca verify`: self-tests of a model and its tokenizer.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use instructions::record::Record;
use instructions::template::TemplateChoice;
use serde_json::json;
use tune::verify::{Verdict, verify};

use super::tune::{failure, load_template, open};
use crate::failure::Failure;
use crate::output::Output;

/// Tests a base model and its tokenizer before money is spent on tuning it: what a tuning rests on, in seconds.
/// Exits with 1 where a test fails
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// alpaca, stanford-alpaca, chat (the model's own) or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "alpaca")]
    template: TemplateChoice,
}

impl Verify {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let base = open(&self.model, output)?;
        let template = load_template(&self.template, Some(base.tokenizer()))?;
        let findings = verify(&base, &template, &records()?).map_err(failure)?;
        let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
        if output.json() {
            output.object(&json!({
                "model": self.model.display().to_string(),
                "good": bad == 0,
                "tests": findings,
            }))?;
        } else {
            for finding in &findings {
                let verdict = match finding.verdict {
                    Verdict::Good => "good",
                    Verdict::Note => "note",
                    Verdict::Bad => "BAD ",
                };
                output.line(format!("{verdict}  {}: {}", finding.test, finding.found))?;
            }
            output.line(match bad {
                0 => format!("{} can be tuned", self.model.display()),
                1 => format!("{} is not fit to be tuned: a test failed", self.model.display()),
                bad => format!("{} is not fit to be tuned: {bad} tests failed", self.model.display()),
            })?;
        }
        Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Records in several scripts, with and without an input.
fn records() -> Result<Vec<Record>, Failure> {
    let rows = [
        ("en", "Name the largest planet.", "", "Jupiter is the largest planet of the solar system."),
        ("fi", "Käännä englanniksi.", "hyvää yötä", "Good night."),
        ("zh", "用一句话介绍长城。", "", "长城是中国古代的防御工程。"),
        ("bn", "দুই আর তিন যোগ করো।", "", "পাঁচ।"),
    ];
    rows.iter()
        .enumerate()
        .map(|(number, (language, instruction, input, response))| {
            Ok(Record {
                id: number.to_string(),
                language: language.parse().map_err(|error| Failure::failed(anyhow!("{error}")))?,
                instruction: (*instruction).to_owned(),
                input: (*input).to_owned(),
                output: (*response).to_owned(),
                origin: None,
            })
        })
        .collect()
}
