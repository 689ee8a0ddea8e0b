//! What the optimizer moves: an adapter's matrices, or all of a decoder's weights.

use std::collections::BTreeMap;

use engine::decoder::backward::Trained as Gradient;
use engine::decoder::weights::{Slot, slots};
use engine::decoder::{Adapter, AdapterGradients, Decoder, Gradients};
use engine::kernels::{AdamW, Kernels};
use engine::{Batch, Workspace};

/// The trained values, their gradients and their moments.
pub(crate) enum Trained<K: Kernels> {
    /// LoRA.
    Adapter { adapter: Adapter<K>, gradients: AdapterGradients<K>, moments: Vec<[Moments<K>; 2]> },
    /// Full tuning: the weights themselves are the decoder's.
    Full { gradients: Gradients<K>, moments: BTreeMap<Slot, Moments<K>> },
}

/// A tensor's first and second moment.
type Moments<K> = [<K as Kernels>::Buffer; 2];

/// Moments of zero for a gradient.
fn zeros<K: Kernels>(kernels: &K, gradient: &K::Buffer) -> Moments<K> {
    let length = kernels.length(gradient);
    [kernels.buffer(length), kernels.buffer(length)]
}

impl<K: Kernels> Trained<K> {
    /// An adapter, with moments of zero.
    pub(crate) fn adapter(kernels: &K, adapter: Adapter<K>) -> Self {
        let gradients = adapter.gradients(kernels);
        let of_module = |[a, b]: &[K::Buffer; 2]| [zeros(kernels, a), zeros(kernels, b)];
        let moments = gradients.blocks.iter().flatten().map(of_module).collect();
        Self::Adapter { adapter, gradients, moments }
    }

    /// All weights, with moments of zero.
    pub(crate) fn full(decoder: &Decoder<K>) -> Self {
        let gradients = decoder.gradients();
        let moments =
            gradients.iter().map(|(slot, buffer)| (slot, zeros(&decoder.kernels, buffer))).collect();
        Self::Full { gradients, moments }
    }

    /// The adapter, if it is one.
    pub(crate) fn as_adapter(&self) -> Option<&Adapter<K>> {
        match self {
            Self::Adapter { adapter, .. } => Some(adapter),
            Self::Full { .. } => None,
        }
    }

    /// Adds a micro-batch's gradient; returns its losses.
    pub(crate) fn step(
        &mut self,
        decoder: &Decoder<K>,
        batch: &Batch,
        scale: f32,
        dropout: f32,
        workspace: &mut Workspace<K>,
    ) -> Vec<f32> {
        let gradient = match self {
            Self::Adapter { adapter, gradients, .. } => Gradient::Adapter(adapter, gradients),
            Self::Full { gradients, .. } => Gradient::Full(gradients),
        };
        decoder.step(gradient, batch, scale, dropout, workspace)
    }

    /// The gradient's norm.
    pub(crate) fn gradient_norm(&self, kernels: &K) -> f64 {
        let squares: f64 = match self {
            Self::Adapter { gradients, .. } => {
                gradients.blocks.iter().flatten().flatten().map(|buffer| kernels.squared_norm(buffer)).sum()
            }
            Self::Full { gradients, .. } => {
                gradients.iter().map(|(_, buffer)| kernels.squared_norm(buffer)).sum()
            }
        };
        squares.sqrt()
    }

    /// The tensor with the largest gradient, or the first whose gradient is no number, and the gradient's norm: for
    /// messages.
    pub(crate) fn largest_gradient(&self, decoder: &Decoder<K>) -> String {
        let kernels = &decoder.kernels;
        let norms: Vec<(String, f64)> = match self {
            Self::Adapter { adapter, gradients, .. } => {
                let blocks = adapter.blocks.iter().zip(&gradients.blocks).enumerate();
                let modules = blocks.flat_map(|(layer, (modules, gradients))| {
                    modules.iter().zip(gradients).map(move |(module, gradients)| (layer, module, gradients))
                });
                modules
                    .flat_map(|(layer, module, [da, db])| {
                        let place =
                            format!("block {layer}'s {:?} (from row {})", module.linear, module.first_row);
                        [(format!("A on {place}"), da), (format!("B on {place}"), db)]
                    })
                    .map(|(name, gradient)| (name, kernels.squared_norm(gradient).sqrt()))
                    .collect()
            }
            Self::Full { gradients, .. } => {
                let named = |(slot, gradient): (Slot, &K::Buffer)| {
                    let name = match slot {
                        Slot::Layer(layer, slot) => format!("block {layer}'s {slot:?}"),
                        other => format!("{other:?}"),
                    };
                    (name, kernels.squared_norm(gradient).sqrt())
                };
                slots(&decoder.config)
                    .into_iter()
                    .filter_map(|slot| gradients.iter().find(|(other, _)| *other == slot))
                    .map(named)
                    .collect()
            }
        };
        let no_number = norms.iter().find(|(_, norm)| !norm.is_finite());
        let largest = no_number.or_else(|| norms.iter().max_by(|a, b| a.1.total_cmp(&b.1)));
        largest.map_or_else(|| "none".to_owned(), |(name, norm)| format!("that of {name}, {norm:.3e}"))
    }

