//! What the optimizer moves: an adapter's matrices, or all of a decoder's weights.
//!
//! Its tensors have an order: A and B of each of an adapter's modules, or a decoder's slots. Where several processes
//! tune, each tensor has an owner, which alone keeps its moments and moves it: see [`crate::collective`]. Where the weights
//! are divided as well, their values and gradients are at their owners alone: see [`crate::sharded`].

use std::collections::BTreeMap;

use engine::decoder::backward::Trained as Gradient;
use engine::decoder::weights::{Slot, slots};
use engine::decoder::{Adapter, AdapterGradients, Decoder, Gradients, LoraModule, Weight};
use engine::kernels::{AdamW, Kernels};
use engine::{Batch, Workspace};

use crate::checkpoint::{Entry, Fetch};
use crate::collective::{Collective, Receivers, Tensor, deal, hand_to_first};
use crate::error::Result;
use crate::sharded::{self, Sharded};

/// The trained values, their gradients and their moments.
pub(crate) enum Trained<K: Kernels> {
    /// LoRA.
    Adapter { adapter: Adapter<K>, gradients: AdapterGradients<K>, moments: Vec<Option<Moments<K>>> },
    /// Full tuning: the weights themselves are the decoder's. Where they are divided, the gradients are those of this
    /// rank's own.
    Full { gradients: Gradients<K>, moments: BTreeMap<Slot, Moments<K>>, sharded: Option<Sharded<K>> },
}

/// A tensor's first and second moment.
type Moments<K> = [<K as Kernels>::Buffer; 2];

/// Moments of zero for a gradient.
fn zeros<K: Kernels>(kernels: &K, gradient: &K::Buffer) -> Moments<K> {
    let length = kernels.length(gradient);
    [kernels.buffer(length), kernels.buffer(length)]
}

impl<K: Kernels> Trained<K> {
    /// An adapter, with moments of zero for what this rank owns.
    pub(crate) fn adapter(kernels: &K, adapter: Adapter<K>, collective: &dyn Collective) -> Self {
        let gradients = adapter.gradients(kernels);
        let all: Vec<&K::Buffer> = gradients.blocks.iter().flatten().flatten().collect();
        let lengths: Vec<usize> = all.iter().map(|gradient| kernels.length(gradient)).collect();
        let owners = deal(&lengths, collective.world_size());
        let own = |(gradient, owner): (&&K::Buffer, &usize)| {
            (*owner == collective.rank()).then(|| zeros(kernels, *gradient))
        };
        let moments = all.iter().zip(&owners).map(own).collect();
        Self::Adapter { adapter, gradients, moments }
    }

    /// All weights, with moments of zero for those that this rank owns; where the decoder is `divided`, it has those alone.
    pub(crate) fn full(decoder: &Decoder<K>, collective: &dyn Collective, divided: bool) -> Self {
        let gradients = decoder.gradients();
        let owners = sharded::owners(&decoder.config, collective.world_size());
        let own = gradients.iter().filter(|(slot, _)| owners[slot] == collective.rank());
        let moments = own.map(|(slot, buffer)| (slot, zeros(&decoder.kernels, buffer))).collect();
        let sharded = divided.then(|| Sharded::new(decoder, collective));
        Self::Full { gradients, moments, sharded }
    }

    /// The adapter, if it is one.
    pub(crate) fn as_adapter(&self) -> Option<&Adapter<K>> {
        match self {
            Self::Adapter { adapter, .. } => Some(adapter),
            Self::Full { .. } => None,
        }
    }

    /// Whether the weights are divided among the ranks.
    pub(crate) fn is_divided(&self) -> bool {
        matches!(self, Self::Full { sharded: Some(_), .. })
    }

    /// Adds a micro-batch's gradient; returns its losses. All ranks call it as often: one that has no micro-batch left does
    /// nothing, or where weights are divided helps the others.
    pub(crate) fn step(
        &mut self,
        decoder: &mut Decoder<K>,
        collective: &dyn Collective,
        batch: Option<&Batch>,
        scale: f32,
        dropout: f32,
        workspace: &mut Workspace<K>,
    ) -> Result<Vec<f32>> {
        let gradient = match self {
            Self::Full { gradients, sharded: Some(sharded), .. } => {
                return sharded.step(decoder, gradients, collective, batch, scale, workspace);
            }
            Self::Adapter { adapter, gradients, .. } => Gradient::Adapter(adapter, gradients),
            Self::Full { gradients, .. } => Gradient::Full(gradients),
        };
        Ok(batch.map_or_else(Vec::new, |batch| decoder.step(gradient, batch, scale, dropout, workspace)))
    }

