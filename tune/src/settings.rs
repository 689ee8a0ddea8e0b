//! What a run is: every setting that determines its result, by the names of `polypaca tune`'s flags. An experiment file's
//! words are the same types, and so they have a JSON schema.

use std::fmt;

use engine::decoder::weights::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rows::Packing;
use crate::schedule::warmup_updates;

/// How a base model is tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank adaptation (Hu et al. 2022): the base model is frozen.
    Lora,
    /// All weights.
    Full,
}

impl Method {
    /// As it is written in files: `lora` or `full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
        }
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// Updates of the optimizer.
    Updates(u64),
    /// Passes over the rows.
    Epochs(f64),
}

/// The way of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Straight down to zero.
    Linear,
    /// Half a cosine down to zero.
    Cosine,
    /// It stays.
    Constant,
}

/// Which tokens the loss is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Supervise {
    /// Prompt and response.
    All,
    /// The response alone.
    Response,
}

/// The order in which rows are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Drawn anew each epoch from the seed.
    Shuffle,
    /// The file's own.
    File,
}

/// Which checkpoint is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The one with the lowest validation loss.
    Best,
    /// The last one.
    Last,
}

/// Over what a validation loss is the mean, where checkpoints are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BestOver {
    /// All rows' supervised tokens: a language counts as much as it has tokens.
    #[default]
    Rows,
    /// The languages' own means: each counts the same.
    Languages,
}

/// In what frozen weights are kept; what is trained is kept in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FrozenWeights {
    /// The type in which they were published.
    #[default]
    Published,
    /// 32-bit floats.
    F32,
    /// Brain floats.
    Bf16,
    /// Half floats.
    F16,
    /// 8 bits in the blocks' products (GGUF's Q8_0); the embedding and the head as published.
    #[serde(rename = "8bit")]
    Bits8,
    /// 4 bits in the blocks' products (NF4, as QLoRA has it); the embedding and the head as published.
    #[serde(rename = "4bit")]
    Bits4,
}

impl FrozenWeights {
    /// The engine's word for it.
    pub fn precision(self) -> Precision {
        match self {
            Self::Published => Precision::Published,
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::F16 => Precision::F16,
            Self::Bits8 => Precision::Bits8,
            Self::Bits4 => Precision::Nf4,
        }
    }
}

/// Everything that determines a run, apart from the model and the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// LoRA or full.
    pub method: Method,
    /// Sequences an update.
    pub batch: usize,
    /// Most tokens in a micro-batch; the loss and its gradient do not depend on it but for rounding.
    pub micro_batch_tokens: usize,
    /// Most sequences in a micro-batch, where that is to be bound as well.
    pub micro_batch: Option<usize>,
    /// How long.
    pub length: Length,
    /// Tokens of the longest sequence; the rest of a longer one is cut off.
    pub cutoff: usize,
    /// The greatest learning rate.
    pub learning_rate: f64,
    /// Updates, or a share of them where it is below 1, over which the rate rises.
    pub warmup: f64,
    /// The way of the rate after that.
    pub schedule: Schedule,
    /// AdamW's decay, on matrices (not on norms and biases).
    pub weight_decay: f64,
    /// Share of an adapter's inputs that is dropped.
    pub dropout: f32,
    /// The gradient's greatest norm; none is no limit.
    pub clip: Option<f64>,
    /// Which tokens are supervised.
    pub supervise: Supervise,
    /// The order of the rows.
    pub order: Order,
    /// Updates between two measurements of the validation loss.
    pub validate_every: u64,
    /// Which checkpoint is kept.
    pub keep: Keep,
    /// Which mean of the validation loss is compared.
    pub best_over: BestOver,
    /// Stop after this many measurements without a better one.
    pub patience: Option<u32>,
    /// An adapter's inner width.
    pub rank: usize,
    /// An adapter's product is scaled by this over the rank.
    pub alpha: f64,
    /// The modules that have an adapter, by PEFT's names or as `query`, `key`, `value`; empty: query, key and value.
    pub modules: Vec<String>,
    /// Scale an adapter's product by alpha over the rank's square root (rsLoRA, Kalajdzievski 2023).
    pub rslora: bool,
    /// In what the base model's weights are kept under LoRA.
    pub weights: FrozenWeights,
    /// Compute a block's activations again in the backward pass, to save memory.
    pub recompute: bool,
    /// Compute what rows of a micro-batch begin with once. Rows of an update that begin alike then draw the same dropout as
    /// far as they are alike, whether they meet in a micro-batch or not; the gradient's expectation is the same.
    pub share_prefixes: bool,
    /// For the adapter's first values, the order of the rows, and dropout.
    pub seed: u64,
    /// Updates between two checkpoints.
    pub checkpoint_every: u64,
    /// Have each weight in one of several processes alone, which full tuning can. The result depends on it by rounding
    /// alone, as on how many processes there are, and neither is written down: a run may go on with it or without.
    #[serde(skip)]
    pub shard_weights: bool,
}

