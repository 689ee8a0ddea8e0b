//! LoRA adapters in PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::fs;
use std::path::Path;

use engine::decoder::config::DecoderConfig;
use engine::decoder::lora::{HostLora, Linear};
use engine::decoder::weights::HostTensor;
use regex::Regex;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::base_model::read_json;
use crate::error::{Error, Result};
use crate::families::{Family, Module, Order};
use crate::init::{stream, unit};
use crate::keys::Keys;
use crate::safetensors_file::SafeTensorsFile;
use crate::write::write_atomically;

/// PEFT's file of settings. Where settings come from no file, messages name this alone.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// PEFT's file of weights.
const WEIGHTS: &str = "adapter_model.safetensors";
/// Stands before each module's name in the weights.
const PREFIX: &str = "base_model.model.";

/// Names of the parts of attention's first product that every family's adapters can be asked for by, whether the family
/// keeps their weights apart or fused. PEFT knows them by the family's own names, or not at all.
const ATTENTION_PARTS: [&str; 3] = ["query", "key", "value"];

/// Which modules LoRA is put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Modules whose path is one of these or ends in one of these; in an adapter that is begun here `query`, `key` and
    /// `value` too, of any family.
    Names(Vec<String>),
    /// Modules whose whole path matches this regular expression.
    Expression(String),
    /// All of a block's modules (`all-linear`).
    AllLinear,
}

/// What an `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Inner width.
    pub rank: usize,
    /// The product `B A x` is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of the input elements that are dropped in training.
    pub dropout: f64,
    /// Which modules.
    pub targets: Targets,
    /// Rank-stabilised: scale by `alpha / sqrt(rank)` (Kalajdzievski 2023).
    pub rslora: bool,
    /// Other ranks for modules whose path ends in a match of the expression; the first that matches holds.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The base model's path or name, for people.
    pub base_model: Option<String>,
}

