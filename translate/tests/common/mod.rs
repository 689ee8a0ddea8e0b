//! A stand-in for a translator that speaks both protocols, with faults on demand. Its translation writes every word
//! backwards, so that whatever is lost or swapped on the way shows.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

/// What the server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Translates.
    Translate,
    /// Gives the text back as it is.
    Echo,
    /// Status 500.
    Error,
    /// Status 429 with a Retry-After of no time.
    TooMany,
    /// Half of the translation, told as cut off where the protocol can.
    Truncate,
    /// Half of the translation, and nothing told.
    Half,
    /// The first words over and over.
    Loop,
    /// A third language.
    Swap,
    /// The translation without its masks.
    DropMasks,
    /// Nothing.
    Empty,
    /// Nothing, told as held back by a filter where the protocol can.
    Filter,
    /// JSON that breaks off.
    Malformed,
    /// No answer in time.
    Hang,
}

/// Chooses the reaction to texts that come for the n-th time, from 0.
pub(crate) type Plan = Box<dyn Fn(&str, usize) -> Reaction + Send>;

struct Shared {
    plan: Mutex<Plan>,
    /// How often a text came, and how often it was translated well.
    times: Mutex<HashMap<String, (usize, usize)>>,
}

/// A running server; it ends with the value.
pub(crate) struct StandIn {
    address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

impl StandIn {
    /// Starts a server on a free port of this machine.
    pub(crate) fn start(plan: Plan) -> StandIn {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { plan: Mutex::new(plan), times: Mutex::default() });
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/translate", post(libre))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        StandIn { address, shared, _runtime: runtime }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Another plan from now on.
    pub(crate) fn change(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// For every text how often it came and how often it was translated well.
    pub(crate) fn times(&self) -> HashMap<String, (usize, usize)> {
        self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn reaction(&self, text: &str) -> Reaction {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let (came, well) = times.entry(text.to_owned()).or_default();
        let reaction = (self.plan.lock().unwrap_or_else(PoisonError::into_inner))(text, *came);
        *came += 1;
        *well += usize::from(reaction == Reaction::Translate);
        reaction
    }
}

/// Every word backwards; masks and what is not a word stay.
pub(crate) fn backwards(text: &str) -> String {
    let mut translation = String::new();
    let mut word = String::new();
    let mut in_mask = false;
    for character in text.chars() {
        in_mask |= matches!(character, '⟦' | '<' | '{');
        if character.is_alphabetic() && !in_mask {
            word.insert(0, character);
            continue;
        }
        translation.push_str(&std::mem::take(&mut word));
        translation.push(character);
        in_mask &= !matches!(character, '⟧' | '>' | '}');
    }
    translation + &word
}

fn react(text: &str, reaction: Reaction) -> String {
    let translation = backwards(text);
    let characters: Vec<char> = translation.chars().collect();
    let half: String = characters[..characters.len() / 2].iter().collect();
    match reaction {
        Reaction::Echo => text.to_owned(),
        Reaction::Truncate | Reaction::Half => half,
        Reaction::Loop => "eht tac tas ".repeat(20),
        Reaction::Swap => "這是另一種語言的文字。".repeat(characters.len().div_ceil(33).max(1)),
        Reaction::DropMasks => without_masks(&translation),
        Reaction::Empty | Reaction::Filter => String::new(),
        _ => translation,
    }
}

/// A text without its masks, and otherwise whole.
fn without_masks(text: &str) -> String {
    let mut parts = text.split(['⟦', '<', '{']);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| whole + part.split_once(['⟧', '>', '}']).map_or(part, |(_, rest)| rest))
}

async fn refusal(reaction: Reaction) -> Option<Response> {
    match reaction {
        Reaction::Error => Some(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
        Reaction::TooMany => {
            Some((StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response())
        }
        Reaction::Malformed => Some("{\"translatedText\": [\"ab".into_response()),
        Reaction::Hang => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Some(StatusCode::OK.into_response())
        }
        _ => None,
    }
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let text = request["messages"][1]["content"].as_str().unwrap();
    let reaction = shared.reaction(text);
    if let Some(refusal) = refusal(reaction).await {
        return refusal;
    }
    let finish = match reaction {
        Reaction::Truncate => "length",
        Reaction::Filter => "content_filter",
        _ => "stop",
    };
    axum::Json(json!({
        "choices": [{"message": {"role": "assistant", "content": react(text, reaction)}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 10},
    }))
    .into_response()
}

async fn libre(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&request["source"], &request["format"]), (&json!("en"), &json!("text")));
    let texts: Vec<&str> =
        request["q"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let reactions: Vec<Reaction> = texts.iter().map(|text| shared.reaction(text)).collect();
    for reaction in &reactions {
        if let Some(refusal) = refusal(*reaction).await {
            return refusal;
        }
    }
    let translated: Vec<String> =
        texts.iter().zip(&reactions).map(|(text, reaction)| react(text, *reaction)).collect();
    axum::Json(json!({ "translatedText": translated })).into_response()
}
