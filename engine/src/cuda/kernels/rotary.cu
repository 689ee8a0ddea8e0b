// Rotary position embedding (Su et al. 2021), pairs as halves: a block a row.

// Rotates the first `2 half` dimensions of the first `heads` heads (queries, then keys) of each row; `direction` is 1
// forward and -1 backward.
KERNEL(rotate)(int stride, int heads, int size, int half, const u32* positions, const float* frequencies, float direction,
               float* x) {
    x += (u64)blockIdx.x * stride;
    float position = (float)positions[blockIdx.x];
    for (int task = threadIdx.x; task < heads * half; task += blockDim.x) {
        int pair = task % half;
        float* head = x + task / half * size;
        float sine, cosine;
        sincosf(position * frequencies[pair], &sine, &cosine);
        sine *= direction;
        float first = head[pair], second = head[pair + half];
        head[pair] = first * cosine - second * sine;
        head[pair + half] = second * cosine + first * sine;
    }
}
