use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::recipe::{Origin, RecipeFile, Sampling};
use crate::record::read_records;
use crate::testing::real;

fn language(code: &str) -> Language {
    code.parse().expect("a known code")
}

fn record(code: &str, id: &str) -> Record {
    Record {
        id: id.to_owned(),
        language: language(code),
        instruction: format!("{code} instruction {id}"),
        input: String::new(),
        // Lengths differ from row to row and from language to language.
        output: "x".repeat(1 + (id.len() * 7 + id.bytes().map(usize::from).sum::<usize>() + code.len()) % 13),
        origin: None,
    }
}

fn sets(sizes: &[(&str, usize)]) -> Sets {
    let mut sets = Sets::new();
    for (code, size) in sizes {
        let records = (0..*size).map(|number| record(code, &number.to_string())).collect();
        sets.add(Set { language: language(code), origin: Origin::Native, records });
    }
    sets
}

fn recipe(text: &str) -> Recipe {
    RecipeFile::parse(&format!("[[recipe]]\nname = \"r\"\n{text}\n")).expect("a recipe").recipe.remove(0)
}

fn paper() -> Vec<Recipe> {
    Recipe::PAPER.iter().map(|name| Recipe::paper(name).expect("known")).collect()
}

fn counts(mix: &Mix) -> Vec<(&str, u64)> {
    mix.manifest.languages.iter().map(|(language, counts)| (language.code(), counts.rows)).collect()
}

#[test]
fn the_papers_recipes_have_the_papers_sizes_on_real_sets() {
    let Some(folder) = real("instructions") else { return };
    let mut by_language = BTreeMap::new();
    for (name, code) in [("dolly_en", "en"), ("dolly_fi", "fi"), ("alpaca_zh_10k", "zh")] {
        let reading = read_records(&folder.join(format!("{name}.json")), &language(code)).expect("readable");
        by_language.insert(language(code), reading.items);
    }
    let sets = Sets::from(by_language);
    for (validation_rows, c) in [(0, 5000), (64, 4936)] {
        let options = MixOptions { validation_rows, ..MixOptions::default() };
        let made = mixes(&paper(), &sets, &options).expect("mixes");
        let sizes: Vec<_> =
            made.iter().map(|mix| (mix.name.as_str(), counts(mix), mix.manifest.cost.in_c)).collect();
        let thirds = [(c as f64 / 3.0).ceil() as u64, ((c - 1) as f64 / 3.0).ceil() as u64, c / 3];
        assert_eq!(
            sizes,
            [
                ("monolingual-en", vec![("en", c)], 1.0),
                ("monolingual-fi", vec![("fi", c)], 1.0),
                ("monolingual-zh", vec![("zh", c)], 1.0),
                ("multilingual", vec![("en", c), ("fi", c), ("zh", c)], 3.0),
                ("english", vec![("en", c)], 1.0),
                ("downsampled", vec![("en", thirds[0]), ("fi", thirds[1]), ("zh", thirds[2])], 1.0),
            ]
        );
        assert!(made.iter().all(|mix| mix.manifest.cost.c == c));
        assert_eq!(made[0].manifest.hash, made[4].manifest.hash, "english is monolingual in English");
        assert_eq!(tunings(&made).len(), 5);
        let held_out: Vec<&str> = made[0].validation.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(held_out.len(), validation_rows);
        assert_eq!(held_out, made[1].validation.iter().map(|row| row.id.as_str()).collect::<Vec<_>>());
    }
}

#[test]
fn a_mix_is_pinned_to_the_byte() {
    let options = MixOptions { validation_rows: 2, seed: 7, ..MixOptions::default() };
    let made = mixes(&paper(), &sets(&[("en", 8), ("fi", 9)]), &options).expect("mixes");
    let downsampled = made.iter().find(|mix| mix.name == "downsampled").expect("there");
    let rows: Vec<String> =
        downsampled.rows.iter().map(|row| format!("{}{}", row.language, row.id)).collect();
    assert_eq!(rows.join(" "), "fi0 en4 fi4 en5 fi7 en1");
    assert_eq!(downsampled.manifest.hash, "8ba0d0385b8bf18157b7e05a7e67e8701d14f15d2efd66ff8620f0b331a407ee");
}

