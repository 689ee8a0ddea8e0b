//! Every number of `report.json` is counted again from the raw records.

use std::sync::OnceLock;

use crate::plain::{Case, Estimate, Line, Pair, Plain, dropped, gated, holm, mean, raw, told_apart};
use report::records::{Cost, ScoreStatus, SystemStatus};
use serde_json::Value;

/// An experiment of the paper's size but for its prompts, its report as JSON, and its records.
fn built() -> &'static (Value, Plain) {
    static BUILT: OnceLock<(Value, Plain)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        crate::synthetic::write(
            folder.path(),
            &crate::synthetic::Size { prompts: 10, ..crate::synthetic::Size::paper() },
        );
        let options = report::Options { resamples: 60, png: false, ..report::Options::default() };
        let summary = report::build(folder.path(), folder.path(), &options).unwrap();
        let json = serde_json::from_slice(&std::fs::read(summary.json).unwrap()).unwrap();
        (json, Plain::read(folder.path(), &options))
    })
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Equal but for the last bits of sums in another order.
fn close(found: &Value, expected: Option<f64>, of: &str) {
    match expected {
        None => assert!(found.is_null(), "{of}: {found}"),
        Some(expected) => {
            let found = found.as_f64().unwrap_or_else(|| panic!("{of}: no number, expected {expected}"));
            assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{of}: {found}, {expected}");
        }
    }
}

fn estimate(found: &Value, expected: Option<Estimate>, of: &str) {
    let Some(expected) = expected else {
        return assert!(found.is_null(), "{of}: {found}");
    };
    close(&found["value"], Some(expected.value), of);
    close(&found["low"], Some(expected.low), of);
    close(&found["high"], Some(expected.high), of);
}

/// As numbers are said: one digit, and never -0.0.
fn said(value: f64) -> String {
    format!("{:.1}", if value.abs() < 0.05 { 0.0 } else { value })
}

/// Whether a text says a number. A number half way between two texts may be said as either.
fn says(text: &str, number: f64) -> bool {
    [number - 1e-9, number, number + 1e-9].into_iter().any(|number| text == said(number))
}

fn line_of(plain: &Plain, found: &Value) -> Line {
    plain.line(
        text(&found["base_model"]),
        found["method"].as_str().unwrap_or_default(),
        text(&found["recipe"]),
    )
}

#[test]
fn every_cell_and_run() {
    let (json, plain) = built();
    let found = array(&json["results"]["lines"]);
    let lines = plain.lines();
    assert_eq!(found.len(), lines.len());
    for (found, line) in found.iter().zip(&lines) {
        assert_eq!(&line_of(plain, found), line);
        for (cell, language) in array(&found["cells"]).iter().zip(&plain.experiment.languages) {
            let of = format!("{line:?} {}", language.code);
            assert_eq!(text(&cell["language"]), language.code);
            let total = |number| plain.estimate(&plain.rows(line, &language.code, number));
            estimate(&cell["gated"], total(gated), &of);
            close(&cell["raw"], total(raw).map(|raw| raw.value), &of);
            close(
                &cell["dropped"],
                total(raw).zip(total(gated)).map(|(raw, gated)| raw.value - gated.value),
                &of,
            );
            let runs = plain.runs_of(line, &language.code);
            assert_eq!(array(&cell["runs"]).len(), runs.len(), "{of}");
            for (run, system) in array(&cell["runs"]).iter().zip(runs) {
                assert_eq!(text(&run["system"]), system.id);
                close(&run["gated"], run_total(plain, &system.id, &language.code, gated), &of);
                close(&run["raw"], run_total(plain, &system.id, &language.code, raw), &of);
                let scores = plain.scores_of(&system.id, &language.code);
                let count = |status| scores.iter().filter(|score| score.status == status).count() as u64;
                assert_eq!(run["rated"], count(ScoreStatus::Rated), "{of}");
                assert_eq!(run["unrated"], count(ScoreStatus::Unrated), "{of}");
                assert_eq!(run["missing"], 10 - scores.len() as u64, "{of}");
                let passed =
                    scores.iter().filter(|score| score.rating.is_some() && score.gate == Some(1)).count();
                assert_eq!(run["passed"], passed as u64, "{of}");
            }
        }
        estimate(&found["seen_mean"], plain.seen_mean(line, gated), "the mean");
        estimate(&found["seen_dropped"], plain.seen_mean(line, dropped), "the mean of what the gate took");
        for (name, number) in COSTS {
            close(&found["cost"][name], plain.cost(line, number), name);
        }
    }
}

