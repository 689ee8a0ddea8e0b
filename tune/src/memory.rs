//! What a tuning will take, counted before it starts, and what would fit where it does not.

use engine::WorkspacePlan;
use engine::decoder::weights::{Precision, slots};
use model::BaseModel;
use model::adapter::Adapter as PeftAdapter;

use crate::error::{Error, Result};
use crate::settings::{FrozenWeights, Method, Settings};

/// Bytes that a tuning holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// The base model's weights.
    pub weights: u64,
    /// What is trained beside them, gradients, and the optimizer's two moments.
    pub trained: u64,
    /// Activations and their gradients, of one micro-batch.
    pub activations: u64,
    /// What the products keep for themselves, and the program.
    pub rest: u64,
}

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.trained + self.activations + self.rest
    }
}

/// The program before it has read a model: code, the threads' stacks, the tokenizer.
const PROGRAM: u64 = 100 << 20;

/// Rows of the vocabulary's logits that full tuning makes at once.
const LOGIT_ROWS: u64 = 128;

/// What a tuning on rows of at most `longest` tokens will hold. `adapter` is the one that LoRA begins with.
pub fn predict(
    base: &BaseModel,
    adapter: Option<&PeftAdapter>,
    settings: &Settings,
    longest: usize,
) -> MemoryPlan {
    let config = base.config();
    let full = settings.method == Method::Full;
    let kept = if full { Precision::F32 } else { settings.weights.precision() };
    let weights: u64 = slots(config)
        .into_iter()
        .map(|slot| {
            let shape = slot.shape(config);
            let elements = shape.iter().product::<usize>() as u64;
            // Packed in panels of 32 rows.
            let packed = (shape[0].next_multiple_of(32) * shape[1..].iter().product::<usize>()) as u64;
            match (slot.is_matrix(), kept.of(slot)) {
                (false, _) => 4 * elements,
                (true, Precision::Published) => bytes_of(packed, base.stored_precision()),
                (true, precision) => bytes_of(packed, precision),
            }
        })
        .sum();
    let of_adapter: u64 = adapter
        .into_iter()
        .flat_map(|adapter| &adapter.modules)
        .map(|module| 4 * (module.a.len() + module.b.len()) as u64)
        .sum();
    // Gradients and two moments, and an adapter's own values.
    let trained = if full { 3 * weights } else { 4 * of_adapter };
    let plan = plan(settings, longest);
    let ranks: usize =
        adapter.into_iter().flat_map(|adapter| &adapter.modules).map(|module| module.rank).sum();
    let activations = 4 * plan.floats(config, ranks) as u64;
    // A product's packed left side, and the logits that exist at once.
    let widest = config.hidden.max(config.intermediate).max(config.attention_width()) as u64;
    let logits = if full { LOGIT_ROWS * config.vocabulary as u64 } else { plan.tokens as u64 * 512 };
    let rest = PROGRAM + 4 * (plan.tokens as u64 * widest + logits);
    MemoryPlan { weights, trained, activations, rest }
}

/// The workspace of a tuning whose longest row has `longest` tokens.
pub(crate) fn plan(settings: &Settings, longest: usize) -> WorkspacePlan {
    WorkspacePlan {
        tokens: settings.micro_batch_tokens.max(longest),
        training: true,
        recompute: settings.recompute,
    }
}

/// Bytes of so many elements.
fn bytes_of(elements: u64, precision: Precision) -> u64 {
    match precision {
        Precision::Published | Precision::F32 => 4 * elements,
        Precision::Bf16 | Precision::F16 => 2 * elements,
        // A scale of 4 bytes for 32 elements of one byte, and for 64 of half a byte.
        Precision::Bits8 => elements + elements / 8,
        Precision::Nf4 => elements / 2 + elements / 16,
    }
}

