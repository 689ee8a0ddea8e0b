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

/// A batch of the stand-in's: the tag that came with it, its questions, and how often it was looked at.
struct Batch {
    metadata: Value,
    file: usize,
    looks: usize,
}

struct Shared {
    files: Mutex<Vec<String>>,
    batches: Mutex<Vec<Batch>>,
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
            files: Mutex::default(),
            batches: Mutex::default(),
            plan: Mutex::new(plan),
            asked: Mutex::new(Vec::new()),
            times: Mutex::new(HashMap::new()),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/v1/files", post(upload))
            .route("/v1/files/{file}/content", get(content))
            .route("/v1/batches", post(create_batch).get(list_batches))
            .route("/v1/batches/{batch}", get(look_at_batch))
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

    /// How many batches there have been.
    pub(crate) fn batches(&self) -> usize {
        self.shared.batches.lock().unwrap_or_else(PoisonError::into_inner).len()
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the lines out of the form that a file comes in.
async fn upload(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let form = String::from_utf8_lossy(&body);
    let lines: String =
        form.lines().filter(|line| line.starts_with('{')).map(|line| format!("{line}\n")).collect();
    let mut files = lock(&shared.files);
    files.push(lines);
    axum::Json(json!({"id": format!("file-{}", files.len() - 1), "object": "file", "purpose": "batch"}))
        .into_response()
}

async fn create_batch(State(shared): State<Arc<Shared>>, axum::Json(body): axum::Json<Value>) -> Response {
    let file = body["input_file_id"].as_str().and_then(|id| id.strip_prefix("file-")?.parse().ok());
    let Some(file) = file else { return StatusCode::BAD_REQUEST.into_response() };
    let mut batches = lock(&shared.batches);
    batches.push(Batch { metadata: body["metadata"].clone(), file, looks: 0 });
    let batch = batches.len() - 1;
    // The first answer is lost on its way, and the batch is there all the same.
    if batch == 0 {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    axum::Json(told(batch, &batches[batch])).into_response()
}

/// A batch is over at the third look at it.
fn told(number: usize, batch: &Batch) -> Value {
    let over = batch.looks > 2;
    json!({
        "id": format!("batch-{number}"), "object": "batch", "metadata": batch.metadata,
        "status": if over { "completed" } else { "in_progress" },
        "output_file_id": over.then(|| format!("answers-{}", batch.file)), "error_file_id": null
    })
}

async fn list_batches(State(shared): State<Arc<Shared>>) -> Response {
    let batches: Vec<Value> =
        lock(&shared.batches).iter().enumerate().map(|(number, batch)| told(number, batch)).collect();
    axum::Json(json!({"object": "list", "data": batches, "has_more": false})).into_response()
}

async fn look_at_batch(
    State(shared): State<Arc<Shared>>,
    axum::extract::Path(batch): axum::extract::Path<String>,
) -> Response {
    let number = batch.strip_prefix("batch-").and_then(|number| number.parse::<usize>().ok());
    let mut batches = lock(&shared.batches);
    match number.and_then(|number| Some((number, batches.get_mut(number)?))) {
        Some((number, batch)) => {
            batch.looks += 1;
            axum::Json(told(number, batch)).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The answers to a file's questions, each as the plan has it; faults become errors of their line.
async fn content(
    State(shared): State<Arc<Shared>>,
    axum::extract::Path(file): axum::extract::Path<String>,
) -> Response {
    let number = file.strip_prefix("answers-").and_then(|number| number.parse::<usize>().ok());
    let Some(lines) = number.and_then(|number| lock(&shared.files).get(number).cloned()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut out = String::new();
    for line in lines.lines() {
        let Ok(question) = serde_json::from_str::<Value>(line) else { continue };
        let answer = complete(State(Arc::clone(&shared)), Bytes::from(question["body"].to_string())).await;
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let response = json!({"status_code": status, "request_id": "stand-in", "body": body});
        out +=
            &json!({"id": "line", "custom_id": question["custom_id"], "response": response, "error": null})
                .to_string();
        out.push('\n');
    }
    out.into_response()
}
