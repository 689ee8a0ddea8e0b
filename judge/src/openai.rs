//! A judge at an OpenAI-compatible endpoint: one question and response a request, no history.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use instructions::prompt::Response;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::{Map, Value, json};

use crate::asking::{Asker, Check, Reply, rate_by_asking};
use crate::batch::{BatchQuestion, Batches};
use crate::cache::{Answer, Cache, CacheError, NanoDollars, Reservation};
use crate::judging::{self, Judge, Progress, Verdict};
use crate::pace::{self, Pace};
use crate::price::Price;
use crate::prompt_template::PromptTemplate;

/// No answer is longer; a server that sends more is not listened to further.
const LONGEST_BODY: usize = 8 << 20;

/// Tokens that a chat format may add around a message, on the safe side.
const TOKENS_AROUND: u64 = 64;

/// How to reach and ask a judge.
#[derive(Clone, Debug)]
pub struct OpenAiSettings {
    /// The base URL, with or without `/v1`: `https://api.openai.com`.
    pub endpoint: String,
    /// The model that judges.
    pub model: String,
    /// What it is asked.
    pub template: PromptTemplate,
    /// The environment variable that holds the key; `None` where the endpoint needs none.
    pub key_variable: Option<String>,
    /// The request's other keys: temperature, the most tokens of an answer, a seed.
    pub sampling: Map<String, Value>,
    /// How many requests are under way at once, at most.
    pub concurrency: usize,
    /// How many requests go out in a minute, at most; tries again count.
    pub requests_per_minute: Option<f64>,
    /// How often a response is asked for before it is left unrated.
    pub tries: u32,
    /// The wait after the first failure; doubled after each further one.
    pub backoff: Duration,
    /// The longest wait that a server may ask for; beyond it the rest is left unrated for a later run.
    pub longest_wait: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// What the model costs.
    pub price: Option<Price>,
    /// Ask through the batch endpoint, and look at a batch this often; one request a question unless given.
    pub batch: Option<Duration>,
    /// The most that may be spent, in dollars, over all runs with the same cache and `scope`.
    pub cap: Option<f64>,
    /// What the spending is counted under: the ratings file, say.
    pub scope: String,
    /// Where answers and spending are kept.
    pub cache: PathBuf,
}

impl OpenAiSettings {
    /// Temperature 0, 512 tokens an answer, 8 requests at once, 6 tries, two minutes a request; no cap.
    pub fn new(endpoint: &str, model: &str, cache: PathBuf) -> OpenAiSettings {
        let sampling = [("temperature".to_string(), json!(0)), ("max_tokens".to_string(), json!(512))];
        OpenAiSettings {
            endpoint: endpoint.to_string(),
            model: model.to_string(),
            template: PromptTemplate::default(),
            key_variable: None,
            sampling: sampling.into_iter().collect(),
            concurrency: 8,
            requests_per_minute: None,
            tries: 6,
            backoff: Duration::from_secs(1),
            longest_wait: Duration::from_secs(600),
            timeout: Duration::from_secs(120),
            price: None,
            batch: None,
            cap: None,
            scope: String::new(),
            cache,
        }
    }
}