#[test]
fn the_order_in_which_sets_and_rows_come_does_not_matter() {
    let forward = sets(&[("en", 20), ("fi", 30)]);
    let mut backward = Sets::new();
    for set in forward.iter().collect::<Vec<_>>().into_iter().rev() {
        let mut set = set.clone();
        set.records.reverse();
        backward.add(set);
    }
    let options = MixOptions { validation_rows: 3, ..MixOptions::default() };
    let hashes = |sets| {
        mixes(&paper(), sets, &options)
            .expect("mixes")
            .into_iter()
            .map(|mix| mix.manifest.hash)
            .collect::<Vec<_>>()
    };
    assert_eq!(hashes(&forward), hashes(&backward));
}

#[test]
fn a_mix_is_written_and_read_back_and_a_change_is_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = MixOptions { validation_rows: 2, ..MixOptions::default() };
    let made = mixes(&paper(), &sets(&[("en", 8), ("fi", 9)]), &options).expect("mixes");
    for mix in &made {
        mix.write(folder.path()).expect("written");
        assert_eq!(Mix::read(folder.path()).expect("read"), *mix);
    }
    let path = folder.path().join("rows.jsonl");
    let text = std::fs::read_to_string(&path).expect("text");
    std::fs::write(&path, text.replacen("instruction 1", "instruction 2", 1)).expect("written");
    let error = Mix::read(folder.path()).expect_err("changed");
    assert!(error.to_string().contains("changed or cut short"), "{error}");
}

#[test]
fn languages_keep_their_order_and_answers_their_language_when_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let sets = sets(&[("en", 50), ("fi", 50), ("zh", 50)]);
    let read_back = |text: &str| -> Vec<(Vec<String>, Option<String>)> {
        let made = recipe(text).mixes(&sets, &MixOptions::default()).expect(text);
        let read = made.iter().map(|mix| {
            mix.write(folder.path()).expect("written");
            let read = Mix::read(folder.path()).expect("read");
            assert_eq!(read, *mix, "{text}");
            let codes = read.languages.iter().map(ToString::to_string).collect();
            (codes, read.answers.map(|language| language.to_string()))
        });
        read.collect()
    };
    let codes = |codes: &[&str]| codes.iter().map(|code| (*code).to_owned()).collect::<Vec<_>>();
    assert_eq!(read_back("languages = [\"zh\", \"en\"]"), [(codes(&["zh", "en"]), None)]);
    let none = "languages = [\"zh\", \"fi\", \"en\"]\ncounts = { en = 3, zh = 4 }";
    assert_eq!(read_back(none), [(codes(&["zh", "fi", "en"]), None)], "Finnish has no rows");
    let replaced =
        "languages = [\"zh\", \"fi\"]\nmixes = \"per-language\"\nreplace = { rows = 7, with = [\"en\"] }";
    let expected = ["zh", "fi"].map(|code| (codes(&[code, "en"]), Some(code.to_owned())));
    assert_eq!(read_back(replaced), expected);

    // A manifest from before either was written down is read; whom it answers is in its name.
    let made = recipe(replaced).mixes(&sets, &MixOptions::default()).expect("mixes");
    for (mix, code) in made.iter().zip(["zh", "fi"]) {
        let mut old = mix.clone();
        (old.manifest.language_order, old.manifest.answers) = (Vec::new(), None);
        old.write(folder.path()).expect("written");
        let text = std::fs::read_to_string(folder.path().join("manifest.json")).expect("text");
        assert!(!text.contains("language_order") && !text.contains("answers"), "{text}");
        let read = Mix::read(folder.path()).expect("read");
        assert_eq!((read.answers, read.languages.len()), (Some(language(code)), 2));
    }
}

