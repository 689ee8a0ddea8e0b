//! Answering prompts: greedy search, beam search and sampling, over many prompts at once.
//!
//! Reading order: [`Decoding`] (the settings), `processors`, `greedy`, `sample` and `beam` (one prompt's search, which
//! knows nothing of tensors), [`Scheduler`] (many searches in one batch), [`answer`], [`respond`] and [`reply`].
//!
//! ```no_run
//! # use std::path::Path;
//! use answer::{AnswerModel, Decoding, System, respond};
//! use instructions::template::Template;
//!
//! # fn main() -> anyhow::Result<()> {
//! let model = AnswerModel::open(Path::new("model"), &[("monolingual-fi".into(), Path::new("adapter"))])?;
//! let systems = [System::base("base"), System::adapter("monolingual-fi", 0)];
//! let prompts = instructions::prompt::read_prompts(Path::new("prompts.jsonl"), None)?.items;
//! let template = Template::alpaca();
//! let responses = respond(&model, &systems, &prompts, &template, &Decoding::default(), &mut |_, _| {})?;
//! # Ok(())
//! # }
//! ```
//!
//! A response depends on its model, its adapter, its prompt and the [`Decoding`], and on nothing else: not on the other
//! prompts of a batch, their order, or the size of the batch.

mod answer_model;
mod beam;
mod conversation;
mod error;
mod greedy;
mod preamble;
mod processors;
mod reply;
mod request;
mod respond;
mod sample;
mod scheduler;
mod scores;
mod search;
pub mod server;
mod settings;

pub use self::answer_model::AnswerModel;
pub use self::conversation::{Conversation, Message, template};
pub use self::error::Error;
pub use self::reply::reply;
pub use self::request::{Answer, Finish, Request};
pub use self::respond::{System, prompt_tokens, respond};
pub use self::scheduler::{Event, Limits, Scheduler, answer};
pub use self::settings::{Decoding, EarlyStopping, MOST_BATCH_TOKENS, Sampling};