/// Why a judge cannot be asked, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum OpenAiError {
    /// The base URL is none.
    #[error("--endpoint: expected an http or https URL, found {found:?}: {reason}")]
    Endpoint {
        /// What was given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is missing.
    #[error("environment variable {name}: expected the endpoint's key, found {found}")]
    Key {
        /// The variable.
        name: String,
        /// What is wrong with it.
        found: &'static str,
    },
    /// A setting is out of its range.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The client could not be made.
    #[error("HTTP client: {0}")]
    Client(String),
    /// The endpoint refuses every request.
    #[error("{url} answered {status}: {said}")]
    Refused {
        /// Where.
        url: String,
        /// The status.
        status: StatusCode,
        /// The start of what it said.
        said: String,
    },
    /// The batch endpoint says what cannot be understood, or nothing.
    #[error("{url}: the batch endpoint: {said}")]
    Batch {
        /// Where.
        url: String,
        /// What it said, or what went wrong.
        said: String,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A judge at an OpenAI-compatible endpoint.
#[derive(Debug)]
pub struct OpenAiJudge {
    settings: OpenAiSettings,
    url: reqwest::Url,
    client: reqwest::Client,
    cache: Arc<Cache>,
    cap: Option<NanoDollars>,
    longest_answer: Option<u64>,
}

impl OpenAiJudge {
    /// Makes ready to ask; sends nothing yet.
    ///
    /// # Errors
    /// [`OpenAiError`]: settings that cannot be, a missing key, a cache that cannot be opened.
    pub fn new(settings: OpenAiSettings) -> Result<OpenAiJudge, OpenAiError> {
        let url = completions_url(&settings.endpoint)?;
        let longest_answer = check(&settings)?;
        let client = client(&settings, &url)?;
        let cache = Arc::new(Cache::open(&settings.cache)?);
        let cap = settings.cap.map(|dollars| (dollars * 1e9).floor() as NanoDollars);
        Ok(OpenAiJudge { settings, url, client, cache, cap, longest_answer })
    }

    /// The most that asking for these responses can cost, in dollars, each answered at the first try; `None`
    /// where no price is known. What is in the cache costs nothing.
    ///
    /// # Errors
    /// [`OpenAiError::Cache`].
    pub fn most_it_can_cost(&self, responses: &[Response]) -> Result<Option<f64>, OpenAiError> {
        let prompts: Vec<String> = responses
            .iter()
            .map(|response| judging::shown_prompt(&self.settings.template, response))
            .collect();
        let mut sum = 0.0;
        for question in self.questions(&prompts) {
            let Some(most) = self.most(&question.body) else { return Ok(None) };
            if self.cache.answer(&question.key)?.is_none() {
                sum += most as f64 / 1e9;
            }
        }
        Ok(Some(sum))
    }

    /// What was spent or may have been, in dollars.
    ///
    /// # Errors
    /// [`OpenAiError::Cache`].
    pub fn spent(&self) -> Result<f64, OpenAiError> {
        Ok(self.cache.spent(&self.settings.scope)? as f64 / 1e9)
    }

    /// The request's body for a prompt.
    fn body(&self, prompt: &str) -> String {
        let mut body = Map::new();
        body.insert("model".into(), json!(self.settings.model));
        body.insert("messages".into(), json!([{"role": "user", "content": prompt}]));
        for (name, value) in &self.settings.sampling {
            body.insert(name.clone(), value.clone());
        }
        Value::Object(body).to_string()
    }

    /// What is to be asked, each question once: equal requests have equal answers.
    fn questions(&self, prompts: &[String]) -> Vec<Question> {
        let mut questions: Vec<Question> = Vec::new();
        let mut places = HashMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let body = self.body(prompt);
            let key = blake3::hash(format!("{}\n{body}", self.url).as_bytes()).to_hex().to_string();
            let place = *places.entry(key.clone()).or_insert_with(|| {
                questions.push(Question { key, body, asked: Vec::new() });
                questions.len() - 1
            });
            questions[place].asked.push(index);
        }
        questions
    }

    /// The most that a request can cost: no tokenizer makes more tokens of a text than it has bytes.
    fn most(&self, body: &str) -> Option<NanoDollars> {
        let price = self.settings.price?;
        Some(price.of(body.len() as u64 + TOKENS_AROUND, self.longest_answer?))
    }
}

impl Judge for OpenAiJudge {
    fn name(&self) -> String {
        self.settings.model.clone()
    }

    fn setting(&self) -> String {
        judging::short_hash(&["openai", self.url.as_str(), &self.body(self.settings.template.text())])
    }

    fn rate(
        &self,
        responses: &[Response],
        progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        rate_by_asking(self, &self.settings.template, responses, progress, give)
    }
}

impl Asker for OpenAiJudge {
    fn name(&self) -> String {
        self.settings.model.clone()
    }

    fn setting(&self) -> String {
        judging::short_hash(&["openai", self.url.as_str(), &self.body("")])
    }

    fn ask(
        &self,
        prompts: &[String],
        check: &Arc<Check>,
        progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Reply) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut waiting = VecDeque::new();
        for question in self.questions(prompts) {
            match self.cache.answer(&question.key)? {
                // Kept answers hold what whoever asked for them wanted; read by today's rules they might not, and
                // are asked for again then.
                Some(answer) if question.fault(&**check, &answer.text).is_none() => {
                    question.hand_over(&Reply::Text(answer.text), give)?;
                }
                _ => waiting.push_back(question),
            }
        }
        if let Some(look) = self.settings.batch {
            return self.ask_in_batches(&waiting, look, check, progress, give);
        }
        let workers = self.settings.concurrency.min(waiting.len());
        if workers == 0 {
            return Ok(());
        }
        let asking = Arc::new(Asking {
            url: self.url.clone(),
            client: self.client.clone(),
            cache: Arc::clone(&self.cache),
            settings: self.settings.clone(),
            cap: self.cap,
            mosts: waiting.iter().map(|question| (question.key.clone(), self.most(&question.body))).collect(),
            pace: Pace::new(self.settings.requests_per_minute),
            waiting: Mutex::new(waiting),
            reserving: AtomicUsize::new(0),
            halted: Mutex::new(None),
            check: Arc::clone(check),
        });
        let (sender, messages) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        for _ in 0..workers {
            runtime.spawn(work(Arc::clone(&asking), sender.clone()));
        }
        drop(sender);
        let mut outcome = Ok(());
        for message in messages {
            outcome = match message {
                Message::Retry { reason, next, wait } => {
                    progress.retry(&reason, next, wait);
                    Ok(())
                }
                Message::Reply { question, reply } => question.hand_over(&reply, give),
                Message::Failed(error) => Err(error.into()),
            };
            if outcome.is_err() {
                break;
            }
        }
        // Requests under way are given up; what they may have cost stays set aside.
        runtime.shutdown_background();
        outcome
    }
}