#[test]
fn shares_temperature_and_counts_split_a_mix() {
    let sets = sets(&[("en", 160), ("fi", 40), ("zh", 10)]);
    for (text, expected) in [
        ("rows = 100\nshares = { en = 7, fi = 2, zh = 1 }", [70, 20, 10]),
        ("counts = { en = 3, zh = 4 }", [3, 0, 4]),
        ("rows = 20\nenglish_share = 0.5", [10, 5, 5]),
        ("rows = 10\nenglish_share = 1", [10, 0, 0]),
        ("rows = 21\ntemperature = 1", [16, 4, 1]),
        ("rows = 28\ntemperature = 2\nrepeat = true", [16, 8, 4]),
        ("rows = 60\nrepeat = true", [20, 20, 20]),
    ] {
        let mix = recipe(text).mixes(&sets, &MixOptions::default()).expect(text).remove(0);
        let rows =
            ["en", "fi", "zh"].map(|code| mix.rows.iter().filter(|row| row.language.code() == code).count());
        assert_eq!(rows, expected, "{text}");
    }
    let growing = recipe("mixes = \"growing\"\nlanguages = [\"zh\", \"en\", \"fi\"]\nsize_per_language = 1");
    let made = growing.mixes(&sets, &MixOptions::default()).expect("mixes");
    assert_eq!(made.iter().map(|mix| mix.rows.len()).collect::<Vec<_>>(), [10, 20, 30]);
}

#[test]
fn rows_are_replaced_by_the_same_ids() {
    let sets = sets(&[("en", 50), ("fi", 50), ("zh", 50)]);
    let text = "languages = [\"en\"]\nreplace = { rows = 7, with = [\"fi\", \"zh\"] }";
    let mix = recipe(text).mixes(&sets, &MixOptions::default()).expect("a mix").remove(0);
    assert_eq!(counts(&mix), [("en", 43), ("fi", 4), ("zh", 3)]);
    let ids: BTreeSet<&str> = mix.rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids.len(), 50);
}

#[test]
fn rows_replace_none_that_are_in_the_mix_already() {
    let sets = sets(&[("en", 50), ("fi", 50), ("zh", 50)]);
    let mix = |text: &str| recipe(text).mixes(&sets, &MixOptions::default()).map(|mut mixes| mixes.remove(0));
    let distinct = |mix: &Mix| {
        let rows: BTreeSet<_> = mix.rows.iter().map(|row| (&row.language, &row.id)).collect();
        rows.len()
    };
    // English and Chinese have the same ids: each can become Finnish once.
    let both = mix("languages = [\"en\", \"zh\"]\nrows = 80\nreplace = { rows = 40, with = [\"fi\"] }");
    let both = both.expect("a mix");
    assert_eq!((both.rows.len(), distinct(&both)), (80, 80));
    assert_eq!(both.manifest.languages[&language("fi")].rows, 40);
    // Ten of the English ids are not among the Finnish rows.
    let part = |rows: u64| {
        format!(
            "languages = [\"en\", \"fi\"]\ncounts = {{ en = 30, fi = 20 }}\nreplace = {{ rows = {rows}, with = [\"fi\"] }}"
        )
    };
    let mixed = mix(&part(10)).expect("a mix");
    assert_eq!((counts(&mixed), distinct(&mixed)), (vec![("en", 20), ("fi", 30)], 50));
    let error = mix(&part(11)).expect_err("one too many");
    assert!(
        format!("{error:#}").contains("11 rows are to be replaced by fi, and only 10 could be"),
        "{error:#}"
    );
    let again = mix(&format!("{}\nrepeat = true", part(11))).expect("ids are taken again");
    assert_eq!(counts(&again), [("en", 19), ("fi", 31)]);
    assert!(distinct(&again) < 50);
}

