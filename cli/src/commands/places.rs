//! Where commands write: never over what they read.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use crate::failure::Failure;

/// Refuses outputs that are one of the inputs or each other, however they are spelled: `./en.json` is `en.json`, and so
/// is a link to it. Each output comes with the flag that names it.
pub(super) fn check_outputs<'a>(
    outputs: &[(&str, PathBuf)],
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Failure> {
    let inputs: Vec<PathBuf> = inputs.into_iter().map(resolved).collect();
    let places: Vec<PathBuf> = outputs.iter().map(|(_, path)| resolved(path)).collect();
    for (number, ((flag, path), place)) in outputs.iter().zip(&places).enumerate() {
        let shown = path.display();
        if inputs.contains(place) {
            return Err(Failure::wrong_input(anyhow!("{flag} {shown} is read too; expected another place")));
        }
        if let Some(earlier) = places[..number].iter().position(|earlier| earlier == place) {
            let other = outputs[earlier].0;
            return Err(Failure::wrong_input(anyhow!(
                "{flag} {shown} is written by {other} too; expected another place"
            )));
        }
    }
    Ok(())
}

/// A path without links and dots; where no file is there yet, its name in its folder's path.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_the_same_however_it_is_spelled() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, inner) = (folder.path().join("en.json"), folder.path().join("inner"));
        fs::write(&file, "[]").expect("written");
        fs::create_dir(&inner).expect("made");
        let check = |outputs: &[PathBuf], input: &Path| {
            let outputs: Vec<_> = outputs.iter().map(|path| ("--out", path.clone())).collect();
            check_outputs(&outputs, [input]).map_err(|failure| failure.error.to_string())
        };
        let roundabout = inner.join("../en.json");
        for (output, input) in [(&file, &file), (&roundabout, &file), (&file, &roundabout)] {
            let said = check(std::slice::from_ref(output), input).expect_err("the same");
            assert!(said.ends_with("is read too; expected another place"), "{said}");
        }
        let new = [folder.path().join("new.json"), inner.join("../new.json")];
        assert_eq!(check(&new[..1], &file), Ok(()));
        let said = check(&new, &file).expect_err("twice");
        assert!(said.ends_with("is written by --out too; expected another place"), "{said}");
        assert_eq!(check(&[inner.join("en.json")], &file), Ok(()));
    }
}