impl OpenAiJudge {
    fn ask_in_batches(
        &self,
        waiting: &VecDeque<Question>,
        look: Duration,
        check: &Arc<Check>,
        progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Reply) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        let batches = Batches {
            url: &self.url,
            client: &self.client,
            asker: format!("{} {}", self.url, self.settings.model),
            cache: &self.cache,
            price: self.settings.price,
            cap: self.cap,
            scope: &self.settings.scope,
            tries: self.settings.tries,
            backoff: self.settings.backoff,
            look,
        };
        let questions: Vec<BatchQuestion<'_>> = waiting
            .iter()
            .map(|question| BatchQuestion {
                key: &question.key,
                body: &question.body,
                most: self.most(&question.body),
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut answered = runtime.block_on(batches.ask(&questions, progress))?;
        for question in waiting {
            let reply = match answered.remove(&question.key) {
                Some(Ok(answer)) => match question.fault(&**check, &answer.text) {
                    None => Reply::Text(answer.text),
                    Some(reason) => Reply::Unanswered { reason, said: answer.text },
                },
                Some(Err(reason)) => Reply::Unanswered { reason, said: String::new() },
                None => Reply::Unanswered { reason: "no answer in the batch".into(), said: String::new() },
            };
            question.hand_over(&reply, give)?;
        }
        Ok(())
    }
}

/// One request, and the prompts that it is for.
struct Question {
    key: String,
    body: String,
    asked: Vec<usize>,
}

impl Question {
    /// What is wrong with a reply for any of those that it is for.
    fn fault(&self, check: &Check, reply: &str) -> Option<String> {
        self.asked.iter().find_map(|&index| check(index, reply).err())
    }

