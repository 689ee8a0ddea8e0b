//! The plan: what is shared, what depends on what, and how long planning takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use proptest::prelude::*;

use crate::common::{EXPERIMENT, plan, write};
use instructions::mix::Mix;
use lab::experiment::Experiment;
use lab::inputs::Inputs;
use lab::mixes::Mixing;
use lab::plan::{Answerer, Plan, Work};
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
fn a_language_that_is_trained_on_alone_is_in_the_mixes_and_asked_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), EXPERIMENT);
    let text = EXPERIMENT
        .replace(
            "languages = [\"en\", \"fi\", \"zh\"]",
            "languages = [\"en\", \"fi\"]\ntraining_languages = [\"zh\"]",
        )
        .replace("zh = \"prompts-zh.jsonl\"\n", "");
    assert_ne!(text.len(), EXPERIMENT.len());
    fs::write(&path, text).unwrap();
    let plan = plan(&path);
    let multilingual =
        plan.systems.iter().find(|system| system.recipe.as_deref() == Some("multilingual")).unwrap();
    assert_eq!((multilingual.languages.len(), multilingual.answers.len()), (3, 3));
    assert!(plan.systems.iter().all(|system| !system.id.contains("monolingual-zh")));
    // Under each seed: two monolingual ones (English among them), multilingual and downsampled.
    assert_eq!((count(&plan, "tuning"), count(&plan, "mix")), (8, 8));
}

