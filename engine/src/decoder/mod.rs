//! One decoder, set by a configuration, with its forward and backward written out by hand.
//!
//! Read [`config`] and [`weights`] (what there is), then `forward` and `backward` side by side, then `lora`,
//! [`cache`] and [`parts`].

pub mod cache;
pub mod config;
pub mod cost;
pub mod lora;
pub mod parts;
pub mod weights;

pub mod backward;
mod forward;
mod normalised_head;

use std::collections::BTreeMap;

use self::config::{DecoderConfig, Head, Position};
pub use self::forward::AdapterRows;
pub use self::lora::{Adapter, AdapterGradients, LoraModule};
use self::weights::{HostData, HostTensor, LayerSlot, Precision, Slot, slots};
use crate::kernels::{AdamW, AttentionShape, Kernels, NO_WINDOW};

/// A decoder's weights in a backend's memory.
pub struct Decoder<K: Kernels> {
    /// What it computes.
    pub config: DecoderConfig,
    /// The backend.
    pub kernels: K,
    pub(crate) shape: AttentionShape,
    /// The same for local blocks.
    local_shape: Option<AttentionShape>,
    matrices: BTreeMap<Slot, K::Matrix>,
    vectors: BTreeMap<Slot, K::Buffer>,
    /// Baichuan-2's head as products read it, where the weights that it comes from are trained.
    normalised_head: Option<K::Matrix>,
    trained: bool,
}

/// Whether a decoder's weights can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Full tuning moves them.
    Trained,
    /// They stay as they are, kept in a precision.
    Frozen(Precision),
}

/// Why a decoder could not be built.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<E> {
    /// The source could not give a tensor.
    #[error(transparent)]
    Source(E),
    /// A tensor's shape is not the configuration's.
    #[error("{slot:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Where the tensor goes.
        slot: Slot,
        /// What the source gave.
        found: Vec<usize>,
        /// What the configuration asks for.
        expected: Vec<usize>,
    },
    /// A configuration that the engine cannot compute.
    #[error("{0}")]
    Unsupported(String),
}

