//! A stand-in judge to try polypaca with where there is no real one: an OpenAI-compatible server whose ratings are
//! drawn from a hash. They mean nothing, and every table made with them must say so.
//!
//! ```sh
//! cargo run --release -p polypaca-judge --example stand_in_judge -- 8790
//! polypaca judge --responses FILE --out FILE --judge openai --endpoint http://127.0.0.1:8790 --model stand-in
//! ```

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod common;

fn main() -> std::io::Result<()> {
    let port = match std::env::args().nth(1).map(|port| port.parse::<u16>()) {
        None => 8790,
        Some(Ok(port)) => port,
        Some(Err(error)) => return Err(std::io::Error::other(format!("expected a port: {error}"))),
    };
    let server = common::StandIn::start(port, Box::new(|_, _| common::Reaction::Answer))?;
    println!("{}", server.url());
    loop {
        std::thread::park();
    }
}