#[test]
fn cross_lingual_rows_ask_in_the_instructions_language() {
    let sets = sets(&[("en", 50), ("fi", 50)]);
    let text = "sampling = \"aligned\"\n[recipe.cross_lingual]\nshare = 0.5\ntemplates.en = \"Answer in {language}.\"\n\
                templates.fi.en = \"Vastaa englanniksi.\"";
    let mix = recipe(text).mixes(&sets, &MixOptions::default()).expect("a mix").remove(0);
    let crossed: Vec<_> = mix
        .rows
        .iter()
        .zip(&mix.manifest.rows)
        .filter(|(_, entry)| entry.response_language.is_some())
        .collect();
    assert_eq!((mix.rows.len(), crossed.len()), (50, 25));
    for (row, entry) in crossed {
        let (ask, other) = match row.language.code() {
            "en" => ("Answer in Finnish.", "fi"),
            _ => ("Vastaa englanniksi.", "en"),
        };
        assert!(row.instruction.ends_with(&format!("\n{ask}")), "{}", row.instruction);
        assert_eq!(row.output, record(other, &row.id).output);
        assert_eq!(entry.response_language, Some(language(other)));
    }
}

#[test]
fn rows_of_one_origin_are_taken() {
    let mut sets = sets(&[("en", 10), ("fi", 10)]);
    let translated =
        (0..10).map(|number| Record { output: "t".to_owned(), ..record("fi", &number.to_string()) });
    sets.add(Set { language: language("fi"), origin: Origin::Translated, records: translated.collect() });
    let mix = recipe("languages = [\"fi\"]\norigin = \"translated\"")
        .mixes(&sets, &MixOptions::default())
        .expect("a mix")
        .remove(0);
    assert!(mix.rows.iter().all(|row| row.output == "t"));
    assert!(mix.manifest.rows.iter().all(|row| row.origin == Origin::Translated));
}

#[test]
fn updates_are_held_by_the_manifest() {
    let budget = Budget { held: Held::Updates, c: None, batch: 4, epochs: 3 };
    let options = MixOptions { budget, ..MixOptions::default() };
    let made = mixes(&paper(), &sets(&[("en", 10), ("fi", 20)]), &options).expect("mixes");
    let updates: Vec<_> = made.iter().map(|mix| (mix.rows.len(), mix.manifest.updates)).collect();
    assert_eq!(updates, [(10, Some(8)), (10, Some(8)), (20, Some(16)), (10, Some(8)), (10, Some(8))]);
}

/// C in FLOPs, which a row's tokens tell.
fn flops_options<'a>(
    c: Option<u64>,
    tokens: &'a (dyn Fn(&Record) -> usize + Sync),
    flops: &'a (dyn Fn(usize) -> u64 + Sync),
) -> MixOptions<'a> {
    let budget = Budget { held: Held::Flops, c, ..Budget::default() };
    MixOptions { budget, tokens: Some(tokens), flops: Some(flops), ..MixOptions::default() }
}

#[test]
fn flops_that_fill_64_bits_are_counted_or_refused() {
    let even = sets(&[("en", 10), ("fi", 10)]);
    let (one, flops) = (|_: &Record| 1, |_: usize| 1 << 61);
    let error = recipe("size = 1").mixes(&even, &flops_options(None, &one, &flops)).expect_err("10 × 2^61");
    let said = "the set in en comes to 23058430092136939520 FLOPs, and budgets are counted up to";
    assert!(format!("{error:#}").contains(said), "{error:#}");
    let mix = |text: &str, c| recipe(text).mixes(&even, &flops_options(Some(c), &one, &flops));
    assert_eq!(mix("size = 1", 6 << 61).expect("given C")[0].rows.len(), 6);
    for text in ["size_per_language = 1", "size = 2", "size = 1.5", "size = 1e300"] {
        let error = mix(text, 6 << 61).expect_err(text);
        assert!(format!("{error:#}").contains("the mix comes to"), "{text}: {error:#}");
    }
}

