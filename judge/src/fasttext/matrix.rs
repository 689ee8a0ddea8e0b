//! A model's matrices, dense or product-quantised, as they lie in the file.

use std::ops::Range;

use super::error::Problem;
use super::reader::{Reader, floats};

/// Centroids of each part of a quantised vector: a code is one byte.
const CENTROIDS: usize = 256;
/// A quantised output matrix is unpacked once; more than this is refused, as a small file could ask for any amount.
const LARGEST_UNPACKED: u64 = 1 << 28;

/// A matrix, row by row.
pub(super) struct Matrix {
    pub(super) rows: usize,
    columns: usize,
    storage: Storage,
}

enum Storage {
    /// 32-bit floating-point numbers in the file.
    Dense(Range<usize>),
    Quantised {
        /// A byte in the file for each part of each row.
        codes: Range<usize>,
        quantiser: Quantiser,
        /// A byte in the file for each row, and the norm each byte stands for.
        norms: Option<(Range<usize>, Vec<f32>)>,
    },
}

/// Cuts a vector into parts, and knows the vectors that a part's codes stand for.
struct Quantiser {
    parts: usize,
    /// Length of a part but for the last.
    width: usize,
    /// Length of the last part.
    last_width: usize,
    /// All parts' centroids, one part after another.
    centroids: Vec<f32>,
}

impl Matrix {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        what: &'static str,
        quantised: bool,
        columns: usize,
    ) -> Result<Self, Problem> {
        let has_norms = quantised && reader.flag("qnorm")?;
        let rows = reader.i64(what).and_then(|found| reader.count(what, found))?;
        let found = reader.i64(what)?;
        if u64::try_from(found) != Ok(columns as u64) {
            return Err(reader.invalid(
                what,
                format!("{found} wide"),
                format!("{columns} wide, as dim says"),
            ));
        }
        let storage = if quantised {
            Self::read_quantised(reader, rows, columns, has_norms)?
        } else {
            let numbers = (rows as u64).saturating_mul(columns as u64);
            Storage::Dense(reader.range(what, numbers, 4)?)
        };
        Ok(Self { rows, columns, storage })
    }

    fn read_quantised(
        reader: &mut Reader<'_>,
        rows: usize,
        columns: usize,
        has_norms: bool,
    ) -> Result<Storage, Problem> {
        let size = reader.i32("the number of codes")?;
        let size = reader.count("the number of codes", i64::from(size))?;
        let codes = reader.range("the codes", size as u64, 1)?;
        let quantiser = Quantiser::read(reader, columns)?;
        if Some(size) != rows.checked_mul(quantiser.parts) {
            let expected = format!("{rows} rows of {} parts", quantiser.parts);
            return Err(reader.invalid("the number of codes", size, expected));
        }
        let norms = if has_norms {
            let codes = reader.range("the codes of the norms", rows as u64, 1)?;
            Some((codes, Quantiser::read(reader, 1)?.centroids))
        } else {
            None
        };
        Ok(Storage::Quantised { codes, quantiser, norms })
    }

    /// Adds row `row` to `sum`.
    #[inline]
    pub(super) fn add_row(&self, file: &[u8], row: usize, sum: &mut [f32]) {
        match &self.storage {
            Storage::Dense(range) => {
                let width = self.columns * 4;
                let values = &file[range.start + row * width..][..width];
                for (sum, value) in sum.iter_mut().zip(floats(values)) {
                    *sum += value;
                }
            }
            Storage::Quantised { codes, quantiser, norms } => {
                let norm = norm(file, norms, row);
                let codes = &file[codes.start + row * quantiser.parts..][..quantiser.parts];
                if quantiser.width == 2 && quantiser.last_width == 2 {
                    quantiser.add_pairs(codes, norm, sum);
                } else {
                    for (part, values) in quantiser.vectors(codes) {
                        let sum = &mut sum[part * quantiser.width..][..values.len()];
                        for (sum, value) in sum.iter_mut().zip(values) {
                            *sum += norm * value;
                        }
                    }
                }
            }
        }
    }

    /// All values, row by row, and each row's norm, where those were quantised apart (else none).
    pub(super) fn unpacked(&self, file: &[u8]) -> Result<(Vec<f32>, Vec<f32>), Problem> {
        let size = (self.rows as u64).saturating_mul(self.columns as u64);
        match &self.storage {
            Storage::Dense(range) => Ok((floats(&file[range.clone()]).collect(), Vec::new())),
            Storage::Quantised { .. } if size > LARGEST_UNPACKED => Err(Problem::Invalid {
                what: "the output matrix",
                offset: file.len(),
                found: format!("{} by {}", self.rows, self.columns),
                expected: format!("at most {LARGEST_UNPACKED} numbers"),
            }),
            Storage::Quantised { codes, quantiser, norms } => {
                let mut values = Vec::with_capacity(size as usize);
                for codes in file[codes.clone()].chunks_exact(quantiser.parts) {
                    for (_, vector) in quantiser.vectors(codes) {
                        values.extend_from_slice(vector);
                    }
                }
                let norms = if norms.is_some() {
                    (0..self.rows).map(|row| norm(file, norms, row)).collect()
                } else {
                    Vec::new()
                };
                Ok((values, norms))
            }
        }
    }
}

fn norm(file: &[u8], norms: &Option<(Range<usize>, Vec<f32>)>, row: usize) -> f32 {
    norms.as_ref().map_or(1.0, |(codes, values)| values[usize::from(file[codes.start + row])])
}

impl Quantiser {
    fn read(reader: &mut Reader<'_>, columns: usize) -> Result<Self, Problem> {
        let mut number = |what| reader.i32(what).and_then(|found| reader.count(what, i64::from(found)));
        let dimensions = number("the quantiser's dim")?;
        let parts = number("the quantiser's nsubq")?;
        let width = number("the quantiser's dsub")?;
        let last_width = number("the quantiser's lastdsub")?;
        let is_cut = width > 0
            && dimensions == columns
            && parts == columns.div_ceil(width)
            && last_width == columns - (parts - 1) * width;
        if !is_cut {
            let found = format!("{dimensions} in {parts} parts of {width}, the last of {last_width}");
            return Err(reader.invalid("the quantiser", found, format!("{columns} cut into equal parts")));
        }
        let centroids = reader.floats("the quantiser's centroids", columns.saturating_mul(CENTROIDS))?;
        Ok(Self { parts, width, last_width, centroids })
    }

    /// The vectors that the codes of a row stand for, with the number of each part.
    fn vectors<'a>(&'a self, codes: &'a [u8]) -> impl Iterator<Item = (usize, &'a [f32])> {
        codes.iter().enumerate().map(|(part, &code)| {
            let width = if part + 1 == self.parts { self.last_width } else { self.width };
            let start = part * CENTROIDS * self.width + usize::from(code) * width;
            (part, &self.centroids[start..start + width])
        })
    }

    /// Adds a row in parts of two, which is how fastText quantises unless told otherwise.
    #[inline]
    fn add_pairs(&self, codes: &[u8], norm: f32, sum: &mut [f32]) {
        let parts = self.centroids.as_chunks::<{ 2 * CENTROIDS }>().0;
        for ((sum, &code), centroids) in sum.as_chunks_mut::<2>().0.iter_mut().zip(codes).zip(parts) {
            let at = usize::from(code) * 2;
            sum[0] += norm * centroids[at];
            sum[1] += norm * centroids[at + 1];
        }
    }
}
