//! GPT-NeoX (Black et al. 2022) and Pythia.

use engine::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind, Residual};
use engine::decoder::lora::Linear;
use engine::decoder::weights::{LayerSlot, Slot};

use super::{Module, Order, Part, Parts, divided, rotary};
use crate::error::Result;
use crate::keys::Keys;

/// `config.json`.
pub(super) fn read(keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<DecoderConfig> {
    let hidden = keys.required_count(&["hidden_size"])?;
    let heads = keys.required_count(&["num_attention_heads"])?;
    let head_size = divided(keys, hidden, heads)?;
    let rope = rotary::read(
        keys,
        &["rotary_emb_base", "rope_theta"],
        &["rotary_pct", "partial_rotary_factor"],
        0.25,
        notes,
    )?;
    let rotated = (head_size as f64 * rope.share) as usize;
    let activation = match keys.text("hidden_act")? {
        None | Some("gelu") => Activation::GeluErf,
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(other) => return Err(keys.unsupported("hidden_act", &other.into(), "gelu or gelu_new")),
    };
    let bias = keys.flag("attention_bias", true)?;
    let parallel = keys.flag("use_parallel_residual", true)?;
    Ok(DecoderConfig {
        vocabulary: keys.required_count(&["vocab_size"])?,
        hidden,
        layers: keys.required_count(&["num_hidden_layers"])?,
        heads,
        key_value_heads: heads,
        head_size,
        intermediate: keys.required_count(&["intermediate_size"])?,
        norm: Norm { kind: NormKind::Layer, epsilon: keys.positive(&["layer_norm_eps"], 1e-5)? as f32 },
        position: rotary::position(rotated, rope.base, rope.scaling),
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        activation,
        embedding_norm: false,
        embedding_scale: 1.0,
        head: if keys.flag("tie_word_embeddings", false)? { Head::Tied } else { Head::Free },
        query_key_value_bias: bias,
        output_bias: bias,
        feed_forward_bias: true,
        query_key_norm: false,
        output_norms: false,
        attention_scale: None,
        local: None,
        max_positions: keys.count(&["max_position_embeddings"])?.unwrap_or(2048),
    })
}

/// Tensor names.
pub(super) fn parts(config: &DecoderConfig, slot: Slot) -> Parts {
    let name = match slot {
        Slot::Embedding => "gpt_neox.embed_in.weight".to_owned(),
        Slot::EmbeddingNormWeight => "gpt_neox.embed_norm.weight".to_owned(),
        Slot::EmbeddingNormBias => "gpt_neox.embed_norm.bias".to_owned(),
        Slot::FinalNormWeight => "gpt_neox.final_layer_norm.weight".to_owned(),
        Slot::FinalNormBias => "gpt_neox.final_layer_norm.bias".to_owned(),
        Slot::Head => "embed_out.weight".to_owned(),
        Slot::Layer(layer, slot) => format!("gpt_neox.layers.{layer}.{}", within("attention", slot)),
    };
    fused_parts(config, slot, name)
}

/// One tensor, its rows interleaved by head where it is the fused product.
pub(super) fn fused_parts(config: &DecoderConfig, slot: Slot, name: String) -> Parts {
    let order = match slot {
        Slot::Layer(_, LayerSlot::QueryKeyValueWeight | LayerSlot::QueryKeyValueBias) => fused_order(config),
        _ => Order::AsStored,
    };
    Parts { parts: vec![Part { name, rows: slot.shape(config)[0], order }], offset: 0.0 }
}

fn fused_order(config: &DecoderConfig) -> Order {
    Order::Interleaved { heads: config.heads, head_size: config.head_size }
}

/// Names within a block, which BLOOM shares but for the attention's.
pub(super) fn within(attention: &str, slot: LayerSlot) -> String {
    match slot {
        LayerSlot::AttentionNormWeight => "input_layernorm.weight".to_owned(),
        LayerSlot::AttentionNormBias => "input_layernorm.bias".to_owned(),
        LayerSlot::QueryKeyValueWeight => format!("{attention}.query_key_value.weight"),
        LayerSlot::QueryKeyValueBias => format!("{attention}.query_key_value.bias"),
        LayerSlot::QueryNormWeight => format!("{attention}.q_norm.weight"),
        LayerSlot::KeyNormWeight => format!("{attention}.k_norm.weight"),
        LayerSlot::OutputWeight => format!("{attention}.dense.weight"),
        LayerSlot::OutputBias => format!("{attention}.dense.bias"),
        LayerSlot::FeedForwardNormWeight => "post_attention_layernorm.weight".to_owned(),
        LayerSlot::FeedForwardNormBias => "post_attention_layernorm.bias".to_owned(),
        LayerSlot::GateWeight => "mlp.gate.weight".to_owned(),
        LayerSlot::UpWeight => "mlp.dense_h_to_4h.weight".to_owned(),
        LayerSlot::UpBias => "mlp.dense_h_to_4h.bias".to_owned(),
        LayerSlot::DownWeight => "mlp.dense_4h_to_h.weight".to_owned(),
        LayerSlot::DownBias => "mlp.dense_4h_to_h.bias".to_owned(),
        LayerSlot::AttentionOutputNormWeight => format!("{attention}.dense_norm.weight"),
        LayerSlot::FeedForwardOutputNormWeight => "mlp.dense_norm.weight".to_owned(),
    }
}

/// PEFT's modules.
pub(super) fn modules(config: &DecoderConfig, layer: usize) -> Vec<Module> {
    fused_modules(config, layer, &format!("gpt_neox.layers.{layer}"), "attention")
}

/// The modules of a block with a fused query-key-value product.
pub(super) fn fused_modules(
    config: &DecoderConfig,
    layer: usize,
    block: &str,
    attention: &str,
) -> Vec<Module> {
    let (hidden, wide) = (config.hidden, config.intermediate);
    [
        (
            format!("{attention}.query_key_value"),
            Linear::QueryKeyValue,
            config.query_key_value_rows(),
            hidden,
            fused_order(config),
        ),
        (format!("{attention}.dense"), Linear::Output, hidden, config.attention_width(), Order::AsStored),
        ("mlp.dense_h_to_4h".to_owned(), Linear::Up, wide, hidden, Order::AsStored),
        ("mlp.dense_4h_to_h".to_owned(), Linear::Down, hidden, wide, Order::AsStored),
    ]
    .map(|(name, linear, rows, inputs, order)| Module {
        name: format!("{block}.{name}"),
        layer,
        linear,
        first_row: 0,
        rows,
        inputs,
        order,
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::Family;
    use super::*;

    fn read(extra: Value) -> DecoderConfig {
        let mut config = json!({
            "model_type": "gpt_neox", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu",
        });
        if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
            config.extend(extra.clone());
        }
        Family::read_config(Path::new("config.json"), &config).unwrap().config
    }

    #[test]
    fn old_and_new_rotary_keys_mean_the_same() {
        let old = read(json!({"rotary_pct": 0.5, "rotary_emb_base": 500}));
        let new = read(json!({"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500}}));
        assert_eq!(old, new);
        assert_ne!(old, read(json!({})));
        assert_eq!(old.residual, Residual::Parallel);
        assert_eq!(read(json!({"use_parallel_residual": false})).residual, Residual::Sequential);
    }
}
