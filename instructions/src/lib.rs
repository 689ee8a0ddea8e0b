//! Records, sets, languages, prompt templates, recipes, budgets and mixes.
