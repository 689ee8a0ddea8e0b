//! Many questions to one endpoint at once: each is asked until it is answered well, or given up with the reason.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::cache::{Answer, Cache, NanoDollars, Reservation};
use crate::error::EndpointError;
use crate::pace::{self, Pace};
use crate::settings::EndpointSettings;

/// No answer is longer; a server that sends more is not listened to further.
const LONGEST_BODY: usize = 8 << 20;

/// One request.
#[derive(Clone, Debug)]
pub struct Question {
    /// What its answer is kept under: a hash of all that determines it.
    pub key: String,
    /// The request's body, JSON.
    pub body: String,
    /// The most that it can cost; `None` where no price is known.
    pub most: Option<NanoDollars>,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The endpoint's words; they hold what was asked for.
    Text(String),
    /// Nothing that can be used.
    Unanswered {
        /// Why.
        reason: String,
        /// What was said last, if anything.
        said: String,
    },
}

/// Says of the answer to a question, by the question's index, whether it holds what was asked for, and else what is wrong
/// with it. An answer that does not is asked for again at once.
pub type Check = dyn Fn(usize, &str) -> Result<(), String> + Send + Sync;

/// Told while questions are asked.
#[derive(Debug)]
pub enum Told {
    /// What came of a question, by its index.
    Reply(usize, Reply),
    /// A request failed for `reason`, or its answer does not hold what was asked for; try number `next` comes after
    /// `wait`.
    Retry {
        /// Why.
        reason: String,
        /// The number of the next try, from 1.
        next: u32,
        /// How long until then; zero after an answer.
        wait: Duration,
    },
}

/// Where questions go, and how answers are read and kept.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// How it is asked.
    pub settings: EndpointSettings,
    /// Where the questions are posted.
    pub url: reqwest::Url,
    /// What posts them.
    pub client: reqwest::Client,
    /// Reads the body of an answer with a good status.
    pub read: fn(&[u8]) -> Outcome,
    /// Where spending is written down, and answers where `keep` says so.
    pub cache: Arc<Cache>,
    /// Whether each good answer is kept under its question's key as soon as it is there. Whoever keeps parts of answers
    /// under keys of their own says no.
    pub keep: bool,
}

