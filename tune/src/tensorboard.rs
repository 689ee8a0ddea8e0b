//! Metrics as TensorBoard reads them: event files of TFRecords.
//!
//! A record is its length, a checksum of the length, the bytes of an `Event` message, and a checksum of these;
//! checksums are CRC-32C, masked. Of the message's fields (tensorflow/core/util/event.proto) five are written: wall
//! time, step, the file's version, scalar summaries, and the session log by which TensorBoard forgets what a killed
//! run had written beyond the checkpoint that the next one goes on from.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::metrics::{UpdateMetrics, ValidationMetrics};

/// A folder's newest event file, being written.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Begins a file in `folder`, for a run that has done `update` updates: events of later ones, which an earlier file
    /// may hold, no longer count.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn begin(folder: &Path, update: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let now = since_1970();
        let mut place = 0;
        let (file, path) = loop {
            // TensorBoard reads a folder's files in the order of their names, and wants `tfevents` in each.
            let name =
                format!("events.out.tfevents.{:010}.{:09}.{place}", now as u64, (now.fract() * 1e9) as u64);
            let path = folder.join(name);
            match File::create_new(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => place += 1,
                Err(error) => return Err(Error::io(path)(error)),
            }
        };
        let mut events = Self { file, path };
        events.event(0, &bytes_field(3, b"brain.Event:2"))?;
        // SessionLog { status: START } at the first update that is written again.
        events.event(update + 1, &bytes_field(7, &varint_field(1, 1)))?;
        Ok(events)
    }

    /// An update's loss, learning rate, gradient norm, speed and memory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn update(&mut self, metrics: &UpdateMetrics) -> Result<()> {
        let values = [
            ("loss/training", metrics.loss),
            ("learning_rate", metrics.learning_rate),
            ("gradient_norm", metrics.gradient_norm),
            ("tokens_per_second", metrics.tokens_per_second),
            ("peak_bytes", metrics.peak_bytes as f64),
        ];
        let of_device = metrics.device_peak_bytes.map(|bytes| ("device_peak_bytes", bytes as f64));
        let values = values.into_iter().chain(of_device);
        self.scalars(metrics.update, values.map(|(tag, value)| (tag.to_owned(), value)))
    }

    /// A measurement's loss, over all rows and language by language.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        let languages = metrics.validation_loss_by_language.iter();
        let of_languages = languages.map(|(language, loss)| (format!("loss/validation/{language}"), *loss));
        let whole = ("loss/validation".to_owned(), metrics.validation_loss);
        self.scalars(metrics.update, std::iter::once(whole).chain(of_languages))
    }

    fn scalars(&mut self, step: u64, values: impl Iterator<Item = (String, f64)>) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut message = bytes_field(1, tag.as_bytes());
            message.push(2 << 3 | 5);
            message.extend((value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &message));
        }
        self.event(step, &bytes_field(5, &summary))
    }

    /// Writes a record of one event, whole: a reader that follows the file never finds a part of it for long.
    fn event(&mut self, step: u64, what: &[u8]) -> Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(since_1970().to_le_bytes());
        event.extend(varint_field(2, step));
        event.extend(what);
        self.file.write_all(&record(&event)).map_err(Error::io(&self.path))
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked(data).to_le_bytes());
    record
}

/// CRC-32C as TFRecords have it: rotated and added to, so that the checksum of a checksum is no fixed value.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    let mut field = vec![number << 3];
    field.extend(varint(value));
    field
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(bytes.len() as u64));
    field.extend(bytes);
    field
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_records_are_laid_out_as_protobuf_and_tfrecord_say() {
        // Protocol Buffers' own example: 300 is ac 02.
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(varint(u64::MAX).len(), 10);
        // RFC 3720, B.4: the CRC-32C of 32 bytes of zeros is 8a9136aa.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let record = record(b"abc");
        assert_eq!(record.len(), 8 + 4 + 3 + 4);
        assert_eq!(record[..8], 3u64.to_le_bytes());
        assert_eq!(record[12..15], *b"abc");
    }

    #[test]
    fn every_begin_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for update in 0..3 {
            EventFile::begin(folder.path(), update).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