impl AdapterConfig {
    /// The paper's LoRA: rank 8, alpha 16, dropout 0.05, on query, key and value.
    pub fn paper(family: Family) -> Self {
        let names = family.query_key_value_modules().iter().map(|&name| name.to_owned()).collect();
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.05,
            targets: Targets::Names(names),
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model: None,
        }
    }

    /// The modules of the model that the targets name, in the order in which data flows through them.
    ///
    /// # Errors
    /// The targets name no module, or a name among them names none, or the expression is not one.
    pub fn modules(&self, family: Family, config: &DecoderConfig) -> Result<Vec<Module>> {
        let targets = match &self.targets {
            Targets::Names(names) => Targets::Names(own_names(names, family)),
            other => other.clone(),
        };
        let config_with_own_names = Self { targets, ..self.clone() };
        config_with_own_names.modules_named_by(Path::new(CONFIG_FILE), family, config)
    }

    /// As [`AdapterConfig::modules`], with the file to name in messages.
    fn modules_named_by(&self, path: &Path, family: Family, config: &DecoderConfig) -> Result<Vec<Module>> {
        let all: Vec<Module> = (0..config.layers).flat_map(|layer| family.modules(config, layer)).collect();
        let available = || {
            let names = family.modules(config, 0).into_iter().map(|module| last(&module.name).to_owned());
            names.collect::<Vec<_>>().join(", ")
        };
        let chosen: Vec<Module> = match &self.targets {
            Targets::AllLinear => all,
            Targets::Expression(expression) => {
                let expression = compile(path, "target_modules", &format!("^(?:{expression})$"))?;
                all.into_iter().filter(|module| expression.is_match(&module.name)).collect()
            }
            Targets::Names(names) => {
                let is_part = |name: &str| family.fuses_attention() && ATTENTION_PARTS.contains(&name);
                let known = |name: &String| is_part(name) || all.iter().any(|module| named(module, name));
                if let Some(name) = names.iter().find(|name| !known(name)) {
                    let reason = format!(
                        "module `{name}` is none of a {family} model's; expected one of {}",
                        available()
                    );
                    return Err(Error::Adapter { path: path.to_owned(), reason });
                }
                let whole = |module: &Module| names.iter().any(|name| named(module, name));
                let of_module = |module: Module| match module.linear {
                    _ if whole(&module) => vec![module],
                    Linear::QueryKeyValue => parts_of(&module, names, config),
                    _ => Vec::new(),
                };
                all.into_iter().flat_map(of_module).collect()
            }
        };
        if chosen.is_empty() {
            let reason = format!("the target modules match none of a {family} model's: {}", available());
            return Err(Error::Adapter { path: path.to_owned(), reason });
        }
        Ok(chosen)
    }

    /// The rank and the scale of a module.
    ///
    /// # Errors
    /// A pattern is not a regular expression.
    pub fn rank_and_scale(&self, module: &Module) -> Result<(usize, f32)> {
        let rank = first_match(&self.rank_pattern, "rank_pattern", &module.name)?.unwrap_or(self.rank);
        let alpha = first_match(&self.alpha_pattern, "alpha_pattern", &module.name)?.unwrap_or(self.alpha);
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    }

    fn read(path: &Path, json: &Value) -> Result<Self> {
        let keys = Keys::new(path, json)?;
        refuse_what_is_not_computed(&keys)?;
        let targets = match keys.get("target_modules") {
            Some(Value::String(text)) if text == "all-linear" => Targets::AllLinear,
            Some(Value::String(text)) => Targets::Expression(text.clone()),
            Some(Value::Array(list)) => {
                let names: Option<Vec<_>> =
                    list.iter().map(|name| name.as_str().map(str::to_owned)).collect();
                let given = Value::Array(list.clone());
                Targets::Names(names.ok_or_else(|| keys.bad("target_modules", &given, "a list of strings"))?)
            }
            Some(other) => return Err(keys.bad("target_modules", other, "a list of strings or a string")),
            None => return Err(keys.missing("target_modules", "a list of strings or a string")),
        };
        let config = Self {
            rank: keys.required_count(&["r"])?,
            alpha: keys.number(&["lora_alpha"])?.unwrap_or(8.0),
            dropout: keys.number(&["lora_dropout"])?.unwrap_or(0.0),
            targets,
            rslora: keys.flag("use_rslora", false)?,
            rank_pattern: pattern(&keys, "rank_pattern", |value| {
                value.as_u64().filter(|rank| (1..=1 << 20).contains(rank)).map(|rank| rank as usize)
            })?,
            alpha_pattern: pattern(&keys, "alpha_pattern", Value::as_f64)?,
            base_model: keys.text("base_model_name_or_path")?.map(str::to_owned),
        };
        keys.ignore(&WITHOUT_BEARING);
        for key in keys.unread() {
            tracing::warn!("{}: key `{key}` is not known and was not used", path.display());
        }
        Ok(config)
    }

    fn to_json(&self) -> Value {
        let targets = match &self.targets {
            Targets::Names(names) => json!(names),
            Targets::Expression(expression) => json!(expression),
            Targets::AllLinear => json!("all-linear"),
        };
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": whole_where_it_is(self.alpha),
            "lora_dropout": self.dropout,
            "target_modules": targets,
            "use_rslora": self.rslora,
            "rank_pattern": self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect::<Map<_, _>>(),
            "alpha_pattern": self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), whole_where_it_is(*alpha))).collect::<Map<_, _>>(),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": null,
            "layers_to_transform": null,
            "layers_pattern": null,
            "use_dora": false,
        })
    }
}

/// An adapter: its settings, and A and B of every module.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    /// In the order of blocks, and within a block in the order in which data flows.
    pub modules: Vec<HostLora>,
}

impl Adapter {
    /// A new adapter as PEFT begins one: A uniform within `1 / sqrt(inputs)` of 0, B zero. The same seed gives the same A.
    ///
    /// # Errors
    /// The settings do not fit the model.
    pub fn fresh(config: AdapterConfig, family: Family, model: &DecoderConfig, seed: u64) -> Result<Self> {
        let targets = match config.targets {
            Targets::Names(names) => Targets::Names(own_names(&names, family)),
            other => other,
        };
        let config = AdapterConfig { targets, ..config };
        let mut modules = Vec::new();
        for (place, module) in config.modules(family, model)?.into_iter().enumerate() {
            let (rank, scale) = config.rank_and_scale(&module)?;
            let mut random = stream(seed, place as u64);
            // PEFT's kaiming_uniform(a = sqrt 5): the bound is sqrt(6 / ((1 + 5) inputs)).
            let bound = 1.0 / (module.inputs as f64).sqrt();
            let a =
                (0..rank * module.inputs).map(|_| ((2.0 * unit(&mut random) - 1.0) * bound) as f32).collect();
            let b = vec![0.0; module.rows * rank];
            modules.push(host(&module, rank, scale, a, b));
        }
        Ok(Self { config, modules })
    }

