//! Prompt templates: the exact text that stands before a response.
//!
//! The authors' two ways differ in white space: the LoRA script's template (alpaca-lora's) ends in a line feed after
//! `### Response:`, the full-parameter script's (Stanford Alpaca's) ends with the colon. Both are here by name:
//! `alpaca` and `stanford-alpaca`. The preset `paper` uses each with its method; `fair` uses `alpaca` for both.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::files::read_bytes;
use crate::prompt::Prompt;
use crate::record::Record;

/// Anything that asks for a response: a record, or a prompt.
pub trait Instruction {
    /// What is asked.
    fn instruction(&self) -> &str;
    /// What it is asked about; empty where there is nothing.
    fn input(&self) -> &str;
}

impl Instruction for Record {
    fn instruction(&self) -> &str {
        &self.instruction
    }
    fn input(&self) -> &str {
        &self.input
    }
}

impl Instruction for Prompt {
    fn instruction(&self) -> &str {
        &self.prompt
    }
    fn input(&self) -> &str {
        ""
    }
}

/// Renders one user turn with a model's own chat template, up to where the assistant's words start.
///
/// The `model` room implements it; a closure `Fn(&str) -> anyhow::Result<String>` does as well.
pub trait ChatRenderer: Send + Sync {
    /// The text before the response to `user`.
    ///
    /// # Errors
    /// Where the model's template does not render.
    fn render(&self, user: &str) -> Result<String>;
}

impl<F: Fn(&str) -> Result<String> + Send + Sync> ChatRenderer for F {
    fn render(&self, user: &str) -> Result<String> {
        self(user)
    }
}

/// A template as a flag or an experiment file names it: `alpaca`, `stanford-alpaca`, `chat`, or a file.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TemplateChoice {
    /// Alpaca's, with a line feed behind `### Response:` (alpaca-lora's form; the default).
    #[default]
    Alpaca,
    /// Alpaca's, ending in `### Response:` (Stanford Alpaca's form).
    StanfordAlpaca,
    /// The model's own chat template.
    Chat,
    /// A file: see [`Template::from_file`].
    File(PathBuf),
}

impl From<String> for TemplateChoice {
    fn from(name: String) -> Self {
        match name.as_str() {
            "alpaca" => Self::Alpaca,
            "stanford-alpaca" => Self::StanfordAlpaca,
            "chat" => Self::Chat,
            _ => Self::File(name.into()),
        }
    }
}

impl FromStr for TemplateChoice {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(name.to_owned().into())
    }
}

impl From<TemplateChoice> for String {
    fn from(choice: TemplateChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for TemplateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alpaca => f.write_str("alpaca"),
            Self::StanfordAlpaca => f.write_str("stanford-alpaca"),
            Self::Chat => f.write_str("chat"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl TemplateChoice {
    /// The template itself. `chat` is the model's own renderer, where it has one.
    ///
    /// # Errors
    /// Where the file cannot be read or used, or `chat` is asked for and the model has none.
    pub fn load(&self, chat: Option<Arc<dyn ChatRenderer>>) -> Result<Template> {
        match self {
            Self::Alpaca => Ok(Template::alpaca()),
            Self::StanfordAlpaca => Ok(Template::stanford_alpaca()),
            Self::Chat => {
                chat.map(Template::Chat).context("template `chat`: this model has no chat template")
            }
            Self::File(path) => Template::from_file(path),
        }
    }
}

/// A template ready to render.
#[derive(Clone)]
pub enum Template {
    /// Text with placeholders, in two forms.
    Text {
        /// For an instruction with an input; has `{instruction}` and `{input}`.
        with_input: String,
        /// For one without; has `{instruction}`.
        without_input: String,
    },
    /// The model's own chat template.
    Chat(Arc<dyn ChatRenderer>),
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { with_input, without_input } => f
                .debug_struct("Text")
                .field("with_input", with_input)
                .field("without_input", without_input)
                .finish(),
            Self::Chat(_) => f.write_str("Chat"),
        }
    }
}

const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides \
    further context. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\
    \n\n### Input:\n{input}\n\n### Response:\n";

const ALPACA_WITHOUT_INPUT: &str = "Below is an instruction that describes a task. Write a response that \
    appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n";

/// alpaca-lora's template file, of which two keys matter here.
#[derive(Deserialize)]
struct TemplateFile {
    prompt_input: String,
    prompt_no_input: String,
}

impl Template {
    /// Alpaca's two forms, ending in a line feed (Taori et al. 2023, as alpaca-lora writes them).
    pub fn alpaca() -> Self {
        Self::Text {
            with_input: ALPACA_WITH_INPUT.to_owned(),
            without_input: ALPACA_WITHOUT_INPUT.to_owned(),
        }
    }

    /// Alpaca's two forms, ending in `### Response:` (as Stanford Alpaca's `train.py` writes them).
    pub fn stanford_alpaca() -> Self {
        Self::Text {
            with_input: ALPACA_WITH_INPUT.trim_end().to_owned(),
            without_input: ALPACA_WITHOUT_INPUT.trim_end().to_owned(),
        }
    }