    /// Moves the values and sets the gradients to zero.
    pub(crate) fn update(&mut self, decoder: &mut Decoder<K>, settings: &AdamW) {
        match self {
            Self::Adapter { adapter, gradients, moments } => {
                let kernels = &decoder.kernels;
                let modules = adapter.blocks.iter_mut().flatten();
                let gradients = gradients.blocks.iter_mut().flatten();
                for ((module, [da, db]), [a_moments, b_moments]) in modules.zip(gradients).zip(moments) {
                    kernels.adamw(settings, &mut module.a, da, a_moments);
                    kernels.adamw(settings, &mut module.b, db, b_moments);
                    for gradient in [da, db] {
                        kernels.clear(kernels.length(gradient), gradient);
                    }
                }
            }
            Self::Full { gradients, moments } => {
                let undecayed = AdamW { weight_decay: 0.0, ..*settings };
                for (slot, gradient) in gradients.iter() {
                    let settings = if slot.is_matrix() { settings } else { &undecayed };
                    if let Some(moments) = moments.get_mut(&slot) {
                        decoder.update(slot, settings, gradient, moments);
                    }
                }
                gradients.clear(decoder);
            }
        }
    }

    /// The values as named rows of floats; with the moments, for a checkpoint.
    pub(crate) fn tensors(&self, decoder: &Decoder<K>, with_moments: bool) -> Vec<(String, Vec<f32>)> {
        let mut tensors = Vec::new();
        let kernels = &decoder.kernels;
        let all = |values: &K::Buffer| kernels.download(values, kernels.length(values));
        match self {
            Self::Adapter { adapter, moments, .. } => {
                for (number, (module, moments)) in adapter.blocks.iter().flatten().zip(moments).enumerate() {
                    for (side, values, moments) in
                        [("a", &module.a, &moments[0]), ("b", &module.b, &moments[1])]
                    {
                        tensors.push((format!("{number:05}.{side}.values"), all(values)));
                        if with_moments {
                            tensors.push((format!("{number:05}.{side}.first"), all(&moments[0])));
                            tensors.push((format!("{number:05}.{side}.second"), all(&moments[1])));
                        }
                    }
                }
            }
            Self::Full { moments, .. } => {
                for (number, slot) in slots(&decoder.config).into_iter().enumerate() {
                    tensors.push((format!("{number:05}.values"), decoder.tensor(slot)));
                    if let Some([first, second]) = moments.get(&slot).filter(|_| with_moments) {
                        tensors.push((format!("{number:05}.first"), decoder.gradient_values(slot, first)));
                        tensors.push((format!("{number:05}.second"), decoder.gradient_values(slot, second)));
                    }
                }
            }
        }
        tensors
    }

    /// The inverse of [`Trained::tensors`]. What a name does not fill stays as it is.
    pub(crate) fn restore(
        &mut self,
        decoder: &mut Decoder<K>,
        mut take: impl FnMut(&str, usize) -> Option<Vec<f32>>,
    ) -> Option<()> {
        match self {
            Self::Adapter { adapter, moments, .. } => {
                let kernels = &decoder.kernels;
                for (number, (module, moments)) in
                    adapter.blocks.iter_mut().flatten().zip(moments).enumerate()
                {
                    let [of_a, of_b] = moments;
                    for (side, values, moments) in [("a", &mut module.a, of_a), ("b", &mut module.b, of_b)] {
                        let name = |what: &str| format!("{number:05}.{side}.{what}");
                        let found = take(&name("values"), kernels.length(values))?;
                        kernels.write(&found, values);
                        for (what, moment) in ["first", "second"].into_iter().zip(moments) {
                            if let Some(found) = take(&name(what), kernels.length(moment)) {
                                kernels.write(&found, moment);
                            }
                        }
                    }
                }
            }
            Self::Full { moments, .. } => {
                for (number, slot) in slots(&decoder.config).into_iter().enumerate() {
                    let length = slot.shape(&decoder.config).iter().product();
                    decoder.set_tensor(slot, take(&format!("{number:05}.values"), length)?);
                    for (what, index) in [("first", 0), ("second", 1)] {
                        if let Some(found) = take(&format!("{number:05}.{what}"), length) {
                            let moment = decoder.load_like(slot, found);
                            if let Some(moments) = moments.get_mut(&slot) {
                                moments[index] = moment;
                            }
                        }
                    }
                }
            }
        }
        Some(())
    }
}
