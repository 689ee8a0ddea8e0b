//! BLOOM (Scao et al. 2022).

use engine::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind, Position, Residual};
use engine::decoder::weights::Slot;
use serde_json::json;

use super::gpt_neox::{fused_modules, fused_parts, within};
use super::{Module, Parts, divided};
use crate::error::Result;
use crate::keys::Keys;

/// `config.json`.
pub(super) fn read(keys: &Keys<'_>) -> Result<DecoderConfig> {
    keys.only("apply_residual_connection_post_layernorm", &json!(false))?;
    let hidden = keys.required_count(&["hidden_size", "n_embed"])?;
    let heads = keys.required_count(&["n_head", "num_attention_heads"])?;
    Ok(DecoderConfig {
        vocabulary: keys.required_count(&["vocab_size"])?,
        hidden,
        layers: keys.required_count(&["n_layer", "num_hidden_layers"])?,
        heads,
        key_value_heads: heads,
        head_size: divided(keys, hidden, heads)?,
        // Not a key of its configuration: the model's code has it fixed.
        intermediate: 4 * hidden,
        norm: Norm { kind: NormKind::Layer, epsilon: keys.positive(&["layer_norm_epsilon"], 1e-5)? as f32 },
        position: Position::Alibi,
        residual: Residual::Sequential,
        activation: Activation::GeluTanh,
        embedding_norm: true,
        embedding_scale: 1.0,
        head: if keys.flag("tie_word_embeddings", true)? { Head::Tied } else { Head::Free },
        query_key_value_bias: true,
        output_bias: true,
        feed_forward_bias: true,
        query_key_norm: false,
        output_norms: false,
        attention_scale: None,
        local: None,
        max_positions: keys.count(&["seq_length"])?.unwrap_or(2048),
    })
}

/// Tensor names.
pub(super) fn parts(config: &DecoderConfig, slot: Slot) -> Parts {
    let name = match slot {
        Slot::Embedding => "transformer.word_embeddings.weight".to_owned(),
        Slot::EmbeddingNormWeight => "transformer.word_embeddings_layernorm.weight".to_owned(),
        Slot::EmbeddingNormBias => "transformer.word_embeddings_layernorm.bias".to_owned(),
        Slot::FinalNormWeight => "transformer.ln_f.weight".to_owned(),
        Slot::FinalNormBias => "transformer.ln_f.bias".to_owned(),
        Slot::Head => "lm_head.weight".to_owned(),
        Slot::Layer(layer, slot) => format!("transformer.h.{layer}.{}", within("self_attention", slot)),
    };
    fused_parts(config, slot, name)
}

/// PEFT's modules.
pub(super) fn modules(config: &DecoderConfig, layer: usize) -> Vec<Module> {
    fused_modules(config, layer, &format!("transformer.h.{layer}"), "self_attention")
}
