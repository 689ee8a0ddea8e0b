//! Where each weight goes: the slots of a decoder, and the tensors that fill them.
//!
//! `model` reads a family's files and hands over one [`HostTensor`] per [`Slot`], already in the decoder's
//! layout: fused query-key-value rows as all queries, all keys, all values (each head's rows together, heads in
//! order), rotary pairs as halves. Matrices are `[outputs, inputs]`, row-major, as in transformers.

use std::borrow::Cow;

use half::{bf16, f16};

use super::config::{DecoderConfig, Head, NormKind};

/// A place for one weight tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// `[vocabulary, hidden]`
    Embedding,
    /// `[hidden]`, BLOOM
    EmbeddingNormWeight,
    /// `[hidden]`, BLOOM
    EmbeddingNormBias,
    /// One of a block's tensors.
    Layer(usize, LayerSlot),
    /// `[hidden]`
    FinalNormWeight,
    /// `[hidden]`, LayerNorm only
    FinalNormBias,
    /// `[vocabulary, hidden]`; absent where the head is tied
    Head,
}

/// A place in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerSlot {
    /// `[hidden]`
    AttentionNormWeight,
    /// `[hidden]`, LayerNorm only
    AttentionNormBias,
    /// `[(heads + 2 key_value_heads) * head_size, hidden]`: queries, keys, values
    QueryKeyValueWeight,
    /// `[(heads + 2 key_value_heads) * head_size]`
    QueryKeyValueBias,
    /// `[head_size]`, Qwen3 and Gemma 3
    QueryNormWeight,
    /// `[head_size]`, Qwen3 and Gemma 3
    KeyNormWeight,
    /// `[hidden, heads * head_size]`
    OutputWeight,
    /// `[hidden]`
    OutputBias,
    /// `[hidden]`, Gemma 3
    AttentionOutputNormWeight,
    /// `[hidden]`
    FeedForwardNormWeight,
    /// `[hidden]`, LayerNorm only
    FeedForwardNormBias,
    /// `[intermediate, hidden]`, gated activations only
    GateWeight,
    /// `[intermediate, hidden]`
    UpWeight,
    /// `[intermediate]`
    UpBias,
    /// `[hidden, intermediate]`
    DownWeight,
    /// `[hidden]`
    DownBias,
    /// `[hidden]`, Gemma 3
    FeedForwardOutputNormWeight,
}

/// All slots that a configuration has, in the order in which data flows through them.
pub fn slots(config: &DecoderConfig) -> Vec<Slot> {
    let layer_norm = config.norm.kind == NormKind::Layer;
    let mut all = vec![Slot::Embedding];
    if config.embedding_norm {
        all.extend([Slot::EmbeddingNormWeight, Slot::EmbeddingNormBias]);
    }
    let mut block = vec![LayerSlot::AttentionNormWeight];
    let mut add = |present: bool, slot: LayerSlot| {
        if present {
            block.push(slot);
        }
    };
    add(layer_norm, LayerSlot::AttentionNormBias);
    add(true, LayerSlot::QueryKeyValueWeight);
    add(config.query_key_value_bias, LayerSlot::QueryKeyValueBias);
    add(config.query_key_norm, LayerSlot::QueryNormWeight);
    add(config.query_key_norm, LayerSlot::KeyNormWeight);
    add(true, LayerSlot::OutputWeight);
    add(config.output_bias, LayerSlot::OutputBias);
    add(config.output_norms, LayerSlot::AttentionOutputNormWeight);
    add(true, LayerSlot::FeedForwardNormWeight);
    add(layer_norm, LayerSlot::FeedForwardNormBias);
    add(config.activation.gated(), LayerSlot::GateWeight);
    add(true, LayerSlot::UpWeight);
    add(config.feed_forward_bias, LayerSlot::UpBias);
    add(true, LayerSlot::DownWeight);
    add(config.feed_forward_bias, LayerSlot::DownBias);
    add(config.output_norms, LayerSlot::FeedForwardOutputNormWeight);
    for layer in 0..config.layers {
        all.extend(block.iter().map(|&slot| Slot::Layer(layer, slot)));
    }
    all.push(Slot::FinalNormWeight);
    if layer_norm {
        all.push(Slot::FinalNormBias);
    }
    if config.head != Head::Tied {
        all.push(Slot::Head);
    }
    all
}

