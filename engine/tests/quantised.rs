//! Matrices in 8 and 4 bits against the `gguf` package and bitsandbytes (`oracle/quantised.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use engine::Cpu;
use engine::decoder::weights::{HostData, HostTensor, Precision};
use engine::kernels::Kernels;
use serde_json::Value;

fn floats(golden: &Value, key: &str) -> Vec<f32> {
    let text = golden[key].as_str().unwrap().as_bytes();
    let byte =
        |at: usize| u8::from_str_radix(std::str::from_utf8(&text[2 * at..2 * at + 2]).unwrap(), 16).unwrap();
    let bytes: Vec<u8> = (0..text.len() / 2).map(byte).collect();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn eight_bits_are_ggufs_and_four_bits_are_bitsandbytes() {
    let golden: Value = serde_json::from_str(include_str!("goldens/quantised.json")).unwrap();
    let shape: Vec<usize> =
        golden["shape"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect();
    let weights = floats(&golden, "weights");
    let tensor = HostTensor { shape: shape.clone(), data: HostData::F32(weights.into()) };
    for (precision, key) in [(Precision::Bits8, "8bit"), (Precision::Nf4, "4bit")] {
        let matrix = Cpu.matrix(&tensor, precision);
        assert_eq!(Cpu.matrix_values(&matrix), floats(&golden, key), "{key}");
        // Products read the same values, forward and backward.
        let dense = HostTensor { shape: shape.clone(), data: HostData::F32(floats(&golden, key).into()) };
        let dense = Cpu.matrix(&dense, Precision::F32);
        let x = Cpu.upload(&(0..2 * shape[1]).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<_>>());
        let product = |matrix| {
            let mut out = Cpu.buffer(2 * shape[0]);
            Cpu.product(2, &x, matrix, None, &mut out, false);
            let mut dx = Cpu.buffer(2 * shape[1]);
            Cpu.product_backward(2, &out, matrix, &mut dx, false);
            (Cpu.download(&out, 2 * shape[0]), Cpu.download(&dx, 2 * shape[1]))
        };
        assert_eq!(product(&matrix), product(&dense), "{key}");
    }
}