type OfCost = fn(&Cost) -> f64;

const COSTS: [(&str, OfCost); 6] = [
    ("rows", |cost| cost.rows as f64),
    ("tokens", |cost| cost.tokens as f64),
    ("updates", |cost| cost.updates as f64),
    ("flops", |cost| cost.flops),
    ("seconds", |cost| cost.seconds),
    ("in_c", |cost| cost.in_c),
];

fn run_total(
    plain: &Plain,
    system: &str,
    language: &str,
    number: fn(&report::records::Score) -> f64,
) -> Option<f64> {
    let rated: Vec<f64> = plain.row(system, language, number).into_iter().flatten().collect();
    Some(mean(&rated)? * 10.0)
}

#[test]
fn every_comparison() {
    let (json, plain) = built();
    let cases = plain.cases();
    let found = array(&json["results"]["cases"]);
    assert_eq!(found.len(), cases.len());
    let mut rows = array(&json["comparisons"]["rows"]).iter();
    let pairs = cases.iter().flat_map(|case| &case.pairs);
    let mut corrected = holm(&pairs.map(|pair| pair.2.p()).collect::<Vec<Option<f64>>>()).into_iter();
    for (found, case) in found.iter().zip(&cases) {
        let of = format!("{} {} {}", case.base_model, case.method, case.language.code);
        assert_eq!(
            (text(&found["leader"]), &found["level"]),
            (case.leader.as_str(), &case.level.clone().into()),
            "{of}"
        );
        assert_eq!(found["tied"], Value::from(case.tied.clone()), "{of}");
        assert_eq!(array(&found["same"]).len(), case.twins, "{of}");
        assert_eq!(array(&found["pairs"]).len(), case.pairs.len(), "{of}");
        for (pair, (left, right, difference)) in array(&found["pairs"]).iter().zip(&case.pairs) {
            assert_eq!((text(&pair["left"]), text(&pair["right"])), (left.as_str(), right.as_str()), "{of}");
            close(&pair["detectable"], difference.detectable(), &of);
            close(&pair["p"], difference.p(), &of);
            close(&pair["p_corrected"], corrected.next().unwrap(), &of);
            let difference = &difference.estimate;
            estimate(&pair["difference"], Some(*difference), &of);
            assert_eq!(pair["told_apart"], told_apart(difference), "{of}");
            let row: Vec<&str> = array(rows.next().unwrap()).iter().map(text).collect();
            let numbers = [difference.value, difference.low, difference.high];
            assert_eq!(row[..3], [&case.base_model, &case.method, &case.language.code]);
            assert_eq!(row[3..5], [left, right]);
            assert!(row[5..8].iter().zip(numbers).all(|(text, number)| says(text, number)), "{row:?}");
            assert_eq!(row[8], if told_apart(difference) { "yes" } else { "no" });
        }
    }
}

fn mean_says(plain: &Plain, line: &Line, text: &str) -> bool {
    plain.seen_mean(line, gated).map_or(text == "–", |mean| says(text, mean.value))
}

