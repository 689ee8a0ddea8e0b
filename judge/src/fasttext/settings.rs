//! The head of a model file: the settings that it was trained with, as far as prediction depends on them.

use super::error::Problem;
use super::reader::Reader;

/// The number every model file starts with since fastText 0.1.0 (2017).
const MAGIC: i32 = 793_712_314;
/// No model needs longer n-grams; a hostile one could make a long word take for ever.
const LONGEST_NGRAM: usize = 1024;

/// How labels are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A binary tree of labels, each inner node a logistic decision.
    HierarchicalSoftmax,
    /// Each label a logistic decision of its own, trained against sampled labels.
    NegativeSampling,
    /// One distribution over all labels.
    Softmax,
    /// Each label a logistic decision of its own, trained against all others.
    OneVersusAll,
}

/// The settings that prediction depends on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Length of a vector.
    pub dimensions: usize,
    /// The longest word n-gram; 1 for words alone.
    pub word_ngrams: usize,
    /// How labels are scored.
    pub loss: Loss,
    /// Number of buckets that n-grams are hashed into.
    pub buckets: u32,
    /// The shortest character n-gram.
    pub shortest: usize,
    /// The longest character n-gram; 0 for none.
    pub longest: usize,
}

impl Settings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Problem> {
        let magic = reader.i32("the magic number")?;
        if magic != MAGIC {
            return Err(reader.invalid("the magic number", magic, MAGIC.to_string()));
        }
        let version = reader.i32("the format's version")?;
        if !(11..=12).contains(&version) {
            return Err(reader.invalid("the format's version", version, "11 or 12"));
        }
        let dimensions = nonnegative(reader, "dim")?;
        for unused in ["ws", "epoch", "minCount", "neg"] {
            reader.i32(unused)?;
        }
        let word_ngrams = nonnegative(reader, "wordNgrams")?;
        let loss = match reader.i32("loss")? {
            1 => Loss::HierarchicalSoftmax,
            2 => Loss::NegativeSampling,
            3 => Loss::Softmax,
            4 => Loss::OneVersusAll,
            found => {
                return Err(reader.invalid("loss", found, "1 (hs), 2 (ns), 3 (softmax) or 4 (one-vs-all)"));
            }
        };
        let model = reader.i32("model")?;
        if model != 3 {
            return Err(reader.invalid("model", model, "3 (supervised): word vectors predict no labels"));
        }
        let buckets = nonnegative(reader, "bucket")? as u32;
        let shortest = nonnegative(reader, "minn")?;
        let mut longest = nonnegative(reader, "maxn")?;
        reader.i32("lrUpdateRate")?;
        reader.i64("t")?;
        if version == 11 {
            // Supervised models of that version were trained without character n-grams, whatever they say.
            longest = 0;
        }
        for (what, length) in [("wordNgrams", word_ngrams), ("maxn", longest)] {
            if length > LONGEST_NGRAM {
                return Err(reader.invalid(what, length, format!("at most {LONGEST_NGRAM}")));
            }
        }
        if dimensions == 0 {
            return Err(reader.invalid("dim", 0, "at least 1"));
        }
        if buckets == 0 && (longest > 0 || word_ngrams > 1) {
            return Err(reader.invalid("bucket", 0, "at least 1, as the model has n-grams"));
        }
        Ok(Self { dimensions, word_ngrams, loss, buckets, shortest, longest })
    }
}

fn nonnegative(reader: &mut Reader<'_>, what: &'static str) -> Result<usize, Problem> {
    let found = reader.i32(what)?;
    reader.count(what, i64::from(found))
}
