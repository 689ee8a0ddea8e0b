//! LoRA (Hu et al. 2022) as PEFT defines it: `y = W x + (alpha / rank) B A dropout(x)`.

use super::config::DecoderConfig;
use super::weights::LayerSlot;
use crate::kernels::{Kernels, LoraView};

/// One of a block's products that an adapter can be put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Linear {
    /// The fused query-key-value product.
    QueryKeyValue,
    /// Attention's output product.
    Output,
    /// The feed-forward gate.
    Gate,
    /// The feed-forward up product.
    Up,
    /// The feed-forward down product.
    Down,
}

/// One adapted module in the host's memory: A and B of one named module of one block.
///
/// A module covers the output rows `first_row .. first_row + rows` of its product, in the decoder's layout:
/// GPT-NeoX adapts the whole fused product with one A and B, LLaMA its query, key and value parts each with
/// their own.
#[derive(Clone, Debug, PartialEq)]
pub struct HostLora {
    /// The block.
    pub layer: usize,
    /// The product.
    pub linear: Linear,
    /// First output row covered.
    pub first_row: usize,
    /// Output rows covered.
    pub rows: usize,
    /// Inner width.
    pub rank: usize,
    /// What `B A x` is multiplied by: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f32,
    /// `[rank, inputs]`, row-major.
    pub a: Vec<f32>,
    /// `[rows, rank]`, row-major, rows in the decoder's order.
    pub b: Vec<f32>,
}

/// An adapter in a backend's memory.
pub struct Adapter<K: Kernels> {
    /// The adapted modules of each block.
    pub blocks: Vec<Vec<LoraModule<K>>>,
}

/// One adapted module in a backend's memory; see [`HostLora`].
pub struct LoraModule<K: Kernels> {
    /// The product.
    pub linear: Linear,
    /// First output row covered.
    pub first_row: usize,
    /// Output rows covered.
    pub rows: usize,
    /// Width of the input.
    pub inputs: usize,
    /// Inner width.
    pub rank: usize,
    /// What `B A x` is multiplied by.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: K::Buffer,
    /// `[rows, rank]`
    pub b: K::Buffer,
}

impl<K: Kernels> LoraModule<K> {
    /// What a kernel sees of it.
    pub(crate) fn view(&self) -> LoraView<'_, K::Buffer> {
        LoraView {
            a: &self.a,
            b: &self.b,
            rank: self.rank,
            inputs: self.inputs,
            outputs: self.rows,
            first: self.first_row,
            scale: self.scale,
        }
    }
}

impl<K: Kernels> Adapter<K> {
    /// Uploads an adapter's modules.
    ///
    /// # Errors
    /// A module whose shape does not fit the configuration, in words.
    pub fn load(kernels: &K, config: &DecoderConfig, modules: &[HostLora]) -> Result<Self, String> {
        let mut blocks: Vec<Vec<LoraModule<K>>> = (0..config.layers).map(|_| Vec::new()).collect();
        for module in modules {
            let (inputs, outputs) = module.linear.shape(config);
            let fits = module.layer < config.layers
                && module.first_row + module.rows <= outputs
                && module.a.len() == module.rank * inputs
                && module.b.len() == module.rows * module.rank;
            if !fits {
                return Err(format!(
                    "the adapter's {:?} of block {} covers rows {}..{} at rank {} with {} and {} weights, which does \
                     not fit a product of {inputs} inputs and {outputs} outputs in {} blocks",
                    module.linear,
                    module.layer,
                    module.first_row,
                    module.first_row + module.rows,
                    module.rank,
                    module.a.len(),
                    module.b.len(),
                    config.layers
                ));
            }
            blocks[module.layer].push(LoraModule {
                linear: module.linear,
                first_row: module.first_row,
                rows: module.rows,
                inputs,
                rank: module.rank,
                scale: module.scale,
                a: kernels.upload(&module.a),
                b: kernels.upload(&module.b),
            });
        }
        Ok(Self { blocks })
    }

    /// The modules as they are now, in the host's memory.
    pub fn to_host(&self, kernels: &K) -> Vec<HostLora> {
        let modules =
            self.blocks.iter().enumerate().flat_map(|(layer, block)| block.iter().map(move |m| (layer, m)));
        let to_host = |(layer, module): (usize, &LoraModule<K>)| HostLora {
            layer,
            linear: module.linear,
            first_row: module.first_row,
            rows: module.rows,
            rank: module.rank,
            scale: module.scale,
            a: kernels.download(&module.a, module.rank * module.inputs),
            b: kernels.download(&module.b, module.rows * module.rank),
        };
        modules.map(to_host).collect()
    }

    /// Gradients of zero.
    pub fn gradients(&self, kernels: &K) -> AdapterGradients<K> {
        let of_module = |module: &LoraModule<K>| {
            [kernels.buffer(module.rank * module.inputs), kernels.buffer(module.rows * module.rank)]
        };
        AdapterGradients {
            blocks: self.blocks.iter().map(|block| block.iter().map(of_module).collect()).collect(),
        }
    }

    /// The lowest block with a module: below it nothing needs a gradient.
    pub fn lowest(&self) -> Option<usize> {
        self.blocks.iter().position(|block| !block.is_empty())
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.blocks.iter().flatten().map(|module| module.rank * (module.inputs + module.rows)).sum()
    }
}

/// Gradients of an adapter: of A and of B, block by block and module by module.
pub struct AdapterGradients<K: Kernels> {
    /// `[A, B]` of each module of each block.
    pub blocks: Vec<Vec<[K::Buffer; 2]>>,
}

impl Linear {
    /// Where the product's weight lies.
    pub fn weight_slot(self) -> LayerSlot {
        match self {
            Self::QueryKeyValue => LayerSlot::QueryKeyValueWeight,
            Self::Output => LayerSlot::OutputWeight,
            Self::Gate => LayerSlot::GateWeight,
            Self::Up => LayerSlot::UpWeight,
            Self::Down => LayerSlot::DownWeight,
        }
    }

    /// Where its bias lies, where it has one. (No family has a gate with a bias; the up product's slot would be
    /// absent too.)
    pub(crate) fn bias_slot(self) -> LayerSlot {
        match self {
            Self::QueryKeyValue => LayerSlot::QueryKeyValueBias,
            Self::Output => LayerSlot::OutputBias,
            Self::Gate | Self::Up => LayerSlot::UpBias,
            Self::Down => LayerSlot::DownBias,
        }
    }

    /// Inputs and outputs of the product.
    pub fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        match self {
            Self::QueryKeyValue => (config.hidden, config.query_key_value_rows()),
            Self::Output => (config.attention_width(), config.hidden),
            Self::Gate | Self::Up => (config.hidden, config.intermediate),
            Self::Down => (config.intermediate, config.hidden),
        }
    }
}
