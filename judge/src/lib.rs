//! The language gate, judges, ratings and their agreement with people.

pub mod agree;
pub mod asking;
mod batch;
pub mod chrf;
pub mod confusion;
pub mod fasttext;
pub mod gate;
pub mod identify;
pub mod judging;
mod lock;
pub mod openai;
pub mod pairwise;
pub mod parse;
pub mod prompt_template;
pub mod rate;
pub mod rating;
pub mod reference;
pub mod statistics;

pub use endpoint::{cache, price};
