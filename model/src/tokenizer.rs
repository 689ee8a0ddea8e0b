//! Text to token ids and back, as the model's own tokenizer does it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::base_model::read_json;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::write::write_atomically;

/// Words whose tokens each thread remembers: the library's 10,000 are less than what an instruction set of one language
/// holds, and the others would be merged anew each time.
const WORDS_REMEMBERED: usize = 100_000;

/// A tokenizer, the ids that have a meaning of their own, and the template of conversations.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// The same, but reading special tokens in a text as text; made when it is first needed.
    plain: OnceLock<tokenizers::Tokenizer>,
    special: SpecialIds,
    /// One more than the highest id.
    vocabulary: usize,
    /// Rows of the model's embedding table; no id may reach it.
    rows: usize,
    chat_template: Option<String>,
    /// What a folder's tokenizer_config.json says, kept for saving.
    settings: Map<String, Value>,
}

/// The ids that have a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends a response; appended in training.
    pub eos: Option<u32>,
    /// Fills a batch in other programs; this one has no padding.
    pub pad: Option<u32>,
    /// Any of these ends generation; holds `eos` where the model names no others.
    pub stops: Vec<u32>,
}

/// A text and its response as a model is trained on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingTokens {
    /// The tokens of prompt and response, at most as many as the cutoff.
    pub ids: Vec<u32>,
    /// How many of `ids` are the prompt's: supervision of the response alone begins here.
    pub prompt_length: usize,
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face folder: `tokenizer.json`, or a SentencePiece `tokenizer.model`.
    ///
    /// # Errors
    /// There is neither, or one of the files is damaged.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let sentencepiece = folder.join("tokenizer.model");
        let settings = optional_object(&folder.join("tokenizer_config.json"))?;
        let mut tokenizer = if path.is_file() {
            Self::from_file(&path)?
        } else if sentencepiece.is_file() {
            crate::sentencepiece::read(&sentencepiece, &settings)?
        } else {
            let reason = "expected tokenizer.json or tokenizer.model in the folder".to_owned();
            return Err(Error::Tokenizer { path: folder.to_owned(), reason });
        };
        tokenizer.read_settings(folder, settings)?;
        Ok(tokenizer)
    }

    /// A `tokenizer.json` alone. Its special ids are not known.
    ///
    /// # Errors
    /// The file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(path, &bytes)
    }

    /// A `tokenizer.json` in memory; `path` is for messages.
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(Error::tokenizer(path))?;
        Self::from_inner(path, inner)
    }

    /// Wraps a tokenizer; `path` is for messages.
    pub(crate) fn from_inner(path: &Path, mut inner: tokenizers::Tokenizer) -> Result<Self> {
        // Transformers sets both aside unless a call asks for them.
        inner.with_truncation(None).map_err(Error::tokenizer(path))?;
        inner.with_padding(None);
        let mut model = inner.get_model().clone();
        model.resize_cache(WORDS_REMEMBERED);
        inner.with_model(model);
        let highest = inner.get_vocab(true).into_values().max();
        Ok(Self {
            path: path.to_owned(),
            inner,
            plain: OnceLock::new(),
            special: SpecialIds::default(),
            vocabulary: highest.map_or(0, |id| id as usize + 1),
            rows: usize::MAX,
            chat_template: None,
            settings: Map::new(),
        })
    }

    /// The tokenizer that a GGUF file carries.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        crate::gguf::tokenizer(gguf)
    }

    /// Sets the special ids and the template.
    pub(crate) fn with_special(mut self, special: SpecialIds, chat_template: Option<String>) -> Self {
        self.special = special;
        self.chat_template = chat_template;
        self
    }

    /// Says how many embeddings the model has, so that no id beyond them is ever handed out: ids that begin, pad or stop a
    /// text and have none are forgotten, since no text can hold them.
    ///
    /// # Errors
    /// The end token has no embedding: no training row could end in it.
    pub(crate) fn limit(&mut self, rows: usize) -> Result<()> {
        self.rows = rows;
        let has_one = |id: &u32| (*id as usize) < rows;
        let special = &mut self.special;
        special.bos = special.bos.filter(has_one);
        special.pad = special.pad.filter(has_one);
        special.stops.retain(has_one);
        match special.eos {
            Some(id) if !has_one(&id) => {
                let token = self.inner.id_to_token(id).unwrap_or_default();
                let reason = format!("the end token `{token}` is {id}, but the model has {rows} embeddings");
                Err(Error::Tokenizer { path: self.path.clone(), reason })
            }
            _ => Ok(()),
        }
    }

    /// tokenizer_config.json, chat_template.jinja, generation_config.json and config.json.
    fn read_settings(&mut self, folder: &Path, settings: Map<String, Value>) -> Result<()> {
        let config = optional_object(&folder.join("config.json"))?;
        let generation = optional_object(&folder.join("generation_config.json"))?;
        let id = |name: &str| -> Option<u32> {
            let token = settings.get(&format!("{name}_token")).and_then(token_text);
            let by_text = token.and_then(|token| self.inner.token_to_id(token));
            by_text.or_else(|| ids(config.get(&format!("{name}_token_id"))).first().copied())
        };
        let known = &self.special;
        let (bos, eos, pad) = (id("bos").or(known.bos), id("eos").or(known.eos), id("pad").or(known.pad));
        let mut stops = ids(generation.get("eos_token_id"));
        if stops.is_empty() {
            stops = ids(config.get("eos_token_id"));
        }
        if stops.is_empty() {
            stops.extend(eos);
        }
        self.special = SpecialIds { bos, eos, pad, stops };
        self.add_as_told(&settings)?;
        self.chat_template = read_chat_template(folder, &settings)?;
        self.settings = settings;
        Ok(())
    }

    /// `add_bos_token` and `add_eos_token`, where given, take the place of what tokenizer.json adds, as in
    /// transformers.
    fn add_as_told(&mut self, settings: &Map<String, Value>) -> Result<()> {
        let told = |key: &str| settings.get(key).and_then(Value::as_bool);
        let (bos, eos) = (told("add_bos_token"), told("add_eos_token"));
        if bos.is_none() && eos.is_none() {
            return Ok(());
        }
        let text = |id: Option<u32>| id.and_then(|id| Some((self.inner.id_to_token(id)?, id)));
        let bos = text(self.special.bos.filter(|_| bos == Some(true)));
        let eos = text(self.special.eos.filter(|_| eos == Some(true)));
        let processor = template(bos.as_ref(), eos.as_ref());
        let processor: tokenizers::PostProcessorWrapper =
            serde_json::from_value(processor).map_err(Error::tokenizer(&self.path))?;
        self.inner.with_post_processor(Some(processor));
        Ok(())
    }

    /// The ids of a text, with what the tokenizer adds (a begin token, for many), special tokens in the text
    /// recognised: as `tokenizer(text).input_ids` in transformers.
    ///
    /// # Errors
    /// The text holds a token for which the model has no embedding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids_of(&self.inner, text, true)
    }

    /// As [`Tokenizer::encode`], with nothing added.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        self.ids_of(&self.inner, text, false)
    }

    /// The ids of a text in which nothing is a special token, and to which nothing is added: for what a stranger
    /// wrote.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        self.ids_of(plain, text, false)
    }

    fn ids_of(&self, tokenizer: &tokenizers::Tokenizer, text: &str, add: bool) -> Result<Vec<u32>> {
        let encoding = tokenizer.encode_fast(text, add).map_err(Error::tokenizer(&self.path))?;
        let ids = encoding.get_ids();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            let token = self.inner.id_to_token(id).unwrap_or_default();
            let reason =
                format!("the text has token `{token}` ({id}), but the model has {} embeddings", self.rows);
            return Err(Error::Tokenizer { path: self.path.clone(), reason });
        }
        Ok(ids.to_vec())
    }

    /// A prompt and its response as one text: at most `cutoff` ids, with the end token where there is room for it and
    /// the text does not end in it.
    ///
    /// The prompt's length is that of its own ids. Where a token of the whole reaches over the seam, the ids before
    /// `prompt_length` are not exactly the prompt's: the same holds for the training scripts that this follows.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_training(&self, prompt: &str, response: &str, cutoff: usize) -> Result<TrainingTokens> {
        let ids = self.encode_whole(&format!("{prompt}{response}"), cutoff)?;
        let mut before = self.encode(prompt)?;
        if self.special.eos.is_some() && before.last() == self.special.eos.as_ref() {
            before.pop();
        }
        Ok(TrainingTokens { prompt_length: before.len().min(ids.len()), ids })
    }

    /// The ids of [`Tokenizer::encode_training`] for a text that is prompt and response in one: where the prompt's
    /// length does not matter, half of the work.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_whole(&self, text: &str, cutoff: usize) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        ids.truncate(cutoff);
        if let Some(eos) = self.special.eos
            && ids.len() < cutoff
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// The text of ids; special tokens left out where `skip_special` says so.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(Error::tokenizer(&self.path))
    }

    /// Decodes ids one by one, giving out text as soon as it is certain.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, skip_special, ids: Vec::new(), settled: 0, read: 0 }
    }

    /// The ids with a meaning of their own.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// The id of a token's exact text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token's text, as the vocabulary has it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes of the longest text that a token comes to; at least 1.
    pub fn longest_token(&self) -> usize {
        let bytes = |id| self.inner.decode(&[id], false).map_or(0, |text| text.len());
        (0..self.vocabulary as u32).map(bytes).max().unwrap_or(0).max(1)
    }

    /// One more than the highest id. Models often have a few more embeddings.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The Jinja template of conversations, where the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The special tokens that a chat template knows by name, as in transformers: those that tokenizer_config.json
    /// names (`bos_token`), and where there is none, the known ids' texts.
    pub fn template_tokens(&self) -> Vec<(String, String)> {
        if !self.settings.is_empty() {
            let named = self.settings.iter().filter(|(key, _)| key.ends_with("_token"));
            return named
                .filter_map(|(key, token)| Some((key.clone(), token_text(token)?.to_owned())))
                .collect();
        }
        let special = &self.special;
        [("bos_token", special.bos), ("eos_token", special.eos), ("pad_token", special.pad)]
            .into_iter()
            .filter_map(|(key, id)| Some((key.to_owned(), self.inner.id_to_token(id?)?)))
            .collect()
    }

    /// The `tokenizer.json`.
    ///
    /// # Errors
    /// The tokenizer holds what cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(Error::tokenizer(&self.path))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, which transformers loads, and the template of conversations
    /// as `chat_template.jinja`.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let json = self.inner.to_string(true).map_err(Error::tokenizer(&self.path))?;
        write_atomically(&folder.join("tokenizer.json"), json.as_bytes())?;
        let mut settings = self.settings.clone();
        settings.remove("chat_template");
        if !settings.contains_key("tokenizer_class") {
            settings.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        }
        let special = &self.special;
        for (key, id) in [("bos_token", special.bos), ("eos_token", special.eos), ("pad_token", special.pad)]
        {
            if !settings.contains_key(key)
                && let Some(token) = id.and_then(|id| self.inner.id_to_token(id))
            {
                settings.insert(key.to_owned(), token.into());
            }
        }
        let text = format!("{:#}\n", Value::Object(settings));
        write_atomically(&folder.join("tokenizer_config.json"), text.as_bytes())?;
        if let Some(template) = &self.chat_template {
            write_atomically(&folder.join("chat_template.jinja"), template.as_bytes())?;
        }
        Ok(())
    }
}

