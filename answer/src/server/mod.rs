//! OpenAI-compatible answers over HTTP: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`.
//!
//! Connections live on threads of their own; their requests meet in one continuous batch (`desk`), which runs on the
//! thread that called [`serve`]. A request has a place in a bounded queue until it is answered or its client hangs up.

mod asked;
mod desk;
mod refusal;
pub(crate) mod told;

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::IntoFuture;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use engine::decoder::cache::{KeyValueCache, PAGE_SIZE};
use engine::kernels::Kernels;
use futures_util::stream::{self, StreamExt};
use model::BaseModel;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Semaphore, TryAcquireError};

use self::asked::Asked;
use self::desk::{Job, News};
use self::refusal::Refusal;
use self::told::{ChoiceText, Envelope, Kind, Usage};
use crate::answer_model::AnswerModel;
use crate::conversation::{Conversation, Message};
use crate::preamble::common;
use crate::request::{Answer, Request};
use crate::scheduler::Limits;

/// A body too large is read to its end up to so many times the limit: who is still sending would not hear the refusal.
const READ_TO_THE_END: usize = 16;

/// A name that clients can ask for.
pub struct ServedModel {
    /// The name.
    pub name: String,
    /// The adapter's place in the model; none: the base model.
    pub adapter: Option<usize>,
    /// How its conversations become prompts.
    pub conversation: Conversation,
}

/// What a server allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Most new tokens of an answer, and how many where a client names none.
    pub new_tokens: usize,
    /// Most requests under way, those that wait among them; more are answered by 429.
    pub queue: usize,
    /// Most bytes of a body; more are answered by 413.
    pub body_bytes: usize,
    /// Most tokens of one pass over the model.
    pub batch_tokens: usize,
    /// Bytes of keys and values.
    pub cache_bytes: usize,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { new_tokens: 1024, queue: 256, body_bytes: 4 << 20, batch_tokens: 256, cache_bytes: 1 << 30 }
    }
}

/// What every connection knows.
struct Served {
    base: Arc<BaseModel>,
    models: Vec<ServedModel>,
    settings: ServerSettings,
    /// Tokens for which there are pages.
    context: usize,
    queue: Arc<Semaphore>,
    calls: AtomicU64,
}

#[derive(Clone)]
struct Connection {
    served: Arc<Served>,
    jobs: Sender<Job>,
}

/// A server whose memory for keys and values holds no request.
#[derive(Debug, thiserror::Error)]
#[error("{given} bytes of keys and values hold no request; expected at least {needed}")]
pub struct CacheTooSmall {
    /// [`ServerSettings::cache_bytes`].
    pub given: usize,
    /// What holds a short request.
    pub needed: usize,
}

/// Serves until SIGTERM or an interrupt; what is under way then is finished first. The batch runs on this thread.
///
/// # Errors
/// Two models have one name, the threads of the connections cannot be started, or the listener fails.
pub fn serve<K: Kernels>(
    model: &AnswerModel<K>,
    models: Vec<ServedModel>,
    settings: ServerSettings,
    listener: TcpListener,
) -> Result<()> {
    check_names(models.iter().map(|model| model.name.as_str()))?;
    let preambles = preambles(model, &models);
    let held: usize = preambles.iter().map(|(_, tokens)| tokens.len().div_ceil(PAGE_SIZE) + 1).sum();
    let affordable = settings.cache_bytes / KeyValueCache::page_bytes(&model.decoder).max(1);
    // Three pages of a prompt's own are the scheduler's reserve.
    let context = affordable.saturating_sub(held + 4) * PAGE_SIZE;
    if context == 0 {
        let needed = (held + 5) * KeyValueCache::page_bytes(&model.decoder);
        return Err(CacheTooSmall { given: settings.cache_bytes, needed }.into());
    }
    let limits = Limits { batch_tokens: settings.batch_tokens, pages: affordable };
    let (jobs, desk) = channel();
    let queue = Arc::new(Semaphore::new(settings.queue));
    let served = Arc::new(Served {
        base: Arc::clone(&model.base),
        models,
        settings,
        context,
        queue,
        calls: AtomicU64::new(0),
    });
    let (waiting, places) = (Arc::clone(&served.queue), served.settings.queue);
    let router = router(Connection { served, jobs });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let connections = std::thread::spawn(move || {
        runtime.block_on(async move {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            serve_until_told(listener, router, &waiting, places).await
        })
    });
    desk::work(model, limits, &preambles, &desk);
    connections.join().ok().context("the thread of the connections has panicked")??;
    Ok(())
}

