//! Answers of a system behind an OpenAI-compatible endpoint.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use instructions::prompt::Prompt;
use serde_json::{Value, json};

use crate::experiment::{Answer, ExtraSystem};
use crate::progress::CellProgress;
use crate::stop::Stopped;

/// How often a prompt is sent before its system fails.
const TRIES: u32 = 5;
/// The wait after the first failure, doubled after each further one.
const BACKOFF: Duration = Duration::from_secs(1);
/// How long a response may take.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The paper's longest response.
const NEW_TOKENS: usize = 256;

/// Asks every prompt as one user turn of its own.
pub(super) fn answer(
    system: &ExtraSystem,
    settings: &Answer,
    prompts: &[Prompt],
    progress: &CellProgress,
) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let asker = Asker::new(system, settings)?;
        let mut responses = Vec::with_capacity(prompts.len());
        for (number, prompt) in prompts.iter().enumerate() {
            responses.push(asker.ask(prompt).await.with_context(|| format!("prompt {:?}", prompt.id))?);
            progress.step(number as u64 + 1, prompts.len() as u64, "prompts");
            if progress.should_stop() {
                return Err(Stopped.into());
            }
        }
        Ok(responses)
    })
}

struct Asker<'a> {
    client: reqwest::Client,
    url: String,
    model: &'a str,
    key: Option<String>,
    settings: &'a Answer,
}

impl<'a> Asker<'a> {
    fn new(system: &'a ExtraSystem, settings: &'a Answer) -> Result<Self> {
        // The first call makes the choice for the whole program; a later one finds it made.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoint = system.endpoint.as_deref().context("a system has neither `adapter` nor `endpoint`")?;
        let base = endpoint.trim_end_matches('/');
        let version = if base.ends_with("/v1") { "" } else { "/v1" };
        let key = match &system.key_variable {
            Some(name) => Some(
                std::env::var(name)
                    .with_context(|| format!("environment variable {name}: expected the endpoint's key"))?,
            ),
            None => None,
        };
        Ok(Self {
            client: reqwest::Client::builder().timeout(TIMEOUT).build()?,
            url: format!("{base}{version}/chat/completions"),
            model: system.model.as_deref().unwrap_or_default(),
            key,
            settings,
        })
    }

    async fn ask(&self, prompt: &Prompt) -> Result<String> {
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt.prompt}],
            "max_tokens": self.settings.new_tokens.unwrap_or(NEW_TOKENS),
            "temperature": 0,
        });
        if self.settings.sample == Some(true) {
            body["temperature"] = json!(self.settings.temperature.unwrap_or(1.0));
            body["top_p"] = json!(self.settings.top_p.unwrap_or(1.0));
        }
        let mut wait = BACKOFF;
        for attempt in 1.. {
            match self.once(&body).await {
                Ok(text) => return Ok(text),
                Err(Refusal { again: true, .. }) if attempt < TRIES => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                Err(refusal) => bail!("{}: {}", self.url, refusal.reason),
            }
        }
        bail!("{}: no answer", self.url)
    }

    async fn once(&self, body: &Value) -> Result<String, Refusal> {
        let mut request = self.client.post(&self.url).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let failed = |error: reqwest::Error| Refusal { again: true, reason: format!("{error:#}") };
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let text = response.text().await.map_err(failed)?;
        if !status.is_success() {
            let again = status.is_server_error() || status.as_u16() == 429;
            let said: String = text.chars().take(200).collect();
            return Err(Refusal { again, reason: format!("answered {status}: {said}") });
        }
        let found = serde_json::from_str::<Value>(&text).ok();
        let content = found.as_ref().and_then(|value| value.pointer("/choices/0/message/content"));
        match content.and_then(Value::as_str) {
            Some(content) => Ok(content.to_owned()),
            None => {
                let said: String = text.chars().take(200).collect();
                let reason = format!("expected choices[0].message.content, found {said}");
                Err(Refusal { again: true, reason })
            }
        }
    }
}

/// Why a request brought no text, and whether it may next time.
struct Refusal {
    again: bool,
    reason: String,
}
