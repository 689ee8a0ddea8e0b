//! What ends the asking.

use reqwest::StatusCode;

use crate::cache::CacheError;

/// Why an endpoint cannot be asked, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
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
