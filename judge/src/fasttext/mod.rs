//! A predictor for supervised fastText models (`.bin` and `.ftz`).
//!
//! It answers what fastText's own program answers, label for label and to 1e-4 in probability: for softmax,
//! hierarchical softmax, one-versus-all and negative sampling; for dense and product-quantised matrices, with or
//! without quantised norms and output; for pruned dictionaries; for character and word n-grams. Where fastText's answer
//! hangs on a detail (which of two equal scores comes first, bytes widened with their sign, a table of logistic
//! values, 1e-5 added under the logarithm and so to each probability), that detail is kept.
//!
//! The file is mapped, not read: a dense model of a gigabyte opens at once, and costs the pages that texts touch. A
//! hostile file gives a [`ModelError`], never a panic or a large allocation.
//!
//! After Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification", and Joulin et al. 2016,
//! "FastText.zip: Compressing text classification models".

mod dictionary;
mod error;
mod heap;
mod matrix;
mod output;
mod reader;
mod settings;

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

pub use error::{ModelError, Problem};
pub use settings::{Loss, Settings};

use dictionary::{Dictionary, Tokens};
use matrix::Matrix;
use output::{Output, Scores};
use reader::Reader;

/// A model, ready to predict.
pub struct Model {
    file: Bytes,
    settings: Settings,
    dictionary: Dictionary,
    input: Matrix,
    output: Output,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// What predicting needs beside the model. Kept from text to text, it saves every allocation.
#[derive(Default)]
pub struct Scratch {
    tokens: Tokens,
    hidden: Vec<f32>,
    scores: Scores,
}

/// A label's number and probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The label's place in [`Model::labels`].
    pub label: usize,
    /// Its probability as fastText gives it, which is 1e-5 more than the true one and may so pass 1.
    pub probability: f32,
}

impl Model {
    /// Opens a model file.
    ///
    /// # Errors
    /// Where the file cannot be read, or is not a supervised fastText model of format 11 or 12.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let with_path = |problem| ModelError { path: path.to_owned(), problem };
        let file = File::open(path).map_err(|error| with_path(error.into()))?;
        // SAFETY: the map is only read. Should another program change the file meanwhile, answers may change with
        // it; every offset into it was checked against its length, and is checked again by slicing. Should it cut the
        // file short, the system ends this process where it reads behind the end (SIGBUS): no memory is misread.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| with_path(error.into()))?;
        Self::new(Bytes::Mapped(map)).map_err(with_path)
    }

    /// A model from a file's bytes.
    ///
    /// # Errors
    /// Where they are not a supervised fastText model of format 11 or 12.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Problem> {
        Self::new(Bytes::Owned(bytes))
    }

    fn new(file: Bytes) -> Result<Self, Problem> {
        let mut reader = Reader::new(file.get());
        let settings = Settings::read(&mut reader)?;
        let dictionary = Dictionary::read(&mut reader, &settings)?;
        let quantised = reader.flag("whether the input matrix is quantised")?;
        if dictionary.is_pruned() && !quantised {
            return Err(reader.invalid(
                "the input matrix",
                "dense",
                "quantised, as the dictionary is pruned",
            ));
        }
        let input = Matrix::read(&mut reader, "the input matrix", quantised, settings.dimensions)?;
        if (input.rows as u64) < dictionary.rows_needed() {
            let expected = format!("at least {}, as the dictionary says", dictionary.rows_needed());
            return Err(reader.invalid("the rows of the input matrix", input.rows, expected));
        }
        let quantised_output = reader.flag("whether the output matrix is quantised")? && quantised;
        let output = Matrix::read(&mut reader, "the output matrix", quantised_output, settings.dimensions)?;
        let labels = dictionary.labels.len();
        if output.rows != labels {
            return Err(reader.invalid(
                "the rows of the output matrix",
                output.rows,
                format!("{labels} labels"),
            ));
        }
        let largest = output::largest_count(labels);
        if let Some(count) = dictionary.label_counts.iter().find(|count| !(0..=largest).contains(*count)) {
            return Err(reader.invalid("the count of a label", count, format!("0 to {largest}")));
        }
        let (values, norms) = output.unpacked(file.get())?;
        let output = Output::new(settings.loss, values, norms, &dictionary.label_counts);
        Ok(Self { settings, dictionary, input, output, file })
    }

    /// The labels as the model has them, `__label__` included.
    pub fn labels(&self) -> &[String] {
        &self.dictionary.labels
    }

    /// The settings that prediction depends on.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The `count` most probable labels of `text` up to its first line feed, best first, all of them at least
    /// `threshold`. fastText's own default threshold is 0, at which hierarchical softmax leaves out what is under
    /// 1e-5; a negative one leaves out nothing.
    ///
    /// None where no part of the text, not even its end, is known to the model (and where the model's numbers are
    /// not finite).
    pub fn predict(
        &self,
        text: &str,
        count: usize,
        threshold: f32,
        scratch: &mut Scratch,
    ) -> Vec<Prediction> {
        let best = self.scores(text, count, threshold, scratch);
        best.iter().map(|&(score, label)| prediction(score, label)).collect()
    }

    /// The most probable label of `text` up to its first line feed, if any: [`Model::predict`] with a count of 1 and
    /// fastText's default threshold, and no allocation.
    pub fn predict_best(&self, text: &str, scratch: &mut Scratch) -> Option<Prediction> {
        self.scores(text, 1, 0.0, scratch).first().map(|&(score, label)| prediction(score, label))
    }

    fn scores<'a>(
        &self,
        text: &str,
        count: usize,
        threshold: f32,
        scratch: &'a mut Scratch,
    ) -> &'a [heap::Scored] {
        let Scratch { tokens, hidden, scores } = scratch;
        scores.best.clear();
        self.dictionary.rows(self.file.get(), text.as_bytes(), tokens);
        if tokens.rows.is_empty() || count == 0 {
            return &scores.best;
        }
        hidden.clear();
        hidden.resize(self.settings.dimensions, 0.0);
        for &row in &tokens.rows {
            self.input.add_row(self.file.get(), row as usize, hidden);
        }
        let share = (1.0 / tokens.rows.len() as f64) as f32;
        hidden.iter_mut().for_each(|value| *value *= share);
        let lowest = if threshold < 0.0 { f32::NEG_INFINITY } else { output::logarithm(threshold) };
        self.output.score(hidden, count, lowest, scores);
        &scores.best
    }
}

fn prediction(score: f32, label: u32) -> Prediction {
    Prediction { label: label as usize, probability: score.exp() }
}