/// The most updates of a run: more than anything is trained for, and few enough that their rows can be counted.
pub const MOST_UPDATES: u64 = 10_000_000;
/// The most passes over the rows.
const MOST_EPOCHS: f64 = 1e5;
/// The most rows of an update.
const MOST_ROWS: usize = 1 << 20;
/// The most rows that all updates meet together.
const MOST_MET: f64 = 1e10;
/// The greatest rank: that of an adapter as wide as the widest of models, which has no use for more.
const MOST_RANK: usize = 1 << 14;

/// A setting that no run can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SettingProblem {
    /// As experiment files have it; flags have `-` for `_`.
    pub name: &'static str,
    /// What was found.
    pub found: f64,
    /// What was expected.
    pub expected: &'static str,
}

impl fmt::Display for SettingProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} is {}: expected {}", self.name, self.found, self.expected)
    }
}

/// Named settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// As the paper's authors ran each method.
    #[default]
    Paper,
    /// Both methods under the same settings wherever they can be: what is supervised, which checkpoint is kept,
    /// epochs, batch, warm-up.
    Fair,
}

impl Settings {
    /// A preset's settings for a method. Sources: the paper's Section 2 and Table 1, and the authors' two scripts
    /// (alpaca-lora's for LoRA, Stanford Alpaca's for full tuning).
    pub fn preset(preset: Preset, method: Method) -> Self {
        let lora = Self {
            method,
            batch: 128,
            micro_batch_tokens: 1024,
            micro_batch: None,
            length: Length::Epochs(5.0),
            cutoff: 512,
            learning_rate: 3e-4,
            warmup: 100.0,
            schedule: Schedule::Linear,
            weight_decay: 0.0,
            dropout: 0.05,
            clip: Some(1.0),
            supervise: Supervise::All,
            order: Order::Shuffle,
            validate_every: 200,
            keep: Keep::Best,
            best_over: BestOver::Rows,
            patience: None,
            rank: 8,
            alpha: 16.0,
            modules: Vec::new(),
            rslora: false,
            weights: FrozenWeights::Published,
            recompute: false,
            share_prefixes: true,
            seed: 0,
            checkpoint_every: 50,
            shard_weights: false,
        };
        match (preset, method) {
            (Preset::Paper, Method::Lora) => lora,
            (Preset::Paper, Method::Full) => Self {
                batch: 256,
                length: Length::Epochs(3.0),
                learning_rate: 2e-5,
                warmup: 0.03,
                schedule: Schedule::Cosine,
                dropout: 0.0,
                supervise: Supervise::Response,
                keep: Keep::Last,
                ..lora
            },
            (Preset::Fair, Method::Lora) => {
                Self { length: Length::Epochs(3.0), warmup: 0.03, supervise: Supervise::Response, ..lora }
            }
            (Preset::Fair, Method::Full) => Self {
                length: Length::Epochs(3.0),
                learning_rate: 2e-5,
                warmup: 0.03,
                dropout: 0.0,
                supervise: Supervise::Response,
                ..lora
            },
        }
    }

    /// Every setting that no run can have, the first of them first.
    pub fn problems(&self) -> Vec<SettingProblem> {
        let mut problems = Vec::new();
        let mut expect = |name, found: f64, good: bool, expected| {
            if !good {
                problems.push(SettingProblem { name, found, expected });
            }
        };
        let (updates, epochs) = match self.length {
            Length::Updates(updates) => (Some(updates as f64), None),
            Length::Epochs(epochs) => (None, Some(epochs)),
        };
        let above_zero = [
            ("batch", Some(self.batch as f64)),
            ("micro_batch", self.micro_batch.map(|value| value as f64)),
            ("micro_batch_tokens", Some(self.micro_batch_tokens as f64)),
            ("updates", updates),
            ("epochs", epochs),
            ("cutoff", Some(self.cutoff as f64)),
            ("lr", Some(self.learning_rate)),
            ("clip", self.clip),
            ("validate_every", Some(self.validate_every as f64)),
            ("patience", self.patience.map(f64::from)),
            ("checkpoint_every", Some(self.checkpoint_every as f64)),
            ("rank", Some(self.rank as f64)),
            ("alpha", Some(self.alpha)),
        ];
        for (name, value) in above_zero {
            let Some(value) = value else { continue };
            expect(name, value, value > 0.0 && value.is_finite(), "above 0");
        }
        for (name, value) in [("warmup", self.warmup), ("weight_decay", self.weight_decay)] {
            expect(name, value, value >= 0.0 && value.is_finite(), "0 or above");
        }
        let bounded = [
            ("batch", Some(self.batch as f64), MOST_ROWS as f64, "at most 1048576"),
            ("updates", updates, MOST_UPDATES as f64, "at most 10000000"),
            ("epochs", epochs, MOST_EPOCHS, "at most 100000"),
            ("rank", Some(self.rank as f64), MOST_RANK as f64, "at most 16384"),
        ];
        for (name, value, most, expected) in bounded {
            let Some(value) = value.filter(|value| value.is_finite()) else { continue };
            expect(name, value, value <= most, expected);
        }
        let met = updates.map_or(0.0, |updates| updates * self.batch as f64);
        if updates.is_some_and(|updates| updates <= MOST_UPDATES as f64) && self.batch <= MOST_ROWS {
            expect(
                "updates",
                updates.unwrap_or_default(),
                met <= MOST_MET,
                "at most 10000000000 rows in all updates",
            );
        }
        // As it was written, and not as 32 bits hold it.
        let dropout = (f64::from(self.dropout) * 1e7).round() / 1e7;
        expect("dropout", dropout, (0.0..1.0).contains(&dropout), "at least 0 and below 1");
        problems
    }

