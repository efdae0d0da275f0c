//! Settings of small runs.

/// A model of a few thousand weights, as settings in TOML.
pub const SMALL_MODEL: &str = r"
[model]
vocab_size = 300
hidden_size = 16
intermediate_size = 16
n_layers = 1
n_heads = 2
n_kv_heads = 1
head_dim = 8
";