/// Refuses a tuning that would not fit into `available` bytes, and says what would.
///
/// # Errors
/// [`Error::Memory`].
pub(crate) fn check(
    base: &BaseModel,
    adapter: Option<&PeftAdapter>,
    settings: &Settings,
    longest: usize,
    available: Option<u64>,
) -> Result<()> {
    let Some(available) = available else { return Ok(()) };
    let wanted = predict(base, adapter, settings, longest);
    if wanted.total() <= available {
        return Ok(());
    }
    let fitting = frugal(settings, longest).into_iter().find_map(|(flags, settings)| {
        let total = predict(base, adapter, &settings, longest).total();
        (total <= available).then(|| format!("{flags} would fit, with {}", gigabytes(total)))
    });
    let least =
        "nothing that `tune` can spare would make it fit: it takes a smaller model or a larger machine";
    Err(Error::Memory(format!(
        "this tuning would take {} (weights {}, what is trained {}, activations of {} tokens {}), and {} are free; {}",
        gigabytes(wanted.total()),
        gigabytes(wanted.weights),
        gigabytes(wanted.trained),
        plan(settings, longest).tokens,
        gigabytes(wanted.activations),
        gigabytes(available),
        fitting.unwrap_or_else(|| least.to_owned()),
    )))
}

/// Settings that take less, from the one that costs the least time or precision on, each with its flags.
fn frugal(settings: &Settings, longest: usize) -> Vec<(String, Settings)> {
    let fewest = longest.max(1);
    let mut ways = Vec::new();
    let weights = [
        (None, settings.weights),
        (Some("bf16"), FrozenWeights::Bf16),
        (Some("8bit"), FrozenWeights::Bits8),
        (Some("4bit"), FrozenWeights::Bits4),
    ];
    let weights = if settings.method == Method::Lora { &weights[..] } else { &weights[..1] };
    for (name, weights) in weights {
        for tokens in [settings.micro_batch_tokens, fewest] {
            for recompute in [settings.recompute, true] {
                let mut flags = Vec::new();
                if let Some(name) = name {
                    flags.push(format!("--weights {name}"));
                }
                if tokens < settings.micro_batch_tokens {
                    flags.push(format!("--micro-batch-tokens {tokens}"));
                }
                if recompute && !settings.recompute {
                    flags.push("--recompute".to_owned());
                }
                let settings =
                    Settings { weights: *weights, micro_batch_tokens: tokens, recompute, ..settings.clone() };
                ways.push((flags.join(" "), settings));
            }
        }
    }
    ways
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Bytes that this process can still have: the system's available memory, or what its control group leaves if that is
/// less; none where the system does not say.
pub fn available() -> Option<u64> {
    let information = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = information.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024;
    let group = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    let left = group("memory.max").zip(group("memory.current"));
    Some(left.map_or(system, |(most, current)| system.min(most.saturating_sub(current))))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::Preset;

    fn base() -> BaseModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
        match BaseModel::open(folder) {
            Ok(base) => base,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let base = base();
        let settings =
            Settings { micro_batch_tokens: 100_000, ..Settings::preset(Preset::Paper, Method::Lora) };
        let enough = predict(&base, None, &settings, 64).total();
        assert!(check(&base, None, &settings, 64, Some(enough)).is_ok());
        assert!(check(&base, None, &settings, 64, None).is_ok());
        let found = check(&base, None, &settings, 64, Some(enough - 1)).map_err(|error| error.to_string());
        assert!(matches!(&found, Err(message) if message.contains("--recompute would fit")), "{found:?}");
        let found =
            check(&base, None, &settings, 64, Some(PROGRAM + (4 << 20))).map_err(|error| error.to_string());
        assert!(
            matches!(&found, Err(message) if message.contains("--micro-batch-tokens 64 would fit")),
            "{found:?}"
        );
        let found = check(&base, None, &settings, 64, Some(1)).map_err(|error| error.to_string());
        assert!(matches!(&found, Err(message) if message.contains("a smaller model")), "{found:?}");
    }
}
