//! The data of `examples/quickstart.toml` are what its result rests on: parallel sets, prompts that stand in no training
//! text, references that the gate takes for their language.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use instructions::language::Language;
use instructions::prompt::{Prompt, read_prompts};
use instructions::record::{Record, read_records};
use lingua::LanguageDetectorBuilder;

type TestResult = Result<(), Box<dyn std::error::Error>>;

const LANGUAGES: [&str; 5] = ["en", "es", "fi", "ru", "zh"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart")
}

fn records(code: &str) -> Result<Vec<Record>, Box<dyn std::error::Error>> {
    let language: Language = code.parse()?;
    let reading = read_records(&folder().join(format!("instructions/{code}.json")), &language)?;
    assert!(reading.problems.is_empty(), "{:?}", reading.problems);
    Ok(reading.items)
}

fn prompts(code: &str) -> Result<Vec<Prompt>, Box<dyn std::error::Error>> {
    let reading = read_prompts(&folder().join(format!("prompts/{code}.jsonl")), None)?;
    assert!(reading.problems.is_empty(), "{:?}", reading.problems);
    Ok(reading.items)
}

#[test]
fn sets_and_prompts_are_parallel() -> TestResult {
    let record_ids: Vec<String> = records("en")?.into_iter().map(|record| record.id).collect();
    let prompt_ids: Vec<String> = prompts("en")?.into_iter().map(|prompt| prompt.id).collect();
    assert!(record_ids.len() >= 200 && prompt_ids.len() >= 40, "{} {}", record_ids.len(), prompt_ids.len());
    for code in LANGUAGES {
        assert!(records(code)?.iter().map(|record| &record.id).eq(&record_ids), "{code}: records");
        assert!(prompts(code)?.iter().map(|prompt| &prompt.id).eq(&prompt_ids), "{code}: prompts");
        assert!(prompts(code)?.iter().all(|prompt| prompt.language.to_string() == code), "{code}: language");
    }
    Ok(())
}

#[test]
fn no_prompt_stands_in_any_training_text() -> TestResult {
    let mut training = String::new();
    let mut asked = BTreeSet::new();
    for code in LANGUAGES {
        training += &std::fs::read_to_string(folder().join(format!("text/{code}.txt")))?;
        for record in records(code)? {
            training += &format!("{}\n{}\n{}\n", record.instruction, record.input, record.output);
            asked.insert((code, record.id));
            asked.insert((code, record.output));
        }
    }
    let training = training.to_lowercase();
    for code in LANGUAGES {
        for prompt in prompts(code)? {
            assert!(!training.contains(&prompt.prompt.to_lowercase()), "{code}: {}", prompt.prompt);
            assert!(
                !asked.contains(&(code, prompt.id.clone())),
                "{code}: the fact {} is asked in tuning",
                prompt.id
            );
            let reference = prompt.reference().unwrap_or_default();
            assert!(!reference.is_empty(), "{code}: {} has no reference", prompt.id);
            assert!(
                !asked.contains(&(code, reference.to_owned())),
                "{code}: `{reference}` is an answer of tuning"
            );
        }
    }
    Ok(())
}

#[test]
fn text_has_no_question_and_no_template() -> TestResult {
    for code in LANGUAGES {
        let text = std::fs::read_to_string(folder().join(format!("text/{code}.txt")))?;
        assert!(!text.contains(['?', '？', '¿', '#']), "{code}");
    }
    Ok(())
}

#[test]
fn references_are_identified_as_their_language() -> TestResult {
    // All languages that are built in: short sentences have to stand apart from every one of them.
    let detector = LanguageDetectorBuilder::from_all_languages().build();
    for code in LANGUAGES {
        for prompt in prompts(code)? {
            let reference = prompt.reference().unwrap_or_default();
            let found = detector.detect_language_of(reference).map(|language| language.iso_code_639_1());
            let found = found.map(|code| code.to_string());
            assert_eq!(found.as_deref(), Some(code), "{}: {reference}", prompt.id);
        }
    }
    Ok(())
}
