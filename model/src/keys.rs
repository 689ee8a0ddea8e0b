//! A JSON object read key by key, with errors that name the key, and a note of the keys nobody asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The keys of one JSON object of a file.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    /// Set before the key's name in messages, for objects within objects.
    prefix: String,
    map: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    /// The keys of `value`, which must be an object.
    pub(crate) fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::BadKey {
            path: path.to_owned(),
            key: "(the whole file)".to_owned(),
            found: kind(value).to_owned(),
            expected: "a JSON object".to_owned(),
        })?;
        Ok(Self { path, prefix: String::new(), map, asked: RefCell::default() })
    }

    /// The file, for errors made elsewhere.
    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The value at `key`; null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The first of several names of one key that is there, and its value.
    fn first<'k>(&self, names: &[&'k str]) -> Option<(&'k str, &'a Value)> {
        // Every name is looked up, so that none of them is later reported as unread.
        let found: Vec<_> = names.iter().map(|&name| (name, self.get(name))).collect();
        found.into_iter().find_map(|(name, value)| value.map(|value| (name, value)))
    }

    /// The object at `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.bad(key, value, "an object"))?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Keys { path: self.path, prefix, map, asked: RefCell::default() }))
    }

    /// A whole number from 1 to 2^31 at the first of `names` that is there.
    pub(crate) fn count(&self, names: &[&str]) -> Result<Option<usize>> {
        let Some((key, value)) = self.first(names) else { return Ok(None) };
        value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| (1..=1 << 31).contains(number))
            .map(Some)
            .ok_or_else(|| self.bad(key, value, "a whole number from 1 to 2^31"))
    }

    /// As [`Keys::count`], and an error where none of the names is there.
    pub(crate) fn required_count(&self, names: &[&str]) -> Result<usize> {
        self.count(names)?.ok_or_else(|| self.missing(names[0], "a whole number"))
    }

    /// A finite number at the first of `names` that is there.
    pub(crate) fn number(&self, names: &[&str]) -> Result<Option<f64>> {
        let Some((key, value)) = self.first(names) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.bad(key, value, "a number"))
    }

    /// A number above zero, or `default`.
    pub(crate) fn positive(&self, names: &[&str], default: f64) -> Result<f64> {
        match self.number(names)? {
            None => Ok(default),
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => Err(Error::BadKey {
                path: self.path.to_owned(),
                key: format!("{}{}", self.prefix, names[0]),
                found: number.to_string(),
                expected: "a number above 0".to_owned(),
            }),
        }
    }

    /// True or false, or `default`.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.bad(key, value, "true or false"))
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(key, value, "a string"))
    }

    /// An error unless the key is absent or has the one value that is computed.
    pub(crate) fn only(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != expected => Err(self.unsupported(key, value, &expected.to_string())),
            _ => Ok(()),
        }
    }

    /// Marks keys as known to have no bearing on what is read here.
    pub(crate) fn ignore(&self, keys: &[&str]) {
        self.asked.borrow_mut().extend(keys.iter().map(|&key| key.to_owned()));
    }

    /// The keys that nobody asked for or ignored, in the file's order.
    pub(crate) fn unread(&self) -> Vec<&'a str> {
        let asked = self.asked.borrow();
        self.map
            .iter()
            .filter(|(key, value)| !asked.contains(*key) && !value.is_null())
            .map(|(key, _)| key.as_str())
            .collect()
    }

    /// The value of a key is not of the kind expected.
    pub(crate) fn bad(&self, key: &str, found: &Value, expected: &str) -> Error {
        Error::BadKey {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: brief(found),
            expected: expected.to_owned(),
        }
    }

    /// The value of a key asks for what is not computed.
    pub(crate) fn unsupported(&self, key: &str, found: &Value, expected: &str) -> Error {
        Error::Unsupported {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: brief(found),
            expected: expected.to_owned(),
        }
    }

    /// A key is not there.
    pub(crate) fn missing(&self, key: &str, expected: &str) -> Error {
        Error::MissingKey {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            expected: expected.to_owned(),
        }
    }
}

/// A value as a message shows it: whole where short.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 60 { text } else { format!("{} of {} bytes", kind(value), text.len()) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
