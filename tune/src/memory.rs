//! A tuning that would not fit into memory is refused before it starts, with what would fit.

use std::fs;
use std::path::Path;

use engine::decoder::config::DecoderConfig;
use engine::decoder::cost::{ModuleShape, slot_bytes};
use engine::decoder::weights::{Precision, Slot, slots};
use engine::kernels::Kernels;
use model::BaseModel;

use crate::collective::{Collective, deal};
use crate::cost::{self, Memory, RowLength, Shape, most_tokens};
use crate::error::{Error, Result};
use crate::settings::{FrozenWeights, Method, Settings};
use crate::sharded::Held;

/// The program before it has read a model: code, the threads' stacks, the tokenizer.
pub const PROGRAM: u64 = 100 << 20;

/// What a process of a tuning may take; none is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Of the memory that its backend works in.
    pub available: Option<u64>,
    /// Processes that take it, and as much as this one.
    pub sharing: u64,
    /// Of the machine's, where that is another one, and this process writes the result.
    pub of_machine: Option<u64>,
    /// The processes that tune together, and share the moments.
    pub world_size: usize,
}

impl Room {
    /// What there is for this process. A GPU is a process's own; a machine's memory is for all that are on it.
    pub(crate) fn of<K: Kernels>(kernels: &K, collective: &dyn Collective) -> Self {
        let here = available();
        let of_device = kernels.available_bytes();
        Self {
            available: of_device.or(here),
            sharing: if of_device.is_some() { 1 } else { collective.on_this_machine() as u64 },
            of_machine: of_device.and(here).filter(|_| collective.is_first()),
            world_size: collective.world_size(),
        }
    }

    /// What all processes here take. Each has a tensor on its way into a checkpoint.
    fn taken(self, memory: Memory) -> u64 {
        memory.total() * self.sharing
    }
}

/// Refuses a tuning that would not fit, and says what would.
///
/// # Errors
/// [`Error::Memory`]; and modules that the model does not have.
pub(crate) fn check<K: Kernels>(
    kernels: &K,
    base: &BaseModel,
    rows: &[RowLength],
    validation: &[RowLength],
    settings: &Settings,
    room: Room,
) -> Result<()> {
    let of = |settings: &Settings| -> Result<Memory> {
        Ok(predict(kernels, &Shape::of(base, settings)?, rows, validation, settings, room.world_size))
    };
    if let Some(available) = room.of_machine {
        check_machine(base, settings, available)?;
    }
    let Some(available) = room.available else { return Ok(()) };
    let wanted = of(settings)?;
    if room.taken(wanted) <= available {
        return Ok(());
    }
    let longest = rows.iter().chain(validation).map(|row| row.tokens).max().unwrap_or(0);
    let mut fitting =
        "nothing that `tune` can spare would make it fit: it takes a smaller model or a larger machine"
            .to_owned();
    for (flags, settings) in frugal(settings, longest, room.world_size) {
        let total = room.taken(of(&settings)?);
        if total <= available {
            fitting = format!("{flags} would fit, with {}", gigabytes(total));
            break;
        }
    }
    let each = if room.sharing == 1 { String::new() } else { format!(" for {} processes", room.sharing) };
    Err(Error::Memory(format!(
        "this tuning would take {}{each} (weights {}, what is trained {}, activations {}, and {} beside them), and {} are free; \
         {fitting}",
        gigabytes(room.taken(wanted)),
        gigabytes(wanted.weights),
        gigabytes(wanted.optimizer),
        gigabytes(wanted.workspace),
        gigabytes(wanted.scratch + wanted.checkpoint),
        gigabytes(available),
    )))
}

