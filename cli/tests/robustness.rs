//! What may happen to a run from outside: a full disk, damaged files, other programs, a wrong clock, a wish to stop.
#![cfg(unix)]

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use tiny::{EXPERIMENT, assert_same, polypaca, run, said, signal, wait_until, write};

/// A run that takes long enough to be met in the middle of a tuning.
fn begin(experiment: &Path, out: &Path) -> Child {
    let mut command = polypaca();
    command.arg("run").arg(experiment).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Files of the finished cells, at any depth.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a folder").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// Whether a tuning or pretraining has written a checkpoint.
fn has_checkpoint(out: &Path) -> bool {
    let work = out.join("store/work");
    let cells = fs::read_dir(&work).into_iter().flatten().flatten();
    cells.into_iter().any(|cell| cell.path().join("checkpoint/state.safetensors").exists())
}

#[test]
fn asked_to_stop_a_run_writes_its_checkpoint_and_the_next_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    // Without a stop, no checkpoint is ever written: each that is there comes from the stop.
    let text = EXPERIMENT
        .replace("checkpoint_every = 3", "checkpoint_every = 100000")
        .replace("updates = 40", "updates = 2000");
    fs::write(&experiment, text).unwrap();
    for name in ["INT", "TERM", "USR1"] {
        let out = folder.path().join(name);
        let child = begin(&experiment, &out);
        let work = out.join("store/work");
        wait_until("the base model has had its first updates", || {
            let cells = fs::read_dir(&work).into_iter().flatten().flatten();
            let lines = |cell: fs::DirEntry| {
                fs::read_to_string(cell.path().join("metrics.jsonl")).unwrap_or_default()
            };
            cells.map(lines).any(|lines| lines.lines().count() > 3)
        });
        signal(child.id(), name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("goes on from here"), "{}", said(&output));
        assert!(has_checkpoint(&out));
        // The rest would take minutes: that it is taken up is what matters here.
        let mut child = begin(&experiment, &out);
        let mut told = child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(&mut told));
            lines.any(|line| line.is_ok_and(|line| line.contains("going on from update")))
        });
        assert!(reader.join().unwrap(), "the next run began anew");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let whole = folder.path().join("whole");
    assert!(run(&experiment, &whole).status.success());
    let out = folder.path().join("small");
    fs::create_dir(&out).unwrap();
    let mount = |options: &str| {
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&out)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !mount("size=256k") {
        eprintln!("skipped: a small file system cannot be mounted here (needs root)");
        return;
    }
    let unmounted = Unmounts(out.clone());
    // Each time there is a little more room, and what was finished with less is still there.
    let mut finished = 0;
    for size in ["256k", "700k", "1500k", "3m"] {
        assert!(mount(&format!("remount,size={size}")));
        let output = run(&experiment, &out);
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("No space left on device"), "{}", said(&output));
        let cells = fs::read_dir(out.join("store/cells")).map_or(0, Iterator::count);
        assert!(cells >= finished, "finished cells were lost");
        finished = cells;
    }
    assert!(mount("remount,size=200m"));
    let output = run(&experiment, &out);
    assert!(output.status.success(), "{}", said(&output));
    assert_same(&out, &whole);
    drop(unmounted);
}

struct Unmounts(PathBuf);

impl Drop for Unmounts {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_damaged_file_of_any_cell_is_named_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let [whole, out] = ["whole", "out"].map(|name| folder.path().join(name));
    for out in [&whole, &out] {
        assert!(run(&experiment, out).status.success());
    }
    // One file of every kind that the store has, each in another way.
    let mut seen = Vec::new();
    for (number, path) in files_below(&out.join("store/cells")).into_iter().enumerate() {
        let name = path.file_name().unwrap().to_owned();
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        let mut bytes = fs::read(&path).unwrap();
        match number % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.push(b'!'),
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
        }
        fs::write(&path, bytes).unwrap();
    }
    assert!(seen.len() > 5, "{seen:?}");
    let output = run(&experiment, &out);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("is corrupted"), "{}", said(&output));
    assert_same(&out, &whole);
    // Nothing is left to be made again.
    assert!(String::from_utf8_lossy(&run(&experiment, &out).stdout).contains("0 cells done"));
}

#[test]
fn two_programs_on_one_store_do_each_cell_once() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let whole = folder.path().join("whole");
    let output = run(&experiment, &whole);
    let done = |text: &[u8]| -> usize {
        let text = String::from_utf8_lossy(text);
        let line = text.lines().find(|line| line.contains(" cells done")).expect("the last lines");
        line.split(' ').next().unwrap().parse().unwrap()
    };
    let cells = done(&output.stdout);
    let store = folder.path().join("store");
    let outs = ["one", "other"].map(|name| folder.path().join(name));
    let children = outs.each_ref().map(|out| {
        let mut command = polypaca();
        command.arg("run").arg(&experiment).arg("--store").arg(&store).arg("--out").arg(out);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    for (output, out) in outputs.iter().zip(&outs) {
        assert!(output.status.success(), "{}", said(output));
        assert_same(out, &whole);
    }
    assert_eq!(outputs.iter().map(|output| done(&output.stdout)).sum::<usize>(), cells);
}

#[test]
fn two_programs_do_not_write_one_report() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let out = folder.path().join("out");
    let mut first = begin(&experiment, &out);
    wait_until("the first program works", || out.join("store/work").exists());
    let second = run(&experiment, &out);
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    let named = format!("process {}", first.id());
    assert!(said(&second).contains("in use") && said(&second).contains(&named), "{}", said(&second));
    assert!(first.wait().unwrap().success());
}

