//! The lengths of rows in tokens, each record cut once for each tokenizer, template and cutoff.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use instructions::mix::Mix;
use instructions::record::Record;
use instructions::template::TemplateChoice;
use model::BaseModel;
use tune::cost::RowLength;
use tune::{Rows, Settings};

/// The rows of a tuning.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowLengths {
    pub(crate) training: Vec<RowLength>,
    pub(crate) validation: Vec<RowLength>,
}

/// Remembers what it has cut.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    known: BTreeMap<String, HashMap<[u8; 16], RowLength>>,
}

impl Encoder {
    /// The lengths of a mix's rows.
    pub(crate) fn lengths(
        &mut self,
        base: &BaseModel,
        template: &TemplateChoice,
        settings: &Settings,
        mix: &Mix,
    ) -> Result<RowLengths> {
        let tokenizer = blake3::hash(base.tokenizer().to_json()?.as_bytes());
        let supervise = settings.supervise;
        let key = format!("{tokenizer} {template} {} {supervise:?}", settings.cutoff);
        let known = self.known.entry(key).or_default();
        let template = template.load(None)?;
        let mut lengths = |records: &[Record]| -> Result<Vec<RowLength>> {
            let keys: Vec<[u8; 16]> = records.iter().map(identity).collect();
            let missing: BTreeMap<[u8; 16], &Record> =
                keys.iter().copied().zip(records).filter(|(key, _)| !known.contains_key(key)).collect();
            let records: Vec<Record> = missing.values().copied().cloned().collect();
            let rows = Rows::encode(&records, &template, base.tokenizer(), settings)?;
            known.extend(missing.into_keys().zip(RowLength::of(&rows.rows)));
            Ok(keys.iter().filter_map(|key| known.get(key).copied()).collect())
        };
        Ok(RowLengths { training: lengths(&mix.rows)?, validation: lengths(&mix.validation)? })
    }
}

/// A record by what a template may read of it.
fn identity(record: &Record) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for text in [record.language.code(), &record.instruction, &record.input, &record.output] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    let mut identity = [0; 16];
    hasher.finalize_xof().fill(&mut identity);
    identity
}
