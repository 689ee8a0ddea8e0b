//! What `polypaca --version` names: the version, the commit that it is built from, the target, and its features.

use std::path::Path;
use std::process::Command;

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut parts = vec![commit().unwrap_or_else(|| "no commit known".to_owned()), variable("TARGET")];
    // Cargo gives each feature as a variable, in capitals.
    let mut features: Vec<String> = std::env::vars()
        .filter_map(|(name, _)| {
            name.strip_prefix("CARGO_FEATURE_").map(|name| name.to_lowercase().replace('_', "-"))
        })
        .filter(|name| name != "default")
        .collect();
    features.sort();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    parts.push(format!("features: {features}"));
    println!("cargo::rustc-env=POLYPACA_VERSION={} ({})", variable("CARGO_PKG_VERSION"), parts.join("; "));
    println!("cargo::rerun-if-env-changed=POLYPACA_COMMIT");
}

/// As the variable says, for builds from an archive; else as Git says, if there is a Git and this is a checkout of it.
fn commit() -> Option<String> {
    if let Some(given) = std::env::var("POLYPACA_COMMIT").ok().filter(|given| !given.is_empty()) {
        return Some(given);
    }
    // A checkout of something else, in which this source lies unpacked, is not this source's.
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    Some(if changed { format!("{commit} with changes") } else { commit })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}
