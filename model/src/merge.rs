//! An adapter merged into its base model's weights, and how far the merged model's logits are from theirs.

use std::path::Path;

use engine::arena::{Workspace, WorkspacePlan};
use engine::batch::Batch;
use engine::decoder::lora::HostLora;
use engine::decoder::weights::{self, HostData, HostTensor, Slot};
use engine::decoder::{self, AdapterRows, Decoder, Weights};
use engine::kernels::{DropoutKey, Kernels};
use rayon::prelude::*;

use crate::adapter::Adapter;
use crate::base_model::BaseModel;
use crate::error::{Error, Result};
use crate::folder::{self, Precision};
use crate::gguf;

/// A base model and an adapter on it; without one, the base model itself.
pub struct Merged<'m> {
    /// The base model.
    pub base: &'m BaseModel,
    /// The adapter.
    pub adapter: Option<&'m Adapter>,
}

impl<'m> Merged<'m> {
    /// The weights of a slot, in the decoder's layout: `W + scale B A` in f32 where the adapter has a module on it, else
    /// the base model's as they are.
    ///
    /// # Errors
    /// The base model's files cannot be read.
    pub fn tensor(&self, slot: Slot) -> Result<HostTensor<'m>> {
        let tensor = self.base.tensor(slot)?;
        let Slot::Layer(layer, layer_slot) = slot else { return Ok(tensor) };
        let on_it = |module: &&HostLora| module.layer == layer && module.linear.weight_slot() == layer_slot;
        let modules: Vec<&HostLora> =
            self.adapter.into_iter().flat_map(|adapter| &adapter.modules).filter(on_it).collect();
        if modules.is_empty() {
            return Ok(tensor);
        }
        let columns = tensor.shape[1];
        let mut weights = tensor.to_f32();
        for module in modules {
            add(module, columns, &mut weights[module.first_row * columns..][..module.rows * columns]);
        }
        Ok(HostTensor { shape: tensor.shape, data: HostData::F32(weights.into()) })
    }

    /// Writes the merged model as a Hugging Face folder.
    ///
    /// # Errors
    /// As for [`folder::write`].
    pub fn write_folder(&self, path: &Path, precision: Precision) -> Result<()> {
        folder::write(path, self.base, precision, |slot| self.tensor(slot))
    }

    /// Writes the merged model as a GGUF file, as llama.cpp reads it: matrices in `precision`, vectors in f32.
    ///
    /// # Errors
    /// The format cannot say what the model computes, or has no tokenizer of the model's kind; a file could not be read
    /// or written.
    pub fn write_gguf(&self, path: &Path, precision: Precision) -> Result<()> {
        gguf::write(path, self.base, precision, &|slot| self.tensor(slot))
    }

    /// The logits after every token of each text, `[length, vocabulary]`, with the adapter beside the weights, not in
    /// them.
    ///
    /// # Errors
    /// The files cannot be read, or the engine cannot compute them.
    pub fn logits<K: Kernels>(&self, kernels: K, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let (path, config) = (self.base.path(), self.base.config());
        let refuse = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
        let frozen = Weights::Frozen(weights::Precision::Published);
        let decoder = Decoder::load(kernels, config, frozen, |slot| self.base.tensor(slot));
        let decoder = decoder.map_err(|error| refuse(error.to_string()))?;
        let adapter = self
            .adapter
            .map(|adapter| decoder::Adapter::load(&decoder.kernels, config, &adapter.modules))
            .transpose()
            .map_err(refuse)?;
        let adapters: Vec<&decoder::Adapter<K>> = adapter.iter().collect();
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let plan = WorkspacePlan { tokens: longest, recompute: false, training: false };
        let mut workspace = Workspace::new(&decoder, &adapters, plan);
        let mut all = Vec::new();
        for text in texts {
            let mut batch = Batch::default();
            batch.push(text, &vec![false; text.len()], DropoutKey::new(0, 0, 0));
            let on: Vec<AdapterRows<'_, K>> =
                adapter.iter().map(|adapter| AdapterRows { adapter, rows: 0..text.len() }).collect();
            let rows: Vec<usize> = (0..text.len()).collect();
            all.push(decoder.logits(&on, &batch, &rows, &mut workspace));
        }
        Ok(all)
    }
}

/// `weights += scale B A`; rows of `columns`, in the module's order.
fn add(module: &HostLora, columns: usize, weights: &mut [f32]) {
    let rows = weights.par_chunks_exact_mut(columns).zip(module.b.par_chunks_exact(module.rank));
    rows.for_each_init(Vec::new, |sums: &mut Vec<f64>, (row, b)| {
        // In f64, so that nothing is lost before the sum becomes a weight.
        sums.clear();
        sums.extend(row.iter().map(|weight| f64::from(*weight)));
        for (b, a) in b.iter().zip(module.a.chunks_exact(columns)) {
            let b = f64::from(module.scale) * f64::from(*b);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * f64::from(*a));
        }
        row.iter_mut().zip(sums).for_each(|(weight, sum)| *weight = *sum as f32);
    });
}

/// How far one model's logits are from another's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogitDifference {
    /// The largest difference of two logits.
    pub largest: f32,
    /// ‖a − b‖ / ‖b‖ over all logits.
    pub relative: f64,
    /// Positions at which the best token is another.
    pub other_best: usize,
    /// Positions compared.
    pub positions: usize,
}

/// Compares what [`Merged::logits`] gave for the same texts: `found` against `expected`.
///
/// # Panics
/// If they are not of the same texts and vocabulary.
pub fn compare(found: &[Vec<f32>], expected: &[Vec<f32>], vocabulary: usize) -> LogitDifference {
    assert_eq!(found.len(), expected.len(), "texts");
    let mut difference = LogitDifference::default();
    let (mut distance, mut size) = (0.0f64, 0.0f64);
    let rows = found.iter().zip(expected).flat_map(|(found, expected)| {
        assert_eq!(found.len(), expected.len(), "logits");
        found.chunks_exact(vocabulary).zip(expected.chunks_exact(vocabulary))
    });
    for (found, expected) in rows {
        difference.positions += 1;
        difference.other_best += usize::from(best(found) != best(expected));
        for (found, expected) in found.iter().zip(expected) {
            let apart = (found - expected).abs();
            // A NaN is the largest difference there is, and stays.
            if apart > difference.largest || apart.is_nan() {
                difference.largest = apart;
            }
            distance += f64::from(apart) * f64::from(apart);
            size += f64::from(*expected) * f64::from(*expected);
        }
    }
    difference.relative = (distance / size.max(f64::MIN_POSITIVE)).sqrt();
    difference
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)))
}