#[test]
fn a_row_beyond_what_is_left_is_not_drawn_however_much_it_costs() {
    let with_large = |is_large: &dyn Fn(&Record) -> bool| {
        let mut all = Sets::new();
        for set in sets(&[("en", 10), ("fi", 10)]).iter() {
            let mut set = set.clone();
            let large = set.records.iter_mut().filter(|row| is_large(row));
            large.for_each(|row| row.output = "large".to_owned());
            all.add(set);
        }
        all
    };
    let large = |row: &Record| if row.output == "large" { 2 } else { 1 };
    let flops = |tokens: usize| if tokens == 2 { u64::MAX } else { 1 << 61 };
    let options = flops_options(Some(7 << 61), &large, &flops);
    // By its rank, 7 comes when each language has rows already.
    let sets = with_large(&|row| row.id == "7");
    let mix = recipe("sampling = \"aligned\"").mixes(&sets, &options).expect("a mix").remove(0);
    assert!(!mix.rows.is_empty() && mix.rows.iter().all(|row| row.id != "7"));
    assert_eq!(mix.manifest.cost.amount, (mix.rows.len() as u64) << 61);
    // Rows that became cross-lingual come to more than the budget, and than a number of 64 bits.
    let sets = with_large(&|row| row.language == language("fi"));
    let text = "languages = [\"en\"]\n[recipe.cross_lingual]\nshare = 1\nresponse_languages = [\"fi\"]\n\
                templates.en = \"Answer in {language}.\"";
    let flops = |tokens: usize| if tokens == 2 { 5 << 61 } else { 1 << 61 };
    let options = flops_options(Some(6 << 61), &large, &flops);
    let mix = recipe(text).mixes(&sets, &options).expect("a mix").remove(0);
    assert_eq!((mix.rows.len(), mix.manifest.cost.amount), (1, 5 << 61));
}

#[test]
fn a_mix_of_one_c_is_the_smallest_set_whole() {
    // Three of these are a number that floating point rounds up.
    let (one, flops) = (|_: &Record| 1, |_: usize| (1 << 52) + 1);
    let options = flops_options(None, &one, &flops);
    let mix = recipe("size = 1").mixes(&sets(&[("en", 3)]), &options).expect("a mix").remove(0);
    assert_eq!((mix.rows.len(), mix.manifest.cost.amount), (3, mix.manifest.cost.c));
}

#[test]
fn an_aligned_mix_of_unequal_parts_is_short_by_a_row_in_proportion() {
    let sets = sets(&[("en", 300), ("fi", 300)]);
    let tokens = |record: &Record| record.output.len();
    let budget = Budget { held: Held::Tokens, ..Budget::default() };
    for seed in 0..20 {
        let options =
            MixOptions { seed, budget: budget.clone(), tokens: Some(&tokens), ..MixOptions::default() };
        let text = "size = 0.8\nenglish_share = 0.9\nsampling = \"aligned\"";
        let cost = recipe(text).mixes(&sets, &options).expect("a mix").remove(0).manifest.cost;
        // The longest row has 13 tokens: where it is Finnish's, English is short by nine times as much.
        assert!(cost.amount <= cost.budget && cost.budget - cost.amount < 13 * (1 + 9), "{cost:?}");
    }
}

#[test]
fn the_example_recipes_make_mixes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recipes");
    for (name, rows, made) in
        [("shaham-2024", 1500, 18), ("kew-2023", 1500, 9), ("ji-chen-2024", 80, 105), ("chen-2024", 1500, 11)]
    {
        let file = RecipeFile::read(&folder.join(format!("{name}.toml"))).expect(name);
        let mut languages: BTreeSet<Language> =
            file.recipe.iter().flat_map(|recipe| &recipe.languages).cloned().collect();
        languages.extend(
            file.recipe.iter().filter_map(|recipe| recipe.replace.clone()).flat_map(|replace| replace.with),
        );
        let mut sets = Sets::new();
        for language in languages {
            for origin in [Origin::Native, Origin::Translated, Origin::RoundTrip] {
                let records = (0..rows).map(|number| record(language.code(), &number.to_string())).collect();
                sets.add(Set { language: language.clone(), origin, records });
            }
        }
        let options =
            MixOptions { budget: file.budget.clone(), validation_rows: 10, ..MixOptions::default() };
        let mixes = mixes(&file.recipe, &sets, &options).expect(name);
        assert_eq!(mixes.len(), made, "{name}");
        knobs(name, &mixes, rows as u64 - 10);
    }
}