    /// Reads a PEFT folder for a model of `family`.
    ///
    /// # Errors
    /// A file is damaged; the settings ask for what is not computed (DoRA, biases, whole modules saved beside LoRA);
    /// a module or shape is not the model's; a target module has no weights.
    pub fn read(folder: &Path, family: Family, model: &DecoderConfig) -> Result<Self> {
        let config_path = folder.join(CONFIG_FILE);
        if !config_path.is_file() {
            let reason = format!("expected {CONFIG_FILE} in the folder");
            return Err(Error::Adapter { path: folder.to_owned(), reason });
        }
        let config = AdapterConfig::read(&config_path, &read_json(&config_path)?)?;
        refuse_parts(&config_path, &config)?;
        let weights_path = folder.join(WEIGHTS);
        if !weights_path.is_file() && folder.join("adapter_model.bin").is_file() {
            let reason =
                "adapter_model.bin is not read, because a pickle can run any code: save it as safetensors";
            return Err(Error::Adapter { path: folder.to_owned(), reason: reason.to_owned() });
        }
        let file = SafeTensorsFile::open(&weights_path)?;
        let all: Vec<Module> = (0..model.layers).flat_map(|layer| family.modules(model, layer)).collect();
        let targets = config.modules_named_by(&config_path, family, model)?;
        let mut used = 0;
        let mut modules = Vec::new();
        for module in &all {
            let (rank, scale) = config.rank_and_scale(module)?;
            let a = side(&file, module, "A", &[rank, module.inputs])?;
            let b = side(&file, module, "B", &[module.rows, rank])?;
            match (a, b) {
                (Some(_), Some(_)) if !targets.contains(module) => {
                    // PEFT would leave them out: the file and its settings are of two adapters.
                    return Err(Error::UnexpectedTensor {
                        path: weights_path,
                        tensor: tensor_name(module, "A"),
                    });
                }
                (Some(a), Some(b)) => {
                    used += 2;
                    let b = reordered(&b, module, rank, |decoder, stored| (stored, decoder));
                    modules.push(host(module, rank, scale, a, b));
                }
                (None, None) if !targets.contains(module) => {}
                (a, _) => {
                    return Err(Error::MissingTensor {
                        path: weights_path,
                        tensor: tensor_name(module, if a.is_none() { "A" } else { "B" }),
                        expected: if a.is_none() {
                            vec![rank, module.inputs]
                        } else {
                            vec![module.rows, rank]
                        },
                    });
                }
            }
        }
        if used != file.names().len() {
            let known = |name: &String| {
                all.iter().any(|module| ["A", "B"].iter().any(|side| *name == tensor_name(module, side)))
            };
            let tensor = file.names().into_iter().find(|name| !known(name)).unwrap_or_default();
            return Err(Error::UnexpectedTensor { path: weights_path, tensor });
        }
        Ok(Self { config, modules })
    }

    /// The same adapter with those on parts of a fused product joined to one on the whole; nothing where there are none.
    fn fused(&self, family: Family, model: &DecoderConfig) -> Option<Self> {
        let whole = |layer: usize| {
            family.modules(model, layer).into_iter().find(|module| module.linear == Linear::QueryKeyValue)
        };
        let is_part = |lora: &HostLora| {
            family.fuses_attention()
                && lora.linear == Linear::QueryKeyValue
                && whole(lora.layer).is_some_and(|module| lora.rows < module.rows)
        };
        let mut modules: Vec<HostLora> = Vec::new();
        let mut name = None;
        for parts in self.modules.chunk_by(|a, b| is_part(a) && is_part(b) && a.layer == b.layer) {
            let module = whole(parts[0].layer).filter(|_| is_part(&parts[0]));
            match module {
                None => modules.extend_from_slice(parts),
                Some(module) => {
                    modules.push(joined(&module, parts));
                    name = Some(last(&module.name).to_owned());
                }
            }
        }
        let name = name?;
        let parts =
            self.modules.iter().filter(|lora| is_part(lora) && lora.layer == self.modules[0].layer).count();
        let parts = parts.max(1) as f64;
        let (rank, alpha) = (
            self.config.rank * parts as usize,
            self.config.alpha * if self.config.rslora { parts.sqrt() } else { parts },
        );
        let mut config = self.config.clone();
        let Targets::Names(names) = &mut config.targets else { return None };
        names.retain(|name| !ATTENTION_PARTS.contains(&name.as_str()));
        names.insert(0, name.clone());
        if names.len() == 1 {
            (config.rank, config.alpha) = (rank, alpha);
        } else {
            config.rank_pattern.push((name.clone(), rank));
            config.alpha_pattern.push((name, alpha));
        }
        Some(Self { config, modules })
    }

