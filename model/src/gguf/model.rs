//! GGUF's keys and tensor names, to the decoder's configuration and slots.

use std::collections::HashSet;

use engine::decoder::config::{Activation, DecoderConfig, Head, Norm, NormKind, Position, Residual};
use engine::decoder::weights::{LayerSlot, Slot, slots};
use serde_json::{Value, json};

use super::Gguf;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::families::{self, Family, Order, Part, Parts, Published, Scaling};
use crate::stored::TensorFile;
use crate::tokenizer::Tokenizer;

/// Keys (after the architecture's name) that change the arithmetic in ways that the decoder does not have.
const NOT_COMPUTED: [&str; 9] = [
    "expert_count",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "attention.scale",
    "attention.clamp_kqv",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention.sliding_window_pattern",
];

/// LLaMA 3's stretched waves, as divisors of the frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Gguf {
    fn family(&self) -> Result<Family> {
        let named = self.text("general.architecture")?;
        Ok(match named {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gptneox" => Family::GptNeox,
            "bloom" => Family::Bloom,
            "baichuan" => Family::Baichuan,
            "gemma" => Family::Gemma,
            other => {
                return Err(Error::Unsupported {
                    path: self.path().to_owned(),
                    key: "general.architecture".to_owned(),
                    found: format!("`{other}`"),
                    expected: "one of llama, qwen2, qwen3, gptneox, bloom, baichuan, gemma".to_owned(),
                });
            }
        })
    }

    /// What the file's keys mean.
    pub(crate) fn published(&self) -> Result<Published> {
        let family = self.family()?;
        let name = self.text("general.architecture")?.to_owned();
        let key = |rest: &str| format!("{name}.{rest}");
        for rest in NOT_COMPUTED {
            if let Some(found) = self.metadata.get(&key(rest)).filter(|found| found.unsigned() != Some(0)) {
                return Err(Error::Unsupported {
                    path: self.path().to_owned(),
                    key: key(rest),
                    found: found.brief(),
                    expected: "a model without it".to_owned(),
                });
            }
        }
        let hidden = self.count(&key("embedding_length"))?;
        let heads = self.count(&key("attention.head_count"))?;
        let key_value_heads = self.optional_count(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let head_size = match self.optional_count(&key("attention.key_length"))? {
            Some(head_size) => head_size,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(self.bad(&key("attention.head_count"), &format!("a divisor of {hidden}"))),
        };
        let layer_norm = matches!(family, Family::GptNeox | Family::Bloom);
        let epsilon =
            if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        let vocabulary = match self.tensors.get("token_embd.weight") {
            Some(stored) => stored.shape[0],
            None => return Err(self.missing_tensor("token_embd.weight", vec![hidden])),
        };
        let alibi = family == Family::Bloom
            || (family == Family::Baichuan && hidden == families::BAICHUAN_ALIBI_HIDDEN);
        let parallel = family == Family::GptNeox && self.flag(&key("use_parallel_residual"))?.unwrap_or(true);
        let config = DecoderConfig {
            vocabulary,
            hidden,
            layers: self.count(&key("block_count"))?,
            heads,
            key_value_heads,
            head_size,
            intermediate: self.count(&key("feed_forward_length"))?,
            norm: Norm {
                kind: if layer_norm { NormKind::Layer } else { NormKind::Rms },
                epsilon: self.number(&key(epsilon))?.ok_or_else(|| self.missing(&key(epsilon)))? as f32,
            },
            position: if alibi { Position::Alibi } else { self.rotary(&name, head_size)? },
            residual: if parallel { Residual::Parallel } else { Residual::Sequential },
            activation: match family {
                Family::GptNeox => Activation::GeluErf,
                Family::Bloom => Activation::GeluTanh,
                Family::Gemma => Activation::GeGluTanh,
                _ => Activation::SwiGlu,
            },
            embedding_norm: family == Family::Bloom,
            embedding_scale: if family == Family::Gemma { (hidden as f32).sqrt() } else { 1.0 },
            head: if !self.has("output.weight") {
                Head::Tied
            } else if family == Family::Baichuan && vocabulary == families::BAICHUAN_SECOND_VERSION_VOCABULARY
            {
                Head::Normalised
            } else {
                Head::Free
            },
            query_key_value_bias: self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias"),
            output_bias: self.has("blk.0.attn_output.bias"),
            feed_forward_bias: self.has("blk.0.ffn_up.bias"),
            query_key_norm: self.has("blk.0.attn_q_norm.weight"),
            output_norms: false,
            attention_scale: None,
            local: None,
            max_positions: self.optional_count(&key("context_length"))?.unwrap_or(2048),
        };
        families::check(self.path(), &config)?;
        let mut notes = Vec::new();
        let mut config = config;
        if let Some(window) = self.optional_count(&key("attention.sliding_window"))?
            && window < config.max_positions
        {
            notes.push(format!(
                "{}: attention slides over {window} tokens; longer sequences are not supported",
                self.path().display()
            ));
            config.max_positions = window;
        }
        Ok(Published { family, config, notes })
    }

    fn rope(&self, name: &str) -> Result<(f64, Scaling)> {
        let key = |rest: &str| format!("{name}.rope.{rest}");
        let base = self.positive(&key("freq_base"))?.unwrap_or(10_000.0);
        let scaling = match self.metadata.get(&key("scaling.type")) {
            None => match self.number(&key("scale_linear"))? {
                Some(factor) if factor > 0.0 => Scaling::Linear { factor },
                _ => Scaling::None,
            },
            Some(Metadata::Text(kind)) if kind == "none" => Scaling::None,
            Some(Metadata::Text(kind)) if kind == "linear" => {
                let factor = self.positive(&key("scaling.factor"))?;
                Scaling::Linear { factor: factor.ok_or_else(|| self.missing(&key("scaling.factor")))? }
            }
            Some(other) => {
                return Err(Error::Unsupported {
                    path: self.path().to_owned(),
                    key: key("scaling.type"),
                    found: other.brief(),
                    expected: "none or linear".to_owned(),
                });
            }
        };
        Ok((base, scaling))
    }

    fn rotary(&self, name: &str, head_size: usize) -> Result<Position> {
        let rotated = self.rotated(name, head_size)?;
        let (base, scaling) = self.rope(name)?;
        let mut position = families::rotary_position(rotated, base, scaling);
        if let (Some(factors), Position::Rotary { frequencies, .. }) =
            (self.tensor(ROPE_FACTORS)?, &mut position)
        {
            let (found, expected) = (factors.shape.clone(), vec![frequencies.len()]);
            if found != expected {
                let (path, tensor) = (self.path().to_owned(), ROPE_FACTORS.to_owned());
                return Err(Error::Shape { path, tensor, found, expected });
            }
            for (frequency, factor) in frequencies.iter_mut().zip(factors.to_f32()) {
                *frequency /= factor;
            }
        }
        Ok(position)
    }

    fn rotated(&self, name: &str, head_size: usize) -> Result<usize> {
        let key = format!("{name}.rope.dimension_count");
        let rotated = self.optional_count(&key)?.unwrap_or(head_size);
        if rotated % 2 != 0 || rotated == 0 || rotated > head_size {
            return Err(self.bad(&key, &format!("an even number up to the head size {head_size}")));
        }
        Ok(rotated)
    }

    /// The tensors that fill a slot.
    pub(crate) fn parts(&self, published: &Published, slot: Slot) -> Parts {
        let fused = match slot {
            Slot::Layer(layer, LayerSlot::QueryKeyValueWeight) => {
                self.has(&format!("blk.{layer}.attn_qkv.weight"))
            }
            Slot::Layer(layer, LayerSlot::QueryKeyValueBias) => {
                self.has(&format!("blk.{layer}.attn_qkv.bias"))
            }
            _ => false,
        };
        parts(published.family, &published.config, fused, slot)
    }

    /// The base of the rotary angles, before they are stretched.
    pub(crate) fn rotary_base(&self) -> Result<f64> {
        Ok(self.rope(self.text("general.architecture")?)?.0)
    }

    /// All keys that describe the tokenizer.
    pub(super) fn tokenizer_keys(&self) -> Vec<(String, Metadata)> {
        let keys = self.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer."));
        let mut keys: Vec<_> = keys.map(|(key, value)| (key.clone(), value.clone())).collect();
        keys.sort_by(|(a, _), (b, _)| a.cmp(b));
        keys
    }

    /// Every slot is filled in the right shape, and nothing is left over.
    pub(crate) fn check_tensors(&self, published: &Published) -> Result<()> {
        let config = &published.config;
        let mut used = HashSet::from([ROPE_FACTORS.to_owned()]);
        for slot in slots(config) {
            let shape = slot.shape(config);
            for part in self.parts(published, slot).parts {
                let expected: Vec<usize> = [&[part.rows], &shape[1..]].concat();
                let Some(stored) = self.tensors.get(&part.name) else {
                    return Err(self.missing_tensor(&part.name, expected));
                };
                if stored.shape != expected {
                    let (path, found) = (self.path().to_owned(), stored.shape.clone());
                    return Err(Error::Shape { path, tensor: part.name, found, expected });
                }
                used.insert(part.name);
            }
        }
        let left = self.tensors.keys().filter(|name| !used.contains(*name)).min();
        match left {
            None => Ok(()),
            Some(name) => Err(Error::UnexpectedTensor { path: self.path().to_owned(), tensor: name.clone() }),
        }
    }

    /// A `config.json` that says what the file's keys say, for saving the model as a Hugging Face folder.
    pub(crate) fn config_json(&self, published: &Published, tokenizer: &Tokenizer) -> Result<Value> {
        let Published { family, config, .. } = published;
        let mut json = families::config_json(*family, config);
        if let Position::Rotary { rotated, .. } = config.position {
            if self.has(ROPE_FACTORS) {
                return Err(Error::Unsupported {
                    path: self.path().to_owned(),
                    key: ROPE_FACTORS.to_owned(),
                    found: "a list of divisors".to_owned(),
                    expected: "none, because config.json has no key for them".to_owned(),
                });
            }
            let (base, scaling) = self.rope(self.text("general.architecture")?)?;
            let mut rope = json!({"rope_theta": base, "rope_type": "default"});
            if rotated != config.head_size {
                rope["partial_rotary_factor"] = (rotated as f64 / config.head_size as f64).into();
            }
            if let Scaling::Linear { factor } = scaling {
                rope["rope_type"] = "linear".into();
                rope["factor"] = factor.into();
            }
            // The old keys beside the new, so that programs of both ages read the same angles.
            json["rope_theta"] = base.into();
            if let Scaling::Linear { factor } = scaling {
                json["rope_scaling"] = json!({"type": "linear", "rope_type": "linear", "factor": factor});
            }
            if *family == Family::GptNeox {
                json["rotary_emb_base"] = base.into();
                json["rotary_pct"] = (rotated as f64 / config.head_size as f64).into();
            }
            json["rope_parameters"] = rope;
        }
        let special = tokenizer.special();
        json["bos_token_id"] = special.bos.into();
        json["eos_token_id"] = special.eos.into();
        json["pad_token_id"] = special.pad.into();
        Ok(json)
    }

    pub(super) fn text(&self, key: &str) -> Result<&str> {
        match self.metadata.get(key) {
            Some(Metadata::Text(text)) => Ok(text),
            Some(_) => Err(self.bad(key, "a string")),
            None => Err(self.missing(key)),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad(key, "true or false")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::Float(number)) if number.is_finite() && *number >= 0.0 => Ok(Some(*number)),
            Some(value) => match value.unsigned() {
                Some(number) => Ok(Some(number as f64)),
                None => Err(self.bad(key, "a number that is not negative")),
            },
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.bad(key, "a number above 0")),
            number => Ok(number),
        }
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        // Some writers give a list with a number for each block.
        let number = match value {
            Metadata::Integers(list) if list.windows(2).all(|pair| pair[0] == pair[1]) => {
                list.first().and_then(|number| u64::try_from(*number).ok())
            }
            value => value.unsigned(),
        };
        match number.filter(|number| (1..=1 << 31).contains(number)) {
            Some(number) => Ok(Some(number as usize)),
            None => Err(self.bad(key, "one whole number from 1 to 2^31")),
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn bad(&self, key: &str, expected: &str) -> Error {
        Error::BadKey {
            path: self.path().to_owned(),
            key: key.to_owned(),
            found: self.metadata.get(key).map_or_else(|| "absent".to_owned(), Metadata::brief),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        let expected = "a value".to_owned();
        Error::MissingKey { path: self.path().to_owned(), key: key.to_owned(), expected }
    }

    fn missing_tensor(&self, tensor: &str, expected: Vec<usize>) -> Error {
        Error::MissingTensor { path: self.path().to_owned(), tensor: tensor.to_owned(), expected }
    }
}

/// The tensors of a GGUF file that fill a slot; `fused`: queries, keys and values are one of them.
pub(super) fn parts(family: Family, config: &DecoderConfig, fused: bool, slot: Slot) -> Parts {
    let plain = |name: &str| vec![Part::plain(name, slot.shape(config)[0])];
    let parts = match slot {
        Slot::Embedding => plain("token_embd.weight"),
        Slot::EmbeddingNormWeight => plain("token_embd_norm.weight"),
        Slot::EmbeddingNormBias => plain("token_embd_norm.bias"),
        Slot::FinalNormWeight => plain("output_norm.weight"),
        Slot::FinalNormBias => plain("output_norm.bias"),
        Slot::Head => plain("output.weight"),
        Slot::Layer(layer, LayerSlot::QueryKeyValueWeight) => {
            query_key_value(family, config, fused, layer, "weight")
        }
        Slot::Layer(layer, LayerSlot::QueryKeyValueBias) => {
            query_key_value(family, config, fused, layer, "bias")
        }
        Slot::Layer(layer, slot) => plain(&format!("blk.{layer}.{}", within(slot))),
    };
    // Gemma's norms are written with their one added.
    Parts { parts, offset: 0.0 }
}

fn query_key_value(
    family: Family,
    config: &DecoderConfig,
    fused: bool,
    layer: usize,
    kind: &str,
) -> Vec<Part> {
    let name = |which: &str| format!("blk.{layer}.attn_{which}.{kind}");
    if fused {
        // Writers of GGUF take the heads of GPT-NeoX and BLOOM apart.
        return vec![Part::plain(name("qkv"), config.query_key_value_rows())];
    }
    let order = match (family, &config.position) {
        // These are rotated in neighbouring pairs by the programs that read GGUF, the others in halves; a Baichuan with
        // ALiBi is written as if it were rotated too.
        (Family::Llama | Family::Mistral, Position::Rotary { rotated, .. }) => {
            Order::Neighbours { head_size: config.head_size, rotated: *rotated }
        }
        (Family::Baichuan, _) => Order::Neighbours { head_size: config.head_size, rotated: config.head_size },
        _ => Order::AsStored,
    };
    let (query, key) = (config.heads * config.head_size, config.key_value_heads * config.head_size);
    vec![
        Part { name: name("q"), rows: query, order },
        Part { name: name("k"), rows: key, order },
        Part::plain(name("v"), key),
    ]
}

fn within(slot: LayerSlot) -> &'static str {
    match slot {
        LayerSlot::AttentionNormWeight => "attn_norm.weight",
        LayerSlot::AttentionNormBias => "attn_norm.bias",
        LayerSlot::QueryKeyValueWeight => "attn_qkv.weight",
        LayerSlot::QueryKeyValueBias => "attn_qkv.bias",
        LayerSlot::QueryNormWeight => "attn_q_norm.weight",
        LayerSlot::KeyNormWeight => "attn_k_norm.weight",
        LayerSlot::OutputWeight => "attn_output.weight",
        LayerSlot::OutputBias => "attn_output.bias",
        LayerSlot::FeedForwardNormWeight => "ffn_norm.weight",
        LayerSlot::FeedForwardNormBias => "ffn_norm.bias",
        LayerSlot::GateWeight => "ffn_gate.weight",
        LayerSlot::UpWeight => "ffn_up.weight",
        LayerSlot::UpBias => "ffn_up.bias",
        LayerSlot::DownWeight => "ffn_down.weight",
        LayerSlot::DownBias => "ffn_down.bias",
        LayerSlot::AttentionOutputNormWeight => "post_attention_norm.weight",
        LayerSlot::FeedForwardOutputNormWeight => "post_ffw_norm.weight",
    }
}
