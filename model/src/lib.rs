//! Models from files: families, weights, tokenizers and adapters, read and written.
