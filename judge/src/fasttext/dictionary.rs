//! A model's words and labels, and how a text becomes rows of its input matrix.

use std::collections::HashMap;
use std::ops::Range;

use super::error::Problem;
use super::reader::Reader;
use super::settings::Settings;

/// The token that a line's end becomes.
const END_OF_LINE: &[u8] = b"</s>";
/// What marks a token as a label.
const LABEL_PREFIX: &[u8] = b"__label__";
const EMPTY: u32 = u32::MAX;

/// Words, labels and n-gram buckets.
pub(super) struct Dictionary {
    words: usize,
    /// The labels as the file has them, `__label__` included, in the order of the output matrix.
    pub(super) labels: Vec<String>,
    /// How often each label was met in training: the shape of the tree of hierarchical softmax.
    pub(super) label_counts: Vec<i64>,
    /// Where each entry's text lies in the file.
    entries: Vec<Range<usize>>,
    /// Open addressing: an entry's hash and number.
    slots: Vec<(u32, u32)>,
    buckets: Buckets,
    settings: Settings,
}

/// Which n-gram buckets have a row.
enum Buckets {
    /// All: bucket `b` is the row `b` after the words'.
    All,
    /// None but these, and which row after the words' each has.
    Kept(HashMap<u32, u32, std::hash::BuildHasherDefault<BucketHasher>>),
}

/// Buckets are hashes already: one multiplication spreads them over the table.
#[derive(Default)]
struct BucketHasher(u64);