impl<K: Kernels> Decoder<K> {
    /// Builds a decoder from tensors that `source` gives, one a slot. Frozen matrices are kept in the precision asked
    /// for; trained ones in `f32`, so that full tuning can move them.
    ///
    /// # Errors
    /// What `source` returns, or a tensor of another shape than the configuration's.
    pub fn load<'a, E>(
        kernels: K,
        config: &DecoderConfig,
        weights: Weights,
        source: impl FnMut(Slot) -> Result<HostTensor<'a>, E>,
    ) -> Result<Self, LoadError<E>> {
        Self::load_some(kernels, config, weights, |_| true, source)
    }

    /// [`Decoder::load`] with the `wanted` weights alone, for which `source` is asked. What a part of the decoder reads has
    /// to be put in with [`Decoder::put`] before it computes.
    ///
    /// # Errors
    /// As for [`Decoder::load`].
    pub fn load_some<'a, E>(
        kernels: K,
        config: &DecoderConfig,
        weights: Weights,
        wanted: impl Fn(Slot) -> bool,
        mut source: impl FnMut(Slot) -> Result<HostTensor<'a>, E>,
    ) -> Result<Self, LoadError<E>> {
        check(config).map_err(LoadError::Unsupported)?;
        if let Some(widest) = kernels.widest_head().filter(|widest| config.head_size > *widest) {
            let reason = format!("heads of {}; this device takes at most {widest}", config.head_size);
            return Err(LoadError::Unsupported(reason));
        }
        let (trained, precision) = match weights {
            Weights::Trained => (true, Precision::F32),
            Weights::Frozen(precision) => (false, precision),
        };
        let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        let mut normalised_head = None;
        for slot in slots(config).into_iter().filter(|slot| wanted(*slot)) {
            let mut tensor = source(slot).map_err(LoadError::Source)?;
            let expected = slot.shape(config);
            if tensor.shape != expected {
                return Err(LoadError::Shape { slot, found: tensor.shape, expected });
            }
            if slot == Slot::Head && config.head == Head::Normalised {
                let normalised = normalised_head::normalise(&tensor);
                if trained {
                    normalised_head = Some(kernels.matrix(&normalised, Precision::F32));
                } else {
                    tensor = normalised;
                }
            }
            if slot.is_matrix() {
                matrices.insert(slot, kernels.matrix(&tensor, precision.of(slot)));
            } else {
                vectors.insert(slot, kernels.upload(&tensor.to_f32()));
            }
        }
        let slopes = match config.position {
            Position::Alibi => AttentionShape::alibi_slopes(config.heads),
            Position::Rotary { .. } => Vec::new(),
        };
        let shape = AttentionShape {
            heads: config.heads,
            key_value_heads: config.key_value_heads,
            head_size: config.head_size,
            scale: config.score_scale(),
            window: NO_WINDOW,
            slopes,
        };
        let local = config.local.as_ref();
        let local_shape = local.map(|local| AttentionShape { window: local.window, ..shape.clone() });
        Ok(Self {
            config: config.clone(),
            kernels,
            shape,
            local_shape,
            matrices,
            vectors,
            normalised_head,
            trained,
        })
    }

    /// Whether the weights can be moved.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// A weight tensor, row-major: what [`Decoder::load`] was given, as it is now.
    pub fn tensor(&self, slot: Slot) -> Vec<f32> {
        match (self.matrices.get(&slot), self.vectors.get(&slot)) {
            (Some(matrix), _) => self.kernels.matrix_values(matrix),
            (None, Some(vector)) => self.kernels.download(vector, slot.shape(&self.config)[0]),
            (None, None) => Vec::new(),
        }
    }

    /// Overwrites a weight tensor with row-major values: a checkpoint of full tuning.
    pub fn set_tensor(&mut self, slot: Slot, values: Vec<f32>) {
        if slot.is_matrix() {
            let tensor = HostTensor { shape: slot.shape(&self.config), data: HostData::F32(values.into()) };
            self.matrices.insert(slot, self.kernels.matrix(&tensor, Precision::F32));
        } else {
            self.vectors.insert(slot, self.kernels.upload(&values));
        }
        self.renormalise_head(slot);
    }

    /// Whether the weight at `slot` is here.
    pub fn has(&self, slot: Slot) -> bool {
        self.matrices.contains_key(&slot) || self.vectors.contains_key(&slot)
    }

    /// Room for the trained weight at `slot`, and for its gradient: zeros, outside of the decoder.
    pub fn room(&self, slot: Slot) -> (OwnedWeight<K>, K::Buffer) {
        let shape = slot.shape(&self.config);
        let length = shape.iter().product();
        if !slot.is_matrix() {
            return (OwnedWeight::Vector(self.kernels.buffer(length)), self.kernels.buffer(length));
        }
        let zeros = HostTensor { shape, data: HostData::F32(vec![0.0; length].into()) };
        let matrix = self.kernels.matrix(&zeros, Precision::F32);
        let gradient = self.kernels.like_matrix(&matrix);
        (OwnedWeight::Matrix(matrix), gradient)
    }

    /// Puts a weight in at `slot`, whose shape it has. [`Decoder::weights_moved`] is to be called when its values are
    /// there.
    pub fn put(&mut self, slot: Slot, weight: OwnedWeight<K>) {
        match weight {
            OwnedWeight::Matrix(matrix) => drop(self.matrices.insert(slot, matrix)),
            OwnedWeight::Vector(vector) => drop(self.vectors.insert(slot, vector)),
        }
    }

    /// Takes the weight at `slot` out.
    pub fn take(&mut self, slot: Slot) -> Option<OwnedWeight<K>> {
        if slot == Slot::Head {
            self.normalised_head = None;
        }
        let matrix = self.matrices.remove(&slot).map(OwnedWeight::Matrix);
        matrix.or_else(|| self.vectors.remove(&slot).map(OwnedWeight::Vector))
    }

    /// All weights by slot, as the backend has them laid out; [`Decoder::weights_moved`] is to be called after they have
    /// been written.
    pub fn weights_mut(&mut self) -> (&K, BTreeMap<Slot, Weight<'_, K>>) {
        let matrices = self.matrices.iter_mut().map(|(slot, matrix)| (*slot, Weight::Matrix(matrix)));
        let vectors = self.vectors.iter_mut().map(|(slot, vector)| (*slot, Weight::Vector(vector)));
        (&self.kernels, matrices.chain(vectors).collect())
    }

    /// Computes again what is computed from the weights.
    pub fn weights_moved(&mut self) {
        self.renormalise_head(Slot::Head);
    }

    /// Bytes of weights kept.
    pub fn weight_bytes(&self) -> usize {
        let matrices = self.matrices.values().chain(&self.normalised_head);
        let matrices: usize = matrices.map(|matrix| self.kernels.matrix_bytes(matrix)).sum();
        let vectors: usize = self.vectors.keys().map(|slot| 4 * slot.shape(&self.config)[0]).sum();
        matrices + vectors
    }

    /// Gradients of zero for every weight that is here.
    pub fn gradients(&self) -> Gradients<K> {
        let matrices = self.matrices.iter().map(|(slot, matrix)| (*slot, self.kernels.like_matrix(matrix)));
        let vectors =
            self.vectors.keys().map(|slot| (*slot, self.kernels.buffer(slot.shape(&self.config)[0])));
        Gradients { buffers: matrices.chain(vectors).collect() }
    }

    /// A gradient, or a moment, row-major.
    pub fn gradient_values(&self, slot: Slot, buffer: &K::Buffer) -> Vec<f32> {
        match self.matrices.get(&slot) {
            Some(matrix) => self.kernels.unpack_like(matrix, buffer),
            None => self.kernels.download(buffer, slot.shape(&self.config)[0]),
        }
    }

    /// The inverse of [`Decoder::gradient_values`]: a moment from a checkpoint.
    pub fn load_like(&self, slot: Slot, values: Vec<f32>) -> K::Buffer {
        if !slot.is_matrix() {
            return self.kernels.upload(&values);
        }
        let tensor = HostTensor { shape: slot.shape(&self.config), data: HostData::F32(values.into()) };
        self.kernels.packed_values(&tensor)
    }

    /// Moves the weight at `slot` against its gradient, and sets the gradient to zero.
    pub fn update(
        &mut self,
        slot: Slot,
        settings: &AdamW,
        gradient: &mut K::Buffer,
        moments: &mut [K::Buffer; 2],
    ) {
        if let Some(matrix) = self.matrices.get_mut(&slot) {
            self.kernels.adamw_matrix(settings, matrix, gradient, moments);
        } else if let Some(vector) = self.vectors.get_mut(&slot) {
            self.kernels.adamw(settings, vector, gradient, moments);
        }
        self.renormalise_head(slot);
    }

    /// After the weights at `slot` moved: what is computed from them, again.
    fn renormalise_head(&mut self, slot: Slot) {
        if slot == Slot::Head
            && self.config.head == Head::Normalised
            && self.trained
            && self.matrices.contains_key(&slot)
        {
            let data = HostData::F32(self.tensor(slot).into());
            let tensor = HostTensor { shape: slot.shape(&self.config), data };
            let normalised = normalised_head::normalise(&tensor);
            self.normalised_head = Some(self.kernels.matrix(&normalised, Precision::F32));
        }
    }

    pub(crate) fn matrix(&self, layer: usize, slot: LayerSlot) -> &K::Matrix {
        &self.matrices[&Slot::Layer(layer, slot)]
    }

    pub(crate) fn vector(&self, layer: usize, slot: LayerSlot) -> &K::Buffer {
        &self.vectors[&Slot::Layer(layer, slot)]
    }

    pub(crate) fn bias(&self, layer: usize, slot: LayerSlot) -> Option<&K::Buffer> {
        self.vectors.get(&Slot::Layer(layer, slot))
    }

    pub(crate) fn outer_vector(&self, slot: Slot) -> Option<&K::Buffer> {
        self.vectors.get(&slot)
    }

    pub(crate) fn final_norm(&self) -> &K::Buffer {
        &self.vectors[&Slot::FinalNormWeight]
    }

    pub(crate) fn embedding(&self) -> &K::Matrix {
        &self.matrices[&Slot::Embedding]
    }

    /// The head's weights: the embedding table where it is tied.
    pub(crate) fn head(&self) -> &K::Matrix {
        self.normalised_head.as_ref().unwrap_or(&self.matrices[&self.head_slot()])
    }

    pub(crate) fn head_slot(&self) -> Slot {
        if self.config.head == Head::Tied { Slot::Embedding } else { Slot::Head }
    }

    /// What a block's attention needs to know of the heads.
    pub(crate) fn shape(&self, layer: usize) -> &AttentionShape {
        let local = self.config.local.as_ref().is_some_and(|local| local.layers[layer]);
        self.local_shape.as_ref().filter(|_| local).unwrap_or(&self.shape)
    }

    /// A block's rotary angles.
    pub(crate) fn frequencies(&self, layer: usize) -> Option<&[f32]> {
        let local = self.config.local.as_ref();
        match (&self.config.position, local.filter(|local| local.layers[layer])) {
            (Position::Rotary { .. }, Some(local)) => Some(&local.frequencies),
            (Position::Rotary { frequencies, .. }, None) => Some(frequencies),
            (Position::Alibi, _) => None,
        }
    }
}