#[test]
fn a_base_model_may_be_tuned_by_some_of_the_methods() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), EXPERIMENT);
    let both = EXPERIMENT.replace("seeds = [1, 2]", "seeds = [1]\nmethods = [\"lora\", \"full\"]");
    fs::write(&path, &both).unwrap();
    let by_both = count(&plan(&path), "tuning");
    fs::write(&path, both.replace("path = \"tiny.gguf\"", "path = \"tiny.gguf\"\nmethods = [\"lora\"]"))
        .unwrap();
    assert_eq!((by_both, count(&plan(&path), "tuning")), (10, 5));
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
    const ANSWERS: &[(&str, usize)] = &[("answers", 32), ("scores", 32)];
    const SCORES: &[(&str, usize)] = &[("scores", 32)];
    const NONE: &[(&str, usize)] = &[];
    type Row = (&'static str, &'static str, &'static [(&'static str, usize)]);
    let table: &[Row] = &[
        // [experiment]
        ("name = \"small\"", "name = \"other\"", NONE),
        ("name = \"small\"", "name = \"small\"\ndescription = \"x\"", NONE),
        ("name = \"small\"", "name = \"small\"\nminimum_score = 3", NONE),
        ("name = \"small\"", "name = \"small\"\npreset = \"fair\"", ALL),
        (
            "name = \"small\"",
            "name = \"small\"\ndevice = \"cuda\"",
            &[("tuning", 10), ("answers", 32), ("scores", 32)],
        ),
        ("name = \"small\"", "name = \"small\"\ndevice = \"cpu\"", NONE),
        ("name = \"small\"", "name = \"small\"\ninclude_base = false", NONE),
        ("name = \"small\"", "name = \"small\"\nmethods = [\"lora\", \"full\"]", ALL),
        ("name = \"small\"", "name = \"small\"\nrecipes = [\"english\"]", NONE),
        ("name = \"tiny\"", "name = \"tinier\"", NONE),
        ("name = \"tiny\"", "name = \"tiny\"\nfamily = \"x\"", NONE),
        // Half of them: the other seed stays.
        ("seeds = [1, 2]", "seeds = [1, 3]", &[("mix", 5), ("tuning", 5), ("answers", 14), ("scores", 14)]),
        ("seeds = [1, 2]", "seeds = [2, 1]", NONE),
        ("seeds = [1, 2]", "seeds = [1]", NONE),
        // [budget], and what the mixes hold out: everything behind a mix.
        ("rows = 6", "rows = 5", &[("mix", 10), ("tuning", 10), ("answers", 28), ("scores", 28)]),
        ("rows = 6", "c = 6", NONE),
        (
            "rows = 6",
            "rows = 6\nsplit = \"row\"",
            &[("mix", 10), ("tuning", 10), ("answers", 28), ("scores", 28)],
        ),
        // The same rows, each mix with its own number of updates.
        (
            "rows = 6",
            "held = \"updates\"\nc = 3",
            &[("mix", 10), ("tuning", 10), ("answers", 28), ("scores", 28)],
        ),
        (
            "validation_rows = 2",
            "validation_rows = 3",
            &[("mix", 10), ("tuning", 10), ("answers", 28), ("scores", 28)],
        ),
        // [tune]
        ("lr = 0.001", "lr = 0.002", ALL),
        ("lr = 0.001", "lr = 0.001\nbatch = 4", ALL),
        ("lr = 0.001", "lr = 0.001\nupdates = 3", ALL),
        ("lr = 0.001", "lr = 0.001\nepochs = 2", ALL),
        ("lr = 0.001", "lr = 0.001\ncutoff = 64", ALL),
        ("lr = 0.001", "lr = 0.001\nwarmup = 5", ALL),
        ("lr = 0.001", "lr = 0.001\nschedule = \"cosine\"", ALL),
        ("lr = 0.001", "lr = 0.001\nweight_decay = 0.1", ALL),
        ("lr = 0.001", "lr = 0.001\ndropout = 0.2", ALL),
        ("lr = 0.001", "lr = 0.001\nclip = 2", ALL),
        ("lr = 0.001", "lr = 0.001\nsupervise = \"response\"", ALL),
        ("lr = 0.001", "lr = 0.001\norder = \"file\"", ALL),
        ("lr = 0.001", "lr = 0.001\nvalidate_every = 7", ALL),
        ("lr = 0.001", "lr = 0.001\nkeep = \"last\"", ALL),
        ("lr = 0.001", "lr = 0.001\npatience = 2", ALL),
        ("lr = 0.001", "lr = 0.001\nbest_over = \"languages\"", ALL),
        ("lr = 0.001", "lr = 0.001\nrslora = true", ALL),
        ("lr = 0.001", "lr = 0.001\nweights = \"4bit\"", ALL),
        ("lr = 0.001", "lr = 0.001\nrank = 4", ALL),
        ("lr = 0.001", "lr = 0.001\nalpha = 4", ALL),
        ("lr = 0.001", "lr = 0.001\nmodules = [\"q_proj\"]", ALL),
        ("lr = 0.001", "lr = 0.001\ncheckpoint_every = 7", NONE),
        ("lr = 0.001", "lr = 0.001\n[tune.lora]\nlr = 0.1", ALL),
        ("lr = 0.001", "lr = 0.001\n[tune.full]\nlr = 0.1", NONE),
        // What is given and is the preset's already changes nothing.
        ("lr = 0.001", "lr = 0.001\nrank = 8", NONE),
        // A template is that of answers as well, where they have none of their own: the base model's too.
        (
            "lr = 0.001",
            "lr = 0.001\ntemplate = \"stanford-alpaca\"",
            &[("tuning", 10), ("answers", 32), ("scores", 32)],
        ),
        // [answer]
        ("new_tokens = 4", "new_tokens = 5", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nbeams = 2", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nno_repeat_ngram = 3", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nrepetition_penalty = 1.2", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nlength_penalty = 0.5", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nlength_penalty = 1.0", NONE),
        ("new_tokens = 4", "new_tokens = 4\nstop = [\"###\"]", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nsample = true\nbeams = 1", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\ntemplate = \"stanford-alpaca\"", ANSWERS),
        ("new_tokens = 4", "new_tokens = 4\nbatch_tokens = 100", NONE),
        // [gate] and [judge]
        ("[answer]", "[gate]\nset_aside_code = true\n[answer]", SCORES),
        ("[answer]", "[judge]\nthresholds = [10, 20]\n[answer]", SCORES),
        (
            "[answer]",
            "[judge]\nkind = \"openai\"\nendpoint = \"http://localhost:1\"\nmodel = \"x\"\n[answer]",
            SCORES,
        ),
        ("[answer]", "[judge]\ncaption = \"x\"\nstand_in = true\n[answer]", NONE),
        // The rest.
        ("[answer]", "[tracking]\ntensorboard = true\n[answer]", NONE),
        ("[answer]", "[licences]\nx = \"MIT\"\n[answer]", NONE),
    ];
    for &(from, to, expected) in table {
        let after = plan(&write(folder.path(), &EXPERIMENT.replacen(from, to, 1)));
        assert_eq!(changed(&before, &after), kinds(expected), "{from} -> {to}");
    }
    // How an endpoint is asked changes nothing of what it is asked.
    let openai = "[judge]\nkind = \"openai\"\nendpoint = \"http://localhost:1\"\nmodel = \"x\"\n";
    let asked = |how: &str| {
        plan(&write(folder.path(), &EXPERIMENT.replacen("[answer]", &format!("{openai}{how}[answer]"), 1)))
    };
    let after = asked("concurrency = 2\nrequests_per_minute = 60\ntries = 2\nbackoff = 0.1\n");
    assert_eq!(changed(&asked(""), &after), kinds(NONE));
}

