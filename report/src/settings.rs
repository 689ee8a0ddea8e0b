//! How systems were tuned and answered, in words, from the settings that the records resolve.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a tuning's settings say, in the order in which they are told.
const TUNING: [(&str, &str); 15] = [
    ("rank", "rank {}"),
    ("alpha", "alpha {}"),
    ("batch", "batches of {}"),
    ("length.epochs", "{} epochs"),
    ("length.updates", "{} updates"),
    ("cutoff", "at most {} tokens"),
    ("learning_rate", "learning rate {}"),
    ("warmup", "warm-up {}"),
    ("schedule", "a {} schedule"),
    ("weight_decay", "weight decay {}"),
    ("dropout", "dropout {}"),
    ("supervise", "the loss over {} tokens"),
    ("keep", "the {} checkpoint kept"),
    ("clip", "gradients clipped at {}"),
    ("template", "the template {}"),
];

/// Settings that only an adapter has.
const OF_ADAPTERS: [&str; 3] = ["rank", "alpha", "dropout"];

/// One sentence a method on tuning, and one on responses, or one a method where they differ. Nothing where the records
/// resolve nothing.
pub(crate) fn in_words(methods: &[String], settings: &BTreeMap<String, Value>) -> String {
    let mut sentences = Vec::new();
    let mut responses: Vec<(&str, String)> = Vec::new();
    for method in methods {
        let resolved = Resolved { settings, method };
        let tuned = resolved.tuning();
        if !tuned.is_empty() {
            sentences.push(format!("By {method}: {tuned}."));
        }
        responses.push((method, resolved.answering()));
    }
    responses.retain(|(_, answered)| !answered.is_empty());
    let alike = responses.windows(2).all(|pair| pair[0].1 == pair[1].1);
    for (method, answered) in &responses[..if alike { responses.len().min(1) } else { responses.len() }] {
        let whose = if alike { String::new() } else { format!(" after {method}") };
        sentences.push(format!("Responses{whose}: {answered}."));
    }
    sentences.join(" ")
}

/// The resolved settings of a method.
struct Resolved<'a> {
    settings: &'a BTreeMap<String, Value>,
    method: &'a str,
}

impl Resolved<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        self.settings.get(&format!("resolved.{}.{name}", self.method))
    }

    fn words(&self, name: &str, words: &str) -> Option<String> {
        let value = match self.value(name)? {
            // The shortest form: some are kept in 32 bits, and would be told with the digits of 64.
            Value::Number(number) if number.is_f64() => (number.as_f64()? as f32).to_string(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(words.replace("{}", &value))
    }

    fn is(&self, name: &str, number: f64) -> bool {
        self.value(name).and_then(Value::as_f64) == Some(number)
    }

    fn tuning(&self) -> String {
        let told = TUNING.iter().filter(|(name, _)| self.method == "lora" || !OF_ADAPTERS.contains(name));
        told.filter_map(|(name, words)| self.words(name, words)).collect::<Vec<_>>().join(", ")
    }

    fn answering(&self) -> String {
        let sampled = self.value("answer.sample.temperature").is_some();
        let beams = !sampled && !self.is("answer.beams", 1.0);
        let told = [
            ("sample.temperature", "tokens drawn at temperature {}", sampled),
            (
                "sample.top_p",
                "of the best that reach {} together",
                sampled && !self.is("answer.sample.top_p", 1.0),
            ),
            ("sample.top_k", "of the best {}", sampled && !self.is("answer.sample.top_k", 0.0)),
            ("beams", "{} beams", beams),
            ("beams", "the best token each time", !sampled && !beams),
            ("length_penalty", "length penalty {}", beams && !self.is("answer.length_penalty", 1.0)),
            ("no_repeat_ngram", "no {} tokens twice", !self.is("answer.no_repeat_ngram", 0.0)),
            ("repetition_penalty", "repetition penalty {}", !self.is("answer.repetition_penalty", 1.0)),
            ("new_tokens", "at most {} new tokens", true),
            (
                "stops",
                "ended by {}",
                self.value("answer.stops").is_some_and(|stops| stops != &Value::Array(Vec::new())),
            ),
        ];
        let told = told.iter().filter(|(.., holds)| *holds);
        told.filter_map(|(name, words, _)| self.words(&format!("answer.{name}"), words))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(methods: &[&str], settings: &[(&str, Value)]) -> String {
        let methods: Vec<String> = methods.iter().map(|method| (*method).to_owned()).collect();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        in_words(&methods, &settings.collect())
    }

    #[test]
    fn settings_are_told_as_they_were_given() {
        let both = told(
            &["lora", "full"],
            &[
                ("resolved.lora.rank", json!(8)),
                ("resolved.lora.dropout", json!(0.05_f32)),
                ("resolved.lora.learning_rate", json!(2e-8)),
                ("resolved.lora.answer.beams", json!(4)),
                ("resolved.lora.answer.repetition_penalty", json!(1.0)),
                ("resolved.full.rank", json!(8)),
                ("resolved.full.supervise", json!("response")),
                ("resolved.full.answer.beams", json!(1)),
                ("resolved.full.answer.repetition_penalty", json!(1.1_f32)),
                ("resolved.full.answer.no_repeat_ngram", json!(0)),
                ("resolved.full.answer.stops", json!(["###"])),
            ],
        );
        assert_eq!(
            both,
            "By lora: rank 8, learning rate 0.00000002, dropout 0.05. By full: the loss over response tokens. Responses \
             after lora: 4 beams. Responses after full: the best token each time, repetition penalty 1.1, ended by \
             [\"###\"]."
        );
        let drawn = [
            ("resolved.lora.answer.sample.temperature", json!(0.7_f32)),
            ("resolved.lora.answer.sample.top_p", json!(1.0)),
            ("resolved.lora.answer.sample.top_k", json!(40)),
            ("resolved.lora.answer.beams", json!(1)),
        ];
        assert_eq!(told(&["lora"], &drawn), "Responses: tokens drawn at temperature 0.7, of the best 40.");
        assert_eq!(told(&["lora"], &[]), "");
    }
}
