//! Agreement against the paper's Table 3, and against scipy and scikit-learn on PandaLM's test set
//! (goldens: `oracle/agreement.py`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use judge::agree::{Agreement, Bootstrap, Correlation, Row, agree, read_table};
use serde_json::Value;

#[test]
fn table_3_of_the_paper() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/agreement/table3.csv");
    let rows = read_table(&table).unwrap();
    assert_eq!(rows.len(), 48);
    let found: Vec<(String, String)> = agree(&rows, Bootstrap::default())
        .into_iter()
        .map(|found| (found.language, format!("{:.4}", found.systems.pearson.value.unwrap())))
        .collect();
    let printed = [("en", "0.9225"), ("es", "0.9683"), ("bg", "0.9205"), ("zh", "0.8685")];
    assert_eq!(found, printed.map(|(language, pearson)| (language.to_string(), pearson.to_string())));
}

#[test]
fn a_wrong_table_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.csv");
    for (text, expected) in [
        ("system,language,judge\na,en,1\n", "found no human"),
        ("system,language,judge,human\n", "found none"),
        ("system,language,judge,human\na,en,1,2\na,en,one,2\n", "line 3: judge: expected a number"),
        ("system,language,judge,human\na,en,1\n", "line 2"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = read_table(&path).unwrap_err().to_string();
        assert!(error.contains("table.csv") && error.contains(expected), "{error}");
    }
    std::fs::write(&path, "\u{feff}human, judge,language,system\n1,,en,a\n2,1,en,b\n").unwrap();
    assert_eq!(agree(&read_table(&path).unwrap(), Bootstrap::default())[0].unrated_rows, 1);
}

#[test]
fn a_table_that_contradicts_itself_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.csv");
    let (totals, responses) = ("system,language,judge,human", "system,language,id,judge,human");
    let people = "system,language,id,rater,judge,human";
    for (heading, rows, expected) in [
        (totals, "a,en,1,2\nb,en,1,2\na,en,2,3\n", "line 4: expected one row of system \"a\" in en"),
        (responses, "a,en,1,1,2\na,en,1,1,3\n", "line 3: expected one row of system \"a\", id \"1\""),
        (people, "a,en,1,x,1,2\na,en,1,x,1,3\n", "line 3: expected one mark by \"x\""),
        (
            people,
            "a,en,1,x,1,2\na,en,1,y,3,2\n",
            "line 3: judge: expected 1 for system \"a\", id \"1\" in en as in line 2",
        ),
        ("system,language,judge,human,human", "a,en,1,2,3\n", "line 1: expected one column human"),
        (totals, "a,EN,1,2\n", "line 2: language: expected \"en\", found \"EN\""),
        (totals, "a,en-US,1,2\n", "line 2: language: expected \"en\", found \"en-US\""),
        (totals, "a,,1,2\n", "line 2: language: unknown language code ``"),
        (totals, "a,en,1,2\n ,en,1,2\n", "line 3: system: expected a name, found nothing"),
    ] {
        std::fs::write(&path, format!("{heading}\n{rows}")).unwrap();
        let error = read_table(&path).unwrap_err().to_string();
        assert!(error.contains("table.csv") && error.contains(expected), "{error}");
    }
    for (heading, rows) in [
        (totals, "a,en,1,2\na,fi,2,2\n"),
        ("system,language,rater,judge,human", "a,en,x,1,2\na,en,y,1,3\n"),
        (people, "a,en,1,x,1,2\na,en,1,y,1,3\na,en,2,x,,2\nb,en,1,x,3,\nb,en,1,x,3,1\n"),
    ] {
        std::fs::write(&path, format!("{heading}\n{rows}")).unwrap();
        read_table(&path).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn an_unrated_response_is_not_a_zero_in_a_systems_total() {
    let row = |system: &str, id: usize, judge: Option<f64>, human: f64| Row {
        system: system.into(),
        language: "en".into(),
        id: Some(id.to_string()),
        rater: None,
        judge,
        human: Some(human),
    };
    let mut rows = Vec::new();
    for (system, judge, human) in [("a", 1.0, 1.0), ("b", 2.0, 2.0), ("c", 3.0, 3.0)] {
        // The judge left most of the best system's responses unrated: as zeros they would make it the worst.
        rows.extend((0..10).map(|id| row(system, id, (system != "c" || id < 2).then_some(judge), human)));
    }
    let found = agree(&rows, Bootstrap { draws: 20, seed: 1 }).remove(0);
    assert_eq!((found.unrated_rows, found.scaled_systems, found.systems.pairs), (8, 1, 3));
    let mut totals = found.systems.largest_differences;
    totals.sort_by(|a, b| a.system.cmp(&b.system));
    let totals: Vec<(f64, f64)> = totals.iter().map(|total| (total.judge, total.human)).collect();
    assert_eq!(totals, [(10.0, 10.0), (20.0, 20.0), (30.0, 30.0)]);
    // Exact but for the last bits of a few sums.
    assert!((found.systems.pearson.value.unwrap() - 1.0).abs() < 1e-12);
}

/// A line goes through any two points: each correlation would be 1 or -1, and so would both ends of its interval.
#[test]
fn two_systems_correlate_in_no_way() {
    let row = |system: &str, id: Option<usize>, judge: f64, human: f64| Row {
        system: system.into(),
        language: "en".into(),
        id: id.map(|id| id.to_string()),
        rater: None,
        judge: Some(judge),
        human: Some(human),
    };
    let correlations = |Agreement { pearson, spearman, kendall, .. }: Agreement| [pearson, spearman, kendall];
    let none = Correlation { value: None, interval: None, p: None };
    let two = [row("a", None, 1.0, 1.0), row("b", None, 2.0, 3.0)];
    let found = agree(&two, Bootstrap::default()).remove(0);
    assert_eq!(correlations(found.systems), [none.clone(), none.clone(), none.clone()]);
    // Over the responses of the same two systems there is something to tell.
    let mut responses = Vec::new();
    for id in 0..6 {
        responses.push(row("a", Some(id), (id % 3) as f64, (id % 2) as f64));
        responses.push(row("b", Some(id), (id % 3) as f64, (id % 4) as f64));
    }
    let found = agree(&responses, Bootstrap::default()).remove(0);
    assert_eq!(correlations(found.systems), [none.clone(), none.clone(), none]);
    let over_responses = correlations(found.responses.unwrap());
    assert!(over_responses.iter().all(|found| found.value.is_some() && found.interval.is_some()));
    let three = [two[0].clone(), two[1].clone(), row("c", None, 3.0, 2.0)];
    let found = agree(&three, Bootstrap::default()).remove(0);
    assert!((found.systems.pearson.value.unwrap() - 0.5).abs() < 1e-12);
    // Most draws of three hold two of them at most: they would make an interval of -1 and 1 alone.
    assert!(correlations(found.systems).iter().all(|found| found.interval.is_none()));
    let five = [&three[..], &[row("d", None, 5.0, 4.0), row("e", None, 4.0, 4.5)]].concat();
    let found = agree(&five, Bootstrap::default()).remove(0);
    assert!(correlations(found.systems).iter().all(|found| found.interval.is_some()));
}

fn real() -> Option<PathBuf> {
    let folder = std::env::var_os("POLYPACA_REAL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/real"), PathBuf::from);
    folder.join("judge").is_dir().then_some(folder)
}