/// Debian's `libfaketime`: shows a program another time of day.
fn faketime() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    folders
        .iter()
        .map(|folder| Path::new(folder).join("faketime/libfaketime.so.1"))
        .find(|path| path.exists())
}

#[test]
fn no_decision_rests_on_the_clock() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let [whole, out] = ["whole", "out"].map(|name| folder.path().join(name));
    assert!(run(&experiment, &whole).status.success());
    let faketime = faketime();
    if faketime.is_none() {
        eprintln!(
            "libfaketime is not here: the program's own clock stays right, and only the files' times are wrong"
        );
    }
    let at = |offset: &str| {
        let mut command = polypaca();
        command.arg("run").arg(&experiment).arg("--out").arg(&out);
        if let Some(library) = &faketime {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME", offset)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    // Each program lives years before or after the one before it, and dies in the middle.
    for (number, offset) in ["-3000d", "+9000d", "-1d", "+1d", "-9000d"].into_iter().enumerate() {
        let mut child = at(offset).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(400 + 150 * number as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        // Files of the past and of the future, side by side.
        for (place, path) in files_below(&out).into_iter().enumerate() {
            let days = Duration::from_secs(86_400 * (1 + place as u64 * 97 % 2000));
            let now = SystemTime::now();
            let time = if place % 2 == 0 { now + days } else { now - days };
            if let Ok(file) = fs::File::options().append(true).open(&path) {
                file.set_modified(time).unwrap();
            }
        }
    }
    let output = at("-5000d").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_same(&out, &whole);
    let again = at("+5000d").output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("0 cells done"), "{}", said(&again));
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_whose_messages_cannot_be_written_comes_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let out = folder.path().join("out");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = polypaca().arg("run").arg(&experiment).arg("--out").arg(&out).stderr(full).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(out.join("report/index.html").exists());
}

#[test]
fn what_cannot_be_read_of_a_store_is_cleared_with_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let determinants = lab::store::Determinants::new("mix", 1, "mix/english");
    let key = determinants.key();
    {
        let store = lab::store::Store::open(folder.path()).unwrap();
        fs::write(store.work_folder(&key).unwrap().join("rows.jsonl"), "").unwrap();
        store.finish(&key, &determinants, "tiny", Duration::ZERO).unwrap();
    }
    let cell = folder.path().join("cells").join(key.to_string());
    fs::write(cell.join("cell.json"), b"\x00\xffnot a manifest").unwrap();
    let clear = |which: &[&str]| {
        let output = polypaca().args(["store", "clear"]).arg(folder.path()).args(which).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    assert!(clear(&["--experiment", "tiny"]).contains("`--all` removes it"));
    assert!(cell.exists(), "whose it is is not known");
    clear(&["--all"]);
    assert!(!cell.exists());
}

#[test]
fn what_a_run_cannot_have_is_told_at_plan_and_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let judge = "[judge]\nkind = \"openai\"\nendpoint = \"http://127.0.0.1:9\"\nmodel = \"m\"\n";
    for (more, expected) in [
        (format!("{judge}key_variable = \"POLYPACA_NO_SUCH_KEY\"\n"), "variable POLYPACA_NO_SUCH_KEY"),
        (
            "[[system]]\nname = \"s\"\nendpoint = \"http://127.0.0.1:9\"\nmodel = \"m\"\nkey_variable = \"POLYPACA_NONE\"\n"
                .to_owned(),
            "variable POLYPACA_NONE",
        ),
        (format!("{judge}price = {{ prompt = nan, completion = 1 }}\n"), "prompt is NaN"),
        (format!("{judge}price = {{ prompt = 1, completion = 1 }}\ncap = -1000\n"), "cap is -1000"),
    ] {
        fs::write(&experiment, format!("{EXPERIMENT}{more}")).unwrap();
        for command in ["plan", "run"] {
            let mut program = polypaca();
            let output = program
                .arg(command)
                .arg(&experiment)
                .arg("--out")
                .arg(folder.path().join("out"))
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{command}: {}", said(&output));
            let told = said(&output);
            assert!(told.contains("tiny.toml:") && told.contains(expected), "{command}: {told}");
        }
    }
    assert!(!folder.path().join("out").exists(), "something was begun");
}