    fn hand_over(
        &self,
        reply: &Reply,
        give: &mut dyn FnMut(usize, Reply) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.asked.iter().try_for_each(|&index| give(index, reply.clone()))
    }
}

enum Message {
    Reply { question: Question, reply: Reply },
    Retry { reason: String, next: u32, wait: Duration },
    Failed(OpenAiError),
}

/// What the workers share.
struct Asking {
    url: reqwest::Url,
    client: reqwest::Client,
    cache: Arc<Cache>,
    settings: OpenAiSettings,
    cap: Option<NanoDollars>,
    mosts: HashMap<String, Option<NanoDollars>>,
    check: Arc<Check>,
    pace: Pace,
    waiting: Mutex<VecDeque<Question>>,
    /// How many requests have money set aside that may come back.
    reserving: AtomicUsize,
    /// Why nothing more is asked.
    halted: Mutex<Option<String>>,
}

/// What became of a request.
pub(crate) enum Outcome {
    Answered(Answer),
    /// May go better later.
    Failed {
        reason: String,
        wait: Option<Duration>,
        billed: Billed,
    },
    /// This one will never be answered.
    Refused(String),
    /// None will.
    Fatal(OpenAiError),
}

/// Whether a failed request may have been billed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Billed {
    No,
    Perhaps,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one question after another until none is left.
async fn work(asking: Arc<Asking>, sender: mpsc::Sender<Message>) {
    loop {
        let question = lock(&asking.waiting).pop_front();
        let Some(question) = question else { return };
        let message = match asking.conclude(&question, &sender).await {
            Ok(reply) => Message::Reply { question, reply },
            Err(error) => {
                // Before it is told: whoever takes the next question must not ask it.
                lock(&asking.waiting).clear();
                Message::Failed(error)
            }
        };
        // Nobody listens any more once the judging has been given up.
        if sender.send(message).is_err() {
            return;
        }
    }
}

impl Asking {
    async fn conclude(
        &self,
        question: &Question,
        sender: &mpsc::Sender<Message>,
    ) -> Result<Reply, OpenAiError> {
        let mut said = String::new();
        let mut tried = 0;
        loop {
            if let Some(reason) = lock(&self.halted).clone() {
                return Ok(Reply::Unanswered { reason, said });
            }
            let Some(reservation) = self.reserve(question).await? else {
                let reason =
                    format!("not asked: the cap of ${} is reached", self.settings.cap.unwrap_or_default());
                return Ok(Reply::Unanswered { reason, said });
            };
            self.pace.turn().await;
            let outcome = self.send(question).await;
            self.settle(question, reservation, &outcome)?;
            let (reason, wait) = match outcome {
                Outcome::Fatal(error) => return Err(error),
                Outcome::Refused(reason) => return Ok(Reply::Unanswered { reason, said }),
                Outcome::Failed { reason, wait, .. } => (reason, wait),
                Outcome::Answered(answer) => {
                    let Some(fault) = question.fault(&*self.check, &answer.text) else {
                        self.cache.keep(&question.key, &question.body, &answer)?;
                        return Ok(Reply::Text(answer.text));
                    };
                    said = answer.text;
                    (fault, None)
                }
            };
            tried += 1;
            if tried >= self.settings.tries {
                return Ok(Reply::Unanswered { reason: format!("{reason}, {tried} tries"), said });
            }
            if let Some(asked) = wait {
                if asked > self.settings.longest_wait {
                    let reason = format!("{reason}; it asks to wait {} s", asked.as_secs());
                    *lock(&self.halted) = Some(reason.clone());
                    return Ok(Reply::Unanswered { reason, said });
                }
                // The limit is the account's, not this request's: everybody waits.
                self.pace.pause(asked);
            }
            let wait = wait.unwrap_or_else(|| pace::backoff(self.settings.backoff, tried));
            // Nobody listening means that the judging is being given up, which the worker finds out itself.
            let _ = sender.send(Message::Retry { reason, next: tried + 1, wait });
            tokio::time::sleep(wait).await;
        }
    }

    /// Sets aside the most that the request can cost; `None` where the cap forbids it.
    async fn reserve(&self, question: &Question) -> Result<Option<Option<i64>>, OpenAiError> {
        let Some(most) = self.mosts.get(&question.key).copied().flatten() else { return Ok(Some(None)) };
        loop {
            self.reserving.fetch_add(1, Ordering::SeqCst);
            match self.cache.reserve(&self.settings.scope, most, self.cap) {
                Ok(Reservation::Granted(number)) => return Ok(Some(Some(number))),
                Ok(Reservation::Refused(_)) => {
                    // Requests under way mostly cost less than was set aside for them: wait for them.
                    if self.reserving.fetch_sub(1, Ordering::SeqCst) == 1 {
                        return Ok(None);
                    }
                    let short = Duration::from_millis(20)
                        .mul_f64(rand::RngExt::random_range(&mut rand::rng(), 0.5..1.5));
                    tokio::time::sleep(short).await;
                }
                Err(error) => {
                    self.reserving.fetch_sub(1, Ordering::SeqCst);
                    return Err(error.into());
                }
            }
        }
    }

    /// Replaces what was set aside by what the request cost.
    fn settle(&self, question: &Question, number: Option<i64>, outcome: &Outcome) -> Result<(), OpenAiError> {
        let (Some(number), Some(price)) = (number, self.settings.price) else { return Ok(()) };
        let most = self.mosts.get(&question.key).copied().flatten().unwrap_or_default();
        let spent = match outcome {
            Outcome::Answered(Answer {
                prompt_tokens: Some(prompt),
                completion_tokens: Some(completion),
                ..
            }) => price.of(*prompt, *completion),
            // Whoever does not tell its usage is taken to have used the most.
            Outcome::Answered(_) | Outcome::Failed { billed: Billed::Perhaps, .. } => most,
            Outcome::Failed { .. } | Outcome::Refused(_) | Outcome::Fatal(_) => 0,
        };
        if spent > most {
            tracing::warn!("a request cost more than its size allows: {spent} nano-dollars against {most}");
        }
        self.cache.settle(number, spent)?;
        self.reserving.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    async fn send(&self, question: &Question) -> Outcome {
        let request = self
            .client
            .post(self.url.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(question.body.clone());
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return unanswered(&error),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= LONGEST_BODY => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Ok(Some(_)) => return failed("the answer is longer than 8 MiB", Billed::Perhaps),
                Err(error) if status.is_success() => return unanswered(&error),
                // The status says enough.
                Err(_) => break,
            }
        }
        if status.is_success() { read_answer(&body) } else { self.read_status(status, &headers, &body) }
    }