    /// A template from a file: a text with `{instruction}` and, if inputs are to be seen, `{input}`, kept to the
    /// byte (a final line feed too); or a JSON object with `prompt_input` and `prompt_no_input`, as alpaca-lora's
    /// template files are.
    ///
    /// # Errors
    /// Where it cannot be read, or a placeholder is missing.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = String::from_utf8(read_bytes(path)?)
            .with_context(|| format!("{}: a template must be UTF-8", path.display()))?;
        let (with_input, without_input) = match as_json(&text) {
            Some(json) => {
                let file: TemplateFile = serde_json::from_str(json).with_context(|| {
                    format!(
                        "{}: begins as JSON, but is no object with `prompt_input` and `prompt_no_input`",
                        path.display()
                    )
                })?;
                (file.prompt_input, file.prompt_no_input)
            }
            None => (text.clone(), text),
        };
        for (form, name) in [(&with_input, "prompt_input"), (&without_input, "prompt_no_input")] {
            if !form.contains("{instruction}") {
                bail!("{}: the template ({name}) lacks the placeholder {{instruction}}", path.display());
            }
        }
        if !with_input.contains("{input}") {
            bail!("{}: the template lacks the placeholder {{input}}: inputs would be lost", path.display());
        }
        Ok(Self::Text { with_input, without_input })
    }

    /// The exact text before the response. With a chat template, instruction and input are one user turn, the input
    /// behind an empty line.
    ///
    /// # Errors
    /// Only where a model's chat template does not render.
    pub fn render(&self, item: &impl Instruction) -> Result<String> {
        let (instruction, input) = (item.instruction(), item.input());
        match self {
            Self::Text { with_input, without_input } => {
                let form = if input.is_empty() { without_input } else { with_input };
                Ok(fill(form, instruction, input))
            }
            Self::Chat(renderer) if input.is_empty() => renderer.render(instruction),
            Self::Chat(renderer) => renderer.render(&format!("{instruction}\n\n{input}")),
        }
    }
}

/// The JSON of a template's file, behind a byte-order mark where there is one; none where the file is a text, which may
/// begin with a brace too: an object's first key is quoted.
fn as_json(text: &str) -> Option<&str> {
    let json = text.strip_prefix('\u{FEFF}').unwrap_or(text).trim_start();
    let first = json.strip_prefix('{')?.trim_start();
    first.starts_with('"').then_some(json)
}

/// Fills both placeholders in one pass: an instruction that itself says `{input}` stays as it is.
fn fill(form: &str, instruction: &str, input: &str) -> String {
    let mut text = String::with_capacity(form.len() + instruction.len() + input.len());
    let mut rest = form;
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{instruction}") {
            text.push_str(instruction);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{input}") {
            text.push_str(input);
            rest = after;
        } else {
            text.push('{');
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Language;

    fn record(instruction: &str, input: &str) -> Record {
        Record {
            id: "0".to_owned(),
            language: Language::english(),
            instruction: instruction.to_owned(),
            input: input.to_owned(),
            output: "unused".to_owned(),
            origin: None,
        }
    }

    #[test]
    fn alpaca_is_kept_to_the_byte() {
        let template = Template::alpaca();
        assert_eq!(
            template.render(&record("Add.", "1, 2")).expect("text"),
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\
             \n\n### Response:\n"
        );
        assert_eq!(
            template.render(&record("Say {input}.", "")).expect("text"),
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nSay {input}.\n\n### Response:\n"
        );
        let ending = Template::stanford_alpaca().render(&record("Add.", "1, 2")).expect("text");
        assert!(ending.ends_with("\n\n### Response:"));
    }

    #[test]
    fn a_file_is_kept_to_the_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("template.txt");
        std::fs::write(&path, "{x} {instruction}|{input}>\n").expect("written");
        let template = TemplateChoice::from(path.display().to_string()).load(None).expect("loaded");
        assert_eq!(template.render(&record("a{input}", "b")).expect("text"), "{x} a{input}|b>\n");
        for beginning in ["{", "{ ", "\n{\n    ", "{\r\n\t", "\u{FEFF}{\r\n"] {
            let keys = r#""prompt_input": "{instruction}+{input}", "prompt_no_input": "{instruction}"}"#;
            std::fs::write(&path, format!("{beginning}{keys}")).expect("written");
            let template = Template::from_file(&path).expect("loaded");
            assert_eq!(template.render(&record("a", "")).expect("text"), "a", "{beginning:?}");
            assert_eq!(template.render(&record("a", "b")).expect("text"), "a+b", "{beginning:?}");
        }
        std::fs::write(&path, "{ \"prompt\": \"{instruction}{input}\" }").expect("written");
        let error = Template::from_file(&path).expect_err("other keys");
        assert!(error.to_string().contains("begins as JSON"), "{error}");
        std::fs::write(&path, "nothing").expect("written");
        let error = Template::from_file(&path).expect_err("no placeholder");
        assert!(error.to_string().contains("{instruction}"), "{error}");
    }

    #[test]
    fn chat_takes_the_models_renderer() {
        let renderer = Arc::new(|user: &str| Ok(format!("<user>{user}<assistant>")));
        let template = TemplateChoice::Chat.load(Some(renderer)).expect("loaded");
        assert_eq!(template.render(&record("a", "b")).expect("text"), "<user>a\n\nb<assistant>");
        assert!(TemplateChoice::Chat.load(None).is_err());
    }
}
