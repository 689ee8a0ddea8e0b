//! A configuration written as the `config.json` of its family, for models that did not come with one.

use engine::decoder::config::{DecoderConfig, Head, NormKind, Position, Residual};
use serde_json::{Value, json};

use super::Family;

/// All but the rotary keys, which the caller knows better than the angles tell.
pub(crate) fn config_json(family: Family, config: &DecoderConfig) -> Value {
    let mut json = json!({
        "architectures": [architecture(family)],
        "model_type": family.model_type(),
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.head == Head::Tied,
        "use_cache": true,
    });
    let mut set = |pairs: Value| {
        if let (Some(json), Value::Object(pairs)) = (json.as_object_mut(), pairs) {
            json.extend(pairs);
        }
    };
    if family == Family::Bloom {
        set(json!({
            "n_layer": config.layers, "n_head": config.heads, "layer_norm_epsilon": decimal(config.norm.epsilon),
            "seq_length": config.max_positions,
        }));
        return json;
    }
    set(json!({
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
    }));
    match family {
        Family::Baichuan if config.position == Position::Alibi => {
            set(json!({"model_max_length": config.max_positions, "position_embedding": "ALIBI"}));
        }
        _ => set(json!({"max_position_embeddings": config.max_positions})),
    }
    if config.head == Head::Normalised {
        set(json!({"z_loss_weight": 0}));
    }
    match config.norm.kind {
        NormKind::Layer => set(json!({"layer_norm_eps": decimal(config.norm.epsilon)})),
        NormKind::Rms => set(json!({"rms_norm_eps": decimal(config.norm.epsilon)})),
    }
    match family {
        Family::GptNeox => set(json!({
            "hidden_act": "gelu", "attention_bias": config.query_key_value_bias,
            "use_parallel_residual": config.residual == Residual::Parallel,
        })),
        Family::Gemma | Family::Gemma3 => {
            set(json!({"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}));
        }
        _ => set(json!({"hidden_act": "silu"})),
    }
    if !matches!(family, Family::GptNeox | Family::Baichuan) {
        set(json!({"num_key_value_heads": config.key_value_heads, "head_dim": config.head_size}));
    }
    if matches!(family, Family::Llama | Family::Qwen3 | Family::Gemma | Family::Gemma3) {
        set(json!({"attention_bias": config.query_key_value_bias}));
    }
    json
}

fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::GptNeox => "GPTNeoXForCausalLM",
        Family::Bloom => "BloomForCausalLM",
        Family::Baichuan => "BaichuanForCausalLM",
        Family::Gemma => "GemmaForCausalLM",
        Family::Gemma3 => "Gemma3ForCausalLM",
    }
}

/// The shortest decimal that is this f32: 1e-5, not 9.999999747378752e-06.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}
