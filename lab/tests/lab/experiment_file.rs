//! What is said of an experiment file that cannot be run.

use crate::common::{EXPERIMENT, write};
use lab::experiment::Experiment;

fn said(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(EXPERIMENT.contains(from), "{from}");
    let path = write(folder.path(), &EXPERIMENT.replacen(from, to, 1));
    Experiment::load(&path).expect_err("a problem").to_string()
}

#[test]
fn the_small_experiment_is_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = Experiment::load(&write(folder.path(), EXPERIMENT)).unwrap();
    assert_eq!(experiment.experiment.recipes.len(), 4);
    assert_eq!(experiment.base_model[0].path.as_deref(), Some(folder.path().join("tiny.gguf").as_path()));
}

#[test]
fn problems_are_named_with_their_place() {
    for (from, to, expected) in [
        ("languages = [\"en\"", "langauges = [\"en\"", &["small.toml:4:1:", "did you mean `languages`?"][..]),
        (
            "languages = [\"en\", \"fi\"",
            "languages = [\"en\", \"xx\"",
            &[":4:20:", "unknown language code `xx`"],
        ),
        ("languages = [\"en\", \"fi\"", "languages = [\"en\", \"fin\"", &[":4:20:", "expected `fi`"]),
        ("seeds = [1, 2]", "seeds = [1, 1]", &[":6:1:", "`1` is given twice"]),
        ("seeds = [1, 2]", "recipes = [\"monolingul\"]", &["did you mean `monolingual`?"]),
        ("seeds = [1, 2]", "methods = [\"lara\"]", &["did you mean `lora`?"]),
        ("seeds = [1, 2]", "preset = \"fairy\"", &["did you mean `fair`?"]),
        ("path = \"tiny.gguf\"", "path = \"gone.gguf\"", &[":10:1:", "no such file", "gone.gguf"]),
        ("path = \"tiny.gguf\"", "", &[":8:1:", "expected either `path`, or `config`"]),
        ("fi = \"fi.json\"\n", "", &["no instructions for the seen language `fi`"]),
        ("fi = \"fi.json\"\n", "fi = \"fi.json\"\nno = \"no.json\"\n", &[":15:1:", "instructions for `no`"]),
        ("no = \"prompts-no.jsonl\"", "", &["no prompts for the language `no`"]),
        ("lr = 0.001", "lr = -1", &["lr is -1: expected above 0"]),
        ("lr = 0.001", "lr = \"fast\"", &["invalid type: string \"fast\", expected f64"]),
        ("lr = 0.001", "updates = 3\nepochs = 2", &["exclude each other"]),
        ("new_tokens = 4", "new_tokens = 0", &["new_tokens is 0: expected above 0"]),
        ("[answer]", "[judge]\nkind = \"openai\"\n[answer]", &["needs `endpoint`", "needs `model`"]),
        ("[answer]", "[gate]\nlid = \"gone.ftz\"\n[answer]", &["no such file", "gone.ftz"]),
        ("[answer]", "[answer", &["small.toml:", ": "]),
        ("fi = \"fi.json\"", "fi = 3", &["expected a path or an array of paths"]),
        ("rows = 6", "rows = 0", &["rows is 0: expected above 0"]),
        ("rows = 6", "rows = 6\nc = 6", &["`rows` and `c` exclude each other"]),
        ("rows = 6", "rows = 6\nheld = \"tokens\"", &[":24:1:", "expected `c` in its place"]),
        ("rows = 6", "held = \"token\"", &["did you mean `tokens`?"]),
        ("rows = 6", "held = \"updates\"", &[":24:1:", "expected `c`, the updates of one monolingual run"]),
        (
            "rows = 6\n\n[tune]",
            "held = \"updates\"\nc = 2\n\n[tune]\nepochs = 2",
            &["`epochs` and a budget held in"],
        ),
        ("rows = 6", "base_model = \"tiny\"", &["`tiny` counts nothing"]),
        ("rows = 6", "held = \"tokens\"\nbase_model = \"big\"", &["no [[base_model]] is called `big`"]),
        (
            "rows = 6",
            "held = \"flops\"\n[[base_model]]\nname = \"other\"\npath = \"tiny.gguf\"",
            &["`base_model` says whose tokenizer counts"],
        ),
    ] {
        let said = said(from, to);
        for part in expected {
            assert!(said.contains(part), "{from} -> {to}: expected {part:?} in\n{said}");
        }
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let said = said("lr = 0.001", "lr = 0\ncutoff = 0\ndropout = 1");
    assert_eq!(said.lines().count(), 3, "{said}");
}