    /// A micro-batch's losses, as [`Trained::step`] has them but without a gradient.
    pub(crate) fn loss(
        &mut self,
        decoder: &mut Decoder<K>,
        collective: &dyn Collective,
        batch: Option<&Batch>,
        workspace: &mut Workspace<K>,
    ) -> Result<Vec<f32>> {
        if let Self::Full { sharded: Some(sharded), .. } = self {
            return sharded.loss(decoder, collective, batch, workspace);
        }
        Ok(batch.map_or_else(Vec::new, |batch| decoder.loss(self.as_adapter(), batch, workspace)))
    }

    /// Sums the gradients over all ranks, each at its owner. Elsewhere they are still the rank's own.
    pub(crate) fn reduce(&mut self, decoder: &Decoder<K>, collective: &dyn Collective) -> Result<()> {
        if self.is_divided() {
            // Every micro-batch's step has done it.
            return Ok(());
        }
        let owners = self.owners(decoder, collective);
        let gradients = self.gradients_mut(decoder).into_iter();
        collective.reduce(&owners, gradients.map(|(_, buffer)| shared(&decoder.kernels, buffer)).collect())
    }

    /// Σ g² over the tensors that this rank owns.
    pub(crate) fn squared_norm(&self, kernels: &K) -> f64 {
        match self {
            Self::Adapter { gradients, moments, .. } => {
                let all = gradients.blocks.iter().flatten().flatten().zip(moments);
                all.filter(|(_, moments)| moments.is_some())
                    .map(|(buffer, _)| kernels.squared_norm(buffer))
                    .sum()
            }
            Self::Full { gradients, moments, .. } => {
                let own = gradients.iter().filter(|(slot, _)| moments.contains_key(slot));
                own.map(|(_, buffer)| kernels.squared_norm(buffer)).sum()
            }
        }
    }

    /// The tensor with the largest gradient of all ranks' rows, or the first whose gradient is no number, and the gradient's
    /// norm: for messages. All ranks call it, after [`Trained::reduce`].
    pub(crate) fn largest_gradient(
        &mut self,
        decoder: &Decoder<K>,
        collective: &dyn Collective,
    ) -> Result<String> {
        let (owners, names) = (self.owners(decoder, collective), self.described(decoder));
        // Of what this rank owns; the others tell the rest.
        let mut norms = vec![0.0; owners.len()];
        for (tensor, gradient) in self.gradients_mut(decoder) {
            if owners[tensor] == collective.rank() {
                norms[tensor] = decoder.kernels.squared_norm(gradient);
            }
        }
        collective.sum(&mut norms)?;
        let norms: Vec<(String, f64)> = names.into_iter().zip(norms.into_iter().map(f64::sqrt)).collect();
        let no_number = norms.iter().find(|(_, norm)| !norm.is_finite());
        let largest = no_number.or_else(|| norms.iter().max_by(|a, b| a.1.total_cmp(&b.1)));
        Ok(largest.map_or_else(|| "none".to_owned(), |(name, norm)| format!("that of {name}, {norm:.3e}")))
    }

    /// By tensor, what a message calls it.
    fn described(&self, decoder: &Decoder<K>) -> Vec<String> {
        match self {
            Self::Adapter { adapter, .. } => {
                let of_block = |(layer, modules): (usize, &Vec<LoraModule<K>>)| -> Vec<String> {
                    let place = |module: &LoraModule<K>| {
                        format!("block {layer}'s {:?} (from row {})", module.linear, module.first_row)
                    };
                    let sides = |place: String| [format!("A on {place}"), format!("B on {place}")];
                    modules.iter().map(place).flat_map(sides).collect()
                };
                adapter.blocks.iter().enumerate().flat_map(of_block).collect()
            }
            Self::Full { .. } => {
                let named = |slot| match slot {
                    Slot::Layer(layer, slot) => format!("block {layer}'s {slot:?}"),
                    other => format!("{other:?}"),
                };
                slots(&decoder.config).into_iter().map(named).collect()
            }
        }
    }