    fn read_status(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Outcome {
        let said = excerpt(body);
        match status.as_u16() {
            408 | 409 | 425 | 429 | 500..=599 => {
                let wait = headers
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok())
                    .and_then(|value| pace::retry_after(value, SystemTime::now()));
                Outcome::Failed {
                    reason: format!("the endpoint answered {status}"),
                    wait,
                    billed: Billed::No,
                }
            }
            // The key, the account or the address is wrong, for every request alike.
            300..=399 | 401 | 402 | 404 | 405 | 407 => {
                Outcome::Fatal(OpenAiError::Refused { url: self.url.to_string(), status, said })
            }
            _ => Outcome::Refused(format!("the endpoint answered {status}: {said}")),
        }
    }
}

fn failed(reason: &str, billed: Billed) -> Outcome {
    Outcome::Failed { reason: reason.to_string(), wait: None, billed }
}

/// A request that got no whole answer.
fn unanswered(error: &reqwest::Error) -> Outcome {
    // What never reached the server was not billed; anything else may have been.
    if error.is_connect() {
        failed("no connection to the endpoint", Billed::No)
    } else if error.is_timeout() {
        failed("no answer in time", Billed::Perhaps)
    } else {
        failed("the connection broke off", Billed::Perhaps)
    }
}

/// The message in a chat completion.
pub(crate) fn read_answer(body: &[u8]) -> Outcome {
    if body.iter().all(u8::is_ascii_whitespace) {
        return failed("empty answer", Billed::Perhaps);
    }
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return failed("the answer is not JSON", Billed::Perhaps);
    };
    let message = &answer["choices"][0]["message"];
    let content = &message["content"];
    let text = match content {
        Value::String(text) => text.clone(),
        // Some endpoints send the text in parts.
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => match (message["refusal"].as_str(), answer["error"]["message"].as_str()) {
            (Some(refusal), _) => refusal.to_string(),
            (None, Some(error)) => {
                return failed(&format!("the endpoint says: {}", excerpt(error.as_bytes())), Billed::Perhaps);
            }
            // A message that says nothing, as of a model that spent all its tokens on thinking.
            (None, None) if message.is_object() => String::new(),
            (None, None) => return failed("the answer is no chat completion", Billed::Perhaps),
        },
    };
    let tokens = |name: &str| answer["usage"][name].as_u64();
    Outcome::Answered(Answer {
        text,
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
    })
}

/// The start of what a server said, on one line.
pub(crate) fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(2000)]).into_owned();
    let message = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|value| value["error"]["message"].as_str().map(str::to_string))
        .unwrap_or(text);
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// Where chat completions are asked for, given a base URL with or without its version.
fn completions_url(endpoint: &str) -> Result<reqwest::Url, OpenAiError> {
    let wrong = |reason: String| OpenAiError::Endpoint { found: endpoint.to_string(), reason };
    let base = endpoint.trim().trim_end_matches('/').trim_end_matches("/chat/completions");
    let mut url = reqwest::Url::parse(base).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(format!("the scheme is {}", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "a key in the URL would be written into the cache; name an environment variable".into(),
        ));
    }
    let is_version = |part: &str| {
        part.strip_prefix('v')
            .and_then(|rest| rest.chars().next())
            .is_some_and(|first| first.is_ascii_digit())
    };
    let path = url.path().trim_end_matches('/').to_string();
    let version = if path.split('/').any(is_version) { "" } else { "/v1" };
    url.set_path(&format!("{path}{version}/chat/completions"));
    Ok(url)
}

