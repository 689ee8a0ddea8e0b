//! What is said of an experiment file that cannot be run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{EXPERIMENT, write};
use lab::experiment::Experiment;
use lab::inputs::Inputs;

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

/// What is said of an experiment that is in order, and yet cannot be planned.
fn unplannable(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(EXPERIMENT.contains(from), "{from}");
    let path = write(folder.path(), &EXPERIMENT.replacen(from, to, 1));
    let Err(error) = lab::local::prepare(&path) else { panic!("it was planned") };
    error.to_string()
}

#[test]
fn a_recipe_that_asks_for_more_than_there_is_is_placed_in_the_file() {
    let said = unplannable("rows = 6", "rows = 600");
    assert!(said.contains("small.toml:24:1: recipe `") && said.contains("needs 600 rows"), "{said}");
    let said = unplannable("validation_rows = 2", "validation_rows = 12");
    assert!(said.contains("small.toml:27:1: ") && said.contains("more than the 12"), "{said}");
    // Nothing in the file says so: the message does.
    let said = unplannable("validation_rows = 2\n", "");
    assert!(said.contains("small.toml:26:2: ") || said.contains("small.toml:26:1: "), "{said}");
    assert!(said.ends_with("`validation_rows` of [tune] says how many are"), "{said}");
}

#[test]
fn files_of_one_language_stay_parallel_with_those_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let files = |code: &str| format!("{code} = [\"{code}-1/rows.json\", \"{code}-2/rows.json\"]");
    let text = ["en", "fi", "zh"].iter().fold(EXPERIMENT.to_owned(), |text, code| {
        text.replace(&format!("{code} = \"{code}.json\""), &files(code))
    });
    let path = write(place, &text);
    for code in ["en", "fi", "zh"] {
        for part in 1..=2 {
            let rows: Vec<String> = (0..6)
                .map(|row| format!(r#"{{"instruction":"{code} asks {part} {row}","output":"{code} says"}}"#))
                .collect();
            fs::create_dir(place.join(format!("{code}-{part}"))).unwrap();
            fs::write(place.join(format!("{code}-{part}/rows.json")), format!("[{}]", rows.join(",")))
                .unwrap();
        }
    }
    let experiment = Experiment::load(&path).unwrap();
    let inputs = Inputs::read(&experiment).unwrap();
    let numbers: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    for set in inputs.sets.iter() {
        let ids: Vec<&str> = set.records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, numbers, "{}", set.language);
    }
    // The same file again has no rows of its own.
    let twice = text.replace("fi-2/rows.json", "fi-1/../fi-1/rows.json");
    fs::write(&path, twice).unwrap();
    let error = Inputs::read(&Experiment::load(&path).unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("the file is given twice for `fi`"), "{error}");
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
        (
            "[answer]",
            "[judge]\nprice = { prompt = nan, completion = -1000 }\ncap = inf\n[answer]",
            &[
                ":31:11: prompt is NaN: expected from 0 up to 1000000000",
                ":31:25: completion is -1000: expected from 0",
                ":32:1: cap is inf",
            ],
        ),
        (
            "[answer]",
            "[judge]\ntries = 3\nconcurrency = 8\nprompt_template = \"en.json\"\nrequests_per_minute = 9\n[answer]",
            &[
                ":31:1: `tries` is only for `kind = \"openai\"`",
                ":32:1: `concurrency` is only for",
                ":33:1: `prompt_template` is only for `kind = \"openai\" or \"local\"`",
                ":34:1: `requests_per_minute` is only for `kind = \"openai\"`",
            ],
        ),
        (
            "[answer]",
            "[judge]\nkind = \"openai\"\nendpoint = \"http://host\"\nmodel = \"m\"\nrequests_per_minute = 0\n[answer]",
            &[":34:1: requests_per_minute is 0: expected from 0.001 up to 1000000000"],
        ),
        (
            "[answer]",
            "[[system]]\nname = \"s\"\nendpoint = \"http://host\"\nmodel = \"m\"\nrequests_per_minute = nan\n[answer]",
            &[":34:1: requests_per_minute is NaN: expected from 0.001"],
        ),
        (
            "new_tokens = 4",
            "new_tokens = 4\ntop_p = 0.9\nseed = 3\nstop = [\"\"]\nlength_penalty = nan",
            &[
                ":32:1: `top_p` is only for `sample = true`",
                ":33:1: `seed` is only for",
                ":34:1: stop holds an empty text",
                ":35:1: length_penalty is NaN: expected a finite number",
            ],
        ),
        (
            "new_tokens = 4",
            "stop = [\"a\", \"b\", \"c\", \"d\", \"e\"]\n[[system]]\nname = \"s\"\nendpoint = \"http://host\"\nmodel = \"m\"",
            &[":31:1: stop has 5 texts: an endpoint takes 4"],
        ),
        ("seeds = [1, 2]", "minimum_score = nan", &[":6:1: minimum_score is NaN: expected 0 or above"]),
        ("lr = 0.001", "modules = []", &[":28:1: modules is empty: expected at least one"]),
        ("lr = 0.001", "rank = 100000000000", &["rank is 100000000000: expected at most 16384"]),
        ("lr = 0.001", "epochs = 1e30", &[":28:1: epochs is 1", "expected at most 100000"]),
        (
            "new_tokens = 4",
            "new_tokens = 1000000000000\nbeams = 1000000000000",
            &[
                "new_tokens is 1000000000000: expected at most 1048576",
                ":32:1: beams is 1000000000000: expected",
            ],
        ),
        (
            "rows = 6",
            "held = \"updates\"\nc = 1000000000000",
            &[":25:1: c is more updates than a run can have"],
        ),
        (
            "[answer]",
            "[judge]\nkind = \"openai\"\nendpoint = \"http://\"\nmodel = \"m\"\nbackoff = 1e300\n[answer]",
            &[":32:1: \"http://\": expected a URL that starts with http://", ":34:1: backoff is 1"],
        ),
        (
            "[answer]",
            "[[system]]\nname = \"s\"\nendpoint = \"http://host\"\nmodel = \"m\"\nbase_model = \"tiny\"\n[answer]",
            &[":34:1: `base_model` is only for a system with an `adapter`"],
        ),
        (
            "[answer]",
            "[[system]]\nname = \"s\"\nadapter = \".\"\nbase_model = \"tiny\"\nkey_variable = \"K\"\nrequests_per_minute = 9\n[answer]",
            &[
                ":32:1: ",
                "expected a PEFT folder, with adapter_config.json",
                ":34:1: `key_variable` is only for",
                ":35:1: `requests_per_minute` is only for a system with an `endpoint`",
            ],
        ),
        (
            "[answer]",
            "[[system]]\nname = \"tiny/base\"\nendpoint = \"http://host\"\nmodel = \"m\"\n\
             [[system]]\nname = \"untuned\"\nendpoint = \"http://host\"\nmodel = \"m\"\n\
             [[system]]\nname = \"english\"\nendpoint = \"http://host\"\nmodel = \"m\"\n\
             [[system]]\nname = \"a\\nb\"\nendpoint = \"http://host\"\nmodel = \"m\"\n[answer]",
            &[
                ":31:1: the name `tiny/base`: expected another, systems of the base model `tiny` begin so",
                ":35:1: the name `untuned`: expected another",
                ":39:1: the name `english`: expected another",
                ":43:1: the name \"a\\nb\": expected one line",
            ],
        ),
        (
            "seeds = [1, 2]",
            "recipes = []\ninclude_base = false",
            &[":6:1: nothing to do: expected a recipe, `include_base = true` or a [[system]]"],
        ),
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

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model")
}

