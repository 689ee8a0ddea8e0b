//! What a client is told: text as soon as it is certain, and OpenAI's objects around it.

use std::time::{SystemTime, UNIX_EPOCH};

use model::{TextStream, Tokenizer};
use serde_json::{Value, json};

use crate::request::{Answer, Finish};

/// Which of the two ways of asking.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// One choice's text on its way. A beginning of a stop text is held back until it is known not to be one.
pub(crate) struct ChoiceText<'t> {
    stream: TextStream<'t>,
    stops: Vec<String>,
    /// All text so far, and how much of it was given out.
    text: String,
    given: usize,
}

impl<'t> ChoiceText<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, stops: &[String]) -> Self {
        Self { stream: tokenizer.stream(true), stops: stops.to_vec(), text: String::new(), given: 0 }
    }

    /// The text that the next token makes certain.
    pub(crate) fn push(&mut self, token: u32) -> String {
        // What cannot be decoded shows in the whole answer, or as its failure.
        self.text += &self.stream.push(token).unwrap_or_default();
        let held = self.stops.iter().map(|stop| overlap(&self.text, stop)).max().unwrap_or(0);
        self.give(self.text.len() - held)
    }

    /// The rest of the answer.
    pub(crate) fn finish(&mut self, answer: &Answer) -> String {
        // A few tokenizers write a text's first token otherwise when it stands alone; what was given out stays.
        if answer.text.starts_with(&self.text[..self.given]) {
            self.text.clone_from(&answer.text);
        }
        self.give(self.text.len())
    }

    fn give(&mut self, end: usize) -> String {
        let end = end.max(self.given);
        let new = self.text.get(self.given..end).unwrap_or_default().to_owned();
        self.given += new.len();
        new
    }
}

/// Bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let begins = |length: &usize| stop.is_char_boundary(*length) && text.ends_with(&stop[..*length]);
    (1..=stop.len()).rev().find(begins).unwrap_or(0)
}

/// Why an answer ended, in OpenAI's words.
pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// Tokens asked and answered.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
}

impl Usage {
    pub(super) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// What all objects of one call have in common.
#[derive(Clone)]
pub(super) struct Envelope {
    pub(super) kind: Kind,
    id: String,
    created: u64,
    model: String,
}

impl Envelope {
    pub(super) fn new(kind: Kind, number: u64, model: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            kind,
            id: format!("{name}-{:x}-{number:x}", now.as_nanos()),
            created: now.as_secs(),
            model: model.to_owned(),
        }
    }

    fn object(&self, streamed: bool, choices: Value) -> Value {
        let object = match (self.kind, streamed) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// The whole answer.
    pub(super) fn whole(&self, answers: &[Answer], usage: Usage) -> Value {
        let choice = |(index, answer): (usize, &Answer)| {
            let reason = finish_reason(answer.finish);
            match self.kind {
                Kind::Chat => json!({
                    "index": index, "message": {"role": "assistant", "content": answer.text, "refusal": null},
                    "logprobs": null, "finish_reason": reason,
                }),
                Kind::Completion => {
                    json!({"index": index, "text": answer.text, "logprobs": null, "finish_reason": reason})
                }
            }
        };
        let mut object = self.object(false, answers.iter().enumerate().map(choice).collect());
        object["usage"] = usage.json();
        object
    }

    /// A choice begins: chat alone says so.
    pub(super) fn begins(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        (self.kind == Kind::Chat).then(|| self.object(true, json!([choice])))
    }

    /// More text of a choice, or its end.
    pub(super) fn goes_on(&self, index: usize, text: &str, finish: Option<Finish>) -> Value {
        let reason = finish.map(finish_reason);
        let choice = match self.kind {
            Kind::Chat => {
                let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": reason})
            }
            Kind::Completion => {
                json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason})
            }
        };
        self.object(true, json!([choice]))
    }

    /// The usage that ends a stream.
    pub(super) fn usage(&self, usage: Usage) -> Value {
        let mut object = self.object(true, json!([]));
        object["usage"] = usage.json();
        object
    }
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn a_beginning_of_a_stop_text_is_held_back() {
        assert_eq!(overlap("so it\n\n##", "\n\n###"), 4);
        assert_eq!(overlap("so it", "x"), 0);
        assert_eq!(overlap("ää", "äö"), 2);
    }
}
