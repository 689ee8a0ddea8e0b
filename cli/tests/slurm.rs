//! The Slurm runner on a real Slurm: a controller and a node on this machine, started by `scripts/slurm-testbed`.
//!
//! Skipped, plainly, where Slurm is not installed.
#![cfg(target_os = "linux")]

mod tiny;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tiny::{assert_same, polypaca, run, said, wait_until, write};

/// A Slurm of its own, until it is dropped.
struct Testbed {
    folder: PathBuf,
}

impl Testbed {
    /// None where Slurm is not installed.
    fn start(folder: &Path) -> Option<Self> {
        let output =
            Self::script("start", folder).env("SLURM_TESTBED_PORT", free_ports().to_string()).output();
        let output = output.expect("the script starts");
        match output.status.code() {
            Some(0) => Some(Self { folder: folder.to_owned() }),
            Some(3) => {
                eprintln!("skipped: {}", said(&output).trim());
                None
            }
            _ => panic!("no Slurm: {}", said(&output)),
        }
    }

    fn script(action: &str, folder: &Path) -> Command {
        let mut command =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/slurm-testbed"));
        command.arg(action).arg(folder);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.folder.join("slurm.conf"));
        command
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().expect("Slurm's programs start");
        assert!(output.status.success(), "{program}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Jobs in a state, as `ARRAY_PLACE NAME`.
    fn jobs(&self, state: &str) -> Vec<(String, String)> {
        let said = self.ask("squeue", &["-h", "-r", "--me", "-t", state, "-o", "%F_%K %j"]);
        said.lines()
            .filter_map(|line| line.split_once(' ').map(|(id, name)| (id.to_owned(), name.to_owned())))
            .collect()
    }

    fn node(&self, state: &str) {
        let node = self.ask("sinfo", &["-h", "-N", "-o", "%N"]);
        let node = format!("nodename={}", node.trim());
        self.ask("scontrol", &["update", &node, &format!("state={state}"), "reason=test"]);
    }

    fn submit(&self, experiment: &Path, out: &Path, settings: &Path) -> Child {
        let mut command = polypaca();
        command.arg("run").arg(experiment).arg("--out").arg(out);
        command.args(["--runner", "slurm", "--slurm"]).arg(settings);
        command.env("SLURM_CONF", self.folder.join("slurm.conf"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let _ = Self::script("stop", &self.folder).status();
    }
}

/// A port that is free, and whose next one is too.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = first.local_addr().expect("its number").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

#[test]
fn jobs_come_to_the_tables_of_a_local_run_whatever_befalls_them() {
    let folder = tempfile::tempdir().unwrap();
    let Some(slurm) = Testbed::start(&folder.path().join("slurm")) else { return };
    let experiment = write(folder.path());
    let [whole, out] = ["whole", "out"].map(|name| folder.path().join(name));
    assert!(run(&experiment, &whole).status.success());
    let settings = folder.path().join("slurm.toml");
    fs::write(&settings, "cores = 1\npoll = 0.3\npack = \"1\"\n").unwrap();

    // On a drained node nothing begins. The program that submits is killed meanwhile; its jobs stay.
    slurm.node("drain");
    let mut first = slurm.submit(&experiment, &out, &settings);
    wait_until("the scores are submitted", || {
        slurm.jobs("PENDING").iter().any(|(_, name)| name.ends_with("-scores"))
    });
    first.kill().unwrap();
    first.wait().unwrap();
    let before = slurm.jobs("PENDING");
    slurm.node("resume");

    // The next program finds them; while it runs, a job that runs and one that waits are cancelled, and the node is
    // drained and comes back.
    let second = slurm.submit(&experiment, &out, &settings);
    wait_until("a tuning runs", || slurm.jobs("RUNNING").iter().any(|(_, name)| name.ends_with("-tuning")));
    if let Some((id, _)) = slurm.jobs("RUNNING").first() {
        slurm.ask("scancel", &[id]);
    }
    if let Some((id, _)) = slurm.jobs("PENDING").iter().find(|(_, name)| name.ends_with("-answers")) {
        slurm.ask("scancel", &[id]);
    }
    slurm.node("drain");
    std::thread::sleep(std::time::Duration::from_secs(1));
    slurm.node("resume");
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let told = said(&output);
    assert!(told.contains(&format!("{} jobs of an earlier run are gone on with", before.len())), "{told}");
    assert!(told.contains("was cancelled") || told.contains("ended early"), "{told}");
    assert_same(&out, &whole);

    // Nothing is left to do, and no job is submitted for it.
    let again = slurm.submit(&experiment, &out, &settings).wait_with_output().unwrap();
    assert!(again.status.success() && !said(&again).contains("submitted"), "{}", said(&again));
}

#[test]
fn what_is_killed_for_want_of_memory_gets_more() {
    let folder = tempfile::tempdir().unwrap();
    let Some(slurm) = Testbed::start(&folder.path().join("slurm")) else { return };
    let experiment = write(folder.path());
    let out = folder.path().join("out");
    let settings = folder.path().join("slurm.toml");
    // A shell that waits, so that the cluster's watch, which looks once a second, sees the program's memory.
    fs::write(
        &settings,
        "cores = 1\npoll = 0.3\nmemory = \"16M\"\ntries = 12\npreamble = \"head -c 40M /dev/zero | tail -c 40M | sleep 3\"\n",
    )
    .unwrap();
    let output = slurm.submit(&experiment, &out, &settings).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let told = said(&output);
    assert!(told.contains("killed"), "{told}");
    // What was learnt is kept in the files.
    let arrays: Vec<String> = fs::read_dir(out.join("slurm"))
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter(|text| text.contains("\"memory\""))
        .collect();
    assert!(arrays.iter().any(|text| text.contains("\"memory\": 64")), "{arrays:?}");
}

#[test]
fn a_cluster_that_is_not_there_and_wrong_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write(folder.path());
    let out = folder.path().join("out");
    let with = |text: &str| {
        let settings = folder.path().join("slurm.toml");
        fs::write(&settings, text).unwrap();
        let mut command = polypaca();
        command.arg("run").arg(&experiment).arg("--out").arg(&out).args(["--runner", "slurm", "--slurm"]);
        // Nothing is installed on this path.
        command.arg(&settings).env("PATH", folder.path()).output().unwrap()
    };
    let output = with("memory = \"lots\"\n");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("slurm.toml") && said(&output).contains("lots"), "{}", said(&output));
    let output = with("");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("scontrol"), "{}", said(&output));
}
