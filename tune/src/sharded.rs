//! Full tuning whose weights, gradients and moments are divided among the processes (ZeRO's third stage, Rajbhandari et
//! al. 2020): each tensor is at its owner alone, and what others own comes as a guest for as long as a part of the decoder
//! computes with it.
//!
//! A guest lives in a room that was made before the first step. Blocks are alike, and so are the embedding table and the
//! head: all tensors of one kind take turns in one room, so that a rank has room for one block and one table beside what it
//! owns. A guest stays until the next one of its kind comes: the last block is not sent again for its backward, nor a tied
//! table for the head.
//!
//! Every rank calls the same collectives in the same order. One that has no micro-batch left takes part in them, and adds
//! gradients of zero.

use std::collections::BTreeMap;

use engine::decoder::config::DecoderConfig;
use engine::decoder::parts::Part;
use engine::decoder::weights::{Slot, slots};
use engine::decoder::{Decoder, Gradients, OwnedWeight};
use engine::kernels::Kernels;
use engine::{Batch, Workspace};

use crate::collective::{Collective, Receivers, deal};
use crate::error::Result;
use crate::trained::{shared, shared_weight};

/// Who owns which of a decoder's tensors.
pub(crate) fn owners(config: &DecoderConfig, world_size: usize) -> BTreeMap<Slot, usize> {
    let slots = slots(config);
    let lengths: Vec<usize> = slots.iter().map(|slot| slot.shape(config).iter().product()).collect();
    let owners = deal(&lengths, world_size);
    slots.into_iter().zip(owners).collect()
}

/// Tensors of one kind have one shape, and are never needed at the same time.
fn kind(slot: Slot) -> Slot {
    match slot {
        Slot::Layer(_, slot) => Slot::Layer(0, slot),
        Slot::Head => Slot::Embedding,
        other => other,
    }
}

/// What a rank has memory for.
pub(crate) struct Held {
    /// The tensors that it owns.
    pub own: Vec<Slot>,
    /// A guest of each kind that comes to it.
    pub guests: Vec<Slot>,
}

impl Held {
    pub(crate) fn by(rank: usize, config: &DecoderConfig, world_size: usize) -> Self {
        let (own, others): (Vec<_>, Vec<_>) =
            owners(config, world_size).into_iter().partition(|(_, owner)| *owner == rank);
        // The last of a kind stands for it: of tables the head, which may be there twice.
        let by_kind: BTreeMap<Slot, Slot> = others.into_iter().map(|(slot, _)| (kind(slot), slot)).collect();
        Self { own: own.into_iter().map(|(slot, _)| slot).collect(), guests: by_kind.into_values().collect() }
    }

    /// All tensors that there is memory for.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Slot> {
        self.own.iter().chain(&self.guests)
    }
}

/// Where one tensor of a kind can be that another rank owns.
struct Room<K: Kernels> {
    /// Which is there, in the decoder.
    guest: Option<Slot>,
    /// Here while there is none.
    weight: Option<OwnedWeight<K>>,
    /// Zeros, and here as long as no backward adds to it.
    gradient: Option<K::Buffer>,
}

/// A rank's part of a decoder that is divided.
pub(crate) struct Sharded<K: Kernels> {
    rank: usize,
    owners: BTreeMap<Slot, usize>,
    /// By kind.
    rooms: BTreeMap<Slot, Room<K>>,
    /// By kind, the tensor whose values every rank has: the same in all of them, whatever they own.
    present: BTreeMap<Slot, Slot>,
}

impl<K: Kernels> Sharded<K> {
    /// Rooms for guests, beside a decoder that has what this rank owns.
    pub(crate) fn new(decoder: &Decoder<K>, collective: &dyn Collective) -> Self {
        let (rank, world_size) = (collective.rank(), collective.world_size());
        let room = |slot: Slot| {
            let (weight, gradient) = decoder.room(slot);
            (kind(slot), Room { guest: None, weight: Some(weight), gradient: Some(gradient) })
        };
        Self {
            rank,
            owners: owners(&decoder.config, world_size),
            rooms: Held::by(rank, &decoder.config, world_size).guests.into_iter().map(room).collect(),
            present: BTreeMap::new(),
        }
    }

    /// Whether this rank owns a tensor.
    pub(crate) fn owns(&self, slot: Slot) -> bool {
        self.owners[&slot] == self.rank
    }

