//! Baichuan and Baichuan-2 (Yang et al. 2023): LLaMA with packed query, key and value; Baichuan-2 scales the rows
//! of its head to length one; the 13B models have ALiBi.

use engine::decoder::config::{DecoderConfig, Head, Position};
use engine::decoder::lora::Linear;
use engine::decoder::weights::Slot;
use serde_json::json;

use super::{Family, Module, Order, Part, Parts, llama};
use crate::error::Result;
use crate::keys::Keys;

/// Rows of Baichuan-2's embedding table; Baichuan's has 64,000.
pub(crate) const SECOND_VERSION_VOCABULARY: usize = 125_696;

/// Width of both 13B models.
pub(crate) const ALIBI_HIDDEN: usize = 5120;

/// `config.json`.
///
/// No key says which version or which position a model has: the published code differs instead. The second version
/// is told by `z_loss_weight`, which only its configuration has, or by its vocabulary; ALiBi by `model_max_length`
/// standing where the 7B models have `max_position_embeddings`, or by the 13B models' width.
/// `position_embedding` (`ROPE` or `ALIBI`) settles it where it is given.
pub(super) fn read(keys: &Keys<'_>, notes: &mut Vec<String>) -> Result<DecoderConfig> {
    if let Some(activation) = keys.text("hidden_act")?
        && activation != "silu"
    {
        return Err(keys.unsupported("hidden_act", &activation.into(), "silu"));
    }
    keys.only("tie_word_embeddings", &json!(false))?;
    let mut config = llama::skeleton(Family::Baichuan, keys, notes)?;
    let length = keys.count(&["model_max_length"])?;
    let alibi = match keys.text("position_embedding")? {
        Some(name) if name.eq_ignore_ascii_case("alibi") => true,
        Some(name) if name.eq_ignore_ascii_case("rope") => false,
        Some(name) => {
            return Err(keys.unsupported("position_embedding", &name.into(), "ROPE or ALIBI"));
        }
        None => {
            config.hidden == ALIBI_HIDDEN
                || (length.is_some() && keys.get("max_position_embeddings").is_none())
        }
    };
    if alibi {
        config.position = Position::Alibi;
    }
    if let (Some(length), None) = (length, keys.get("max_position_embeddings")) {
        config.max_positions = length;
    }
    let second = keys.get("z_loss_weight").is_some() || config.vocabulary == SECOND_VERSION_VOCABULARY;
    config.head = if second { Head::Normalised } else { Head::Free };
    Ok(config)
}

/// Tensor names: LLaMA's, with one packed matrix of queries, keys and values, in the decoder's order.
pub(super) fn parts(config: &DecoderConfig, slot: Slot) -> Parts {
    Parts { parts: vec![Part::plain(llama::name(slot), slot.shape(config)[0])], offset: 0.0 }
}

/// PEFT's modules.
pub(super) fn modules(config: &DecoderConfig, layer: usize) -> Vec<Module> {
    let mut modules = vec![Module {
        name: format!("model.layers.{layer}.self_attn.W_pack"),
        layer,
        linear: Linear::QueryKeyValue,
        first_row: 0,
        rows: config.query_key_value_rows(),
        inputs: config.hidden,
        order: Order::AsStored,
    }];
    modules.extend(llama::other_modules(config, layer));
    modules
}
