//! Any bytes as a set: Alpaca's JSON, JSON Lines, chats, Parquet. What is read is written and read back the same.
#![no_main]

use std::path::Path;

use instructions::language::Language;
use instructions::record::read_record_bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    // Panics that the reader itself catches (the Parquet library's) are a broken file's error; the others end the run.
    init: std::panic::set_hook(Box::new(|_| ())),
    |bytes: &[u8]| {
        let english = Language::english();
        let Ok(reading) = read_record_bytes(Path::new("set"), bytes.to_vec(), &english) else { return };
        for problem in &reading.problems {
            assert!(!problem.to_string().is_empty());
        }
        let mut lines = Vec::new();
        for record in &reading.items {
            lines.extend(json_line(record));
        }
        if !lines.is_empty() {
            let again = read_record_bytes(Path::new("set"), lines, &english).expect("what was read is a set");
            assert!(again.items == reading.items, "read, written and read again: not the same");
        }
    }
);

fn json_line(record: &instructions::record::Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a record is JSON");
    line.push(b'\n');
    line
}
