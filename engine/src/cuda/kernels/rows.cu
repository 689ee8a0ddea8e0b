// Copies, sums and conversions.

// out += x
KERNEL(add)(u64 length, const float* x, float* out) {
    for (u64 i = thread_index(); i < length; i += thread_count()) out[i] += x[i];
}

// x as bf16: four elements a thread and turn, as both arrays begin at a multiple of 16 bytes.
KERNEL(narrow)(u64 length, const float* x, u16* out) {
    u64 fours = length / 4;
    for (u64 i = thread_index(); i < fours; i += thread_count()) {
        float4 four = ((const float4*)x)[i];
        ushort4 narrowed;
        narrowed.x = f32_to_bf16(four.x);
        narrowed.y = f32_to_bf16(four.y);
        narrowed.z = f32_to_bf16(four.z);
        narrowed.w = f32_to_bf16(four.w);
        ((ushort4*)out)[i] = narrowed;
    }
    for (u64 i = 4 * fours + thread_index(); i < length; i += thread_count()) out[i] = f32_to_bf16(x[i]);
}

// Elements of any type as f32, or (`narrowed`) as bf16.
KERNEL(convert)(u64 length, int type, const void* x, int narrowed, void* out) {
    for (u64 i = thread_index(); i < length; i += thread_count()) {
        float value = element(type, x, i);
        if (narrowed) ((u16*)out)[i] = f32_to_bf16(value);
        else ((float*)out)[i] = value;
    }
}

// Row i of `out` is row rows[i] of `x`: a block a row.
KERNEL(gather)(int width, const u32* rows, const float* x, float* out) {
    const float* from = x + (u64)rows[blockIdx.x] * width;
    float* to = out + (u64)blockIdx.x * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) to[column] = from[column];
}

// sums += the sum of the rows of `x`.
KERNEL(column_sums)(int rows, int width, const float* x, float* sums) {
    int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS;
    float sum = 0.0f;
    if (column < width)
        for (int row = threadIdx.x / COLUMNS; row < rows; row += LINES) sum += x[(u64)row * width + column];
    sum = line_sum(sum);
    if (threadIdx.x < COLUMNS && column < width) sums[column] += sum;
}

// Row i of `out` = scale times the table's row of token i: a block a row.
KERNEL(embed)(int width, const u32* tokens, int type, const void* table, float scale, float* out) {
    u64 from = (u64)tokens[blockIdx.x] * width, to = (u64)blockIdx.x * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x)
        out[to + column] = scale * element(type, table, from + column);
}

// Rows of `out` += `scale` times rows of `x`: a block a row of `out` that is named. The rows of `x` that are added to it
// are order[starts[i]..starts[i + 1]], in that order.
KERNEL(add_rows)(int width, const u32* distinct, const u32* starts, const u32* order, float scale, const float* x, float* out) {
    float* to = out + (u64)distinct[blockIdx.x] * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float sum = to[column];
        for (u32 i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) sum += scale * x[(u64)order[i] * width + column];
        to[column] = sum;
    }
}