/// Refuses a tuning on a GPU whose result could not be written from the machine's memory.
fn check_machine(base: &BaseModel, settings: &Settings, available: u64) -> Result<()> {
    // A tensor on its way there: as the model has it, as the file has it, and as bytes.
    let wanted = 3 * 4 * Shape::of(base, settings)?.largest_tensor() as u64 + PROGRAM;
    if wanted <= available {
        return Ok(());
    }
    Err(Error::Memory(format!(
        "this tuning would take {} of the machine's memory beside the GPU's, and {} are free: it takes a smaller model or \
         a larger machine",
        gigabytes(wanted),
        gigabytes(available)
    )))
}

/// What one of `world_size` processes of a tuning takes of the memory that its backend works in, the program among it.
fn predict<K: Kernels>(
    kernels: &K,
    shape: &Shape,
    rows: &[RowLength],
    validation: &[RowLength],
    settings: &Settings,
    world_size: usize,
) -> Memory {
    // Activations are those of the rows that are a process's own, as the run itself makes room for them.
    let tokens = most_tokens(rows, validation, settings, world_size);
    let mut memory = cost::memory(shape, tokens, settings, rayon::current_num_threads());
    let held = (settings.shard_weights && world_size > 1 && shape.modules.is_none())
        .then(|| most_held(&shape.config, world_size));
    if let Some(held) = &held {
        let bytes = |slots: &[Slot]| bytes_of(&shape.config, slots);
        memory.weights = bytes(&held.own) + bytes(&held.guests);
        // A gradient of each, and two moments of its own.
        memory.optimizer = 3 * bytes(&held.own) + bytes(&held.guests);
    } else if world_size > 1 && shape.modules.is_none() {
        // Moments of the tensors that it owns.
        memory.optimizer -= MOMENTS_BYTES * shape.trained_parameters() as u64;
        memory.optimizer += MOMENTS_BYTES * largest_share(shape, world_size);
    }
    let here = |slot| held.as_ref().is_none_or(|held| held.all().any(|other| *other == slot));
    let precision = |slot| here(slot).then(|| shape.precision(slot));
    let widest = |modules: &Vec<ModuleShape>| modules.iter().map(|module| module.rank).max().unwrap_or(0);
    let rank = shape.modules.as_ref().map(widest);
    match kernels.scratch_bytes(&shape.config, &precision, tokens, rank) {
        None => Memory { scratch: memory.scratch + PROGRAM, ..memory },
        // The program and what becomes a checkpoint are in the machine's memory.
        Some(scratch) => Memory { scratch, checkpoint: 0, ..memory },
    }
}

/// Bytes of a trained value's two moments.
const MOMENTS_BYTES: u64 = 2 * 4;

/// Values of the tensors of which one process keeps the moments, at most.
fn largest_share(shape: &Shape, world_size: usize) -> u64 {
    let slots = slots(&shape.config).into_iter();
    let lengths: Vec<usize> = slots.map(|slot| slot.shape(&shape.config).iter().product()).collect();
    let mut shares = vec![0; world_size];
    for (length, owner) in lengths.iter().zip(deal(&lengths, world_size)) {
        shares[owner] += *length as u64;
    }
    shares.into_iter().max().unwrap_or(0)
}

/// What the process holds that has the most of a decoder whose weights are divided.
fn most_held(config: &DecoderConfig, world_size: usize) -> Held {
    let all = (0..world_size).map(|rank| Held::by(rank, config, world_size));
    let most = all.max_by_key(|held| 2 * bytes_of(config, &held.own) + bytes_of(config, &held.guests));
    most.unwrap_or_else(|| Held::by(0, config, 1))
}

/// Bytes of trained weights.
fn bytes_of(config: &DecoderConfig, slots: &[Slot]) -> u64 {
    slots.iter().map(|slot| slot_bytes(config, *slot, true, Precision::F32) as u64).sum()
}

