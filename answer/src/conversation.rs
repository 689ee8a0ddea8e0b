//! A conversation as the text that a model goes on from: by the model's own chat template, or by Alpaca's.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use instructions::template::{ChatRenderer, Template, TemplateChoice};
use minijinja::{Environment, ErrorKind, context};
use model::Tokenizer;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The name under which an environment keeps the template.
const NAME: &str = "chat template";

/// The template of a choice; `chat` is the tokenizer's own.
///
/// # Errors
/// The template's file cannot be used, or the tokenizer has no chat template, or there is no tokenizer.
pub fn template(choice: &TemplateChoice, tokenizer: Option<&Tokenizer>) -> Result<Template> {
    let own =
        tokenizer.filter(|tokenizer| *choice == TemplateChoice::Chat && tokenizer.chat_template().is_some());
    let chat = own.map(Conversation::of_model).transpose()?;
    choice.load(chat.map(|chat| Arc::new(chat) as Arc<dyn ChatRenderer>))
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; a template may know more.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of this role.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// How conversations become prompts.
pub enum Conversation {
    /// A Jinja template, as transformers renders it. Nothing is added to its tokens.
    Jinja(Box<Environment<'static>>),
    /// A template of instruction and response: turns follow one another.
    Instruction(Template),
}

impl Conversation {
    /// The model's own template, where it has one, and Alpaca's otherwise.
    ///
    /// # Errors
    /// The model's template is no Jinja.
    pub fn of_model(tokenizer: &Tokenizer) -> Result<Self> {
        match tokenizer.chat_template() {
            Some(source) => Self::jinja(source, tokenizer),
            None => Ok(Self::Instruction(Template::alpaca())),
        }
    }

    /// The template that lies in an adapter's folder, where there is one.
    ///
    /// # Errors
    /// It cannot be read, or is no Jinja.
    pub fn of_adapter(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        if !path.is_file() {
            return Ok(None);
        }
        let place = || path.display().to_string();
        let source = std::fs::read_to_string(&path).with_context(place)?;
        Self::jinja(&source, tokenizer).with_context(place).map(Some)
    }

    /// A Jinja template with what transformers gives templates: trimmed blocks, Python's methods, `raise_exception`,
    /// `strftime_now`, and a `tojson` that writes as Python does.
    ///
    /// # Errors
    /// It is no Jinja.
    pub fn jinja(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut environment = Environment::new();
        let mut syntax = minijinja::syntax::SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(false);
        environment.set_syntax(syntax.build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        for (name, token) in tokenizer.template_tokens() {
            environment.add_global(name, token);
        }
        environment.add_template_owned(NAME, without_generation_blocks(source)?).context(NAME)?;
        Ok(Self::Jinja(Box::new(environment)))
    }

    /// The text up to where the assistant's words start.
    ///
    /// # Errors
    /// The template does not render, or refuses the messages; or there is none.
    pub fn text(&self, messages: &[Message]) -> Result<String> {
        match self {
            Self::Jinja(environment) => {
                let template = environment.get_template(NAME)?;
                let messages = minijinja::Value::from(minijinja::value::Serde(messages));
                template
                    .render(context! { messages, add_generation_prompt => true })
                    .map_err(|error| anyhow!("the model's chat template: {error}"))
            }
            Self::Instruction(template) => turns(template, messages),
        }
    }

    /// The prompt's tokens.
    ///
    /// # Errors
    /// As for [`Conversation::text`], or the text holds a token for which the model has no embedding.
    pub fn tokens(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        let text = self.text(messages)?;
        match self {
            Self::Jinja(_) => Ok(tokenizer.encode_bare(&text)?),
            Self::Instruction(_) => open_end(tokenizer, tokenizer.encode(&text)?),
        }
    }
}

impl ChatRenderer for Conversation {
    fn render(&self, user: &str) -> Result<String> {
        self.text(&[Message::new("user", user)])
    }
}

/// Tokens without the end token that some tokenizers add.
pub(crate) fn open_end(tokenizer: &Tokenizer, mut tokens: Vec<u32>) -> Result<Vec<u32>> {
    let eos = tokenizer.special().eos;
    if eos.is_some() && tokens.last() == eos.as_ref() && tokens.len() > 1 {
        tokens.pop();
    }
    Ok(tokens)
}

/// Each user's turn as an instruction, each of the assistant's as its response; what the system says stands before the
/// turn that follows it.
fn turns(template: &Template, messages: &[Message]) -> Result<String> {
    let (mut text, mut before) = (String::new(), String::new());
    let mut asked = false;
    for message in messages {
        match message.role.as_str() {
            "system" | "developer" => before += &format!("{}\n\n", message.content),
            "user" => {
                let prompt = serde_json::json!({"id": "", "language": "en", "prompt": message.content});
                let prompt: instructions::prompt::Prompt = serde_json::from_value(prompt)?;
                text += &std::mem::take(&mut before);
                text += &template.render(&prompt)?;
                asked = true;
            }
            "assistant" => {
                text += &format!("{}\n\n", message.content);
                asked = false;
            }
            role => return Err(anyhow!("a message's role is `{role}`; expected system, user or assistant")),
        }
    }
    if !asked {
        return Err(anyhow!("the last message is not the user's"));
    }
    if !before.is_empty() {
        return Err(anyhow!(
            "a system message is behind the user's last; expected it before, as the template has no place for it there"
        ));
    }
    Ok(text)
}

/// transformers marks the assistant's words by blocks of a tag of its own, which change nothing here.
fn without_generation_blocks(source: &str) -> Result<String> {
    let begin = Regex::new(r"\{%(-?)\s*generation\s*(-?)%\}")?;
    let end = Regex::new(r"\{%(-?)\s*endgeneration\s*(-?)%\}")?;
    let source = begin.replace_all(source, "{%$1 if true $2%}");
    Ok(end.replace_all(&source, "{%$1 endif $2%}").into_owned())
}

/// The time on the spot, as C's `strftime` writes it.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// As Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: minijinja::Value, options: minijinja::value::Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(&value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut text = String::new();
    dump(&value, indent, 0, &mut text);
    Ok(text)
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent * depth));
        }
    };
    let next = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                out.push_str(if place > 0 { next } else { "" });
                line(out, depth + 1);
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(items) if !items.is_empty() => {
            out.push('{');
            for (place, (key, item)) in items.iter().enumerate() {
                out.push_str(if place > 0 { next } else { "" });
                line(out, depth + 1);
                out.push_str(&format!("{}: ", Value::from(key.as_str())));
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped/model");
        Tokenizer::from_folder(&folder).unwrap()
    }

    #[test]
    fn a_template_has_what_transformers_gives_it() {
        let source = "{%- for message in messages %}\n    {% generation %}{{ message.content.strip() }}{% endgeneration %}\n\
            {{- message | tojson }}\n{% endfor %}{{ strftime_now('%Y')[:2] }}{{ bos_token is undefined }}";
        let conversation = Conversation::jinja(source, &tokenizer()).unwrap();
        let text = conversation.text(&[Message::new("user", " <å> ")]).unwrap();
        assert_eq!(text, "<å>{\"role\": \"user\", \"content\": \" <å> \"}\n20True");
        let refuses = Conversation::jinja("{{ raise_exception('no system here') }}", &tokenizer()).unwrap();
        assert!(refuses.text(&[]).unwrap_err().to_string().contains("no system here"));
    }

    #[test]
    fn json_is_written_as_python_does() {
        let mut text = String::new();
        dump(&serde_json::json!({"a": [1, "ü"], "b": {}}), Some(2), 0, &mut text);
        assert_eq!(text, "{\n  \"a\": [\n    1,\n    \"ü\"\n  ],\n  \"b\": {}\n}");
    }

    #[test]
    fn what_the_system_says_stands_before_a_turn_or_is_refused() {
        let alpaca = Conversation::Instruction(Template::alpaca());
        let (system, user) = (Message::new("system", "Be brief."), Message::new("user", "Name a sea."));
        let one = alpaca.text(std::slice::from_ref(&user)).unwrap();
        assert_eq!(alpaca.text(&[system.clone(), user.clone()]).unwrap(), format!("Be brief.\n\n{one}"));
        let error = alpaca.text(&[user, system]).unwrap_err().to_string();
        assert!(error.contains("behind the user's last"), "{error}");
    }

    #[test]
    fn alpaca_takes_turns() {
        let alpaca = Conversation::Instruction(Template::alpaca());
        let one = alpaca.text(&[Message::new("user", "Name a sea.")]).unwrap();
        assert!(one.ends_with("### Instruction:\nName a sea.\n\n### Response:\n"));
        let said = [Message::new("user", "Name a sea."), Message::new("assistant", "The Baltic.")];
        assert!(alpaca.text(&said).is_err());
        let more = [said.as_slice(), &[Message::new("user", "Another.")]].concat();
        assert_eq!(
            alpaca.text(&more).unwrap(),
            format!("{one}The Baltic.\n\n{}", one.replace("Name a sea.", "Another."))
        );
    }
}