impl std::hash::Hasher for BucketHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }
    fn write_u32(&mut self, bucket: u32) {
        // The table reads the lowest and the highest bits, so both must depend on the whole number.
        let product = (self.0 ^ u64::from(bucket)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl Dictionary {
    pub(super) fn read(reader: &mut Reader<'_>, settings: &Settings) -> Result<Self, Problem> {
        let size = reader.i32("the dictionary's size").and_then(|n| reader.count("size", i64::from(n)))?;
        let words = reader.i32("the number of words").and_then(|n| reader.count("nwords", i64::from(n)))?;
        let labels =
            reader.i32("the number of labels").and_then(|n| reader.count("nlabels", i64::from(n)))?;
        if labels == 0 || words + labels != size {
            let expected = format!("{words} words and at least one label");
            return Err(reader.invalid("the dictionary's size", size, expected));
        }
        reader.i64("the number of tokens")?;
        let kept = reader.i64("the number of kept buckets")?;

        // An entry takes at least ten bytes: an absurd size fails here, before anything is allocated.
        if size as u64 * 10 > reader.left() as u64 {
            return Err(reader.invalid("the dictionary's size", size, "entries that the file has room for"));
        }
        let mut dictionary = Self {
            words,
            labels: Vec::with_capacity(labels),
            label_counts: Vec::with_capacity(labels),
            entries: Vec::with_capacity(size),
            slots: vec![(0, EMPTY); (size + size / 2 + 1).next_power_of_two()],
            buckets: Buckets::All,
            settings: settings.clone(),
        };
        for number in 0..size {
            dictionary.read_entry(reader, number)?;
        }
        if kept >= 0 {
            dictionary.buckets = read_kept(reader, kept as u64)?;
        }
        Ok(dictionary)
    }

    fn read_entry(&mut self, reader: &mut Reader<'_>, number: usize) -> Result<(), Problem> {
        let range = reader.text("a word or label")?;
        let count = reader.i64("the count of a word or label")?;
        let kind = reader.u8("the kind of an entry")?;
        let is_label = number >= self.words;
        if kind != u8::from(is_label) {
            let expected = "0 for the words, which come first, and 1 for the labels";
            return Err(reader.invalid("the kind of an entry", kind, expected));
        }
        let text = reader.bytes(range.clone());
        if is_label {
            let label = std::str::from_utf8(text)
                .map_err(|_| reader.invalid("a label", String::from_utf8_lossy(text), "UTF-8"))?;
            self.labels.push(label.to_owned());
            self.label_counts.push(count);
        }
        let hash = hash(text);
        let slot = self.slot(reader.bytes(0..range.end), hash, text);
        self.entries.push(range);
        // As in fastText, of two entries with one text the later is found.
        self.slots[slot] = (hash, number as u32);
        Ok(())
    }

    /// The slot that `text` has, or would have.
    fn slot(&self, file: &[u8], hash: u32, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let (found, number) = self.slots[slot];
            if number == EMPTY || (found == hash && file[self.entries[number as usize].clone()] == *text) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// How many rows of the input matrix the dictionary can name.
    pub(super) fn rows_needed(&self) -> u64 {
        let buckets = match &self.buckets {
            Buckets::Kept(rows) => rows.values().max().map_or(0, |&row| u64::from(row) + 1),
            Buckets::All if self.settings.longest > 0 || self.settings.word_ngrams > 1 => {
                u64::from(self.settings.buckets)
            }
            Buckets::All => 0,
        };
        self.words as u64 + buckets
    }

    /// Whether only some buckets have a row, which only a quantised model may say.
    pub(super) fn is_pruned(&self) -> bool {
        matches!(self.buckets, Buckets::Kept(_))
    }

    /// The rows of the input matrix that `text` stands for, in fastText's order. The text ends at its first line
    /// feed, and the line's end is a token of its own. `file` is the model file.
    pub(super) fn rows(&self, file: &[u8], text: &[u8], tokens: &mut Tokens) {
        tokens.rows.clear();
        tokens.hashes.clear();
        let line = text.split(|&byte| byte == b'\n').next().unwrap_or(text);
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\r' | b'\t' | 0x0b | 0x0c | 0);
        let mut ended = false;
        for token in line.split(is_space).filter(|token| !token.is_empty()) {
            self.add_token(file, token, tokens);
            if token == END_OF_LINE {
                ended = true;
                break;
            }
        }
        if !ended {
            self.add_token(file, END_OF_LINE, tokens);
        }
        self.add_word_ngrams(tokens);
    }

    fn add_token(&self, file: &[u8], token: &[u8], tokens: &mut Tokens) {
        let hash = hash(token);
        let (_, number) = self.slots[self.slot(file, hash, token)];
        let known = number != EMPTY;
        let is_label = if known { number as usize >= self.words } else { token.starts_with(LABEL_PREFIX) };
        if is_label {
            return;
        }
        if known {
            tokens.rows.push(number);
        }
        if self.settings.longest > 0 && token != END_OF_LINE {
            self.add_character_ngrams(token, tokens);
        }
        tokens.hashes.push(hash as i32);
    }

    /// Adds the n-grams of `<token>`. The hash of an n-gram is the hash of the one that is a character shorter, gone
    /// on with: each byte is hashed once for each start.
    fn add_character_ngrams(&self, token: &[u8], tokens: &mut Tokens) {
        let Tokens { rows, marked, .. } = tokens;
        marked.clear();
        marked.push(b'<');
        marked.extend_from_slice(token);
        marked.push(b'>');
        for start in 0..marked.len() {
            if is_continuation(marked[start]) {
                continue;
            }
            let mut hash = HASH_START;
            let mut end = start;
            let mut length = 0;
            while end < marked.len() && length < self.settings.longest {
                hash = hash_byte(hash, marked[end]);
                end += 1;
                while end < marked.len() && is_continuation(marked[end]) {
                    hash = hash_byte(hash, marked[end]);
                    end += 1;
                }
                length += 1;
                let is_mark = length == 1 && (start == 0 || end == marked.len());
                if length >= self.settings.shortest && !is_mark {
                    self.add_bucket(hash % self.settings.buckets, rows);
                }
            }
        }
    }

    fn add_word_ngrams(&self, tokens: &mut Tokens) {
        // fastText multiplies in 64 bits, and widens the 32-bit hashes with their sign.
        let widened = |hash: i32| i64::from(hash) as u64;
        let Tokens { rows, hashes, .. } = tokens;
        for (start, &first) in hashes.iter().enumerate() {
            let following = hashes[start + 1..].iter().take(self.settings.word_ngrams.saturating_sub(1));
            let mut hash = widened(first);
            for &next in following {
                hash = hash.wrapping_mul(116_049_371).wrapping_add(widened(next));
                self.add_bucket((hash % u64::from(self.settings.buckets)) as u32, rows);
            }
        }
    }

    fn add_bucket(&self, bucket: u32, rows: &mut Vec<u32>) {
        let row = match &self.buckets {
            Buckets::All => bucket,
            Buckets::Kept(kept) => match kept.get(&bucket) {
                Some(&row) => row,
                None => return,
            },
        };
        rows.push(self.words as u32 + row);
    }
}

fn read_kept(reader: &mut Reader<'_>, kept: u64) -> Result<Buckets, Problem> {
    let range = reader.range("the kept buckets", kept, 8)?;
    let numbers = reader.bytes(range).as_chunks::<4>().0;
    let mut rows = HashMap::with_capacity_and_hasher(kept as usize, Default::default());
    for pair in numbers.as_chunks::<2>().0 {
        let [bucket, row] = pair.map(i32::from_le_bytes);
        let (Ok(bucket), Ok(row)) = (u32::try_from(bucket), u32::try_from(row)) else {
            let found = format!("{bucket} in row {row}");
            return Err(reader.invalid("a kept bucket", found, "no negative numbers"));
        };
        rows.insert(bucket, row);
    }
    Ok(Buckets::Kept(rows))
}

/// What a text is turned into, kept from text to text so that none of it is allocated anew.
#[derive(Default)]
pub(super) struct Tokens {
    /// Rows of the input matrix, one occurrence each.
    pub(super) rows: Vec<u32>,
    hashes: Vec<i32>,
    marked: Vec<u8>,
}

const HASH_START: u32 = 2_166_136_261;

/// FNV-1a, but for bytes widened with their sign: what fastText has always done, and models depend on.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(HASH_START, |hash, &byte| hash_byte(hash, byte))
}

fn hash_byte(hash: u32, byte: u8) -> u32 {
    (hash ^ (byte as i8) as u32).wrapping_mul(16_777_619)
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}
