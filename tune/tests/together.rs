//! One tuning by several processes, here each on a thread of its own with connections between them: the same losses and
//! values as one process comes to, the same bytes each time, and what goes wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use emulator::Emulator;
use engine::cuda::Arithmetic;
use engine::kernels::Kernels;
use engine::{Cpu, Cuda};
use instructions::record::Record;
use instructions::template::Template;
use model::BaseModel;
use model::test_support::TINY_MODELS;
use safetensors::SafeTensors;
use serde_json::Value;
use tune::collective::mesh::{Mesh, Seat};
use tune::collective::{Alone, Collective};
use tune::{
    Error, Keep, Length, Method, Outcome, Places, Preset, Progress, Rows, Settings, Supervise, UpdateMetrics,
    ValidationMetrics, tune_together,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn oracle(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle").join(path)
}

fn own_rows() -> Vec<Record> {
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(oracle("rows.json")).unwrap()).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let record = |(number, row): (usize, &Value)| Record {
        id: number.to_string(),
        language: if number % 3 == 0 { "en" } else { "fi" }.parse().unwrap(),
        instruction: text(row, "instruction"),
        input: text(row, "input"),
        output: text(row, "output"),
        origin: None,
    };
    rows.iter().enumerate().map(record).collect()
}

/// A tuning's inputs.
struct Job {
    base: BaseModel,
    rows: Rows,
    validation: Rows,
    settings: Settings,
}

impl Job {
    fn new(model: &str, settings: Settings) -> Self {
        let base = BaseModel::open(oracle("goldens").join(model).join("model")).unwrap();
        let encode = |records: &[Record]| {
            Rows::encode(records, &Template::alpaca(), base.tokenizer(), &settings).unwrap()
        };
        let records = own_rows();
        let (rows, validation) = (encode(&records[..50]), encode(&records[50..]));
        Self { base, rows, validation, settings }
    }

    fn run(&self, collective: &dyn Collective, out: &Path, heard: &mut Heard) -> Result<Outcome, Error> {
        self.run_on(&Cpu, collective, out, heard)
    }

    fn run_on<K: Kernels + Clone>(
        &self,
        kernels: &K,
        collective: &dyn Collective,
        out: &Path,
        heard: &mut Heard,
    ) -> Result<Outcome, Error> {
        let Self { base, rows, validation, settings } = self;
        let places = Places { metrics: Some(out.with_extension("jsonl")), ..Places::under(out) };
        tune_together(kernels, collective, base, rows, validation, None, settings, &places, heard)
    }

    /// By a world of this size, each rank on a thread; what each one heard and came to.
    fn run_together(
        &self,
        world_size: usize,
        out: &Path,
        heard: impl Fn(usize) -> Heard + Sync,
    ) -> Vec<(Heard, Result<Outcome, Error>)> {
        world(world_size, |mesh| {
            let mut heard = heard(mesh.rank());
            let outcome = self.run(&mesh, out, &mut heard);
            (heard, outcome)
        })
    }
}

/// Everything is on: dropout, shuffling over an epoch's end, validation, the best checkpoint.
fn everything(method: Method) -> Settings {
    Settings {
        batch: 7,
        length: Length::Updates(10),
        cutoff: 48,
        learning_rate: 2e-3,
        warmup: 3.0,
        validate_every: 4,
        checkpoint_every: 3,
        micro_batch_tokens: 100,
        dropout: if method == Method::Lora { 0.1 } else { 0.0 },
        ..Settings::preset(Preset::Paper, method)
    }
}

#[derive(Default)]
struct Heard {
    losses: Vec<f64>,
    validations: Vec<f64>,
    stop_after: Option<u64>,
}

impl Progress for Heard {
    fn update(&mut self, metrics: &UpdateMetrics) {
        self.losses.push(metrics.loss);
    }
    fn validation(&mut self, metrics: &ValidationMetrics) {
        self.validations.push(metrics.validation_loss);
        self.validations.extend(metrics.validation_loss_by_language.values());
    }
    fn note(&mut self, _: &str) {}
    fn should_stop(&self) -> bool {
        self.stop_after.is_some_and(|after| self.losses.len() as u64 >= after)
    }
}