    /// A micro-batch of a training step: its losses. Its gradients, and those of the other ranks' micro-batches, are added
    /// to those of the owners. A rank that has none takes part nevertheless.
    pub(crate) fn step(
        &mut self,
        decoder: &mut Decoder<K>,
        gradients: &mut Gradients<K>,
        collective: &dyn Collective,
        batch: Option<&Batch>,
        scale: f32,
        workspace: &mut Workspace<K>,
    ) -> Result<Vec<f32>> {
        // As Decoder::step: nothing comes of a micro-batch that has no supervised token.
        let batch = batch.filter(|batch| !batch.targets.is_empty());
        let parts = Part::all(&decoder.config);
        for part in parts.iter().filter(|part| **part != Part::Head) {
            self.invite(decoder, collective, *part)?;
            if let Some(batch) = batch {
                decoder.part_forward(*part, batch, workspace);
            }
        }
        let mut losses = Vec::new();
        for part in parts.into_iter().rev() {
            self.invite(decoder, collective, part)?;
            let mut slots = part.slots(&decoder.config);
            self.lay_out(gradients, &slots);
            if let Some(batch) = batch {
                losses.extend(decoder.part_backward(part, batch, scale, gradients, workspace));
            }
            // A tied table's gradient is whole when the embedding has added to it.
            slots.retain(|slot| part == Part::Embedding || *slot != Slot::Embedding);
            self.hand_over(decoder, gradients, collective, &slots)?;
        }
        Ok(losses)
    }

    /// The losses of a micro-batch, without gradients.
    pub(crate) fn loss(
        &mut self,
        decoder: &mut Decoder<K>,
        collective: &dyn Collective,
        batch: Option<&Batch>,
        workspace: &mut Workspace<K>,
    ) -> Result<Vec<f32>> {
        let mut losses = Vec::new();
        for part in Part::all(&decoder.config) {
            self.invite(decoder, collective, part)?;
            if let Some(batch) = batch {
                losses.extend(decoder.part_forward(part, batch, workspace));
            }
        }
        Ok(losses)
    }

    /// Sends all guests away: their owners have moved their values, or the decoder is to have this rank's own alone.
    pub(crate) fn dismiss(&mut self, decoder: &mut Decoder<K>) {
        self.present.clear();
        for room in self.rooms.values_mut() {
            room.empty(decoder);
        }
    }

    /// Has the weights that a part reads in every rank.
    fn invite(&mut self, decoder: &mut Decoder<K>, collective: &dyn Collective, part: Part) -> Result<()> {
        let mut wanted = part.slots(&decoder.config);
        wanted.retain(|slot| self.present.insert(kind(*slot), *slot) != Some(*slot));
        if wanted.is_empty() {
            return Ok(());
        }
        let mut head_comes = false;
        for slot in wanted.iter().filter(|slot| self.owners[slot] != self.rank) {
            if let Some(room) = self.rooms.get_mut(&kind(*slot)) {
                room.admit(*slot, decoder);
                head_comes |= *slot == Slot::Head;
            }
        }
        let owners: Vec<usize> = wanted.iter().map(|slot| self.owners[slot]).collect();
        let (kernels, mut weights) = decoder.weights_mut();
        let tensors = wanted.iter().filter_map(|slot| Some(shared_weight(kernels, weights.remove(slot)?)));
        collective.gather(&owners, tensors.collect(), Receivers::All)?;
        if head_comes {
            decoder.weights_moved();
        }
        Ok(())
    }

    /// Puts gradients of zero beside this rank's own, for the guests among `slots`.
    fn lay_out(&mut self, gradients: &mut Gradients<K>, slots: &[Slot]) {
        for slot in slots.iter().filter(|slot| self.owners[slot] != self.rank) {
            let room = self.rooms.get_mut(&kind(*slot));
            if let Some(gradient) = room.and_then(|room| room.gradient.take()) {
                gradients.insert(*slot, gradient);
            }
        }
    }

    /// Adds the gradients of `slots` to those of their owners, and clears those of guests.
    fn hand_over(
        &mut self,
        decoder: &Decoder<K>,
        gradients: &mut Gradients<K>,
        collective: &dyn Collective,
        slots: &[Slot],
    ) -> Result<()> {
        let kernels = &decoder.kernels;
        let owners: Vec<usize> = slots.iter().map(|slot| self.owners[slot]).collect();
        let mut by_slot: BTreeMap<Slot, &mut K::Buffer> = gradients.iter_mut().collect();
        let tensors = slots.iter().filter_map(|slot| Some(shared(kernels, by_slot.remove(slot)?)));
        collective.reduce(&owners, tensors.collect())?;
        for slot in slots.iter().filter(|slot| self.owners[slot] != self.rank) {
            let room = self.rooms.get_mut(&kind(*slot));
            if let (Some(room), Some(mut gradient)) = (room, gradients.remove(*slot)) {
                kernels.clear(kernels.length(&gradient), &mut gradient);
                room.gradient = Some(gradient);
            }
        }
        Ok(())
    }
}