#[test]
fn every_number_of_the_tables() {
    let (json, plain) = built();
    let mut cells = 0;
    for block in array(&json["grid"]["blocks"]) {
        for row in array(&block["rows"]) {
            let line = plain.line(text(&block["base_model"]), text(&block["method"]), text(&row["recipe"]));
            assert!(mean_says(plain, &line, text(&row["mean"])), "{line:?}");
            for cell in array(&row["cells"]) {
                let total = |number| plain.estimate(&plain.rows(&line, text(&cell["language"]), number));
                let Some((gated, raw)) = total(gated).zip(total(raw)) else {
                    assert!(["–", "failed", "missing"].contains(&text(&cell["gated"])), "{cell}");
                    continue;
                };
                let (low, high) = text(&cell["interval"]).split_once('–').unwrap();
                assert!(says(text(&cell["gated"]), gated.value), "{line:?}");
                assert!(says(low, gated.low) && says(high, gated.high), "{line:?}");
                assert!(says(text(&cell["raw"]), raw.value), "{line:?}");
                assert!(says(text(&cell["dropped"]), raw.value - gated.value), "{line:?}");
                cells += 1;
            }
        }
    }
    // 15 base models × 2 methods × 5 rows × 8 languages, less monolingual in 2 unseen ones and a failed recipe in 8.
    assert_eq!(cells, 15 * 2 * (5 * 8 - 2) - 8);
    let rows = array(&json["costs"]["rows"]);
    let tuned = plain.lines().into_iter().filter(|line| line.method.is_some());
    for (row, line) in rows.iter().zip(tuned) {
        let row: Vec<&str> = array(row).iter().map(text).collect();
        assert_eq!(row[..3], [&line.base_model, line.method.as_ref().unwrap(), &line.recipe]);
        let Some(flops) = plain.cost(&line, |cost| cost.flops) else {
            assert!(row[3..].iter().all(|cell| *cell == "–"), "{row:?}");
            continue;
        };
        let count = |number| format!("{:.0}", plain.cost(&line, number).unwrap());
        assert_eq!(row[4], said(plain.cost(&line, |cost| cost.in_c).unwrap()));
        assert_eq!(
            row[5..8],
            [
                count(|cost| cost.rows as f64),
                count(|cost| cost.tokens as f64),
                count(|cost| cost.updates as f64)
            ]
        );
        assert_eq!(row[8], format!("{flops:.2e}"));
        assert!(mean_says(plain, &line, row[10]), "{row:?}");
    }
    let lost = plain.systems.iter().filter(|system| system.status != SystemStatus::Done).count();
    assert_eq!(array(&json["lost_runs"]["rows"]).len(), lost);
}

/// How often each recipe leads alone, in words, and in how many cases none does.
fn leaders(plain: &Plain, cases: &[&Case]) -> (String, usize) {
    let mut counts: Vec<(&str, usize, usize)> = Vec::new();
    for recipe in &plain.experiment.recipes {
        let leads = |case: &&&Case| case.leader == recipe.name;
        let rival =
            |case: &&Case| case.pairs.iter().any(|pair| pair.0 == recipe.name || pair.1 == recipe.name);
        if cases.iter().any(rival) {
            let rivals = |case: &&&Case| case.pairs.iter().any(|pair| pair.1 != "untuned");
            let alone =
                cases.iter().filter(leads).filter(rivals).filter(|case| case.level.is_empty()).count();
            let highest = |case: &&&Case| leads(case) || case.tied.contains(&recipe.name);
            counts.push((&recipe.name, alone, cases.iter().filter(highest).count()));
        }
    }
    counts.sort_by_key(|(_, alone, leads)| std::cmp::Reverse((*alone, *leads)));
    let words: Vec<String> = counts.iter().map(|(name, alone, _)| format!("{name} in {alone}")).collect();
    let (last, start) = words.split_last().unwrap();
    (format!("{} and {last}.", start.join(", ")), cases.iter().filter(|case| !case.level.is_empty()).count())
}

