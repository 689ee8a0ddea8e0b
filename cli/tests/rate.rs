//! The people's rating page as people use it: the program serves it, a real browser shows it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

mod browser;
use browser::{Browser, Device, Page};

const SYSTEMS: [&str; 3] = ["hidden-monolingual", "hidden-multilingual", "hidden-english"];
const PROMPTS: usize = 3;

/// A question in a language, and three answers: one good, one poor, one that is in English and runs a script.
const LANGUAGES: [(&str, &str, [&str; 2]); 3] = [
    (
        "bn",
        "নদীর পানি পরিষ্কার রাখার তিনটি উপায় লেখো।",
        [
            "১. কারখানার বর্জ্য শোধন না করে নদীতে ফেলা যাবে না।\n২. নদীর পাড়ে গাছ লাগাতে হবে।\n৩. প্লাস্টিক ব্যবহার কমাতে হবে।",
            "নদী আমাদের বন্ধু।",
        ],
    ),
    (
        "zh",
        "请写出保持河水清洁的三种方法。",
        [
            "一、工厂废水必须先处理再排放。\n二、在河岸种树，减少泥沙流入。\n三、少用塑料，不往河里扔垃圾。",
            "河水很清。",
        ],
    ),
    (
        "ar",
        "اكتب ثلاث طرق للحفاظ على نظافة مياه النهر.",
        [
            "١. معالجة مياه المصانع قبل صرفها.\n٢. زراعة الأشجار على الضفاف.\n٣. التقليل من استخدام البلاستيك.",
            "النهر جميل.",
        ],
    ),
];

const HOSTILE: &str = "Keep it clean! <script>document.title = 'taken over'; alert(1)</script>\
                       <img src=x onerror=\"document.title = 'taken over'; alert(2)\">";

fn text(language: usize, system: usize) -> &'static str {
    LANGUAGES[language].2.get(system).copied().unwrap_or(HOSTILE)
}

/// The mark that every person here gives to a system's response to a prompt.
fn mark(prompt: usize, system: usize) -> f64 {
    ((prompt * 2 + system * 3) % 7) as f64 / 2.0
}

fn polypaca(folder: &Path, arguments: &[&str]) -> Output {
    let command = Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the program starts");
    assert!(command.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&command.stderr));
    command
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// A folder with responses, and a database of all of them.
fn drawn() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lines = String::new();
    for (language, (code, prompt, _)) in LANGUAGES.iter().enumerate() {
        for id in 0..PROMPTS {
            for (system, name) in SYSTEMS.iter().enumerate() {
                let line = json!({
                    "id": format!("p{id}"), "language": code, "prompt": format!("{prompt} ({id})"),
                    "response": text(language, system), "system": name, "reference": text(language, 0)
                });
                lines += &format!("{line}\n");
            }
        }
    }
    fs::write(folder.path().join("responses.jsonl"), lines).expect("the folder takes files");
    let draw =
        ["rate", "draw", "--database", "rate.sqlite", "--responses", "responses.jsonl", "--prompts", "3"];
    polypaca(folder.path(), &draw);
    folder
}

/// The path of a new link.
fn invite(folder: &Path, rater: &str, language: &str) -> String {
    let invite =
        ["rate", "invite", "--database", "rate.sqlite", "--rater", rater, "--language", language, "--json"];
    let link = object(&polypaca(folder, &invite))["links"][0]["link"].as_str().expect("a link").to_owned();
    link[link.find("/r/").expect("a path")..].to_owned()
}

