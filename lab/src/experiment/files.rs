//! One file, or several.

use std::fmt;
use std::path::PathBuf;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The files of a language: in TOML a string, or an array of strings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Files(pub Vec<PathBuf>);

impl Files {
    /// The paths, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, PathBuf> {
        self.0.iter()
    }

    /// The paths, in order, to be changed.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, PathBuf> {
        self.0.iter_mut()
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FilesVisitor)
    }
}

// An untagged enum would do the same, but its message names neither what was found nor what was expected.
struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = Files;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a path or an array of paths")
    }

    fn visit_str<E>(self, path: &str) -> Result<Files, E> {
        Ok(Files(vec![PathBuf::from(path)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Files, A::Error> {
        let mut files = Vec::new();
        while let Some(path) = sequence.next_element()? {
            files.push(path);
        }
        Ok(Files(files))
    }
}

impl schemars::JsonSchema for Files {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Files".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A path, or an array of paths.",
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            ],
        })
    }
}
