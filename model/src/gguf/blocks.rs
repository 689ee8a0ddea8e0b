//! The quantised types of GGUF: how their blocks become f32.
//!
//! A block has 32 elements (the older types) or 256 (the K types, in sub-blocks with scales of their own). The arithmetic
//! follows ggml's reference, product by product, so that the results are the same to the bit.

use half::f16;

/// A tensor's element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "these are the names that the format gives its types")]
pub(super) enum Block {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// The types that are read, for messages.
pub(super) const READ: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K";

/// The format's name of a type's number, for messages.
pub(super) fn name_of(id: u32) -> &'static str {
    const NAMES: [&str; 31] = [
        "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
        "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",
        "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16",
    ];
    NAMES.get(id as usize).copied().unwrap_or("unknown")
}

impl Block {
    /// By the format's number.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Elements of a block.
    pub(super) fn elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The elements of whole blocks, as f32.
    pub(super) fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        let mut elements = vec![0.0; bytes.len() / self.bytes() * self.elements()];
        let blocks = bytes.chunks_exact(self.bytes()).zip(elements.chunks_exact_mut(self.elements()));
        for (block, out) in blocks {
            match self {
                Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Self::F16 => out[0] = half_at(block, 0),
                Self::Bf16 => out[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Self::Q4_0 => q4_0(block, out),
                Self::Q4_1 => q4_1(block, out),
                Self::Q5_0 => q5_0(block, out),
                Self::Q5_1 => q5_1(block, out),
                Self::Q8_0 => q8_0(block, out),
                Self::Q4_K => q4_k(block, out),
                Self::Q5_K => q5_k(block, out),
                Self::Q6_K => q6_k(block, out),
            }
        }
        elements
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, then 16 bytes: elements 0 to 15 in the low halves, 16 to 31 in the high ones, less 8.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (j, byte) in block[2..].iter().enumerate() {
        out[j] = scale * (f32::from(byte & 15) - 8.0);
        out[j + 16] = scale * (f32::from(byte >> 4) - 8.0);
    }
}

/// As `q4_0`, with a minimum added in the place of the fixed 8 taken off.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for (j, byte) in block[4..].iter().enumerate() {
        out[j] = scale * f32::from(byte & 15) + least;
        out[j + 16] = scale * f32::from(byte >> 4) + least;
    }
}

/// Element `j`'s fifth bit, as 16 or 0.
fn fifth_bit(bits: u32, j: usize) -> u8 {
    ((bits >> j & 1) << 4) as u8
}

fn bits_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// As `q4_0`, with a fifth bit of each element in 4 bytes of their own.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let (scale, bits) = (half_at(block, 0), bits_at(block, 2));
    for (j, byte) in block[6..].iter().enumerate() {
        out[j] = scale * (f32::from(byte & 15 | fifth_bit(bits, j)) - 16.0);
        out[j + 16] = scale * (f32::from(byte >> 4 | fifth_bit(bits, j + 16)) - 16.0);
    }
}

/// As `q4_1`, with a fifth bit.
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least, bits) = (half_at(block, 0), half_at(block, 2), bits_at(block, 4));
    for (j, byte) in block[8..].iter().enumerate() {
        out[j] = scale * f32::from(byte & 15 | fifth_bit(bits, j)) + least;
        out[j + 16] = scale * f32::from(byte >> 4 | fifth_bit(bits, j + 16)) + least;
    }
}

/// Scale, then 32 signed bytes.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(byte as i8);
    }
}

/// Scale and minimum of sub-block `j`, 6 bits each, packed into 12 bytes.
fn scale_and_least(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, least) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

/// Scale and minimum of the block, 12 bytes of the sub-blocks', 128 bytes: each 32 of them hold two sub-blocks.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (pair, bytes) in quants.chunks_exact(32).enumerate() {
        for high in 0..2 {
            let (sub_scale, sub_least) = scale_and_least(packed, 2 * pair + high);
            let (step, offset) = (scale * sub_scale, least * sub_least);
            let out = &mut out[64 * pair + 32 * high..][..32];
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = step * f32::from(byte >> (4 * high) & 15) - offset;
            }
        }
    }
}

/// As `q4_k`, with 32 bytes of fifth bits: bit `s` of byte `l` belongs to element `l` of sub-block `s`.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifths, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (pair, bytes) in quants.chunks_exact(32).enumerate() {
        for high in 0..2 {
            let sub_block = 2 * pair + high;
            let (sub_scale, sub_least) = scale_and_least(packed, sub_block);
            let (step, offset) = (scale * sub_scale, least * sub_least);
            let out = &mut out[32 * sub_block..][..32];
            for ((out, byte), fifth) in out.iter_mut().zip(bytes).zip(fifths) {
                let quant = byte >> (4 * high) & 15 | (fifth >> sub_block & 1) << 4;
                *out = step * f32::from(quant) - offset;
            }
        }
    }
}

/// 128 bytes of low halves, 64 of upper pairs of bits, 16 signed scales, and the block's scale.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lows, uppers, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for side in 0..2 {
        let (low, upper) = (&lows[64 * side..][..64], &uppers[32 * side..][..32]);
        for quarter in 0..4 {
            for l in 0..32 {
                let half_byte = low[l + 32 * (quarter % 2)] >> (4 * (quarter / 2)) & 15;
                let quant = half_byte | (upper[l] >> (2 * quarter) & 3) << 4;
                let sub_scale = f32::from(scales[8 * side + 2 * quarter + l / 16] as i8);
                out[128 * side + 32 * quarter + l] = scale * sub_scale * (f32::from(quant) - 32.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn unhex(text: &Value) -> Vec<u8> {
        let text = text.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The values are those of the `gguf` package to the bit: `oracle/gguf_blocks.py` made them.
    #[test]
    fn blocks_equal_the_reference() {
        let golden: Value =
            serde_json::from_str(include_str!("../../tests/goldens/gguf_blocks.json")).unwrap();
        let types = golden["types"].as_object().unwrap();
        assert_eq!(types.len(), 10);
        for (name, entry) in types {
            let id = (0..31).find(|&id| name_of(id) == name).unwrap();
            let block = Block::from_id(id).unwrap();
            let (bytes, expected) = (unhex(&entry["blocks"]), unhex(&entry["values"]));
            assert_eq!(bytes.len(), 2 * block.bytes(), "{name}");
            let found: Vec<u8> = block.dequantise(&bytes).iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
