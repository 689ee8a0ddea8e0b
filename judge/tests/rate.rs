//! The people's rating page, over HTTP as a browser uses it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use instructions::prompt::Response;
use judge::agree::{Bootstrap, agree, read_table};
use judge::judging::{Silent, judge_responses};
use judge::rate::export::{judge_column, write_table};
use judge::rate::sample::{SampleSettings, draw_sample};
use judge::rate::server;
use judge::rate::store::Store;
use judge::reference::ReferenceJudge;
use serde_json::{Value, json};

const SYSTEMS: [&str; 3] = ["monolingual-secret", "multilingual-secret", "english-secret"];

/// Six prompts in Bengali and Chinese, three systems; the first response tries to run a script.
fn responses() -> Vec<Response> {
    let mut responses = Vec::new();
    for (language, prompt) in [("bn", "বাংলাদেশের রাজধানী কী?"), ("zh", "中国的首都在哪里？")]
    {
        for id in 0..6 {
            for (place, system) in SYSTEMS.iter().enumerate() {
                let line = json!({
                    "id": format!("id-{id}"), "language": language, "prompt": format!("{prompt} {id}"),
                    "response": format!("<script>alert({place})</script> {prompt}"), "system": system,
                    "reference": prompt
                });
                responses.push(serde_json::from_value(line).unwrap());
            }
        }
    }
    responses
}

struct Site {
    url: String,
    client: reqwest::Client,
}

impl Site {
    async fn start(store: Store) -> Site {
        // The client wants a provider for TLS, even to speak plain HTTP; a second installation is refused.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(server::serve(Arc::new(store), listener));
        Site { url, client: reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap() }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let response = self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }
}

fn handles(page: &Value) -> Vec<String> {
    page["responses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shown| shown["handle"].as_str().unwrap().into())
        .collect()
}

#[tokio::test]
async fn two_people_rate_stop_come_back_and_the_export_is_agrees_table() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("rate.sqlite");
    let store = Store::open(&database).unwrap();
    store.fill(&responses()).unwrap();
    let ana = store.add_rater("Ana", "zh").unwrap();
    let bo = store.add_rater("Bo", "zh").unwrap();
    let site = Site::start(store).await;

    // Nobody sees a system's name, and what a system wrote is data, not part of the page.
    let (status, html) = site.get(&format!("/r/{ana}")).await;
    assert!(status == 200 && !html.contains("secret") && !html.contains("alert("));
    let first = site.get(&format!("/r/{ana}/page/0")).await.1;
    assert!(!first.contains("secret") && !first.contains("id-0"), "{first}");
    assert!(first.contains("中国的首都在哪里"));

    for (token, base) in [(&ana, 1.0), (&bo, 1.5)] {
        let standing = site.json(&format!("/r/{token}/standing")).await;
        assert_eq!((standing["pages"].as_u64(), standing["total"].as_u64()), (Some(6), Some(18)));
        for page in 0..6 {
            let shown = site.json(&format!("/r/{token}/page/{page}")).await;
            for (place, shown) in shown["responses"].as_array().unwrap().iter().enumerate() {
                // A person marks by what stands in the text: the system's number.
                let text = shown["text"].as_str().unwrap();
                let system = (0..3).find(|system| text.contains(&format!("alert({system})"))).unwrap();
                let mark = base + system as f64 * 0.5;
                let body = json!({"handle": shown["handle"], "mark": mark});
                let (status, standing) = site.post(&format!("/r/{token}/mark"), body).await;
                assert_eq!((status, standing["done"].as_u64()), (200, Some(page * 3 + place as u64 + 1)));
            }
            let standing = site.json(&format!("/r/{token}/standing")).await;
            assert_eq!(standing["page"].as_u64(), Some((page + 1).min(5)), "where the person stopped");
        }
    }
    // Each person has another order somewhere, and the same one on every visit.
    let order = async |token: &str| {
        let mut order = String::new();
        for page in 0..6 {
            let shown = site.json(&format!("/r/{token}/page/{page}")).await;
            shown["responses"]
                .as_array()
                .unwrap()
                .iter()
                .for_each(|shown| order += &shown["text"].to_string()[..16]);
        }
        order
    };
    assert_ne!(order(&ana).await, order(&bo).await);
    assert_eq!(order(&ana).await, order(&ana).await);

    // The database as another program finds it, after a kill say.
    let store = Store::open(&database).unwrap();
    let out = folder.path().join("marks.csv");
    let ratings = folder.path().join("ratings.jsonl");
    let judged = judge_responses(&ReferenceJudge::default(), &responses(), &ratings, &Silent).unwrap();
    let marks = store.marks().unwrap();
    let column = judge_column(&judged.ratings, None, &marks).unwrap();
    assert_eq!((column.other_responses, column.unrated), (0, 0));
    write_table(&marks, &column.ratings, &out).unwrap();
    check_export(&out);

    // A system answered again meanwhile: what the judge rates then is not what people marked.
    let mut again = responses();
    again[18].response = "北京。".into();
    let judged = judge_responses(&ReferenceJudge::default(), &again[..20], &ratings, &Silent).unwrap();
    let column = judge_column(&judged.ratings, None, &marks).unwrap();
    assert_eq!((column.other_responses, column.unrated, column.ratings.len()), (2, 32, 1));
}

fn check_export(out: &Path) {
    let rows = read_table(out).unwrap();
    assert_eq!(rows.len(), 36);
    for row in &rows {
        let system = SYSTEMS.iter().position(|system| *system == row.system).unwrap();
        let base = if row.rater.as_deref() == Some("Ana") { 1.0 } else { 1.5 };
        assert_eq!(row.human, Some(base + system as f64 * 0.5));
        assert!(row.judge.is_some());
    }
    let found = agree(&rows, Bootstrap { draws: 20, seed: 1 }).remove(0);
    assert_eq!(
        (found.systems.pairs, found.responses.unwrap().pairs, found.raters.unwrap().raters),
        (3, 18, 2)
    );
}

