//! Gemma 3 (Gemma Team 2025), the decoders of text alone: Gemma with norms after attention and the feed-forward layer and
//! on queries and keys, and blocks of two kinds, whose rotary embeddings have bases of their own.

use engine::decoder::config::{Activation, DecoderConfig, Head, LocalAttention, Position};
use engine::decoder::weights::{LayerSlot, Slot};
use serde_json::Value;

use super::rotary::{self, Published};
use super::{Family, Part, Parts, llama};
use crate::error::Result;
use crate::keys::Keys;

/// What `layer_types` calls a block whose attention is local.
const LOCAL: &str = "sliding_attention";

/// What it calls the others.
const GLOBAL: &str = "full_attention";

/// `config.json`.
pub(super) fn read(keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<DecoderConfig> {
    if let Some(activation) = keys.text("hidden_activation")?
        && activation != "gelu_pytorch_tanh"
    {
        return Err(keys.unsupported("hidden_activation", &activation.into(), "gelu_pytorch_tanh"));
    }
    keys.only("use_bidirectional_attention", &false.into())?;
    let config = llama::skeleton(Family::Gemma3, keys, notes)?;
    let (global, local) = rotaries(keys, notes)?;
    let angles =
        |published: &Published| rotary::position(config.head_size, published.base, published.scaling);
    let Position::Rotary { frequencies, .. } = angles(&local) else { unreachable!("angles are rotary") };
    let bias = keys.flag("attention_bias", false)?;
    let window = keys.count(&["sliding_window"])?.unwrap_or(4096);
    let scalar = keys.positive(&["query_pre_attn_scalar"], 256.0)?;
    Ok(DecoderConfig {
        activation: Activation::GeGluTanh,
        embedding_scale: (config.hidden as f32).sqrt(),
        head: if keys.flag("tie_word_embeddings", true)? { Head::Tied } else { Head::Free },
        position: angles(&global),
        query_key_value_bias: bias,
        output_bias: bias,
        query_key_norm: true,
        output_norms: true,
        attention_scale: Some(scalar.powf(-0.5) as f32),
        local: Some(LocalAttention { layers: local_layers(keys, config.layers)?, window, frequencies }),
        ..config
    })
}

/// The rotary embeddings of the two kinds of blocks, in the keys of transformers 5 or before.
fn rotaries(keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<(Published, Published)> {
    let default = Published { base: 1_000_000.0, share: 1.0, scaling: rotary::Scaling::None };
    if let Some(parameters) = keys.object("rope_parameters")? {
        let of = |kind: &str, base: f64, notes: &mut Vec<String>| {
            let given = parameters.object(kind)?;
            let given = given.map(|given| rotary::read_parameters(&given, keys, base, notes)).transpose()?;
            Ok(given.unwrap_or(Published { base, ..default }))
        };
        return Ok((of(GLOBAL, default.base, notes)?, of(LOCAL, 10_000.0, notes)?));
    }
    let base = keys.positive(&["rope_theta"], default.base)?;
    let scaling = keys.object("rope_scaling")?;
    let global = match scaling {
        Some(given) => rotary::read_parameters(&given, keys, base, notes)?,
        None => Published { base, ..default },
    };
    Ok((global, Published { base: keys.positive(&["rope_local_base_freq"], 10_000.0)?, ..default }))
}

/// Which blocks' attention is local: as `layer_types` lists them, or all but every sixth.
fn local_layers(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>> {
    let every = keys.count(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(6);
    let Some(value) = keys.get("layer_types") else {
        return Ok((1..=layers).map(|number| !number.is_multiple_of(every)).collect());
    };
    let kinds = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let local = |kind: &Value| match kind.as_str() {
        Some(LOCAL) => Some(true),
        Some(GLOBAL) => Some(false),
        _ => None,
    };
    let found: Option<Vec<bool>> = kinds.iter().map(local).collect();
    let expected = format!("{layers} times {LOCAL} or {GLOBAL}");
    found.filter(|found| found.len() == layers).ok_or_else(|| keys.bad("layer_types", value, &expected))
}

/// Tensor names: LLaMA's, but for the norms, which are stored less one.
pub(super) fn parts(config: &DecoderConfig, slot: Slot) -> Parts {
    let Slot::Layer(layer, of_layer) = slot else {
        let offset = if slot == Slot::FinalNormWeight { 1.0 } else { 0.0 };
        return Parts { offset, ..llama::parts(config, slot) };
    };
    let norm = match of_layer {
        LayerSlot::AttentionNormWeight => "input_layernorm",
        LayerSlot::QueryNormWeight => "self_attn.q_norm",
        LayerSlot::KeyNormWeight => "self_attn.k_norm",
        LayerSlot::AttentionOutputNormWeight => "post_attention_layernorm",
        LayerSlot::FeedForwardNormWeight => "pre_feedforward_layernorm",
        LayerSlot::FeedForwardOutputNormWeight => "post_feedforward_layernorm",
        _ => return llama::parts(config, slot),
    };
    let part = Part::plain(format!("model.layers.{layer}.{norm}.weight"), slot.shape(config)[0]);
    Parts { parts: vec![part], offset: 1.0 }
}
