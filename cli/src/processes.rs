//! `tune` by several processes: on this machine, where the program starts the others itself, or on several machines.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::net::TcpListener;
use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::anyhow;
use clap::Args;
use tune::collective::mesh::{Mesh, Seat};
use tune::collective::{Alone, Collective};

use crate::device::Device;
use crate::failure::Failure;
use crate::output::Output;

/// How long the processes of several machines wait for each other: a scheduler may start some of them later.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long those of one machine do, which are started together.
const SHORT_PATIENCE: Duration = Duration::from_secs(60);

/// After this time it is told that others are waited for.
const UNTOLD: Duration = Duration::from_secs(2);

/// How long a process may still take to end when its tuning has.
const GRACE: Duration = Duration::from_secs(10);

/// Which process of which tuning the program was started as by another: rank, world size, master, token.
const SEAT: &str = "POLYPACA_SEAT";

/// What processes that are started one by one have to know to take part, where it is set.
const TOKEN: &str = "POLYPACA_TOKEN";

/// GPUs that CUDA shows to a process.
const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// Where a tuning's processes are.
#[derive(Debug, Args)]
pub(crate) struct ProcessArguments {
    /// Tune by N processes, each with a part of every update's rows: on this machine unless --process-rank is given; with
    /// --device cuda one a GPU
    #[arg(long, value_name = "N", default_value = "1")]
    processes: NonZero<usize>,

    /// This process's number, from 0, where the same command is started N times, on one or several machines
    #[arg(long, value_name = "R", requires = "master")]
    process_rank: Option<usize>,

    /// Where process 0 listens for the others
    #[arg(long, value_name = "HOST:PORT", requires = "process_rank")]
    master: Option<String>,

    /// With --method full, have each weight, its gradient and its moments in one of the processes alone, and send weights to
    /// the others when they compute with them: less memory in each, and much is sent
    #[arg(long)]
    shard_weights: bool,
}

impl ProcessArguments {
    /// Processes that share this machine's cores, as far as the flags tell.
    pub(crate) fn here(&self) -> usize {
        if self.process_rank.is_some() { 1 } else { self.processes.get() }
    }

    /// Whether one process tunes by itself.
    pub(crate) fn alone(&self) -> bool {
        self.processes.get() == 1
    }

    /// Whether the weights are divided among the processes.
    pub(crate) fn shard_weights(&self) -> bool {
        self.shard_weights
    }

    /// Meets the tuning's other processes, which are started if they are this machine's.
    pub(crate) fn meet(&self, device: Device, output: &Output) -> Result<World, Failure> {
        if let Some(seat) = inherited_seat()? {
            return World::join(&seat, SHORT_PATIENCE, output);
        }
        match (self.process_rank, &self.master) {
            (Some(rank), Some(master)) => {
                let world_size = self.processes.get();
                let token = env::var(TOKEN).unwrap_or_default();
                let seat = Seat { rank, world_size, master: master.clone(), token };
                World::join(&seat, PATIENCE, output)
            }
            _ if self.here() > 1 => World::start(self.here(), device, output),
            _ => Ok(World { collective: Some(Box::new(Alone)), others: Vec::new() }),
        }
    }
}

/// A tuning's processes, as one of them sees them.
pub(crate) struct World {
    /// There until the end.
    collective: Option<Box<dyn Collective>>,
    /// Those that this one started: ranks 1 and on.
    others: Vec<Other>,
}

/// A process that this one has started.
struct Other {
    process: Child,
    /// All that it says on its standard error, once it has ended.
    said: JoinHandle<Vec<u8>>,
}

impl World {
    /// What the processes do together.
    pub(crate) fn collective(&self) -> &dyn Collective {
        self.collective.as_deref().unwrap_or(&Alone)
    }

    /// Starts the others on this machine, with the command that this one was started with.
    fn start(processes: usize, device: Device, output: &Output) -> Result<Self, Failure> {
        let gpus =
            if device == Device::Cuda { Some(gpus(processes).map_err(Failure::wrong_input)?) } else { None };
        let listener =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = listener.map_err(|error| {
            Failure::failed(anyhow!("--processes: no port of this machine is free: {error}"))
        })?;
        let seat = Seat { rank: 0, world_size: processes, master: address.to_string(), token: token() };
        let mut world = Self { collective: None, others: Vec::new() };
        for rank in 1..processes {
            let gpu = gpus.as_ref().map(|gpus| gpus[rank].as_str());
            match start(&Seat { rank, ..seat.clone() }, gpu) {
                Ok(other) => world.others.push(other),
                Err(error) => {
                    // They have not begun.
                    world.others.iter_mut().for_each(|other| drop(other.process.kill()));
                    return Err(Failure::failed(
                        error.context(format!("--processes: rank {rank} was not started")),
                    ));
                }
            }
        }
        let mut waiting = Waiting::new(output);
        let mesh = Mesh::lead(&seat, &listener, SHORT_PATIENCE, &mut |missing| {
            waiting.tell(missing);
            world.others.iter_mut().zip(1..).try_for_each(|(other, rank)| match other.process.try_wait() {
                Ok(Some(status)) => Err(tune::Error::Collective(format!(
                    "rank {rank} ended before it took part, with {status}"
                ))),
                _ => Ok(()),
            })
        });
        match mesh {
            Ok(mesh) => world.collective = Some(Box::new(mesh)),
            Err(error) => return world.end(Err(Failure::failed(error)), output),
        }
        Ok(world)
    }

