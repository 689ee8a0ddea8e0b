//! `polypaca tune` by several processes, as a user runs it: started by the program itself, or one by one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn oracle(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle").join(path)
}

/// A tuning on a small model, with more flags.
fn tune(out: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypaca"));
    command
        .arg("tune")
        .args(["--model".as_ref(), oracle("goldens/llama-grouped/model").as_os_str()])
        .args(["--data".as_ref(), oracle("rows.json").as_os_str()])
        .args(["--out".as_ref(), out.as_os_str()])
        .args(["--updates", "12", "--batch", "6", "--cutoff", "64", "--lr", "1e-3"])
        .args(if flags.contains(&"full") { &[][..] } else { &["--dropout", "0.1"] })
        .args(["--validation-rows", "4", "--validate-every", "4", "--checkpoint-every", "1"])
        .args(flags)
        .stdin(Stdio::null());
    command
}

fn run(out: &Path, flags: &[&str]) -> Output {
    tune(out, flags).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn weights(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()))
        .collect()
}

fn losses(metrics: &Path) -> Vec<f64> {
    let text = fs::read_to_string(metrics).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The processes that a process has started; none where the system does not tell.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| status(*id, "PPid:").is_some_and(|found| found == parent.to_string())).collect()
}

/// What the system tells of a process, if it is there.
fn status(process: u32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "nothing came within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn processes_come_to_the_losses_of_one_and_print_one_result() {
    for method in ["lora", "full"] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let metrics = [at("one.jsonl"), at("three.jsonl")];
        let flags = |file: &'static str, processes: &'static str| {
            ["--method", method, "--json", "--metrics", file, "--processes", processes]
        };
        for (path, processes) in metrics.iter().zip(["1", "3"]) {
            let flags = flags("metrics.jsonl", processes);
            let mut command = tune(&at(processes), &flags);
            let output = command.current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(result["updates"], 12);
            fs::rename(at("metrics.jsonl"), path).unwrap();
        }
        let [one, three] = metrics.map(|path| losses(&path));
        assert_eq!((one.len(), three.len()), (12, 12), "{method}");
        for (found, expected) in three.iter().zip(&one) {
            // Sums in another order, whose rounding twelve updates of Adam carry on.
            assert!((found - expected).abs() <= 1e-4 * expected, "{method}: {found} beside {expected}");
        }
    }
}

#[test]
fn a_killed_process_ends_all_and_the_tuning_goes_on_to_the_same_bytes() {
    if status(std::process::id(), "PPid:").is_none() {
        eprintln!("skipped: this system does not tell a process's children");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    let flags = ["--method", "full", "--processes", "2"];
    assert!(run(&whole, &flags).status.success());

    // Rank 1 is killed, then rank 0, whose others must not be left behind.
    for parent_too in [false, true] {
        let mut parent = tune(&out, &flags).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let child = wait_for(|| children(parent.id()).first().copied());
        let checkpoint = out.join("checkpoint/state.safetensors");
        let before = fs::metadata(&checkpoint).and_then(|found| found.modified()).ok();
        wait_for(|| {
            fs::metadata(&checkpoint)
                .and_then(|found| found.modified())
                .ok()
                .filter(|now| Some(*now) != before)
        });
        if parent_too {
            parent.kill().unwrap();
            parent.wait().unwrap();
        } else {
            let kill = Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
            assert!(kill.success());
            let output = parent.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            assert!(said(&output).contains("error: rank 1 (127.0.0.1:"), "{}", said(&output));
        }
        wait_for(|| ended(child).then_some(()));
    }
    let output = run(&out, &flags);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("going on from update"), "{}", said(&output));
    assert!(weights(&out) == weights(&whole), "other bytes than an unbroken tuning's");
}

#[test]
fn processes_divide_the_weights_and_come_to_the_losses_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let metrics = [at("one.jsonl"), at("divided.jsonl")];
    let common = ["--method", "full", "--keep", "best", "--recompute", "--metrics"];
    for (path, more) in metrics.iter().zip([&[][..], &["--shard-weights", "--processes", "2"]]) {
        let flags = [&common[..], &[path.to_str().unwrap()], more].concat();
        let output = run(&at(if more.is_empty() { "one" } else { "divided" }), &flags);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).lines().count(),
            3,
            "rank 0 alone tells the result"
        );
    }
    let [one, divided] = metrics.map(|path| losses(&path));
    assert_eq!((one.len(), divided.len()), (12, 12));
    for (found, expected) in divided.iter().zip(&one) {
        // Sums in another order, whose rounding twelve updates of Adam carry on.
        assert!((found - expected).abs() <= 1e-4 * expected, "{found} beside {expected}");
    }
    let sizes = |folder: &str| -> Vec<usize> { weights(&at(folder)).values().map(Vec::len).collect() };
    assert_eq!(sizes("one"), sizes("divided"));
}

/// Whether a process has ended, even if nobody has asked how.
fn ended(process: u32) -> bool {
    status(process, "State:").is_none_or(|state| state.starts_with('Z'))
}

/// The same command in each process, with another rank.
fn ranks(out: &Path, world_size: usize, more: impl Fn(usize) -> Vec<&'static str>) -> Vec<Output> {
    let master = format!("127.0.0.1:{}", free_port());
    let start = |rank: usize| -> Child {
        let (rank_text, world_text) = (rank.to_string(), world_size.to_string());
        let flags = ["--process-rank", &rank_text, "--processes", &world_text, "--master", &master];
        tune(out, &[&flags, &more(rank)[..]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // Rank 0 comes last: the others wait for it.
    let mut started: Vec<Child> = (0..world_size).rev().map(start).collect();
    started.reverse();
    started.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

#[test]
fn processes_that_are_started_one_by_one_come_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (together, one_by_one) = (folder.path().join("together"), folder.path().join("one-by-one"));
    assert!(run(&together, &["--processes", "3"]).status.success());
    let outputs = ranks(&one_by_one, 3, |_| Vec::new());
    for (rank, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "{}", said(output));
        assert_eq!(output.stdout.is_empty(), rank > 0, "rank 0 alone tells the result");
        assert!(rank == 0 || output.stderr.is_empty(), "{}", said(output));
    }
    assert!(weights(&together) == weights(&one_by_one));
}

#[test]
fn what_cannot_be_tuned_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for output in ranks(&out, 2, |rank| if rank == 0 { Vec::new() } else { vec!["--seed", "5"] }) {
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("1 of 2 processes have other rows, settings,"), "{}", said(&output));
    }
    for (flags, expected) in [
        (
            vec!["--process-rank", "2", "--processes", "2", "--master", "127.0.0.1:9"],
            "expected a rank from 0 to 1",
        ),
        (
            vec!["--process-rank", "0", "--processes", "2", "--master", "nowhere"],
            "nowhere: expected HOST:PORT of rank 0",
        ),
        (
            vec!["--process-rank", "1", "--processes", "2", "--master", "nowhere"],
            "nowhere: expected HOST:PORT of rank 0",
        ),
        (vec!["--process-rank", "1"], "--master"),
        (vec!["--processes", "0"], "--processes"),
        (
            vec!["--processes", "2", "--shard-weights"],
            "--shard-weights: has a meaning with --method full alone",
        ),
        (
            vec!["--method", "full", "--shard-weights"],
            "--shard-weights: has a meaning with --processes alone",
        ),
        (vec!["--processes", "2", "--data", "missing.json"], "missing.json"),
    ] {
        let output = run(&out, &flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", said(&output));
        assert!(said(&output).contains(expected), "{flags:?}: {}", said(&output));
    }
    assert!(!out.exists());
}
