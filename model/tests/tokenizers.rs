//! Published tokenizers against the ids that their own programs gave.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::golden;
use model::init::{NewSpecialTokens, train_tokenizer};
use model::test_support::{real, write_stories260k};
use model::{BaseModel, Tokenizer};

fn ids(line: &str) -> Vec<u32> {
    line.split(", ").map(|id| id.trim().parse().unwrap()).collect()
}

/// Checks one folder of expected files; `encode` is told nothing but the text.
fn check(folder: &Path, inputs: &Path, tokenizer: &Tokenizer, encode: impl Fn(&str) -> Vec<u32>) {
    let unescape = |line: &str| line.replace("\\n", "\n").replace("\\s", " ").replace("\\x", "");
    for name in ["small", "mixed"] {
        let read = |path: std::path::PathBuf| fs::read_to_string(path).ok();
        let input = read(inputs.join(format!("{name}_input.txt"))).unwrap();
        let tokens = read(folder.join(format!("{name}_tokens.txt"))).unwrap();
        let output = read(folder.join(format!("{name}_output.txt"))).unwrap_or_else(|| input.clone());
        let lines =
            |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let (input, tokens, output) = (lines(&input), lines(&tokens), lines(&output));
        assert_eq!(input.len(), tokens.len());
        for ((text, expected), decoded) in input.iter().zip(&tokens).zip(&output) {
            let expected = ids(expected);
            assert_eq!(encode(&unescape(text)), expected, "{name}: {text}");
            assert_eq!(tokenizer.decode(&expected, false).unwrap(), unescape(decoded), "{name}: {text}");
        }
    }
    let text = fs::read_to_string(inputs.join("utf8_input.txt")).unwrap();
    let expected = ids(&fs::read_to_string(folder.join("utf8_tokens.txt")).unwrap());
    assert_eq!(encode(&text), expected, "utf8");
    let decoded = fs::read_to_string(folder.join("utf8_output.txt")).unwrap();
    assert_eq!(tokenizer.decode(&expected, false).unwrap(), decoded);
    // The stream's pieces make up the same text.
    let mut stream = tokenizer.stream(false);
    let mut streamed = String::new();
    for &id in &expected[..2000] {
        streamed += &stream.push(id).unwrap();
    }
    streamed += &stream.finish().unwrap();
    assert_eq!(streamed, tokenizer.decode(&expected[..2000], false).unwrap());
}

#[test]
fn published_tokenizers_give_the_published_ids() {
    let Some(folder) = real("tokenizers") else { return };
    let inputs = folder.join("inputs");
    for name in ["gpt_neox", "llama2"] {
        let tokenizer = Tokenizer::from_file(&folder.join(name).join("tokenizer.json")).unwrap();
        check(&folder.join(name).join("expected_json"), &inputs, &tokenizer, |text| {
            tokenizer.encode_bare(text).unwrap()
        });
    }
}

#[test]
fn a_sentencepiece_model_gives_sentencepieces_ids() {
    let Some(source) = real("tokenizers/llama2") else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::copy(source.join("tokenizer.model"), folder.path().join("tokenizer.model")).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!((tokenizer.special().bos, tokenizer.special().eos), (Some(1), Some(2)));
    assert_eq!(tokenizer.encode("Hello").unwrap(), [1, 15043]);
    let inputs = source.join("../inputs");
    check(&source.join("expected_model"), &inputs, &tokenizer, |text| tokenizer.encode_plain(text).unwrap());
    // Cut anywhere, it is refused or has fewer pieces; it never panics.
    let bytes = fs::read(source.join("tokenizer.model")).unwrap();
    for length in (0..2_000).chain([bytes.len() - 3]) {
        fs::write(folder.path().join("tokenizer.model"), &bytes[..length]).unwrap();
        let _ = Tokenizer::from_folder(folder.path());
    }
}

#[test]
fn stories260k_is_opened_as_a_folder() {
    let Some(source) = real("models/stories260k") else { return };
    let folder = tempfile::tempdir().unwrap();
    write_stories260k(&source, folder.path()).unwrap();
    let model = BaseModel::open(folder.path()).unwrap();
    assert_eq!(model.parameters(), 260_032);
    let text = fs::read_to_string(source.join("expected_greedy_256.txt")).unwrap();
    let published = fs::read_to_string(source.join("derived_greedy_256_ids.txt")).unwrap();
    let published: Vec<u32> = published.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(model.tokenizer().decode(&published, true).unwrap(), text);
    assert_eq!(model.tokenizer().encode("").unwrap(), [1]);
    assert_eq!(model.tokenizer().encode("Once upon a time").unwrap()[..5], [1, 403, 407, 261, 378]);
}

#[test]
fn training_tokens_end_in_the_end_token_where_there_is_room() {
    let model = BaseModel::open(golden("llama-grouped").join("model")).unwrap();
    let tokenizer = model.tokenizer();
    let eos = tokenizer.special().eos.unwrap();
    let tokens = tokenizer.encode_training("Say yes.\n", "yes", 64).unwrap();
    assert_eq!(tokens.ids.last(), Some(&eos));
    assert_eq!(tokens.prompt_length, tokenizer.encode("Say yes.\n").unwrap().len());
    let whole = tokens.ids.len();
    let exact = tokenizer.encode_training("Say yes.\n", "yes", whole - 1).unwrap();
    assert_eq!(exact.ids[..], tokens.ids[..whole - 1]);
    let cut = tokenizer.encode_training("Say yes.\n", "yes", 2).unwrap();
    assert_eq!((cut.ids.len(), cut.prompt_length), (2, 2));
}

#[test]
fn a_new_tokenizer_is_the_same_each_time_and_loses_no_text() {
    let texts: Vec<String> = (0..200)
        .map(|n| format!("The {n}th red ball rolls; der rote Ball rollt {n}; красный мяч катится"))
        .collect();
    let special = NewSpecialTokens { bos: None, eos: Some("<|end|>"), pad: None };
    let train = || train_tokenizer(texts.iter().map(String::as_str), 400, &special).unwrap();
    let (first, second) = (train(), train());
    assert_eq!(first.to_json().unwrap(), second.to_json().unwrap());
    assert!(first.vocabulary() > 300 && first.vocabulary() <= 400, "{}", first.vocabulary());
    assert_eq!(first.special().eos, Some(0));
    for text in ["The red ball", " zwei  Leerzeichen\n\n", "未知の文字 🦙 \u{0}", "12345"] {
        assert_eq!(first.decode(&first.encode(text).unwrap(), false).unwrap(), text);
    }
    let folder = tempfile::tempdir().unwrap();
    first.save(folder.path()).unwrap();
    let again = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(again.encode("The red ball 42").unwrap(), first.encode("The red ball 42").unwrap());
    assert_eq!(again.special(), first.special());
    assert!(train_tokenizer(["a"], 100, &special).err().unwrap().to_string().contains("257"));
}
