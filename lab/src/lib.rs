//! The experiment file, its plan, the store of finished cells, and the runners.
