//! What determines a cell, its key, and the manifest that is kept beside its files.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The hash of everything that determines a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The first letters, to be shown.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl FromStr for Key {
    type Err = blake3::HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(*blake3::Hash::from_hex(text)?.as_bytes()))
    }
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything that determines a cell, by name, so that two keys can be told apart in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Determinants {
    /// `base-model`, `mix`, `tuning`, `answers` or `scores`.
    pub kind: String,
    /// Counts up when what computes this kind of cell computes something else.
    pub version: u32,
    /// What a reader calls it, `tuning/pythia-70m/lora/english/seed-0`. Not part of the key: one cell may be
    /// shared by several names.
    pub label: String,
    /// Content hashes of inputs, keys of the cells it needs, settings, the seed.
    pub values: BTreeMap<String, String>,
}

impl Determinants {
    /// Determinants without values.
    pub fn new(kind: &str, version: u32, label: &str) -> Self {
        Self { kind: kind.to_owned(), version, label: label.to_owned(), values: BTreeMap::new() }
    }

    /// Adds one.
    pub fn add(&mut self, name: impl Into<String>, value: impl ToString) {
        self.values.insert(name.into(), value.to_string());
    }

    /// The hash of all of them but the label.
    pub fn key(&self) -> Key {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            // With its length before it, no two lists of texts run together to the same bytes.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        add(&self.kind);
        add(&self.version.to_string());
        for (name, value) in &self.values {
            add(name);
            add(value);
        }
        Key(*hasher.finalize().as_bytes())
    }

    /// In which values another cell differs: `name: theirs -> ours`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.version != other.version {
            differences.push(format!("the program's {}: {} -> {}", self.kind, other.version, self.version));
        }
        let names: std::collections::BTreeSet<&String> =
            self.values.keys().chain(other.values.keys()).collect();
        for name in names {
            let (ours, theirs) = (self.values.get(name), other.values.get(name));
            if ours != theirs {
                let show = |value: Option<&String>| value.map_or("none".to_owned(), |value| shortened(value));
                differences.push(format!("{name}: {} -> {}", show(theirs), show(ours)));
            }
        }
        differences
    }
}

/// A hash is shown by its first letters.
fn shortened(value: &str) -> String {
    let hash = value.len() == 64 && value.bytes().all(|letter| letter.is_ascii_hexdigit());
    if hash { format!("{}…", &value[..12]) } else { value.to_owned() }
}

/// A file's content in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileHash {
    /// Its length.
    pub bytes: u64,
    /// Its hash, in hexadecimal.
    pub blake3: String,
}

/// What is known of a finished cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The cell's key.
    pub key: Key,
    /// What it is the hash of.
    pub determinants: Determinants,
    /// The cell's files by their paths inside its folder.
    pub files: BTreeMap<String, FileHash>,
    /// The name of the experiment that it was made for first.
    pub experiment: String,
    /// How long it took, in seconds, resumed work not counted.
    pub seconds: f64,
    /// When, in seconds since 1970 by the machine's clock. Nothing but `store clear --older-than` reads it.
    pub finished: u64,
}

impl Manifest {
    /// The manifest file's text.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// The bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_every_value_and_on_no_label() {
        let mut one = Determinants::new("mix", 1, "mix/english");
        one.add("a", "bc");
        let mut two = Determinants::new("mix", 1, "mix/monolingual-en");
        two.add("a", "bc");
        assert_eq!(one.key(), two.key());
        let mut three = Determinants::new("mix", 1, "mix/english");
        three.add("ab", "c");
        assert_ne!(one.key(), three.key(), "names and values must not run together");
        assert_ne!(one.key(), Determinants { version: 2, ..one.clone() }.key());
        assert_eq!(one.key().to_string().parse::<Key>().unwrap(), one.key());
    }

    #[test]
    fn differences_are_told_in_words() {
        let mut one = Determinants::new("tuning", 1, "x");
        one.add("lr", 0.001);
        one.add("seed", 0);
        let mut two = one.clone();
        two.add("lr", 0.0003);
        assert_eq!(one.differences(&two), ["lr: 0.0003 -> 0.001"]);
    }
}
