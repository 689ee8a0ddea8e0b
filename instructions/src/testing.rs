//! Real files for the tests, where they are at hand.

use std::path::PathBuf;

/// A folder or file of the real test material; says so and gives none where it is absent.
pub(crate) fn real(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("POLYPACA_REAL").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real")),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "skipped: {} is absent (set POLYPACA_REAL to the folder of real test material)",
        path.display()
    );
    None
}
