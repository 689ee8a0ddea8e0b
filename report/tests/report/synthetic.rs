//! A synthetic experiment: invented base models, invented responses, invented ratings. Nothing in it is a result.

#![expect(clippy::unwrap_used, reason = "support of tests: a failure is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use report::records::*;

/// How large an experiment is.
pub(crate) struct Size {
    /// Languages tuned on, at most 6.
    pub(crate) seen: usize,
    /// Languages not tuned on, at most 2.
    pub(crate) unseen: usize,
    /// Base models by family: their names, and sizes in billions.
    pub(crate) families: Vec<(&'static str, Vec<f64>)>,
    /// Methods.
    pub(crate) methods: Vec<&'static str>,
    /// Seeds.
    pub(crate) seeds: u64,
    /// Prompts a language.
    pub(crate) prompts: usize,
}

impl Size {
    /// The paper's: 6 + 2 languages, 2 methods, 5 families, two of them with 6 sizes, 3 seeds, 50 prompts.
    pub(crate) fn paper() -> Self {
        let sizes = vec![0.07, 0.41, 1.0, 1.7, 2.8, 6.9];
        Self {
            seen: 6,
            unseen: 2,
            families: vec![
                ("Alder", sizes.clone()),
                ("Birch", sizes),
                ("Cedar", vec![7.0]),
                ("Dogwood", vec![7.0]),
                ("Elm", vec![6.5]),
            ],
            methods: vec!["lora", "full"],
            seeds: 3,
            prompts: 50,
        }
    }

    /// One small base model, as a first run has it.
    pub(crate) fn small() -> Self {
        Self {
            seen: 4,
            unseen: 1,
            families: vec![("Alder", vec![0.004])],
            methods: vec!["lora"],
            seeds: 3,
            prompts: 20,
        }
    }
}

/// Code, name, own name, a prompt, a response, a word of the language.
const LANGUAGES: [(&str, &str, &str, &str, &str); 8] = [
    ("en", "English", "English", "How many legs do {} spiders have?", "Eight legs each, so {} in all."),
    ("bg", "Bulgarian", "български", "Колко крака имат {} паяка?", "По осем крака, общо {}."),
    ("zh", "Chinese", "中文", "{} 只蜘蛛有几条腿？", "每只八条腿，一共 {} 条。"),
    ("es", "Spanish", "español", "¿Cuántas patas tienen {} arañas?", "Ocho patas cada una, en total {}."),
    (
        "fr",
        "French",
        "français",
        "Combien de pattes ont {} araignées ?",
        "Huit pattes chacune, donc {} en tout.",
    ),
    ("ru", "Russian", "русский", "Сколько ног у {} пауков?", "По восемь ног, всего {}."),
    ("bn", "Bengali", "বাংলা", "{} টি মাকড়সার কয়টি পা আছে?", "প্রতিটির আটটি পা, মোট {} টি।"),
    (
        "no",
        "Norwegian",
        "norsk",
        "Hvor mange bein har {} edderkopper?",
        "Åtte bein hver, altså {} til sammen.",
    ),
];

/// Writes the three files of an experiment into `directory`; the same bytes each time.
pub(crate) fn write(directory: &Path, size: &Size) {
    let mut maker =
        Maker { size, random: ChaCha8Rng::seed_from_u64(11), systems: Vec::new(), scores: Vec::new() };
    let experiment = maker.experiment();
    for base in &experiment.base_models {
        maker.of_base(&experiment, base);
    }
    let lines = |values: Vec<String>| values.join("\n") + "\n";
    let json = serde_json::to_string_pretty(&experiment).unwrap();
    fs::write(directory.join(EXPERIMENT_FILE), json).unwrap();
    let systems = maker.systems.iter().map(|system| serde_json::to_string(system).unwrap()).collect();
    fs::write(directory.join(SYSTEMS_FILE), lines(systems)).unwrap();
    let scores = maker.scores.iter().map(|score| serde_json::to_string(score).unwrap()).collect();
    fs::write(directory.join(SCORES_FILE), lines(scores)).unwrap();
}

struct Maker<'a> {
    size: &'a Size,
    random: ChaCha8Rng,
    systems: Vec<System>,
    scores: Vec<Score>,
}

