// Matrices in 8 and 4 bits, widened whole before a product: as `cpu/quantised.rs` has them, but row by row.

// The values of NormalFloat with 4 bits (Dettmers et al. 2023, Appendix E).
CONSTANT float NORMAL_FLOAT[16] = {
    -1.0f,          -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,     0.1609302f,   0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};

// `codes` has a byte an element (8 bits), or two elements a byte, the even column's in the lower half (4 bits); a row
// begins with a byte of its own. Each `block` elements of a row share a scale. A block a row.
KERNEL(widen)(int columns, int bits, int block, const u8* codes, const float* scales, int narrowed, void* out) {
    u64 row = blockIdx.x;
    int line = bits == 8 ? columns : (columns + 1) / 2, blocks = (columns + block - 1) / block;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        float scale = scales[row * blocks + column / block], value;
        if (bits == 8) {
            value = scale * (float)(signed char)codes[row * line + column];
        } else {
            u8 pair = codes[row * line + column / 2];
            value = scale * NORMAL_FLOAT[column % 2 ? pair >> 4 : pair & 15];
        }
        u64 at = row * columns + column;
        if (narrowed) ((u16*)out)[at] = f32_to_bf16(value);
        else ((float*)out)[at] = value;
    }
}
