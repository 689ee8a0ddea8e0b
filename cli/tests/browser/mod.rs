//! A real browser, driven over the DevTools protocol.
//!
//! The protocol is spoken here in JSON over a WebSocket: crates with generated types for all of it take minutes to
//! build, and refuse messages of browsers newer than themselves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

/// A page has this long to come to what is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the browser is: `POLYPACA_CHROMIUM`, or where Linux distributions and macOS put it.
fn program() -> Option<PathBuf> {
    let usual = [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    ];
    let named = std::env::var_os("POLYPACA_CHROMIUM").map(PathBuf::from);
    named.or_else(|| usual.iter().map(PathBuf::from).find(|path| path.exists()))
}

/// A running browser; it ends with the value.
pub(crate) struct Browser {
    process: Child,
    connection: RefCell<Connection>,
    _profile: tempfile::TempDir,
}

struct Connection {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    last: u64,
    dialogs: usize,
}

impl Browser {
    /// Starts the browser without a window; `None`, and a word about it, where there is none.
    pub(crate) fn start() -> Option<Browser> {
        let Some(program) = program() else {
            println!("skipped: there is no Chromium here (POLYPACA_CHROMIUM)");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut process = Command::new(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned))
            .expect("the browser says where it listens");
        // Whoever does not read what it says further on stops it.
        std::thread::spawn(move || lines.for_each(drop));
        let (socket, _) = tungstenite::connect(&address).unwrap();
        let connection = RefCell::new(Connection { socket, last: 0, dialogs: 0 });
        Some(Browser { process, connection, _profile: profile })
    }

    /// Opens an address in a new page, as a device with a screen of this size does.
    pub(crate) fn open(&self, url: &str, device: Device) -> Page<'_> {
        // A context of its own is another person's browser: it shares no cookies and no storage.
        let context = self.call(None, "Target.createBrowserContext", json!({}));
        let context = context["browserContextId"].as_str().unwrap().to_owned();
        let target = self.call(
            None,
            "Target.createTarget",
            json!({"url": "about:blank", "browserContextId": context}),
        );
        let target = target["targetId"].as_str().unwrap().to_owned();
        let session = self.call(None, "Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        let page =
            Page { browser: self, session: session["sessionId"].as_str().unwrap().to_owned(), context };
        page.call("Page.enable", json!({}));
        let (width, height) = device.size();
        let phone = device == Device::Phone;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        page.call("Emulation.setDeviceMetricsOverride", metrics);
        page.call("Emulation.setTouchEmulationEnabled", json!({"enabled": phone}));
        page.call("Page.navigate", json!({"url": url}));
        page
    }

    /// Calls a method of the protocol and gives its result. Events are read over, dialogs counted and closed.
    fn call(&self, session: Option<&str>, method: &str, parameters: Value) -> Value {
        let connection = &mut *self.connection.borrow_mut();
        let id = connection.send(session, method, &parameters);
        loop {
            let message = connection.receive();
            if message["method"] == "Page.javascriptDialogOpening" {
                connection.dialogs += 1;
                let session = message["sessionId"].as_str().map(str::to_owned);
                connection.send(session.as_deref(), "Page.handleJavaScriptDialog", &json!({"accept": true}));
            }
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
        }
    }

    /// How many dialogs scripts have opened.
    pub(crate) fn dialogs(&self) -> usize {
        self.connection.borrow().dialogs
    }
}

impl Connection {
    fn send(&mut self, session: Option<&str>, method: &str, parameters: &Value) -> u64 {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = session {
            message["sessionId"] = json!(session);
        }
        self.socket.send(Message::text(message.to_string())).unwrap();
        self.last
    }

    fn receive(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to close, it also ends the processes that it has started; killed, it might leave some.
        self.connection.get_mut().send(None, "Browser.close", &json!({}));
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a person holds in hand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    Desktop,
    Phone,
}

impl Device {
    fn size(self) -> (u32, u32) {
        match self {
            Device::Desktop => (1100, 800),
            Device::Phone => (390, 844),
        }
    }
}

/// An open page.
pub(crate) struct Page<'a> {
    browser: &'a Browser,
    session: String,
    context: String,
}

impl Page<'_> {
    fn call(&self, method: &str, parameters: Value) -> Value {
        self.browser.call(Some(&self.session), method, parameters)
    }

    /// The value of a JavaScript expression; null while it throws, as before the page is there.
    pub(crate) fn value(&self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", parameters)["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn wait(&self, expression: &str) {
        let begin = Instant::now();
        while self.value(expression) != json!(true) {
            assert!(
                begin.elapsed() < PATIENCE,
                "waited in vain for {expression}; the page shows {}",
                self.value("document.body.innerText")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key, by the name that a keyboard event gives it.
    pub(crate) fn press(&self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        self.call("Input.dispatchKeyEvent", json!({"type": "keyDown", "key": key, "text": text}));
        self.call("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key}));
    }

    /// Touches the middle of the element that an expression gives.
    pub(crate) fn touch(&self, element: &str) {
        let middle = self.value(&format!(
            "(() => {{ const element = {element}; element.scrollIntoView({{block: 'center'}}); \
             const box = element.getBoundingClientRect(); \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        ));
        assert!(middle.is_array(), "nothing to touch: {element}");
        let points = json!([{"x": middle[0], "y": middle[1]}]);
        self.call("Input.dispatchTouchEvent", json!({"type": "touchStart", "touchPoints": points}));
        self.call("Input.dispatchTouchEvent", json!({"type": "touchEnd", "touchPoints": []}));
    }

    /// What the screen shows, as PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }

    /// Closes the page, and with it all that its browser context has kept.
    pub(crate) fn close(self) {
        self.browser.call(None, "Target.disposeBrowserContext", json!({"browserContextId": self.context}));
    }
}
