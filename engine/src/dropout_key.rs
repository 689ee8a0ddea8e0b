//! Where dropout is drawn, by numbers that stand for the place.

/// Where dropout is drawn: equal places draw equal masks, however a batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey(u64);

impl DropoutKey {
    /// The key of a record in an update of a run.
    pub fn new(seed: u64, update: u64, record: u64) -> Self {
        Self(mix(mix(mix(seed) ^ update) ^ record))
    }

    /// The keys of a record's tokens.
    pub fn of_positions(self, length: usize) -> Vec<Self> {
        (0..length as u64).map(|position| Self(mix(self.0 ^ position))).collect()
    }

    /// The keys of tokens in an update of a run, each from the tokens up to it: records that begin alike draw the same
    /// masks as far as they are alike, whether that is computed once or for each of them.
    pub fn of_beginnings(seed: u64, update: u64, tokens: &[u32]) -> Vec<Self> {
        let extend = |key: &mut Self, token: &u32| {
            key.0 = mix(key.0 ^ u64::from(*token));
            Some(*key)
        };
        tokens.iter().scan(Self(mix(mix(seed) ^ update)), extend).collect()
    }

    /// The key itself.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// The key of a module of a layer.
    pub(crate) fn place(self, layer: usize, module: usize) -> Self {
        Self(mix(self.0 ^ ((layer as u64) << 16) ^ module as u64))
    }
}

/// SplitMix64's finaliser (Steele et al. 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