impl Slot {
    /// The shape of the tensor that goes here: `[rows, columns]` for matrices, `[length]` for vectors.
    pub fn shape(self, config: &DecoderConfig) -> Vec<usize> {
        let hidden = config.hidden;
        match self {
            Self::Embedding | Self::Head => vec![config.vocabulary, hidden],
            Self::EmbeddingNormWeight
            | Self::EmbeddingNormBias
            | Self::FinalNormWeight
            | Self::FinalNormBias => vec![hidden],
            Self::Layer(_, slot) => match slot {
                LayerSlot::AttentionNormWeight
                | LayerSlot::AttentionNormBias
                | LayerSlot::FeedForwardNormWeight
                | LayerSlot::FeedForwardNormBias
                | LayerSlot::OutputBias
                | LayerSlot::AttentionOutputNormWeight
                | LayerSlot::DownBias
                | LayerSlot::FeedForwardOutputNormWeight => vec![hidden],
                LayerSlot::QueryKeyValueWeight => vec![config.query_key_value_rows(), hidden],
                LayerSlot::QueryKeyValueBias => vec![config.query_key_value_rows()],
                LayerSlot::QueryNormWeight | LayerSlot::KeyNormWeight => vec![config.head_size],
                LayerSlot::OutputWeight => vec![hidden, config.attention_width()],
                LayerSlot::GateWeight | LayerSlot::UpWeight => vec![config.intermediate, hidden],
                LayerSlot::UpBias => vec![config.intermediate],
                LayerSlot::DownWeight => vec![hidden, config.intermediate],
            },
        }
    }

    /// Whether the tensor is a matrix that a product reads (the embedding and the head too).
    pub fn is_matrix(self) -> bool {
        matches!(
            self,
            Self::Embedding
                | Self::Head
                | Self::Layer(
                    _,
                    LayerSlot::QueryKeyValueWeight
                        | LayerSlot::OutputWeight
                        | LayerSlot::GateWeight
                        | LayerSlot::UpWeight
                        | LayerSlot::DownWeight
                )
        )
    }
}

/// In what a matrix is kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The type in which it was published.
    #[default]
    Published,
    /// 32-bit floats: what is trained is kept so.
    F32,
    /// Brain floats.
    Bf16,
    /// Half floats.
    F16,
    /// 8 bits an element; each 32 elements of a row share a scale. The values are those of GGUF's `Q8_0`.
    Bits8,
    /// 4 bits an element, as NormalFloat; each 64 elements of a row share a scale (QLoRA, Dettmers et al. 2023). The
    /// values are those of bitsandbytes' `nf4` without double quantisation, wherever 64 divides the row's length.
    Nf4,
}

impl Precision {
    /// Bytes of so many elements; what is published is taken to be 32-bit floats.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Published | Self::F32 => 4 * elements,
            Self::Bf16 | Self::F16 => 2 * elements,
            // A scale of 4 bytes for 32 elements of one byte, and for 64 of half a byte.
            Self::Bits8 => elements + elements / 8,
            Self::Nf4 => elements / 2 + elements / 16,
        }
    }

    /// In what the matrix at `slot` is kept where this is asked for: 8 and 4 bits are for the blocks' products, and
    /// leave the embedding and the head as they were published, as bitsandbytes does.
    pub fn of(self, slot: Slot) -> Self {
        match (self, slot) {
            (Self::Bits8 | Self::Nf4, Slot::Embedding | Slot::Head) => Self::Published,
            _ => self,
        }
    }
}

/// A tensor in the host's memory, in the type in which it was published.
#[derive(Clone, Debug)]
pub struct HostTensor<'a> {
    /// `[rows, columns]` or `[length]`
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: HostData<'a>,
}

/// Elements of a [`HostTensor`].
#[derive(Clone, Debug)]
pub enum HostData<'a> {
    /// 32-bit floats.
    F32(Cow<'a, [f32]>),
    /// Brain floats.
    Bf16(Cow<'a, [bf16]>),
    /// Half floats.
    F16(Cow<'a, [f16]>),
}

impl HostTensor<'_> {
    /// The elements widened to 32-bit floats; loses nothing.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            HostData::F32(data) => data.to_vec(),
            HostData::Bf16(data) => data.iter().map(|x| x.to_f32()).collect(),
            HostData::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
        }
    }
}
