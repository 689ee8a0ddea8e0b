//! Little-endian values from a model file, each checked against what is left of it.

use std::ops::Range;

use super::error::Problem;

/// A place in a model file.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// The range of the next `count` values of `width` bytes. Nothing is copied, so that an absurd count in a hostile
    /// file costs an error and no memory.
    pub(super) fn range(
        &mut self,
        what: &'static str,
        count: u64,
        width: u64,
    ) -> Result<Range<usize>, Problem> {
        let needed = count.saturating_mul(width);
        let left = (self.bytes.len() - self.offset) as u64;
        if needed > left {
            return Err(Problem::Truncated { what, offset: self.offset, needed, end: self.bytes.len() });
        }
        let start = self.offset;
        self.offset += needed as usize;
        Ok(start..self.offset)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        let range = self.range(what, N as u64, 1)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, Problem> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, Problem> {
        self.array(what).map(i32::from_le_bytes)
    }

    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, Problem> {
        self.array(what).map(i64::from_le_bytes)
    }

    pub(super) fn flag(&mut self, what: &'static str) -> Result<bool, Problem> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(self.invalid(what, found, "0 or 1")),
        }
    }

    /// A count that is kept as a 32-bit or 64-bit signed number and cannot be negative.
    pub(super) fn count(&mut self, what: &'static str, found: i64) -> Result<usize, Problem> {
        usize::try_from(found).map_err(|_| self.invalid(what, found, "no negative number"))
    }

    /// Bytes up to a zero byte, which is passed over.
    pub(super) fn text(&mut self, what: &'static str) -> Result<Range<usize>, Problem> {
        let rest = &self.bytes[self.offset..];
        let Some(length) = rest.iter().position(|&byte| byte == 0) else {
            let needed = rest.len() as u64 + 1;
            return Err(Problem::Truncated { what, offset: self.offset, needed, end: self.bytes.len() });
        };
        let start = self.offset;
        self.offset += length + 1;
        Ok(start..start + length)
    }

    /// `count` 32-bit floating-point numbers, copied.
    pub(super) fn floats(&mut self, what: &'static str, count: usize) -> Result<Vec<f32>, Problem> {
        let range = self.range(what, count as u64, 4)?;
        Ok(floats(&self.bytes[range]).collect())
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &'a [u8] {
        &self.bytes[range]
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    pub(super) fn invalid(
        &self,
        what: &'static str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Problem {
        Problem::Invalid { what, offset: self.offset, found: found.to_string(), expected: expected.into() }
    }
}

/// The 32-bit floating-point numbers in bytes that need not be aligned: compilers turn this into plain vector loads.
pub(super) fn floats(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk))
}
