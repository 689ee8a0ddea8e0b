//! A tokenizer as the keys of a GGUF file: what the file had that the model came from, or a tokenizer.json put so.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::metadata::Metadata;
use super::vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::base_model::{BaseModel, Source};
use crate::error::{Error, Result};
use crate::pre_tokenizer;
use crate::tokenizer::Tokenizer;

/// The keys; `path` is for messages.
pub(super) fn keys(path: &Path, model: &BaseModel) -> Result<Vec<(String, Metadata)>> {
    if let Source::Gguf(gguf) = model.source() {
        return Ok(gguf.tokenizer_keys());
    }
    let tokenizer = model.tokenizer();
    let json: Value = serde_json::from_str(&tokenizer.to_json()?).map_err(Error::json(path))?;
    let vocabulary = Vocabulary { path, json: &json, rows: model.config().vocabulary };
    let mut keys = vocabulary.keys()?;
    let mut add = |key: &str, value: Metadata| keys.push((format!("tokenizer.{key}"), value));
    let special = tokenizer.special();
    for (name, id) in [("bos", special.bos), ("eos", special.eos), ("padding", special.pad)] {
        if let Some(id) = id {
            add(&format!("ggml.{name}_token_id"), Metadata::Unsigned(u64::from(id)));
        }
    }
    // Where the end of a turn is another token than the end of a text.
    if let Some(stop) = special.stops.iter().find(|stop| Some(**stop) != special.eos) {
        add("ggml.eot_token_id", Metadata::Unsigned(u64::from(*stop)));
    }
    let (begins, ends) = added(tokenizer)?;
    add("ggml.add_bos_token", Metadata::Flag(begins));
    add("ggml.add_eos_token", Metadata::Flag(ends));
    if let Some(template) = tokenizer.chat_template() {
        add("chat_template", Metadata::Text(template.to_owned()));
    }
    Ok(keys)
}

/// Whether texts get a begin token, and an end token.
fn added(tokenizer: &Tokenizer) -> Result<(bool, bool)> {
    let (with, without) = (tokenizer.encode("a")?, tokenizer.encode_bare("a")?);
    let special = tokenizer.special();
    let is = |id: Option<&u32>, special: Option<u32>| id.is_some() && id.copied() == special;
    Ok((
        is(with.first(), special.bos) && with.first() != without.first(),
        is(with.last(), special.eos) && with.last() != without.last(),
    ))
}

/// A tokenizer.json.
struct Vocabulary<'a> {
    path: &'a Path,
    json: &'a Value,
    /// Embeddings of the model: a file has a text for each.
    rows: usize,
}

/// The two kinds of byte-pair encoding that GGUF has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// GPT-2's: bytes as letters.
    ByteLevel,
    /// SentencePiece's: spaces as `▁`, bytes as `<0x00>`.
    SentencePiece,
}