impl Maker<'_> {
    fn experiment(&self) -> Experiment {
        let seen = &LANGUAGES[..self.size.seen];
        let unseen = &LANGUAGES[6..6 + self.size.unseen];
        let language = |&(code, name, native, ..): &(&str, &str, &str, &str, &str), seen| Language {
            code: code.to_owned(),
            name: name.to_owned(),
            native_name: Some(native.to_owned()),
            seen,
        };
        let languages: Vec<Language> = seen
            .iter()
            .map(|one| language(one, true))
            .chain(unseen.iter().map(|one| language(one, false)))
            .collect();
        let recipe = |name: &str, description: &str, per_language| Recipe {
            name: name.to_owned(),
            description: description.to_owned(),
            per_language,
        };
        let several = self.size.families.len() > 1;
        let strings = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        Experiment {
            name: "A synthetic experiment".to_owned(),
            description: Some(
                "Invented base models, responses and ratings, to show what a report looks like.".to_owned(),
            ),
            date: Some("2026-01-01".to_owned()),
            prompts: languages.iter().map(|language| (language.code.clone(), self.size.prompts)).collect(),
            recipes: vec![
                recipe("monolingual", "a run per language", true),
                recipe("multilingual", "all languages shuffled together", false),
                recipe("english", "one English run answers everything", false),
                recipe("downsampled", "the multilingual mix cut to C", false),
            ],
            methods: self.size.methods.iter().map(|&method| method.to_owned()).collect(),
            base_models: self
                .size
                .families
                .iter()
                .flat_map(|(family, sizes)| sizes.iter().map(move |&size| (family, size)))
                .map(|(family, billions)| BaseModel {
                    name: format!("{}-{billions}b", family.to_lowercase()),
                    family: (*family).to_owned(),
                    parameters: (billions * 1e9) as u64,
                    fertility: if several {
                        languages
                            .iter()
                            .enumerate()
                            .map(|(place, language)| {
                                (
                                    language.code.clone(),
                                    1.2 + 0.35 * place as f64 + family.len() as f64 * 0.08,
                                )
                            })
                            .collect()
                    } else {
                        BTreeMap::new()
                    },
                })
                .collect(),
            languages,
            seeds: (1..=self.size.seeds).collect(),
            rating_range: [1.0, 3.0],
            judge: Judge {
                name: "a random generator".to_owned(),
                kind: JudgeKind::StandIn,
                caption: Some("invented ratings: a synthetic experiment".to_owned()),
            },
            gate: Gate {
                identifier: "an invented identifier".to_owned(),
                description: "Norwegian accepts no, nb and nob.".to_owned(),
            },
            budget: Budget {
                c: 512,
                held: "rows".to_owned(),
                description: "C is the smallest set; the other sets were cut to it.".to_owned(),
            },
            minimum_score: None,
            versions: strings(&[("polypaca", "0.1.0")]),
            hashes: strings(&[("instructions/en.jsonl", "blake3:0000000000000000 (invented)")]),
            settings: BTreeMap::from([
                ("tune.rank".to_owned(), 8.into()),
                ("tune.schedule".to_owned(), "linear".into()),
            ]),
            hardware: strings(&[("cpu", "invented, 2 cores")]),
            licences: strings(&[("prompts", "MIT OR Apache-2.0")]),
            problems: vec![Problem {
                place: "prompts/bg.jsonl:13".to_owned(),
                message: "the id was 31, expected 13 as in the other languages; it was kept as it is"
                    .to_owned(),
            }],
        }
    }

    fn of_base(&mut self, experiment: &Experiment, base: &BaseModel) {
        let seen: Vec<String> =
            experiment.languages.iter().filter(|one| one.seen).map(|one| one.code.clone()).collect();
        let all: Vec<String> = experiment.languages.iter().map(|one| one.code.clone()).collect();
        self.system(experiment, base, SystemKind::Base, None, "untuned", &[], &all, None);
        for method in &experiment.methods {
            for &seed in &experiment.seeds {
                for code in &seen {
                    let answers = if code == "en" { all.clone() } else { vec![code.clone()] };
                    let mix = [code.clone()];
                    self.system(
                        experiment,
                        base,
                        SystemKind::Tuned,
                        Some(method),
                        "monolingual",
                        &mix,
                        &answers,
                        Some(seed),
                    );
                }
                for recipe in ["multilingual", "downsampled"] {
                    self.system(
                        experiment,
                        base,
                        SystemKind::Tuned,
                        Some(method),
                        recipe,
                        &seen,
                        &all,
                        Some(seed),
                    );
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a system is described by that much")]
    fn system(
        &mut self,
        experiment: &Experiment,
        base: &BaseModel,
        kind: SystemKind,
        method: Option<&String>,
        recipe: &str,
        mix: &[String],
        answers: &[String],
        seed: Option<u64>,
    ) {
        let place = self.systems.len();
        let parts = [method.map_or("", String::as_str), recipe, &mix.join("+")].join("-");
        let id = format!("{}-{parts}-{}", base.name, seed.map_or_else(String::new, |seed| seed.to_string()));
        // A few are lost, so that a report shows how that looks.
        let (status, message) = match place {
            17 => (SystemStatus::Failed, Some("out of memory at update 3".to_owned())),
            30 => (SystemStatus::Missing, None),
            _ if base.name == "birch-1b"
                && recipe == "downsampled"
                && method.is_some_and(|one| one == "full") =>
            {
                (SystemStatus::Failed, Some("the loss was not a number at update 12".to_owned()))
            }
            _ => (SystemStatus::Done, None),
        };
        let done = status == SystemStatus::Done;
        let times = if recipe == "multilingual" { mix.len() as u64 } else { 1 };
        let tuned = kind == SystemKind::Tuned && done;
        let cost = tuned.then(|| Cost {
            rows: 512 * times,
            tokens: 512 * times * 160,
            updates: 16 * times,
            flops: 4.0
                * base.parameters as f64
                * (512 * times * 160) as f64
                * if method.is_some_and(|one| one == "full") { 1.5 } else { 1.0 },
            seconds: base.parameters as f64 * times as f64 / 4e6,
            in_c: times as f64,
        });
        let curve = if tuned { self.curve(mix, 16 * times, recipe) } else { Vec::new() };
        let best_update = curve
            .iter()
            .min_by(|left, right| {
                left.validation_loss.unwrap_or(9.0).total_cmp(&right.validation_loss.unwrap_or(9.0))
            })
            .map(|point| point.update);
        self.systems.push(System {
            id: id.clone(),
            kind,
            base_model: Some(base.name.clone()),
            method: method.cloned(),
            recipe: method.map(|_| recipe.to_owned()),
            languages: mix.to_vec(),
            seed,
            status,
            message,
            cost,
            learning_curve: curve,
            best_update,
        });
        if done {
            for language in answers {
                self.answers(experiment, base, method, recipe, language, &id);
            }
        }
    }

    fn curve(&mut self, mix: &[String], updates: u64, recipe: &str) -> Vec<CurvePoint> {
        let floor = if recipe == "downsampled" { 1.55 } else { 1.42 };
        (0..=8)
            .map(|step| {
                let share = f64::from(step) / 8.0;
                let noise: f64 = self.random.random_range(-0.02..0.02);
                let loss = floor + 1.1 * (-4.0 * share).exp() + 0.05 * share * share + noise;
                let by_language: BTreeMap<String, f64> = mix
                    .iter()
                    .enumerate()
                    .map(|(place, code)| (code.clone(), loss + 0.08 * place as f64))
                    .collect();
                CurvePoint {
                    update: updates * step as u64 / 8,
                    training_loss: Some(loss - 0.05),
                    validation_loss: Some(loss),
                    validation_loss_by_language: by_language,
                }
            })
            .collect()
    }

    fn answers(
        &mut self,
        experiment: &Experiment,
        base: &BaseModel,
        method: Option<&String>,
        recipe: &str,
        code: &str,
        id: &str,
    ) {
        let place = LANGUAGES.iter().position(|one| one.0 == code).unwrap();
        let (_, _, _, prompt, response) = LANGUAGES[place];
        let seen = experiment.languages.iter().any(|one| one.code == code && one.seen);
        // Invented: quality grows with size; each recipe has its way with each language.
        let size = (base.parameters as f64 / 1e6).log10() / 4.0;
        let family = (base.family.len() as f64 - 4.0) * 0.03;
        let quality = match recipe {
            "untuned" => -0.45,
            "multilingual" if method.is_some_and(|one| one == "lora") => 0.06 + 0.1 * (size - 0.7),
            "multilingual" => 0.0,
            "downsampled" => -0.08,
            _ => 0.03,
        } + size
            - 0.02 * place as f64
            + family;
        let in_language = match recipe {
            "untuned" => 0.55,
            _ if id.contains("monolingual-en") && code != "en" => {
                if seen {
                    0.35
                } else {
                    0.2
                }
            }
            _ if !seen => 0.55,
            _ => 0.97,
        };
        for number in 1..=self.size.prompts {
            let gate = u8::from(self.random.random_range(0.0..1.0) < in_language);
            let mark: f64 = quality + self.random.random_range(-0.35..0.35);
            let rating = if mark < 0.45 {
                1.0
            } else if mark < 0.75 {
                2.0
            } else {
                3.0
            };
            let unrated = self.random.random_range(0.0..1.0) < 0.0004;
            let text = if gate == 1 { response } else { LANGUAGES[0].4 };
            self.scores.push(Score {
                system: id.to_owned(),
                language: code.to_owned(),
                prompt_id: number.to_string(),
                prompt: prompt.replace("{}", &number.to_string()),
                reference: Some(response.replace("{}", &(8 * number).to_string())),
                response: Some(text.replace("{}", &(8 * number + 3 - rating as usize).to_string())),
                gate: Some(gate),
                label: Some(if gate == 1 { code } else { "en" }.to_owned()),
                identified: Some(if gate == 1 { code } else { "en" }.to_owned()),
                probability: Some(0.93),
                rating: (!unrated).then_some(rating),
                reason: unrated
                    .then(|| "the judge answered without a rating: <b>[[?]]</b> & \"more\"".to_owned()),
                explanation: (!unrated).then(|| {
                    let why = match rating as usize {
                        3 => "The count is right, and so is its reason.",
                        2 => "The reason is right, the count is off by one.",
                        _ => "The count does not follow from its reason.",
                    };
                    format!("{why} [[{rating}]]")
                }),
                status: if unrated { ScoreStatus::Unrated } else { ScoreStatus::Rated },
            });
        }
    }
}