#[test]
fn an_endpoints_answers_depend_on_what_it_is_sent_alone() {
    let folder = tempfile::tempdir().unwrap();
    let system = "[[system]]\nname = \"s\"\nendpoint = \"http://localhost:1\"\nmodel = \"x\"\n[answer]\n";
    let keys = |answer: &str| -> BTreeSet<Key> {
        let text = EXPERIMENT.replacen("[answer]\n", &format!("{system}{answer}\n"), 1);
        let plan = plan(&write(folder.path(), &text));
        let asked = |work: &Work| matches!(work, Work::Answers { answerer: Answerer::Endpoint(_), .. });
        plan.cells.iter().filter(|cell| asked(&cell.work)).map(|cell| cell.key).collect()
    };
    let before = keys("");
    assert_eq!(before.len(), 4);
    for unsent in [
        "beams = 2",
        "no_repeat_ngram = 3",
        "repetition_penalty = 1.2",
        "length_penalty = 0.5",
        "template = \"stanford-alpaca\"",
        "batch_tokens = 100",
    ] {
        assert_eq!(keys(unsent), before, "{unsent}");
    }
    let sampled = keys("sample = true");
    for (sent, beside) in [
        ("stop = [\"###\"]", &before),
        ("sample = true", &before),
        ("sample = true\ntemperature = 0.5", &sampled),
        ("sample = true\ntop_p = 0.5", &sampled),
    ] {
        assert!(keys(sent).is_disjoint(beside), "{sent}");
    }
    assert_eq!(keys("sample = true\ntop_k = 5\nseed = 1"), sampled);
}

/// The small experiment with another `[budget]`, its base model that of a golden, which has a tokenizer.
fn held(budget: &str) -> (Plan, Vec<Mix>) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
    let text =
        EXPERIMENT.replace("path = \"tiny.gguf\"", &format!("path = {model:?}")).replace("rows = 6", budget);
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), &text);
    let experiment = Experiment::load(&path).unwrap_or_else(|error| panic!("{error}"));
    let inputs = Inputs::read(&experiment).expect("its files");
    let mixing = Mixing::new(&experiment).expect("a golden model");
    let recipes = experiment.experiment.recipes.iter().map(|name| experiment.recipe(name).expect("a recipe"));
    let mixes = recipes.flat_map(|recipe| mixing.of(&recipe, &inputs.sets, 1).expect("mixes")).collect();
    (Plan::new(&experiment, &inputs, &mixing).expect("a plan"), mixes)
}

