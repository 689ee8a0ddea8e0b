// AdamW (Loshchilov and Hutter 2019), as `cpu/adamw.rs` computes it.

// The gradient is zero after it. `narrowed`, where given, takes the moved values as bf16: what products read.
KERNEL(adamw)(u64 length, float gradient_scale, float beta1, float beta2, float step_size, float root, float epsilon,
              float decay, float* values, float* gradient, float* first, float* second, u16* narrowed) {
    for (u64 i = thread_index(); i < length; i += thread_count()) {
        float g = gradient[i] * gradient_scale;
        float m = first[i] + (g - first[i]) * (1.0f - beta1);
        float v = second[i] * beta2 + g * g * (1.0f - beta2);
        float value = values[i] * decay - step_size * m / (sqrtf(v) / root + epsilon);
        first[i] = m;
        second[i] = v;
        values[i] = value;
        gradient[i] = 0.0f;
        if (narrowed) narrowed[i] = f32_to_bf16(value);
    }
}

// Each block's part of Σ g²: the parts are added on the host, in their order.
KERNEL(squared_norm)(u64 length, const float* gradient, double* parts) {
    SHARED double sums[256];
    double sum = 0.0;
    for (u64 i = thread_index(); i < length; i += thread_count()) sum += (double)gradient[i] * (double)gradient[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int width = 128; width > 0; width /= 2) {
        if ((int)threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
        __syncthreads();
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}
