//! SentencePiece models (`tokenizer.model`), for folders that have no `tokenizer.json`.
//!
//! The file is a protocol buffer. Read are the pieces (field 1), the kind of model (field 3 of the trainer's settings,
//! which are field 2) and the normaliser (field 3); the rest is passed over.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::gguf::{Pieces, sentencepiece_json};
use crate::tokenizer::{SpecialIds, Tokenizer, template};

/// The trainer's name for byte-pair encoding.
const BPE: u64 = 2;

/// Reads a BPE model. `settings` is the folder's tokenizer_config.json.
pub(crate) fn read(path: &Path, settings: &Map<String, Value>) -> Result<Tokenizer> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let model = Model::parse(&bytes).ok_or_else(|| Error::Tokenizer {
        path: path.to_owned(),
        reason: "not a SentencePiece model, or cut short".to_owned(),
    })?;
    if model.kind != BPE || model.charsmap {
        let reason = "expected a SentencePiece BPE model without a character map: this one is of another kind; \
                      save the model's fast tokenizer (tokenizer.json) beside it";
        return Err(Error::Tokenizer { path: path.to_owned(), reason: reason.to_owned() });
    }
    let named = |place: Option<usize>| Some((model.pieces.texts.get(place?)?.clone(), place? as u32));
    let control = |text: &str| {
        let found =
            model.pieces.texts.iter().zip(&model.pieces.kinds).position(|(t, &kind)| t == text && kind == 3);
        named(found)
    };
    let (bos, eos) = (control("<s>"), control("</s>"));
    let mut json = sentencepiece_json(&model.pieces, model.prefix);
    let adds = |key: &str, default: bool| settings.get(key).and_then(Value::as_bool).unwrap_or(default);
    // The default of the tokenizers of LLaMA and Baichuan.
    let begin = bos.as_ref().filter(|_| adds("add_bos_token", true));
    let end = eos.as_ref().filter(|_| adds("add_eos_token", false));
    if begin.is_some() || end.is_some() {
        json["post_processor"] = template(begin, end);
    } else {
        json["post_processor"] = json!(null);
    }
    let special = SpecialIds {
        bos: bos.map(|(_, id)| id),
        eos: eos.as_ref().map(|(_, id)| *id),
        pad: None,
        stops: eos.map(|(_, id)| id).into_iter().collect(),
    };
    Ok(Tokenizer::from_bytes(path, json.to_string().as_bytes())?.with_special(special, None))
}

struct Model {
    pieces: Pieces,
    kind: u64,
    prefix: bool,
    charsmap: bool,
}

impl Model {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let pieces = Pieces { texts: Vec::new(), kinds: Vec::new(), scores: Vec::new() };
        // The defaults of the format: a unigram model with a space put before the text.
        let mut model = Self { pieces, kind: 1, prefix: true, charsmap: false };
        for field in fields(bytes)? {
            match field {
                (1, Field::Bytes(piece)) => model.add_piece(piece)?,
                (2, Field::Bytes(trainer)) => {
                    for field in fields(trainer)? {
                        if let (3, Field::Number(kind)) = field {
                            model.kind = kind;
                        }
                    }
                }
                (3, Field::Bytes(normaliser)) => {
                    for field in fields(normaliser)? {
                        match field {
                            (2, Field::Bytes(map)) => model.charsmap = !map.is_empty(),
                            (3, Field::Number(flag)) => model.prefix = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.texts.is_empty()).then_some(model)
    }

    fn add_piece(&mut self, bytes: &[u8]) -> Option<()> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
        for field in fields(bytes)? {
            match field {
                (1, Field::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?.to_owned(),
                (2, Field::Float(number)) => score = number,
                (3, Field::Number(number)) => kind = i64::try_from(number).ok()?,
                _ => {}
            }
        }
        self.pieces.texts.push(text);
        self.pieces.scores.push(score);
        self.pieces.kinds.push(kind);
        Some(())
    }
}

enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a protocol-buffer message, by number; none where it is damaged.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = variable(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(variable(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                Field::Other
            }
            2 => {
                let length = usize::try_from(variable(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => {
                let taken = take(&mut bytes, 4)?;
                Field::Float(f32::from_le_bytes([taken[0], taken[1], taken[2], taken[3]]))
            }
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// A number of variable length: seven bits a byte, the lowest first.
fn variable(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(number);
        }
    }
    None
}
