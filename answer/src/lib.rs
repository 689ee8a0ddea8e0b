//! Answering prompts: greedy and beam search over many prompts at once.
