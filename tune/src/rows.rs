//! Records as tokens, and micro-batches cut from them.

use std::ops::Range;
use std::sync::Mutex;

use engine::kernels::DropoutKey;
use engine::{Batch, BatchRow};
use instructions::record::Record;
use instructions::template::Template;
use model::Tokenizer;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::prefixes;
use crate::settings::{Settings, Supervise};

/// One sequence to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingRow {
    /// The record's id.
    pub id: String,
    /// The record's language.
    pub language: String,
    /// At most the cutoff.
    pub tokens: Vec<u32>,
    /// First token that is supervised: 0 where the prompt is.
    pub supervised_from: usize,
}

impl TrainingRow {
    /// Tokens that the loss is taken over: the first of a sequence has nothing before it.
    pub fn supervised(&self) -> usize {
        self.tokens.len().saturating_sub(self.supervised_from.max(1))
    }
}

/// The rows of a run.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// In the file's order.
    pub rows: Vec<TrainingRow>,
    /// Ids of records whose response lies beyond the cutoff: with the response alone supervised they teach nothing.
    pub unsupervised: Vec<String>,
    /// Ids of records that the cutoff shortened.
    pub shortened: Vec<String>,
}

impl Rows {
    /// Records as sequences: template, response and end token, as the training scripts of the paper write them.
    ///
    /// # Errors
    /// A template or a text that the tokenizer refuses, with the record's id.
    pub fn encode(
        records: &[Record],
        template: &Template,
        tokenizer: &Tokenizer,
        settings: &Settings,
    ) -> Result<Self> {
        let encoded: Vec<(TrainingRow, bool)> = on_passing_threads(|| {
            let encoded = records.par_iter().map(|record| encode(record, template, tokenizer, settings));
            encoded.collect::<Result<_>>()
        })?;
        let mut rows = Self::default();
        for (row, shortened) in encoded {
            if row.supervised() == 0 {
                rows.unsupervised.push(row.id.clone());
            }
            if shortened {
                rows.shortened.push(row.id.clone());
            }
            rows.rows.push(row);
        }
        Ok(rows)
    }

    /// Plain text as sequences of `cutoff` tokens, document after document, each ending in the end token.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn from_text(documents: &[String], tokenizer: &Tokenizer, cutoff: usize) -> Result<Self> {
        let ids: Vec<Vec<u32>> = on_passing_threads(|| {
            documents.par_iter().map(|text| tokenizer.encode(text)).collect::<Result<_, _>>()
        })?;
        let mut stream = Vec::new();
        for document in ids {
            stream.extend(document);
            stream.extend(tokenizer.special().eos);
        }
        let row = |(number, tokens): (usize, &[u32])| TrainingRow {
            id: number.to_string(),
            language: String::new(),
            tokens: tokens.to_vec(),
            supervised_from: 0,
        };
        Ok(Self { rows: stream.chunks(cutoff.max(2)).enumerate().map(row).collect(), ..Self::default() })
    }

    /// Real tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).sum()
    }
}

/// Does something on as many threads as there are here, which end with it. What a thread remembers of a tokenizer's
/// words, megabytes of them, the library keeps until the thread ends, even where the tokenizer is long gone.
fn on_passing_threads<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build() {
        Ok(pool) => pool.install(work),
        // No thread is to be had: those of the program do it.
        Err(_) => work(),
    }
}

/// How many tokens a record is trained on, its template, response and end token, cut off after `cutoff`: as
/// [`Rows::encode`] has it, without the tokens themselves.
///
/// # Errors
/// As [`Rows::encode`].
pub fn count_tokens(
    record: &Record,
    template: &Template,
    tokenizer: &Tokenizer,
    cutoff: usize,
) -> Result<usize> {
    let text = format!("{}{}", render(record, template)?, record.output);
    Ok(tokenizer.encode_whole(&text, cutoff)?.len())
}

/// Counts many records' tokens behind a closure that can give back no error: the first one is kept for the end.
pub struct TokenCounter<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    cutoff: usize,
    refused: Mutex<Option<Error>>,
}

impl<'a> TokenCounter<'a> {
    /// A counter with what [`count_tokens`] takes.
    pub fn new(tokenizer: &'a Tokenizer, template: &'a Template, cutoff: usize) -> Self {
        Self { tokenizer, template, cutoff, refused: Mutex::new(None) }
    }

