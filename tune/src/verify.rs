//! Self-tests of a model and its tokenizer, before money is spent on tuning it.

use engine::decoder::backward::Trained;
use engine::decoder::weights::Precision;
use engine::decoder::{Adapter, Decoder, Weights};
use engine::kernels::{DropoutKey, Kernels};
use engine::{Batch, Cpu, Workspace, WorkspacePlan};
use instructions::record::Record;
use instructions::template::Template;
use model::BaseModel;
use model::adapter::{Adapter as PeftAdapter, AdapterConfig};

use crate::error::{Error, Result};
use crate::settings::{Method, Preset, Settings};

/// What a test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Tuning works, and the user should know.
    Note,
    /// Tuning would go wrong.
    Bad,
}

/// One test.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Finding {
    /// What was tested.
    pub test: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found, in words.
    pub found: String,
}

impl Finding {
    fn new(test: &'static str, good: bool, found: String) -> Self {
        Self { test, verdict: if good { Verdict::Good } else { Verdict::Bad }, found }
    }
}

/// Tokens of a row in the tests that compute: enough to attend over, few enough for seconds.
const CUTOFF: usize = 48;

/// Tests a model with a template on some records of one's own (at least two).
///
/// # Errors
/// The template does not render, a text cannot be encoded, or the decoder cannot be built: then nothing can be tested.
pub fn verify(base: &BaseModel, template: &Template, records: &[Record]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let texts = texts(base, template, records)?;
    findings.push(round_trip(base, &texts)?);
    findings.push(seam(base, &texts)?);
    findings.push(end_token(base, &texts)?);
    findings.push(padding(base));
    findings.push(vocabulary(base));
    let decoder =
        Decoder::load(Cpu, base.config(), Weights::Frozen(Precision::Published), |slot| base.tensor(slot))
            .map_err(|error| Error::Decoder { model: base.name(), reason: error.to_string() })?;
    let rows: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| Ok(base.tokenizer().encode_training(&text.prompt, &text.response, CUTOFF)?.ids))
        .collect::<Result<_>>()?;
    let adapter = adapter(base)?;
    let plan = WorkspacePlan { tokens: rows.iter().map(Vec::len).sum(), training: true, recompute: false };
    let mut workspace = Workspace::new(&decoder, &[&adapter], plan);
    findings.push(loss(base, &decoder, &rows, &mut workspace));
    findings.push(packing(&decoder, &adapter, &rows, &mut workspace));
    findings.push(gradient(&decoder, adapter, &rows, &mut workspace));
    Ok(findings)
}

/// A record as tuning sees it.
struct Text {
    prompt: String,
    response: String,
}

fn texts(base: &BaseModel, template: &Template, records: &[Record]) -> Result<Vec<Text>> {
    let settings = Settings::preset(Preset::Paper, Method::Lora);
    // The same path as tuning's, so that its faults are named alike.
    crate::rows::Rows::encode(records, template, base.tokenizer(), &settings)?;
    let text = |record: &Record| {
        let prompt = template.render(record).map_err(|error| Error::Template {
            id: record.id.clone(),
            language: record.language.to_string(),
            reason: format!("{error:#}"),
        })?;
        Ok(Text { prompt, response: record.output.clone() })
    };
    records.iter().map(text).collect()
}

/// The prompt comes back from its tokens.
fn round_trip(base: &BaseModel, texts: &[Text]) -> Result<Finding> {
    let test = "the tokenizer gives the prompt back";
    for text in texts {
        let ids = base.tokenizer().encode_bare(&text.prompt)?;
        // Tokens with a meaning of their own too: a chat template writes them out.
        let back = base.tokenizer().decode(&ids, false)?;
        if back != text.prompt {
            let at = back.chars().zip(text.prompt.chars()).take_while(|(a, b)| a == b).count();
            let around = |text: &str| text.chars().skip(at.saturating_sub(10)).take(30).collect::<String>();
            let found = format!("character {at}: {:?} became {:?}", around(&text.prompt), around(&back));
            return Ok(Finding::new(test, false, found));
        }
    }
    Ok(Finding::new(test, true, format!("{} prompts, to the byte", texts.len())))
}

