//! LibreTranslate's protocol: several texts a request, `POST /translate` with `q`, `source`, `target`, `format`.

use std::ops::Range;
use std::sync::Arc;

use endpoint::EndpointError;
use endpoint::asking::{Billed, Check, Endpoint, Outcome, Question, Reply, Told, excerpt, failed};
use endpoint::cache::{Answer, Cache, NanoDollars};
use endpoint::price::Price;
use endpoint::settings::{EndpointSettings, MOST_DOLLARS, base_url};
use instructions::language::Language;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::layout::Split;
use crate::mask::MaskForm;
use crate::translator::{Direction, Give, Progress, Translator, hash};

/// A server that speaks LibreTranslate's protocol.
#[derive(Debug)]
pub struct LibreTranslator {
    endpoint: Endpoint,
    key: Option<String>,
    codes: Vec<(Language, String)>,
    batch: usize,
    longest: usize,
    price: Option<f64>,
}

/// How a server is used.
#[derive(Clone, Debug)]
pub struct LibreSettings {
    /// The server's own codes, where they are others than ISO's: `zh` as `zh-Hans`.
    pub codes: Vec<(Language, String)>,
    /// Texts of a request, at most.
    pub batch: usize,
    /// Characters of a text, at most.
    pub longest: usize,
    /// Dollars for a million characters.
    pub price: Option<f64>,
}

impl Default for LibreSettings {
    /// 16 texts a request, 1,000 characters a text, no price.
    fn default() -> Self {
        Self { codes: Vec::new(), batch: 16, longest: 1000, price: None }
    }
}

impl LibreTranslator {
    /// Makes ready to ask; sends nothing yet.
    ///
    /// # Errors
    /// [`EndpointError`]: an address or settings that cannot be, a missing key.
    pub fn new(
        base: &str,
        own: LibreSettings,
        mut settings: EndpointSettings,
        cache: Arc<Cache>,
    ) -> Result<LibreTranslator, EndpointError> {
        // Characters are counted, and the server tells no usage.
        if let Some(price) = own.price.filter(|price| !(0.0..=MOST_DOLLARS).contains(price)) {
            return Err(EndpointError::Setting {
                name: "the price",
                expected: "dollars, at least 0 and at most 1000000000",
                found: price.to_string(),
            });
        }
        settings.price = own.price.map(|price| Price { prompt: price, completion: 0.0 });
        settings.check()?;
        if own.batch == 0 {
            let (name, expected, found) = ("texts a request", "at least 1", "0".to_owned());
            return Err(EndpointError::Setting { name, expected, found });
        }
        let mut url = base_url(base, "/translate")?;
        url.set_path(&format!("{}/translate", url.path().trim_end_matches('/')));
        // The protocol has the key in the body.
        let (key, client) = (settings.key()?, settings.client_with(&url, HeaderMap::new())?);
        let endpoint = Endpoint { settings, url, client, read: read_texts, cache, keep: false };
        let LibreSettings { codes, batch, longest, price } = own;
        Ok(LibreTranslator { endpoint, key, codes, batch, longest, price })
    }

    fn code<'a>(&'a self, language: &'a Language) -> &'a str {
        let own = self.codes.iter().find(|(known, _)| known == language);
        own.map_or(language.code(), |(_, code)| code.as_str())
    }

    fn body(&self, texts: &[String], direction: &Direction) -> String {
        let mut body = json!({
            "q": texts, "source": self.code(&direction.source), "target": self.code(&direction.target), "format": "text",
        });
        if let Some(key) = &self.key {
            body["api_key"] = json!(key);
        }
        body.to_string()
    }

    /// Texts next to each other, for a request each.
    fn requests(&self, texts: &[String]) -> Vec<Range<usize>> {
        let starts = (0..texts.len()).step_by(self.batch);
        starts.map(|start| start..(start + self.batch).min(texts.len())).collect()
    }

    fn cost(&self, characters: usize) -> Option<NanoDollars> {
        Some(Price { prompt: self.price?, completion: 0.0 }.of(characters as u64, 0))
    }
}

impl Translator for LibreTranslator {
    fn name(&self) -> String {
        format!("LibreTranslate at {}", self.endpoint.url.host_str().unwrap_or_default())
    }

    fn setting(&self) -> String {
        let codes: Vec<String> =
            self.codes.iter().map(|(language, code)| format!("{}={code}", language.code())).collect();
        hash(&["libretranslate", self.endpoint.url.as_str(), &codes.join(",")])
    }

    fn split(&self) -> Split {
        Split { sentences: false, longest: self.longest }
    }

    fn forms(&self) -> &[MaskForm] {
        // Its models are small: letters that their vocabularies have come first.
        &[MaskForm::Tag, MaskForm::Braces, MaskForm::Brackets]
    }

    fn most(&self, text: &str, _: &Direction) -> Option<NanoDollars> {
        self.cost(text.chars().count())
    }

    fn translate(
        &self,
        texts: &[String],
        direction: &Direction,
        _round: u32,
        progress: &dyn Progress,
        give: &mut Give<'_>,
    ) -> anyhow::Result<()> {
        let requests = self.requests(texts);
        let question = |range: &Range<usize>| Question {
            key: String::new(),
            body: self.body(&texts[range.clone()], direction),
            most: self.cost(texts[range.clone()].iter().map(|text| text.chars().count()).sum()),
        };
        let counts: Vec<usize> = requests.iter().map(Range::len).collect();
        let whole: Arc<Check> = Arc::new(move |index, answer| {
            let found = read_answer(answer).len();
            let expected = counts[index];
            if found == expected { Ok(()) } else { Err(format!("expected {expected} texts, found {found}")) }
        });
        let questions = requests.iter().map(question).collect();
        self.endpoint.ask(questions, &whole, &mut |told| match told {
            Told::Reply(index, Reply::Text(answer)) => {
                let texts = read_answer(&answer);
                requests[index].clone().zip(texts).try_for_each(|(index, text)| give(index, Ok(text)))
            }
            Told::Reply(index, Reply::Unanswered { reason, .. }) => {
                requests[index].clone().try_for_each(|index| give(index, Err(reason.clone())))
            }
            Told::Retry { reason, next, wait } => {
                progress.retry(&reason, next, wait);
                Ok(())
            }
        })
    }
}

/// The texts of an answer, as a JSON array.
fn read_texts(body: &[u8]) -> Outcome {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return failed("the answer is not JSON", Billed::Perhaps);
    };
    match &answer["translatedText"] {
        Value::Array(texts) if texts.iter().all(Value::is_string) => Outcome::Answered(Answer {
            text: answer["translatedText"].to_string(),
            prompt_tokens: None,
            completion_tokens: None,
        }),
        _ => match answer["error"].as_str() {
            Some(error) => {
                failed(&format!("the endpoint says: {}", excerpt(error.as_bytes())), Billed::Perhaps)
            }
            None => failed("the answer has no `translatedText` of texts", Billed::Perhaps),
        },
    }
}

fn read_answer(answer: &str) -> Vec<String> {
    serde_json::from_str(answer).unwrap_or_default()
}
