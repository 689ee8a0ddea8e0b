//! How long instruction rows take from files to packed batches: read, repeated under new ids up to a number, mixed as
//! the paper's `multilingual` recipe, tokenised as they are trained on, and packed into micro-batches.
//!
//! ```sh
//! cargo bench -p polypaca-tune --bench rows -- TOKENIZER ROWS LANGUAGE=FILE...
//! ```
//!
//! Each language gets its part of ROWS. Reading the same files so many times is timed apart: that is a real set's
//! loading.

use std::path::Path;
use std::time::Instant;

use instructions::language::Language;
use instructions::mix::{MixOptions, Set, Sets};
use instructions::recipe::{Origin, Recipe};
use instructions::record::{Record, read_records, write_alpaca_json};
use instructions::template::Template;
use model::Tokenizer;
use tune::rows::{Packing, micro_batches, pack};
use tune::{Method, Preset, Rows, Settings};

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Which part took how long, told at once.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let done = work();
    println!("{what}: {:.2} s", begin.elapsed().as_secs_f64());
    done
}

/// A file's rows, again and again under new ids, up to `rows`.
fn repeated(records: &[Record], rows: usize) -> Vec<Record> {
    let row = |number: usize| Record { id: number.to_string(), ..records[number % records.len()].clone() };
    (0..rows).map(row).collect()
}

fn main() {
    // Cargo adds a flag of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|flag| flag != "--bench").collect();
    let [tokenizer, rows, files @ ..] = arguments.as_slice() else {
        println!("nothing is measured: expected TOKENIZER ROWS LANGUAGE=FILE...");
        return;
    };
    let rows: usize = rows.parse().expect("ROWS is a number");
    let tokenizer = Tokenizer::from_file(Path::new(tokenizer)).expect("a tokenizer");
    let folder = std::env::temp_dir().join(format!("polypaca-rows-{}", std::process::id()));
    let mut large = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let (code, path) = file.split_once('=').expect("LANGUAGE=FILE");
        let language: Language = code.parse().expect("a language");
        let records = read_records(Path::new(path), &language).expect("readable").items;
        let part = rows / files.len() + usize::from(number < rows % files.len());
        let path = folder.join(format!("{code}.json"));
        write_alpaca_json(&path, &repeated(&records, part)).expect("written");
        large.push((language, path));
    }
    let begin = Instant::now();
    let sets = timed("read", || {
        let mut sets = Sets::new();
        for (language, path) in &large {
            let records = read_records(path, language).expect("readable").items;
            sets.add(Set { language: language.clone(), origin: Origin::Native, records });
        }
        sets
    });
    std::fs::remove_dir_all(&folder).expect("removed");
    let languages: Vec<Language> = large.into_iter().map(|(language, _)| language).collect();
    let mix = timed("mixed", || {
        let options = MixOptions { languages, ..MixOptions::default() };
        let recipe = Recipe::paper("multilingual").expect("known");
        let mix = recipe.mixes(&sets, &options).expect("a mix").remove(0);
        drop(sets);
        mix
    });
    let settings = Settings::preset(Preset::Paper, Method::Lora);
    let encoded = timed("tokenised", || {
        let encoded = Rows::encode(&mix.rows, &Template::alpaca(), &tokenizer, &settings).expect("tokens");
        drop(mix);
        encoded
    });
    let (batches, positions) = timed("packed", || {
        let lengths: Vec<usize> = encoded.rows.iter().map(|row| row.tokens.len()).collect();
        let cuts = micro_batches(&lengths, settings.micro_batch_tokens, usize::MAX);
        let mut positions = 0;
        for cut in &cuts {
            let numbers: Vec<usize> = cut.clone().collect();
            positions += pack(&encoded.rows, &numbers, settings.seed, 0, Packing::Apart).tokens.len();
        }
        (cuts.len(), positions)
    });
    println!(
        "{} rows, {} tokens, {batches} micro-batches of at most {} tokens with {positions} in them, {:.1} s in all",
        encoded.rows.len(),
        encoded.tokens(),
        settings.micro_batch_tokens,
        begin.elapsed().as_secs_f64()
    );
}