impl Vocabulary<'_> {
    fn keys(&self) -> Result<Vec<(String, Metadata)>> {
        let kind = self.kind()?;
        let (texts, kinds) = self.pieces()?;
        let merges = self.merges()?;
        let mut keys = Vec::new();
        let mut add = |key: &str, value: Metadata| keys.push((format!("tokenizer.ggml.{key}"), value));
        match kind {
            Kind::ByteLevel => {
                add("model", Metadata::Text("gpt2".to_owned()));
                add("pre", Metadata::Text(self.pre_tokenizer()?.to_owned()));
                let merges = merges.iter().map(|(left, right)| format!("{left} {right}"));
                add("merges", Metadata::Texts(merges.collect()));
            }
            Kind::SentencePiece => {
                add("model", Metadata::Text("llama".to_owned()));
                add("scores", Metadata::Floats(scores(&texts, &merges)));
                let normalizer = self.json["normalizer"].to_string();
                let pre_tokenizer = &self.json["pre_tokenizer"];
                let prefix = normalizer.contains("\"Prepend\"")
                    || (pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["prepend_scheme"] != "never");
                add("add_space_prefix", Metadata::Flag(prefix));
            }
        }
        add("tokens", Metadata::Texts(texts));
        add("token_type", Metadata::Integers(kinds));
        Ok(keys)
    }

    fn refuse(&self, found: String) -> Error {
        Error::Unsupported {
            path: self.path.to_owned(),
            key: "tokenizer".to_owned(),
            found,
            expected: "byte-pair encoding as GPT-2's or SentencePiece's, which are those that GGUF has"
                .to_owned(),
        }
    }

    fn kind(&self) -> Result<Kind> {
        let model = self.json["model"]["type"].as_str().unwrap_or("none");
        if model != "BPE" {
            return Err(self.refuse(format!("a tokenizer of type {model}")));
        }
        let has = |key: &str, text: &str| self.json[key].to_string().contains(text);
        if has("pre_tokenizer", "\"ByteLevel\"") {
            Ok(Kind::ByteLevel)
        } else if has("normalizer", "▁") || has("pre_tokenizer", "Metaspace") {
            Ok(Kind::SentencePiece)
        } else {
            Err(self.refuse("byte-pair encoding of another kind".to_owned()))
        }
    }

    /// Every id's text and kind, up to the model's last embedding.
    fn pieces(&self) -> Result<(Vec<String>, Vec<i64>)> {
        let mut texts: Vec<String> = (0..self.rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; self.rows];
        let unknown = self.json["model"]["unk_token"].as_str();
        let vocabulary = self.json["model"]["vocab"].as_object().into_iter().flatten();
        for (text, id) in vocabulary {
            // Ids beyond the embeddings are refused wherever they occur: no text can have them.
            let Some(id) = id.as_u64().map(|id| id as usize).filter(|id| *id < self.rows) else { continue };
            let is_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            kinds[id] = if Some(text.as_str()) == unknown {
                UNKNOWN
            } else if is_byte {
                BYTE
            } else {
                NORMAL
            };
            texts[id].clone_from(text);
        }
        for token in self.json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) else { continue };
            let Some(kind) = kinds.get_mut(id as usize) else { continue };
            if *kind != UNKNOWN {
                *kind = if token["special"] == Value::Bool(true) { CONTROL } else { USER_DEFINED };
            }
            text.clone_into(&mut texts[id as usize]);
        }
        Ok((texts, kinds))
    }

    fn merges(&self) -> Result<Vec<(&str, &str)>> {
        let merges = self.json["model"]["merges"].as_array().into_iter().flatten();
        merges
            .map(|merge| match merge {
                Value::String(text) => text.split_once(' '),
                Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
                _ => None,
            })
            .map(|pair| pair.ok_or_else(|| self.refuse("a merge that is no pair".to_owned())))
            .collect()
    }

    /// llama.cpp's name for the way in which texts are cut.
    fn pre_tokenizer(&self) -> Result<&'static str> {
        let found = without_offsets(&self.json["pre_tokenizer"]);
        let ignore_merges = self.json["model"]["ignore_merges"] == Value::Bool(true);
        pre_tokenizer::WRITTEN
            .into_iter()
            .find(|name| {
                pre_tokenizer::named(name).is_some_and(|named| {
                    without_offsets(&named.pre_tokenizer) == found && named.ignore_merges == ignore_merges
                })
            })
            .ok_or_else(|| self.refuse("a way of cutting texts for which llama.cpp has no name".to_owned()))
    }
}

/// A pre-tokenizer without what says how places in the text are told, which changes no token.
fn without_offsets(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(key, _)| *key != "trim_offsets");
            Value::Object(kept.map(|(key, value)| (key.clone(), without_offsets(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_offsets).collect()),
        other => other.clone(),
    }
}

/// SentencePiece merges the pair whose piece has the best score: the earlier its merge, the better.
fn scores(texts: &[String], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    texts.iter().map(|text| ranks.get(text).map_or(0.0, |rank| -(*rank as f32) - 1.0)).collect()
}