/// Settings that take less, from the one that costs the least time or precision on, each with its flags.
fn frugal(settings: &Settings, longest: usize, world_size: usize) -> Vec<(String, Settings)> {
    let mut ways = in_fewer_bytes(settings, longest);
    if settings.method == Method::Full && world_size > 1 && !settings.shard_weights {
        let divided = Settings { shard_weights: true, ..settings.clone() };
        let flags = |flags: String| format!("--shard-weights {flags}").trim_end().to_owned();
        let more = in_fewer_bytes(&divided, longest).into_iter();
        ways.extend(more.map(|(also, settings)| (flags(also), settings)));
    }
    ways
}

/// Settings that take less in each process by itself.
fn in_fewer_bytes(settings: &Settings, longest: usize) -> Vec<(String, Settings)> {
    let mut ways = Vec::new();
    let weights = [
        (None, settings.weights),
        (Some("bf16"), FrozenWeights::Bf16),
        (Some("8bit"), FrozenWeights::Bits8),
        (Some("4bit"), FrozenWeights::Bits4),
    ];
    let weights = if settings.method == Method::Lora { &weights[..] } else { &weights[..1] };
    for (name, weights) in weights {
        for tokens in [settings.micro_batch_tokens, longest.max(1)] {
            for recompute in [settings.recompute, true] {
                let mut flags = Vec::new();
                if let Some(name) = name {
                    flags.push(format!("--weights {name}"));
                }
                if tokens < settings.micro_batch_tokens {
                    flags.push(format!("--micro-batch-tokens {tokens}"));
                }
                if recompute && !settings.recompute {
                    flags.push("--recompute".to_owned());
                }
                let settings =
                    Settings { weights: *weights, micro_batch_tokens: tokens, recompute, ..settings.clone() };
                ways.push((flags.join(" "), settings));
            }
        }
    }
    ways
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Bytes that this process can still have: the system's available memory, or what its control groups leave if that is
/// less (a container's, a Slurm step's, a systemd unit's); none where the system does not say.
pub fn available() -> Option<u64> {
    let information = fs::read_to_string("/proc/meminfo").ok()?;
    let line = information.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = left_in_groups(Path::new("/sys/fs/cgroup"), &groups);
    Some(left.map_or(system, |left| system.min(left)))
}

/// The least that the process's control groups leave, of those that bound memory. `groups` is `/proc/self/cgroup`; a
/// group that is not mounted under `root`, as in a container, is passed over.
fn left_in_groups(root: &Path, groups: &str) -> Option<u64> {
    let left = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let version_1 = controllers.split(',').any(|controller| controller == "memory");
        let (root, files) = match (controllers, version_1) {
            ("", _) => (root.to_owned(), ["memory.max", "memory.current", "inactive_file "]),
            (_, true) => {
                let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
                (root.join("memory"), files)
            }
            _ => return None,
        };
        let own = Path::new(group.trim_start_matches('/'));
        own.ancestors().filter_map(|group| left_in_group(&root.join(group), files)).min()
    });
    left.min()
}

/// What a control group leaves: the system takes cached pages of files back when they are in the way.
fn left_in_group(group: &Path, [most, used, cached]: [&str; 3]) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let most = number(most)?;
    let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok());
    Some(most.saturating_sub(number(used)?.saturating_sub(cached.unwrap_or(0))))
}

/// The most memory that this process has held, in bytes, since it began or since [`restart_peak`]; 0 where the system
/// does not say.
pub fn peak_bytes() -> u64 {
    of_process("VmHWM:")
}

/// What this process holds now, in bytes; 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    of_process("VmRSS:")
}

