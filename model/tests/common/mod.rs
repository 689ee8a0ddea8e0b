//! What several tests share: where the oracle's models lie, and a writer of small GGUF files.
#![allow(clippy::allow_attributes, dead_code, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};

/// The folder of one of the oracle's models.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(name)
}

/// A GGUF file under construction.
#[derive(Default)]
pub(crate) struct GgufWriter {
    keys: Vec<u8>,
    key_count: u64,
    entries: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufWriter {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        string(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        let mut bytes = Vec::new();
        string(&mut bytes, value);
        self.key(name, 8, &bytes);
    }

    pub(crate) fn number(&mut self, name: &str, value: u32) {
        self.key(name, 4, &value.to_le_bytes());
    }

    pub(crate) fn float(&mut self, name: &str, value: f32) {
        self.key(name, 6, &value.to_le_bytes());
    }

    pub(crate) fn texts(&mut self, name: &str, values: &[String]) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| string(&mut bytes, value));
        self.key(name, 9, &bytes);
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i32]) {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.key(name, 9, &bytes);
    }

    /// An F32 tensor of `shape`, `[rows, columns]`.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], elements: &[f32]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        string(&mut self.entries, name);
        self.entries.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&length| self.entries.extend((length as u64).to_le_bytes()));
        self.entries.extend(0u32.to_le_bytes());
        self.entries.extend((self.data.len() as u64).to_le_bytes());
        elements.iter().for_each(|element| self.data.extend(element.to_le_bytes()));
        self.tensor_count += 1;
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.key_count.to_le_bytes());
        file.extend(self.keys);
        file.extend(self.entries);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}
