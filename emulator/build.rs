//! Compiles the kernels as C++, with an entry for each.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let kernels = PathBuf::from("../engine/src/cuda/kernels");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed=../engine/src/cuda");
    println!("cargo:rerun-if-changed=src");
    // In the backend's order; a file that several programs have comes once.
    let mut files: Vec<&str> = Vec::new();
    for line in include_str!("../engine/src/cuda/mod.rs").lines() {
        let file =
            line.trim().strip_prefix("include_str!(\"kernels/").and_then(|line| line.strip_suffix("\"),"));
        files.extend(file.filter(|file| !files.contains(file)));
    }
    let (mut includes, mut entries) = (String::new(), String::new());
    for file in files {
        let path = kernels.join(file);
        let path = path.canonicalize().unwrap_or(path);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = writeln!(includes, "#include \"{}\"", path.display());
        for name in text.lines().filter_map(|line| line.strip_prefix("KERNEL(")) {
            let name = name.split(')').next().unwrap_or_default();
            let _ = writeln!(entries, "ENTRY({name})");
        }
        for size in text.lines().filter_map(|line| line.strip_prefix("ATTENTION_FOR(")) {
            let size = size.split(',').next().unwrap_or_default();
            for kernel in ["", "backward_queries_", "backward_keys_"] {
                let _ = writeln!(entries, "ENTRY(attention_tensor_{kernel}{size})");
            }
        }
    }
    // A file that cannot be written shows as one that the C++ compiler does not find.
    let _ = fs::write(out.join("kernels.inc"), includes);
    let _ = fs::write(out.join("entries.inc"), entries);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/emulator.cpp")
        .include(&out)
        .opt_level(2)
        // A product and a sum are rounded apart or together as the compiler likes, here as on a GPU.
        .flag_if_supported("-Wno-unused-function")
        .flag_if_supported("-Wno-unknown-pragmas")
        // Tiles of 16-bit elements are read in pairs, as a GPU's compiler lets them be.
        .flag_if_supported("-fno-strict-aliasing")
        .compile("emulator");
}
