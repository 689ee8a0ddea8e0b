// The cross-entropy of rows of logits: a block a row.

// losses[row] = log Σ exp(logits) - logit of the target. Where `scales` are given, the logits are overwritten with the
// row's scale times their gradient; or, where `dlogits` is given, that is written there as bf16, in rows `stride` apart.
KERNEL(cross_entropy)(int vocabulary, const u32* targets, const float* scales, float* logits, float* losses,
                      u16* dlogits, u64 stride) {
    logits += (u64)blockIdx.x * vocabulary;
    if (dlogits) dlogits += blockIdx.x * stride;
    float greatest = -INFINITE;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) greatest = fmaxf(greatest, logits[i]);
    greatest = block_max(greatest);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(logits[i] - greatest);
    sum = block_sum(sum);
    int target = (int)targets[blockIdx.x];
    if (threadIdx.x == 0) losses[blockIdx.x] = greatest + logf(sum) - logits[target];
    if (!scales) return;
    float scale = scales[blockIdx.x];
    __syncthreads();  // the target's logit has been read
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float slope = scale * (expf(logits[i] - greatest) / sum - (i == target ? 1.0f : 0.0f));
        if (dlogits) dlogits[i] = f32_to_bf16(slope);
        else logits[i] = slope;
    }
}
