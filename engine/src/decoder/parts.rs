//! The decoder in parts, each with a forward and a backward that can be called by themselves: full tuning whose weights
//! are not all in one place has those of a part there while it computes with them.
//!
//! A step is the forward of the embedding and of the blocks in their order, then the backward of all parts in the
//! opposite order, which begins with the head: its losses and gradients are computed in one go. That is what
//! [`Decoder::step`] does where all weights are there. What passes from part to part is in the workspace.

use super::backward::Sink;
use super::config::{DecoderConfig, Head};
use super::forward::{Attend, Pass};
use super::weights::{Slot, slots};
use super::{Decoder, Gradients};
use crate::arena::Workspace;
use crate::batch::Batch;

use crate::kernels::Kernels;

/// A stretch of a decoder that reads weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The embedding table, and BLOOM's norm behind it.
    Embedding,
    /// A block, by its number.
    Block(usize),
    /// The final norm and the head.
    Head,
}

impl Part {
    /// All parts, in the order in which data flows through them.
    pub fn all(config: &DecoderConfig) -> Vec<Self> {
        let blocks = (0..config.layers).map(Self::Block);
        [Self::Embedding].into_iter().chain(blocks).chain([Self::Head]).collect()
    }

    /// The weights that the part reads. A tied head's are the embedding's: that slot is in two parts.
    pub fn slots(self, config: &DecoderConfig) -> Vec<Slot> {
        slots(config)
            .into_iter()
            .filter(|slot| match slot {
                Slot::Embedding => {
                    self == Self::Embedding || (self == Self::Head && config.head == Head::Tied)
                }
                Slot::EmbeddingNormWeight | Slot::EmbeddingNormBias => self == Self::Embedding,
                Slot::Layer(layer, _) => self == Self::Block(*layer),
                Slot::FinalNormWeight | Slot::FinalNormBias | Slot::Head => self == Self::Head,
            })
            .collect()
    }
}

impl<K: Kernels> Decoder<K> {
    /// A part's forward, after those of the parts before it: the losses of the supervised rows at the head, nothing
    /// before.
    pub fn part_forward(&self, part: Part, batch: &Batch, workspace: &mut Workspace<K>) -> Vec<f32> {
        let pass = Pass::evaluation(batch, &[]);
        match part {
            Part::Embedding => self.embed(&pass, workspace),
            Part::Block(layer) => {
                self.block_forward(layer, &pass, &mut Attend::Packed(&batch.sequences), workspace);
            }
            Part::Head => return self.head_forward(batch, workspace),
        }
        Vec::new()
    }

    /// A part's backward, after those of the parts behind it: adds to the gradients of the part's weights. The head's, which
    /// comes first, has its forward in it, and gives the losses; `scale` is as in [`Decoder::step`]. The batch has a
    /// supervised row.
    pub fn part_backward(
        &self,
        part: Part,
        batch: &Batch,
        scale: f32,
        gradients: &mut Gradients<K>,
        workspace: &mut Workspace<K>,
    ) -> Vec<f32> {
        let (pass, mut sink) = (Pass::evaluation(batch, &[]), Sink { adapter: None, full: Some(gradients) });
        match part {
            Part::Embedding => self.embed_backward(batch, &mut sink, workspace),
            Part::Block(layer) => self.block_step(layer, false, &pass, batch, &mut sink, workspace),
            Part::Head => return self.head_step(batch, scale, &mut sink, workspace),
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::config::{Activation, Norm, NormKind, Position, Residual};

    #[test]
    fn each_weight_is_in_one_part_and_a_tied_embedding_in_two() {
        for head in [Head::Tied, Head::Free, Head::Normalised] {
            let config = DecoderConfig {
                vocabulary: 30,
                hidden: 8,
                layers: 3,
                heads: 2,
                key_value_heads: 2,
                head_size: 4,
                intermediate: 16,
                norm: Norm { kind: NormKind::Layer, epsilon: 1e-5 },
                position: Position::Alibi,
                residual: Residual::Sequential,
                activation: Activation::GeluTanh,
                embedding_norm: true,
                embedding_scale: 1.0,
                head,
                query_key_value_bias: true,
                output_bias: true,
                feed_forward_bias: true,
                query_key_norm: false,
                output_norms: false,
                attention_scale: None,
                local: None,
                max_positions: 64,
            };
            let parts = Part::all(&config);
            assert_eq!(parts.len(), config.layers + 2);
            for slot in slots(&config) {
                let found = parts.iter().filter(|part| part.slots(&config).contains(&slot)).count();
                let expected = if slot == Slot::Embedding && head == Head::Tied { 2 } else { 1 };
                assert_eq!(found, expected, "{slot:?}");
            }
        }
    }
}
