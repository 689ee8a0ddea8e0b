//! The batch endpoint of an OpenAI-compatible server: many questions in a file, answered within a day, mostly at half the
//! price.
//!
//! What was sent is written down before it is sent, so that a run that was ended finds its batches again and asks nothing
//! twice: a batch carries a tag of ours among its metadata.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use endpoint::asking::{Outcome, excerpt};
use endpoint::chat::read_answer;
use endpoint::pace;
use rand::RngExt;
use reqwest::header::RETRY_AFTER;
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::{Answer, Cache, NanoDollars, Reservation, SentBatch};
use crate::judging::Progress;
use crate::openai::OpenAiError;
use crate::price::Price;

/// The key of the tag in a batch's metadata.
const TAG: &str = "polypaca";
/// What a batch may hold, by OpenAI's rules.
const MOST_REQUESTS: usize = 50_000;
const MOST_BYTES: usize = 190 << 20;

/// What is needed to send batches.
pub(crate) struct Batches<'a> {
    /// Where chat completions are asked for.
    pub(crate) url: &'a reqwest::Url,
    pub(crate) client: &'a reqwest::Client,
    /// Whose batches are found again: address and model. Judges that share a cache leave each other's alone.
    pub(crate) asker: String,
    pub(crate) cache: &'a Cache,
    pub(crate) price: Option<Price>,
    pub(crate) cap: Option<NanoDollars>,
    pub(crate) scope: &'a str,
    /// How often a request is sent before the run gives up.
    pub(crate) tries: u32,
    pub(crate) backoff: Duration,
    /// How long to wait between two looks at a batch.
    pub(crate) look: Duration,
}

/// A question of a batch.
pub(crate) struct BatchQuestion<'a> {
    /// Its key in the cache.
    pub(crate) key: &'a str,
    /// The request's body.
    pub(crate) body: &'a str,
    /// The most that it can cost.
    pub(crate) most: Option<NanoDollars>,
}

/// The questions of one batch, each with the number of the sum set aside for it.
type Part<'a> = Vec<(&'a BatchQuestion<'a>, Option<i64>)>;

/// What came of each question, by its key.
pub(crate) type Answered = HashMap<String, Result<Answer, String>>;

/// A batch as the server tells it.
#[derive(Default, Deserialize)]
struct Told {
    id: String,
    status: String,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    #[serde(default)]
    metadata: Option<HashMap<String, String>>,
    #[serde(default)]
    errors: Value,
}

impl Told {
    fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "expired" | "cancelled")
    }
}

