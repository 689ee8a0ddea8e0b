//! chrF++ against sacrebleu (goldens: `oracle/chrf.py`).

use judge::chrf::chrf_plus_plus;
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    made_with: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    response: String,
    references: Vec<String>,
    score: f64,
}

#[test]
fn chrf_plus_plus_equals_sacrebleu() {
    let goldens: Goldens = serde_json::from_str(include_str!("goldens/chrf.json")).unwrap();
    assert!(goldens.made_with.starts_with("sacrebleu") && goldens.cases.len() >= 28);
    for case in goldens.cases {
        let ours = chrf_plus_plus(&case.response, &case.references).unwrap();
        // The same sums of quotients in the same order: only the last digits may differ.
        assert!((ours - case.score).abs() < 1e-9, "{:?}: {ours} against {}", case.response, case.score);
    }
}
