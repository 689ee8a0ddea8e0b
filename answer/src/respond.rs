//! From prompts to responses.

use anyhow::{Context, Result};
use engine::kernels::Kernels;
use instructions::prompt::{Prompt, Response};
use instructions::template::Template;
use model::Tokenizer;

use crate::answer_model::AnswerModel;
use crate::request::Request;
use crate::scheduler::answer;
use crate::settings::Decoding;

/// A name for a base model, or for an adapter on it, in the responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// What its responses say under `system`.
    pub name: String,
    /// The adapter's place in the model; none: the base model.
    pub adapter: Option<usize>,
}

impl System {
    /// The base model itself.
    pub fn base(name: impl Into<String>) -> Self {
        Self { name: name.into(), adapter: None }
    }

    /// The adapter at this place of the model's.
    pub fn adapter(name: impl Into<String>, adapter: usize) -> Self {
        Self { name: name.into(), adapter: Some(adapter) }
    }
}

/// The responses of all systems to all prompts, in one pass: those of the first system in the order of the prompts,
/// then those of the second, and so on. `on_finished` gets each as it is finished, with its place in that order.
///
/// # Errors
/// A template does not render, a prompt cannot be encoded, or what [`answer`] says.
pub fn respond<K: Kernels>(
    model: &AnswerModel<K>,
    systems: &[System],
    prompts: &[Prompt],
    template: &Template,
    decoding: &Decoding,
    on_finished: &mut dyn FnMut(usize, &Response),
) -> Result<Vec<Response>> {
    let tokens = prompts
        .iter()
        .map(|prompt| prompt_tokens(model.base.tokenizer(), template, prompt))
        .collect::<Result<Vec<_>>>()?;
    let mut requests = Vec::new();
    let mut asked = Vec::new();
    for system in systems {
        for (prompt, tokens) in prompts.iter().zip(&tokens) {
            // Ids are shared by a prompt's translations: the language keeps their sampling apart.
            let id = format!("{} ({})", prompt.id, prompt.language.code());
            requests.push(Request { id, prompt_tokens: tokens.clone(), adapter: system.adapter });
            asked.push((system, prompt));
        }
    }
    let response = |place: usize, text: &str| {
        let (system, prompt): (&System, &Prompt) = asked[place];
        Response { prompt: prompt.clone(), response: text.to_owned(), system: system.name.clone() }
    };
    let answers = answer(model, &requests, decoding, &mut |place, answer| {
        on_finished(place, &response(place, &answer.text));
    })?;
    Ok(answers.iter().enumerate().map(|(place, answer)| response(place, &answer.text)).collect())
}

/// A prompt's tokens: the template's text, encoded as in training, without an end token behind it.
///
/// # Errors
/// The template does not render, or the text has a token for which the model has no embedding.
pub fn prompt_tokens(tokenizer: &Tokenizer, template: &Template, prompt: &Prompt) -> Result<Vec<u32>> {
    let place = || format!("prompt {} ({})", prompt.id, prompt.language.code());
    let text = template.render(prompt).with_context(place)?;
    let mut tokens = tokenizer.encode(&text).with_context(place)?;
    let special = tokenizer.special();
    if special.eos.is_some() && tokens.last() == special.eos.as_ref() && tokens.len() > 1 {
        tokens.pop();
    }
    Ok(tokens)
}
