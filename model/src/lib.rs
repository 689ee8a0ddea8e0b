//! Models from files: families, weights, tokenizers and adapters, read and written.
//!
//! [`BaseModel::open`] takes a Hugging Face folder or a GGUF file and gives the decoder's configuration, the weights of
//! each of its slots, and the tokenizer. [`folder::write`] writes a Hugging Face folder, [`adapter::Adapter`] reads and
//! writes PEFT's, [`merge`] makes one model of both, as a folder or as a GGUF file.

pub mod adapter;
mod base_model;
mod error;
pub mod families;
pub mod folder;
mod gguf;
pub mod init;
mod keys;
mod mapped;
pub mod merge;
mod pre_tokenizer;
mod safetensors_file;
mod sentencepiece;
mod stored;
#[doc(hidden)]
pub mod test_support;
mod tokenizer;
mod write;

pub use self::base_model::BaseModel;
pub use self::error::{Error, Result};
pub use self::families::Family;
pub use self::tokenizer::{SpecialIds, TextStream, Tokenizer, TrainingTokens};