/// Gradients of a decoder's own weights, in the weights' layouts: full tuning.
pub struct Gradients<K: Kernels> {
    buffers: BTreeMap<Slot, K::Buffer>,
}

/// One of a decoder's weights, by itself.
pub enum OwnedWeight<K: Kernels> {
    /// One that products read.
    Matrix(K::Matrix),
    /// A bias, or a norm's weight.
    Vector(K::Buffer),
}

/// One of a decoder's weights.
pub enum Weight<'a, K: Kernels> {
    /// One that products read.
    Matrix(&'a mut K::Matrix),
    /// A bias, or a norm's weight.
    Vector(&'a mut K::Buffer),
}

impl<K: Kernels> Gradients<K> {
    /// All gradients, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &K::Buffer)> {
        self.buffers.iter().map(|(slot, buffer)| (*slot, buffer))
    }

    /// The same, to be written.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut K::Buffer)> {
        self.buffers.iter_mut().map(|(slot, buffer)| (*slot, buffer))
    }

    /// Adds a gradient, in the layout of the weight at `slot`; gives back what was there.
    pub fn insert(&mut self, slot: Slot, gradient: K::Buffer) -> Option<K::Buffer> {
        self.buffers.insert(slot, gradient)
    }

    /// Takes the gradient of the weight at `slot` out.
    pub fn remove(&mut self, slot: Slot) -> Option<K::Buffer> {
        self.buffers.remove(&slot)
    }

    pub(crate) fn get(&mut self, slot: Slot) -> Option<&mut K::Buffer> {
        self.buffers.get_mut(&slot)
    }

    pub(crate) fn layer(&mut self, layer: usize, slot: LayerSlot) -> Option<&mut K::Buffer> {
        self.get(Slot::Layer(layer, slot))
    }

    /// A weight's gradient and its bias's, taken out so that both can be written at once.
    pub(crate) fn take(&mut self, weight: Slot, bias: Slot) -> Option<(K::Buffer, Option<K::Buffer>)> {
        self.buffers.remove(&weight).map(|buffer| (buffer, self.buffers.remove(&bias)))
    }

    /// Puts back what [`Gradients::take`] took.
    pub(crate) fn put(&mut self, weight: Slot, bias: Slot, (dweight, dbias): (K::Buffer, Option<K::Buffer>)) {
        self.buffers.insert(weight, dweight);
        if let Some(dbias) = dbias {
            self.buffers.insert(bias, dbias);
        }
    }
}

/// What no family asks for, and no kernel computes.
fn check(config: &DecoderConfig) -> Result<(), String> {
    let DecoderConfig { heads, key_value_heads, head_size, .. } = *config;
    if key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
        return Err(format!("{heads} query heads cannot share {key_value_heads} key-value heads"));
    }
    if config.feed_forward_bias && config.activation.gated() {
        return Err("a gated feed-forward layer has no biases here".to_owned());
    }
    if let Some(local) = &config.local
        && local.layers.len() != config.layers
    {
        return Err(format!(
            "{} blocks of {} are said to be local or not",
            local.layers.len(),
            config.layers
        ));
    }
    if let Position::Rotary { rotated, frequencies } = &config.position
        && (*rotated > head_size || 2 * frequencies.len() != *rotated || *rotated > 256)
    {
        return Err(format!(
            "{} rotary frequencies over {rotated} dimensions of a head of {head_size} (at most 256)",
            frequencies.len()
        ));
    }
    Ok(())
}
