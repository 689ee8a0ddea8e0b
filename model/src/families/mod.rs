//! The families: one file each, from the published configuration and tensor names to the decoder's slots.
//!
//! A family says three things: what its `config.json` means ([`Family::read_config`]), which tensors of its files
//! fill a slot ([`Family::parts`]), and what its linear modules are called, which is how PEFT names them
//! ([`Family::modules`]).

mod baichuan;
mod bloom;
mod gemma;
mod gemma3;
mod gpt_neox;
mod llama;
mod published;
mod rotary;

use std::fmt;
use std::path::Path;

use engine::decoder::config::{DecoderConfig, Position};
use engine::decoder::lora::Linear;
use engine::decoder::weights::Slot;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::keys::Keys;

pub(crate) use self::baichuan::{
    ALIBI_HIDDEN as BAICHUAN_ALIBI_HIDDEN, SECOND_VERSION_VOCABULARY as BAICHUAN_SECOND_VERSION_VOCABULARY,
};
pub(crate) use self::published::config_json;
pub(crate) use self::rotary::{Scaling, position as rotary_position};

/// A published family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// LLaMA 1 to 3 and OpenLLaMA, SmolLM, and all that share its files.
    Llama,
    /// Mistral: LLaMA with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: LLaMA with biases on query, key and value.
    Qwen2,
    /// Qwen3: LLaMA with norms on queries and keys.
    Qwen3,
    /// GPT-NeoX and Pythia.
    GptNeox,
    /// BLOOM.
    Bloom,
    /// Baichuan and Baichuan-2.
    Baichuan,
    /// Gemma, first version.
    Gemma,
    /// Gemma 3, the decoders of text alone.
    Gemma3,
}

/// How a file orders the output rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As the decoder does.
    AsStored,
    /// GPT-NeoX and BLOOM: `[head][query, key, value][head_size]` where the decoder has
    /// `[query, key, value][head][head_size]`.
    Interleaved {
        /// Heads of the fused matrix.
        heads: usize,
        /// Width of a head.
        head_size: usize,
    },
    /// GGUF's LLaMA: rotary pairs lie side by side within the rotated dimensions of each head, where the decoder
    /// has all first halves, then all second halves.
    Neighbours {
        /// Width of a head.
        head_size: usize,
        /// How many of a head's first dimensions are rotated.
        rotated: usize,
    },
}

impl Order {
    /// The file's row for the decoder's row `row`.
    pub fn stored_row(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::Interleaved { heads, head_size } => {
                let (part, within) = (row / (heads * head_size), row % (heads * head_size));
                let (head, dimension) = (within / head_size, within % head_size);
                (head * 3 + part) * head_size + dimension
            }
            Self::Neighbours { head_size, rotated } => {
                let (head, dimension) = (row / head_size, row % head_size);
                if dimension >= rotated {
                    return row;
                }
                let (half, pair) = (dimension / (rotated / 2), dimension % (rotated / 2));
                head * head_size + 2 * pair + half
            }
        }
    }
}

/// One tensor of the files; a slot is one of them, or several laid one below the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The tensor's published name.
    pub name: String,
    /// Its first dimension.
    pub rows: usize,
    /// How its rows are ordered.
    pub order: Order,
}

impl Part {
    /// A tensor whose rows are in the decoder's order.
    pub(crate) fn plain(name: impl Into<String>, rows: usize) -> Self {
        Self { name: name.into(), rows, order: Order::AsStored }
    }
}

/// The tensors that fill a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// One below the other.
    pub parts: Vec<Part>,
    /// Added to each element that is read, and taken off when written: Gemma's norms are stored less one.
    pub offset: f32,
}

/// A linear module of a block, as PEFT sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The module's path in the published model, for instance `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The block.
    pub layer: usize,
    /// The decoder's product of which it is a part.
    pub linear: Linear,
    /// Its first output row in that product.
    pub first_row: usize,
    /// Its output rows.
    pub rows: usize,
    /// Its inputs.
    pub inputs: usize,
    /// How its own rows are ordered against the decoder's.
    pub order: Order,
}

