//! A response does not depend on what else is in the batch, and a scheduler gets through whatever it is given.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use answer::{
    Answer, AnswerModel, Decoding, Error, Event, Finish, Limits, Request, Sampling, Scheduler, System,
    respond,
};
use instructions::prompt::Prompt;
use instructions::template::Template;
use serde_json::{Value, json};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens").join(model)
}

/// A tiny model, with its adapter twice: whose rows lie where must not matter.
fn open(name: &str) -> AnswerModel {
    let adapter = golden(name).join("adapter");
    let adapters = [("one".to_owned(), adapter.as_path()), ("two".to_owned(), adapter.as_path())];
    AnswerModel::open(&golden(name).join("model"), &adapters).unwrap()
}

/// The first prompts of a golden, for the base model and both adapters.
fn requests(name: &str, count: usize) -> Vec<Request> {
    let text = std::fs::read(golden(name).join("generation.json")).unwrap();
    let generation: Value = serde_json::from_slice(&text).unwrap();
    let prompts = generation["prompts"].as_array().unwrap().iter().take(count);
    let request = |(place, prompt): (usize, &Value)| {
        let ids = prompt["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        Request {
            id: prompt["id"].as_str().unwrap().to_owned(),
            prompt_tokens: ids.collect(),
            adapter: [None, Some(0), Some(1), Some(0)][place % 4],
        }
    };
    prompts.enumerate().map(request).collect()
}

fn decodings() -> Vec<Decoding> {
    let short = Decoding { new_tokens: 40, ..Decoding::greedy() };
    let sampling = Sampling { temperature: 0.9, top_p: 0.9, top_k: 50, seed: 3 };
    vec![
        short.clone(),
        Decoding { beams: 4, no_repeat_ngram: 3, ..short.clone() },
        Decoding { beams: 3, repetition_penalty: 1.1, length_penalty: 2.0, ..short.clone() },
        Decoding { sample: Some(sampling), ..short },
    ]
}

fn answers(model: &AnswerModel, requests: &[Request], decoding: &Decoding) -> Vec<Answer> {
    answer::answer(model, requests, decoding, &mut |_, _| {}).unwrap()
}

/// Bytes, not numbers: scores too.
fn bytes(answers: &[Answer]) -> Vec<String> {
    answers.iter().map(|answer| serde_json::to_string(answer).unwrap()).collect()
}

#[test]
fn alone_together_in_another_order_or_short_of_room_the_bytes_are_the_same() {
    for name in ["llama-grouped", "gpt-neox-parallel", "bloom", "qwen3"] {
        let (model, requests) = (open(name), requests(name, 12));
        for decoding in decodings() {
            let together = bytes(&answers(&model, &requests, &decoding));
            let alone: Vec<String> = requests
                .iter()
                .flat_map(|request| bytes(&answers(&model, std::slice::from_ref(request), &decoding)))
                .collect();
            assert_eq!(together, alone, "{name}: alone");
            let reversed: Vec<Request> = requests.iter().rev().cloned().collect();
            let mut other = bytes(&answers(&model, &reversed, &decoding));
            other.reverse();
            assert_eq!(together, other, "{name}: another order");
            // Prompts are read in pieces, and requests lose their places for want of pages.
            let narrow = Decoding { batch_tokens: 13, cache_bytes: Some(1), ..decoding.clone() };
            assert_eq!(together, bytes(&answers(&model, &requests, &narrow)), "{name}: narrow");
            let crowded = Decoding { cache_bytes: Some(1), ..decoding };
            assert_eq!(together, bytes(&answers(&model, &requests, &crowded)), "{name}: crowded");
        }
    }
}

#[test]
fn an_adapter_answers_as_its_own_and_not_as_the_base_model() {
    let (model, mut requests) = (open("llama-grouped"), requests("llama-grouped", 8));
    let decoding = &decodings()[0];
    let mut of = |adapter: Option<usize>| {
        requests.iter_mut().for_each(|request| request.adapter = adapter);
        bytes(&answers(&model, &requests, decoding))
    };
    let (base, one, two) = (of(None), of(Some(0)), of(Some(1)));
    assert_eq!(one, two);
    assert_ne!(one, base);
}

