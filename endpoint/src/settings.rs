//! How to reach and ask an endpoint.

use std::ops::RangeInclusive;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use crate::cache::NanoDollars;
use crate::error::EndpointError;
use crate::price::Price;

/// The greatest cap, and the greatest price of a million tokens, in dollars: more is a slip of the pen, and could not be
/// counted in billionths.
pub const MOST_DOLLARS: f64 = 1e9;

/// How many requests may go out in a minute: fewer than one a day is a slip of the pen, and would overflow the clock.
pub const REQUESTS_PER_MINUTE: RangeInclusive<f64> = 1e-3..=1e9;

/// How to reach and ask an endpoint, whatever it speaks.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// The environment variable that holds the key; `None` where the endpoint needs none.
    pub key_variable: Option<String>,
    /// How many requests are under way at once, at most.
    pub concurrency: usize,
    /// How many requests go out in a minute, at most; tries again count.
    pub requests_per_minute: Option<f64>,
    /// How often a question is asked before it is left unanswered.
    pub tries: u32,
    /// The wait after the first failure; doubled after each further one. An answer that does not hold what was asked for
    /// is no failure: the question is asked again at once.
    pub backoff: Duration,
    /// The longest wait that a server may ask for; beyond it the rest is left for a later run.
    pub longest_wait: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// What tokens cost.
    pub price: Option<Price>,
    /// The most that may be spent, in dollars, over all runs with the same cache and `scope`.
    pub cap: Option<f64>,
    /// What the spending is counted under: the file that is written, say.
    pub scope: String,
}

impl Default for EndpointSettings {
    /// 8 requests at once, 6 tries, two minutes a request; no key, no price, no cap.
    fn default() -> Self {
        Self {
            key_variable: None,
            concurrency: 8,
            requests_per_minute: None,
            tries: 6,
            backoff: Duration::from_secs(1),
            longest_wait: Duration::from_secs(600),
            timeout: Duration::from_secs(120),
            price: None,
            cap: None,
            scope: String::new(),
        }
    }
}

impl EndpointSettings {
    /// Checks what does not depend on the protocol.
    ///
    /// # Errors
    /// [`EndpointError::Setting`].
    pub fn check(&self) -> Result<(), EndpointError> {
        let wrong = |name, expected, found: String| Err(EndpointError::Setting { name, expected, found });
        if self.concurrency == 0 {
            return wrong("concurrency", "at least 1", "0".into());
        }
        if self.tries == 0 {
            return wrong("tries", "at least 1", "0".into());
        }
        if let Some(rate) = self.requests_per_minute.filter(|rate| !REQUESTS_PER_MINUTE.contains(rate)) {
            return wrong("requests a minute", "from 0.001 up to 1000000000", rate.to_string());
        }
        self.check_spending()
    }

    /// What is no number of dollars keeps no cap: a price of NaN makes every request cost nothing.
    fn check_spending(&self) -> Result<(), EndpointError> {
        let wrong = |name, expected, found: String| Err(EndpointError::Setting { name, expected, found });
        let dollars = "dollars, at least 0 and at most 1000000000";
        let prices =
            self.price.map(|price| [("prompt price", price.prompt), ("completion price", price.completion)]);
        for (name, price) in prices.into_iter().flatten() {
            // A range holds no NaN.
            if !(0.0..=MOST_DOLLARS).contains(&price) {
                return wrong(name, dollars, price.to_string());
            }
        }
        if let Some(cap) = self.cap {
            if !(0.0..=MOST_DOLLARS).contains(&cap) {
                return wrong("--cap", dollars, cap.to_string());
            }
            if self.price.is_none() {
                return wrong(
                    "--cap",
                    "a price for the model, as the cap cannot be kept without",
                    "none".into(),
                );
            }
        }
        Ok(())
    }

    /// The cap as it is counted.
    pub fn counted_cap(&self) -> Option<NanoDollars> {
        self.cap.map(|dollars| (dollars * 1e9).floor() as NanoDollars)
    }