/// `polypaca rate serve`; killed with the value.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path) -> Server {
        let mut process = Command::new(env!("CARGO_BIN_EXE_polypaca"))
            .current_dir(folder)
            .args(["rate", "serve", "--database", "rate.sqlite", "--address", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("http://").expect("an address").to_owned();
        Server { process, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request as a program of one's own sends it: the answer's status and body, or `None` where none came whole.
    fn ask(&self, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        // A mark is confirmed when its answer is there whole.
        (body.len() == length.parse::<usize>().ok()?)
            .then(|| (status, serde_json::from_str(body).unwrap_or_default()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL where there are signals: nothing of the program's own runs any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Which prompt the page shows, and the system of each response in the order in which they stand.
fn shown(page: &Page<'_>) -> (usize, Vec<usize>) {
    let prompt = page.value("document.querySelector('#prompt').textContent");
    let prompt = prompt.as_str().expect("a prompt").to_owned();
    let id = prompt.trim_end_matches(')').rsplit('(').next().expect("a number").parse().expect("a number");
    let language = LANGUAGES.iter().position(|(_, text, _)| prompt.starts_with(text)).expect("a language");
    let texts = page.value("[...document.querySelectorAll('article .text')].map(text => text.textContent)");
    let system = |shown: &Value| (0..3).find(|&system| shown == text(language, system)).expect("a response");
    (id, texts.as_array().expect("responses").iter().map(system).collect())
}

fn wait_for_question(page: &Page<'_>, number: usize) {
    page.wait(&format!("document.querySelector('#where').textContent.startsWith('Question {number} of')"));
}

fn wait_for_mark(page: &Page<'_>, place: usize, mark: f64) {
    page.wait(&format!(
        "document.querySelectorAll('article')[{place}].querySelector('[aria-pressed=true]')?.textContent === '{mark}'"
    ));
}

/// Rates the response that the keyboard is at.
fn rate_by_keyboard(page: &Page<'_>, place: usize, mark: f64) {
    page.wait(&format!("document.activeElement === document.querySelectorAll('article')[{place}]"));
    page.press(&mark.floor().to_string());
    wait_for_mark(page, place, mark.floor());
    if mark.fract() > 0.0 {
        page.press("h");
        wait_for_mark(page, place, mark);
    }
}

fn rate_page_by_keyboard(page: &Page<'_>) {
    let (prompt, systems) = shown(page);
    for (place, &system) in systems.iter().enumerate() {
        rate_by_keyboard(page, place, mark(prompt, system));
        page.press("ArrowDown");
    }
}

fn rate_page_by_touch(page: &Page<'_>) {
    let (prompt, systems) = shown(page);
    for (place, &system) in systems.iter().enumerate() {
        let mark = mark(prompt, system);
        let button = (mark * 2.0) as usize;
        page.touch(&format!(
            "document.querySelectorAll('article')[{place}].querySelectorAll('button')[{button}]"
        ));
        wait_for_mark(page, place, mark);
    }
}

/// Keeps a screenshot where `POLYPACA_SCREENSHOTS` names a folder for them.
fn keep(page: &Page<'_>, name: &str) {
    if let Some(folder) = std::env::var_os("POLYPACA_SCREENSHOTS") {
        fs::write(Path::new(&folder).join(name), page.screenshot()).expect("the folder takes files");
    }
}

/// The marks of a table that `rate export` wrote, by rater, language, system and prompt.
fn marks(table: &str) -> BTreeMap<[String; 4], f64> {
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("system,language,id,rater,judge,human"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let key = [cells[3], cells[1], cells[0], cells[2]].map(str::to_owned);
        (key, cells[5].parse().expect("a mark"))
    };
    lines.map(row).collect()
}

#[test]
fn two_people_rate_by_keyboard_and_by_touch_are_cut_off_and_the_export_is_right() {
    let Some(browser) = Browser::start() else { return };
    let folder = drawn();
    let folder = folder.path();
    let [anika, bolin] = [("Anika", "bn"), ("Bolin", "zh")].map(|(name, code)| invite(folder, name, code));
    let server = Server::start(folder);

    // Both at once, each in a browser of their own.
    let keyboard = browser.open(&server.url(&anika), Device::Desktop);
    let phone = browser.open(&server.url(&bolin), Device::Phone);
    wait_for_question(&keyboard, 1);
    wait_for_question(&phone, 1);
    rate_page_by_keyboard(&keyboard);
    rate_page_by_touch(&phone);
    keep(&keyboard, "desktop-bengali.png");
    keep(&phone, "phone-chinese.png");
    keyboard.press("ArrowRight");
    wait_for_question(&keyboard, 2);
    let (prompt, systems) = shown(&keyboard);
    rate_by_keyboard(&keyboard, 0, mark(prompt, systems[0]));
    // The second response is marked and the mark taken back.
    keyboard.press("ArrowDown");
    rate_by_keyboard(&keyboard, 1, 0.0);
    keyboard.press("u");
    keyboard.wait("document.querySelectorAll('[aria-pressed=true]').length === 1");

    // The phone is put away and the program is killed; the page on the desktop says that it saves nothing.
    phone.close();
    drop(server);
    keyboard.press("2");
    keyboard.wait("document.querySelector('#error').textContent.startsWith('Not saved')");
    keep(&keyboard, "desktop-not-saved.png");
    keyboard.close();

    let server = Server::start(folder);
    let keyboard = browser.open(&server.url(&anika), Device::Desktop);
    wait_for_question(&keyboard, 2);
    keyboard.wait("document.activeElement === document.querySelectorAll('article')[1]");
    assert_eq!(shown(&keyboard), (prompt, systems.clone()), "the same order on every visit");
    for (place, system) in systems.iter().enumerate().skip(1) {
        rate_by_keyboard(&keyboard, place, mark(prompt, *system));
        keyboard.press("ArrowDown");
    }
    keyboard.press("ArrowRight");
    wait_for_question(&keyboard, 3);
    rate_page_by_keyboard(&keyboard);
    keyboard.wait("document.querySelector('#where').textContent.includes('All done')");

    // Everything was rated on the first question: the phone goes on with the second.
    let phone = browser.open(&server.url(&bolin), Device::Phone);
    wait_for_question(&phone, 2);
    rate_page_by_touch(&phone);
    phone.touch("document.querySelector('#undo')");
    phone.wait("document.querySelectorAll('[aria-pressed=true]').length === 2");
    rate_page_by_touch(&phone);
    phone.touch("document.querySelector('#next')");
    wait_for_question(&phone, 3);
    rate_page_by_touch(&phone);
    phone.wait("document.querySelector('#where').textContent.includes('All done')");
    keep(&phone, "phone-done.png");
    assert_eq!(browser.dialogs(), 0);

    polypaca(
        folder,
        &["judge", "--responses", "responses.jsonl", "--out", "ratings.jsonl", "--judge", "reference"],
    );
    let export =
        ["rate", "export", "--database", "rate.sqlite", "--out", "marks.csv", "--ratings", "ratings.jsonl"];
    polypaca(folder, &export);
    let table = fs::read_to_string(folder.join("marks.csv")).expect("a table");
    let mut expected = BTreeMap::new();
    for (rater, language) in [("Anika", "bn"), ("Bolin", "zh")] {
        for (system, name) in SYSTEMS.iter().enumerate() {
            for prompt in 0..PROMPTS {
                let key = [rater, language, *name, &format!("p{prompt}")].map(str::to_owned);
                expected.insert(key, mark(prompt, system));
            }
        }
    }
    assert_eq!(marks(&table), expected);
    assert!(
        table.lines().skip(1).all(|line| line.split(',').nth(4) != Some("")),
        "each has the judge's rating"
    );
    let agreement = object(&polypaca(folder, &["agree", "marks.csv", "--json"]));
    assert_eq!(agreement["languages"][0]["responses"]["pairs"], 9);
}

#[test]
fn what_a_system_wrote_is_shown_as_text_and_never_run() {
    let Some(browser) = Browser::start() else { return };
    let folder = drawn();
    let link = invite(folder.path(), "Amal", "ar");
    let server = Server::start(folder.path());
    for (device, name) in [(Device::Desktop, "desktop-arabic.png"), (Device::Phone, "phone-arabic.png")] {
        let page = browser.open(&server.url(&link), device);
        wait_for_question(&page, 1);
        assert!(shown(&page).1.contains(&2), "the hostile response stands there letter by letter");
        assert_eq!(page.value("document.querySelectorAll('main script, main img').length"), 0);
        assert_eq!(page.value("document.title"), "Rating");
        // Even a script that got into the page would not run: the page names the only one that may.
        page.value("document.body.append(Object.assign(document.createElement('script'), {textContent: 'alert(3)'}))");
        assert_eq!(browser.dialogs(), 0);
        assert_eq!(page.value("getComputedStyle(document.querySelector('#prompt')).direction"), "rtl");
        // Nothing stands out beyond the screen, and nobody learns which system wrote what.
        assert_eq!(page.value("document.documentElement.scrollWidth <= innerWidth"), true);
        let source = page.value("document.documentElement.outerHTML");
        assert!(!source.as_str().expect("a page").contains("hidden-"));
        keep(&page, name);
        page.close();
    }
}

#[test]
fn a_wrong_link_a_guessed_one_and_a_forged_id_get_nothing() {
    let Some(browser) = Browser::start() else { return };
    let folder = drawn();
    let folder = folder.path();
    let [anika, other] = [("Anika", "bn"), ("Bashir", "bn")].map(|(name, code)| invite(folder, name, code));
    let server = Server::start(folder);
    let mut guessed = anika.clone();
    let last = guessed.pop().expect("a token");
    guessed.push(if last == '0' { '1' } else { '0' });
    for path in
        ["/", "/r/", "/r/1", "/r/Anika", &guessed, &format!("{guessed}/standing"), "/r/%27%20or%201=1"]
    {
        let page = browser.open(&server.url(path), Device::Desktop);
        page.wait("document.body?.innerText === 'There is no such page.'");
        page.close();
    }
    let theirs = server.ask(&format!("{other}/page/0"), None).expect("an answer").1;
    let theirs = theirs["responses"][0]["handle"].as_str().expect("a handle").to_owned();
    let page = browser.open(&server.url(&anika), Device::Desktop);
    wait_for_question(&page, 1);
    let own = page.value("page.responses[0].handle");
    for (forged, mark, status) in [
        (theirs.as_str(), json!(3), 404),
        ("0", json!(3), 404),
        ("' or 1=1 --", json!(3), 404),
        (own.as_str().expect("a handle"), json!(17), 422),
    ] {
        let body = json!({"handle": forged, "mark": mark});
        let asked = page.value(&format!(
            "fetch(base + '/mark', {{method: 'POST', headers: {{'content-type': 'application/json'}}, \
             body: JSON.stringify({body})}}).then(answer => answer.status)"
        ));
        assert_eq!(asked, status, "{body}");
    }
    let status = object(&polypaca(folder, &["rate", "status", "--database", "rate.sqlite", "--json"]));
    assert!(status["raters"].as_array().expect("raters").iter().all(|rater| rater["done"] == 0));
}

/// The handles and marks that a person sees, over all pages.
fn seen(server: &Server, link: &str) -> BTreeMap<String, Option<f64>> {
    let mut seen = BTreeMap::new();
    for page in 0..PROMPTS {
        let (status, page) = server.ask(&format!("{link}/page/{page}"), None).expect("an answer");
        assert_eq!(status, 200);
        for response in page["responses"].as_array().expect("responses") {
            seen.insert(response["handle"].as_str().expect("a handle").to_owned(), response["mark"].as_f64());
        }
    }
    seen
}

/// Marks one response after another until the program is gone. Gives the marks that were confirmed, and the one that
/// was on its way.
fn mark_until_killed(
    server: &Server,
    link: &str,
    handles: &[String],
    round: usize,
) -> (BTreeMap<String, f64>, Option<(String, f64)>) {
    let mut confirmed = BTreeMap::new();
    for turn in round.. {
        let handle = &handles[turn % handles.len()];
        let mark = (turn * 5 % 7) as f64 / 2.0;
        match server.ask(&format!("{link}/mark"), Some(&json!({"handle": handle, "mark": mark}))) {
            Some((status, _)) => {
                assert_eq!(status, 200);
                confirmed.insert(handle.clone(), mark);
            }
            None => return (confirmed, Some((handle.clone(), mark))),
        }
    }
    (confirmed, None)
}

#[test]
fn a_kill_at_any_moment_loses_no_confirmed_mark() {
    let folder = drawn();
    let folder = folder.path();
    let links = [("Anika", "bn"), ("Bolin", "zh")].map(|(name, code)| invite(folder, name, code));
    let mut expected: Vec<BTreeMap<String, Option<f64>>> = Vec::new();
    let mut confirmed_marks = 0;
    for round in 0..12 {
        let server = Server::start(folder);
        if expected.is_empty() {
            expected = links.iter().map(|link| seen(&server, link)).collect();
        }
        let told = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (link, expected) in links.iter().zip(&expected) {
                let handles: Vec<String> = expected.keys().cloned().collect();
                let (server, told) = (&server, &told);
                scope.spawn(move || {
                    let marked = mark_until_killed(server, link, &handles, round);
                    told.lock().expect("no panic").push((link, marked));
                });
            }
            std::thread::sleep(Duration::from_millis(20 + 17 * round as u64));
            let killed = Command::new("kill").args(["-KILL", &server.process.id().to_string()]).status();
            assert!(killed.expect("kill starts").success());
        });
        drop(server);
        let server = Server::start(folder);
        for (link, (confirmed, under_way)) in told.into_inner().expect("no panic") {
            confirmed_marks += confirmed.len();
            let place = links.iter().position(|other| other == link).expect("a link");
            for (handle, mark) in confirmed {
                expected[place].insert(handle, Some(mark));
            }
            let found = seen(&server, link);
            if let Some((handle, mark)) = under_way.filter(|(handle, mark)| found[handle] == Some(*mark)) {
                // Saved, and killed before it could say so.
                expected[place].insert(handle, Some(mark));
            }
            assert_eq!(found, expected[place], "round {round}");
        }
    }
    assert!(confirmed_marks > 12, "only {confirmed_marks} marks were confirmed before the kills");
    polypaca(folder, &["rate", "export", "--database", "rate.sqlite", "--out", "marks.csv"]);
}

/// The message of a command that must end with exit code 2.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_polypaca"))
        .current_dir(folder)
        .arg("rate")
        .args(arguments)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    said
}

#[test]
fn nothing_is_written_over_what_it_is_made_of_or_into_something_else() {
    let folder = drawn();
    let folder = folder.path();
    let read = |name: &str| fs::read(folder.join(name)).expect("a file");
    fs::write(folder.join("ratings.jsonl"), "").expect("the folder takes files");
    let (database, ratings) = (read("rate.sqlite"), read("ratings.jsonl"));
    let export = ["export", "--database", "rate.sqlite", "--ratings", "ratings.jsonl", "--out"];
    for (out, flag) in
        [("rate.sqlite", "--database"), ("./rate.sqlite", "--database"), ("ratings.jsonl", "--ratings")]
    {
        let said = refused(folder, &[&export[..], &[out]].concat());
        assert!(said.contains(flag) && said.contains(out), "{said}");
    }
    assert_eq!((read("rate.sqlite"), read("ratings.jsonl")), (database, ratings));

    let responses = read("responses.jsonl");
    let said = refused(
        folder,
        &["draw", "--database", "responses.jsonl", "--responses", "responses.jsonl", "--prompts", "3"],
    );
    assert!(said.contains("responses.jsonl") && said.contains("no SQLite database"), "{said}");
    let said = refused(folder, &["status", "--database", "responses.jsonl"]);
    assert!(said.contains("no SQLite database"), "{said}");
    assert_eq!(read("responses.jsonl"), responses);
}

#[test]
fn a_name_is_given_once_and_is_one() {
    let folder = drawn();
    let invite = ["invite", "--database", "rate.sqlite", "--language", "bn", "--rater"];
    for (names, expected) in [
        (&["Q", "R", "Q"][..], "--rater: expected each name once, found \"Q\" twice"),
        (&[""], "expected a name, found none"),
        (&["  "], "expected a name, found none"),
        (&["Q "], "without spaces around it"),
    ] {
        let said = refused(folder.path(), &[&invite[..], names].concat());
        assert!(said.contains(expected), "{said}");
    }
    let status = ["rate", "status", "--database", "rate.sqlite", "--json"];
    assert_eq!(object(&polypaca(folder.path(), &status))["raters"], json!([]));
}

#[test]
fn a_rating_of_another_response_does_not_stand_beside_a_mark() {
    let folder = drawn();
    let folder = folder.path();
    let server = Server::start(folder);
    let link = invite(folder, "Q", "bn");
    let shown = server.ask(&format!("{link}/page/0"), None).expect("a page").1;
    for shown in shown["responses"].as_array().expect("responses") {
        let body = json!({ "handle": shown["handle"], "mark": 2.0 });
        assert_eq!(server.ask(&format!("{link}/mark"), Some(&body)).expect("an answer").0, 200);
    }
    // Every system answers again, and the judge rates that.
    let text = fs::read_to_string(folder.join("responses.jsonl")).expect("responses");
    let again: Vec<String> = text
        .lines()
        .map(|line| {
            let mut response: Value = serde_json::from_str(line).expect("JSON");
            response["response"] = json!("অন্য উত্তর।");
            response.to_string()
        })
        .collect();
    fs::write(folder.join("again.jsonl"), again.join("\n")).expect("the folder takes files");
    for (responses, other) in [("again.jsonl", 3), ("responses.jsonl", 0)] {
        let judge = ["judge", "--responses", responses, "--out", "ratings.jsonl", "--judge", "reference"];
        polypaca(folder, &judge);
        let export = [
            "rate",
            "export",
            "--database",
            "rate.sqlite",
            "--ratings",
            "ratings.jsonl",
            "--out",
            "marks.csv",
        ];
        let said = String::from_utf8_lossy(&polypaca(folder, &export).stderr).into_owned();
        assert_eq!(said.contains("3 of 3 marks are of other responses"), other == 3, "{said}");
        let table = fs::read_to_string(folder.join("marks.csv")).expect("a table");
        assert_eq!(table.lines().skip(1).filter(|row| row.contains(",Q,,2")).count(), other, "{table}");
    }
}