#[test]
fn tokens_are_told_as_they_are_found_once_each() {
    let (model, requests) = (open("llama-grouped"), requests("llama-grouped", 10));
    let decoding = Arc::new(decodings().remove(0));
    let all = Decoding { cache_bytes: Some(1), ..Decoding::clone(&decoding) };
    let mut scheduler = Scheduler::new(&model, Limits::plan(&model, &all, &requests));
    for request in &requests {
        scheduler.push(request.clone(), &decoding).unwrap();
    }
    let mut told = vec![Vec::new(); requests.len()];
    let mut finished = 0;
    while !scheduler.is_done() {
        for event in scheduler.step().unwrap() {
            match event {
                Event::Token { number, token } => told[number].push(token),
                Event::Finished { number, answer } => {
                    assert_eq!(told[number], answer.tokens[..answer.tokens.len() - 1]);
                    finished += 1;
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    assert_eq!(finished, requests.len());
    assert!(scheduler.step().unwrap().is_empty());
}

#[test]
fn a_cancelled_request_leaves_the_others_alone() {
    let (model, requests) = (open("bloom"), requests("bloom", 6));
    let decoding = Arc::new(decodings().remove(1));
    let expected = answers(&model, &requests, &decoding);
    let mut scheduler = Scheduler::new(&model, Limits::plan(&model, &decoding, &requests));
    for request in &requests {
        scheduler.push(request.clone(), &decoding).unwrap();
    }
    scheduler.step().unwrap();
    scheduler.step().unwrap();
    assert!(scheduler.cancel(2));
    assert!(!scheduler.cancel(2));
    let mut found = Vec::new();
    while !scheduler.is_done() {
        for event in scheduler.step().unwrap() {
            if let Event::Finished { number, answer } = event {
                assert_eq!(answer, expected[number]);
                found.push(number);
            }
        }
    }
    found.sort_unstable();
    assert_eq!(found, [0, 1, 3, 4, 5]);
}

#[test]
fn a_stop_text_ends_a_response_and_is_not_in_it() {
    let (model, requests) = (open("llama-grouped"), requests("llama-grouped", 4));
    for decoding in decodings().into_iter().take(2) {
        for request in &requests {
            let request = std::slice::from_ref(request);
            let full = answers(&model, request, &decoding).remove(0);
            let stop: String = full.text.chars().skip(4).take(2).collect();
            if stop.contains('\u{FFFD}') || stop.chars().count() < 2 {
                continue;
            }
            let stopped =
                answers(&model, request, &Decoding { stops: vec![stop.clone()], ..decoding.clone() })
                    .remove(0);
            assert!(!stopped.text.contains(&stop), "{:?} holds {stop:?}", stopped.text);
            if decoding.beams == 1 {
                assert_eq!(stopped.finish, Finish::Stop);
                assert_eq!(Some(stopped.text.as_str()), full.text.split(&stop).next());
            }
        }
    }
}

#[test]
fn the_seed_and_the_id_decide_what_is_drawn() {
    let (model, mut requests) = (open("qwen3"), requests("qwen3", 1));
    let with = |seed: u64, requests: &[Request]| {
        let sample = Some(Sampling { seed, ..Sampling::default() });
        let decoding = Decoding { sample, new_tokens: 20, ..Decoding::greedy() };
        answers(&model, requests, &decoding).remove(0).tokens
    };
    let first = with(1, &requests);
    assert_eq!(first, with(1, &requests));
    assert_ne!(first, with(2, &requests));
    requests[0].id = "another".to_owned();
    assert_ne!(first, with(1, &requests));
}

#[test]
fn what_cannot_be_answered_is_named() {
    let model = open("llama-tied");
    let request = |tokens: &[u32], adapter| {
        vec![Request { id: "fi-7".to_owned(), prompt_tokens: tokens.to_vec(), adapter }]
    };
    let fault = |requests: &[Request], decoding: &Decoding| {
        answer::answer(&model, requests, decoding, &mut |_, _| {}).unwrap_err().to_string()
    };
    let paper = Decoding::default();
    assert_eq!(fault(&request(&[], None), &paper), "prompt fi-7: it has no tokens; expected at least one");
    assert_eq!(
        fault(&request(&[389], None), &paper),
        "prompt fi-7: it has token 389; the model's vocabulary ends before 389"
    );
    assert_eq!(fault(&request(&[1], Some(2)), &paper), "prompt fi-7: it asks for adapter 2 of 2");
    let none = Decoding { beams: 0, ..Decoding::default() };
    assert_eq!(fault(&request(&[1], None), &none), "decoding: beams is 0; expected at least 1");
    let both = Decoding { sample: Some(Sampling::default()), ..Decoding::default() };
    assert!(fault(&request(&[1], None), &both).contains("sampling with 4 beams"));
    let mut scheduler = Scheduler::new(&model, Limits { batch_tokens: 8, pages: 20 });
    let long = request(&[1; 40], None).remove(0);
    assert!(matches!(scheduler.push(long, &Arc::new(paper)), Err(Error::Request { .. })));
    assert!(scheduler.is_done());
    assert!(answer::answer(&model, &[], &Decoding::default(), &mut |_, _| {}).unwrap().is_empty());
}

#[test]
fn several_systems_respond_to_prompts_in_order() {
    let model = open("llama-grouped");
    let prompts: Vec<Prompt> = ["What is rain?", "Name a colour."]
        .iter()
        .enumerate()
        .map(|(id, text)| {
            let line =
                json!({"id": format!("p{id}"), "language": "en", "prompt": text, "reference": "Water."});
            serde_json::from_value(line).unwrap()
        })
        .collect();
    let systems = [System::base("base"), System::adapter("tuned", 1)];
    let (template, decoding) = (Template::alpaca(), decodings().remove(1));
    let mut told = vec![None; 4];
    let responses = respond(&model, &systems, &prompts, &template, &decoding, &mut |place, response| {
        told[place] = Some(response.clone());
    })
    .unwrap();
    let found: Vec<_> =
        responses.iter().map(|response| (response.system.as_str(), response.prompt.id.as_str())).collect();
    assert_eq!(found, [("base", "p0"), ("base", "p1"), ("tuned", "p0"), ("tuned", "p1")]);
    assert_eq!(told.into_iter().flatten().collect::<Vec<_>>(), responses);
    assert_eq!(responses[0].prompt.reference(), Some("Water."));
    let alone = respond(&model, &systems[1..], &prompts, &template, &decoding, &mut |_, _| {}).unwrap();
    assert_eq!(alone, responses[2..]);
}
