//! The experiment file's settings as the rooms take them: a preset, with what is given over it.

use answer::{Decoding, Sampling};
use instructions::template::TemplateChoice;
use serde_json::{Map, Value, json};

use crate::experiment::{Answer, Method, Preset, Pretraining, Tune};

/// How a method tunes under a preset, with the settings that are given over the preset's.
pub fn tuning(preset: Preset, method: Method, given: &Tune, seed: u64) -> tune::Settings {
    let base = tune::Settings::preset(preset, method);
    let length = match (given.updates, given.epochs) {
        (Some(updates), _) => tune::Length::Updates(updates),
        (None, Some(epochs)) => tune::Length::Epochs(epochs),
        (None, None) => base.length,
    };
    tune::Settings {
        method: base.method,
        batch: given.batch.unwrap_or(base.batch),
        micro_batch_tokens: given.micro_batch_tokens.unwrap_or(base.micro_batch_tokens),
        micro_batch: given.micro_batch.or(base.micro_batch),
        length,
        cutoff: given.cutoff.unwrap_or(base.cutoff),
        learning_rate: given.lr.unwrap_or(base.learning_rate),
        warmup: given.warmup.unwrap_or(base.warmup),
        schedule: given.schedule.unwrap_or(base.schedule),
        weight_decay: given.weight_decay.unwrap_or(base.weight_decay),
        dropout: given.dropout.map_or(base.dropout, |dropout| dropout as f32),
        clip: given.clip.or(base.clip),
        supervise: given.supervise.unwrap_or(base.supervise),
        order: given.order.unwrap_or(base.order),
        validate_every: given.validate_every.unwrap_or(base.validate_every),
        keep: given.keep.unwrap_or(base.keep),
        best_over: given.best_over.unwrap_or(base.best_over),
        patience: given.patience.or(base.patience),
        rank: given.rank.unwrap_or(base.rank),
        alpha: given.alpha.unwrap_or(base.alpha),
        modules: given.modules.clone().unwrap_or(base.modules),
        rslora: given.rslora.unwrap_or(base.rslora),
        weights: given.weights.unwrap_or(base.weights),
        recompute: given.recompute.unwrap_or(base.recompute),
        share_prefixes: given.share_prefixes.unwrap_or(base.share_prefixes),
        seed,
        checkpoint_every: given.checkpoint_every.unwrap_or(base.checkpoint_every),
        shard_weights: base.shard_weights,
    }
}

/// How a base model is trained from scratch: every weight, on every token, and the last values are kept.
pub fn pretraining(given: &Pretraining) -> tune::Settings {
    let length = match (given.updates, given.epochs) {
        (Some(updates), _) => tune::Length::Updates(updates),
        (None, epochs) => tune::Length::Epochs(epochs.unwrap_or(1.0)),
    };
    tune::Settings {
        batch: given.batch,
        length,
        cutoff: given.cutoff,
        learning_rate: given.lr,
        warmup: given.warmup,
        schedule: given.schedule,
        weight_decay: given.weight_decay,
        clip: Some(given.clip),
        supervise: tune::Supervise::All,
        keep: tune::Keep::Last,
        seed: given.seed,
        ..tune::Settings::preset(Preset::Paper, Method::Full)
    }
}

/// How a system decodes: the paper's beam 4 with no repeated 6-gram and 256 new tokens, with what is given over it.
/// Under `paper`, full tuning has a repetition penalty of 1.1 as well.
pub fn decoding(preset: Preset, method: Option<Method>, given: &Answer) -> Decoding {
    let base = Decoding::default();
    let penalty = if (preset, method) == (Preset::Paper, Some(Method::Full)) { 1.1 } else { 1.0 };
    let sample = (given.sample == Some(true)).then(|| Sampling {
        temperature: given.temperature.map_or(1.0, |temperature| temperature as f32),
        top_p: given.top_p.map_or(1.0, |top_p| top_p as f32),
        top_k: given.top_k.unwrap_or(0),
        seed: given.seed.unwrap_or(0),
    });
    Decoding {
        beams: given.beams.unwrap_or(if sample.is_some() { 1 } else { base.beams }),
        no_repeat_ngram: given.no_repeat_ngram.unwrap_or(base.no_repeat_ngram),
        repetition_penalty: given.repetition_penalty.map_or(penalty, |penalty| penalty as f32),
        length_penalty: given.length_penalty.unwrap_or(base.length_penalty),
        stops: given.stop.clone().unwrap_or_default(),
        new_tokens: given.new_tokens.unwrap_or(base.new_tokens),
        batch_tokens: given.batch_tokens.unwrap_or(base.batch_tokens),
        sample,
        ..base
    }
}

/// The paper's longest response.
const NEW_TOKENS: usize = 256;

/// How a system behind an endpoint is asked to decode, as the request's keys: of beams, penalties, `top_k` and a seed it
/// is told nothing, as not every endpoint knows them.
pub fn endpoint_decoding(given: &Answer) -> Map<String, Value> {
    let mut keys = Map::new();
    keys.insert("max_tokens".to_owned(), json!(given.new_tokens.unwrap_or(NEW_TOKENS)));
    if given.sample == Some(true) {
        keys.insert("temperature".to_owned(), json!(given.temperature.unwrap_or(1.0)));
        keys.insert("top_p".to_owned(), json!(given.top_p.unwrap_or(1.0)));
    } else {
        keys.insert("temperature".to_owned(), json!(0));
    }
    if let Some(stop) = given.stop.as_ref().filter(|stop| !stop.is_empty()) {
        keys.insert("stop".to_owned(), json!(stop));
    }
    keys
}

/// The prompt template of tuning and answering: as given, or the preset's. The authors' two scripts differ in the
/// white space behind `### Response:`, and under `paper` each method has its own.
pub fn template(preset: Preset, method: Option<Method>, given: Option<&str>) -> TemplateChoice {
    match (given, preset, method) {
        (Some(given), _, _) => given.to_owned().into(),
        (None, Preset::Paper, Some(Method::Full)) => TemplateChoice::StanfordAlpaca,
        (None, _, _) => TemplateChoice::Alpaca,
    }
}
