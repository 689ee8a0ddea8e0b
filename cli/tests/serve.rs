//! `serve` as clients meet it: many connections at once, those that hang up, bodies that are refused, and its end.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A server on a tiny random model with an adapter, ended when it is dropped.
struct Server {
    child: Child,
    address: String,
}

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/llama-grouped").join(part)
}

impl Server {
    fn start(more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_polypaca"))
            .args(["serve", "--served-model-name", "base", "--address", "127.0.0.1:0", "--json", "--model"])
            .arg(golden("model"))
            .arg("--lora-modules")
            .arg(format!("tuned={}", golden("adapter").display()))
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(said["models"], json!(["base", "tuned"]));
        let url = said["url"].as_str().expect("a text");
        let address = url.trim_start_matches("http://").trim_end_matches("/v1").to_owned();
        Self { child, address }
    }

    fn connect(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n"
        );
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).expect("it reads");
        stream
    }

    /// The status and the body.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        read(self.connect(method, path, body))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.call("POST", path, &body.to_string());
        (status, serde_json::from_str(&text).expect("JSON"))
    }

    fn signal(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(killed.expect("kill is there").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn chat(model: &str, words: &str, more: Value) -> Value {
    let mut body = json!({
        "model": model, "messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": 24,
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// The text and the last reason of a stream.
fn streamed(body: &str) -> (String, Value) {
    assert!(body.contains("data: [DONE]"), "{body}");
    let (mut text, mut reason) = (String::new(), Value::Null);
    for line in body.lines().filter_map(|line| line.strip_prefix("data: {")) {
        let event: Value = serde_json::from_str(&format!("{{{line}")).expect("JSON");
        assert!(event.get("error").is_none(), "{event}");
        let choice = &event["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (text, reason)
}

#[test]
fn sixty_four_connections_get_what_each_gets_alone() {
    let server = Server::start(&[]);
    let path = "/v1/chat/completions";
    let model = |n: usize| if n.is_multiple_of(2) { "base" } else { "tuned" };
    let words = |n: usize| format!("Name the sea number {}.", n % 8);
    let alone: Vec<Value> =
        (0..8).map(|n| server.post(path, &chat(model(n), &words(n), json!({}))).1).collect();
    assert_ne!(alone[0]["choices"], alone[1]["choices"], "the adapter answers otherwise");
    assert_eq!(alone[0]["usage"]["completion_tokens"].as_u64().map(|n| n <= 24), Some(true));
    let hung_up: Vec<TcpStream> = (0..16)
        .map(|n| {
            server.connect(
                "POST",
                path,
                &chat("base", &words(n), json!({"stream": true, "max_tokens": 900})).to_string(),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for n in 0..64 {
            let (server, alone) = (&server, &alone);
            scope.spawn(move || {
                let stream = n % 3 != 0;
                let body = chat(model(n), &words(n), json!({"stream": stream}));
                let (status, text) = server.call("POST", path, &body.to_string());
                assert_eq!(status, 200, "{text}");
                let expected = &alone[n % 8]["choices"][0];
                if stream {
                    let (text, reason) = streamed(&text);
                    assert_eq!(
                        (json!(text), reason),
                        (expected["message"]["content"].clone(), expected["finish_reason"].clone())
                    );
                } else {
                    let whole: Value = serde_json::from_str(&text).expect("JSON");
                    assert_eq!(&whole["choices"][0], expected);
                }
            });
        }
        drop(hung_up);
    });
}

#[test]
fn what_cannot_be_served_is_refused_in_openais_shape() {
    let server = Server::start(&["--new-tokens", "64"]);
    let path = "/v1/chat/completions";
    let refused = |status: u16, found: (u16, String)| {
        let body: Value = serde_json::from_str(&found.1).expect("JSON");
        assert_eq!(found.0, status, "{body}");
        assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{body}");
        body
    };
    refused(400, server.call("POST", path, "{\"model\": "));
    refused(413, server.call("POST", path, &chat("base", &"x".repeat(10 << 20), json!({})).to_string()));
    let unknown = refused(404, server.call("POST", path, &chat("other", "x", json!({})).to_string()));
    assert_eq!(unknown["error"]["code"], "model_not_found");
    refused(404, server.call("GET", "/v1/models/other", ""));
    refused(404, server.call("GET", "/v2", ""));
    refused(405, server.call("GET", path, ""));
    for more in [
        json!({"max_tokens": 65}),
        json!({"max_tokens": 0}),
        json!({"temperature": 3}),
        json!({"stop": ""}),
        json!({"n": 0}),
        json!({"n": 1, "best_of": 2}),
        json!({"logprobs": true}),
        json!({"min_p": 0.5}),
        json!({"guided_json": {}}),
        json!({"messages": []}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    ] {
        refused(400, server.call("POST", path, &chat("base", "x", more).to_string()));
    }
    let one =
        server.call("POST", path, &chat("base", "x", json!({"best_of": 1, "max_tokens": 1})).to_string());
    assert_eq!(one.0, 200, "{}", one.1);
    let long = refused(
        400,
        server.call("POST", path, &chat("base", &"word ".repeat(50_000), json!({})).to_string()),
    );
    assert_eq!(long["error"]["code"], "context_length_exceeded");
    assert_eq!(long["error"]["param"], "messages");
    let models = server.call("GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models.1).expect("JSON");
    assert_eq!((&models["data"][1]["id"], &models["data"][1]["parent"]), (&json!("tuned"), &json!("base")));
}

#[test]
fn seeds_choices_and_stops_hold() {
    let server = Server::start(&[]);
    let ask = |more: Value| {
        let (status, body) = server.post("/v1/chat/completions", &chat("base", "Sing.", more));
        assert_eq!(status, 200, "{body}");
        body["choices"].clone()
    };
    let sampled = json!({"temperature": 1.0, "seed": 5, "n": 2});
    let drawn = ask(sampled.clone());
    assert_eq!(drawn, ask(sampled));
    assert_ne!(drawn[0]["message"], drawn[1]["message"]);
    let whole = ask(json!({}))[0]["message"]["content"].as_str().expect("a text").to_owned();
    let stop: String = whole.chars().skip(5).take(3).collect();
    let cut = ask(json!({"stop": [stop]}))[0]["message"]["content"].as_str().expect("a text").to_owned();
    assert!(!cut.contains(&stop) && whole.starts_with(&cut));
    let body = json!({"model": "tuned", "prompt": ["A sea", "A lake"], "max_tokens": 4, "temperature": 0});
    let (status, found) = server.post("/v1/completions", &body);
    assert_eq!((status, found["choices"].as_array().map(Vec::len)), (200, Some(2)));
}

#[test]
fn a_full_queue_refuses_until_a_client_hangs_up() {
    let server = Server::start(&["--queue", "1", "--new-tokens", "100000"]);
    let path = "/v1/chat/completions";
    let (_, models) = server.call("GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models).expect("JSON");
    let most = models["data"][0]["max_model_len"].as_u64().expect("a count") - 200;
    // No end token is likely to be drawn among so many: it goes on until it is hung up.
    let long = chat("base", "Sing.", json!({"stream": true, "max_tokens": most, "temperature": 2}));
    let mut first = server.connect("POST", path, &long.to_string());
    first.read_exact(&mut [0; 12]).expect("it begins");
    let (status, _) = server.call("POST", path, &chat("base", "x", json!({"max_tokens": 1})).to_string());
    assert!(status == 429 || status == 200, "{status}");
    drop(first);
    let begin = Instant::now();
    while server.call("POST", path, &chat("base", "x", json!({"max_tokens": 1})).to_string()).0 != 200 {
        assert!(begin.elapsed() < Duration::from_secs(20), "the place was never free again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn told_to_end_it_finishes_what_streams() {
    let mut server = Server::start(&[]);
    let body = chat("base", "Sing.", json!({"stream": true, "max_tokens": 64}));
    let expected = streamed(&server.call("POST", "/v1/chat/completions", &body.to_string()).1);
    let mut stream = server.connect("POST", "/v1/chat/completions", &body.to_string());
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).expect("it begins");
    server.signal();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("it goes on to its end");
    assert_eq!(streamed(&rest), expected);
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
}

/// The official client, where Python has it (`POLYPACA_PYTHON`, or `python3`).
#[test]
fn half_a_request_keeps_no_server_from_its_end() {
    let mut server = Server::start(&[]);
    let mut half = TcpStream::connect(&server.address).expect("it listens");
    half.write_all(b"POST /v1/chat/comp").expect("it reads");
    let mut body = TcpStream::connect(&server.address).expect("it listens");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    body.write_all(head.as_bytes()).expect("it reads");
    assert_eq!(server.call("GET", "/health", "").0, 200);
    server.signal();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = server.child.try_wait().expect("a child of ours") {
            break status;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "{status}");
}

#[test]
fn openais_own_client_streams_and_hangs_up() {
    let python = std::env::var("POLYPACA_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import openai"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {python} has no package openai (set POLYPACA_PYTHON)");
        return;
    }
    let server = Server::start(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/check_openai_client.py");
    let url = format!("http://{}/v1", server.address);
    let ended = Command::new(&python).arg(script).args([&url, "base", "tuned"]).status();
    assert!(ended.expect("python starts").success());
}
