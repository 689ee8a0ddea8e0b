//! OpenAI's chat completions: where they are asked for, and how an answer is read.

use serde_json::Value;

use crate::asking::{Billed, Outcome, excerpt, failed};
use crate::cache::Answer;
use crate::error::EndpointError;
use crate::settings::base_url;

/// Tokens that a chat format may add around a message, on the safe side.
pub const TOKENS_AROUND: u64 = 64;

/// The message in a chat completion.
pub fn read_answer(body: &[u8]) -> Outcome {
    if body.iter().all(u8::is_ascii_whitespace) {
        return failed("empty answer", Billed::Perhaps);
    }
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return failed("the answer is not JSON", Billed::Perhaps);
    };
    let message = &answer["choices"][0]["message"];
    let content = &message["content"];
    let text = match content {
        Value::String(text) => text.clone(),
        // Some endpoints send the text in parts.
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => match (message["refusal"].as_str(), answer["error"]["message"].as_str()) {
            (Some(refusal), _) => refusal.to_string(),
            (None, Some(error)) => {
                return failed(&format!("the endpoint says: {}", excerpt(error.as_bytes())), Billed::Perhaps);
            }
            // A message that says nothing, as of a model that spent all its tokens on thinking.
            (None, None) if message.is_object() => String::new(),
            (None, None) => return failed("the answer is no chat completion", Billed::Perhaps),
        },
    };
    let tokens = |name: &str| answer["usage"][name].as_u64();
    Outcome::Answered(Answer {
        text,
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
    })
}

/// Where chat completions are asked for, given a base URL with or without its version.
///
/// # Errors
/// [`EndpointError::Endpoint`].
pub fn completions_url(endpoint: &str) -> Result<reqwest::Url, EndpointError> {
    let mut url = base_url(endpoint, "/chat/completions")?;
    let is_version = |part: &str| {
        part.strip_prefix('v')
            .and_then(|rest| rest.chars().next())
            .is_some_and(|first| first.is_ascii_digit())
    };
    let path = url.path().trim_end_matches('/').to_string();
    let version = if path.split('/').any(is_version) { "" } else { "/v1" };
    url.set_path(&format!("{path}{version}/chat/completions"));
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_have_its_version_or_not() {
        for (base, full) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
            ("https://openrouter.ai/api", "https://openrouter.ai/api/v1/chat/completions"),
            ("https://host/v1beta/openai/", "https://host/v1beta/openai/chat/completions"),
        ] {
            assert_eq!(completions_url(base).unwrap().as_str(), full);
        }
        for wrong in ["", "localhost:8000", "ftp://host", "https://user:key@host"] {
            assert!(completions_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_read_in_every_form() {
        let text = |body: &str| match read_answer(body.as_bytes()) {
            Outcome::Answered(answer) => Ok(answer.text),
            Outcome::Failed { reason, .. } => Err(reason),
            _ => panic!("neither"),
        };
        assert_eq!(text(r#"{"choices":[{"message":{"content":"a"}}]}"#), Ok("a".into()));
        assert_eq!(
            text(r#"{"choices":[{"message":{"content":[{"text":"a"},{"text":"b"}]}}]}"#),
            Ok("ab".into())
        );
        assert_eq!(text(r#"{"choices":[{"message":{"content":null}}]}"#), Ok(String::new()));
        assert_eq!(text(" \n"), Err("empty answer".into()));
        assert_eq!(text(r#"{"choices":[{"mess"#), Err("the answer is not JSON".into()));
        assert_eq!(text("[1]"), Err("the answer is no chat completion".into()));
        assert_eq!(text(r#"{"error":{"message":"too  busy"}}"#), Err("the endpoint says: too busy".into()));
    }
}