#[test]
fn every_number_of_the_findings() {
    let (json, plain) = built();
    let findings: Vec<&str> = array(&json["findings"]).iter().map(|one| text(&one["text"])).collect();
    let cases = plain.cases();
    let of =
        |wanted: &dyn Fn(&Case) -> bool| cases.iter().filter(|case| wanted(case)).collect::<Vec<&Case>>();
    let groups = [
        of(&|case| case.language.seen),
        of(&|case| case.language.seen && case.method == "lora"),
        of(&|case| case.language.seen && case.method == "full"),
        of(&|case| !case.language.seen),
    ];
    for (place, cases) in [2, 3, 4, 7].into_iter().zip(&groups) {
        let (alone, level) = leaders(plain, cases);
        assert!(
            findings[place].contains(&format!("of {} language × base model", cases.len())),
            "{}",
            findings[place]
        );
        assert!(
            findings[place].contains(&format!("{alone} In {level} the best")),
            "{}: {alone}",
            findings[place]
        );
    }
    assert!(findings[5].contains(&power(&cases)), "{}: {}", findings[5], power(&cases));
    assert!(findings[6].contains(&cheapest(plain)), "{}: {}", findings[6], cheapest(plain));
    let beaten = of(&|case| case.language.seen);
    let to_untuned = |case: &&&Case| {
        case.pairs
            .iter()
            .any(|pair| pair.0 == case.leader && pair.1 == "untuned" && pair.2.estimate.low > 0.0)
    };
    let above = beaten.iter().filter(to_untuned).count();
    assert!(findings[8].contains(&format!("in {above} of {} cases", beaten.len())), "{}", findings[8]);
    for recipe in ["english", "downsampled"] {
        let means = |number| {
            let lines = plain.lines().into_iter().filter(|line| line.recipe == recipe);
            mean(&lines.filter_map(|line| Some(plain.seen_mean(&line, number)?.value)).collect::<Vec<f64>>())
        };
        let detail = text(&json["findings"][9]["detail"]);
        let words = format!("{recipe} {} of {}", said(means(dropped).unwrap()), said(means(raw).unwrap()));
        assert!(detail.contains(&words), "{detail}: {words}");
    }
    let count = |status| plain.systems.iter().filter(|system| system.status == status).count();
    let unrated = plain.scores.iter().filter(|score| score.status == ScoreStatus::Unrated).count();
    let incomplete = format!(
        "{} runs failed, {} run is missing",
        count(SystemStatus::Failed),
        count(SystemStatus::Missing)
    );
    assert!(
        findings[10].contains(&incomplete) && findings[10].contains(&format!("{unrated} response")),
        "{}",
        findings[10]
    );
}

/// Every two recipes in every language over all base models, and what is said of the best two.
#[test]
fn every_two_recipes_over_all_base_models() {
    let (json, plain) = built();
    let found = array(&json["results"]["pooled"]);
    let mut expected = plain.pooled();
    assert_eq!(found.len(), expected.len());
    for (found, pooled) in found.iter().zip(&mut expected) {
        let of = format!("{} {} {} {}", pooled.method, pooled.language.code, pooled.left, pooled.right);
        for (key, text) in [
            ("method", &pooled.method),
            ("language", &pooled.language.code),
            ("left", &pooled.left),
            ("right", &pooled.right),
        ] {
            assert_eq!(found[key], text.as_str(), "{of}");
        }
        assert_eq!(found["base_models"], pooled.base_models, "{of}");
        estimate(&found["difference"], Some(pooled.difference), &of);
    }
    for (place, method) in plain.experiment.methods.iter().enumerate() {
        let finding = &json["findings"][place];
        let best: Vec<_> = expected
            .iter()
            .filter(|pooled| pooled.method == *method && pooled.language.seen)
            .filter(|pooled| (pooled.left.as_str(), pooled.right.as_str()) == ("monolingual", "multilingual"))
            .collect();
        assert_eq!(best.len(), 6);
        let sign =
            if best.iter().map(|pooled| pooled.difference.value).sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
        let winner =
            if sign < 0.0 { "multilingual beats monolingual" } else { "monolingual beats multilingual" };
        for pooled in best {
            let Estimate { value, low, high } = pooled.difference;
            let (low, high) = (f64::min(sign * low, sign * high), f64::max(sign * low, sign * high));
            let name = &pooled.language.name;
            let number = format!("{name} {} [{}, {}]", said(sign * value), said(low), said(high));
            assert!(text(&finding["detail"]).contains(&number), "{finding}: {number}");
            let clause =
                text(&finding["text"]).split("; ").find(|clause| clause.contains(name.as_str())).unwrap();
            assert_eq!(clause.contains(winner), low > 0.0, "{name}: {clause}");
            assert_eq!(
                clause.contains("cannot be told apart"),
                low <= 0.0 && high >= 0.0,
                "{name}: {clause}"
            );
        }
    }
}