    /// Updates of a run over `rows` rows. An epoch's last batch takes what is left of its rows, and a part of an epoch is
    /// rounded up to whole updates, as transformers' Trainer does.
    pub fn updates(&self, rows: usize) -> u64 {
        match self.length {
            Length::Updates(updates) => updates,
            Length::Epochs(epochs) => (rows.div_ceil(self.batch) as f64 * epochs).ceil() as u64,
        }
    }

    /// What to say of a run over `rows` rows that ends before its learning rate has risen, if it does.
    pub fn ends_in_warmup(&self, rows: usize) -> Option<String> {
        let updates = self.updates(rows);
        let warmup = warmup_updates(self.warmup, updates);
        (warmup >= updates).then(|| {
            format!(
                "the learning rate rises for {warmup} updates, and the run has {updates}: it never comes to {}",
                self.learning_rate
            )
        })
    }

    /// How the rows of a micro-batch are packed.
    pub fn packing(&self) -> Packing {
        if self.share_prefixes { Packing::Shared } else { Packing::Apart }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_all_warm_up_is_told() {
        let of =
            |length, warmup| Settings { length, warmup, ..Settings::preset(Preset::Paper, Method::Lora) };
        let told = |length, warmup| of(length, warmup).ends_in_warmup(1000);
        let said = "the learning rate rises for 100 updates, and the run has 20: it never comes to 0.0003";
        assert_eq!(told(Length::Updates(20), 100.0).as_deref(), Some(said));
        assert!(told(Length::Updates(100), 100.0).is_some());
        assert_eq!(told(Length::Updates(101), 100.0), None);
        // A share is rounded up: of a single update it is all.
        assert!(told(Length::Updates(1), 0.03).is_some());
        assert_eq!(told(Length::Epochs(1.0), 0.03), None);
        assert_eq!(told(Length::Updates(1), 0.0), None);
    }

    #[test]
    fn presets_can_be_had_and_each_wrong_setting_is_named() {
        for preset in [Preset::Paper, Preset::Fair] {
            for method in [Method::Lora, Method::Full] {
                assert_eq!(Settings::preset(preset, method).problems(), []);
            }
        }
        let wrong = Settings {
            rank: 0,
            learning_rate: f64::NAN,
            warmup: -1.0,
            dropout: 1.0,
            patience: Some(0),
            length: Length::Epochs(f64::INFINITY),
            ..Settings::preset(Preset::Paper, Method::Lora)
        };
        let told: Vec<String> = wrong.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "epochs is inf: expected above 0",
                "lr is NaN: expected above 0",
                "patience is 0: expected above 0",
                "rank is 0: expected above 0",
                "warmup is -1: expected 0 or above",
                "dropout is 1: expected at least 0 and below 1",
            ]
        );
        let long = Settings {
            rank: 100_000_000_000,
            length: Length::Updates(1_000_000_000_000),
            ..Settings::preset(Preset::Paper, Method::Lora)
        };
        let told: Vec<String> = long.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "updates is 1000000000000: expected at most 10000000",
                "rank is 100000000000: expected at most 16384"
            ]
        );
        let long = Settings {
            batch: 100_000,
            length: Length::Updates(1_000_000),
            ..Settings::preset(Preset::Paper, Method::Lora)
        };
        assert_eq!(
            long.problems()[0].to_string(),
            "updates is 1000000: expected at most 10000000000 rows in all updates"
        );
        let long = Settings { length: Length::Epochs(1e30), ..Settings::preset(Preset::Paper, Method::Lora) };
        assert_eq!(long.problems().len(), 1);
    }
}