#[test]
fn a_file_that_is_something_else_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("responses.jsonl");
    std::fs::write(&text, "{\"id\": \"1\"}\n".repeat(100)).unwrap();
    let foreign = folder.path().join("cache.sqlite");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("create table answers (key text)").unwrap();
    for (path, found) in [(&text, "no SQLite database"), (&foreign, "the tables answers")] {
        let before = std::fs::read(path).unwrap();
        for opened in [Store::open(path), Store::open_existing(path)] {
            let error = opened.unwrap_err().to_string();
            assert!(error.contains("rate draw") && error.ends_with(found), "{error}");
        }
        assert_eq!(std::fs::read(path).unwrap(), before);
    }
    let empty = folder.path().join("empty.sqlite");
    std::fs::write(&empty, "").unwrap();
    assert!(Store::open_existing(&empty).unwrap_err().to_string().ends_with("no tables"));
    Store::open(&empty).unwrap();
    Store::open_existing(&empty).unwrap();
}

#[tokio::test]
async fn undo_takes_back_one_mark_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("rate.sqlite")).unwrap();
    store.fill(&responses()).unwrap();
    let token = store.add_rater("Ana", "bn").unwrap();
    let site = Site::start(store).await;
    let handle = handles(&site.json(&format!("/r/{token}/page/2")).await).remove(0);
    for mark in [1.0, 2.5] {
        assert_eq!(
            site.post(&format!("/r/{token}/mark"), json!({"handle": handle, "mark": mark})).await.0,
            200
        );
    }
    for expected in [json!(1.0), Value::Null] {
        assert_eq!(site.post(&format!("/r/{token}/undo"), json!({})).await.1, json!({"page": 2}));
        assert_eq!(site.json(&format!("/r/{token}/page/2")).await["responses"][0]["mark"], expected);
    }
    assert_eq!(site.post(&format!("/r/{token}/undo"), json!({})).await.1, json!({"page": null}));
}

#[tokio::test]
async fn whoever_has_no_link_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("rate.sqlite")).unwrap();
    store.fill(&responses()).unwrap();
    let ana = store.add_rater("Ana", "zh").unwrap();
    let bo = store.add_rater("Bo", "zh").unwrap();
    let old = store.add_rater("Cleo", "zh").unwrap();
    let new = store.add_rater("Cleo", "zh").unwrap();
    let site = Site::start(store).await;
    assert_eq!(site.get(&format!("/r/{new}")).await.0, 200);
    let wrong = "0".repeat(32);
    for path in
        ["/".into(), "/r/".into(), format!("/r/{wrong}"), format!("/r/{wrong}/page/0"), format!("/r/{old}")]
    {
        assert_eq!(site.get(&path).await.0, 404, "{path}");
    }
    assert_eq!(site.get(&format!("/r/{ana}/page/6")).await.0, 404);
    // Another person's handle, a number and a made-up one are all unknown.
    let others = handles(&site.json(&format!("/r/{bo}/page/0")).await).remove(0);
    for handle in [others.as_str(), "1", wrong.as_str(), "' or 1=1 --"] {
        let (status, _) = site.post(&format!("/r/{ana}/mark"), json!({"handle": handle, "mark": 3.0})).await;
        assert_eq!(status, 404, "{handle}");
    }
    let own = handles(&site.json(&format!("/r/{ana}/page/0")).await).remove(0);
    for mark in [json!(-0.5), json!(3.5), json!(1.25), json!("3"), Value::Null] {
        let (status, _) = site.post(&format!("/r/{ana}/mark"), json!({"handle": own, "mark": mark})).await;
        assert_eq!(status, 422, "{mark}");
    }
    assert_eq!(site.json(&format!("/r/{ana}/standing")).await["done"], 0);
}

#[test]
fn a_sample_holds_every_system_to_each_prompt_drawn() {
    let mut all = responses();
    // A prompt that one system did not answer cannot be compared.
    all.retain(|response| !(response.system == SYSTEMS[0] && response.prompt.id == "id-3"));
    let settings = SampleSettings { prompts: 4, systems: None, seed: 7 };
    let sample = draw_sample(&all, settings);
    assert_eq!(sample.responses.len(), 2 * 4 * 3);
    assert!(sample.responses.iter().all(|response| response.prompt.id != "id-3"));
    let drawn = sample.prompts["bn"];
    assert_eq!((drawn.drawn, drawn.shared, drawn.answered), (4, 5, 6));
    assert_eq!(draw_sample(&all, settings), sample);
    assert_ne!(draw_sample(&all, SampleSettings { seed: 8, ..settings }), sample);
    assert_eq!(draw_sample(&all, SampleSettings { prompts: 99, ..settings }).responses.len(), 2 * 5 * 3);

    // Fewer systems: the same ones in every language, and a prompt that only the others lack can be drawn.
    let two = draw_sample(&all, SampleSettings { prompts: 99, systems: Some(2), ..settings });
    for language in ["bn", "zh"] {
        let of_language = two.responses.iter().filter(|response| response.prompt.language.code() == language);
        let systems: BTreeSet<&str> = of_language.map(|response| response.system.as_str()).collect();
        assert_eq!(systems.len(), 2);
    }
    let systems: BTreeSet<&str> = two.responses.iter().map(|response| response.system.as_str()).collect();
    assert_eq!(two.responses.len(), 2 * 2 * if systems.contains(SYSTEMS[0]) { 5 } else { 6 });
}