/// What so many prompts can tell.
fn power(cases: &[Case]) -> String {
    let corrected =
        holm(&cases.iter().flat_map(|case| &case.pairs).map(|pair| pair.2.p()).collect::<Vec<Option<f64>>>());
    let pairs = cases.iter().flat_map(|case| &case.pairs).zip(corrected);
    let has_bound = |pair: &Pair| pair.1 != "untuned" && pair.2.detectable().is_some();
    let recipes: Vec<_> = pairs.filter(|(pair, _)| has_bound(pair)).collect();
    let mut bounds: Vec<f64> = recipes.iter().filter_map(|(pair, _)| pair.2.detectable()).collect();
    bounds.sort_by(f64::total_cmp);
    let is_small = |pair: &Pair| Some(pair.2.estimate.value.abs()) < pair.2.detectable();
    let small = recipes.iter().filter(|(pair, _)| is_small(pair)).count();
    let hold = recipes.iter().filter(|(_, corrected)| corrected.is_some_and(|p| p < 0.05)).count();
    format!(
        "from about {} points on. Of {} differences, {small} lie below what it would take, and {hold} hold once",
        said(bounds[bounds.len() / 2]),
        recipes.len()
    )
}

/// The cheapest recipe whose every seen language reaches half of the greatest score.
fn cheapest(plain: &Plain) -> String {
    let seen: Vec<&str> =
        plain.experiment.languages.iter().filter(|one| one.seen).map(|one| one.code.as_str()).collect();
    let reaches = |line: &Line| {
        let value = |code: &&str| plain.estimate(&plain.rows(line, code, gated)).map(|total| total.value);
        seen.iter().all(|code| value(code).is_some_and(|value| value >= 15.0))
    };
    let flops = |line: &Line| plain.cost(line, |cost| cost.flops);
    let lines = plain.lines().into_iter().filter(|line| line.method.is_some() && flops(line).is_some());
    let line = lines
        .filter(reaches)
        .min_by(|left, right| flops(left).unwrap().total_cmp(&flops(right).unwrap()))
        .unwrap();
    format!(
        "at least 15.0 in every seen language is {} on {} by {}: {} C, {:.2e} floating-point operations",
        line.recipe,
        line.base_model,
        line.method.clone().unwrap(),
        said(plain.cost(&line, |cost| cost.in_c).unwrap()),
        flops(&line).unwrap()
    )
}

/// Every mark of a figure that has records: the figure's id, the panel, the series or bar, and the mark.
fn marks(json: &Value) -> Vec<(&str, &Value, &Value, &Value)> {
    let mut marks = Vec::new();
    for figure in array(&json["figures"]) {
        for panel in array(&figure["panels"]) {
            for series in panel["plot"]["series"].as_array().into_iter().flatten() {
                let points = array(&series["points"]).iter();
                marks.extend(points.map(|point| (text(&figure["id"]), panel, series, point)));
            }
            for group in panel["plot"]["groups"].as_array().into_iter().flatten() {
                marks.extend(array(&group["bars"]).iter().map(|bar| (text(&figure["id"]), panel, bar, bar)));
            }
        }
    }
    marks
}

#[test]
fn every_mark_of_the_figures() {
    let (json, plain) = built();
    let mut compared = 0;
    for (id, _, series, mark) in marks(json) {
        let Some(source) = mark.get("source") else { continue };
        let (base, language) = (text(&source["base_model"]), text(&source["language"]));
        let line = plain.line(base, text(&source["method"]), text(&source["recipe"]));
        let value = mark.get("value").unwrap_or(&mark["y"]);
        let model = plain.experiment.base_models.iter().find(|model| model.name == base).unwrap();
        if text(&series["name"]).ends_with(", seeds") {
            continue;
        }
        let expected = match id {
            "gate" => plain.seen_mean(&line, dropped),
            "cost" => plain.seen_mean(&line, gated),
            _ => plain.estimate(&plain.rows(&line, language, gated)),
        };
        close(value, expected.map(|expected| expected.value), id);
        if id != "fertility" {
            close(&mark["interval"][0], expected.map(|expected| expected.low), id);
            close(&mark["interval"][1], expected.map(|expected| expected.high), id);
        }
        let x = match id {
            "cost" => plain.cost(&line, |cost| cost.flops).map(f64::log10),
            "fertility" => model.fertility.get(language).copied(),
            _ if id.starts_with("seeds") || mark.get("x").is_none() => None,
            _ => Some((model.parameters as f64 / 1e9).log10()),
        };
        if let Some(x) = x {
            close(&mark["x"], Some(x), id);
        }
        compared += 1;
    }
    assert!(compared > 1900, "{compared}");
}

