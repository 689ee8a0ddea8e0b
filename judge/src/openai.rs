//! A judge at an OpenAI-compatible endpoint: one question and response a request, no history.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use endpoint::EndpointError as OpenAiError;
use endpoint::asking::{Endpoint, Told};
use endpoint::chat::{TOKENS_AROUND, completions_url, read_answer};
use endpoint::settings::EndpointSettings;
use instructions::lock::Lock;
use instructions::prompt::Response;
use serde_json::{Map, Value, json};

use crate::asking::{Asker, Check, Reply, rate_by_asking};
use crate::batch::{BatchQuestion, Batches};
use crate::cache::{Cache, NanoDollars};
use crate::judging::{self, Judge, Progress, Verdict};
use crate::lock::lock;
use crate::price::Price;
use crate::prompt_template::PromptTemplate;
use crate::rating::{RatingError, beside};

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
    /// The wait after the first failure; doubled after each further one. A reply without a rating is no failure: the
    /// question is asked again at once.
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

    /// What does not depend on what is asked.
    fn transport(&self) -> EndpointSettings {
        EndpointSettings {
            key_variable: self.key_variable.clone(),
            concurrency: self.concurrency,
            requests_per_minute: self.requests_per_minute,
            tries: self.tries,
            backoff: self.backoff,
            longest_wait: self.longest_wait,
            timeout: self.timeout,
            price: self.price,
            cap: self.cap,
            scope: self.scope.clone(),
        }
    }
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
        let client = settings.transport().client(&url)?;
        let cache = Arc::new(Cache::open(&settings.cache)?);
        let cap = settings.transport().counted_cap();
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

    /// Where and how the questions go out, one a request.
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            settings: self.settings.transport(),
            url: self.url.clone(),
            client: self.client.clone(),
            read: read_answer,
            cache: Arc::clone(&self.cache),
            keep: true,
        }
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
        let mut waiting = self.not_in_the_cache(self.questions(prompts), &**check, give)?;
        if let Some(look) = self.settings.batch {
            if waiting.is_empty() {
                return Ok(());
            }
            let _lock = self.lock_batches()?;
            // Whoever held the lock until now may have been answered.
            waiting = self.not_in_the_cache(waiting, &**check, give)?;
            return self.ask_in_batches(&waiting, look, check, progress, give);
        }
        let asked: Vec<Vec<usize>> = waiting.iter().map(|question| question.asked.clone()).collect();
        let fits: Arc<Check> = {
            let check = Arc::clone(check);
            Arc::new(move |number, text| asked[number].iter().try_for_each(|&index| check(index, text)))
        };
        let asked = |question: &Question| endpoint::asking::Question {
            key: question.key.clone(),
            body: question.body.clone(),
            most: self.most(&question.body),
        };
        self.endpoint().ask(waiting.iter().map(asked).collect(), &fits, &mut |told| match told {
            Told::Reply(number, reply) => waiting[number].hand_over(&reply, give),
            Told::Retry { reason, next, wait } => {
                progress.retry(&reason, next, wait);
                Ok(())
            }
        })
    }
}

impl OpenAiJudge {
    /// Judges of one address and model find each other's batches again.
    fn asker_of_batches(&self) -> String {
        format!("{} {}", self.url, self.settings.model)
    }

    /// A batch that another program is about to send looks like one that never came to be, and would be sent again.
    fn lock_batches(&self) -> anyhow::Result<Lock> {
        let suffix = format!(".batches-{}", judging::short_hash(&[&self.asker_of_batches()]));
        lock(&beside(&self.settings.cache, &suffix)).map_err(|error| match error {
            RatingError::InUse { process, .. } => anyhow::anyhow!(
                "another program ({process}) sends batches to {} with the cache {}: wait for it to end, or use another \
                 cache",
                self.settings.model,
                self.settings.cache.display()
            ),
            error => error.into(),
        })
    }

    /// Hands over what the cache answers, and gives the rest.
    fn not_in_the_cache(
        &self,
        questions: impl IntoIterator<Item = Question>,
        check: &Check,
        give: &mut dyn FnMut(usize, Reply) -> anyhow::Result<()>,
    ) -> anyhow::Result<VecDeque<Question>> {
        let mut waiting = VecDeque::new();
        for question in questions {
            match self.cache.answer(&question.key)? {
                // Kept answers hold what whoever asked for them wanted; read by today's rules they might not, and
                // are asked for again then.
                Some(answer) if question.fault(check, &answer.text).is_none() => {
                    question.hand_over(&Reply::Text(answer.text), give)?;
                }
                _ => waiting.push_back(question),
            }
        }
        Ok(waiting)
    }

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
            asker: self.asker_of_batches(),
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

/// Checks the settings; gives the most tokens that an answer may have, where that is set.
fn check(settings: &OpenAiSettings) -> Result<Option<u64>, OpenAiError> {
    let wrong = |name, expected, found: String| Err(OpenAiError::Setting { name, expected, found });
    for name in ["model", "messages", "stream", "n"] {
        if let Some(value) = settings.sampling.get(name) {
            return wrong("sampling", "no model, messages, stream or n", format!("{name} = {value}"));
        }
    }
    settings.transport().check()?;
    let longest = ["max_completion_tokens", "max_tokens"]
        .iter()
        .filter_map(|name| settings.sampling.get(*name))
        .filter_map(Value::as_u64)
        .max();
    if settings.cap.is_some() && longest.is_none() {
        return wrong(
            "--cap",
            "max_tokens or max_completion_tokens, as the cap cannot be kept without",
            "none".into(),
        );
    }
    Ok(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

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
