//! One turn of a conversation, told as it is found.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use engine::kernels::Kernels;

use crate::answer_model::AnswerModel;
use crate::conversation::{Conversation, Message};
use crate::request::{Answer, Request};
use crate::scheduler::{Event, Limits, Scheduler};
use crate::server::told::ChoiceText;
use crate::settings::Decoding;

/// Answers the last of `messages`. `on_text` gets the answer's text in pieces, as soon as each is certain; those of a beam
/// search come at its end, all in one.
///
/// # Errors
/// The conversation is no prompt or does not fit the model, the model's scores are no numbers, or `on_text` fails.
pub fn reply<K: Kernels>(
    model: &AnswerModel<K>,
    adapter: Option<usize>,
    conversation: &Conversation,
    messages: &[Message],
    decoding: &Decoding,
    on_text: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    let tokenizer = model.base.tokenizer();
    let prompt_tokens = conversation.tokens(tokenizer, messages)?;
    let (length, most) = (prompt_tokens.len() + decoding.new_tokens, model.decoder.config.max_positions);
    if length > most {
        bail!("the conversation and its answer may reach {length} tokens; the model was made for {most}");
    }
    // A seed draws the same for the same turn of the same conversation.
    let request = Request { id: format!("turn {}", messages.len()), prompt_tokens, adapter };
    let limits = Limits::plan(model, decoding, std::slice::from_ref(&request));
    let mut scheduler = Scheduler::new(model, limits);
    scheduler.push(request, &Arc::new(decoding.clone()))?;
    let mut text = ChoiceText::new(tokenizer, &decoding.stops);
    while !scheduler.is_done() {
        for event in scheduler.step()? {
            match event {
                Event::Token { token, .. } => on_text(&text.push(token))?,
                Event::Finished { answer, .. } => {
                    on_text(&text.finish(&answer))?;
                    return Ok(answer);
                }
                Event::Failed { error, .. } => return Err(error.into()),
            }
        }
    }
    Err(anyhow!("the search ended without an answer"))
}
