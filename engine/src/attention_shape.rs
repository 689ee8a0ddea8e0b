//! The heads of attention: how many, how wide, and what each sees.

/// What attention needs to know of the heads.
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Positions that a query sees, its own among them.
    pub window: usize,
    /// ALiBi's slope of each query head; empty without ALiBi.
    pub slopes: Vec<f32>,
}

/// The window of attention to all positions before one's own.
pub const NO_WINDOW: usize = usize::MAX;

impl AttentionShape {
    /// Width of a row of queries, keys and values.
    pub fn query_key_value_width(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_size
    }

    /// Width of a row of outputs.
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Query heads that share a key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.key_value_heads
    }

    /// The first position that a query at `position` sees.
    pub fn first_key(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    /// First column of a key head's keys in a row of queries, keys and values.
    pub fn key_column(&self, head: usize) -> usize {
        (self.heads + head) * self.head_size
    }

    /// First column of a value head's values in a row of queries, keys and values.
    pub fn value_column(&self, head: usize) -> usize {
        (self.heads + self.key_value_heads + head) * self.head_size
    }

    /// ALiBi's slopes (Press et al. 2022), as transformers' BLOOM builds them for any number of heads.
    pub fn alibi_slopes(heads: usize) -> Vec<f32> {
        let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
        let base = |count: usize| 2f64.powf(-(2f64.powf(-((count as f64).log2() - 3.0))));
        let mut slopes: Vec<f32> = (1..=power).map(|i| base(power).powi(i as i32) as f32).collect();
        let extra = base(2 * power);
        slopes.extend((0..heads - power).map(|i| extra.powi(2 * i as i32 + 1) as f32));
        slopes
    }
}