/// That each model can be asked for by its name.
///
/// # Errors
/// A name is empty, or two are the same.
pub fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut met = HashSet::new();
    for name in names {
        if name.is_empty() {
            bail!("a model's name is empty");
        }
        if !met.insert(name) {
            bail!("two models are called {name}");
        }
    }
    Ok(())
}

/// What each model's conversations begin with.
fn preambles<K: Kernels>(model: &AnswerModel<K>, models: &[ServedModel]) -> Vec<(Option<usize>, Vec<u32>)> {
    let beginning = |served: &ServedModel| {
        let tokens = |text| {
            let messages = [Message::new("user", text)];
            // A template may refuse what it is not meant for: then nothing is shared.
            served.conversation.tokens(model.base.tokenizer(), &messages).unwrap_or_default()
        };
        let (one, other) = (tokens("A"), tokens("7"));
        (served.adapter, common([one.as_slice(), other.as_slice()].into_iter()).to_vec())
    };
    models.iter().map(beginning).filter(|(_, tokens)| !tokens.is_empty()).collect()
}

/// How long a client has for a further piece of its request's body, and for what it has not read when all is answered.
const PATIENCE: Duration = Duration::from_secs(30);
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Serves until told to end. Then what is under way is finished; a client that has sent half a request, or reads nothing
/// of its answer, is not waited for, and whoever says it twice waits for nobody.
async fn serve_until_told(
    listener: tokio::net::TcpListener,
    router: Router,
    queue: &Semaphore,
    places: usize,
) -> std::io::Result<()> {
    let (end, told) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        // An end that is dropped is an end as well.
        let _ = told.await;
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        () = told_to_end() => {}
    }
    tracing::info!("told to end: what is under way is finished first");
    let _ = end.send(());
    let all_answered = async {
        loop {
            tokio::time::sleep(LAST_WORDS).await;
            if queue.available_permits() == places {
                break;
            }
        }
    };
    tokio::select! {
        ended = &mut server => ended,
        () = told_to_end() => Ok(()),
        () = all_answered => Ok(()),
    }
}

async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = terminated => {}
        () = interrupted => {}
    }
}

fn router(connection: Connection) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "There is no such path."))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "This path takes another method.")
        })
        .with_state(connection)
}

fn model_json(served: &Served, model: &ServedModel) -> Value {
    let base = served.models.iter().find(|other| other.adapter.is_none()).map(|base| base.name.as_str());
    json!({
        "id": model.name, "object": "model", "created": 0, "owned_by": "polypaca",
        "parent": base.filter(|_| model.adapter.is_some()),
        "max_model_len": served.base.config().max_positions.min(served.context),
    })
}

