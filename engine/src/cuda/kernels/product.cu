// A product for which cuBLASLt has no algorithm: rare shapes, and slow.

// out (+)= scale left · right + bias, an output a thread and turn. An operand's element lies at its two strides.
KERNEL(product)(int rows, int columns, int depth, int type, const void* left, u64 left_row, u64 left_step,
                const void* right, u64 right_step, u64 right_column, float scale, int accumulate, const float* bias,
                float* out, u64 out_row) {
    u64 outputs = (u64)rows * columns;
    for (u64 i = thread_index(); i < outputs; i += thread_count()) {
        u64 row = i / columns, column = i % columns;
        float sum = 0.0f;
        for (int step = 0; step < depth; step++) {
            float x = element(type, left, row * left_row + step * left_step);
            sum += x * element(type, right, step * right_step + column * right_column);
        }
        sum *= scale;
        if (bias) sum += bias[column];
        float* to = out + row * out_row + column;
        *to = accumulate ? *to + sum : sum;
    }
}
