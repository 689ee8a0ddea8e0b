//! `polypaca chat`: talk to a system in the terminal.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use answer::server::check_names;
use answer::{AnswerModel, Conversation, Decoding, Message, reply};
use anyhow::{Context, anyhow};
use clap::Args;
use engine::Cpu;
use engine::kernels::Kernels;
use instructions::language::Language;
use instructions::template::TemplateChoice;
use judge::gate::GateRules;
use judge::identify::{Identifier, identifier};

use super::answer::Drawing;
use super::serve::{conversation, named};
use super::tune::open;
use crate::device::{Device, FLAG, cuda};
use crate::failure::Failure;
use crate::output::Output;

/// What can be said beside messages.
const HELP: &str = "\
/system NAME     talk to another system, from the beginning
/systems         the systems there are
/language CODE   the language that the gate expects of answers; without CODE, that of each message
/clear           forget what was said
/quit            end; so does the end of the input
//...             a message that begins with a slash";

/// Talks to a base model, or to an adapter on it: a line is a message, and the answer is shown as it is found. Behind it
/// stands what the gate says: whether the answer is in the message's language
#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// The base model: a Hugging Face folder, a GGUF file, or its name on the Hub: owner/name
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// PEFT folders on it, each with a name for `/system NAME`; the first one answers to begin with
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., value_parser = named)]
    adapter: Vec<(String, PathBuf)>,

    /// What the base model is called; its folder's name unless given
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,

    /// The system that answers to begin with
    #[arg(long, value_name = "NAME")]
    system: Option<String>,

    /// chat (the model's own), alpaca, stanford-alpaca or a file; the model's own, and Alpaca's where it has none,
    /// unless given
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<TemplateChoice>,

    /// Most new tokens of an answer, the end token included
    #[arg(long, value_name = "N", default_value_t = Decoding::default().new_tokens)]
    new_tokens: usize,

    /// No n-gram of this many tokens occurs twice; 0: any may
    #[arg(long, value_name = "N", default_value_t = Decoding::greedy().no_repeat_ngram)]
    no_repeat_ngram: usize,

    /// Scores of tokens that are there already are divided by this; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = Decoding::greedy().repetition_penalty)]
    repetition_penalty: f32,

    #[command(flatten)]
    drawing: Drawing,

    /// A fastText model for the gate, .bin or .ftz; the embedded lingua unless given
    #[arg(long, value_name = "FILE")]
    lid: Option<PathBuf>,

    /// The language that the gate expects of answers; each message's own, as it is identified, unless given
    #[arg(long, value_name = "CODE")]
    language: Option<Language>,

    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

/// Who can be talked to.
struct Talker {
    name: String,
    adapter: Option<usize>,
    conversation: Conversation,
}

/// A conversation under way.
struct Talk<'m, K: Kernels> {
    model: &'m AnswerModel<K>,
    talkers: Vec<Talker>,
    /// The one that answers.
    talker: usize,
    decoding: Decoding,
    identifier: Box<dyn Identifier>,
    language: Option<Language>,
    messages: Vec<Message>,
}