/// Answering begins from the tokens that training had before the response.
fn seam(base: &BaseModel, texts: &[Text]) -> Result<Finding> {
    let test = "the prompt's tokens are the same in training and in answering";
    for text in texts {
        let trained = base.tokenizer().encode_training(&text.prompt, &text.response, usize::MAX)?;
        let mut asked = base.tokenizer().encode(&text.prompt)?;
        if asked.last() == base.tokenizer().special().eos.as_ref() {
            asked.pop();
        }
        let length = trained.prompt_length.min(trained.ids.len());
        if trained.ids[..length] != asked[..] {
            let at =
                trained.ids.iter().zip(&asked).position(|(a, b)| a != b).unwrap_or(length.min(asked.len()));
            let token = |ids: &[u32]| {
                ids.get(at)
                    .and_then(|id| base.tokenizer().id_to_token(*id))
                    .unwrap_or_else(|| "nothing".into())
            };
            let found = format!(
                "token {at} is {:?} in training and {:?} in answering: the seam to the response is cut otherwise",
                token(&trained.ids),
                token(&asked)
            );
            return Ok(Finding { test, verdict: Verdict::Note, found });
        }
    }
    Ok(Finding::new(test, true, format!("{} prompts, token for token", texts.len())))
}

/// A response that was learnt ends.
fn end_token(base: &BaseModel, texts: &[Text]) -> Result<Finding> {
    let test = "the end token is supervised";
    let Some(eos) = base.tokenizer().special().eos else {
        return Ok(Finding::new(
            test,
            false,
            "the tokenizer names no end token: responses would not learn to end".into(),
        ));
    };
    for text in texts {
        let trained = base.tokenizer().encode_training(&text.prompt, &text.response, usize::MAX)?;
        if trained.ids.last() != Some(&eos) || trained.prompt_length >= trained.ids.len() {
            return Ok(Finding::new(test, false, "a training row does not end in it".into()));
        }
    }
    let name = base.tokenizer().id_to_token(eos).unwrap_or_default();
    Ok(Finding::new(test, true, format!("{name:?} ({eos}) behind each response")))
}

/// Tools that pad leave the padding out of the loss, and with it an end token of the same number.
fn padding(base: &BaseModel) -> Finding {
    let test = "padding is not the end token's double";
    let special = base.tokenizer().special();
    match (special.pad, special.eos) {
        (Some(pad), Some(eos)) if pad == eos => Finding {
            test,
            verdict: Verdict::Note,
            found: format!(
                "both are {pad}: nothing is padded here, so the end is learnt; a tool that masks padding would not teach it"
            ),
        },
        (Some(pad), _) => Finding::new(test, true, format!("padding is {pad}; nothing is padded here")),
        (None, _) => Finding::new(test, true, "there is no padding token, and nothing is padded here".into()),
    }
}

/// Each token has an embedding.
fn vocabulary(base: &BaseModel) -> Finding {
    let (tokens, rows) = (base.tokenizer().vocabulary(), base.config().vocabulary);
    let found = format!("{tokens} tokens, {rows} embeddings");
    Finding::new("every token has an embedding", tokens <= rows, found)
}

/// A packed batch of rows, every position supervised.
fn batch(rows: &[Vec<u32>]) -> Batch {
    let mut batch = Batch::default();
    for (number, row) in rows.iter().enumerate() {
        batch.push(row, &vec![true; row.len()], DropoutKey::new(0, 0, number as u64));
    }
    batch
}