impl Batches<'_> {
    /// Asks the questions that no batch under way holds, and waits for all batches. Answers are in the cache when this
    /// returns.
    pub(crate) async fn ask(
        &self,
        questions: &[BatchQuestion<'_>],
        progress: &dyn Progress,
    ) -> Result<Answered, OpenAiError> {
        let mut answered = Answered::new();
        let mut under_way = Vec::new();
        for sent in self.cache.sent_batches(&self.asker)? {
            match self.find(&sent).await? {
                Some(id) => under_way.push((id, sent)),
                // It never came to be, so nothing was billed.
                None => self.close(&sent)?,
            }
        }
        let held: HashSet<&str> = under_way
            .iter()
            .flat_map(|(_, sent)| sent.requests.iter().map(|(key, _)| key.as_str()))
            .collect();
        let new = questions.iter().filter(|question| !held.contains(question.key)).collect();
        for part in self.parts(new, &mut answered)? {
            under_way.push(self.send(&part).await?);
        }
        for (id, sent) in under_way {
            let told = self.wait(&id, progress).await?;
            answered.extend(self.collect(&told, &sent).await?);
        }
        Ok(answered)
    }

    /// Sets money aside for each question, and cuts them into batches; what the cap forbids is unanswered.
    fn parts<'q>(
        &self,
        questions: Vec<&'q BatchQuestion<'q>>,
        answered: &mut Answered,
    ) -> Result<Vec<Part<'q>>, OpenAiError> {
        let mut parts: Vec<Part<'_>> = Vec::new();
        let mut bytes = 0;
        for question in questions {
            let reservation = match question.most {
                None => None,
                Some(most) => match self.cache.reserve(self.scope, most, self.cap)? {
                    Reservation::Granted(number) => Some(number),
                    Reservation::Refused(_) => {
                        answered.insert(question.key.to_owned(), Err("not asked: the cap is reached".into()));
                        continue;
                    }
                },
            };
            bytes += question.body.len() + 200;
            if parts.last().is_none_or(|part| part.len() >= MOST_REQUESTS || bytes > MOST_BYTES) {
                parts.push(Vec::new());
                bytes = question.body.len() + 200;
            }
            if let Some(part) = parts.last_mut() {
                part.push((question, reservation));
            }
        }
        Ok(parts)
    }

    async fn send(&self, part: &Part<'_>) -> Result<(String, SentBatch), OpenAiError> {
        let sent = SentBatch {
            tag: format!("{:032x}", rand::rng().random::<u128>()),
            id: None,
            requests: part.iter().map(|(question, number)| (question.key.to_owned(), *number)).collect(),
        };
        self.cache.keep_batch(&self.asker, &sent)?;
        let mut lines = String::new();
        for (question, _) in part {
            let body: Value = serde_json::from_str(question.body).unwrap_or_default();
            let line = json!({"custom_id": question.key, "method": "POST", "url": ENDPOINT, "body": body});
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        let file = self.upload(lines).await?;
        let id = self.create(&file, &sent).await?;
        self.cache.name_batch(&sent.tag, &id)?;
        Ok((id, sent))
    }

    async fn upload(&self, lines: String) -> Result<String, OpenAiError> {
        let url = self.address("files");
        let answer = self
            .repeat(|| {
                let file = reqwest::multipart::Part::text(lines.clone()).file_name("questions.jsonl");
                let form = reqwest::multipart::Form::new().text("purpose", "batch").part("file", file);
                self.client.post(url.clone()).multipart(form)
            })
            .await?;
        self.text_of(&answer, "id", url.as_str())
    }

    async fn create(&self, file: &str, sent: &SentBatch) -> Result<String, OpenAiError> {
        let url = self.address("batches");
        let body = json!({
            "input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h",
            "metadata": {TAG: sent.tag},
        })
        .to_string();
        let mut tried = 0;
        loop {
            tried += 1;
            let request = self.client.post(url.clone()).header("content-type", "application/json");
            match self.once(request.body(body.clone())).await {
                Ok(answer) => return self.text_of(&answer, "id", url.as_str()),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { reason, .. }) if tried >= self.tries => {
                    return Err(self.gave_up(&url, &reason));
                }
                Err(Trouble::Passing { wait, .. }) => {
                    tokio::time::sleep(wait.unwrap_or_else(|| pace::backoff(self.backoff, tried))).await;
                    // The answer may have been lost, and not the request.
                    if let Some(id) = self.find(sent).await? {
                        return Ok(id);
                    }
                }
            }
        }
    }

    /// The server's id of a batch: as written down, or found by its tag.
    async fn find(&self, sent: &SentBatch) -> Result<Option<String>, OpenAiError> {
        #[derive(Deserialize)]
        struct Listed {
            data: Vec<Told>,
            #[serde(default)]
            has_more: bool,
        }
        if let Some(id) = &sent.id {
            return Ok(Some(id.clone()));
        }
        let mut after: Option<String> = None;
        loop {
            let mut url = self.address("batches");
            url.query_pairs_mut().append_pair("limit", "100");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let answer = self.repeat(|| self.client.get(url.clone())).await?;
            let listed: Listed = serde_json::from_slice(&answer).map_err(|_| self.no_batch(&url, &answer))?;
            let is_ours =
                |told: &&Told| told.metadata.as_ref().is_some_and(|data| data.get(TAG) == Some(&sent.tag));
            if let Some(told) = listed.data.iter().find(is_ours) {
                self.cache.name_batch(&sent.tag, &told.id)?;
                return Ok(Some(told.id.clone()));
            }
            after = listed.data.last().map(|told| told.id.clone());
            if !listed.has_more || after.is_none() {
                return Ok(None);
            }
        }
    }

    async fn wait(&self, id: &str, progress: &dyn Progress) -> Result<Told, OpenAiError> {
        let url = self.address(&format!("batches/{id}"));
        loop {
            let answer = match self.repeat(|| self.client.get(url.clone())).await {
                // Gone from the server, as old ones are: its questions are asked again by the next run.
                Err(OpenAiError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
                    return Ok(Told { id: id.to_owned(), status: "gone".into(), ..Told::default() });
                }
                answer => answer?,
            };
            let told: Told = serde_json::from_slice(&answer).map_err(|_| self.no_batch(&url, &answer))?;
            if told.is_over() {
                return Ok(told);
            }
            progress.note(&format!("batch {id}: {}", told.status));
            tokio::time::sleep(self.look).await;
        }
    }

    /// Keeps a finished batch's answers, and settles what they cost.
    async fn collect(&self, told: &Told, sent: &SentBatch) -> Result<Answered, OpenAiError> {
        let mut answered = Answered::new();
        for file in [&told.output_file_id, &told.error_file_id].into_iter().flatten() {
            let url = self.address(&format!("files/{file}/content"));
            let lines = self.repeat(|| self.client.get(url.clone())).await?;
            answered.extend(lines.split(|&byte| byte == b'\n').filter_map(read_line));
        }
        for (key, reservation) in &sent.requests {
            let found = answered.entry(key.clone()).or_insert_with(|| {
                let errors = told.errors["data"][0]["message"].as_str().unwrap_or_default();
                Err(format!("the batch is {} {errors}", told.status).trim_end().to_owned())
            });
            let cost = match (found, self.price) {
                (Err(_), _) | (_, None) => Some(0),
                (Ok(answer), Some(price)) => answer
                    .prompt_tokens
                    .zip(answer.completion_tokens)
                    .map(|(prompt, completion)| price.of(prompt, completion)),
            };
            // Whoever does not tell its usage is taken to have used the most: what was set aside stays so.
            if let (Some(number), Some(cost)) = (reservation, cost) {
                self.cache.settle(*number, cost)?;
            }
        }
        for (key, found) in &answered {
            if let Ok(answer) = found {
                self.cache.keep(key, "", answer)?;
            }
        }
        self.cache.close_batch(&sent.tag)?;
        Ok(answered)
    }

    fn close(&self, sent: &SentBatch) -> Result<(), OpenAiError> {
        for number in sent.requests.iter().filter_map(|(_, number)| *number) {
            self.cache.settle(number, 0)?;
        }
        Ok(self.cache.close_batch(&sent.tag)?)
    }

    /// An address beside that of chat completions.
    fn address(&self, path: &str) -> reqwest::Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches("chat/completions").to_owned();
        url.set_path(&format!("{base}{path}"));
        url
    }

    /// Sends a request that may be sent again, until it is answered.
    async fn repeat(&self, request: impl Fn() -> RequestBuilder) -> Result<Vec<u8>, OpenAiError> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.once(request()).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing { reason, .. }) if tried >= self.tries => {
                    return Err(self.gave_up(self.url, &reason));
                }
                Err(Trouble::Passing { wait, .. }) => {
                    tokio::time::sleep(wait.unwrap_or_else(|| pace::backoff(self.backoff, tried))).await;
                }
            }
        }
    }

    async fn once(&self, request: RequestBuilder) -> Result<Vec<u8>, Trouble> {
        let passing = |reason: String, wait| Trouble::Passing { reason, wait };
        let response = request.send().await.map_err(|error| passing(error.to_string(), None))?;
        let (status, url) = (response.status(), response.url().to_string());
        let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|value| pace::retry_after(value, SystemTime::now()));
        let body = response.bytes().await.map_err(|error| passing(error.to_string(), wait))?;
        if status.is_success() {
            Ok(body.to_vec())
        } else if status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429) {
            Err(passing(format!("{status}"), wait))
        } else {
            Err(Trouble::Lasting(OpenAiError::Refused { url, status, said: excerpt(&body) }))
        }
    }

    fn text_of(&self, answer: &[u8], key: &str, url: &str) -> Result<String, OpenAiError> {
        let value: Value = serde_json::from_slice(answer).unwrap_or_default();
        value[key].as_str().map(str::to_owned).ok_or_else(|| OpenAiError::Batch {
            url: url.to_owned(),
            said: format!("no {key} in {}", excerpt(answer)),
        })
    }

    fn no_batch(&self, url: &reqwest::Url, answer: &[u8]) -> OpenAiError {
        OpenAiError::Batch { url: url.to_string(), said: excerpt(answer) }
    }

    fn gave_up(&self, url: &reqwest::Url, reason: &str) -> OpenAiError {
        OpenAiError::Batch { url: url.to_string(), said: format!("{reason}, {} tries", self.tries) }
    }
}

/// What each line of a batch asks.
const ENDPOINT: &str = "/v1/chat/completions";

/// What went wrong with a request about batches.
enum Trouble {
    /// It may go better later.
    Passing { reason: String, wait: Option<Duration> },
    /// It will not.
    Lasting(OpenAiError),
}

/// A line of a batch's output: the question's key, and its answer.
fn read_line(line: &[u8]) -> Option<(String, Result<Answer, String>)> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let key = line["custom_id"].as_str()?.to_owned();
    let (response, error) = (&line["response"], &line["error"]);
    if !error.is_null() {
        return Some((key, Err(format!("the endpoint says: {}", excerpt(error.to_string().as_bytes())))));
    }
    if response["status_code"].as_u64() != Some(u64::from(StatusCode::OK.as_u16())) {
        let said = excerpt(response["body"].to_string().as_bytes());
        return Some((key, Err(format!("the endpoint answered {}: {said}", response["status_code"]))));
    }
    Some((
        key,
        match read_answer(response["body"].to_string().as_bytes()) {
            Outcome::Answered(answer) => Ok(answer),
            Outcome::Failed { reason, .. } | Outcome::Refused { reason, .. } => Err(reason),
            Outcome::Fatal(error) => Err(error.to_string()),
        },
    ))
}