/// Checks the settings; gives the most tokens that an answer may have, where that is set.
fn check(settings: &OpenAiSettings) -> Result<Option<u64>, OpenAiError> {
    let wrong = |name, expected, found: String| Err(OpenAiError::Setting { name, expected, found });
    for name in ["model", "messages", "stream", "n"] {
        if let Some(value) = settings.sampling.get(name) {
            return wrong("sampling", "no model, messages, stream or n", format!("{name} = {value}"));
        }
    }
    if settings.concurrency == 0 {
        return wrong("concurrency", "at least 1", "0".into());
    }
    if settings.tries == 0 {
        return wrong("tries", "at least 1", "0".into());
    }
    if let Some(rate) = settings.requests_per_minute {
        // Fewer than one a day is a slip of the pen, and would overflow the clock.
        if !(1e-3..=1e9).contains(&rate) {
            return wrong("requests a minute", "more than 0", rate.to_string());
        }
    }
    let longest = ["max_completion_tokens", "max_tokens"]
        .iter()
        .filter_map(|name| settings.sampling.get(*name))
        .filter_map(Value::as_u64)
        .max();
    if let Some(cap) = settings.cap {
        if !(0.0..=1e9).contains(&cap) {
            return wrong("--cap", "dollars, at least 0", cap.to_string());
        }
        if settings.price.is_none() {
            return wrong("--cap", "a price for the model, as the cap cannot be kept without", "none".into());
        }
        if longest.is_none() {
            return wrong(
                "--cap",
                "max_tokens or max_completion_tokens, as the cap cannot be kept without",
                "none".into(),
            );
        }
    }
    Ok(longest)
}

fn client(settings: &OpenAiSettings, url: &reqwest::Url) -> Result<reqwest::Client, OpenAiError> {
    // Another part of the program may have installed it before: that one serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if let Some(name) = &settings.key_variable {
        let missing = |found| OpenAiError::Key { name: name.clone(), found };
        let key = std::env::var(name).map_err(|_| missing("none"))?;
        if key.trim().is_empty() {
            return Err(missing("nothing in it"));
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.trim()))
            .map_err(|_| missing("characters that a header cannot hold"))?;
        // Keeps the key out of every message.
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        .user_agent(concat!("polypaca/", env!("CARGO_PKG_VERSION")))
        .timeout(settings.timeout)
        // A redirect would carry the prompts to whom the user did not name.
        .redirect(reqwest::redirect::Policy::none());
    if url.scheme() == "http" {
        // No certificate is looked at, so a machine that has none can still ask.
        builder = builder.tls_certs_only([]);
    }
    if url.host_str().is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]") {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| OpenAiError::Client(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_have_its_version_or_not() {
        for (base, full) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
            ("https://openrouter.ai/api", "https://openrouter.ai/api/v1/chat/completions"),
            ("https://host/v1beta/openai/", "https://host/v1beta/openai/chat/completions"),
        ] {
            assert_eq!(completions_url(base).unwrap().as_str(), full);
        }
        for wrong in ["", "localhost:8000", "ftp://host", "https://user:key@host"] {
            assert!(completions_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_read_in_every_form() {
        let text = |body: &str| match read_answer(body.as_bytes()) {
            Outcome::Answered(answer) => Ok(answer.text),
            Outcome::Failed { reason, .. } => Err(reason),
            _ => panic!("neither"),
        };
        assert_eq!(text(r#"{"choices":[{"message":{"content":"a"}}]}"#), Ok("a".into()));
        assert_eq!(
            text(r#"{"choices":[{"message":{"content":[{"text":"a"},{"text":"b"}]}}]}"#),
            Ok("ab".into())
        );
        assert_eq!(text(r#"{"choices":[{"message":{"content":null}}]}"#), Ok(String::new()));
        assert_eq!(text(" \n"), Err("empty answer".into()));
        assert_eq!(text(r#"{"choices":[{"mess"#), Err("the answer is not JSON".into()));
        assert_eq!(text("[1]"), Err("the answer is no chat completion".into()));
        assert_eq!(text(r#"{"error":{"message":"too  busy"}}"#), Err("the endpoint says: too busy".into()));
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let settings = OpenAiSettings::new("http://localhost:1", "m", folder.path().join("cache.sqlite"));
        let error = |change: &dyn Fn(&mut OpenAiSettings)| {
            let mut settings = settings.clone();
            change(&mut settings);
            OpenAiJudge::new(settings).unwrap_err().to_string()
        };
        assert!(error(&|s| s.cap = Some(1.0)).contains("a price for the model"));
        assert!(error(&|s| s.concurrency = 0).contains("concurrency"));
        assert!(error(&|s| s.requests_per_minute = Some(0.0)).contains("requests a minute"));
        assert!(error(&|s| drop(s.sampling.insert("n".into(), json!(2)))).contains("n = 2"));
        assert!(
            error(&|s| s.key_variable = Some("POLYPACA_NO_SUCH_KEY".into())).contains("POLYPACA_NO_SUCH_KEY")
        );
    }
}