fn read(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// On a line from "the first is better" to "the second is better".
fn place(verdict: &Value) -> Option<f64> {
    match verdict.as_str().map_or_else(|| verdict.to_string(), str::to_string).as_str() {
        "1" => Some(-1.0),
        "0" | "Tie" => Some(0.0),
        "2" => Some(1.0),
        _ => None,
    }
}

#[test]
fn pandalm_as_scipy_and_scikit_learn() {
    let Some(real) = real() else {
        println!("skipped: PandaLM's test set is not here (POLYPACA_REAL)");
        return;
    };
    let goldens: Value = serde_json::from_str(include_str!("goldens/agreement.json")).unwrap();
    // The same figures from other orders of summation: far below what a mistake would make.
    let close = |found: Option<f64>, expected: &Value| {
        let (found, expected) = (found.unwrap(), expected.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-9, "{found} against {expected}");
    };
    let people = read(&real.join("judge/pandalm_testset.json"));
    for (file, key, name) in [
        ("pandalm_gpt35_verdicts.json", "gpt_result", "gpt35"),
        ("pandalm_7b_verdicts.json", "pandalm_result", "pandalm_7b"),
    ] {
        let verdicts = read(&real.join("judge").join(file));
        let rows: Vec<Row> = people
            .iter()
            .zip(&verdicts)
            .flat_map(|(row, verdict)| {
                (1..=3).map(move |rater| Row {
                    system: "pair".into(),
                    language: "en".into(),
                    id: Some(row["idx"].to_string()),
                    rater: Some(format!("annotator{rater}")),
                    judge: place(&verdict[key]),
                    human: place(&row[format!("annotator{rater}")]),
                })
            })
            .collect();
        let found = agree(&rows, Bootstrap { draws: 50, seed: 1 }).remove(0);
        let Agreement { pairs, pearson, spearman, kendall, .. } = found.responses.unwrap();
        assert_eq!(pairs as u64, goldens[name]["pairs"].as_u64().unwrap());
        assert_eq!(found.unrated_rows, 3 * (people.len() - pairs));
        close(pearson.value, &goldens[name]["pearson"]);
        close(pearson.p, &goldens[name]["pearson_p"]);
        close(spearman.value, &goldens[name]["spearman"]);
        close(kendall.value, &goldens[name]["kendall"]);
        let interval = pearson.interval.unwrap();
        assert!(interval.low < pearson.value.unwrap() && pearson.value.unwrap() < interval.high);

        let raters = found.raters.unwrap();
        close(raters.alpha_nominal, &goldens["alpha_nominal"]);
        close(raters.alpha_ordinal, &goldens["alpha_ordinal"]);
        close(raters.alpha_interval, &goldens["alpha_interval"]);
        for (pair, golden) in raters.pairs.iter().zip(goldens["kappas"].as_array().unwrap()) {
            close(pair.kappa, &golden["kappa"]);
            close(pair.quadratic_kappa, &golden["quadratic"]);
        }
        // PandaLM's README gives 0.85, 0.88 and 0.86.
        let kappas: Vec<String> =
            raters.pairs.iter().map(|pair| format!("{:.4}", pair.kappa.unwrap())).collect();
        assert_eq!(kappas, ["0.8520", "0.8789", "0.8617"]);
    }
}
