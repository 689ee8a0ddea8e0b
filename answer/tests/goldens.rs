//! Answers against transformers' `generate`: five methods, twenty prompts, every tiny model; and llama2.c's own text.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use answer::{Answer, AnswerModel, Decoding, EarlyStopping, Request};
use model::test_support::TINY_MODELS;
use serde_json::Value;

/// Below this the sums' order decides, not the model: a first difference there is rounding's.
const MARGIN: f64 = 1e-4;

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(model)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// transformers' parameters as ours.
fn decoding(method: &Value, new_tokens: usize) -> Decoding {
    let mut decoding = Decoding { new_tokens, ..Decoding::greedy() };
    for (key, value) in method.as_object().unwrap() {
        match key.as_str() {
            "num_beams" => decoding.beams = value.as_u64().unwrap() as usize,
            "no_repeat_ngram_size" => decoding.no_repeat_ngram = value.as_u64().unwrap() as usize,
            "repetition_penalty" => decoding.repetition_penalty = value.as_f64().unwrap() as f32,
            "length_penalty" => decoding.length_penalty = value.as_f64().unwrap(),
            "early_stopping" if *value == Value::Bool(true) => decoding.early_stopping = EarlyStopping::Full,
            "early_stopping" if *value == Value::Bool(false) => {}
            "early_stopping" if value == "never" => decoding.early_stopping = EarlyStopping::Never,
            "do_sample" if *value == Value::Bool(false) => {}
            _ => panic!("{key} = {value}"),
        }
    }
    decoding
}

fn requests(generation: &Value) -> Vec<Request> {
    let prompts = generation["prompts"].as_array().unwrap().iter();
    prompts
        .map(|prompt| Request {
            id: prompt["id"].as_str().unwrap().to_owned(),
            prompt_tokens: numbers(&prompt["ids"]),
            adapter: None,
        })
        .collect()
}

fn all(model: &AnswerModel, requests: &[Request], decoding: &Decoding) -> Vec<Answer> {
    let mut told = vec![None; requests.len()];
    let answers = answer::answer(model, requests, decoding, &mut |place, answer| {
        assert!(told[place].replace(answer.clone()).is_none());
    })
    .unwrap();
    assert_eq!(told.into_iter().flatten().collect::<Vec<_>>(), answers);
    answers
}