    /// Whether all values that are here are numbers, and none is infinite.
    pub(crate) fn are_finite(&self, decoder: &Decoder<K>) -> bool {
        (0..self.lengths(decoder).len())
            .all(|tensor| self.values(decoder, tensor).iter().all(|value| value.is_finite()))
    }

    /// Moves the values that this rank owns, and sets all gradients to zero.
    pub(crate) fn update(&mut self, decoder: &mut Decoder<K>, settings: &AdamW) {
        match self {
            Self::Adapter { adapter, gradients, moments } => {
                let kernels = &decoder.kernels;
                let gradients = gradients.blocks.iter_mut().flatten().flatten();
                for ((values, gradient), moments) in matrices_mut(adapter).zip(gradients).zip(moments) {
                    match moments {
                        Some(moments) => kernels.adamw(settings, values, gradient, moments),
                        None => kernels.clear(kernels.length(gradient), gradient),
                    }
                }
            }
            Self::Full { gradients, moments, .. } => {
                let undecayed = AdamW { weight_decay: 0.0, ..*settings };
                for (slot, gradient) in gradients.iter_mut() {
                    let settings = if slot.is_matrix() { settings } else { &undecayed };
                    match moments.get_mut(&slot) {
                        Some(moments) => decoder.update(slot, settings, gradient, moments),
                        None => decoder.kernels.clear(decoder.kernels.length(gradient), gradient),
                    }
                }
            }
        }
    }

    /// Hands the values that were moved from their owners to all ranks; where weights are divided, when they are next
    /// asked for.
    pub(crate) fn share(&mut self, decoder: &mut Decoder<K>, collective: &dyn Collective) -> Result<()> {
        if collective.world_size() == 1 {
            return Ok(());
        }
        let owners = self.owners(decoder, collective);
        match self {
            Self::Adapter { adapter, .. } => {
                let tensors = matrices_mut(adapter).map(|buffer| shared(&decoder.kernels, buffer)).collect();
                collective.gather(&owners, tensors, Receivers::All)
            }
            Self::Full { sharded: Some(sharded), .. } => {
                sharded.dismiss(decoder);
                Ok(())
            }
            Self::Full { .. } => {
                let slots = slots(&decoder.config);
                let (kernels, mut weights) = decoder.weights_mut();
                let tensors =
                    slots.into_iter().filter_map(|slot| Some(shared_weight(kernels, weights.remove(&slot)?)));
                collective.gather(&owners, tensors.collect(), Receivers::All)?;
                decoder.weights_moved();
                Ok(())
            }
        }
    }

