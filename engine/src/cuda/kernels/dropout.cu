// Dropout (Srivastava et al. 2014) drawn from a place, bit for bit as `cpu/dropout.rs` draws it: a block a row.

// SplitMix64's finaliser (Steele et al. 2014).
DEVICE u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// out = x mask / (1 - rate), or += it. `keys` has a key a row.
KERNEL(dropout)(const u64* keys, u64 module, u32 threshold, float kept, int width, const float* x, float* out,
                int accumulate) {
    u32 row = blockIdx.x;
    u64 row_key = mix(keys[row] ^ module);
    u32 low = (u32)row_key, high = (u32)(row_key >> 32);
    x += (u64)row * width;
    out += (u64)row * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        // A 32-bit mixer (Wellons' lowbias32) of the column, keyed on both sides.
        u32 draw = ((u32)column * 0x9e3779b9u) ^ low;
        draw = (draw ^ (draw >> 16)) * 0x21f0aaadu;
        draw = ((draw ^ (draw >> 15)) * 0x735a2d97u) ^ high;
        draw = (draw ^ (draw >> 15)) * 0x846ca68bu;
        draw ^= draw >> 16;
        float value = x[column] * (draw >= threshold ? kept : 0.0f);
        out[column] = accumulate ? out[column] + value : value;
    }
}
