//! The program `polypaca`: flags to calls, and nothing else.

fn main() {}