    /// Writes a PEFT folder, in f32: the weights first, the settings last, each under a temporary name until it is whole.
    ///
    /// Adapters on parts of a fused product become one on the whole: their A below one another, their B beside one another
    /// in the rows of their parts, and zeros elsewhere, which computes the same.
    ///
    /// # Errors
    /// The modules are not the model's, or a file could not be written.
    pub fn write(&self, folder: &Path, family: Family, model: &DecoderConfig) -> Result<()> {
        if let Some(fused) = self.fused(family, model) {
            return fused.write(folder, family, model);
        }
        let all: Vec<Module> = (0..model.layers).flat_map(|layer| family.modules(model, layer)).collect();
        let mut tensors = Vec::new();
        for lora in &self.modules {
            let module = all.iter().find(|module| covers(module, lora)).ok_or_else(|| Error::Adapter {
                path: folder.to_owned(),
                reason: format!(
                    "rows {}..{} of {:?} in block {} are not one module of a {family} model",
                    lora.first_row,
                    lora.first_row + lora.rows,
                    lora.linear,
                    lora.layer
                ),
            })?;
            let b = reordered(&lora.b, module, lora.rank, |decoder, stored| (decoder, stored));
            for (side, shape, numbers) in
                [("A", [lora.rank, module.inputs], &lora.a), ("B", [module.rows, lora.rank], &b)]
            {
                if numbers.len() != shape[0] * shape[1] {
                    return Err(Error::Shape {
                        path: folder.to_owned(),
                        tensor: tensor_name(module, side),
                        found: vec![numbers.len()],
                        expected: shape.to_vec(),
                    });
                }
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                tensors.push((tensor_name(module, side), shape.to_vec(), bytes));
            }
        }
        let path = folder.join(WEIGHTS);
        let damaged = |error: safetensors::SafeTensorError| Error::SafeTensors {
            path: path.clone(),
            reason: error.to_string(),
        };
        let mut views = Vec::new();
        for (name, shape, bytes) in &tensors {
            views.push((name, TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(damaged)?));
        }
        let info = Some([("format".to_owned(), "pt".to_owned())].into_iter().collect());
        let bytes = safetensors::serialize(views, info).map_err(damaged)?;
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        write_atomically(&path, &bytes)?;
        let json = format!("{:#}\n", self.config.to_json());
        write_atomically(&folder.join(CONFIG_FILE), json.as_bytes())
    }
}

/// `query`, `key` and `value` by the names of a family that keeps them apart.
fn own_names(names: &[String], family: Family) -> Vec<String> {
    let own = |name: &String| match ATTENTION_PARTS.iter().position(|part| part == name) {
        Some(part) if !family.fuses_attention() => family.query_key_value_modules()[part].to_owned(),
        _ => name.clone(),
    };
    names.iter().map(own).collect()
}

/// The parts of a fused product that are named, each a module of its own, whose rows are in the decoder's order.
fn parts_of(fused: &Module, names: &[String], config: &DecoderConfig) -> Vec<Module> {
    let (queries, keys) = (config.heads * config.head_size, config.key_value_heads * config.head_size);
    let places = [(0, queries), (queries, keys), (queries + keys, keys)];
    let named = |part: &&str| names.iter().any(|name| name == part);
    let parts = ATTENTION_PARTS.iter().zip(places).filter(|(part, _)| named(part));
    parts
        .map(|(_, (first_row, rows))| Module { first_row, rows, order: Order::AsStored, ..fused.clone() })
        .collect()
}

/// Adapters on parts of a product as one on the whole of it.
fn joined(module: &Module, parts: &[HostLora]) -> HostLora {
    let rank: usize = parts.iter().map(|part| part.rank).sum();
    let a = parts.iter().flat_map(|part| part.a.iter().copied()).collect();
    let mut b = vec![0.0; module.rows * rank];
    let mut column = 0;
    for part in parts {
        for (row, values) in part.b.chunks_exact(part.rank).enumerate() {
            b[(part.first_row + row) * rank + column..][..part.rank].copy_from_slice(values);
        }
        column += part.rank;
    }
    host(module, rank, parts[0].scale, a, b)
}

/// A file by PEFT has no parts of fused products.
fn refuse_parts(path: &Path, config: &AdapterConfig) -> Result<()> {
    let Targets::Names(names) = &config.targets else { return Ok(()) };
    match names.iter().find(|name| ATTENTION_PARTS.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let reason = format!("module `{name}` is none that PEFT knows by this name");
            Err(Error::Adapter { path: path.to_owned(), reason })
        }
    }
}

