//! Tuning: batches, optimizer, schedule, validation, checkpoints and resume.