    /// As [`count_tokens`]; 0 for a record that cannot be counted, of which [`Self::finish`] tells.
    pub fn count(&self, record: &Record) -> usize {
        count_tokens(record, self.template, self.tokenizer, self.cutoff).unwrap_or_else(|error| {
            if let Ok(mut refused) = self.refused.lock() {
                refused.get_or_insert(error);
            }
            0
        })
    }

    /// # Errors
    /// Why the first record that could not be counted could not.
    pub fn finish(self) -> Result<()> {
        self.refused.into_inner().ok().flatten().map_or(Ok(()), Err)
    }
}

fn render(record: &Record, template: &Template) -> Result<String> {
    template.render(record).map_err(|error| Error::Template {
        id: record.id.clone(),
        language: record.language.to_string(),
        reason: format!("{error:#}"),
    })
}

fn encode(
    record: &Record,
    template: &Template,
    tokenizer: &Tokenizer,
    settings: &Settings,
) -> Result<(TrainingRow, bool)> {
    let prompt = render(record, template)?;
    let (tokens, supervised_from) = match settings.supervise {
        Supervise::All => {
            (tokenizer.encode_whole(&format!("{prompt}{}", record.output), settings.cutoff)?, 0)
        }
        Supervise::Response => {
            let encoded = tokenizer.encode_training(&prompt, &record.output, settings.cutoff)?;
            (encoded.ids, encoded.prompt_length)
        }
    };
    let shortened = tokens.len() == settings.cutoff && tokens.last() != tokenizer.special().eos.as_ref();
    let row =
        TrainingRow { id: record.id.clone(), language: record.language.to_string(), tokens, supervised_from };
    Ok((row, shortened))
}

/// Cuts rows into micro-batches of whole sequences, each of at most `tokens` tokens (a longer sequence is one alone)
/// and `sequences` sequences.
pub fn micro_batches(lengths: &[usize], tokens: usize, sequences: usize) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (index, length) in lengths.iter().enumerate() {
        if index > start && (sum + length > tokens || index - start == sequences) {
            cuts.push(start..index);
            (start, sum) = (index, 0);
        }
        sum += length;
    }
    if start < lengths.len() {
        cuts.push(start..lengths.len());
    }
    cuts
}

/// How rows that begin alike are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Each by itself: its dropout is drawn from its number in the set.
    Apart,
    /// What neighbours begin with is computed once, and its dropout is drawn from the tokens up to a place.
    Shared,
}

/// Rows as a packed batch of an update.
pub fn pack(rows: &[TrainingRow], numbers: &[usize], seed: u64, update: u64, packing: Packing) -> Batch {
    let parts = |number: &usize| {
        let row = &rows[*number];
        let supervised: Vec<bool> = (0..row.tokens.len()).map(|i| i >= row.supervised_from).collect();
        let dropout_keys = match packing {
            Packing::Apart => DropoutKey::new(seed, update, *number as u64).of_positions(row.tokens.len()),
            Packing::Shared => DropoutKey::of_beginnings(seed, update, &row.tokens),
        };
        (&row.tokens[..], supervised, dropout_keys)
    };
    let parts: Vec<_> = numbers.iter().map(parts).collect();
    let rows: Vec<BatchRow<'_>> = parts
        .iter()
        .map(|(tokens, supervised, dropout_keys)| BatchRow { tokens, supervised, dropout_keys })
        .collect();
    let mut batch = Batch::default();
    if packing == Packing::Shared {
        let tokens: Vec<&[u32]> = rows.iter().map(|row| row.tokens).collect();
        for group in prefixes::groups(&tokens) {
            batch.push_sharing(group.shared, &rows[group.rows]);
        }
    } else {
        batch.push_sharing(0, &rows);
    }
    batch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn micro_batches_hold_every_row_once_and_keep_the_bounds(
            lengths in prop::collection::vec(1usize..50, 0..40), tokens in 1usize..120, sequences in 1usize..10,
        ) {
            let cuts = micro_batches(&lengths, tokens, sequences);
            let all: Vec<usize> = cuts.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for cut in cuts {
                let sum: usize = lengths[cut.clone()].iter().sum();
                prop_assert!(cut.len() <= sequences && (sum <= tokens || cut.len() == 1));
            }
        }
    }
}