#[test]
fn every_seed() {
    let (json, plain) = built();
    let mut compared = 0;
    for figure in array(&json["figures"]).iter().filter(|figure| text(&figure["id"]).starts_with("seeds")) {
        for panel in array(&figure["panels"]) {
            let series = array(&panel["plot"]["series"]).iter();
            for series in series.filter(|series| text(&series["name"]).ends_with(", seeds")) {
                let source = &series["points"][0]["source"];
                let (method, language) = (text(&source["method"]), text(&source["language"]));
                let line = plain.line(text(&source["base_model"]), method, text(&source["recipe"]));
                let runs = plain.runs_of(&line, language);
                assert_eq!(array(&series["points"]).len(), runs.len());
                for (point, system) in array(&series["points"]).iter().zip(runs) {
                    close(&point["y"], run_total(plain, &system.id, language, gated), &system.id);
                    compared += 1;
                }
            }
        }
    }
    // Two methods × (4 recipes in 6 seen languages, 3 in 2 unseen ones) × 3 seeds.
    assert_eq!(compared, 2 * (4 * 6 + 3 * 2) * 3);
}

#[test]
fn every_learning_curve() {
    let (json, plain) = built();
    for method in &plain.experiment.methods {
        let id = format!("learning-{method}");
        let figure = array(&json["figures"]).iter().find(|figure| text(&figure["id"]) == id).unwrap();
        let seen = plain.experiment.languages.iter().filter(|language| language.seen);
        for (panel, language) in array(&figure["panels"]).iter().zip(seen) {
            let curves = array(&panel["plot"]["series"]).iter().filter(|series| series["joined"] == true);
            let mut curves: Vec<&[Value]> = curves.map(|series| array(&series["points"])).collect();
            for recipe in &plain.experiment.recipes {
                for system in plain.runs_of(&plain.line("dogwood-7b", method, &recipe.name), &language.code) {
                    let losses = system.learning_curve.iter().filter_map(|point| {
                        Some((point.update as f64, *point.validation_loss_by_language.get(&language.code)?))
                    });
                    let losses: Vec<(f64, f64)> = losses.collect();
                    if losses.is_empty() {
                        continue;
                    }
                    let curve = curves.remove(0);
                    let found =
                        curve.iter().map(|one| (one["x"].as_f64().unwrap(), one["y"].as_f64().unwrap()));
                    assert_eq!(found.collect::<Vec<_>>(), losses);
                }
            }
            assert!(curves.is_empty(), "{} curves too many", curves.len());
        }
    }
}

#[test]
fn every_share_of_the_confusion() {
    let (json, plain) = built();
    let figure = array(&json["figures"]).iter().find(|figure| figure["id"] == "confusion").unwrap();
    let codes: Vec<&str> = plain.experiment.languages.iter().map(|language| language.code.as_str()).collect();
    for panel in array(&figure["panels"]) {
        let recipe = text(&panel["title"]);
        let lines: Vec<Line> = plain.lines().into_iter().filter(|line| line.recipe == recipe).collect();
        for (row, asked) in array(&panel["plot"]["values"]).iter().zip(&codes) {
            let mut counts = vec![0.0; codes.len() + 1];
            for line in &lines {
                for system in plain.runs_of(line, asked) {
                    for score in plain.scores_of(&system.id, asked) {
                        let is =
                            if score.gate == Some(1) { Some(*asked) } else { score.identified.as_deref() };
                        let column = codes.iter().position(|code| Some(*code) == is).unwrap_or(codes.len());
                        counts[column] += 1.0;
                    }
                }
            }
            let sum: f64 = counts.iter().sum();
            for (share, count) in array(row).iter().zip(&counts) {
                close(share, (sum > 0.0).then_some(count / sum), recipe);
            }
        }
    }
}