async fn list_models(State(Connection { served, .. }): State<Connection>) -> Json<Value> {
    let data: Vec<Value> = served.models.iter().map(|model| model_json(&served, model)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn one_model(
    State(Connection { served, .. }): State<Connection>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let found = served.models.iter().find(|model| model.name == name);
    found.map(|model| Json(model_json(&served, model))).ok_or_else(|| Refusal::no_model(&name))
}

async fn chat(State(connection): State<Connection>, body: Body) -> Result<Response, Refusal> {
    let body = whole_body(body, connection.served.settings.body_bytes).await?;
    let asked = asked::chat(&connection.served, &body)?;
    connection.answer(Kind::Chat, asked).await
}

async fn completion(State(connection): State<Connection>, body: Body) -> Result<Response, Refusal> {
    let body = whole_body(body, connection.served.settings.body_bytes).await?;
    let asked = asked::completion(&connection.served, &body)?;
    connection.answer(Kind::Completion, asked).await
}

async fn whole_body(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let (mut whole, mut length) = (Vec::new(), 0);
    let mut parts = body.into_data_stream();
    while let Some(part) = tokio::time::timeout(PATIENCE, parts.next()).await.map_err(|_| {
        let message = format!("Nothing more of the body came within {} s.", PATIENCE.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, message)
    })? {
        let part = part.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        length += part.len();
        if length <= limit {
            whole.extend_from_slice(&part);
        } else if length > limit * READ_TO_THE_END {
            break;
        }
    }
    if length > limit {
        let message = format!("The body has more than {limit} bytes.");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(whole.into())
}

impl Connection {
    async fn answer(self, kind: Kind, asked: Asked) -> Result<Response, Refusal> {
        let number = self.served.calls.fetch_add(1, Ordering::Relaxed);
        let envelope = Envelope::new(kind, number, &asked.model);
        let mut news = self.send(&asked)?;
        if asked.stream {
            // What fails before its first token is refused by its status.
            let first = news.recv().await;
            if let Some((_, News::Failed(error))) = &first {
                return Err(refusal(error));
            }
            return Ok(streamed(self.served, envelope, asked, first, news));
        }
        let mut answers: Vec<Option<Answer>> =
            (0..asked.prompts.len() * asked.choices).map(|_| None).collect();
        while let Some((choice, news)) = news.recv().await {
            match news {
                News::Token(_) => {}
                News::Finished(answer) => answers[choice] = Some(answer),
                News::Failed(error) => return Err(refusal(&error)),
            }
        }
        let answers: Option<Vec<Answer>> = answers.into_iter().collect();
        let answers = answers.ok_or_else(gone)?;
        let mut usage = asked_tokens(&asked);
        usage.completion = answers.iter().map(|answer| answer.tokens.len()).sum();
        Ok(Json(envelope.whole(&answers, usage)).into_response())
    }

    /// Puts all choices in the queue, or none.
    fn send(&self, asked: &Asked) -> Result<UnboundedReceiver<(usize, News)>, Refusal> {
        let count = asked.prompts.len() * asked.choices;
        let most = self.served.settings.queue;
        if count > most {
            let message = format!("{count} choices are asked for; this server takes {most} at once.");
            return Err(Refusal::bad("n", message));
        }
        let mut places = Vec::new();
        for _ in 0..count {
            match Arc::clone(&self.served.queue).try_acquire_owned() {
                Ok(place) => places.push(place),
                Err(TryAcquireError::NoPermits) => {
                    let message = format!("All {most} places are taken; try again later.");
                    return Err(
                        Refusal::new(StatusCode::TOO_MANY_REQUESTS, message).code("rate_limit_exceeded")
                    );
                }
                Err(TryAcquireError::Closed) => return Err(gone()),
            }
        }
        let (listener, news) = unbounded_channel();
        for (choice, place) in places.into_iter().enumerate() {
            // A seed draws the same for the same choice, whatever else is asked.
            let request = Request {
                id: format!("choice {}", choice % asked.choices),
                prompt_tokens: asked.prompts[choice / asked.choices].clone(),
                adapter: asked.adapter,
            };
            let (decoding, listener) = (Arc::clone(&asked.decoding), listener.clone());
            let job = Job { request, decoding, choice, listener, place: Arc::new(place) };
            self.jobs.send(job).map_err(|_| gone())?;
        }
        Ok(news)
    }
}

fn gone() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "The server is ending.")
}

fn refusal(error: &crate::error::Error) -> Refusal {
    use crate::error::Error;
    let status = match error {
        Error::Request { .. } => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, error.to_string())
}

fn asked_tokens(asked: &Asked) -> Usage {
    Usage { prompt: asked.prompts.iter().map(Vec::len).sum(), completion: 0 }
}

/// Server-sent events as the tokens come.
fn streamed(
    served: Arc<Served>,
    envelope: Envelope,
    asked: Asked,
    first: Option<(usize, News)>,
    mut news: UnboundedReceiver<(usize, News)>,
) -> Response {
    let (events, receiver) = unbounded_channel::<Value>();
    // The texts borrow the tokenizer: a task of its own keeps both. It ends when the client hangs up, and drops
    // `news`, which frees the request's place.
    tokio::spawn(async move {
        let tokenizer = served.base.tokenizer();
        let count = asked.prompts.len() * asked.choices;
        let mut texts: Vec<ChoiceText<'_>> =
            (0..count).map(|_| ChoiceText::new(tokenizer, &asked.decoding.stops)).collect();
        let mut usage = asked_tokens(&asked);
        for begin in (0..count).filter_map(|choice| envelope.begins(choice)) {
            let _ = events.send(begin);
        }
        let mut next = first;
        while let Some((choice, told)) = next {
            let sent = match told {
                News::Token(token) => {
                    let text = texts[choice].push(token);
                    if text.is_empty() { Ok(()) } else { events.send(envelope.goes_on(choice, &text, None)) }
                }
                News::Finished(answer) => {
                    usage.completion += answer.tokens.len();
                    let rest = texts[choice].finish(&answer);
                    if !rest.is_empty() {
                        let _ = events.send(envelope.goes_on(choice, &rest, None));
                    }
                    events.send(envelope.goes_on(choice, "", Some(answer.finish)))
                }
                News::Failed(error) => {
                    let _ = events.send(refusal(&error).body());
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
            next = tokio::select! {
                () = events.closed() => return,
                next = news.recv() => next,
            };
        }
        if asked.usage {
            let _ = events.send(envelope.usage(usage));
        }
    });
    let events = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let events = events.map(|event| Event::default().data(event.to_string()));
    let done = stream::once(async { Event::default().data("[DONE]") });
    Sse::new(events.chain(done).map(Ok::<_, Infallible>)).into_response()
}
