//! What the optimizer moves: an adapter's matrices, or all of a decoder's weights.

use std::collections::BTreeMap;

use engine::Cpu;
use engine::cpu::Buffer;
use engine::decoder::backward::Trained as Gradient;
use engine::decoder::weights::{Slot, slots};
use engine::decoder::{Adapter, AdapterGradients, Decoder, Gradients};
use engine::kernels::{AdamW, Kernels};
use engine::{Batch, Workspace};

/// The trained values, their gradients and their moments.
pub(crate) enum Trained {
    /// LoRA.
    Adapter { adapter: Adapter<Cpu>, gradients: AdapterGradients<Cpu>, moments: Vec<[[Buffer; 2]; 2]> },
    /// Full tuning: the weights themselves are the decoder's.
    Full { gradients: Gradients<Cpu>, moments: BTreeMap<Slot, [Buffer; 2]> },
}

impl Trained {
    /// An adapter, with moments of zero.
    pub(crate) fn adapter(adapter: Adapter<Cpu>) -> Self {
        let gradients = adapter.gradients(&Cpu);
        let zeros = |buffer: &Buffer| [Buffer::zeros(buffer.len()), Buffer::zeros(buffer.len())];
        let moments = gradients.blocks.iter().flatten().map(|[a, b]| [zeros(a), zeros(b)]).collect();
        Self::Adapter { adapter, gradients, moments }
    }

    /// All weights, with moments of zero.
    pub(crate) fn full(decoder: &Decoder<Cpu>) -> Self {
        let gradients = decoder.gradients();
        let zeros = |buffer: &Buffer| [Buffer::zeros(buffer.len()), Buffer::zeros(buffer.len())];
        let moments = gradients.iter().map(|(slot, buffer)| (slot, zeros(buffer))).collect();
        Self::Full { gradients, moments }
    }

    /// The adapter, if it is one.
    pub(crate) fn as_adapter(&self) -> Option<&Adapter<Cpu>> {
        match self {
            Self::Adapter { adapter, .. } => Some(adapter),
            Self::Full { .. } => None,
        }
    }

    /// Adds a micro-batch's gradient; returns its losses.
    pub(crate) fn step(
        &mut self,
        decoder: &Decoder<Cpu>,
        batch: &Batch,
        scale: f32,
        dropout: f32,
        workspace: &mut Workspace<Cpu>,
    ) -> Vec<f32> {
        let gradient = match self {
            Self::Adapter { adapter, gradients, .. } => Gradient::Adapter(adapter, gradients),
            Self::Full { gradients, .. } => Gradient::Full(gradients),
        };
        decoder.step(gradient, batch, scale, dropout, workspace)
    }

    /// The gradient's norm.
    pub(crate) fn gradient_norm(&self) -> f64 {
        let squares: f64 = match self {
            Self::Adapter { gradients, .. } => {
                gradients.blocks.iter().flatten().flatten().map(|buffer| Cpu.squared_norm(buffer)).sum()
            }
            Self::Full { gradients, .. } => {
                gradients.iter().map(|(_, buffer)| Cpu.squared_norm(buffer)).sum()
            }
        };
        squares.sqrt()
    }

    /// The tensor with the largest gradient, or the first whose gradient is no number, and the gradient's norm: for
    /// messages.
    pub(crate) fn largest_gradient(&self, decoder: &Decoder<Cpu>) -> String {
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
                    .map(|(name, gradient)| (name, Cpu.squared_norm(gradient).sqrt()))
                    .collect()
            }
            Self::Full { gradients, .. } => {
                let named = |(slot, gradient): (Slot, &Buffer)| {
                    let name = match slot {
                        Slot::Layer(layer, slot) => format!("block {layer}'s {slot:?}"),
                        other => format!("{other:?}"),
                    };
                    (name, Cpu.squared_norm(gradient).sqrt())
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
    pub(crate) fn update(&mut self, decoder: &mut Decoder<Cpu>, settings: &AdamW) {
        match self {
            Self::Adapter { adapter, gradients, moments } => {
                let modules = adapter.blocks.iter_mut().flatten();
                let gradients = gradients.blocks.iter_mut().flatten();
                for ((module, [da, db]), [a_moments, b_moments]) in modules.zip(gradients).zip(moments) {
                    Cpu.adamw(settings, &mut module.a, da, a_moments);
                    Cpu.adamw(settings, &mut module.b, db, b_moments);
                    da.fill(0.0);
                    db.fill(0.0);
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
    pub(crate) fn tensors(&self, decoder: &Decoder<Cpu>, with_moments: bool) -> Vec<(String, Vec<f32>)> {
        let mut tensors = Vec::new();
        match self {
            Self::Adapter { adapter, moments, .. } => {
                for (number, (module, moments)) in adapter.blocks.iter().flatten().zip(moments).enumerate() {
                    for (side, values, moments) in
                        [("a", &module.a, &moments[0]), ("b", &module.b, &moments[1])]
                    {
                        tensors.push((format!("{number:05}.{side}.values"), values.to_vec()));
                        if with_moments {
                            tensors.push((format!("{number:05}.{side}.first"), moments[0].to_vec()));
                            tensors.push((format!("{number:05}.{side}.second"), moments[1].to_vec()));
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
        decoder: &mut Decoder<Cpu>,
        mut take: impl FnMut(&str, usize) -> Option<Vec<f32>>,
    ) -> Option<()> {
        match self {
            Self::Adapter { adapter, moments, .. } => {
                for (number, (module, moments)) in
                    adapter.blocks.iter_mut().flatten().zip(moments).enumerate()
                {
                    let [of_a, of_b] = moments;
                    for (side, values, moments) in [("a", &mut module.a, of_a), ("b", &mut module.b, of_b)] {
                        let name = |what: &str| format!("{number:05}.{side}.{what}");
                        let found = take(&name("values"), values.len())?;
                        values.copy_from_slice(&found);
                        for (what, moment) in ["first", "second"].into_iter().zip(moments) {
                            if let Some(found) = take(&name(what), moment.len()) {
                                moment.copy_from_slice(&found);
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
