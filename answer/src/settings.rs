//! How a response is searched for. The names are transformers' where transformers has one.

use serde::{Deserialize, Serialize};

/// How responses are decoded. The default is the paper's: beam 4, no repeated 6-gram, 256 new tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decoding {
    /// Beams; 1 is greedy search, or sampling. transformers: `num_beams`.
    pub beams: usize,
    /// No n-gram of this many tokens occurs twice in prompt and response; 0: any may. transformers:
    /// `no_repeat_ngram_size`.
    pub no_repeat_ngram: usize,
    /// Scores of tokens that prompt or response holds already are divided by this where positive, else multiplied; 1
    /// changes nothing. transformers: `repetition_penalty`.
    pub repetition_penalty: f32,
    /// A finished beam's score is its log-probability divided by its new tokens to this power: above 0 favours long
    /// responses. transformers: `length_penalty`.
    pub length_penalty: f64,
    /// When a beam search ends. transformers: `early_stopping`.
    pub early_stopping: EarlyStopping,
    /// Most new tokens, the end token included. transformers: `max_new_tokens`.
    pub new_tokens: usize,
    /// Draw tokens instead of taking the best one.
    pub sample: Option<Sampling>,
    /// A response ends in front of the first of these texts.
    pub stops: Vec<String>,
    /// Most tokens of one pass over the model, of all prompts together. Changes the speed and the memory, and no
    /// response.
    pub batch_tokens: usize,
    /// Most bytes of keys and values, but never less than one prompt needs; none: by the weights, as
    /// [`Decoding::key_value_bytes`] has it. Changes the speed and the memory, and no response.
    pub cache_bytes: Option<usize>,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { beams: 4, no_repeat_ngram: 6, ..Self::greedy() }
    }
}

impl Decoding {
    /// The best token at each step, 256 new tokens, nothing forbidden.
    pub fn greedy() -> Self {
        Self {
            beams: 1,
            no_repeat_ngram: 0,
            repetition_penalty: 1.0,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Unlikely,
            new_tokens: 256,
            sample: None,
            stops: Vec::new(),
            batch_tokens: 256,
            cache_bytes: None,
        }
    }

    /// Most bytes of keys and values beside so many bytes of weights: where nobody says how many, half as many again as
    /// the weights, within 256 MiB and 1 GiB. With more prompts at once the weights are read less often, and answering
    /// takes about two and a half times the model's memory.
    pub fn key_value_bytes(&self, weight_bytes: usize) -> usize {
        self.cache_bytes.unwrap_or_else(|| (weight_bytes / 2 * 3).clamp(256 << 20, 1 << 30))
    }

    /// What is wrong with these settings, if anything.
    ///
    /// # Errors
    /// A setting is out of range, or two exclude each other: which, what it is, and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let sampling = self.sample.as_ref();
        let faults = [
            (self.beams == 0, "beams is 0; expected at least 1".to_owned()),
            (self.new_tokens == 0, "new_tokens is 0; expected at least 1".to_owned()),
            (self.batch_tokens == 0, "batch_tokens is 0; expected at least 1".to_owned()),
            (self.beams > MOST_BEAMS, format!("beams is {}; expected at most {MOST_BEAMS}", self.beams)),
            (
                self.new_tokens > MOST_NEW_TOKENS,
                format!("new_tokens is {}; expected at most {MOST_NEW_TOKENS}", self.new_tokens),
            ),
            (
                self.batch_tokens > MOST_BATCH_TOKENS,
                format!("batch_tokens is {}; expected at most {MOST_BATCH_TOKENS}", self.batch_tokens),
            ),
            (
                !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()),
                format!("repetition_penalty is {}; expected above 0", self.repetition_penalty),
            ),
            (
                !self.length_penalty.is_finite(),
                format!("length_penalty is {}; expected a number", self.length_penalty),
            ),
            (self.stops.iter().any(String::is_empty), "stops holds an empty text".to_owned()),
            (
                self.beams > 1 && sampling.is_some(),
                format!("sampling with {} beams; expected beams = 1, or no sampling", self.beams),
            ),
        ];
        if let Some((_, fault)) = faults.into_iter().find(|(wrong, _)| *wrong) {
            return Err(fault);
        }
        sampling.map_or(Ok(()), Sampling::check)
    }
}

/// Far beyond what a search gains by, and what a machine holds.
const MOST_BEAMS: usize = 1024;
const MOST_NEW_TOKENS: usize = 1 << 20;
/// Most tokens of one pass over the model that can be asked for.
pub const MOST_BATCH_TOKENS: usize = 1 << 18;

/// When a beam search ends, once as many beams have finished as there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EarlyStopping {
    /// When the best running beam, at its present length, is no better than the worst finished one. transformers:
    /// `False`.
    #[default]
    Unlikely,
    /// At once. transformers: `True`.
    Full,
    /// When no running beam could still become better than the worst finished one. transformers: `"never"`.
    Never,
}

/// How tokens are drawn: temperature, then `top_k`, then `top_p`, as in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by this.
    pub temperature: f32,
    /// Only the least set of best tokens whose probabilities reach this together; 1: all.
    pub top_p: f32,
    /// Only this many of the best tokens, and those level with the last; 0: all.
    pub top_k: usize,
    /// The same seed and the same prompt's id give the same response, whatever else is in the batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

impl Sampling {
    fn check(&self) -> Result<(), String> {
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(format!(
                "temperature is {}; expected above 0 (greedy search is sampling left out)",
                self.temperature
            ));
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return Err(format!("top_p is {}; expected 0 to 1", self.top_p));
        }
        Ok(())
    }
}