#[test]
fn what_a_model_from_scratch_is_made_of_is_looked_at() {
    let config = fs::read_to_string(golden().join("config.json")).unwrap();
    let scratch = "config = \"m.json\"\ntokenizer_vocabulary = 400\ntext = { en = \"t.txt\" }\n\
                   [base_model.pretraining]\nupdates = 1\nbatch = 1\ncutoff = 8\nlr = 1\n";
    let said = |config: &str, text: &[u8], from: &str, to: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("m.json"), config).unwrap();
        fs::write(folder.path().join("t.txt"), text).unwrap();
        let experiment = EXPERIMENT.replace("path = \"tiny.gguf\"\n", scratch);
        let experiment = experiment.replacen(from, to, 1);
        Experiment::load(&write(folder.path(), &experiment))
            .map_or_else(|error| error.to_string(), |_| String::new())
    };
    assert_eq!(said(&config, b"A text.\n", "", ""), "");
    for wrong in ["[1]", "{", "\"llama\""] {
        let said = said(wrong, b"A text.\n", "", "");
        assert!(said.contains(":10:1: ") && said.contains("m.json: expected a JSON object"), "{said}");
    }
    assert!(said("{}", b"A text.\n", "", "").contains("model_type"));
    let told = said(&config, b"A text.\n\xff\n", "", "");
    assert!(told.contains("small.toml:12:10: ") && told.contains("t.txt: line 2 is not UTF-8"), "{told}");
    let told = said(&config, b"A text.\n", "lr = 0.001", "modules = [\"foo\"]");
    assert!(told.contains("module `foo` is none of a llama model's; expected one of q_proj"), "{told}");
    let told = said(&config, b"A text.\n", "vocabulary = 400", "vocabulary = 100000000000");
    assert!(
        told.contains(":11:1: tokenizer_vocabulary is 100000000000") && told.contains("at most 1048576"),
        "{told}"
    );
}

