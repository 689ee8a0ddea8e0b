//! A real model: SmolLM2-135M-Instruct's GGUF file against transformers' logits, in f32, with the same dequantised
//! weights. `scripts/fetch-smollm2` places the file; without it the test says that it skips.

use std::path::Path;

use engine::decoder::weights::Precision;
use engine::decoder::{Decoder, Weights};
use engine::kernels::DropoutKey;
use engine::{Batch, Cpu, Workspace, WorkspacePlan};
use model::BaseModel;
use safetensors::SafeTensors;

#[test]
fn logits_equal_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = root.join("models/smollm2-135m-instruct.gguf");
    if !file.exists() {
        eprintln!("skipped: {} is not there; scripts/fetch-smollm2 places it", file.display());
        return;
    }
    let base = BaseModel::open(file).unwrap();
    let decoder =
        Decoder::load(Cpu, base.config(), Weights::Frozen(Precision::Published), |slot| base.tensor(slot))
            .unwrap();
    let bytes = std::fs::read(root.join("oracle/goldens/smollm2/logits.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let mut batch = Batch::default();
    let mut rows = Vec::new();
    let mut expected: Vec<f32> = Vec::new();
    for text in 0..6 {
        let ids = golden.tensor(&format!("input_ids.{text}")).unwrap();
        let size = ids.data().len() / ids.shape()[0];
        let number = |x: &[u8]| u32::from_le_bytes(x[..4].try_into().unwrap());
        let ids: Vec<u32> = ids.data().chunks_exact(size).map(number).collect();
        let logits = golden.tensor(&format!("logits.{text}")).unwrap();
        batch.push(&ids, &vec![true; ids.len()], DropoutKey::new(0, 0, 0));
        // The last positions, as many as the golden holds.
        rows.extend(batch.rows() - logits.shape()[0]..batch.rows());
        expected.extend(logits.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())));
    }
    let plan = WorkspacePlan { tokens: batch.rows(), training: false, recompute: false };
    let found = decoder.logits(&[], &batch, &rows, &mut Workspace::new(&decoder, &[], plan));
    let vocabulary = base.config().vocabulary;
    for (row, (found, expected)) in
        found.chunks_exact(vocabulary).zip(expected.chunks_exact(vocabulary)).enumerate()
    {
        let square = |x: f32| f64::from(x).powi(2);
        let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
        let error = (difference / expected.iter().map(|b| square(*b)).sum::<f64>()).sqrt();
        // f32 sums in another order through thirty blocks; the bound is what people can rely on.
        assert!(error < 1e-3, "row {row}: {error:.2e}");
        println!("row {row}: {error:.2e}");
    }
}
