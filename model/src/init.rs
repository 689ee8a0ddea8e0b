//! New models and new tokenizers: random weights from a seed, byte-level BPE learnt from texts.

use std::path::Path;

use engine::decoder::config::DecoderConfig;
use engine::decoder::weights::{HostData, HostTensor, LayerSlot, Slot, slots};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::keys::Keys;
use crate::tokenizer::{SpecialIds, Tokenizer, template};

/// Random weights as transformers initialises them: matrices and the embedding normal around 0, norms 1, biases 0.
///
/// Each slot is drawn from a stream of its own, so that a slot's weights depend on the seed and its place alone.
pub(crate) struct Fresh {
    seed: u64,
    deviation: f64,
}

impl Fresh {
    /// The standard deviation is `initializer_range` of the configuration, 0.02 where it has none.
    pub(crate) fn new(path: &Path, config: &Value, seed: u64) -> Result<Self> {
        let deviation = Keys::new(path, config)?.positive(&["initializer_range"], 0.02)?;
        Ok(Self { seed, deviation })
    }

    /// The seed.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// A slot's weights, in f32.
    pub(crate) fn tensor(&self, config: &DecoderConfig, slot: Slot) -> HostTensor<'static> {
        let shape = slot.shape(config);
        let length = shape.iter().product();
        let data = if slot.is_matrix() {
            let place = slots(config).iter().position(|&other| other == slot).unwrap_or_default();
            normal(&mut stream(self.seed, place as u64), length, self.deviation)
        } else {
            vec![if is_norm_weight(slot) { 1.0 } else { 0.0 }; length]
        };
        HostTensor { shape, data: HostData::F32(data.into()) }
    }
}

fn is_norm_weight(slot: Slot) -> bool {
    matches!(
        slot,
        Slot::EmbeddingNormWeight
            | Slot::FinalNormWeight
            | Slot::Layer(
                _,
                LayerSlot::AttentionNormWeight
                    | LayerSlot::FeedForwardNormWeight
                    | LayerSlot::QueryNormWeight
                    | LayerSlot::KeyNormWeight
                    | LayerSlot::AttentionOutputNormWeight
                    | LayerSlot::FeedForwardOutputNormWeight
            )
    )
}

/// An independent stream of random numbers for one tensor.
pub(crate) fn stream(seed: u64, place: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(place);
    random
}

/// From 0 up to but not 1, in steps of 2^-53.
pub(crate) fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Normally distributed numbers around 0 (Box and Muller 1958).
fn normal(random: &mut ChaCha8Rng, length: usize, deviation: f64) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(length + 1);
    while numbers.len() < length {
        // One less a number below 1 is above 0, so that the logarithm is finite.
        let radius = deviation * (-2.0 * (1.0 - unit(random)).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * unit(random)).sin_cos();
        numbers.push((radius * cosine) as f32);
        numbers.push((radius * sine) as f32);
    }
    numbers.truncate(length);
    numbers
}

/// The tokens of a new tokenizer that have a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSpecialTokens<'a> {
    /// Begins every encoded text, where given.
    pub bos: Option<&'a str>,
    /// Ends a response.
    pub eos: Option<&'a str>,
    /// Padding in other programs.
    pub pad: Option<&'a str>,
}

/// Learns a byte-level BPE tokenizer (GPT-2's way of cutting words, digits one by one) of `vocabulary` tokens.
///
/// The special tokens come first, then the 256 bytes, so that every text can be encoded and comes back as it was.
/// The same texts give the same tokenizer.
///
/// # Errors
/// `vocabulary` has no room for the bytes and the special tokens.
pub fn train_tokenizer<'t>(
    texts: impl IntoIterator<Item = &'t str>,
    vocabulary: usize,
    special: &NewSpecialTokens<'_>,
) -> Result<Tokenizer> {
    use tokenizers::models::bpe::BPE;
    let path = Path::new("(new tokenizer)");
    let named: Vec<&str> = [special.bos, special.eos, special.pad].into_iter().flatten().collect();
    let mut tokens: Vec<&str> = Vec::new();
    for name in named {
        if !tokens.contains(&name) {
            tokens.push(name);
        }
    }
    let least = 256 + tokens.len();
    if vocabulary < least {
        let reason = format!("a vocabulary of {vocabulary} was asked for; expected at least {least}");
        return Err(Error::Tokenizer { path: path.to_owned(), reason });
    }
    let skeleton = json!({
        "version": "1.0",
        "pre_tokenizer": crate::pre_tokenizer::digits_apart(),
        "decoder": crate::pre_tokenizer::byte_level(),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    });
    let mut inner =
        tokenizers::Tokenizer::from_bytes(skeleton.to_string()).map_err(Error::tokenizer(path))?;
    let mut trainer = tokenizers::models::TrainerWrapper::from(
        tokenizers::models::bpe::BpeTrainer::builder()
            .vocab_size(vocabulary)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(tokens.iter().map(|&token| tokenizers::AddedToken::from(token, true)).collect())
            .initial_alphabet(
                tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect(),
            )
            .build(),
    );
    inner.with_model(BPE::default());
    let texts: Vec<&str> = texts.into_iter().collect();
    inner.train(&mut trainer, texts.into_iter()).map_err(Error::tokenizer(path))?;
    let id =
        |token: Option<&str>| token.and_then(|token| Some((token.to_owned(), inner.token_to_id(token)?)));
    let (bos, eos, pad) = (id(special.bos), id(special.eos), id(special.pad));
    if bos.is_some() {
        let processor: tokenizers::PostProcessorWrapper =
            serde_json::from_value(template(bos.as_ref(), None)).map_err(Error::tokenizer(path))?;
        inner.with_post_processor(Some(processor));
    }
    let ids = SpecialIds {
        bos: bos.map(|(_, id)| id),
        eos: eos.as_ref().map(|(_, id)| *id),
        pad: pad.map(|(_, id)| id),
        stops: eos.map(|(_, id)| id).into_iter().collect(),
    };
    Ok(Tokenizer::from_inner(path, inner)?.with_special(ids, None))
}
