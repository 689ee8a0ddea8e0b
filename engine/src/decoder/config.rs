//! A family is data: everything in which the supported decoders differ.

/// What a decoder computes, apart from its weights.
///
/// One block serves all families; each field is a place where two of them part ways.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding table and of the head.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped heads where it is smaller).
    pub key_value_heads: usize,
    /// Width of one head. `heads * head_size` need not be `hidden`.
    pub head_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// The norm before attention, before the feed-forward layer, and at the end.
    pub norm: Norm,
    /// How a position enters attention.
    pub position: Position,
    /// Whether attention and feed-forward read the same residual stream.
    pub residual: Residual,
    /// The feed-forward layer's non-linearity.
    pub activation: Activation,
    /// BLOOM normalises the embedding before the first block.
    pub embedding_norm: bool,
    /// The embedding is multiplied by this (Gemma: the square root of `hidden`).
    pub embedding_scale: f32,
    /// Where the head's weights come from.
    pub head: Head,
    /// Whether the fused query-key-value product has a bias.
    pub query_key_value_bias: bool,
    /// Whether attention's output product has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward products have biases.
    pub feed_forward_bias: bool,
    /// Qwen3 and Gemma 3 normalise each query and key head (RMS, own weights) before the rotation.
    pub query_key_norm: bool,
    /// Gemma 3 normalises what attention and the feed-forward layer add to the residual stream.
    pub output_norms: bool,
    /// What scores are multiplied by where it is not the head size that says so (Gemma 3).
    pub attention_scale: Option<f32>,
    /// Blocks whose attention is local; none but in Gemma 3.
    pub local: Option<LocalAttention>,
    /// Longest sequence the model was made for; beyond it the caller is warned.
    pub max_positions: usize,
}

/// Which norm, and the constant under its root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// LayerNorm subtracts the mean and has a bias; RMSNorm does neither.
    pub kind: NormKind,
    /// Added to the variance (or mean square).
    pub epsilon: f32,
}

/// The two norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias`
    Layer,
    /// `x / sqrt(mean(x²) + epsilon) * weight`
    Rms,
}

/// How positions enter attention.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// Rotary embedding, in the layout of transformers: dimension `i` is paired with `i + rotated / 2`.
    /// (GGUF and llama2.c files pair neighbours; `model` reorders their rows.)
    Rotary {
        /// How many of a head's first dimensions are rotated; even.
        rotated: usize,
        /// `rotated / 2` angles per position step, in radians: `base^(-2i / rotated)`, after any scaling.
        frequencies: Vec<f32>,
    },
    /// A bias on each score, linear in the distance, with a slope per head (Press et al. 2022).
    Alibi,
}

/// Blocks whose attention is to what is near, and whose rotary embedding has a base of its own: Gemma 3 has five of them
/// for one of the other kind.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalAttention {
    /// For each block, whether it is one of them.
    pub layers: Vec<bool>,
    /// Positions that a query sees there, its own among them.
    pub window: usize,
    /// As those of [`Position::Rotary`], and as many.
    pub frequencies: Vec<f32>,
}

impl Position {
    /// Plain rotary embedding over the first `rotated` dimensions with the given base.
    pub fn rotary(rotated: usize, base: f32) -> Self {
        let frequencies =
            (0..rotated / 2).map(|i| 1.0 / base.powf(2.0 * i as f32 / rotated as f32)).collect();
        Self::Rotary { rotated, frequencies }
    }
}

/// How the two halves of a block join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm1(x)); x += feed_forward(norm2(x))`
    Sequential,
    /// `x += attention(norm1(x)) + feed_forward(norm2(x))` (GPT-NeoX)
    Parallel,
}

/// The feed-forward layer's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU with the error function (GPT-NeoX).
    GeluErf,
    /// GELU's tanh approximation (BLOOM).
    GeluTanh,
    /// `silu(gate) * up` (LLaMA, Baichuan-2, Mistral, Qwen)
    SwiGlu,
    /// `gelu_tanh(gate) * up` (Gemma)
    GeGluTanh,
}

impl Activation {
    /// Whether the feed-forward layer has a gate beside its up product.
    pub fn gated(self) -> bool {
        matches!(self, Self::SwiGlu | Self::GeGluTanh)
    }
}

/// Where the head's weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The embedding table itself.
    Tied,
    /// A matrix of its own.
    Free,
    /// A matrix of its own whose rows are scaled to length one (Baichuan-2).
    Normalised,
}

impl DecoderConfig {
    /// Rows of the fused query-key-value matrix: all query heads, then all key heads, then all value heads.
    pub fn query_key_value_rows(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_size
    }

    /// Width of attention's output before its product: `heads * head_size`.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// What scores are multiplied by.
    pub fn score_scale(&self) -> f32 {
        self.attention_scale.unwrap_or_else(|| 1.0 / (self.head_size as f32).sqrt())
    }

    /// Number of weights, with a tied head counted once.
    pub fn parameters(&self) -> usize {
        use super::weights::{Slot, slots};
        slots(self).into_iter().map(|slot: Slot| slot.shape(self).iter().product::<usize>()).sum()
    }
}
