//! Whoever is asked in text and answers in text: an endpoint, or a model on this machine.

use std::sync::Arc;

pub use endpoint::asking::{Check, Reply};
use instructions::prompt::Response;

use crate::judging::{self, Judge, Progress, Verdict};
use crate::prompt_template::PromptTemplate;

/// Someone who answers prompts, one question a prompt, with no history.
pub trait Asker: Sync {
    /// Its name in tables.
    fn name(&self) -> String;

    /// Hash of all that its replies depend on beside the prompt: model, sampling, address.
    fn setting(&self) -> String;

    /// Asks the prompts in any order; hands each reply over, with the prompt's index, as soon as it is there.
    ///
    /// # Errors
    /// What stops the whole asking. What concerns one prompt is [`Reply::Unanswered`].
    fn ask(
        &self,
        prompts: &[String],
        check: &Arc<Check>,
        progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Reply) -> anyhow::Result<()>,
    ) -> anyhow::Result<()>;
}

/// Asks for a rating of each response, and reads it.
pub(crate) fn rate_by_asking(
    asker: &dyn Asker,
    template: &PromptTemplate,
    responses: &[Response],
    progress: &dyn Progress,
    give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let prompts: Vec<String> =
        responses.iter().map(|response| judging::shown_prompt(template, response)).collect();
    let shown = responses.to_vec();
    let check: Arc<Check> = Arc::new(move |index, reply| match judging::verdict_of(&shown[index], reply).1 {
        None => Ok(()),
        Some(error) => Err(error.to_string()),
    });
    asker.ask(&prompts, &check, progress, &mut |index, reply| match reply {
        Reply::Text(text) => give(index, judging::verdict_of(&responses[index], &text).0),
        Reply::Unanswered { reason, said } => give(index, Verdict { rating: Err(reason), explanation: said }),
    })
}

/// A judge made of whoever can be asked.
pub struct TextJudge<A> {
    /// Who is asked.
    pub asker: A,
    /// What is asked.
    pub template: PromptTemplate,
}

impl<A: Asker> Judge for TextJudge<A> {
    fn name(&self) -> String {
        self.asker.name()
    }

    fn setting(&self) -> String {
        judging::short_hash(&["text", &self.asker.setting(), self.template.text()])
    }

    fn rate(
        &self,
        responses: &[Response],
        progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        rate_by_asking(&self.asker, &self.template, responses, progress, give)
    }
}

/// A model on this machine, by whatever means it answers. It answers the same whenever it is asked, so it is asked
/// once.
pub struct LocalAsker<Answer> {
    /// Its name in tables.
    pub name: String,
    /// What its replies depend on beside the prompt: the weights and the decoding.
    pub setting: String,
    /// Answers prompts, in their order.
    pub answer: Answer,
    /// How many prompts it is given at once: what a kill may lose.
    pub batch: usize,
}

impl<Answer> Asker for LocalAsker<Answer>
where
    Answer: Fn(&[String]) -> anyhow::Result<Vec<String>> + Sync,
{
    fn name(&self) -> String {
        self.name.clone()
    }

    fn setting(&self) -> String {
        judging::short_hash(&["local", &self.setting])
    }

    fn ask(
        &self,
        prompts: &[String],
        check: &Arc<Check>,
        _progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Reply) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let size = self.batch.max(1);
        for (number, batch) in prompts.chunks(size).enumerate() {
            let replies = (self.answer)(batch)?;
            let (name, expected, found) = (&self.name, batch.len(), replies.len());
            anyhow::ensure!(found == expected, "expected {expected} replies of {name}, found {found}");
            for (index, text) in (number * size..).zip(replies) {
                let reply = match check(index, &text) {
                    Ok(()) => Reply::Text(text),
                    Err(reason) => Reply::Unanswered { reason, said: text },
                };
                give(index, reply)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judging::{Silent, judge_responses};

    #[test]
    fn a_model_on_this_machine_is_asked_in_batches_and_what_holds_no_rating_is_unrated() {
        let folder = tempfile::tempdir().unwrap();
        let responses: Vec<Response> = (0..5)
            .map(|id| {
                let line = serde_json::json!({
                    "id": id.to_string(), "language": "fi", "prompt": "?", "response": format!("Vastaus {id}"),
                    "system": "s"
                });
                serde_json::from_value(line).unwrap()
            })
            .collect();
        let answer = |prompts: &[String]| {
            assert!(prompts.len() <= 2);
            let reply = |prompt: &String| {
                if prompt.contains("Vastaus 3") { "No idea.".to_owned() } else { "Good. [[2]]".to_owned() }
            };
            Ok(prompts.iter().map(reply).collect())
        };
        let asker = LocalAsker { name: "small".into(), setting: "weights".into(), answer, batch: 2 };
        let judge = TextJudge { asker, template: PromptTemplate::default() };
        let judged = judge_responses(&judge, &responses, &folder.path().join("out.jsonl"), &Silent).unwrap();
        let marks: Vec<Option<f64>> = judged.ratings.iter().map(|rating| rating.rating).collect();
        assert_eq!(marks, [Some(2.0), Some(2.0), Some(2.0), None, Some(2.0)]);
        assert_eq!(judged.unrated, [("no [[n]] in the reply".to_owned(), 1)]);
    }
}
