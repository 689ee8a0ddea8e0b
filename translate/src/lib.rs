//! Translators of instruction data, and what keeps an instruction set whole on its way through them.
//!
//! A field is laid out in pieces (lines, then sentences), in each of which code, URLs, numbers, placeholders and Markdown
//! are masked; a translator sees the pieces alone. What comes back is checked, asked for again in another way, and
//! put together again, or its row is dropped with the reason. Read in this order: [`translator`], [`mask`],
//! [`layout`], [`task`], [`checks`], [`run`].

pub mod checks;
#[cfg(feature = "ctranslate2")]
pub mod ctranslate2;
pub mod layout;
pub mod libre_translate;
pub mod mask;
pub mod openai;
pub mod run;
pub mod task;
pub mod translator;
