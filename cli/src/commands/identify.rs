//! `polypaca identify`: the languages of responses, and the gate.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use instructions::language::Language;
use judge::gate::{GateRules, SetAside, identify_file};
use judge::identify::identifier;

use crate::failure::Failure;
use crate::output::Output;

/// Identifies the language of each response: on standard output a JSON line with id, label (the model's own),
/// language, probability and gate
#[derive(Debug, Args)]
pub(crate) struct Identify {
    /// Responses: JSONL with `id` and `response`
    #[arg(value_name = "FILE.jsonl")]
    responses: PathBuf,

    /// A fastText model, .bin or .ftz; the embedded lingua unless given
    #[arg(long, value_name = "MODEL")]
    lid: Option<PathBuf>,

    /// The language asked for, where a line names none
    #[arg(long, value_name = "CODE")]
    language: Option<Language>,

    /// Set code and URLs aside before identifying
    #[arg(long)]
    set_aside_code: bool,
}

impl Identify {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let identifier = identifier(self.lid.as_deref(), None).map_err(Failure::wrong_input)?;
        let set_aside =
            SetAside { code: self.set_aside_code, urls: self.set_aside_code, ..SetAside::default() };
        let rules = GateRules { set_aside, ..GateRules::default() };
        let mut lines = BufWriter::new(stdout().lock());
        let bad = identify_file(&self.responses, self.language.as_ref(), &rules, &*identifier, &mut lines)
            .map_err(Failure::wrong_input)?;
        lines.flush()?;
        for line in &bad {
            output.warning(format!("{}:{}: {}", self.responses.display(), line.line, line.found));
        }
        Ok(if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