impl<K: Kernels> Room<K> {
    /// Puts the room's weight into the decoder at `slot`, wherever it was.
    fn admit(&mut self, slot: Slot, decoder: &mut Decoder<K>) {
        if self.guest == Some(slot) {
            return;
        }
        self.empty(decoder);
        if let Some(weight) = self.weight.take() {
            decoder.put(slot, weight);
            self.guest = Some(slot);
        }
    }

    /// Takes the weight out of the decoder.
    fn empty(&mut self, decoder: &mut Decoder<K>) {
        if let Some(slot) = self.guest.take() {
            self.weight = decoder.take(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::Cpu;
    use engine::decoder::Weights;
    use engine::decoder::cost::slot_bytes;
    use engine::decoder::weights::Precision;
    use model::BaseModel;

    use super::*;
    use crate::collective::{Alone, Tensor};
    use crate::trained::Trained;

    /// A rank that says who it is; nobody talks here.
    struct Seat {
        rank: usize,
        world_size: usize,
    }

    impl Collective for Seat {
        fn rank(&self) -> usize {
            self.rank
        }
        fn world_size(&self) -> usize {
            self.world_size
        }
        fn on_this_machine(&self) -> usize {
            self.world_size
        }
        fn sum(&self, numbers: &mut [f64]) -> Result<()> {
            Alone.sum(numbers)
        }
        fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
            Alone.broadcast(bytes)
        }
        fn reduce(&self, owners: &[usize], tensors: Vec<Box<dyn Tensor + '_>>) -> Result<()> {
            Alone.reduce(owners, tensors)
        }
        fn gather(&self, owners: &[usize], tensors: Vec<Box<dyn Tensor + '_>>, to: Receivers) -> Result<()> {
            Alone.gather(owners, tensors, to)
        }
    }

    #[test]
    fn a_rank_holds_its_share_and_room_for_a_block_and_a_table() {
        for name in ["llama-grouped", "llama-tied", "bloom", "gpt-neox-parallel"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens");
            let base = BaseModel::open(folder.join(name).join("model")).unwrap();
            let config = base.config();
            let elements = |slot: &Slot| slot_bytes(config, *slot, true, Precision::F32) / 4;
            let of_part = |part: Part| part.slots(config).iter().map(elements).sum::<usize>();
            let all: usize = slots(config).iter().map(elements).sum();
            let largest = slots(config).iter().map(elements).max().unwrap();
            let norms: usize = slots(config).iter().filter(|slot| !slot.is_matrix()).map(elements).sum();
            for world_size in 2..=4 {
                let mut owned = 0;
                for rank in 0..world_size {
                    let own = |slot| owners(config, world_size)[&slot] == rank;
                    let read = |slot| base.tensor(slot);
                    let decoder = Decoder::load_some(Cpu, config, Weights::Trained, own, read).unwrap();
                    let trained = Trained::full(&decoder, &Seat { rank, world_size }, true);
                    let Trained::Full { gradients, moments, sharded: Some(sharded) } = trained else {
                        panic!("it is divided")
                    };
                    let held = decoder.weight_bytes() / 4;
                    let what = format!("{name}, rank {rank} of {world_size}");
                    assert!(held <= all / world_size + largest, "{what}: {held} of {all}");
                    let of_gradients: usize = gradients.iter().map(|(_, buffer)| buffer.len()).sum();
                    let of_moments: usize = moments.values().flatten().map(|buffer| buffer.len()).sum();
                    assert_eq!((of_gradients, of_moments), (held, 2 * held), "{what}");
                    let rooms: usize = sharded
                        .rooms
                        .values()
                        .flat_map(|room| &room.gradient)
                        .map(|buffer| buffer.len())
                        .sum();
                    let most =
                        of_part(Part::Block(0)) + of_part(Part::Embedding).max(of_part(Part::Head)) + norms;
                    assert!(rooms <= most, "{what}: room for {rooms}, expected at most {most}");
                    owned += held;
                }
                assert_eq!(owned, all, "{name}: each weight is in one of {world_size} ranks");
            }
        }
    }
}
