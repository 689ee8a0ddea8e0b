//! The keys of a GGUF file, and the cursor that reads them.

use std::path::Path;

use super::write::put_text;
use crate::error::{Error, Result};

/// A key's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Metadata {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    /// A list of a kind that is not needed here, passed over.
    Other,
}

impl Metadata {
    /// A whole number that is not negative.
    pub(crate) fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// How a message shows it.
    pub(crate) fn brief(&self) -> String {
        match self {
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) if text.len() <= 60 => format!("`{text}`"),
            Self::Text(text) => format!("a string of {} bytes", text.len()),
            Self::Texts(list) => format!("a list of {} strings", list.len()),
            Self::Integers(list) => format!("a list of {} whole numbers", list.len()),
            Self::Floats(list) => format!("a list of {} numbers", list.len()),
            Self::Other => "a list of another kind".to_owned(),
        }
    }
}

/// The numbers that the format gives types, of those that are written.
const UNSIGNED: u32 = 4;
const SIGNED: u32 = 5;
const FLOAT: u32 = 6;
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

impl Metadata {
    /// Writes it as the format has it: numbers in 32 bits, as the programs that read GGUF expect most of them. What was
    /// passed over when it was read is written as an empty list.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let mut number = |kind: u32, bytes: [u8; 4]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::Unsigned(value) => {
                number(UNSIGNED, u32::try_from(*value).unwrap_or(u32::MAX).to_le_bytes());
            }
            Self::Signed(value) => {
                let least = if *value < 0 { i32::MIN } else { i32::MAX };
                number(SIGNED, i32::try_from(*value).unwrap_or(least).to_le_bytes());
            }
            Self::Float(value) => number(FLOAT, (*value as f32).to_le_bytes()),
            Self::Flag(flag) => {
                out.extend(FLAG.to_le_bytes());
                out.push(u8::from(*flag));
            }
            Self::Text(text) => {
                out.extend(TEXT.to_le_bytes());
                put_text(out, text);
            }
            Self::Texts(list) => {
                put_list(out, TEXT, list.len());
                list.iter().for_each(|text| put_text(out, text));
            }
            Self::Integers(list) => {
                put_list(out, SIGNED, list.len());
                for value in list {
                    let least = if *value < 0 { i32::MIN } else { i32::MAX };
                    out.extend(i32::try_from(*value).unwrap_or(least).to_le_bytes());
                }
            }
            Self::Floats(list) => {
                put_list(out, FLOAT, list.len());
                list.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::Other => put_list(out, SIGNED, 0),
        }
    }
}

fn put_list(out: &mut Vec<u8>, kind: u32, length: usize) {
    out.extend(LIST.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((length as u64).to_le_bytes());
}

/// Reads forward through a file, never beyond its end.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// An error at the present place.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Gguf { path: self.path.to_owned(), offset: self.position, reason: reason.into() }
    }

    /// An error unless `count` things of at least `least` bytes each fit into what is left.
    pub(crate) fn expect_room(&self, count: u64, least: u64, what: &str) -> Result<()> {
        let left = (self.bytes.len() - self.position) as u64;
        if count.checked_mul(least).is_some_and(|bytes| bytes <= left) {
            return Ok(());
        }
        Err(self.error(format!(
            "{count} {what} are announced, but {left} bytes are left; is the file cut short?"
        )))
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        self.expect_room(count as u64, 1, "bytes")?;
        let taken = &self.bytes[self.position..self.position + count];
        self.position += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        self.expect_room(length, 1, "bytes of a string")?;
        let bytes = self.take(length as usize)?;
        // A vocabulary may have pieces that are parts of a character.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(crate) fn value(&mut self) -> Result<Metadata> {
        let kind = self.u32()?;
        if kind == 9 { self.list(0) } else { self.scalar(kind) }
    }

    fn scalar(&mut self, kind: u32) -> Result<Metadata> {
        Ok(match kind {
            0 => Metadata::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Metadata::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Metadata::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Metadata::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Metadata::Unsigned(u64::from(self.u32()?)),
            5 => Metadata::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Metadata::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()?[0] {
                0 => Metadata::Flag(false),
                1 => Metadata::Flag(true),
                other => return Err(self.error(format!("a true-or-false value is {other}; expected 0 or 1"))),
            },
            8 => Metadata::Text(self.string()?),
            10 => Metadata::Unsigned(self.u64()?),
            11 => Metadata::Signed(i64::from_le_bytes(self.array()?)),
            12 => Metadata::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(self.error(format!("a value of type {other}; expected 0 to 12"))),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Metadata> {
        // No key has lists of lists of lists; a file that nests them deeply is after the stack.
        if depth > 2 {
            return Err(self.error("lists are nested more than three deep"));
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => return Err(self.error(format!("a list of type {other}; expected 0 to 12"))),
        };
        self.expect_room(count, least, "elements of a list")?;
        let count = count as usize;
        Ok(match kind {
            8 => {
                let mut texts = Vec::with_capacity(count);
                for _ in 0..count {
                    texts.push(self.string()?);
                }
                Metadata::Texts(texts)
            }
            6 => {
                let mut numbers = Vec::with_capacity(count);
                for _ in 0..count {
                    numbers.push(f32::from_le_bytes(self.array()?));
                }
                Metadata::Floats(numbers)
            }
            0..=5 | 10 | 11 => {
                let mut numbers = Vec::with_capacity(count);
                for _ in 0..count {
                    numbers.push(match self.scalar(kind)? {
                        Metadata::Signed(number) => number,
                        Metadata::Unsigned(number) => i64::try_from(number).unwrap_or(i64::MAX),
                        _ => 0,
                    });
                }
                Metadata::Integers(numbers)
            }
            9 => {
                for _ in 0..count {
                    self.list(depth + 1)?;
                }
                Metadata::Other
            }
            _ => {
                for _ in 0..count {
                    self.scalar(kind)?;
                }
                Metadata::Other
            }
        })
    }
}