#[test]
fn an_experiment_holds_tokens_operations_or_updates_equal() {
    for (budget, least_row) in [("held = \"tokens\"\nc = 400", 0.2), ("held = \"flops\"", 0.2)] {
        let (plan, mixes) = held(budget);
        assert_eq!(mixes.iter().map(|mix| mix.manifest.cost.c).collect::<BTreeSet<_>>(), [plan.c].into());
        for mix in &mixes {
            let (cost, name) = (&mix.manifest.cost, &mix.name);
            // Every language's part falls short of its share by less than a row, and a row here is below a fifth of C.
            let short = cost.budget as f64 - cost.amount as f64;
            let bound = least_row * plan.c as f64 * mix.languages.len() as f64;
            assert!((0.0..bound).contains(&short), "{budget}, {name}: {} of {}", cost.amount, cost.budget);
            assert_eq!(
                cost.budget,
                plan.c * if mix.recipe == "multilingual" { 3 } else { 1 },
                "{budget}, {name}"
            );
        }
    }
    let (plan, mixes) = held("held = \"updates\"\nc = 4");
    assert_eq!(plan.c, 4);
    for mix in &mixes {
        assert_eq!(
            mix.manifest.updates,
            Some(if mix.recipe == "multilingual" { 12 } else { 4 }),
            "{}",
            mix.name
        );
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

/// An experiment over any part of the small one's grid.
fn grid(languages: &[&str], recipes: &[&str], methods: &[&str], seeds: &[u64], base: bool) -> String {
    let list = |names: &[&str]| format!("{names:?}");
    let mut text = EXPERIMENT
        .replace("languages = [\"en\", \"fi\", \"zh\"]", &format!("languages = {}", list(languages)))
        .replace("unseen_languages = [\"no\"]", "unseen_languages = [\"no\"]\nINCLUDE")
        .replace("INCLUDE", &format!("include_base = {base}"))
        .replace(
            "seeds = [1, 2]",
            &format!("seeds = {seeds:?}\nrecipes = {}\nmethods = {}", list(recipes), list(methods)),
        );
    for language in ["en", "fi", "zh"].into_iter().filter(|language| !languages.contains(language)) {
        text = text.replace(&format!("{language} = \"{language}.json\"\n"), "");
        text = text.replace(&format!("{language} = \"prompts-{language}.jsonl\"\n"), "");
    }
    text
}

/// Whether a cell's key depends on that of a cell that it needs: a value among its determinants is the key.
fn names(plan: &Plan, cell: usize, need: usize) -> bool {
    let key = plan.cells[need].key.to_string();
    plan.cells[cell].determinants.values.values().any(|value| *value == key)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn dependencies_are_right_whatever_the_grid(
        languages in proptest::sample::subsequence(vec!["fi", "zh"], 0..=2),
        recipes in proptest::sample::subsequence(
            vec!["monolingual", "multilingual", "english", "downsampled"], 1..=4,
        ).prop_shuffle(),
        methods in proptest::sample::subsequence(vec!["lora", "full"], 1..=2).prop_shuffle(),
        seeds in proptest::sample::subsequence(vec![1u64, 2, 3], 1..=3).prop_shuffle(),
        base: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let languages: Vec<&str> = std::iter::once("en").chain(languages).collect();
        let plan = plan(&write(folder.path(), &grid(&languages, &recipes, &methods, &seeds, base)));
        let mut keys = BTreeSet::new();
        for (place, cell) in plan.cells.iter().enumerate() {
            prop_assert!(keys.insert(cell.key), "{} is planned twice", cell.determinants.label);
            prop_assert!(cell.needs.iter().all(|need| *need < place), "each after those that it needs");
            let read: Vec<usize> = match &cell.work {
                Work::BaseModel { .. } | Work::Mix { .. } => Vec::new(),
                Work::Tuning { base_cell, mix, .. } => base_cell.iter().copied().chain([*mix]).collect(),
                Work::Answers { answerer: Answerer::Model { base_cell, tuning, .. }, .. } => {
                    base_cell.iter().chain(tuning).copied().collect()
                }
                Work::Answers { .. } => Vec::new(),
                Work::Scores { answers, .. } => vec![*answers],
            };
            // It needs what it reads and nothing else, and what it reads determines it.
            prop_assert_eq!(
                cell.needs.iter().collect::<BTreeSet<_>>(), read.iter().collect::<BTreeSet<_>>()
            );
            prop_assert!(cell.needs.iter().all(|need| names(&plan, place, *need)), "{}", cell.determinants.label);
        }
        // Every cell serves a system, and every system has all it needs.
        let mut served = BTreeSet::new();
        for system in &plan.systems {
            served.extend(system.made_by.iter().copied());
            for (_, answers, scores) in &system.answers {
                served.extend([*answers, *scores]);
                prop_assert_eq!(&plan.cells[*scores].needs, &vec![*answers]);
                prop_assert_eq!(plan.cells[*answers].needs.last().copied(), system.tuning);
            }
        }
        prop_assert_eq!(served.len(), plan.cells.len());
        // The same in another order is the same: keys do not depend on where a cell stands.
        let turned: Vec<u64> = seeds.iter().rev().copied().collect();
        let again = self::plan(&write(folder.path(), &grid(&languages, &recipes, &methods, &turned, base)));
        prop_assert_eq!(keys, again.cells.iter().map(|cell| cell.key).collect::<BTreeSet<_>>());
    }
}