impl Endpoint {
    /// Asks the questions in any order; tells of each as soon as something is known.
    ///
    /// # Errors
    /// What stops the whole asking, `tell`'s own error included. What concerns one question is
    /// [`Reply::Unanswered`].
    pub fn ask(
        &self,
        questions: Vec<Question>,
        check: &Arc<Check>,
        tell: &mut dyn FnMut(Told) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let workers = self.settings.concurrency.min(questions.len());
        if workers == 0 {
            return Ok(());
        }
        let asking = Arc::new(Asking {
            endpoint: self.clone(),
            cap: self.settings.counted_cap(),
            pace: Pace::new(self.settings.requests_per_minute),
            waiting: Mutex::new(questions.into_iter().enumerate().collect()),
            reserving: AtomicUsize::new(0),
            halted: Mutex::new(None),
            check: Arc::clone(check),
        });
        // Narrow: a worker that has something to tell waits until it is taken, so that little is lost with a kill.
        let (sender, mut messages) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        for _ in 0..workers {
            runtime.spawn(work(Arc::clone(&asking), sender.clone()));
        }
        drop(sender);
        let mut outcome = Ok(());
        while let Some(message) = messages.blocking_recv() {
            outcome = match message {
                Ok(told) => tell(told),
                Err(error) => Err(error.into()),
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

/// What the workers share.
struct Asking {
    endpoint: Endpoint,
    cap: Option<NanoDollars>,
    check: Arc<Check>,
    pace: Pace,
    waiting: Mutex<VecDeque<(usize, Question)>>,
    /// How many requests have money set aside that may come back.
    reserving: AtomicUsize,
    /// Why nothing more is asked.
    halted: Mutex<Option<String>>,
}

/// What the workers say: what came of a question, or why nothing more can.
type Message = Result<Told, EndpointError>;

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It was answered.
    Answered(Answer),
    /// May go better later.
    Failed {
        /// Why it failed.
        reason: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
        /// Whether it may have been billed all the same.
        billed: Billed,
    },
    /// This one will never be answered.
    Refused {
        /// Why.
        reason: String,
        /// Whether it may have been billed all the same.
        billed: Billed,
    },
    /// None will.
    Fatal(EndpointError),
}

/// Whether a request without an answer may have been billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Billed {
    /// It never was answered.
    No,
    /// It may have been worked on, or its answer held back.
    Perhaps,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one question after another until none is left.
async fn work(asking: Arc<Asking>, sender: mpsc::Sender<Message>) {
    loop {
        let question = lock(&asking.waiting).pop_front();
        let Some((index, question)) = question else { return };
        let message = match asking.conclude(index, &question, &sender).await {
            Ok(reply) => Ok(Told::Reply(index, reply)),
            Err(error) => {
                // Before it is told: whoever takes the next question must not ask it.
                lock(&asking.waiting).clear();
                Err(error)
            }
        };
        // Nobody listens any more once the asking has been given up.
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// What came of one try.
enum Tried {
    /// A good answer, kept where answers are.
    Answered(String),
    /// An answer that does not hold what was asked for.
    Unfit { fault: String, said: String },
    /// None, and the next try may go better.
    Failed { reason: String, wait: Option<Duration> },
    /// None, and there is to be no further try.
    GivenUp(String),
}

impl Asking {
    /// Asks a question until it is answered well, or given up.
    async fn conclude(
        &self,
        index: usize,
        question: &Question,
        sender: &mpsc::Sender<Message>,
    ) -> Result<Reply, EndpointError> {
        let mut said = String::new();
        let (mut tried, mut failures) = (0, 0);
        loop {
            let (reason, failed) = match self.ask_once(index, question).await? {
                Tried::Answered(text) => return Ok(Reply::Text(text)),
                Tried::GivenUp(reason) => return Ok(Reply::Unanswered { reason, said }),
                Tried::Failed { reason, wait } => {
                    failures += 1;
                    (reason, Some(wait))
                }
                Tried::Unfit { fault, said: unfit } => {
                    said = unfit;
                    (fault, None)
                }
            };
            tried += 1;
            if tried >= self.endpoint.settings.tries {
                return Ok(Reply::Unanswered { reason: format!("{reason}, {tried} tries"), said });
            }
            let wait = match failed {
                // Waiting spares an endpoint that fails; this one has answered.
                None => Duration::ZERO,
                Some(None) => pace::backoff(self.endpoint.settings.backoff, failures),
                Some(Some(asked)) if asked > self.endpoint.settings.longest_wait => {
                    let reason = format!("{reason}; it asks to wait {} s", asked.as_secs());
                    *lock(&self.halted) = Some(reason.clone());
                    return Ok(Reply::Unanswered { reason, said });
                }
                Some(Some(asked)) => {
                    // The limit is the account's, not this request's: everybody waits.
                    self.pace.pause(asked);
                    asked
                }
            };
            // Nobody listening means that the asking is being given up, which the worker finds out itself.
            let _ = sender.send(Ok(Told::Retry { reason, next: tried + 1, wait })).await;
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a question, if it still may be, and looks at what comes back.
    async fn ask_once(&self, index: usize, question: &Question) -> Result<Tried, EndpointError> {
        if let Some(reason) = lock(&self.halted).clone() {
            return Ok(Tried::GivenUp(reason));
        }
        let Some(reservation) = self.reserve(question).await? else {
            let cap = self.endpoint.settings.cap.unwrap_or_default();
            return Ok(Tried::GivenUp(format!("not asked: the cap of ${cap} is reached")));
        };
        self.pace.turn().await;
        let outcome = self.send(question).await;
        self.settle(question, reservation, &outcome)?;
        match outcome {
            Outcome::Fatal(error) => Err(error),
            Outcome::Refused { reason, .. } => Ok(Tried::GivenUp(reason)),
            Outcome::Failed { reason, wait, .. } => Ok(Tried::Failed { reason, wait }),
            Outcome::Answered(answer) => {
                if let Err(fault) = (self.check)(index, &answer.text) {
                    return Ok(Tried::Unfit { fault, said: answer.text });
                }
                if self.endpoint.keep {
                    self.endpoint.cache.keep(&question.key, &question.body, &answer)?;
                }
                Ok(Tried::Answered(answer.text))
            }
        }
    }

    /// Sets aside the most that the request can cost; `None` where the cap forbids it.
    async fn reserve(&self, question: &Question) -> Result<Option<Option<i64>>, EndpointError> {
        let Some(most) = question.most else { return Ok(Some(None)) };
        loop {
            // Both are asked first: what comes back later has room in the next round.
            let awaited = self.others_are_asked()?;
            let own = self.reserving.fetch_add(1, Ordering::SeqCst) > 0;
            match self.endpoint.cache.reserve(&self.endpoint.settings.scope, most, self.cap) {
                Ok(Reservation::Granted(number)) => return Ok(Some(Some(number))),
                Ok(Reservation::Refused(_)) => {
                    // Requests under way mostly cost less than was set aside for them: wait for them.
                    self.reserving.fetch_sub(1, Ordering::SeqCst);
                    if !own && !awaited {
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

    /// Whether another asking, as another program's with the same cap, waits for an answer. What was set aside longer
    /// ago than a request may take belongs to a program that has ended.
    fn others_are_asked(&self) -> Result<bool, EndpointError> {
        let EndpointSettings { scope, timeout, .. } = &self.endpoint.settings;
        Ok(self.cap.is_some() && self.endpoint.cache.is_set_aside(scope, *timeout)?)
    }

    /// Replaces what was set aside by what the request cost.
    fn settle(
        &self,
        question: &Question,
        number: Option<i64>,
        outcome: &Outcome,
    ) -> Result<(), EndpointError> {
        let (Some(number), Some(price)) = (number, self.endpoint.settings.price) else { return Ok(()) };
        let most = question.most.unwrap_or_default();
        let spent = match outcome {
            Outcome::Answered(Answer {
                prompt_tokens: Some(prompt),
                completion_tokens: Some(completion),
                ..
            }) => price.of(*prompt, *completion),
            // Whoever does not tell its usage is taken to have used the most.
            Outcome::Answered(_)
            | Outcome::Failed { billed: Billed::Perhaps, .. }
            | Outcome::Refused { billed: Billed::Perhaps, .. } => most,
            Outcome::Failed { .. } | Outcome::Refused { .. } | Outcome::Fatal(_) => 0,
        };
        if spent > most {
            tracing::warn!("a request cost more than its size allows: {spent} nano-dollars against {most}");
        }
        self.endpoint.cache.settle(number, spent)?;
        self.reserving.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    async fn send(&self, question: &Question) -> Outcome {
        let request = self
            .endpoint
            .client
            .post(self.endpoint.url.clone())
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
        if status.is_success() {
            (self.endpoint.read)(&body)
        } else {
            self.read_status(status, &headers, &body)
        }
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
                    // A gateway's words, at least at Cloudflare (520 to 524): who works behind it may go on, and bill.
                    billed: match status.as_u16() {
                        502 | 504 | 520..=524 => Billed::Perhaps,
                        _ => Billed::No,
                    },
                }
            }
            // The key, the account or the address is wrong, for every request alike.
            300..=399 | 401 | 402 | 404 | 405 | 407 => {
                Outcome::Fatal(EndpointError::Refused { url: self.endpoint.url.to_string(), status, said })
            }
            _ => Outcome::Refused {
                reason: format!("the endpoint answered {status}: {said}"),
                billed: Billed::No,
            },
        }
    }
}

/// A failure that may go better later, with nobody asking to wait.
pub fn failed(reason: &str, billed: Billed) -> Outcome {
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

/// The start of what a server said, on one line.
pub fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(2000)]).into_owned();
    let message = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|value| value["error"]["message"].as_str().map(str::to_string))
        .unwrap_or(text);
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::Price;

    static QUESTION: Question = Question { key: String::new(), body: String::new(), most: Some(60) };

    /// An asking that has a cap of 100 nano-dollars.
    fn asking() -> Asking {
        let price = Some(Price { prompt: 1.0, completion: 1.0 });
        let settings = EndpointSettings { price, cap: Some(100e-9), ..EndpointSettings::default() };
        let url: reqwest::Url = "http://127.0.0.1:9".parse().unwrap();
        let client = settings.client(&url).unwrap();
        let cap = settings.counted_cap();
        let cache = Arc::new(Cache::in_memory().unwrap());
        let read = crate::chat::read_answer;
        Asking {
            endpoint: Endpoint { settings, url, client, read, cache, keep: false },
            cap,
            check: Arc::new(|_, _| Ok(())),
            pace: Pace::new(None),
            waiting: Mutex::default(),
            reserving: AtomicUsize::new(0),
            halted: Mutex::default(),
        }
    }

    #[test]
    fn what_a_gateway_gave_up_or_a_filter_held_back_stays_set_aside() {
        let spent = |outcome: &Outcome, asking: &Asking| {
            let reserved = asking.endpoint.cache.reserve("", 60, None).unwrap();
            let Reservation::Granted(number) = reserved else { panic!("{reserved:?}") };
            let before = asking.endpoint.cache.spent("").unwrap() - 60;
            asking.reserving.fetch_add(1, Ordering::SeqCst);
            asking.settle(&QUESTION, Some(number), outcome).unwrap();
            asking.endpoint.cache.spent("").unwrap() - before
        };
        let asking = asking();
        for (status, expected) in
            [(429, 0), (500, 0), (503, 0), (400, 0), (502, 60), (504, 60), (520, 60), (524, 60)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = asking.read_status(status, &HeaderMap::new(), b"");
            assert_eq!(spent(&outcome, &asking), expected, "{status}");
        }
        let held_back = Outcome::Refused { reason: String::new(), billed: Billed::Perhaps };
        assert_eq!(spent(&held_back, &asking), 60);
    }

    #[test]
    fn another_askings_requests_are_waited_for_before_the_cap_is_reached() {
        let asking = asking();
        let cache = Arc::clone(&asking.endpoint.cache);
        let Reservation::Granted(number) = cache.reserve("", 60, None).unwrap() else { panic!() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reserved = runtime.block_on(async {
            let settle = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                cache.settle(number, 10).unwrap();
            };
            tokio::join!(asking.reserve(&QUESTION), settle).0
        });
        assert!(matches!(reserved, Ok(Some(Some(_)))), "{reserved:?}");
        // All that is left is settled: nothing comes back.
        cache.settle(number, 60).unwrap();
        let Some(own) = reserved.unwrap().unwrap() else { panic!() };
        asking.settle(&QUESTION, Some(own), &failed("", Billed::Perhaps)).unwrap();
        assert!(matches!(runtime.block_on(asking.reserve(&QUESTION)), Ok(None)));
    }
}
