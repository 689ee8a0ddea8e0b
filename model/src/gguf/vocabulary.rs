//! The tokenizer that a GGUF file carries, built as a tokenizer.json is.

use serde_json::{Map, Value, json};

use super::Gguf;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::pre_tokenizer;
use crate::tokenizer::{SpecialIds, Tokenizer, template};

/// The kinds of token in `tokenizer.ggml.token_type`, which are SentencePiece's.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Builds the tokenizer.
pub(crate) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    let pieces = Pieces {
        texts: gguf.texts("tokenizer.ggml.tokens")?.to_vec(),
        kinds: match gguf.metadata.get("tokenizer.ggml.token_type") {
            None => Vec::new(),
            Some(Metadata::Integers(kinds)) => kinds.clone(),
            Some(_) => return Err(gguf.bad("tokenizer.ggml.token_type", "a list of whole numbers")),
        },
        scores: match gguf.metadata.get("tokenizer.ggml.scores") {
            None => Vec::new(),
            Some(Metadata::Floats(scores)) => scores.clone(),
            Some(_) => return Err(gguf.bad("tokenizer.ggml.scores", "a list of numbers")),
        },
    };
    for (key, length) in
        [("tokenizer.ggml.token_type", pieces.kinds.len()), ("tokenizer.ggml.scores", pieces.scores.len())]
    {
        if length != 0 && length != pieces.texts.len() {
            return Err(gguf.bad(key, &format!("one for each of the {} tokens", pieces.texts.len())));
        }
    }
    let mut special = gguf.special_ids(&pieces)?;
    let (mut json, adds_bos) = match gguf.text("tokenizer.ggml.model")? {
        "gpt2" => byte_level_json(gguf, &pieces)?,
        "llama" => {
            let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            (sentencepiece_json(&pieces, prefix), true)
        }
        other => {
            return Err(Error::Unsupported {
                path: gguf.path().to_owned(),
                key: "tokenizer.ggml.model".to_owned(),
                found: format!("`{other}`"),
                expected: "gpt2 or llama".to_owned(),
            });
        }
    };
    let adds = |key: &str, default: bool| Ok::<_, Error>(gguf.flag(key)?.unwrap_or(default));
    let named = |id: Option<u32>| id.map(|id| (pieces.texts[id as usize].clone(), id));
    let bos =
        named(special.bos.filter(|_| matches!(adds("tokenizer.ggml.add_bos_token", adds_bos), Ok(true))));
    let eos = named(special.eos.filter(|_| matches!(adds("tokenizer.ggml.add_eos_token", false), Ok(true))));
    adds("tokenizer.ggml.add_bos_token", adds_bos)?;
    adds("tokenizer.ggml.add_eos_token", false)?;
    if bos.is_some() || eos.is_some() {
        json["post_processor"] = template(bos.as_ref(), eos.as_ref());
    }
    special.stops.extend(special.eos);
    special.stops.extend(end_of_turn(gguf, &pieces)?);
    special.stops.dedup();
    let chat_template = match gguf.metadata.get("tokenizer.chat_template") {
        None => None,
        Some(Metadata::Text(template)) => Some(template.clone()),
        Some(_) => return Err(gguf.bad("tokenizer.chat_template", "a string")),
    };
    let tokenizer = Tokenizer::from_bytes(gguf.path(), json.to_string().as_bytes())?;
    Ok(tokenizer.with_special(special, chat_template))
}

/// A vocabulary: texts, and for each its kind and its score, where the file has them.
pub(crate) struct Pieces {
    pub(crate) texts: Vec<String>,
    pub(crate) kinds: Vec<i64>,
    pub(crate) scores: Vec<f32>,
}

impl Pieces {
    /// Tokens that are recognised whole in a text.
    fn added(&self) -> Vec<Value> {
        let kinds = self.texts.iter().zip(&self.kinds).enumerate();
        kinds
            .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
            .map(|(id, (text, kind))| {
                json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER_DEFINED})
            })
            .collect()
    }

    fn vocabulary(&self) -> Map<String, Value> {
        self.texts.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect()
    }

    fn unknown(&self) -> Option<&str> {
        let place = self.kinds.iter().position(|&kind| kind == UNKNOWN)?;
        self.texts.get(place).map(String::as_str)
    }
}

