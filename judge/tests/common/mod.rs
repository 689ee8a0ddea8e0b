//! A stand-in for a judge: an OpenAI-compatible server whose ratings mean nothing, with faults on demand.
//!
//! Its rating is drawn from a hash of the message, so that the same question always has the same answer. It keeps a
//! line per request, for tests to count.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

/// What the server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Answers as a judge.
    Answer,
    /// Answers as a judge, and repeats all that it was shown behind its rating.
    Echo,
    /// Status 500.
    Error,
    /// Status 429, with Retry-After in seconds where given.
    TooMany(Option<u64>),
    /// A well-formed answer that holds no rating.
    Nonsense,
    /// A well-formed answer that says nothing.
    Nothing,
    /// Status 200 and no body.
    NoBody,
    /// Status 200 and text that is not JSON.
    NotJson,
    /// JSON that breaks off.
    Truncated,
    /// No answer for a minute.
    Hang,
    /// Closes the connection without an answer.
    Close,
    /// Status 401.
    Unauthorized,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// When.
    pub(crate) at: Instant,
    /// The request's message.
    pub(crate) message: String,
    /// What was done with it.
    pub(crate) reaction: Reaction,
    /// Tokens of prompt and answer that were told; 0 where there was no answer.
    pub(crate) tokens: (u64, u64),
}

/// Chooses the reaction to the message that comes for the n-th time, from 0.
pub(crate) type Plan = Box<dyn Fn(&str, usize) -> Reaction + Send>;

struct Shared {
    plan: Mutex<Plan>,
    asked: Mutex<Vec<Asked>>,
    times: Mutex<HashMap<String, usize>>,
}

/// A running server; it ends with the value.
pub(crate) struct StandIn {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

impl StandIn {
    /// Starts a server on a free port (or on `port`), on this machine only.
    pub(crate) fn start(port: u16, plan: Plan) -> std::io::Result<StandIn> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", port)))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            plan: Mutex::new(plan),
            asked: Mutex::new(Vec::new()),
            times: Mutex::new(HashMap::new()),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/v1/models", get(|| async { axum::Json(json!({"object": "list", "data": []})) }))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(StandIn { address, shared, _runtime: runtime })
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request until now.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, another plan; counting starts anew.
    pub(crate) fn change(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The rating that the stand-in gives to a message: 1 to 3, by its hash.
pub(crate) fn stand_in_rating(message: &str) -> u8 {
    1 + blake3::hash(message.as_bytes()).as_bytes()[0] % 3
}

async fn complete(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "the request is not JSON").into_response();
    };
    let (Some(message), Some(model)) =
        (request["messages"][0]["content"].as_str(), request["model"].as_str())
    else {
        return (StatusCode::BAD_REQUEST, "the request has no message or no model").into_response();
    };
    let time = {
        let mut times = shared.times.lock().unwrap_or_else(PoisonError::into_inner);
        let time = times.entry(message.to_string()).or_default();
        *time += 1;
        *time - 1
    };
    let reaction = (shared.plan.lock().unwrap_or_else(PoisonError::into_inner))(message, time);
    let said = match reaction {
        Reaction::Answer => {
            format!("A stand-in's rating, drawn from a hash.\nRating: [[{}]]", stand_in_rating(message))
        }
        Reaction::Echo => format!("Poor. Rating: [[1]]\n\nI was shown: {message}"),
        Reaction::Nonsense => "Colourless green ideas sleep furiously.".into(),
        _ => String::new(),
    };
    let answers =
        matches!(reaction, Reaction::Answer | Reaction::Echo | Reaction::Nonsense | Reaction::Nothing);
    let tokens = if answers { (message.len() as u64 / 3 + 10, said.len() as u64 / 3 + 1) } else { (0, 0) };
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked {
        at: Instant::now(),
        message: message.to_string(),
        reaction,
        tokens,
    });
    let json_type = [(header::CONTENT_TYPE, "application/json")];
    match reaction {
        Reaction::Answer | Reaction::Echo | Reaction::Nonsense | Reaction::Nothing => axum::Json(json!({
            "id": "stand-in", "object": "chat.completion", "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": tokens.0, "completion_tokens": tokens.1, "total_tokens": tokens.0 + tokens.1
            }
        }))
        .into_response(),
        Reaction::Error => (StatusCode::INTERNAL_SERVER_ERROR, "out of order").into_response(),
        Reaction::TooMany(None) => (StatusCode::TOO_MANY_REQUESTS, "slower").into_response(),
        Reaction::TooMany(Some(seconds)) => {
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())], "slower").into_response()
        }
        Reaction::NoBody => (StatusCode::OK, "").into_response(),
        Reaction::NotJson => (StatusCode::OK, "<html>Welcome</html>").into_response(),
        Reaction::Truncated => (json_type, r#"{"choices": [{"message": {"content": "Rating: [[3"#).into_response(),
        Reaction::Hang => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            StatusCode::GATEWAY_TIMEOUT.into_response()
        }
        // Unwinds the connection's task without a panic message: the socket is closed with nothing sent.
        Reaction::Close => std::panic::resume_unwind(Box::new("closed on demand")),
        Reaction::Unauthorized => {
            (StatusCode::UNAUTHORIZED, json_type, r#"{"error": {"message": "no such key"}}"#).into_response()
        }
    }
}
