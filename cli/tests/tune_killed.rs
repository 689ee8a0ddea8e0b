//! `polypaca tune` killed at moments spread over its time, and in the middle of writing a checkpoint: the same bytes in the end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Kills while a checkpoint is being written, and attempts at moments spread over a run.
const INSIDE: u32 = 4;
const ANYWHERE: u32 = 4;

fn oracle(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle").join(path)
}

fn start(out: &Path, method: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .arg("tune")
        .args(["--model".as_ref(), oracle("goldens/llama-grouped/model").as_os_str()])
        .args(["--data".as_ref(), oracle("rows.json").as_os_str()])
        .args(["--out".as_ref(), out.as_os_str()])
        .args(["--method", method, "--updates", "24", "--batch", "4", "--cutoff", "64"])
        .args(if method == "lora" { &["--dropout", "0.1"][..] } else { &[] })
        .args(["--validation-rows", "4", "--validate-every", "4", "--checkpoint-every", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Files that an atomic write has not renamed yet.
fn half_written(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(half_written(&path));
        } else if path.extension().is_some_and(|extension| extension == "tmp") {
            found.push(path);
        }
    }
    found
}

/// The weights of a system that is finished. Later updates depend on the optimizer's state: a state that was not the one
/// of an unbroken run would show in them.
fn results(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(results(&path));
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.insert(PathBuf::from(path.file_name().unwrap()), fs::read(&path).unwrap());
        }
    }
    found
}

/// Kills a run, and tells whether a half-written checkpoint is left.
fn kill(child: &mut Child, out: &Path) -> bool {
    child.kill().unwrap();
    child.wait().unwrap();
    let left = half_written(out);
    left.iter().for_each(|path| fs::remove_file(path).unwrap());
    !left.is_empty()
}

#[test]
fn killed_inside_the_writing_of_a_checkpoint_a_tuning_comes_to_the_same_bytes() {
    for method in ["lora", "full"] {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        let began = Instant::now();
        assert!(start(&whole, method).wait().unwrap().success(), "{method}");
        let took = began.elapsed();
        let expected = results(&whole);
        assert!(!expected.is_empty(), "{method}");

        let out = folder.path().join("broken");
        let (mut inside, mut anywhere, mut ended) = (0, 0, 0);
        while inside < INSIDE || anywhere < ANYWHERE {
            let mut child = start(&out, method);
            let spread = anywhere < ANYWHERE;
            let until = Instant::now() + took.mul_f64(0.3 + 0.15 * f64::from(anywhere));
            loop {
                if spread && Instant::now() >= until {
                    anywhere += 1;
                    inside += u32::from(kill(&mut child, &out));
                    break;
                }
                if !spread && !half_written(&out).is_empty() {
                    inside += u32::from(kill(&mut child, &out));
                    break;
                }
                if let Some(status) = child.try_wait().unwrap() {
                    // It came to its end between two kills: compared, and begun anew.
                    assert!(status.success(), "{method}: {status}");
                    assert!(results(&out) == expected, "{method}: other bytes");
                    fs::remove_dir_all(&out).unwrap();
                    ended += 1;
                    assert!(
                        ended < 50,
                        "{method}: {inside} of {INSIDE} kills inside a checkpoint in {ended} runs"
                    );
                    anywhere += u32::from(spread);
                    break;
                }
                std::thread::sleep(Duration::from_micros(if spread { 1000 } else { 20 }));
            }
        }
        assert!(start(&out, method).wait().unwrap().success(), "{method}");
        assert!(results(&out) == expected, "{method}: other bytes than an unbroken run's");
    }
}
