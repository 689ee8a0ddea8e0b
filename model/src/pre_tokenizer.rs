//! How texts are cut before byte-pair encoding, by the names that GGUF files give it, as parts of a tokenizer.json.

use serde_json::{Value, json};

/// Cuts as GPT-2 does and maps bytes to letters; also the decoder that undoes it.
pub(crate) fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// Digits one by one, then as GPT-2.
pub(crate) fn digits_apart() -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        byte_level(),
    ]})
}

/// Cuts where the expression says, then maps bytes to letters.
fn split(expression: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

/// What a GGUF file's `tokenizer.ggml.pre` stands for.
pub(crate) struct Named {
    pub(crate) pre_tokenizer: Value,
    /// A piece that is a whole token is taken as it is.
    pub(crate) ignore_merges: bool,
    /// Whether texts are composed (NFC) first.
    pub(crate) composed: bool,
    /// Whether a begin token is added where the file does not say.
    pub(crate) adds_bos: bool,
}

/// The names that are known, for messages.
pub(crate) const KNOWN: &str = "gpt-2, olmo, gpt-neox, smollm, starcoder, refact, command-r, llama-bpe, llama3, \
    llama-v3, qwen2, bloom, gpt3-finnish";

/// The names that are written. llama.cpp has none for GPT-NeoX's, which but for composing is GPT-2's.
pub(crate) const WRITTEN: [&str; 5] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "bloom"];

/// Looks up a name.
pub(crate) fn named(name: &str) -> Option<Named> {
    let plain =
        |pre_tokenizer| Named { pre_tokenizer, ignore_merges: false, composed: false, adds_bos: false };
    Some(match name {
        "gpt-2" | "olmo" | "mpt" | "jais" | "phi-2" => plain(byte_level()),
        // Pythia's and GPT-NeoX-20B's tokenizer composes; the name itself is not in every writer of GGUF.
        "gpt-neox" => Named { composed: true, ..plain(byte_level()) },
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => plain(digits_apart()),
        "llama-bpe" | "llama3" | "llama-v3" => Named {
            ignore_merges: true,
            adds_bos: true,
            ..plain(split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ))
        },
        "qwen2" => Named {
            composed: true,
            ..plain(split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ))
        },
        "bloom" | "gpt3-finnish" => plain(split(r" ?[^(\s|[.,!?…。，、।۔،])]+")),
        _ => return None,
    })
}