/// What each paper turned, in the mixes of its example file.
fn knobs(name: &str, mixes: &[Mix], c: u64) {
    let mix = |name: &str| mixes.iter().find(|mix| mix.name == name).expect(name);
    let rows = |name: &str, code: &str| mix(name).manifest.languages[&language(code)].rows;
    match name {
        "shaham-2024" => {
            for (k, recipe) in
                [(0, "english-only"), (10, "replaced-10"), (50, "replaced-50"), (1000, "replaced-1000")]
            {
                assert_eq!((rows(recipe, "en"), mix(recipe).rows.len() as u64), (c - k, c), "{recipe}");
            }
            let ids: BTreeSet<&str> = mix("even").rows.iter().map(|row| row.id.as_str()).collect();
            assert_eq!((ids.len() as u64, mix("even").languages.len()), (c, 9));
            assert_eq!(mix("few-languages-4").rows.len() as u64, c);
            assert_eq!(rows("each-alone-fi", "fi"), c);
        }
        "kew-2023" => {
            assert_eq!((mix("languages-1").languages.len(), mix("languages-6").languages.len()), (1, 6));
            assert!(mixes.iter().all(|mix| mix.rows.len() as u64 == c));
            assert_eq!(rows("half-english", "en"), c / 2);
            assert_eq!(rows("mostly-english", "en"), c * 9 / 10);
            assert_eq!(rows("english-and-one", "en"), c * 8 / 10);
        }
        "ji-chen-2024" => {
            for number in 1..=52 {
                let (added, same) =
                    (mix(&format!("added-{number}")), mix(&format!("added-same-size-{number}")));
                assert_eq!((added.languages.len(), added.rows.len() as u64), (number, number as u64 * c));
                assert_eq!((same.languages.len(), same.rows.len() as u64), (number, c));
            }
        }
        _ => {
            let of_one_origin =
                |name: &str, origin| mix(name).manifest.rows.iter().all(|row| row.origin == origin);
            assert!(of_one_origin("native-ru", Origin::Native));
            assert!(of_one_origin("translated-ru", Origin::Translated));
            assert!(of_one_origin("round-trip-ru", Origin::RoundTrip));
            let crossed = |row: &&RowEntry| row.response_language.is_some();
            let crossed = mix("cross-lingual").manifest.rows.iter().filter(crossed).count() as u64;
            assert_eq!(crossed, c / 5);
        }
    }
}

#[test]
fn what_cannot_be_made_is_named() {
    let sets = sets(&[("fi", 10), ("zh", 20)]);
    let options = MixOptions::default;
    let budget = |c| Budget { c: Some(c), ..Budget::default() };
    for (text, options, said) in [
        ("languages = [\"en\"]", options(), "there is no set in en (English)"),
        ("rows = 30", options(), "fi needs 15 rows, and its set has 10 to draw from"),
        ("size = 1", MixOptions { budget: budget(100), ..options() }, "fi needs 50 rows"),
        ("size = 1", MixOptions { budget: budget(0), ..options() }, "C is 0"),
        ("rows = 9000000000000000000\nrepeat = true", options(), "more than 1000 times its set"),
        (
            "counts = { fi = 9000000000000000000, zh = 9223372036854775807 }",
            options(),
            "fi needs 9000000000000000000",
        ),
        (
            "size = 1",
            MixOptions { validation_rows: 10, ..options() },
            "fi has 10 rows: expected more than the 10",
        ),
        ("sampling = \"disjoint\"\nrows = 25", options(), "fi needs 13 rows"),
        ("sampling = \"aligned\"\nrows = 11", options(), "there are 10"),
        ("english_share = 0.5", options(), "needs English"),
        ("shares = { ru = 1 }", options(), "names ru"),
        ("size = 1", MixOptions { languages: vec![language("ru")], ..options() }, "no set in ru"),
        (
            "size = 1",
            MixOptions { budget: Budget { held: Held::Tokens, ..Budget::default() }, ..options() },
            "needs a tokenizer",
        ),
    ] {
        let error = recipe(text).mixes(&sets, &options).expect_err(text);
        assert!(format!("{error:#}").contains(said), "{text}: {error:#}");
    }
}

