//! LLaMA (Touvron et al. 2023) and the families that share its files: Mistral, Qwen2, Qwen3.

use engine::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind, Residual};
use engine::decoder::lora::Linear;
use engine::decoder::weights::{LayerSlot, Slot};
use serde_json::{Value, json};

use super::{Family, Module, Order, Part, Parts, divided, rotary};
use crate::error::Result;
use crate::keys::Keys;

/// `config.json` of LLaMA, Mistral, Qwen2 and Qwen3.
pub(super) fn read(family: Family, keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<DecoderConfig> {
    keys.only("mlp_bias", &json!(false))?;
    if let Some(activation) = keys.text("hidden_act")?
        && !["silu", "swish"].contains(&activation)
    {
        return Err(keys.unsupported("hidden_act", &activation.into(), "silu"));
    }
    let attention_bias = match family {
        Family::Qwen2 => true,
        _ => keys.flag("attention_bias", false)?,
    };
    Ok(DecoderConfig {
        activation: Activation::SwiGlu,
        head: if keys.flag("tie_word_embeddings", false)? { Head::Tied } else { Head::Free },
        query_key_value_bias: attention_bias,
        // Qwen2 has no bias here, though it has them on query, key and value.
        output_bias: attention_bias && family != Family::Qwen2,
        query_key_norm: family == Family::Qwen3,
        ..skeleton(family, keys, notes)?
    })
}

/// What LLaMA shares with Gemma and Baichuan too: sizes, RMS norm, rotary positions.
pub(super) fn skeleton(family: Family, keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<DecoderConfig> {
    let hidden = keys.required_count(&["hidden_size"])?;
    let heads = keys.required_count(&["num_attention_heads"])?;
    let key_value_heads = keys.count(&["num_key_value_heads"])?.unwrap_or(heads);
    let head_size = match keys.count(&["head_dim"])? {
        Some(head_size) => head_size,
        None => match family {
            // The default of its configuration class, whatever the hidden size.
            Family::Qwen3 => 128,
            Family::Gemma | Family::Gemma3 => 256,
            _ => divided(keys, hidden, heads)?,
        },
    };
    // Gemma 3 has two, which it reads itself.
    let position = if family == Family::Gemma3 {
        rotary::position(head_size, 1.0, rotary::Scaling::None)
    } else {
        let rope = rotary::read(keys, &["rope_theta"], &["partial_rotary_factor"], 1.0, notes)?;
        rotary::position((head_size as f64 * rope.share) as usize, rope.base, rope.scaling)
    };
    let max_positions = keys.count(&["max_position_embeddings"])?.unwrap_or(2048);
    Ok(DecoderConfig {
        vocabulary: keys.required_count(&["vocab_size"])?,
        hidden,
        layers: keys.required_count(&["num_hidden_layers"])?,
        heads,
        key_value_heads,
        head_size,
        intermediate: keys.required_count(&["intermediate_size"])?,
        norm: Norm { kind: NormKind::Rms, epsilon: keys.positive(&["rms_norm_eps"], 1e-6)? as f32 },
        position,
        residual: Residual::Sequential,
        activation: Activation::SwiGlu,
        embedding_norm: false,
        embedding_scale: 1.0,
        head: Head::Free,
        query_key_value_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        query_key_norm: false,
        output_norms: false,
        attention_scale: None,
        local: None,
        max_positions: within_window(family, keys, max_positions, notes)?,
    })
}

/// Full attention equals sliding attention on sequences no longer than the window, so the window is a limit.
fn within_window(
    family: Family,
    keys: &Keys<'_>,
    max_positions: usize,
    notes: &mut Vec<String>,
) -> Result<usize> {
    let window = keys.count(&["sliding_window"])?;
    if family == Family::Gemma3 {
        // Its local blocks are computed as what they are.
        return Ok(max_positions);
    }
    let in_use = match family {
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => keys.flag("use_sliding_window", false)?,
        _ => false,
    } || keys
        .get("layer_types")
        .and_then(Value::as_array)
        .is_some_and(|kinds| kinds.iter().any(|kind| kind != "full_attention"));
    match window {
        Some(window) if in_use && window < max_positions => {
            notes.push(format!(
                "{}: attention slides over {window} tokens; longer sequences are not supported",
                keys.path().display()
            ));
            Ok(window)
        }
        _ => Ok(max_positions),
    }
}

/// Tensor names.
pub(super) fn parts(config: &DecoderConfig, slot: Slot) -> Parts {
    let query_rows = config.heads * config.head_size;
    let key_rows = config.key_value_heads * config.head_size;
    let three = |layer: usize, kind: &str| {
        [("q", query_rows), ("k", key_rows), ("v", key_rows)]
            .map(|(which, rows)| {
                Part::plain(format!("model.layers.{layer}.self_attn.{which}_proj.{kind}"), rows)
            })
            .to_vec()
    };
    let parts = match slot {
        Slot::Layer(layer, LayerSlot::QueryKeyValueWeight) => three(layer, "weight"),
        Slot::Layer(layer, LayerSlot::QueryKeyValueBias) => three(layer, "bias"),
        _ => vec![Part::plain(name(slot), slot.shape(config)[0])],
    };
    Parts { parts, offset: 0.0 }
}

/// The name of a slot that is one tensor.
pub(super) fn name(slot: Slot) -> String {
    let (layer, slot) = match slot {
        Slot::Embedding => return "model.embed_tokens.weight".to_owned(),
        Slot::EmbeddingNormWeight => return "model.embed_norm.weight".to_owned(),
        Slot::EmbeddingNormBias => return "model.embed_norm.bias".to_owned(),
        Slot::FinalNormWeight => return "model.norm.weight".to_owned(),
        Slot::FinalNormBias => return "model.norm.bias".to_owned(),
        Slot::Head => return "lm_head.weight".to_owned(),
        Slot::Layer(layer, slot) => (layer, slot),
    };
    let within = match slot {
        LayerSlot::AttentionNormWeight => "input_layernorm.weight",
        LayerSlot::AttentionNormBias => "input_layernorm.bias",
        LayerSlot::QueryKeyValueWeight => "self_attn.W_pack.weight",
        LayerSlot::QueryKeyValueBias => "self_attn.W_pack.bias",
        LayerSlot::QueryNormWeight => "self_attn.q_norm.weight",
        LayerSlot::KeyNormWeight => "self_attn.k_norm.weight",
        LayerSlot::OutputWeight => "self_attn.o_proj.weight",
        LayerSlot::OutputBias => "self_attn.o_proj.bias",
        LayerSlot::FeedForwardNormWeight => "post_attention_layernorm.weight",
        LayerSlot::FeedForwardNormBias => "post_attention_layernorm.bias",
        LayerSlot::GateWeight => "mlp.gate_proj.weight",
        LayerSlot::UpWeight => "mlp.up_proj.weight",
        LayerSlot::UpBias => "mlp.up_proj.bias",
        LayerSlot::DownWeight => "mlp.down_proj.weight",
        LayerSlot::DownBias => "mlp.down_proj.bias",
        LayerSlot::AttentionOutputNormWeight => "self_attn.o_norm.weight",
        LayerSlot::FeedForwardOutputNormWeight => "mlp.down_norm.weight",
    };
    format!("model.layers.{layer}.{within}")
}

/// PEFT's modules.
pub(super) fn modules(config: &DecoderConfig, layer: usize) -> Vec<Module> {
    let query_rows = config.heads * config.head_size;
    let key_rows = config.key_value_heads * config.head_size;
    let mut modules = Vec::new();
    let mut first_row = 0;
    for (name, rows) in [("q_proj", query_rows), ("k_proj", key_rows), ("v_proj", key_rows)] {
        modules.push(Module {
            name: format!("model.layers.{layer}.self_attn.{name}"),
            layer,
            linear: Linear::QueryKeyValue,
            first_row,
            rows,
            inputs: config.hidden,
            order: Order::AsStored,
        });
        first_row += rows;
    }
    modules.extend(other_modules(config, layer));
    modules
}

/// All modules but query, key and value.
pub(super) fn other_modules(config: &DecoderConfig, layer: usize) -> Vec<Module> {
    [
        ("self_attn.o_proj", Linear::Output, config.hidden, config.attention_width()),
        ("mlp.gate_proj", Linear::Gate, config.intermediate, config.hidden),
        ("mlp.up_proj", Linear::Up, config.intermediate, config.hidden),
        ("mlp.down_proj", Linear::Down, config.hidden, config.intermediate),
    ]
    .map(|(name, linear, rows, inputs)| Module {
        name: format!("model.layers.{layer}.{name}"),
        layer,
        linear,
        first_row: 0,
        rows,
        inputs,
        order: Order::AsStored,
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::decoder::config::Position;

    use super::*;

    fn small(extra: Value) -> Value {
        let mut config = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
        });
        if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
            config.extend(extra.clone());
        }
        config
    }

    fn read(extra: Value) -> Result<super::super::Published> {
        Family::read_config(Path::new("config.json"), &small(extra))
    }

    #[test]
    fn old_and_new_rotary_keys_mean_the_same() {
        let old =
            read(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
        let new = read(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}));
        assert_eq!(old.config, new.unwrap().config);
        assert!(old.notes.is_empty(), "{:?}", old.notes);
    }

    #[test]
    fn llama3_scaling_equals_transformers() {
        // transformers 5.23, ROPE_INIT_FUNCTIONS["llama3"] with this configuration.
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 10000.0});
        let config =
            read(json!({"rope_parameters": scaling, "max_position_embeddings": 512})).unwrap().config;
        let Position::Rotary { rotated, frequencies } = config.position else { panic!("not rotary") };
        assert_eq!(rotated, 8);
        for (found, expected) in frequencies.iter().zip(GOLDEN_LLAMA3) {
            // One rounding of f32: powf is not the same function in both.
            assert!((found - expected).abs() <= expected * 2e-7, "{found} {expected}");
        }
    }

    const GOLDEN_LLAMA3: [f32; 4] = [1.0, 0.013_042_256, 0.001_25, 0.000_125];

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (extra, key) in [
            (json!({"hidden_act": "relu"}), "hidden_act"),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "rope_scaling.rope_type"),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"num_attention_heads": 5}), "num_attention_heads"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"hidden_size": "32"}), "hidden_size"),
            (json!({"vocab_size": 0}), "vocab_size"),
            (json!({"vocab_size": 4_000_000_000u64}), "vocab_size"),
        ] {
            let message = read(extra).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
    }

    #[test]
    fn unknown_keys_are_noted_and_windows_limit_the_positions() {
        let published = read(json!({"novelty": 3})).unwrap();
        assert!(published.notes[0].contains("novelty"), "{:?}", published.notes);
        let window = json!({"model_type": "mistral", "sliding_window": 64, "max_position_embeddings": 512});
        assert_eq!(read(window).unwrap().config.max_positions, 64);
    }
}