impl Chat {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match self.device {
            Device::Cpu => self.run_on(Cpu, output),
            Device::Cuda => self.run_on(cuda(FLAG, output)?, output),
        }
    }

    fn run_on<K: Kernels>(self, kernels: K, output: &Output) -> Result<ExitCode, Failure> {
        let decoding = Decoding {
            new_tokens: self.new_tokens,
            no_repeat_ngram: self.no_repeat_ngram,
            repetition_penalty: self.repetition_penalty,
            sample: self.drawing.sampling(),
            ..Decoding::greedy()
        };
        decoding.check().map_err(|fault| Failure::wrong_input(anyhow!("decoding: {fault}")))?;
        let identifier = identifier(self.lid.as_deref(), None).map_err(Failure::wrong_input)?;
        let base = open(&self.model, output)?;
        let name = self.base_name.clone().unwrap_or_else(|| base.name());
        let names = self.adapter.iter().map(|(name, _)| name.as_str());
        check_names(std::iter::once(name.as_str()).chain(names)).map_err(Failure::wrong_input)?;
        let mut model = AnswerModel::load(kernels, base, &[]).map_err(Failure::wrong_input)?;
        let template = self.template.as_ref();
        let mut talkers =
            vec![Talker { name, adapter: None, conversation: conversation(template, None, &model)? }];
        for (name, folder) in &self.adapter {
            let adapter = model.add_adapter(name, folder).map_err(Failure::wrong_input)?;
            let conversation = conversation(template, Some(folder), &model)?;
            talkers.push(Talker { name: name.clone(), adapter: Some(adapter), conversation });
        }
        let mut talk = Talk {
            model: &model,
            talker: usize::from(talkers.len() > 1),
            talkers,
            decoding,
            identifier,
            language: self.language,
            messages: Vec::new(),
        };
        if let Some(system) = &self.system {
            talk.turn_to(system).map_err(Failure::wrong_input)?;
        }
        talk.run(output).map_err(Failure::failed)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The probability from which a message's language is taken for certain.
const CERTAIN: f32 = 0.5;

impl<K: Kernels> Talk<'_, K> {
    fn run(&mut self, output: &Output) -> anyhow::Result<()> {
        let terminal = stdin().is_terminal();
        if terminal {
            let name = &self.talkers[self.talker].name;
            output.note(format!("{name} answers. /help tells what else there is."));
        }
        let mut line = String::new();
        loop {
            if terminal {
                // A terminal that takes no messages may still read.
                let _ = write!(stderr(), "> ").and_then(|()| stderr().flush());
            }
            line.clear();
            if stdin().lock().read_line(&mut line).context("standard input")? == 0 {
                return Ok(());
            }
            let text = line.trim();
            match text.strip_prefix('/').filter(|rest| !rest.starts_with('/')) {
                Some("quit") => return Ok(()),
                // What goes wrong in a turn does not end the talk.
                Some(command) => {
                    self.obey(command, output).unwrap_or_else(|error| output.warning(error.to_string()));
                }
                None if text.is_empty() => {}
                None => {
                    let text = if text.starts_with("//") { &text[1..] } else { text };
                    match self.say(text, output) {
                        Err(error) if error.is::<std::io::Error>() => return Err(error),
                        Err(error) => {
                            self.messages.pop();
                            output.warning(format!("{error:#}"));
                        }
                        Ok(()) => {}
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: &str, output: &Output) -> anyhow::Result<()> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, argument.trim()) {
            ("system", argument) if !argument.is_empty() => self.turn_to(argument)?,
            ("systems", "") => {
                for (place, talker) in self.talkers.iter().enumerate() {
                    let mark = if place == self.talker { "*" } else { " " };
                    output.note(format!("{mark} {}", talker.name));
                }
            }
            ("language", "") => self.language = None,
            ("language", code) => self.language = Some(code.parse()?),
            ("clear", "") => self.messages.clear(),
            ("help", "") => output.note(HELP),
            _ => return Err(anyhow!("/{command} is not known; /help tells what is")),
        }
        Ok(())
    }

    /// Has another system answer, from the beginning: what one has said is not another's.
    fn turn_to(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(place) = self.talkers.iter().position(|talker| talker.name == name) else {
            let names: Vec<&str> = self.talkers.iter().map(|talker| talker.name.as_str()).collect();
            return Err(anyhow!("there is no system {name}; expected one of {}", names.join(", ")));
        };
        self.talker = place;
        self.messages.clear();
        Ok(())
    }

    fn say(&mut self, text: &str, output: &Output) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", text));
        self.make_room(output)?;
        let talker = &self.talkers[self.talker];
        let mut show = |text: &str| -> anyhow::Result<()> {
            let mut out = stdout().lock();
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        };
        let answer = reply(
            self.model,
            talker.adapter,
            &talker.conversation,
            &self.messages,
            &self.decoding,
            &mut show,
        )?;
        show("\n")?;
        output.note(self.verdict(text, &answer.text));
        self.messages.push(Message::new("assistant", answer.text));
        Ok(())
    }

    /// Forgets the oldest turns where all of them and an answer are more than the model was made for.
    fn make_room(&mut self, output: &Output) -> anyhow::Result<()> {
        let talker = &self.talkers[self.talker];
        let most = self.model.decoder.config.max_positions;
        let mut forgotten = 0;
        while self.messages.len() > 2 {
            let tokens = talker.conversation.tokens(self.model.base.tokenizer(), &self.messages)?;
            if tokens.len() + self.decoding.new_tokens <= most {
                break;
            }
            self.messages.drain(..2);
            forgotten += 1;
        }
        if forgotten > 0 {
            output.warning(format!(
                "the oldest {forgotten} turns are forgotten: the model reads {most} tokens"
            ));
        }
        Ok(())
    }

    /// What the gate says of an answer. A message of a word or two may be in any of several languages: then it says
    /// nothing.
    fn verdict(&self, asked: &str, answer: &str) -> String {
        let rules = GateRules::default();
        let expected = match &self.language {
            Some(language) => language.clone(),
            None => {
                let message = rules.identify(&*self.identifier, asked);
                if message.probability < CERTAIN {
                    let answer = rules.identify(&*self.identifier, answer);
                    return format!(
                        "the answer is in {} ({:.2}); which was expected is not certain, the message is in {} ({:.2}): \
                         /language CODE says it",
                        answer.language.code(),
                        answer.probability,
                        message.language.code(),
                        message.probability
                    );
                }
                message.language
            }
        };
        let gated = rules.check(&*self.identifier, answer, &expected);
        format!(
            "gate {}: the answer is in {} ({:.2}), expected was {}",
            u8::from(gated.passes),
            gated.identified.language.code(),
            gated.identified.probability,
            expected.code()
        )
    }
}