/// GPT-2's kind: bytes as letters, merges in the file.
fn byte_level_json(gguf: &Gguf, pieces: &Pieces) -> Result<(Value, bool)> {
    let key = "tokenizer.ggml.pre";
    let name = if gguf.metadata.contains_key(key) { gguf.text(key)? } else { "gpt-2" };
    let named = pre_tokenizer::named(name).ok_or_else(|| Error::Unsupported {
        path: gguf.path().to_owned(),
        key: key.to_owned(),
        found: format!("`{name}`"),
        expected: format!("one of {}", pre_tokenizer::KNOWN),
    })?;
    let mut merges = Vec::new();
    for merge in gguf.texts("tokenizer.ggml.merges")? {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| gguf.bad("tokenizer.ggml.merges", "pairs with a space between them"))?;
        merges.push(json!([left, right]));
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": pieces.added(),
        "normalizer": named.composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": named.pre_tokenizer,
        "post_processor": null,
        "decoder": pre_tokenizer::byte_level(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": named.ignore_merges, "vocab": pieces.vocabulary(), "merges": merges,
        },
    });
    Ok((json, named.adds_bos))
}

/// SentencePiece's BPE: the best-scored pair merges first, and what has no piece becomes bytes.
///
/// The merges are those of the conversion in transformers: every cut of a piece into two pieces, better scores first.
pub(crate) fn sentencepiece_json(pieces: &Pieces, prefix: bool) -> Value {
    let vocabulary = pieces.vocabulary();
    let id = |text: &str| vocabulary.get(text).and_then(Value::as_u64);
    let mut merges = Vec::new();
    for (place, text) in pieces.texts.iter().enumerate() {
        let score = pieces.scores.get(place).copied().unwrap_or(0.0);
        // Only ordinary pieces are made by merging.
        if pieces.kinds.get(place).is_some_and(|&kind| kind != NORMAL) {
            continue;
        }
        let mut cuts: Vec<_> = text
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = text.split_at(at);
                Some((id(left)?, id(right)?, left, right))
            })
            .collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, _, left, right)| (score, left, right)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let merges: Vec<Value> = merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
    let mut normalizers = Vec::new();
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    let byte_fallback = vocabulary.contains_key("<0x00>");
    json!({
        "version": "1.0",
        "added_tokens": pieces.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": pieces.unknown(), "fuse_unk": true,
            "byte_fallback": byte_fallback, "ignore_merges": false, "vocab": vocabulary, "merges": merges,
        },
    })
}

/// Tokens that end a turn of a conversation in models whose end token is another.
fn end_of_turn(gguf: &Gguf, pieces: &Pieces) -> Result<Option<u32>> {
    gguf.special_id("tokenizer.ggml.eot_token_id", pieces)
}

impl Gguf {
    fn texts(&self, key: &str) -> Result<&[String]> {
        match self.metadata.get(key) {
            Some(Metadata::Texts(texts)) => Ok(texts),
            // An empty list may be given any type.
            Some(_) => Err(self.bad(key, "a list of strings")),
            None => Err(self.missing(key)),
        }
    }

    fn special_id(&self, key: &str, pieces: &Pieces) -> Result<Option<u32>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let id = value.unsigned().and_then(|id| u32::try_from(id).ok());
        match id.filter(|&id| (id as usize) < pieces.texts.len()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.bad(key, &format!("a number below the {} tokens", pieces.texts.len()))),
        }
    }

    fn special_ids(&self, pieces: &Pieces) -> Result<SpecialIds> {
        let id = |name: &str| self.special_id(&format!("tokenizer.ggml.{name}_token_id"), pieces);
        Ok(SpecialIds { bos: id("bos")?, eos: id("eos")?, pad: id("padding")?, stops: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::real;

    #[test]
    fn baichuans_vocabulary_is_read_and_loses_no_text() {
        let Some(path) = real("tokenizers/baichuan/ggml-vocab-baichuan.gguf") else { return };
        let tokenizer = tokenizer(&Gguf::open(&path).unwrap()).unwrap();
        assert_eq!(tokenizer.vocabulary(), 64_000);
        let special = tokenizer.special();
        assert_eq!((special.bos, special.eos, special.pad), (Some(1), Some(2), Some(0)));
        for text in ["Hello, world", "你好，世界", "  zwei  Leerzeichen", "Grüße 12345 🦙\n\tэто"]
        {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
            assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 0, "{text} has unknown tokens");
        }
        // Chinese words are pieces of their own, not bytes.
        assert!(tokenizer.encode_plain("你好").unwrap().len() <= 2);
    }
}