/// A pretrained model knows more of plain words than a uniform guess does.
fn loss(
    base: &BaseModel,
    decoder: &Decoder<Cpu>,
    rows: &[Vec<u32>],
    workspace: &mut Workspace<Cpu>,
) -> Finding {
    let losses = decoder.loss(None, &batch(rows), workspace);
    let mean = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len().max(1) as f64;
    let uniform = (base.config().vocabulary as f64).ln();
    let verdict = match mean {
        mean if !mean.is_finite() => Verdict::Bad,
        mean if mean < uniform => Verdict::Good,
        _ => Verdict::Note,
    };
    let found = format!("{mean:.3} nats a token; a uniform guess has {uniform:.3}");
    Finding { test: "the untuned model's loss is that of a trained one", verdict, found }
}

/// A row's logits are the same alone and among others.
fn packing(
    decoder: &Decoder<Cpu>,
    adapter: &Adapter<Cpu>,
    rows: &[Vec<u32>],
    workspace: &mut Workspace<Cpu>,
) -> Finding {
    let together = decoder.loss(Some(adapter), &batch(rows), workspace);
    let alone: Vec<f32> = rows
        .iter()
        .flat_map(|row| decoder.loss(Some(adapter), &batch(std::slice::from_ref(row)), workspace))
        .collect();
    let same = together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
    let found = if same {
        format!("{} rows packed and alone have the same losses, to the bit", rows.len())
    } else {
        "a row's loss depends on the rows beside it".to_owned()
    };
    Finding::new("packing does not leak", same && together.len() == alone.len(), found)
}

/// The paper's adapter, moved off its beginning so that both its sides have gradients.
fn adapter(base: &BaseModel) -> Result<Adapter<Cpu>> {
    let config = AdapterConfig::paper(base.family());
    let mut peft = PeftAdapter::fresh(config, base.family(), base.config(), 0)?;
    for module in &mut peft.modules {
        let rank = module.rank.max(1);
        for (place, value) in module.b.iter_mut().enumerate() {
            *value = 0.02 * (((place * 31 + place / rank) % 7) as f32 - 3.0) / 3.0;
        }
    }
    Adapter::load(&Cpu, base.config(), &peft.modules)
        .map_err(|reason| Error::Decoder { model: base.name(), reason })
}

/// Along its own direction the loss moves as fast as the gradient is long.
fn gradient(
    decoder: &Decoder<Cpu>,
    mut adapter: Adapter<Cpu>,
    rows: &[Vec<u32>],
    workspace: &mut Workspace<Cpu>,
) -> Finding {
    let batch = batch(rows);
    let scale = 1.0 / batch.targets.len().max(1) as f32;
    let mut gradients = adapter.gradients(&Cpu);
    decoder.step(Trained::Adapter(&adapter, &mut gradients), &batch, scale, 0.0, workspace);
    let squares: f64 =
        gradients.blocks.iter().flatten().flatten().map(|buffer| Cpu.squared_norm(buffer)).sum();
    let norm = squares.sqrt();
    // The loss is to move by about 1e-3 to each side: well above f32's rounding of it, and little enough to be straight.
    let step = 1e-3 / norm.max(1e-12);
    let mut moved = [0.0f64; 2];
    for (moved, sign) in moved.iter_mut().zip([1.0, -2.0]) {
        for (module, [da, db]) in adapter.blocks.iter_mut().flatten().zip(gradients.blocks.iter().flatten()) {
            for (values, gradient) in [(&mut module.a, da), (&mut module.b, db)] {
                for (value, gradient) in values.iter_mut().zip(gradient.iter()) {
                    *value += (sign * step / norm * f64::from(*gradient)) as f32;
                }
            }
        }
        let losses = decoder.loss(Some(&adapter), &batch, workspace);
        *moved = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() * f64::from(scale);
    }
    let measured = (moved[0] - moved[1]) / (2.0 * step);
    let error = (measured - norm).abs() / norm.max(1e-12);
    // The curvature along the step and rounding of the losses, a few tenths of a percent together on real models.
    let found = format!("{measured:.5} by finite differences, {norm:.5} by the backward pass");
    Finding::new("the gradient agrees with finite differences", error < 0.02, found)
}
