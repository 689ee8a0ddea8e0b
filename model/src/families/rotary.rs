//! The angles of a rotary embedding, as published configurations give them: plain or scaled.

use engine::decoder::config::Position;
use serde_json::Value;

use crate::error::Result;
use crate::keys::Keys;

/// How a rotary embedding was stretched to longer sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scaling {
    /// Not at all.
    None,
    /// Every angle divided by the factor (Chen et al. 2023).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// LLaMA 3: long waves divided by the factor, short ones kept, those between blended.
    Llama3 {
        /// The stretch of long waves.
        factor: f64,
        /// Waves longer than `original / low` are stretched.
        low: f64,
        /// Waves shorter than `original / high` are kept.
        high: f64,
        /// Positions that the model was first trained on.
        original: f64,
    },
}

/// A rotary embedding over the first `rotated` dimensions.
///
/// Computed in f32 step for step as transformers does, so that the angles are its to the last bit or the one before.
pub(crate) fn position(rotated: usize, base: f64, scaling: Scaling) -> Position {
    let mut frequencies: Vec<f32> =
        (0..rotated / 2).map(|i| 1.0 / (base as f32).powf((2 * i) as f32 / rotated as f32)).collect();
    for frequency in &mut frequencies {
        *frequency = scaled(*frequency, scaling);
    }
    Position::Rotary { rotated, frequencies }
}

fn scaled(frequency: f32, scaling: Scaling) -> f32 {
    match scaling {
        Scaling::None => frequency,
        Scaling::Linear { factor } => frequency / factor as f32,
        Scaling::Llama3 { factor, low, high, original } => {
            let wave = std::f32::consts::TAU / frequency;
            let (longest_kept, shortest_stretched) = ((original / high) as f32, (original / low) as f32);
            if wave < longest_kept {
                frequency
            } else if wave > shortest_stretched {
                frequency / factor as f32
            } else {
                let smooth = (original as f32 / wave - low as f32) / (high - low) as f32;
                (1.0 - smooth) * (frequency / factor as f32) + smooth * frequency
            }
        }
    }
}

/// What `config.json` says of the rotary embedding, in the keys of transformers 5 (`rope_parameters`) or before.
#[derive(Clone, Copy)]
pub(crate) struct Published {
    pub(crate) base: f64,
    /// The share of a head that is rotated.
    pub(crate) share: f64,
    pub(crate) scaling: Scaling,
}

/// Reads the rotary keys. `bases` and `shares` are the family's own old names.
pub(crate) fn read(
    keys: &Keys<'_>,
    bases: &[&str],
    shares: &[&str],
    default_share: f64,
    notes: &mut Vec<String>,
) -> Result<Published> {
    let parameters = keys.object("rope_parameters")?;
    let old = keys.object("rope_scaling")?;
    let mut base = keys.positive(bases, 10_000.0)?;
    let mut share = keys.positive(shares, default_share)?;
    if let Some(parameters) = &parameters {
        base = parameters.positive(&["rope_theta"], base)?;
        share = parameters.positive(&["partial_rotary_factor"], share)?;
    }
    let scaling = match parameters.as_ref().or(old.as_ref()) {
        None => Scaling::None,
        Some(given) => read_scaling(given, keys, notes)?,
    };
    Ok(Published { base, share, scaling })
}

/// Reads one object of rotary keys, of a model that has several.
pub(crate) fn read_parameters(
    given: &Keys<'_>,
    whole: &Keys<'_>,
    default_base: f64,
    notes: &mut Vec<String>,
) -> Result<Published> {
    let base = given.positive(&["rope_theta"], default_base)?;
    Ok(Published { base, share: 1.0, scaling: read_scaling(given, whole, notes)? })
}

fn read_scaling(given: &Keys<'_>, whole: &Keys<'_>, notes: &mut Vec<String>) -> Result<Scaling> {
    let kind = match given.text("rope_type")? {
        Some(kind) => Some(kind),
        None => given.text("type")?,
    };
    let factor = || match given.number(&["factor"])? {
        Some(factor) if factor > 0.0 => Ok(factor),
        Some(factor) => Err(given.bad("factor", &Value::from(factor), "a number above 0")),
        None => Err(given.missing("factor", "a number")),
    };
    match kind {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: factor()? }),
        Some("dynamic") => {
            notes.push(format!(
                "{}: rope_type `dynamic` changes nothing up to max_position_embeddings; longer sequences are not supported",
                whole.path().display()
            ));
            Ok(Scaling::None)
        }
        Some("llama3") => {
            let original = match given.number(&["original_max_position_embeddings"])? {
                Some(original) => original,
                None => whole.required_count(&["max_position_embeddings"])? as f64,
            };
            Ok(Scaling::Llama3 {
                factor: factor()?,
                low: given.positive(&["low_freq_factor"], 1.0)?,
                high: given.positive(&["high_freq_factor"], 4.0)?,
                original,
            })
        }
        Some(other) => {
            Err(given.unsupported("rope_type", &Value::from(other), "default, linear, dynamic or llama3"))
        }
    }
}