proptest! {
    #[test]
    fn budgets_are_equal_splits_apart_and_ids_once(
        // Large enough that a language's part of C is more than its longest row.
        sizes in proptest::collection::vec(30usize..60, 1..5),
        validation_rows in 0usize..10,
        seed: u64,
        by_tokens: bool,
    ) {
        let codes = ["en", "fi", "zh", "ru"];
        let sizes: Vec<_> = codes.into_iter().zip(sizes).collect();
        let sets = sets(&sizes);
        let tokens = |record: &Record| record.output.len();
        let held = if by_tokens { Held::Tokens } else { Held::Rows };
        let options = MixOptions {
            seed,
            validation_rows,
            budget: Budget { held, ..Budget::default() },
            tokens: Some(&tokens),
            ..MixOptions::default()
        };
        let mut recipes = paper();
        recipes.push(Recipe { sampling: Sampling::Aligned, ..Recipe::new("aligned", "") });
        recipes.push(Recipe { sampling: Sampling::Disjoint, ..Recipe::new("disjoint", "") });
        // Sets of unequal size have fewer ids in common than C; then these two say so, and the rest holds.
        let mut made = Vec::new();
        for recipe in &recipes {
            match recipe.mixes(&sets, &options) {
                Ok(mixes) => made.extend(mixes),
                Err(error) => prop_assert!(
                    ["aligned", "disjoint"].contains(&recipe.name.as_str()), "{}: {:#}", recipe.name, error
                ),
            }
        }
        let c = made[0].manifest.cost.c;
        for mix in &made {
            let cost = &mix.manifest.cost;
            let wanted = if mix.recipe == "multilingual" { c * sizes.len() as u64 } else { c };
            prop_assert_eq!(cost.budget, wanted);
            prop_assert_eq!(cost.c, c);
            prop_assert!(cost.amount <= cost.budget);
            // The longest row is 13 tokens: each language is short by less than that.
            let slack = if by_tokens { 13 * mix.languages.len() as u64 } else { 1 };
            prop_assert!(cost.budget - cost.amount < slack, "{} {:?}", mix.name, cost);
            let held_out: BTreeSet<&str> = mix.validation.iter().map(|row| row.id.as_str()).collect();
            prop_assert!(mix.rows.iter().all(|row| !held_out.contains(row.id.as_str())));
            let ids: BTreeSet<&str> = mix.rows.iter().map(|row| row.id.as_str()).collect();
            if mix.recipe != "multilingual" && mix.recipe != "downsampled" {
                prop_assert_eq!(ids.len(), mix.rows.len(), "{}: each id once", mix.name);
            }
            // Every row of the mix's sets is trained on, validated, or left out with a reason.
            let total: usize = sizes
                .iter()
                .filter(|(code, _)| mix.languages.contains(&language(code)))
                .map(|(_, size)| size)
                .sum();
            let left_out: usize = mix.manifest.left_out.iter().map(|left| left.ids.len()).sum();
            prop_assert_eq!(mix.rows.len() + mix.validation.len() + left_out, total, "{}", mix.name);
        }
        let held_out: BTreeSet<&str> =
            made.iter().flat_map(|mix| &mix.validation).map(|row| row.id.as_str()).collect();
        prop_assert!(
            made.iter().flat_map(|mix| &mix.rows).all(|row| !held_out.contains(row.id.as_str())),
            "a row validated in one mix is trained on in none"
        );
    }
}
