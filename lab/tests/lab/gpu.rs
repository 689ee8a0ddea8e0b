//! An experiment on an emulated GPU, beside the same one on the processor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use emulator::Emulator;
use engine::cuda::Arithmetic;
use engine::kernels::Kernels;
use engine::{Cpu, Cuda};
use lab::local::{Machinery, Places, prepare, ready};
use lab::plan::Work;
use lab::progress::Silent;
use lab::rooms::{Answers, TuneRoom, open_model};
use lab::stop::Stop;
use lab::store::Store;
use lab::work::{TUNING_FILE, TuningRecord};

use crate::common::{EXPERIMENT, write};

/// What each tuning of an experiment came to, by its cell's name, and how many cells were finished.
fn run<K: Kernels + Clone>(kernels: &K, folder: &Path, device: &str) -> (BTreeMap<String, Vec<f64>>, usize) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
    let text = EXPERIMENT
        .replace(
            "name = \"small\"",
            &format!("name = \"{device}\"\nrecipes = [\"multilingual\"]\ndevice = \"{device}\""),
        )
        .replace("seeds = [1, 2]", "seeds = [1]")
        .replace("path = \"tiny.gguf\"", &format!("path = {:?}", model.display().to_string()))
        .replace("lr = 0.001", "lr = 0.001\nupdates = 2\nbatch = 4\ncutoff = 64\nwarmup = 0");
    let prepared = prepare(&write(folder, &text)).unwrap_or_else(|error| panic!("{error:#}"));
    let places = Places::new(&prepared.experiment, Some(folder.join(device)), Some(folder.join("store")));
    let (tuner, answerer) = (TuneRoom(kernels.clone()), Answers::new(kernels.clone()));
    let machinery = Machinery { tuner: &tuner, answerer: &answerer, open_model: &open_model };
    let ready = ready(&prepared, &places, &machinery).unwrap_or_else(|error| panic!("{error:#}"));
    let store = Store::share(&places.store).expect("a store");
    let outcome = ready.run(&store, None, &Silent, &Stop::default()).expect("a run");
    assert!(outcome.failed.is_empty() && outcome.blocked.is_empty(), "{:?}", outcome.failed);
    let mut losses = BTreeMap::new();
    for (cell, made) in &outcome.finished {
        let cell = &prepared.plan.cells[*cell];
        if let Work::Tuning { .. } = cell.work {
            let text = fs::read(made.join(TUNING_FILE)).expect("a tuning's record");
            let record: TuningRecord = serde_json::from_slice(&text).expect("a tuning's record");
            let curve = record.curve.iter().filter_map(|point| point.training_loss);
            losses.insert(cell.determinants.label.clone(), curve.collect());
        }
    }
    (losses, outcome.finished.len() - outcome.kept)
}

#[test]
fn an_experiment_on_a_gpu_has_cells_of_its_own_and_the_processors_losses() {
    let folder = tempfile::tempdir().expect("a folder");
    let (expected, cells) = run(&Cpu, folder.path(), "cpu");
    let gpu = Cuda::new(Arc::new(Emulator::default()), Arithmetic::F32);
    let (found, on_gpu) = run(&gpu, folder.path(), "cuda");
    // The mix is the same; base, tuned, answers and scores are not.
    assert_eq!(on_gpu, cells - 1);
    assert_eq!(found.len(), expected.len());
    for (label, losses) in &found {
        assert_eq!(losses.len(), expected[label].len());
        for (found, expected) in losses.iter().zip(&expected[label]) {
            // Sums in another order.
            assert!((found - expected).abs() <= 1e-4 * expected, "{label}: {found} beside {expected}");
        }
    }
}