/// The answers of one model against its golden: how many there are, and the differences that rounding explains.
fn compare(name: &str, model: &AnswerModel, generation: &Value) -> (usize, Vec<String>) {
    let requests = requests(generation);
    let new_tokens = generation["new_tokens"].as_u64().unwrap() as usize;
    let (mut count, mut rounding, mut wrong) = (0, Vec::new(), Vec::new());
    for (method, settings) in generation["methods"].as_object().unwrap() {
        let answers = all(model, &requests, &decoding(settings, new_tokens));
        for (answer, expected) in answers.iter().zip(generation["answers"][method].as_array().unwrap()) {
            count += 1;
            let tokens = numbers(&expected["tokens"]);
            if answer.tokens == tokens {
                if let Some(score) = expected["beam_scores"].get(0).and_then(Value::as_f64) {
                    let error = (f64::from(answer.score.unwrap()) - score).abs();
                    // f32 sums of 48 log-probabilities, in another order.
                    assert!(
                        error < 1e-4 * score.abs().max(1.0),
                        "{name}/{method}/{}: {error:.1e}",
                        answer.id
                    );
                }
                continue;
            }
            let step = answer.tokens.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
            let margin = expected["margins"].get(step).and_then(Value::as_f64).unwrap_or(f64::INFINITY);
            let said = format!("{name}/{method}/{}: token {step}, margin {margin:.1e}", answer.id);
            if margin < MARGIN { rounding.push(said) } else { wrong.push(said) }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ: {wrong:#?}", wrong.len());
    (count, rounding)
}

#[test]
fn tokens_equal_transformers() {
    let (mut count, mut rounding) = (0, Vec::new());
    for (name, _) in TINY_MODELS {
        let model = AnswerModel::open(&golden(name).join("model"), &[]).unwrap();
        let found = compare(name, &model, &json(&golden(name).join("generation.json")));
        count += found.0;
        rounding.extend(found.1);
    }
    println!(
        "{count} answers, {} first differences at margins below {MARGIN:.0e}: {rounding:#?}",
        rounding.len()
    );
    assert_eq!(count, TINY_MODELS.len() * 5 * 20);
    // At most one in a hundred.
    assert!(100 * rounding.len() <= count);
}

#[test]
fn smollm2_answers_as_in_transformers() {
    let (weights, expected) = (
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/smollm2-135m-instruct.gguf"),
        golden("smollm2").join("generation.json"),
    );
    if let Some(missing) = [&weights, &expected].into_iter().find(|path| !path.is_file()) {
        eprintln!("skipped: {} is not there (scripts/fetch-smollm2, oracle/make.py)", missing.display());
        return;
    }
    let model = AnswerModel::open(&weights, &[]).unwrap();
    let (count, rounding) = compare("smollm2", &model, &json(&expected));
    println!("{count} answers, differences by rounding: {rounding:#?}");
    assert!(100 * rounding.len() <= count.max(100));
}

/// Fifty real prompts a language. They are not part of the project: the golden has numbers only.
#[test]
fn smollm2_answers_five_languages_as_transformers() {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/smollm2-135m-instruct.gguf");
    let Some(prompts) = model::test_support::real("prompts") else { return };
    if !weights.is_file() || std::env::var_os("POLYPACA_LONG_TESTS").is_none() {
        eprintln!("skipped: it takes minutes (scripts/fetch-smollm2, and set POLYPACA_LONG_TESTS)");
        return;
    }
    let model = AnswerModel::open(&weights, &[]).unwrap();
    let (mut count, mut rounding) = (0, Vec::new());
    for language in ["en", "es", "ru", "fi", "zh"] {
        let expected = golden("smollm2").join(format!("generation-{language}.json"));
        if !expected.is_file() {
            eprintln!(
                "{language} is left out: {} is not there (oracle/smollm2.py languages)",
                expected.display()
            );
            continue;
        }
        let mut generation = json(&expected);
        let lines = prompts.join(generation["data"].as_str().unwrap());
        let language = language.parse().unwrap();
        let read = instructions::prompt::read_prompts(&lines, Some(&language)).unwrap().items;
        let template = instructions::template::Template::alpaca();
        let ids = |prompt| answer::prompt_tokens(model.base.tokenizer(), &template, prompt).unwrap();
        let asked: Vec<Value> = read
            .iter()
            .take(50)
            .map(|prompt| serde_json::json!({"id": prompt.id.to_string(), "ids": ids(prompt)}))
            .collect();
        let lengths: Vec<Value> =
            asked.iter().map(|prompt| prompt["ids"].as_array().unwrap().len().into()).collect();
        assert_eq!(Value::Array(lengths), generation["prompt_tokens"]);
        generation["prompts"] = asked.into();
        let found = compare(&format!("smollm2/{}", language_name(&expected)), &model, &generation);
        count += found.0;
        rounding.extend(found.1);
    }
    println!("{count} answers, {} differ by rounding: {rounding:#?}", rounding.len());
    assert!(100 * rounding.len() <= count);
}

fn language_name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn stories260k_tells_its_published_story() {
    let Some(source) = model::test_support::real("models/stories260k") else { return };
    let folder = tempfile::tempdir().unwrap();
    model::test_support::write_stories260k(&source, folder.path()).unwrap();
    let model = AnswerModel::open(folder.path(), &[]).unwrap();
    let text = std::fs::read_to_string(source.join("derived_greedy_256_ids.txt")).unwrap();
    let expected: Vec<u32> = text.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(expected.len(), 256);
    // The begin token alone.
    let request = Request { id: "story".to_owned(), prompt_tokens: vec![1], adapter: None };
    let decoding = Decoding { new_tokens: expected.len(), ..Decoding::greedy() };
    let answers = all(&model, &[request], &decoding);
    assert_eq!(answers[0].tokens, expected);
    let story = std::fs::read_to_string(source.join("expected_greedy_256.txt")).unwrap();
    assert_eq!(answers[0].text.trim_start(), story);
}
