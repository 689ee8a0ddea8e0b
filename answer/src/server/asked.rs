//! OpenAI's bodies, read: what is asked for, or why it is refused.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::refusal::Refusal;
use super::{Served, ServedModel};
use crate::conversation::{Message, open_end};
use crate::settings::{Decoding, Sampling};

/// Most choices of one call.
const MOST_CHOICES: usize = 64;
/// Most stop texts, and the bytes of each.
const MOST_STOPS: (usize, usize) = (16, 1024);

/// A call for answers.
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) adapter: Option<usize>,
    /// A prompt as tokens, for each choice.
    pub(super) prompts: Vec<Vec<u32>>,
    /// Choices of each prompt.
    pub(super) choices: usize,
    pub(super) decoding: Arc<Decoding>,
    pub(super) stream: bool,
    /// A stream ends with its usage.
    pub(super) usage: bool,
}

/// A body, key by key.
struct Body(Map<String, Value>);

impl Body {
    fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
        let body: Value = serde_json::from_slice(bytes)
            .map_err(|error| bad(format!("We could not parse the JSON body of your request: {error}")))?;
        match body {
            Value::Object(body) => Ok(Self(body)),
            _ => Err(bad("The body is no JSON object.".to_owned())),
        }
    }

    /// A key's value; null is as if it were not there.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn number(
        &self,
        key: &'static str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let expected = || format!("expected a number from {} to {}", range.start(), range.end());
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::bad(key, format!("`{key}` is {value}; {}", expected()))),
        }
    }

    fn count(
        &self,
        key: &'static str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, Refusal> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let expected = format!("expected an integer from {} to {}", range.start(), range.end());
                Err(Refusal::bad(key, format!("`{key}` is {value}; {expected}")))
            }
        }
    }

    fn flag(&self, key: &'static str) -> Result<bool, Refusal> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(Refusal::bad(key, format!("`{key}` is {value}; expected true or false"))),
        }
    }

    /// Keys that would change the answer, and which nobody honours here: refused rather than passed over.
    fn refuse(&self, keys: &[&'static str]) -> Result<(), Refusal> {
        let idle = |key: &str, value: &Value| {
            matches!(value, Value::Bool(false))
                || value.as_f64() == Some(0.0)
                // Any JSON object is an empty schema's, which is a demand.
                || (value == &serde_json::json!({}) && !key.starts_with("guided_"))
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_str() == Some("none")
        };
        match keys.iter().find(|key| self.get(key).is_some_and(|value| !idle(key, value))) {
            Some(key) => {
                Err(Refusal::bad(key, format!("`{key}` is not supported here."))
                    .code("unsupported_parameter"))
            }
            None => Ok(()),
        }
    }

    fn stops(&self) -> Result<Vec<String>, Refusal> {
        let texts = match self.get("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(texts)) => {
                let text = |text: &Value| text.as_str().map(str::to_owned);
                let all: Option<Vec<String>> = texts.iter().map(text).collect();
                all.ok_or_else(|| Refusal::bad("stop", "`stop` holds what is no text."))?
            }
            Some(_) => return Err(Refusal::bad("stop", "`stop` is neither a text nor a list of them.")),
        };
        let (most, bytes) = MOST_STOPS;
        if texts.len() > most || texts.iter().any(|text| text.is_empty() || text.len() > bytes) {
            let message = format!("`stop` may hold {most} texts, of 1 to {bytes} bytes each.");
            return Err(Refusal::bad("stop", message));
        }
        Ok(texts)
    }

    fn model<'s>(&self, served: &'s Served) -> Result<&'s ServedModel, Refusal> {
        let Some(name) = self.get("model") else {
            return Err(Refusal::bad("model", "you must provide a model parameter"));
        };
        let name = name.as_str().ok_or_else(|| Refusal::bad("model", "`model` is no text."))?;
        served.models.iter().find(|model| model.name == name).ok_or_else(|| Refusal::no_model(name))
    }

    /// What a call has its prompt under.
    fn prompt_key(&self) -> &'static str {
        if self.get("messages").is_some() { "messages" } else { "prompt" }
    }

    /// A call whose prompts are known.
    fn asked(&self, served: &Served, model: &ServedModel, prompts: Vec<Vec<u32>>) -> Result<Asked, Refusal> {
        self.refuse(&[
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "logprobs",
            "top_logprobs",
            "echo",
            "suffix",
            "functions",
            "function_call",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "ignore_eos",
            "min_p",
            "min_tokens",
            "stop_token_ids",
            "use_beam_search",
        ])?;
        let choices = self.count("n", 1..=MOST_CHOICES)?.unwrap_or(1);
        // The best n of n are all of them.
        if self.count("best_of", 1..=MOST_CHOICES)?.is_some_and(|best_of| best_of != choices) {
            let message = format!("`best_of` is not supported here; expected `n`, which is {choices}");
            return Err(Refusal::bad("best_of", message).code("unsupported_parameter"));
        }
        let limits = &served.settings;
        let (key, wanted) = match self.count("max_completion_tokens", 1..=usize::MAX)? {
            Some(wanted) => ("max_completion_tokens", Some(wanted)),
            None => ("max_tokens", self.count("max_tokens", 1..=usize::MAX)?),
        };
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = served.base.config().max_positions.min(served.context);
        let room = context.saturating_sub(longest);
        if prompts.iter().any(Vec::is_empty) {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "A prompt has no tokens."));
        }
        if room == 0 || wanted.is_some_and(|wanted| wanted > room) {
            let whose = match context < served.base.config().max_positions {
                true => "This server's context length, for which it has memory,",
                false => "This model's maximum context length",
            };
            let more = match wanted {
                Some(wanted) => format!("and {wanted} more were asked for"),
                None => "and at least one more is needed".to_owned(),
            };
            let message = format!("{whose} is {context} tokens; the prompt has {longest}, {more}.");
            let key = if room == 0 { self.prompt_key() } else { key };
            return Err(Refusal::bad(key, message).code("context_length_exceeded"));
        }
        if let Some(wanted) = wanted.filter(|wanted| *wanted > limits.new_tokens) {
            let message = format!("`{key}` is {wanted}; this server gives at most {}", limits.new_tokens);
            return Err(Refusal::bad(key, message));
        }
        let decoding = Decoding {
            new_tokens: wanted.unwrap_or_else(|| limits.new_tokens.min(room)),
            no_repeat_ngram: self.count("no_repeat_ngram_size", 0..=1024)?.unwrap_or(0),
            repetition_penalty: self.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0) as f32,
            sample: self.sampling()?,
            stops: self.stops()?,
            ..Decoding::greedy()
        };
        let options = self.get("stream_options").and_then(|options| options.get("include_usage"));
        Ok(Asked {
            model: model.name.clone(),
            adapter: model.adapter,
            prompts,
            choices,
            decoding: Arc::new(decoding),
            stream: self.flag("stream")?,
            usage: options.and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// Temperature 1 unless given, as OpenAI's; 0 takes the best token.
    fn sampling(&self) -> Result<Option<Sampling>, Refusal> {
        let temperature = self.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32;
        let top_p = self.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
        let top_k = match self.get("top_k").and_then(Value::as_i64) {
            Some(-1) => 0,
            _ => self.count("top_k", 0..=usize::MAX)?.unwrap_or(0),
        };
        let seed = match self.get("seed") {
            None => RandomState::new().build_hasher().finish(),
            Some(seed) => match (seed.as_i64(), seed.as_u64()) {
                (Some(seed), _) => seed as u64,
                (None, Some(seed)) => seed,
                _ => return Err(Refusal::bad("seed", format!("`seed` is {seed}; expected an integer"))),
            },
        };
        Ok((temperature > 0.0).then_some(Sampling { temperature, top_p, top_k, seed }))
    }
}

/// A body of `/v1/chat/completions`.
pub(super) fn chat(served: &Served, bytes: &[u8]) -> Result<Asked, Refusal> {
    let body = Body::read(bytes)?;
    let model = body.model(served)?;
    body.refuse(&["tools", "response_format", "audio", "web_search_options"].map(|key| {
        // `{"type": "text"}` is what everybody gets.
        let text =
            body.get(key).and_then(|format| format.get("type")).and_then(Value::as_str) == Some("text");
        if text { "" } else { key }
    }))?;
    let messages = messages(&body)?;
    let tokens = model
        .conversation
        .tokens(served.base.tokenizer(), &messages)
        .map_err(|error| Refusal::bad("messages", format!("{error:#}")))?;
    body.asked(served, model, vec![tokens])
}

fn messages(body: &Body) -> Result<Vec<Message>, Refusal> {
    let bad = |message: String| Refusal::bad("messages", message);
    let Some(Value::Array(list)) = body.get("messages") else {
        return Err(bad("`messages` is missing, or no list.".to_owned()));
    };
    if list.is_empty() {
        return Err(bad("`messages` is empty.".to_owned()));
    }
    let read = |(place, message): (usize, &Value)| {
        let fault = |what: &str| bad(format!("messages[{place}]: {what}"));
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| fault("no `role`"))?;
        let content = match message.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let text = |part: &Value| Some(part.get("text")?.as_str()?.to_owned());
                let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                texts.ok_or_else(|| fault("`content` holds a part that is no text"))?.concat()
            }
            _ => return Err(fault("`content` is neither a text nor a list of parts")),
        };
        Ok(Message { role: role.to_owned(), content })
    };
    list.iter().enumerate().map(read).collect()
}

/// A body of `/v1/completions`.
pub(super) fn completion(served: &Served, bytes: &[u8]) -> Result<Asked, Refusal> {
    let body = Body::read(bytes)?;
    let model = body.model(served)?;
    let bad = |message: &str| Refusal::bad("prompt", message.to_owned());
    let encode = |text: &str| {
        let tokenizer = served.base.tokenizer();
        let tokens = tokenizer.encode(text).map_err(|error| Refusal::bad("prompt", error.to_string()))?;
        open_end(tokenizer, tokens).map_err(|error| Refusal::bad("prompt", error.to_string()))
    };
    let ids = |ids: &[Value]| {
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.iter()
            .map(id)
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| bad("`prompt` mixes tokens and other things."))
    };
    let prompts = match body.get("prompt") {
        Some(Value::String(text)) => vec![encode(text)?],
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_u64) => vec![ids(list)?],
        Some(Value::Array(list)) if !list.is_empty() => list
            .iter()
            .map(|prompt| match prompt {
                Value::String(text) => encode(text),
                Value::Array(list) => ids(list),
                _ => Err(bad("`prompt` holds what is neither a text nor a list of tokens.")),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(bad("`prompt` is missing, or neither a text nor a list.")),
    };
    body.asked(served, model, prompts)
}