/// What a configuration file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The family that `model_type` names.
    pub family: Family,
    /// What the decoder computes.
    pub config: DecoderConfig,
    /// What the user should know: keys that were not used, limits that follow from a key.
    pub notes: Vec<String>,
}

/// Keys of `config.json` that do not bear on a forward pass in inference or in the trainings offered here.
const WITHOUT_BEARING: &[&str] = &[
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "keep_in_fp32_modules",
    "label2id",
    "masked_softmax_fusion",
    "max_window_layers",
    "model_type",
    "offset_alibi",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "seq_length",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "slow_but_exact",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "unk_token_id",
    "use_cache",
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "gradient_checkpointing_use_reentrant",
];

/// Keys that change the arithmetic wherever they are set, whatever their value.
const NOT_COMPUTED: &[&str] = &[
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "residual_multiplier",
    "embedding_multiplier",
    "attention_multiplier",
    "clip_qkv",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "query_pre_attn_scalar",
    "no_rope_layers",
    "kv_lora_rank",
    "attention_sinks",
    "num_nextn_predict_layers",
];

impl Family {
    /// All families.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::GptNeox,
        Self::Bloom,
        Self::Baichuan,
        Self::Gemma,
        Self::Gemma3,
    ];

    /// The name in `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::GptNeox => "gpt_neox",
            Self::Bloom => "bloom",
            Self::Baichuan => "baichuan",
            Self::Gemma => "gemma",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// What a `config.json` means; `path` is for messages.
    ///
    /// # Errors
    /// A key is missing, out of range, or asks for arithmetic that the decoder does not have.
    pub fn read_config(path: &Path, json: &Value) -> Result<Published> {
        let keys = Keys::new(path, json)?;
        let named = keys.text("model_type")?.ok_or_else(|| keys.missing("model_type", &supported()))?;
        let family = Self::ALL.into_iter().find(|family| family.model_type() == named);
        let family = family.ok_or_else(|| keys.unsupported("model_type", &named.into(), &supported()))?;
        let mut notes = Vec::new();
        let config = match family {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => {
                llama::read(family, &keys, &mut notes)?
            }
            Self::GptNeox => gpt_neox::read(&keys, &mut notes)?,
            Self::Bloom => bloom::read(&keys)?,
            Self::Baichuan => baichuan::read(&keys, &mut notes)?,
            Self::Gemma => gemma::read(&keys, &mut notes)?,
            Self::Gemma3 => gemma3::read(&keys, &mut notes)?,
        };
        // What Gemma 3's scores are multiplied by.
        let computed = |key: &str| family == Self::Gemma3 && key == "query_pre_attn_scalar";
        for &key in NOT_COMPUTED.iter().filter(|key| !computed(key)) {
            if let Some(value) = keys.get(key) {
                return Err(keys.unsupported(key, value, "a model without it"));
            }
        }
        // The halves of a head are turned against each other here, and not its neighbours.
        keys.only("rope_interleaved", &json!(false))?;
        keys.ignore(WITHOUT_BEARING);
        for key in keys.unread() {
            notes.push(format!("{}: key `{key}` is not known and was not used", path.display()));
        }
        check(path, &config)?;
        Ok(Published { family, config, notes })
    }

    /// The tensors of a Hugging Face folder that fill `slot`.
    pub fn parts(self, config: &DecoderConfig, slot: Slot) -> Parts {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::parts(config, slot),
            Self::GptNeox => gpt_neox::parts(config, slot),
            Self::Bloom => bloom::parts(config, slot),
            Self::Baichuan => baichuan::parts(config, slot),
            Self::Gemma => gemma::parts(config, slot),
            Self::Gemma3 => gemma3::parts(config, slot),
        }
    }

    /// The linear modules of block `layer`, in the order in which data flows through them.
    pub fn modules(self, config: &DecoderConfig, layer: usize) -> Vec<Module> {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 | Self::Gemma | Self::Gemma3 => {
                llama::modules(config, layer)
            }
            Self::GptNeox => gpt_neox::modules(config, layer),
            Self::Bloom => bloom::modules(config, layer),
            Self::Baichuan => baichuan::modules(config, layer),
        }
    }

    /// The module names to which LoRA is put where the user names none: query, key and value, as in the paper.
    pub fn query_key_value_modules(self) -> &'static [&'static str] {
        match self {
            Self::GptNeox | Self::Bloom => &["query_key_value"],
            Self::Baichuan => &["W_pack"],
            _ => &["q_proj", "k_proj", "v_proj"],
        }
    }

    /// Whether queries, keys and values come from one matrix in the family's files.
    pub fn fuses_attention(self) -> bool {
        self.query_key_value_modules().len() == 1
    }

    /// The prefix that a model saved without its head leaves out of its tensors' names.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::GptNeox => "gpt_neox.",
            Self::Bloom => "transformer.",
            _ => "model.",
        }
    }

    /// Tensors that old versions of transformers saved and that hold constants only, or a tied head's second copy.
    pub(crate) fn is_constant(self, config: &DecoderConfig, tensor: &str) -> bool {
        let tied = config.head == engine::decoder::config::Head::Tied;
        tensor.ends_with(".rotary_emb.inv_freq")
            || (self == Self::GptNeox
                && (tensor.ends_with(".attention.bias") || tensor.ends_with(".attention.masked_bias")))
            || (tied && (tensor == "lm_head.weight" || tensor == "embed_out.weight"))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.model_type())
    }
}

