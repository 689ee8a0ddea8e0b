//! Any bytes as a recipe file, and its recipes made into mixes of two small sets.
#![no_main]

use instructions::mix::{MixOptions, Set, Sets, mixes};
use instructions::recipe::{Origin, RecipeFile};
use instructions::record::Record;
use libfuzzer_sys::fuzz_target;

fn sets() -> Sets {
    let mut sets = Sets::new();
    for code in ["en", "fi"] {
        let language = Some(code.parse()).and_then(Result::ok).expect("a code");
        let record = |number: usize| Record {
            id: number.to_string(),
            language: code.parse().expect("a code"),
            instruction: format!("{code}?"),
            input: String::new(),
            output: "x".repeat(1 + number % 5),
        };
        sets.add(Set { language, origin: Origin::Native, records: (0..9).map(record).collect() });
    }
    sets
}

fuzz_target!(|text: &str| {
    let Ok(file) = RecipeFile::parse(text) else { return };
    let tokens = |record: &Record| record.output.len();
    let options = MixOptions {
        budget: file.budget.clone(),
        validation_rows: 1,
        tokens: Some(&tokens),
        flops: Some(&|tokens| 3 * tokens as u64),
        ..MixOptions::default()
    };
    let Ok(made) = mixes(&file.recipe, &sets(), &options) else { return };
    for mix in made {
        let cost = &mix.manifest.cost;
        assert!(mix.manifest.updates.is_some() || cost.amount <= cost.budget, "over the budget");
    }
});