    /// The key, where one is needed.
    ///
    /// # Errors
    /// [`EndpointError::Key`].
    pub fn key(&self) -> Result<Option<String>, EndpointError> {
        let Some(name) = &self.key_variable else { return Ok(None) };
        let missing = |found| EndpointError::Key { name: name.clone(), found };
        let key = std::env::var(name).map_err(|_| missing("none"))?;
        if key.trim().is_empty() {
            return Err(missing("nothing in it"));
        }
        Ok(Some(key.trim().to_owned()))
    }

    /// A client for one server, with the key as its bearer token.
    ///
    /// # Errors
    /// [`EndpointError::Key`], [`EndpointError::Client`].
    pub fn client(&self, url: &reqwest::Url) -> Result<reqwest::Client, EndpointError> {
        let mut headers = HeaderMap::new();
        if let Some(key) = self.key()? {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| EndpointError::Key {
                    name: self.key_variable.clone().unwrap_or_default(),
                    found: "characters that a header cannot hold",
                })?;
            // Keeps the key out of every message.
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        self.client_with(url, headers)
    }

    /// A client for one server, without the key.
    ///
    /// # Errors
    /// [`EndpointError::Client`].
    pub fn client_with(
        &self,
        url: &reqwest::Url,
        headers: HeaderMap,
    ) -> Result<reqwest::Client, EndpointError> {
        // Another part of the program may have installed it before: that one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("polypaca/", env!("CARGO_PKG_VERSION")))
            .timeout(self.timeout)
            // A redirect would carry the questions to whom the user did not name.
            .redirect(reqwest::redirect::Policy::none());
        if url.scheme() == "http" {
            // No certificate is looked at, so a machine that has none can still ask.
            builder = builder.tls_certs_only([]);
        }
        if url
            .host_str()
            .is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]")
        {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| EndpointError::Client(error.to_string()))
    }
}

/// Reads a base URL, without the slash and `end` that may follow it.
///
/// # Errors
/// [`EndpointError::Endpoint`]: no URL, another scheme than http, a key in it.
pub fn base_url(endpoint: &str, end: &str) -> Result<reqwest::Url, EndpointError> {
    let wrong = |reason: String| EndpointError::Endpoint { found: endpoint.to_string(), reason };
    let base = endpoint.trim().trim_end_matches('/').trim_end_matches(end);
    let url = reqwest::Url::parse(base).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(format!("the scheme is {}", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "a key in the URL would be written into the cache; name an environment variable".into(),
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_no_clock_keeps_is_refused() {
        let check = |rate| {
            let settings =
                EndpointSettings { requests_per_minute: Some(rate), ..EndpointSettings::default() };
            settings.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(0.5), Ok(()));
        for wrong in [0.0, -1.0, 1e-9, f64::NAN, f64::INFINITY] {
            let error = check(wrong).unwrap_err();
            assert!(error.contains("requests a minute: expected from 0.001 up to 1000000000"), "{error}");
        }
    }

    #[test]
    fn what_is_no_sum_of_money_is_refused() {
        let check = |prompt, completion, cap| {
            let price = Some(Price { prompt, completion });
            EndpointSettings { price, cap, ..EndpointSettings::default() }
                .check()
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(0.0, 1.5, Some(0.0)), Ok(()));
        for wrong in [f64::NAN, -1000.0, f64::INFINITY, 1e300] {
            assert!(
                check(wrong, 1.0, None).unwrap_err().starts_with("prompt price: expected dollars"),
                "{wrong}"
            );
            assert!(
                check(1.0, wrong, None).unwrap_err().starts_with("completion price: expected"),
                "{wrong}"
            );
            assert!(
                check(1.0, 1.0, Some(wrong)).unwrap_err().starts_with("--cap: expected dollars"),
                "{wrong}"
            );
        }
    }
}