/// The supported families, for messages.
fn supported() -> String {
    let names: Vec<_> = Family::ALL.iter().map(|family| family.model_type()).collect();
    format!("one of {}", names.join(", "))
}

/// Whether the numbers fit together, and no tensor could be beyond an address space.
pub(crate) fn check(path: &Path, config: &DecoderConfig) -> Result<()> {
    let bad = |key: &str, found: String, expected: String| {
        Err(Error::BadKey { path: path.to_owned(), key: key.to_owned(), found, expected })
    };
    // Bounds far above any published model, so that no product below or in the engine can overflow.
    for (key, found, most) in [
        ("vocab_size", config.vocabulary, 1 << 24),
        ("hidden_size", config.hidden, 1 << 20),
        ("intermediate_size", config.intermediate, 1 << 22),
        ("num_hidden_layers", config.layers, 1 << 12),
        ("num_attention_heads", config.heads, 1 << 12),
        ("num_key_value_heads", config.key_value_heads, 1 << 12),
        ("head_dim", config.head_size, 1 << 12),
    ] {
        if !(1..=most).contains(&found) {
            return bad(key, found.to_string(), format!("a number from 1 to {most}"));
        }
    }
    if !config.heads.is_multiple_of(config.key_value_heads) {
        return bad(
            "num_key_value_heads",
            config.key_value_heads.to_string(),
            format!("a divisor of the {} query heads", config.heads),
        );
    }
    if let Position::Rotary { rotated, .. } = config.position
        && (rotated % 2 != 0 || rotated == 0 || rotated > config.head_size)
    {
        return bad(
            "rotary dimensions",
            rotated.to_string(),
            format!("an even number from 2 to the head size {}", config.head_size),
        );
    }
    Ok(())
}

/// `total / parts` where it is whole.
fn divided(keys: &Keys<'_>, total: usize, parts: usize) -> Result<usize> {
    if total.is_multiple_of(parts) {
        return Ok(total / parts);
    }
    Err(keys.bad("num_attention_heads", &parts.into(), &format!("a divisor of the hidden size {total}")))
}