/// Lets [`peak_bytes`] begin anew from what the process holds now. Linux alone can, and a sandbox may forbid it: then the
/// peak stays that of the process's whole life.
pub fn restart_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn of_process(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use emulator::Emulator;
    use engine::cuda::{Arithmetic, LIBRARIES_BYTES};
    use engine::{Cpu, Cuda};

    use super::*;
    use crate::cost::cost;
    use crate::settings::{Length, Preset};
    use crate::{Places, Quiet, Rows, TrainingRow, UpdateMetrics, tune};

    /// A small model, and what a tuning of it under these settings computes on.
    fn small(settings: &Settings) -> (BaseModel, Shape) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
        let base = BaseModel::open(folder).unwrap();
        let shape = Shape::of(&base, settings).unwrap();
        (base, shape)
    }

    #[test]
    fn the_closest_bound_of_a_processs_groups_holds() {
        let root = tempfile::tempdir().unwrap();
        let write = |group: &str, name: &str, text: &str| {
            fs::create_dir_all(root.path().join(group)).unwrap();
            fs::write(root.path().join(group).join(name), text).unwrap();
        };
        for (group, most, used) in
            [("slurm", "1000", "900"), ("slurm/job", "600", "500"), ("slurm/job/step", "max", "400")]
        {
            write(group, "memory.max", most);
            write(group, "memory.current", used);
        }
        write("slurm/job", "memory.stat", "anon 200\ninactive_file 300\nactive_file 0\n");
        assert_eq!(left_in_groups(root.path(), "0::/slurm/job/step\n"), Some(100));
        assert_eq!(left_in_groups(root.path(), "0::/elsewhere\n"), None);
        write("slurm", "memory.stat", "inactive_file 800\n");
        assert_eq!(left_in_groups(root.path(), "0::/slurm/job/step\n"), Some(400));
        for (name, text) in [("memory.limit_in_bytes", "50"), ("memory.usage_in_bytes", "20")] {
            write("memory/job", name, text);
        }
        assert_eq!(left_in_groups(root.path(), "5:cpu:/\n4:hugetlb,memory:/job\n"), Some(30));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let settings = Settings { micro_batch_tokens: 4096, ..Settings::preset(Preset::Paper, Method::Lora) };
        let rows = vec![RowLength { tokens: 64, supervised: 63 }; 128];
        let threads = rayon::current_num_threads();
        let (base, shape) = small(&settings);
        let enough = cost(&shape, &rows, &[], &settings, threads).memory.total() + PROGRAM;
        let found = |available| {
            let room = Room { available, sharing: 1, of_machine: None, world_size: 1 };
            let refused = check(&Cpu, &base, &rows, &[], &settings, room);
            refused.map_or_else(|error| error.to_string(), |()| "it fits".to_owned())
        };
        assert_eq!(found(Some(enough)), "it fits");
        assert_eq!(found(None), "it fits");
        let message = found(Some(enough - 1));
        assert!(message.contains("--recompute would fit"), "{message}");
        let message = found(Some(1));
        assert!(message.contains("a smaller model"), "{message}");
    }

    #[test]
    fn processes_together_take_less_for_each_and_a_gpus_checkpoints_are_the_machines() {
        let settings = Settings::preset(Preset::Paper, Method::Full);
        let rows = vec![RowLength { tokens: 64, supervised: 63 }; 256 * 60];
        let (base, shape) = small(&settings);
        let optimizer = |world_size| predict(&Cpu, &shape, &rows, &[], &settings, world_size).optimizer;
        let moments = MOMENTS_BYTES * shape.trained_parameters() as u64;
        // Three quarters of the moments are others'; no tensor is cut.
        assert!(optimizer(4) < optimizer(1) - moments * 2 / 3, "{} and {}", optimizer(4), optimizer(1));
        // What is divided is the last that is proposed.
        let least =
            Settings { shard_weights: true, recompute: true, micro_batch_tokens: 64, ..settings.clone() };
        let enough = predict(&Cpu, &shape, &rows, &[], &least, 4).total();
        let room = Room { available: Some(enough), sharing: 1, of_machine: None, world_size: 4 };
        let told = check(&Cpu, &base, &rows, &[], &settings, room).unwrap_err().to_string();
        assert!(told.contains("--shard-weights --micro-batch-tokens 64 --recompute would fit"), "{told}");
        let found = |of_machine| {
            let room = Room { available: None, sharing: 1, of_machine: Some(of_machine), world_size: 1 };
            check(&Cpu, &base, &rows, &[], &settings, room).map_err(|error| error.to_string())
        };
        assert_eq!(found(1 << 40), Ok(()));
        assert!(found(1).is_err_and(|told| told.contains("of the machine's memory beside the GPU's")));
    }

    /// Room that is asked for and not used: operands as wide as the widest, a matrix to be converted.
    const SPARE: f64 = 1.15;

    #[test]
    fn what_a_gpu_is_thought_to_hold_is_what_it_holds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens");
        let name = "llama-grouped";
        for (method, weights, arithmetic, share_prefixes) in [
            (Method::Lora, FrozenWeights::Published, Arithmetic::Bf16, false),
            (Method::Lora, FrozenWeights::Bits4, Arithmetic::Bf16, false),
            (Method::Lora, FrozenWeights::F32, Arithmetic::Bf16, false),
            (Method::Full, FrozenWeights::Published, Arithmetic::Bf16, false),
            (Method::Full, FrozenWeights::Published, Arithmetic::F32, false),
            (Method::Lora, FrozenWeights::Published, Arithmetic::Bf16, true),
            (Method::Full, FrozenWeights::Published, Arithmetic::Bf16, true),
        ] {
            let base = match BaseModel::open(folder.join(name).join("model")) {
                Ok(base) => base,
                Err(error) => panic!("{error}"),
            };
            let settings = Settings {
                batch: 8,
                length: Length::Updates(1),
                weights,
                share_prefixes,
                ..Settings::preset(Preset::Paper, method)
            };
            let row = |id: usize| TrainingRow {
                id: id.to_string(),
                language: "en".to_owned(),
                tokens: (0..40).collect(),
                supervised_from: 0,
            };
            let rows = Rows { rows: (0..8).map(row).collect(), ..Rows::default() };
            let gpu = Arc::new(Emulator::default());
            let kernels = Cuda::new(gpu.clone(), arithmetic);
            let lengths = RowLength::of(&rows.rows);
            let told = Shape::of(&base, &settings)
                .map(|shape| predict(&kernels, &shape, &lengths, &[], &settings, 1).total() as f64);
            let out = tempfile::tempdir().map(|folder| {
                let metrics = folder.path().join("metrics.jsonl");
                let places = Places { metrics: Some(metrics.clone()), ..Places::under(folder.path()) };
                let tuned =
                    tune(&kernels, &base, &rows, &Rows::default(), None, &settings, &places, &mut Quiet);
                tuned.ok()?;
                let lines = fs::read_to_string(metrics).ok()?;
                serde_json::from_str::<UpdateMetrics>(lines.lines().last()?).ok()?.device_peak_bytes
            });
            let (Ok(told), Ok(Some(metered))) = (told, out) else { panic!("{name}: it was not tuned") };
            assert_eq!(metered, gpu.most_bytes() as u64, "{name}: what the metrics tell");
            // The emulator has none of NVIDIA's libraries.
            let told = told - LIBRARIES_BYTES as f64;
            let came_to = gpu.most_bytes() as f64;
            let what = format!(
                "{method:?}, {weights:?}, {arithmetic:?}, shared {share_prefixes}: told {told}, came to {came_to}"
            );
            // Rows that are all alike take less than a bound for any.
            assert!(came_to <= told && (share_prefixes || told <= SPARE * came_to), "{what}");
        }
    }

    #[test]
    fn what_gpus_that_divide_the_weights_are_thought_to_hold_is_what_they_hold() {
        let world_size = 3;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
        // Blocks enough that the room for one is not the most of it, and whole panels: a GPU's matrices have no others.
        let text = fs::read_to_string(folder.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, value) in [
            ("num_hidden_layers", 12),
            ("hidden_size", 64),
            ("head_dim", 16),
            ("intermediate_size", 128),
            ("vocab_size", 416),
        ] {
            config[key] = value.into();
        }
        let deep = tempfile::tempdir().unwrap();
        let path = deep.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        let base = BaseModel::fresh(&path, &folder, 0).unwrap();
        for arithmetic in [Arithmetic::Bf16, Arithmetic::F32] {
            let settings = Settings {
                batch: 6,
                length: Length::Updates(2),
                share_prefixes: false,
                recompute: true,
                shard_weights: true,
                ..Settings::preset(Preset::Paper, Method::Full)
            };
            let row = |id: usize| TrainingRow {
                id: id.to_string(),
                language: "en".to_owned(),
                tokens: (0..20).collect(),
                supervised_from: 0,
            };
            let rows = Rows { rows: (0..6).map(row).collect(), ..Rows::default() };
            let shape = Shape::of(&base, &settings).unwrap();
            let told = |settings: &Settings| {
                let kernels = Cuda::new(Arc::new(Emulator::default()), arithmetic);
                let lengths = RowLength::of(&rows.rows);
                let told = predict(&kernels, &shape, &lengths, &[], settings, world_size).total();
                // The emulator has none of NVIDIA's libraries.
                told as f64 - LIBRARIES_BYTES as f64
            };
            let out = tempfile::tempdir().unwrap();
            let came_to = crate::collective::mesh::world(world_size, |mesh| {
                let gpu = Arc::new(Emulator::default());
                let kernels = Cuda::new(gpu.clone(), arithmetic);
                let (none, places) = (Rows::default(), Places::under(out.path()));
                crate::tune_together(
                    &kernels, &mesh, &base, &rows, &none, None, &settings, &places, &mut Quiet,
                )
                .unwrap();
                gpu.most_bytes() as f64
            });
            let (told, whole) =
                (told(&settings), told(&Settings { shard_weights: false, ..settings.clone() }));
            let most = came_to.iter().copied().fold(0.0, f64::max);
            let what = format!("{arithmetic:?}: told {told}, came to {came_to:?}; whole {whole}");
            assert!(most <= told && told <= SPARE * most, "{what}");
            assert!(told < 0.8 * whole, "{what}");
        }
    }

    #[test]
    fn a_peak_begins_anew_where_the_system_lets_it() {
        const PIECE: usize = 512 << 20;
        // Written to, so that it is held; other tests take little beside it.
        drop(std::hint::black_box(vec![1u8; PIECE]));
        let peak = peak_bytes();
        restart_peak();
        if peak == 0 || fs::write("/proc/self/clear_refs", "5").is_err() {
            eprintln!("skipped: this system does not begin a process's peak anew");
            return;
        }
        assert!(peak >= PIECE as u64, "{peak}");
        assert!(peak_bytes() < peak - PIECE as u64 / 2, "{peak} is still {}", peak_bytes());
        assert!(resident_bytes() <= peak_bytes());
    }

    #[test]
    fn a_run_holds_no_larger_micro_batch_than_it_meets() {
        let rows = [20, 30, 40].map(|tokens| RowLength { tokens, supervised: tokens - 1 });
        let settings = Settings {
            batch: 3,
            micro_batch_tokens: 64,
            order: crate::settings::Order::File,
            share_prefixes: false,
            ..Settings::preset(Preset::Paper, Method::Lora)
        };
        let long = [RowLength { tokens: 70, supervised: 1 }];
        let most = |validation: &[RowLength]| most_tokens(&rows, validation, &settings, 1);
        assert_eq!(most(&[]), 50);
        assert_eq!(most(&long), 70);
        // In another order there may be more in a micro-batch: 20 and 40 tokens here.
        let shared = Settings { share_prefixes: true, ..settings.clone() };
        assert_eq!(most_tokens(&rows, &[], &shared, 1), 64);
        assert_eq!(most_tokens(&rows[..2], &[], &shared, 1), 50);
        assert_eq!(most_tokens(&rows, &[], &Settings { micro_batch: Some(1), ..shared }, 1), 40);
    }
}
