//! Gemma, first version (Mesnard et al. 2024): LLaMA with a gated GELU, a scaled embedding, and norms stored less one.

use engine::decoder::config::{Activation, DecoderConfig, Head};
use engine::decoder::weights::{LayerSlot, Slot};

use super::{Family, Parts, llama};
use crate::error::Result;
use crate::keys::Keys;

/// `config.json`.
pub(super) fn read(keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<DecoderConfig> {
    // The first configurations said `hidden_act: gelu` where the tanh form was meant and is computed by transformers.
    let legacy = keys.text("hidden_act")?;
    if let Some(activation) = keys.text("hidden_activation")?.or(legacy)
        && !["gelu", "gelu_pytorch_tanh"].contains(&activation)
    {
        return Err(keys.unsupported("hidden_activation", &activation.into(), "gelu_pytorch_tanh"));
    }
    keys.only("use_bidirectional_attention", &false.into())?;
    let config = llama::skeleton(Family::Gemma, keys, notes)?;
    let bias = keys.flag("attention_bias", false)?;
    Ok(DecoderConfig {
        activation: Activation::GeGluTanh,
        embedding_scale: (config.hidden as f32).sqrt(),
        head: if keys.flag("tie_word_embeddings", true)? { Head::Tied } else { Head::Free },
        query_key_value_bias: bias,
        output_bias: bias,
        ..config
    })
}

/// Tensor names: LLaMA's.
pub(super) fn parts(config: &DecoderConfig, slot: Slot) -> Parts {
    let norm = matches!(
        slot,
        Slot::FinalNormWeight
            | Slot::Layer(_, LayerSlot::AttentionNormWeight | LayerSlot::FeedForwardNormWeight)
    );
    Parts { offset: if norm { 1.0 } else { 0.0 }, ..llama::parts(config, slot) }
}
