//! The plan: what is shared, what depends on what, and how long planning takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use crate::common::{EXPERIMENT, plan, write};
use lab::plan::{Plan, Work};
use lab::store::Key;

fn count(plan: &Plan, kind: &str) -> usize {
    plan.cells.iter().filter(|cell| cell.determinants.kind == kind).count()
}

#[test]
fn english_and_monolingual_in_english_are_one_tuning() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    // Under each of two seeds: monolingual in three languages (English among them), multilingual, downsampled.
    assert_eq!(count(&plan, "mix"), 10);
    assert_eq!(count(&plan, "tuning"), 10);
    // Each seed's English, multilingual and downsampled systems answer four languages, the other two one; and
    // the untuned base model four.
    assert_eq!(count(&plan, "answers"), 2 * (3 * 4 + 2) + 4);
    assert_eq!(count(&plan, "scores"), count(&plan, "answers"));
    assert_eq!(plan.systems.len(), 11);
    assert_eq!(plan.c, 6);
    let english: Vec<_> = plan.systems.iter().filter(|s| s.recipe.as_deref() == Some("english")).collect();
    assert_eq!(english.len(), 2);
    assert!(english.iter().all(|system| system.answers.len() == 4));
    let finnish: Vec<_> = plan.systems.iter().filter(|s| s.id.contains("monolingual-fi")).collect();
    assert!(finnish.iter().all(|system| system.answers.len() == 1));
}

#[test]
fn every_cell_stands_after_those_that_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(&write(folder.path(), EXPERIMENT));
    let mut keys = BTreeSet::new();
    for (place, cell) in plan.cells.iter().enumerate() {
        assert!(cell.needs.iter().all(|need| *need < place));
        assert!(keys.insert(cell.key), "{} is planned twice", cell.determinants.label);
        if let Work::Tuning { mix, .. } = cell.work {
            assert!(matches!(plan.cells[mix].work, Work::Mix { .. }));
            assert!(cell.needs.contains(&mix));
        }
    }
}

/// The kinds of cells that a change makes anew, with how many of each.
fn changed(before: &Plan, after: &Plan) -> BTreeMap<String, usize> {
    let known: BTreeSet<Key> = before.cells.iter().map(|cell| cell.key).collect();
    let mut kinds = BTreeMap::new();
    for cell in after.cells.iter().filter(|cell| !known.contains(&cell.key)) {
        *kinds.entry(cell.determinants.kind.clone()).or_default() += 1;
    }
    kinds
}

fn kinds(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

#[test]
fn changing_one_setting_asks_for_exactly_the_cells_that_depend_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let before = plan(&write(folder.path(), EXPERIMENT));
    // Of the 32 answers, 28 are a tuned system's.
    const ALL: &[(&str, usize)] = &[("tuning", 10), ("answers", 28), ("scores", 28)];
    type Row = (&'static str, &'static str, &'static [(&'static str, usize)]);
    let table: [Row; 10] = [
        ("name = \"small\"", "name = \"other\"", &[]),
        ("lr = 0.001", "lr = 0.002", ALL),
        ("lr = 0.001", "lr = 0.001\nbatch = 4", ALL),
        ("lr = 0.001", "lr = 0.001\n[tune.full]\nlr = 0.1", &[]),
        ("new_tokens = 4", "new_tokens = 5", &[("answers", 32), ("scores", 32)]),
        ("new_tokens = 4", "new_tokens = 4\nbatch_tokens = 100", &[]),
        ("[answer]", "[judge]\nthresholds = [10, 20]\n[answer]", &[("scores", 32)]),
        ("[answer]", "[judge]\ncaption = \"x\"\n[answer]", &[]),
        // Half of them: the other seed stays.
        ("seeds = [1, 2]", "seeds = [1, 3]", &[("mix", 5), ("tuning", 5), ("answers", 14), ("scores", 14)]),
        ("rows = 6", "rows = 5", &[("mix", 10), ("tuning", 10), ("answers", 28), ("scores", 28)]),
    ];
    for (from, to, expected) in table {
        let after = plan(&write(folder.path(), &EXPERIMENT.replacen(from, to, 1)));
        assert_eq!(changed(&before, &after), kinds(expected), "{from} -> {to}");
    }
}

#[test]
fn changed_files_ask_for_exactly_the_cells_that_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), EXPERIMENT);
    let before = plan(&path);
    // A changed Finnish row: the Finnish, multilingual and downsampled mixes of both seeds, unless the row was
    // drawn into neither; so every row is changed.
    let rows = fs::read_to_string(folder.path().join("fi.json")).unwrap();
    fs::write(folder.path().join("fi.json"), rows.replace("says", "tells")).unwrap();
    let after = plan(&path);
    assert_eq!(
        changed(&before, &after),
        kinds(&[("mix", 6), ("tuning", 6), ("answers", 18), ("scores", 18)])
    );
    // A changed reference: no new answer.
    write(folder.path(), EXPERIMENT);
    let prompts = fs::read_to_string(folder.path().join("prompts-zh.jsonl")).unwrap();
    fs::write(folder.path().join("prompts-zh.jsonl"), prompts.replace("\"zh 1\"", "\"zh one\"")).unwrap();
    // Chinese is answered by the base model, and under each seed by four systems.
    assert_eq!(changed(&before, &plan(&path)), kinds(&[("scores", 9)]));
    // A changed base model: all but the mixes.
    write(folder.path(), EXPERIMENT);
    fs::write(folder.path().join("tiny.gguf"), "another").unwrap();
    assert_eq!(changed(&before, &plan(&path)), kinds(&[("tuning", 10), ("answers", 32), ("scores", 32)]));
}

#[test]
fn two_thousand_cells_are_planned_in_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let seeds: Vec<String> = (0..60).map(|seed| seed.to_string()).collect();
    let text = EXPERIMENT.replace("seeds = [1, 2]", &format!("seeds = [{}]", seeds.join(", ")));
    let path = write(folder.path(), &text);
    let start = Instant::now();
    let plan = plan(&path);
    let took = start.elapsed();
    assert!(plan.cells.len() > 2000, "{}", plan.cells.len());
    assert!(took.as_secs_f64() < 1.0, "{took:?}");
}