fn covers(module: &Module, lora: &HostLora) -> bool {
    (module.layer, module.linear, module.first_row, module.rows)
        == (lora.layer, lora.linear, lora.first_row, lora.rows)
}

fn host(module: &Module, rank: usize, scale: f32, a: Vec<f32>, b: Vec<f32>) -> HostLora {
    let &Module { layer, linear, first_row, rows, .. } = module;
    HostLora { layer, linear, first_row, rows, rank, scale, a, b }
}

fn tensor_name(module: &Module, side: &str) -> String {
    format!("{PREFIX}{}.lora_{side}.weight", module.name)
}

/// A or B of a module, where the file has it.
fn side(file: &SafeTensorsFile, module: &Module, side: &str, expected: &[usize]) -> Result<Option<Vec<f32>>> {
    let tensor = tensor_name(module, side);
    let Some(found): Option<HostTensor<'_>> = file.tensor(&tensor)? else { return Ok(None) };
    if found.shape != expected {
        let (path, found) = (file.path().to_owned(), found.shape);
        return Err(Error::Shape { path, tensor, found, expected: expected.to_vec() });
    }
    Ok(Some(found.to_f32()))
}

/// B with its rows moved: `direction` turns the decoder's row and the file's row for it into (from, to).
fn reordered(
    b: &[f32],
    module: &Module,
    rank: usize,
    direction: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<f32> {
    let mut moved = b.to_vec();
    if b.len() != module.rows * rank {
        return moved;
    }
    for row in 0..module.rows {
        let (from, to) = direction(row, module.order.stored_row(row));
        moved[to * rank..(to + 1) * rank].copy_from_slice(&b[from * rank..(from + 1) * rank]);
    }
    moved
}

/// Settings that do not change what a tuned adapter computes.
const WITHOUT_BEARING: [&str; 14] = [
    "auto_mapping",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Settings under which PEFT computes something else than `W x + scale B A x`.
fn refuse_what_is_not_computed(keys: &Keys<'_>) -> Result<()> {
    keys.only("peft_type", &json!("LORA"))?;
    keys.only("bias", &json!("none"))?;
    for key in ["use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens"] {
        keys.only(key, &json!(false))?;
    }
    for key in [
        "modules_to_save",
        "layers_to_transform",
        "exclude_modules",
        "target_parameters",
        "trainable_token_indices",
        "layer_replication",
        "megatron_config",
        "corda_config",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "use_bdlora",
        "velora_config",
        "layers_pattern",
    ] {
        match keys.get(key) {
            None => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(Value::Object(map)) if map.is_empty() => {}
            Some(value) => return Err(keys.unsupported(key, value, "null")),
        }
    }
    match keys.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        // These change A and B alone; PiSSA, OLoRA and LoftQ change the base model's weights too.
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => Ok(()),
        Some(other) => {
            Err(keys.unsupported("init_lora_weights", other, "true, false, gaussian, eva or orthogonal"))
        }
    }
}

fn pattern<T>(keys: &Keys<'_>, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<(String, T)>> {
    let Some(value) = keys.get(key) else { return Ok(Vec::new()) };
    let expected = "an object from expressions to numbers above 0";
    let map = value.as_object().ok_or_else(|| keys.bad(key, value, expected))?;
    map.iter()
        .map(|(expression, value)| {
            Ok((expression.clone(), read(value).ok_or_else(|| keys.bad(key, value, expected))?))
        })
        .collect()
}

/// The value of the first expression, in the file's order, that a module's path ends in, as PEFT's
/// `get_pattern_key` has it.
fn first_match<T: Copy>(patterns: &[(String, T)], key: &str, name: &str) -> Result<Option<T>> {
    for (expression, value) in patterns {
        if compile(Path::new(CONFIG_FILE), key, &format!(r"^(?:.*\.)?(?:{expression})$"))?.is_match(name) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn compile(path: &Path, key: &str, expression: &str) -> Result<Regex> {
    Regex::new(expression).map_err(|error| Error::BadKey {
        path: path.to_owned(),
        key: key.to_owned(),
        found: expression.to_owned(),
        expected: format!("a regular expression: {error}"),
    })
}

fn named(module: &Module, name: &str) -> bool {
    module.name.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Alpha as PEFT's own files have it: 16, not 16.0.
fn whole_where_it_is(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}