/// Decodes ids one by one: see [`Tokenizer::stream`].
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// Ids before this are behind the text given out; some are kept, because a token's text depends on its neighbours.
    settled: usize,
    /// Ids before this have been given out as text.
    read: usize,
}

impl TextStream<'_> {
    /// Takes the next id, and gives the text that has become certain: empty in the middle of a character.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        // A replacement character at the end is most often the first bytes of a character.
        if text.is_empty() || text.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        self.settled = self.read;
        self.read = self.ids.len();
        Ok(text)
    }

    /// The text that is left when no id follows.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        let text = self.pending()?;
        self.settled = self.ids.len();
        self.read = self.ids.len();
        Ok(text)
    }

    fn pending(&self) -> Result<String> {
        let known = self.tokenizer.decode(&self.ids[self.settled..self.read], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids[self.settled..], self.skip_special)?;
        Ok(all.strip_prefix(&known).map_or_else(|| all.clone(), str::to_owned))
    }
}

/// A post-processor that adds a begin and an end token.
pub(crate) fn template(bos: Option<&(String, u32)>, eos: Option<&(String, u32)>) -> Value {
    let special = |token: &Option<&(String, u32)>, kind: u32| {
        token.map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let sequence = |id: &str, kind: u32| Some(json!({"Sequence": {"id": id, "type_id": kind}}));
    let single: Vec<Value> =
        [special(&bos, 0), sequence("A", 0), special(&eos, 0)].into_iter().flatten().collect();
    let second = [special(&bos, 1), sequence("B", 1), special(&eos, 1)];
    let pair: Vec<Value> = single.iter().cloned().chain(second.into_iter().flatten()).collect();
    let tokens: BTreeMap<_, _> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text, json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

/// A JSON object, or an empty one where there is no such file.
fn optional_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    match read_json(path)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::BadKey {
            path: path.to_owned(),
            key: "(the whole file)".to_owned(),
            found: other.to_string().chars().take(40).collect(),
            expected: "a JSON object".to_owned(),
        }),
    }
}

/// A special token in tokenizer_config.json: its text, or an object that has it.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// From chat_template.jinja, or from tokenizer_config.json: a string, or a list in which `default` is the one.
fn read_chat_template(folder: &Path, settings: &Map<String, Value>) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        return fs::read_to_string(&path).map(Some).map_err(Error::io(&path));
    }
    let template = match settings.get("chat_template") {
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")),
        other => other,
    };
    Ok(template.and_then(Value::as_str).map(str::to_owned))
}
