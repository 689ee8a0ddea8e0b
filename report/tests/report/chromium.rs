//! The page as a browser shows it, where there is one: `POLYPACA_CHROMIUM`, or Chromium or Chrome on the path.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::synthetic;

/// What the page says of itself once it is there, and after a number, a figure's mark and a finding were opened.
const PROBE: &str = include_str!("probe.js");

/// A frame as wide as a phone: a browser's own window cannot be that small.
const PHONE: &str = r#"<!doctype html><meta charset="utf-8"><body><iframe src="probe.html" width="390" height="844"></iframe>
<script>addEventListener("message", (event) => document.body.append(event.data));</script></body>"#;

fn browser() -> Option<PathBuf> {
    if let Some(path) = env::var_os("POLYPACA_CHROMIUM") {
        return Some(path.into());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

/// Opens a page, and gives what the probe saw and what the console said.
fn seen(browser: &Path, page: &Path) -> (BTreeMap<String, String>, Vec<String>) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=1280,900",
        ])
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    let console = messages.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    let document = String::from_utf8_lossy(&output.stdout);
    // The script itself says PROBE too; what it writes comes last.
    let probe = document.rsplit("PROBE ").next().unwrap().split(" END").next().unwrap();
    let pairs = probe.split(' ').filter_map(|pair| pair.split_once('='));
    (pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), console)
}

#[test]
fn the_page_opens_in_a_browser() {
    let Some(browser) = browser() else {
        eprintln!("skipped: neither POLYPACA_CHROMIUM nor Chromium or Chrome on the path");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &synthetic::Size { prompts: 8, ..synthetic::Size::paper() });
    let options = report::Options { resamples: 40, png: false, bundle: false, ..report::Options::default() };
    let summary = report::build(folder.path(), folder.path(), &options).unwrap();
    let page = fs::read_to_string(summary.page).unwrap();
    let probed = folder.path().join("probe.html");
    fs::write(&probed, page.replace("</body>", &format!("<script>{PROBE}</script></body>"))).unwrap();
    let phone = folder.path().join("phone.html");
    fs::write(&phone, PHONE).unwrap();
    for (place, columns) in [(&probed, "3"), (&phone, "1")] {
        let (seen, console) = seen(&browser, place);
        let expected = |name: &str, value: &str| {
            assert_eq!(
                seen.get(name).map(String::as_str),
                Some(value),
                "{name} of {}: {seen:?}",
                place.display()
            );
        };
        assert!(console.is_empty(), "{console:?}");
        expected("errors", "0");
        // Nothing is cut off at the side.
        expected("wide", "0");
        expected("columns", columns);
        expected("number", "8");
        // The untuned base model, three recipes with a system for Bengali.
        expected("number-answers", "4");
        expected("bengali", "true");
        expected("explained", "true");
        expected("direction", "auto");
        expected("mark", "8");
        expected("chinese", "true");
        expected("finding", "8");
        expected("finding-gate", "true");
        assert!(seen["panels"].parse::<usize>().unwrap() > 60, "{seen:?}");
    }
}