    /// Hands `write` what a checkpoint keeps, an entry at a time: rank 0 gets each from whoever holds it. The other ranks
    /// write nothing.
    pub(crate) fn keep(
        &self,
        decoder: &Decoder<K>,
        collective: &dyn Collective,
        kept: Kept,
        write: impl FnOnce(&[Entry], &Fetch<'_>) -> Result<()>,
    ) -> Result<()> {
        let (owners, entries) = (self.owners(decoder, collective), self.entries(decoder, kept));
        let of_values = self.holders(decoder, collective);
        let holder = |number: usize| match kept.part(number) {
            (tensor, Part::Values) => of_values[tensor],
            (tensor, Part::Moment(_)) => owners[tensor],
        };
        let own = |number: usize| match kept.part(number) {
            (tensor, Part::Values) => self.values(decoder, tensor),
            (tensor, Part::Moment(index)) => self.moment(decoder, tensor, index).unwrap_or_default(),
        };
        let holders: Vec<usize> = (0..entries.len()).map(holder).collect();
        let lengths: Vec<usize> = entries.iter().map(|entry| entry.length).collect();
        hand_to_first(collective, &holders, &lengths, &own, |fetch| write(&entries, fetch)).map(drop)
    }

    /// By tensor, the rank that gives its values: its owner where weights are divided; else all have them, and rank 0 has no
    /// need of another.
    pub(crate) fn holders(&self, decoder: &Decoder<K>, collective: &dyn Collective) -> Vec<usize> {
        let owners = self.owners(decoder, collective);
        if self.is_divided() { owners } else { vec![0; owners.len()] }
    }

    /// The inverse of [`Trained::keep`]: `read` gives the values of an entry. Moments that are another rank's stay as they
    /// are, and where weights are divided its values.
    pub(crate) fn restore(
        &mut self,
        decoder: &mut Decoder<K>,
        kept: Kept,
        mut read: impl FnMut(&Entry) -> Result<Vec<f32>>,
    ) -> Result<()> {
        self.dismiss_guests(decoder);
        for (number, entry) in self.entries(decoder, kept).iter().enumerate() {
            let values = read(entry)?;
            match kept.part(number) {
                (tensor, Part::Values) => self.set_values(decoder, tensor, values),
                (tensor, Part::Moment(index)) => self.set_moment(decoder, tensor, index, values),
            }
        }
        Ok(())
    }

    /// Leaves a decoder that is divided what this rank owns.
    pub(crate) fn dismiss_guests(&mut self, decoder: &mut Decoder<K>) {
        if let Self::Full { sharded: Some(sharded), .. } = self {
            sharded.dismiss(decoder);
        }
    }

    /// What a checkpoint keeps: of each tensor its values, and the moments where they are kept.
    fn entries(&self, decoder: &Decoder<K>, kept: Kept) -> Vec<Entry> {
        let tensors = self.names(decoder).into_iter().zip(self.lengths(decoder));
        let entry = |(name, length): (String, usize)| {
            let entries = kept.parts().iter();
            entries.map(move |part| Entry { name: format!("{name}.{}", part.name()), length })
        };
        tensors.flat_map(entry).collect()
    }

    /// By tensor, the rank whose it is.
    fn owners(&self, decoder: &Decoder<K>, collective: &dyn Collective) -> Vec<usize> {
        deal(&self.lengths(decoder), collective.world_size())
    }

    /// By tensor, its elements.
    fn lengths(&self, decoder: &Decoder<K>) -> Vec<usize> {
        match self {
            Self::Adapter { gradients, .. } => {
                let all = gradients.blocks.iter().flatten().flatten();
                all.map(|gradient| decoder.kernels.length(gradient)).collect()
            }
            Self::Full { .. } => slot_lengths(decoder),
        }
    }

    /// By tensor, its name in a checkpoint.
    fn names(&self, decoder: &Decoder<K>) -> Vec<String> {
        match self {
            Self::Adapter { adapter, .. } => {
                let sides = |module: usize| ["a", "b"].map(|side| format!("{module:05}.{side}"));
                (0..adapter.blocks.iter().flatten().count()).flat_map(sides).collect()
            }
            Self::Full { .. } => {
                (0..slots(&decoder.config).len()).map(|number| format!("{number:05}")).collect()
            }
        }
    }

    /// The gradients that are here, each with its tensor.
    fn gradients_mut(&mut self, decoder: &Decoder<K>) -> Vec<(usize, &mut K::Buffer)> {
        match self {
            Self::Adapter { gradients, .. } => {
                gradients.blocks.iter_mut().flatten().flatten().enumerate().collect()
            }
            Self::Full { gradients, .. } => {
                let mut by_slot: BTreeMap<Slot, &mut K::Buffer> = gradients.iter_mut().collect();
                let slots = slots(&decoder.config).into_iter().enumerate();
                slots.filter_map(|(tensor, slot)| Some((tensor, by_slot.remove(&slot)?))).collect()
            }
        }
    }

    /// A tensor's values.
    fn values(&self, decoder: &Decoder<K>, tensor: usize) -> Vec<f32> {
        match self {
            Self::Adapter { adapter, .. } => {
                let values =
                    adapter.blocks.iter().flatten().flat_map(|module| [&module.a, &module.b]).nth(tensor);
                let all = |values| decoder.kernels.download(values, decoder.kernels.length(values));
                values.map(all).unwrap_or_default()
            }
            Self::Full { .. } => decoder.tensor(slots(&decoder.config)[tensor]),
        }
    }

    fn set_values(&mut self, decoder: &mut Decoder<K>, tensor: usize, values: Vec<f32>) {
        match self {
            Self::Adapter { adapter, .. } => {
                if let Some(buffer) = matrices_mut(adapter).nth(tensor) {
                    decoder.kernels.write(&values, buffer);
                }
            }
            Self::Full { sharded, .. } => {
                let slot = slots(&decoder.config)[tensor];
                if sharded.as_ref().is_none_or(|sharded| sharded.owns(slot)) {
                    decoder.set_tensor(slot, values);
                }
            }
        }
    }

    /// A tensor's first or second moment; none where it is another rank's.
    fn moment(&self, decoder: &Decoder<K>, tensor: usize, index: usize) -> Option<Vec<f32>> {
        match self {
            Self::Adapter { moments, .. } => {
                let moment = &moments[tensor].as_ref()?[index];
                Some(decoder.kernels.download(moment, decoder.kernels.length(moment)))
            }
            Self::Full { moments, .. } => {
                let slot = slots(&decoder.config)[tensor];
                Some(decoder.gradient_values(slot, &moments.get(&slot)?[index]))
            }
        }
    }

    fn set_moment(&mut self, decoder: &Decoder<K>, tensor: usize, index: usize, values: Vec<f32>) {
        match self {
            Self::Adapter { moments, .. } => {
                if let Some(moments) = &mut moments[tensor] {
                    decoder.kernels.write(&values, &mut moments[index]);
                }
            }
            Self::Full { moments, .. } => {
                let slot = slots(&decoder.config)[tensor];
                if let Some(moments) = moments.get_mut(&slot) {
                    moments[index] = decoder.load_like(slot, values);
                }
            }
        }
    }
}

/// A buffer that ranks hand each other.
struct SharedBuffer<'a, K: Kernels> {
    kernels: &'a K,
    buffer: &'a mut K::Buffer,
}