/// What each rank of a world makes of its connections.
fn world<T: Send>(world_size: usize, work: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = listener.local_addr().unwrap().to_string();
    let seat = |rank| Seat { rank, world_size, master: master.clone(), token: String::new() };
    thread::scope(|scope| {
        let (seat, work, listener) = (&seat, &work, &listener);
        let rank = |rank| {
            scope.spawn(move || {
                let mesh = match rank {
                    0 => Mesh::lead(&seat(0), listener, PATIENCE, &mut |_| Ok(())),
                    rank => Mesh::meet(&seat(rank), PATIENCE, &mut |_| Ok(())),
                };
                work(mesh.unwrap())
            })
        };
        let ranks: Vec<_> = (0..world_size).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

fn tensors(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<f32>> {
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    files
        .values()
        .flat_map(|bytes| {
            let file = SafeTensors::deserialize(bytes).unwrap();
            file.tensors().into_iter().map(|(name, tensor)| (name, floats(tensor.data()))).collect::<Vec<_>>()
        })
        .collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}: {found} beside {expected}");
    }
}

/// All tensors together: ‖a − b‖ / ‖b‖.
fn assert_values_near(
    what: &str,
    found: &BTreeMap<String, Vec<u8>>,
    expected: &BTreeMap<String, Vec<u8>>,
    tolerance: f64,
) {
    let (found, expected) = (tensors(found), tensors(expected));
    assert!(found.keys().eq(expected.keys()), "{what}");
    let (mut difference, mut size) = (0.0, 0.0);
    for (name, values) in &found {
        assert_eq!(values.len(), expected[name].len(), "{what}: {name}");
        for (a, b) in values.iter().zip(&expected[name]) {
            difference += f64::from(a - b).powi(2);
            size += f64::from(*b).powi(2);
        }
    }
    let relative = (difference / size).sqrt();
    assert!(relative <= tolerance, "{what}: {relative:.1e}");
}

#[test]
fn several_processes_come_to_one_processes_losses_by_every_family_and_both_methods() {
    for (model, _) in TINY_MODELS {
        for method in [Method::Lora, Method::Full] {
            let job = Job::new(model, everything(method));
            let folder = tempfile::tempdir().unwrap();
            let (alone, out) = (folder.path().join("alone"), folder.path().join("together"));
            let mut expected = Heard::default();
            let outcome = job.run(&Alone, &alone, &mut expected).unwrap();
            let ranks = job.run_together(3, &out, |_| Heard::default());
            for (rank, (heard, found)) in ranks.iter().enumerate() {
                let what = format!("{model}, {method:?}, rank {rank}");
                // Sums in another order, whose rounding ten updates of Adam carry on.
                assert_close(&what, &heard.losses, &expected.losses, 1e-4);
                assert_close(&what, &heard.validations, &expected.validations, 1e-4);
                let found = found.as_ref().unwrap();
                assert_eq!((found.updates, found.tokens), (outcome.updates, outcome.tokens), "{what}");
                if rank == 0 {
                    assert_eq!(found.kept_update, outcome.kept_update, "{what}");
                }
            }
            // Adam's first updates make whole steps of what rounding alone says: of the values, not of their losses.
            assert_values_near(&format!("{model}, {method:?}"), &weights(&out), &weights(&alone), 1e-2);
            let lines =
                |out: &Path| std::fs::read_to_string(out.with_extension("jsonl")).unwrap().lines().count();
            assert_eq!(lines(&out), lines(&alone), "{model}, {method:?}: rank 0 alone writes the metrics");
        }
    }
}

#[test]
fn the_same_processes_come_to_the_same_bytes_stopped_or_not() {
    for (method, model) in [(Method::Lora, "gpt-neox-parallel"), (Method::Full, "llama-grouped")] {
        let job = Job::new(model, everything(method));
        let folder = tempfile::tempdir().unwrap();
        let once = folder.path().join("once");
        job.run_together(2, &once, |_| Heard::default())
            .into_iter()
            .for_each(|(_, outcome)| drop(outcome.unwrap()));
        let expected = weights(&once);
        let twice = folder.path().join("twice");
        job.run_together(2, &twice, |_| Heard::default());
        assert!(expected == weights(&twice), "{method:?}: twice the same");

        // Rank 1 alone is asked to stop, and later rank 0: both times both stop, with a checkpoint.
        let stopped = folder.path().join("stopped");
        for (asked, after) in [(1, 2), (0, 3)] {
            let heard = |rank| Heard { stop_after: (rank == asked).then_some(after), ..Heard::default() };
            for (_, outcome) in job.run_together(2, &stopped, heard) {
                assert!(matches!(outcome, Err(Error::Stopped { .. })), "{method:?}");
            }
        }
        job.run_together(2, &stopped, |_| Heard::default());
        assert!(expected == weights(&stopped), "{method:?}: stopped twice");

        // What two began, three go on with, and one ends.
        let moved = folder.path().join("moved");
        let heard = |_| Heard { stop_after: Some(3), ..Heard::default() };
        job.run_together(2, &moved, heard);
        job.run_together(3, &moved, heard);
        let mut last = Heard::default();
        job.run(&Alone, &moved, &mut last).unwrap();
        assert_eq!(last.losses.len(), 4, "{method:?}: the checkpoint was gone on from");
        assert_values_near(&format!("{method:?}"), &weights(&moved), &expected, 1e-2);
    }
}

#[test]
fn processes_with_a_gpu_each_come_to_one_processes_losses() {
    // Sums in another order, as for processes on the CPU; and brain floats, of 8 bits.
    let arithmetics = [(Arithmetic::F32, 1e-4), (Arithmetic::Bf16, 2e-2)];
    let ways = [everything(Method::Lora), everything(Method::Full), divided()];
    for (settings, (arithmetic, tolerance)) in
        ways.into_iter().flat_map(|settings| arithmetics.map(|of| (settings.clone(), of)))
    {
        let (method, divided) = (settings.method, settings.shard_weights);
        let job = Job::new("llama-grouped", Settings { length: Length::Updates(3), ..settings });
        let folder = tempfile::tempdir().unwrap();
        let mut expected = Heard::default();
        let whole = Settings { shard_weights: false, ..job.settings.clone() };
        let alone = Job::new("llama-grouped", whole);
        alone.run(&Alone, &folder.path().join("alone"), &mut expected).unwrap();
        let out = folder.path().join("together");
        let ranks = world(2, |mesh| {
            let kernels = Cuda::new(Arc::new(Emulator::default()), arithmetic);
            let mut heard = Heard::default();
            job.run_on(&kernels, &mesh, &out, &mut heard).unwrap();
            heard
        });
        for heard in ranks {
            let what = format!("{method:?} in {arithmetic:?}, divided: {divided}");
            assert_close(&what, &heard.losses, &expected.losses, tolerance);
            assert_close(&what, &heard.validations, &expected.validations, tolerance);
        }
    }
}

/// Full tuning whose weights are divided, with everything on.
fn divided() -> Settings {
    Settings { shard_weights: true, ..everything(Method::Full) }
}

#[test]
fn processes_that_divide_the_weights_come_to_one_processes_losses_in_every_family() {
    for (model, _) in TINY_MODELS {
        let job = Job::new(model, divided());
        let whole = Job::new(model, everything(Method::Full));
        let folder = tempfile::tempdir().unwrap();
        let alone = folder.path().join("alone");
        let mut expected = Heard::default();
        let outcome = whole.run(&Alone, &alone, &mut expected).unwrap();
        for world_size in [2, 3] {
            let out = folder.path().join(world_size.to_string());
            for (rank, (heard, found)) in
                job.run_together(world_size, &out, |_| Heard::default()).iter().enumerate()
            {
                let what = format!("{model}, rank {rank} of {world_size}");
                // Sums in another order, whose rounding ten updates of Adam carry on.
                assert_close(&what, &heard.losses, &expected.losses, 1e-4);
                assert_close(&what, &heard.validations, &expected.validations, 1e-4);
                let found = found.as_ref().unwrap();
                assert_eq!((found.updates, found.tokens), (outcome.updates, outcome.tokens), "{what}");
                if rank == 0 {
                    assert_eq!(found.kept_update, outcome.kept_update, "{what}");
                }
            }
            // As where every process has all weights.
            assert_values_near(&format!("{model} by {world_size}"), &weights(&out), &weights(&alone), 1e-2);
        }
    }
}

#[test]
fn divided_weights_are_kept_and_gone_on_from_by_whoever() {
    // The best values are kept in one, the last in the other, whose embedding is its head too.
    for (model, keep) in [("llama-grouped", Keep::Best), ("llama-tied", Keep::Last)] {
        let job = Job::new(model, Settings { keep, ..divided() });
        let whole = Job::new(model, Settings { keep, ..everything(Method::Full) });
        let folder = tempfile::tempdir().unwrap();
        let once = folder.path().join("once");
        job.run_together(2, &once, |_| Heard::default())
            .into_iter()
            .for_each(|(_, outcome)| drop(outcome.unwrap()));
        let expected = weights(&once);

        let stopped = folder.path().join("stopped");
        for (asked, after) in [(1, 2), (0, 3)] {
            let heard = |rank| Heard { stop_after: (rank == asked).then_some(after), ..Heard::default() };
            for (_, outcome) in job.run_together(2, &stopped, heard) {
                assert!(matches!(outcome, Err(Error::Stopped { .. })), "{model}");
            }
        }
        job.run_together(2, &stopped, |_| Heard::default());
        assert!(expected == weights(&stopped), "{model}: stopped twice");

        // Begun with divided weights, gone on with by three that have them all, then by three that do not, then by one.
        let moved = folder.path().join("moved");
        let heard = |_| Heard { stop_after: Some(2), ..Heard::default() };
        job.run_together(2, &moved, heard);
        whole.run_together(3, &moved, heard);
        job.run_together(3, &moved, heard);
        let mut last = Heard::default();
        whole.run(&Alone, &moved, &mut last).unwrap();
        assert_eq!(last.losses.len(), 4, "{model}: the checkpoints were gone on from");
        assert_values_near(model, &weights(&moved), &expected, 1e-2);
    }
}

#[test]
fn ranks_without_rows_help_the_others_where_weights_are_divided() {
    for (model, recompute) in [("llama-tied", false), ("gpt-neox-parallel", true)] {
        // Two rows an update, and three to measure on, for four processes.
        let settings = Settings { batch: 2, recompute, supervise: Supervise::All, ..divided() };
        let whole = Settings { shard_weights: false, ..settings.clone() };
        let [mut job, mut alone] = [settings, whole].map(|settings| Job::new(model, settings));
        job.validation.rows.truncate(3);
        alone.validation.rows.truncate(3);
        let folder = tempfile::tempdir().unwrap();
        let mut expected = Heard::default();
        alone.run(&Alone, &folder.path().join("alone"), &mut expected).unwrap();
        for (heard, outcome) in job.run_together(4, &folder.path().join("out"), |_| Heard::default()) {
            outcome.unwrap();
            assert_close(model, &heard.losses, &expected.losses, 1e-4);
            assert_close(model, &heard.validations, &expected.validations, 1e-4);
        }
    }
}

#[test]
fn weights_are_divided_by_several_processes_in_full_tuning_alone_and_by_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let lora = Job::new("llama-grouped", Settings { shard_weights: true, ..everything(Method::Lora) });
    for (_, outcome) in lora.run_together(2, &out, |_| Heard::default()) {
        let told = outcome.unwrap_err().to_string();
        assert!(told.ends_with("expected full tuning, found LoRA"), "{told}");
    }
    let job = Job::new("llama-grouped", divided());
    let told = job.run(&Alone, &out, &mut Heard::default()).unwrap_err().to_string();
    assert!(told.ends_with("expected several processes, found one"), "{told}");
    let other = Job::new("llama-grouped", everything(Method::Full));
    let found = world(2, |mesh| {
        let job = if mesh.rank() == 0 { &job } else { &other };
        job.run(&mesh, &out, &mut Heard::default()).unwrap_err().to_string()
    });
    for told in found {
        assert!(told.starts_with("1 of 2 processes have other rows, settings,"), "{told}");
    }
}

#[test]
fn the_largest_gradient_is_that_of_all_ranks_rows() {
    for shard_weights in [false, true] {
        // One row an update: two of three processes have none, and gradients of zero.
        let settings = Settings {
            shard_weights,
            batch: 1,
            learning_rate: 1e30,
            warmup: 0.0,
            clip: None,
            supervise: Supervise::All,
            ..everything(Method::Full)
        };
        let job = Job::new("llama-grouped", settings.clone());
        let folder = tempfile::tempdir().unwrap();
        let gradient = |outcome: Result<Outcome, Error>| {
            let Err(Error::NotFinite { gradient, .. }) = outcome else { panic!("{outcome:?}") };
            gradient
        };
        let whole = Job::new("llama-grouped", Settings { shard_weights: false, ..settings });
        let expected = gradient(whole.run(&Alone, &folder.path().join("alone"), &mut Heard::default()));
        for (_, outcome) in job.run_together(3, &folder.path().join("out"), |_| Heard::default()) {
            assert_eq!(gradient(outcome), expected, "divided: {shard_weights}");
        }
    }
}

#[test]
fn processes_with_other_rows_or_settings_are_refused() {
    let job = Job::new("llama-grouped", everything(Method::Lora));
    // How often a checkpoint is written changes no result, but who does what when.
    for other in [
        Settings { seed: 1, ..everything(Method::Lora) },
        Settings { checkpoint_every: 2, ..everything(Method::Lora) },
    ] {
        let other = Job::new("llama-grouped", other);
        let folder = tempfile::tempdir().unwrap();
        let found = world(2, |mesh| {
            let job = if mesh.rank() == 0 { &job } else { &other };
            job.run(&mesh, &folder.path().join("out"), &mut Heard::default()).unwrap_err().to_string()
        });
        for told in found {
            assert!(told.starts_with("1 of 2 processes have other rows, settings,"), "{told}");
        }
    }
}

#[test]
fn a_process_that_is_gone_ends_the_others_and_the_checkpoint_stays() {
    let job = Job::new("llama-grouped", Settings { checkpoint_every: 1, ..everything(Method::Full) });
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");

    /// Goes away in the middle of a run, without a word.
    struct Leaves(u32);
    impl Progress for Leaves {
        fn update(&mut self, _: &UpdateMetrics) {
            self.0 += 1;
            if self.0 == 3 {
                std::panic::resume_unwind(Box::new("gone"));
            }
        }
        fn validation(&mut self, _: &ValidationMetrics) {}
        fn note(&mut self, _: &str) {}
    }

    let found = world(3, |mesh| {
        let places = Places::under(&out);
        let run = |progress: &mut dyn Progress| {
            tune_together(
                &Cpu,
                &mesh,
                &job.base,
                &job.rows,
                &job.validation,
                None,
                &job.settings,
                &places,
                progress,
            )
        };
        if mesh.rank() == 2 {
            let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut Leaves(0))));
            assert!(left.is_err());
            return String::new();
        }
        run(&mut Heard::default()).unwrap_err().to_string()
    });
    assert!(found.iter().any(|told| told.starts_with("rank 2 (127.0.0.1:")), "{found:?}");
    let whole = folder.path().join("whole");
    job.run_together(3, &whole, |_| Heard::default());
    job.run_together(3, &out, |_| Heard::default());
    assert!(weights(&whole) == weights(&out));
}
