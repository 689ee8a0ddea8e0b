//! Whoever is asked over HTTP: a judge's model, a translator.
//!
//! Questions go out many at once and under a rate limit; what fails is tried again with growing waits; answers and what
//! they cost are kept in SQLite. Read in this order: [`settings`], [`asking`], [`chat`], [`cache`], [`pace`],
//! [`price`].

pub mod asking;
pub mod cache;
pub mod chat;
mod error;
pub mod pace;
pub mod price;
pub mod settings;

pub use error::EndpointError;