#[test]
fn models_and_keys_that_are_named_are_looked_for() {
    let said = |from: &str, to: &str| {
        let folder = tempfile::tempdir().unwrap();
        let text = EXPERIMENT.replace("tiny.gguf", &golden().display().to_string()).replacen(from, to, 1);
        let path = write(folder.path(), &text);
        // An adapter without weights.
        let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}"#;
        fs::create_dir(folder.path().join("adapter")).unwrap();
        fs::write(folder.path().join("adapter/adapter_config.json"), config).unwrap();
        let experiment = Experiment::load(&path).unwrap_or_else(|error| panic!("{error}"));
        experiment.open_named(&path).map_or_else(|error| error.to_string(), |()| String::new())
    };
    assert_eq!(said("", ""), "");
    let broken = said(&golden().display().to_string(), "tiny.gguf");
    assert!(broken.contains("small.toml:10:1: ") && broken.contains("tiny.gguf"), "{broken}");
    let modules = said("lr = 0.001", "lora = { modules = [\"q_proj\", \"foo\"] }");
    assert!(modules.contains(":28:10: module `foo` is none of a llama model's"), "{modules}");
    let lid = said("[answer]", "[gate]\nlid = \"en.json\"\n[answer]");
    assert!(lid.contains(":31:1: fastText model") && lid.contains("en.json"), "{lid}");
    let template = said(
        "[answer]",
        "[judge]\nkind = \"local\"\npath = \"tiny.gguf\"\nprompt_template = \"en.json\"\n[answer]",
    );
    assert!(template.contains(":33:1: ") && template.contains("en.json"), "{template}");
    assert!(template.contains(":32:1: ") && template.contains("tiny.gguf"), "{template}");
    let adapter =
        said("[answer]", "[[system]]\nname = \"s\"\nbase_model = \"tiny\"\nadapter = \"adapter\"\n[answer]");
    assert!(adapter.contains(":33:1: ") && adapter.contains("adapter_model.safetensors"), "{adapter}");
    let openai = "kind = \"openai\"\nendpoint = \"http://host\"\nmodel = \"m\"";
    let key = "key_variable = \"POLYPACA_NO_SUCH_KEY\"";
    let judge = said("[answer]", &format!("[judge]\n{openai}\n{key}\n[answer]"));
    assert!(judge.contains(":34:1: environment variable POLYPACA_NO_SUCH_KEY: expected"), "{judge}");
    let openai = "name = \"s\"\nendpoint = \"http://host\"\nmodel = \"m\"";
    let system = said("[answer]", &format!("[[system]]\n{openai}\n{key}\n[answer]"));
    assert!(system.contains(":34:1: environment variable POLYPACA_NO_SUCH_KEY: expected"), "{system}");
}

#[test]
fn rows_of_several_origins_are_sets_of_their_own_where_a_recipe_asks_for_one() {
    let read = |recipe: &str| {
        let folder = tempfile::tempdir().unwrap();
        let translated: Vec<String> = (0..4)
            .map(|id| {
                format!(
                    r#"{{"id":"{id}","instruction":"a","output":"translated {id}","origin":"translated"}}"#
                )
            })
            .collect();
        fs::write(folder.path().join("mt.jsonl"), translated.join("\n")).unwrap();
        let text = EXPERIMENT.replace("fi = \"fi.json\"", "fi = [\"fi.json\", \"mt.jsonl\"]");
        let text = text.replace("seeds = [1, 2]", &format!("seeds = [1, 2]\n{recipe}"));
        let experiment =
            Experiment::load(&write(folder.path(), &text)).unwrap_or_else(|error| panic!("{error}"));
        let sets = Inputs::read(&experiment).map_err(|error| error.to_string())?.sets;
        let of_finnish = sets.iter().filter(|set| set.language.code() == "fi");
        let told = |set: &instructions::mix::Set| {
            (set.origin.name(), set.records.len(), set.records[set.records.len() - 1].id.clone())
        };
        Ok(of_finnish.map(told).collect::<Vec<_>>())
    };
    // As one set they would have two rows under one id, of which one may be validated and the other trained on.
    let refused: Result<_, String> = read("");
    assert!(refused.is_err_and(|said| said.contains("the id \"0\" was met before in `fi`")));
    let asks =
        "recipes = [\"mt\"]\n[[recipe]]\nname = \"mt\"\nlanguages = [\"fi\"]\norigin = \"translated\"\n";
    assert_eq!(read(asks), Ok(vec![("native", 12, "11".to_owned()), ("translated", 4, "3".to_owned())]));
}

#[test]
fn why_nothing_of_a_file_could_be_used_is_told() {
    for (name, text, expected) in [
        ("prompts-fi.jsonl", "{\"id\": \"a\"}\n", "no prompt in `fi`"),
        (
            "fi.json",
            "[{\"instruction\": \"?\", \"input\": \"\", \"output\": \"\"}]",
            "no instruction row in `fi`",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), EXPERIMENT);
        fs::write(folder.path().join(name), text).unwrap();
        let error = Inputs::read(&Experiment::load(&path).unwrap()).unwrap_err().to_string();
        let (said, why) = error.split_once(" could be used: ").unwrap_or_else(|| panic!("{error}"));
        assert!(said.starts_with(expected) && why.contains(name), "{error}");
    }
}

#[test]
fn the_quickstart_is_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart.toml");
    let experiment = Experiment::load(&path).unwrap_or_else(|error| panic!("{error}"));
    experiment.open_named(&path).unwrap_or_else(|error| panic!("{error}"));
}