    /// Takes a seat among processes that others start.
    fn join(seat: &Seat, patience: Duration, output: &Output) -> Result<Self, Failure> {
        let mut waiting = Waiting::new(output);
        let mesh = Mesh::meet(seat, patience, &mut |missing| {
            waiting.tell(missing);
            Ok(())
        });
        let mesh = mesh.map_err(super::commands::tuning_failure)?;
        Ok(Self { collective: Some(Box::new(mesh)), others: Vec::new() })
    }

    /// Waits for the processes that this one started, and says how all of them `ended`: this one, or else the first other
    /// one that failed. What others said is told where it is why this one failed.
    pub(crate) fn end<T>(mut self, ended: Result<T, Failure>, output: &Output) -> Result<T, Failure> {
        self.collective = None;
        let told = match &ended {
            Ok(_) => true,
            Err(failure) => {
                matches!(failure.error.downcast_ref::<tune::Error>(), Some(tune::Error::Collective(_)))
            }
        };
        let mut failed = None;
        for (mut other, rank) in std::mem::take(&mut self.others).into_iter().zip(1..) {
            if ended.is_err() {
                end_in_time(&mut other.process);
            }
            let status = other.process.wait()?;
            if status.success() {
                continue;
            }
            let said = other.said.join().unwrap_or_default();
            if told && !said.is_empty() {
                output.note(String::from_utf8_lossy(&said).trim_end());
            }
            if told && status.code().is_none() {
                // It was ended from outside, and said nothing.
                output.warning(format!("rank {rank} ended with {status}"));
            }
            failed.get_or_insert_with(|| Failure::failed(anyhow!("rank {rank} ended with {status}")));
        }
        let ended = ended?;
        failed.map_or(Ok(ended), Err)
    }
}

/// No process stays behind, however this one ends.
impl Drop for World {
    fn drop(&mut self) {
        self.collective = None;
        for other in &mut self.others {
            end_in_time(&mut other.process);
        }
    }
}

/// A process whose tuning has failed learns of it from the connections' end; one that does not is ended.
fn end_in_time(process: &mut Child) {
    let until = Instant::now() + GRACE;
    while matches!(process.try_wait(), Ok(None)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    // One that has ended cannot be ended once more.
    let _ = process.kill();
    let _ = process.wait();
}

/// Tells once that others are waited for.
struct Waiting<'a> {
    output: &'a Output,
    since: Instant,
    told: bool,
}

impl<'a> Waiting<'a> {
    fn new(output: &'a Output) -> Self {
        Self { output, since: Instant::now(), told: false }
    }

    fn tell(&mut self, missing: usize) {
        if !self.told && self.since.elapsed() >= UNTOLD {
            self.told = true;
            let processes = if missing == 1 { "process" } else { "processes" };
            self.output.note(format!("waiting for {missing} other {processes}"));
        }
    }
}

/// Starts this program once more, in another seat.
fn start(seat: &Seat, gpu: Option<&str>) -> anyhow::Result<Other> {
    let Seat { rank, world_size, master, token } = seat;
    let mut command = Command::new(env::current_exe()?);
    command
        .args(env::args_os().skip(1))
        .env(SEAT, format!("{rank} {world_size} {master} {token}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(gpu) = gpu {
        command.env(VISIBLE_DEVICES, gpu);
    }
    let mut process = command.spawn()?;
    let stderr = process.stderr.take();
    let said = thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // What was said until then is kept.
            let _ = stderr.read_to_end(&mut said);
        }
        said
    });
    Ok(Other { process, said })
}

/// A GPU for each of the processes on this machine.
fn gpus(processes: usize) -> anyhow::Result<Vec<String>> {
    let visible = env::var(VISIBLE_DEVICES).ok();
    (0..processes).map(|rank| gpu(rank, visible.as_deref())).collect()
}

/// The GPU of a process on this machine, of those that CUDA shows to its parent.
fn gpu(rank: usize, visible: Option<&str>) -> anyhow::Result<String> {
    let Some(visible) = visible else { return Ok(rank.to_string()) };
    let found = visible.split(',').nth(rank).map(|name| name.trim().to_owned());
    found
        .filter(|name| !name.is_empty())
        .ok_or_else(|| anyhow!("{VISIBLE_DEVICES} is {visible:?}: expected a GPU for each of the processes"))
}

/// The seat that another process started this one for.
fn inherited_seat() -> Result<Option<Seat>, Failure> {
    let Ok(text) = env::var(SEAT) else { return Ok(None) };
    let parts: Vec<&str> = text.split(' ').collect();
    let seat = match parts[..] {
        [rank, world_size, master, token] => rank
            .parse()
            .ok()
            .zip(world_size.parse().ok())
            .map(|(rank, world_size)| Seat { rank, world_size, master: master.into(), token: token.into() }),
        _ => None,
    };
    let wrong = || anyhow!("{SEAT} is {text:?}: it is set by the program itself; expected none");
    seat.map(Some).ok_or_else(wrong).map_err(Failure::wrong_input)
}

/// What no other process of this machine can guess: the keys of the standard library's hash maps are the system's random
/// numbers.
fn token() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_gpu_of_its_own() {
        let of = |rank, visible| gpu(rank, visible).map_err(|error| error.to_string());
        assert_eq!(of(1, None), Ok("1".into()));
        assert_eq!(of(1, Some("3, GPU-5a")), Ok("GPU-5a".into()));
        assert_eq!(
            of(2, Some("3,5")),
            Err("CUDA_VISIBLE_DEVICES is \"3,5\": expected a GPU for each of the processes".into())
        );
    }

    #[test]
    fn no_two_tunings_have_the_same_token() {
        assert_ne!(token(), token());
        assert_eq!(token().len(), 32);
    }
}
