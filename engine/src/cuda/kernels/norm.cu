// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019): a block a row.

#define NORM_LAYER 0

// out = (x - mean) deviation weight + bias; stats[row] = (mean, reciprocal deviation)
KERNEL(norm)(int kind, float epsilon, int width, const float* x, const float* weight, const float* bias, float* out,
             float* stats) {
    x += (u64)blockIdx.x * width;
    out += (u64)blockIdx.x * width;
    float mean = 0.0f;
    if (kind == NORM_LAYER) {
        float sum = 0.0f;
        for (int column = threadIdx.x; column < width; column += blockDim.x) sum += x[column];
        mean = block_sum(sum) / width;
    }
    float squares = 0.0f;
    for (int column = threadIdx.x; column < width; column += blockDim.x) squares += (x[column] - mean) * (x[column] - mean);
    float deviation = 1.0f / sqrtf(block_sum(squares) / width + epsilon);
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = (x[column] - mean) * deviation * weight[column];
        out[column] = bias ? value + bias[column] : value;
    }
    if (threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = deviation;
    }
}

// dx += deviation (g - mean(g) - x̂ mean(g x̂)) with g = dout weight; RMSNorm has no mean(g).
KERNEL(norm_backward)(int kind, int width, const float* x, const float* weight, const float* stats, const float* dout,
                      float* dx) {
    u64 start = (u64)blockIdx.x * width;
    x += start, dout += start, dx += start;
    float mean = stats[2 * blockIdx.x], deviation = stats[2 * blockIdx.x + 1];
    float of_g = 0.0f, of_gx = 0.0f;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float g = dout[column] * weight[column];
        of_g += g;
        of_gx += g * (x[column] - mean) * deviation;
    }
    float mean_g = kind == NORM_LAYER ? block_sum(of_g) / width : 0.0f;
    float mean_gx = block_sum(of_gx) / width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float normalised = (x[column] - mean) * deviation;
        dx[column] += deviation * (dout[column] * weight[column] - mean_g - normalised * mean_gx);
    }
}

// dweight += Σ dout x̂, dbias += Σ dout over the rows: see `line_sum`.
KERNEL(norm_backward_weight)(int rows, int width, const float* x, const float* stats, const float* dout, float* dweight,
                             float* dbias) {
    int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS;
    float of_weight = 0.0f, of_bias = 0.0f;
    if (column < width) {
        for (int row = threadIdx.x / COLUMNS; row < rows; row += LINES) {
            float gradient = dout[(u64)row * width + column];
            of_weight += gradient * (x[(u64)row * width + column] - stats[2 * row]) * stats[2 * row + 1];
            of_bias += gradient;
        }
    }
    of_weight = line_sum(of_weight);
    of_bias = line_sum(of_bias);
    if (threadIdx.x < COLUMNS && column < width) {
        dweight[column] += of_weight;
        if (dbias) dbias[column] += of_bias;
    }
}

// Qwen3's norm of each query or key head in place: a block a row (x) and head (y). Rows of `stride`; the heads begin at
// column `first`. stats[row][head] = reciprocal deviation
KERNEL(head_norm)(float epsilon, int stride, int first, int size, const float* weight, float* x, float* stats) {
    x += (u64)blockIdx.x * stride + first + blockIdx.y * size;
    float squares = 0.0f;
    for (int column = threadIdx.x; column < size; column += blockDim.x) squares += x[column] * x[column];
    float deviation = 1.0f / sqrtf(block_sum(squares) / size + epsilon);
    for (int column = threadIdx.x; column < size; column += blockDim.x) x[column] *= deviation * weight[column];
    if (threadIdx.x == 0) stats[(u64)blockIdx.x * gridDim.y + blockIdx.y] = deviation;
}

// `dx` holds the gradient of the output and takes that of the input `x`.
KERNEL(head_norm_backward)(int stride, int first, int size, const float* x, const float* weight, const float* stats,
                           float* dx) {
    u64 start = (u64)blockIdx.x * stride + first + blockIdx.y * size;
    x += start, dx += start;
    float deviation = stats[(u64)blockIdx.x * gridDim.y + blockIdx.y];
    float of_gx = 0.0f;
    for (int column = threadIdx.x; column < size; column += blockDim.x)
        of_gx += dx[column] * weight[column] * x[column] * deviation;
    float mean_gx = block_sum(of_gx) / size;
    for (int column = threadIdx.x; column < size; column += blockDim.x)
        dx[column] = deviation * (dx[column] * weight[column] - x[column] * deviation * mean_gx);
}

// dweight += Σ dout x deviation over rows and heads; `dout` as before `head_norm_backward`.
KERNEL(head_norm_backward_weight)(int rows, int heads, int stride, int first, int size, const float* x, const float* stats,
                                  const float* dout, float* dweight) {
    int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS;
    float sum = 0.0f;
    if (column < size) {
        for (int task = threadIdx.x / COLUMNS; task < rows * heads; task += LINES) {
            u64 at = (u64)(task / heads) * stride + first + (task % heads) * size + column;
            sum += dout[at] * x[at] * stats[task];
        }
    }
    sum = line_sum(sum);
    if (threadIdx.x < COLUMNS && column < size) dweight[column] += sum;
}