impl<K: Kernels> Tensor for SharedBuffer<'_, K> {
    fn read(&self, read: &mut dyn FnMut(&[f32])) {
        self.kernels.read(self.buffer, read);
    }

    fn modify(&mut self, modify: &mut dyn FnMut(&mut [f32])) {
        self.kernels.modify(self.buffer, modify);
    }
}

/// A trained matrix that ranks hand each other, in the layout of their backend, which is the same for all.
struct SharedMatrix<'a, K: Kernels> {
    kernels: &'a K,
    matrix: &'a mut K::Matrix,
}

impl<K: Kernels> Tensor for SharedMatrix<'_, K> {
    fn read(&self, read: &mut dyn FnMut(&[f32])) {
        self.kernels.read_matrix(self.matrix, read);
    }

    fn modify(&mut self, modify: &mut dyn FnMut(&mut [f32])) {
        self.kernels.modify_matrix(self.matrix, modify);
    }
}

/// A buffer as ranks hand it each other.
pub(crate) fn shared<'a, K: Kernels>(kernels: &'a K, buffer: &'a mut K::Buffer) -> Box<dyn Tensor + 'a> {
    Box::new(SharedBuffer { kernels, buffer })
}

/// A weight as ranks hand it each other.
pub(crate) fn shared_weight<'a, K: Kernels>(kernels: &'a K, weight: Weight<'a, K>) -> Box<dyn Tensor + 'a> {
    match weight {
        Weight::Matrix(matrix) => Box::new(SharedMatrix { kernels, matrix }),
        Weight::Vector(buffer) => shared(kernels, buffer),
    }
}

/// What a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Values and moments: where a run stands.
    State,
    /// Values alone: the best so far.
    Best,
}

/// What a checkpoint may have of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Values,
    /// The first (0) or the second.
    Moment(usize),
}

impl Kept {
    /// What it has of each tensor.
    fn parts(self) -> &'static [Part] {
        match self {
            Self::State => &[Part::Values, Part::Moment(0), Part::Moment(1)],
            Self::Best => &[Part::Values],
        }
    }

    /// Which tensor's an entry is, and what of it.
    fn part(self, number: usize) -> (usize, Part) {
        let parts = self.parts();
        (number / parts.len(), parts[number % parts.len()])
    }
}

impl Part {
    /// What a checkpoint calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Moment(0) => "first",
            Self::Moment(_) => "second",
        }
    }
}

/// Elements of each of a decoder's tensors.
fn slot_lengths<K: Kernels>(decoder: &Decoder<K>) -> Vec<usize> {
    slots(&decoder.config).into_iter().map(|slot| slot.shape(&decoder.config).iter().product()).collect()
}

/// A and B of each of an adapter's modules.
fn matrices_mut<K: Kernels>(adapter: &mut Adapter<K>) -> impl Iterator<Item = &mut K::Buffer> {
    adapter.blocks.iter_mut().flatten().flat_map(|module| [&mut module.a, &mut module.b])
}
