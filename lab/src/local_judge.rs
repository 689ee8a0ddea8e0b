//! A local judge: any model that `answer` can run, asked as an endpoint would be.

use std::path::Path;

use answer::{AnswerModel, Decoding, System, respond};
use anyhow::{Context, Result};
use instructions::language::Language;
use instructions::prompt::Prompt;
use instructions::template::TemplateChoice;
use judge::asking::{Asker, LocalAsker};
use serde_json::Map;

use crate::inputs::{content_hash, value_hash};

/// Prompts that the model is given at once: what a kill may lose.
const BATCH: usize = 32;

/// How a judge's reply is decoded: the best token at each step, as far as 512 tokens.
pub fn decoding() -> Decoding {
    Decoding { new_tokens: 512, ..Decoding::greedy() }
}

/// Opens a model, or an adapter on it, as a judge. The request is the template's instruction: a model follows the
/// template that it was tuned with.
///
/// # Errors
/// A file is missing or damaged, the adapter does not fit, or the template cannot be loaded.
pub fn open(
    model: &Path,
    adapter: Option<&Path>,
    template: &TemplateChoice,
    decoding: Decoding,
) -> Result<impl Asker + use<>> {
    let mut opened = AnswerModel::open(model, &[])?;
    let adapter_hash = adapter.map(content_hash).transpose()?;
    let setting = value_hash(&(opened.base.content_hash()?, adapter_hash, template.to_string(), &decoding))?;
    let mut name = opened.base.name();
    let mut system = System::base("");
    if let Some(folder) = adapter {
        name = folder.file_name().context("the adapter's folder has no name")?.to_string_lossy().into_owned();
        system = System::adapter("", opened.add_adapter("", folder)?);
    }
    let template = answer::template(template, Some(opened.base.tokenizer()))?;
    let answer = move |prompts: &[String]| {
        let prompts: Vec<Prompt> = prompts.iter().zip(0..).map(request).collect();
        let systems = std::slice::from_ref(&system);
        let responses = respond(&opened, systems, &prompts, &template, &decoding, &mut |_, _| {})?;
        Ok(responses.into_iter().map(|response| response.response).collect())
    };
    Ok(LocalAsker { name, setting, answer, batch: BATCH })
}

fn request((text, number): (&String, usize)) -> Prompt {
    Prompt {
        id: number.to_string(),
        language: Language::english(),
        prompt: text.clone(),
        response_language: None,
        extra: Map::new(),
    }
}
