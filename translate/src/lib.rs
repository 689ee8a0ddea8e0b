//! Translators, masking and checking of machine-translated instruction data.
