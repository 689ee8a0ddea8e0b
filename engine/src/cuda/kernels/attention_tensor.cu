// The attention of `attention.cu` on tensor cores: operands in bf16, scores, softmax and sums in 32 bits.
//
// A warp has 16 rows (queries, or keys for the gradients of keys and values), a block WARPS times as many. Heads are
// padded with zeros to SIZE columns. Fragments of the operands are as PTX lays them out for mma.m16n8k16: lane 4 g + t
// has rows g and g + 8, and the pairs of columns 2 t and 2 t + 8. A tile in shared memory has lines of a multiple of 16
// elements and 8 more, so that a warp's reads fall on different banks.

#define PADDING 8

#ifndef EMULATED
// sums (16 × 8) += left (16 × 16) right (16 × 8)
DEVICE void multiply_tiles(float* sums, const u32* left, const u32* right) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
#endif

// A lane's part of a left operand whose row 0 and column 0 are at `tile`.
DEVICE void left_fragment(const u16* tile, int line, u32* fragment) {
    int group = threadIdx.x % WARP / 4, pair = threadIdx.x % 4 * 2;
    fragment[0] = *(const u32*)(tile + group * line + pair);
    fragment[1] = *(const u32*)(tile + (group + 8) * line + pair);
    fragment[2] = *(const u32*)(tile + group * line + pair + 8);
    fragment[3] = *(const u32*)(tile + (group + 8) * line + pair + 8);
}

// A lane's part of a right operand, of which `tile` has the columns as lines.
DEVICE void right_fragment(const u16* tile, int line, u32* fragment) {
    int group = threadIdx.x % WARP / 4, pair = threadIdx.x % 4 * 2;
    fragment[0] = *(const u32*)(tile + group * line + pair);
    fragment[1] = *(const u32*)(tile + group * line + pair + 8);
}

DEVICE u32 pack(float low, float high) { return (u32)f32_to_bf16(low) | (u32)f32_to_bf16(high) << 16; }

// The sums of two tiles of 8 columns as a left operand of 16 columns.
DEVICE void sums_as_left(const float* first, const float* second, u32* fragment) {
    fragment[0] = pack(first[0], first[1]);
    fragment[1] = pack(first[2], first[3]);
    fragment[2] = pack(second[0], second[1]);
    fragment[3] = pack(second[2], second[3]);
}

// Places of a sequence as bf16, `rows` of them from `first` on: into `tile`, a place a line, and (turned) into `turned`, of
// `columns` columns from `turned_from` on, a column a line. Places beyond the sequence and columns beyond the head are
// zeros.
template <int SIZE>
DEVICE void load_narrow(const float* x, int stride, int column, Sequence s, int first, int rows, int size, u16* tile,
                        u16* turned, int turned_from, int columns) {
    for (int at = threadIdx.x; at < rows * SIZE; at += blockDim.x) {
        int row = at / SIZE, at_column = at % SIZE;
        bool inside = first + row < s.length && at_column < size;
        u16 value = inside ? f32_to_bf16(x[(u64)row_at(s, first + row) * stride + column + at_column]) : (u16)0;
        if (tile) tile[row * (SIZE + PADDING) + at_column] = value;
        int turned_line = at_column - turned_from;
        if (turned && turned_line >= 0 && turned_line < columns) turned[turned_line * (rows + PADDING) + row] = value;
    }
}

// The value of a row over the four lanes that share it.
DEVICE float quad_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

DEVICE float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// products[COUNT tiles of 8 columns] = left · rightᵀ, both with SIZE columns.
template <int SIZE, int COUNT>
DEVICE void multiply_rows(const u16* left, const u16* right, float (*products)[4]) {
    const int line = SIZE + PADDING;
#pragma unroll
    for (int n = 0; n < COUNT; n++)
        for (int i = 0; i < 4; i++) products[n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < SIZE; k += 16) {
        u32 of_left[4], of_right[2];
        left_fragment(left + k, line, of_left);
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            right_fragment(right + 8 * n * line + k, line, of_right);
            multiply_tiles(products[n], of_left, of_right);
        }
    }
}

// sums[COUNT tiles of 8 columns] += left (16 × DEPTH, as sums) · right, which is turned: a column a line.
template <int DEPTH, int COUNT>
DEVICE void multiply_turned(const float (*left)[4], const u16* turned, float (*sums)[4]) {
    const int line = DEPTH + PADDING;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        u32 of_left[4], of_right[2];
        sums_as_left(left[k / 8], left[k / 8 + 1], of_left);
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            right_fragment(turned + 8 * n * line + k, line, of_right);
            multiply_tiles(sums[n], of_left, of_right);
        }
    }
}

template <int SIZE, int WARPS, int KEY_ROWS>
DEVICE void attention_tensor(Heads h, const u32* tiles, const float* qkv, float* out, float* log_sums, u16* memory) {
    const int ROWS = 16 * WARPS;
    u16* queries = memory;                                // ROWS lines of SIZE
    u16* keys = queries + ROWS * (SIZE + PADDING);        // KEY_ROWS lines of SIZE
    u16* values = keys + KEY_ROWS * (SIZE + PADDING);     // turned: SIZE lines of KEY_ROWS
    Tile tile = tile_at(tiles, blockIdx.x);
    Sequence s = tile.sequence;
    int first = tile.first;
    int head = blockIdx.y, key_head = head / (h.heads / h.key_value_heads), stride = qkv_width(h);
    int own = threadIdx.x / WARP * 16, group = threadIdx.x % WARP / 4, pair = threadIdx.x % 4 * 2;
    float slope = h.slopes ? h.slopes[head] : 0.0f;

    load_narrow<SIZE>(qkv, stride, head * h.size, s, first, ROWS, h.size, queries, nullptr, 0, 0);
    float sums[SIZE / 8][4], greatest[2] = {-INFINITE, -INFINITE}, totals[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < SIZE / 8; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    int beyond = min(s.length, first + ROWS);
    for (int key = first_key(h, first) / KEY_ROWS * KEY_ROWS; key < beyond; key += KEY_ROWS) {
        __syncthreads();
        load_narrow<SIZE>(qkv, stride, key_column(h, key_head), s, key, KEY_ROWS, h.size, keys, nullptr, 0, 0);
        load_narrow<SIZE>(qkv, stride, value_column(h, key_head), s, key, KEY_ROWS, h.size, nullptr, values, 0,
                          SIZE);
        __syncthreads();
        float scores[KEY_ROWS / 8][4];
        multiply_rows<SIZE, KEY_ROWS / 8>(queries + own * (SIZE + PADDING), keys, scores);
        float before[2] = {greatest[0], greatest[1]}, now[2] = {greatest[0], greatest[1]};
#pragma unroll
        for (int n = 0; n < KEY_ROWS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query_at = first + own + group + i / 2 * 8, key_at = key + 8 * n + pair + i % 2;
                scores[n][i] =
                    sees(h, query_at, key_at) ? scores[n][i] * h.scale + slope * (float)(key_at - query_at) : -INFINITE;
                now[i / 2] = fmaxf(now[i / 2], scores[n][i]);
            }
        }
        float rescale[2], parts[2] = {0.0f, 0.0f};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            greatest[half] = now[half] = quad_max(now[half]);
            // A query that has seen no key yet: all exponentials are zeros.
            if (now[half] == -INFINITE) now[half] = 0.0f;
            rescale[half] = expf(before[half] - now[half]);
        }
#pragma unroll
        for (int n = 0; n < KEY_ROWS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[n][i] = expf(scores[n][i] - now[i / 2]);
                parts[i / 2] += scores[n][i];
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) totals[half] = totals[half] * rescale[half] + quad_sum(parts[half]);
#pragma unroll
        for (int n = 0; n < SIZE / 8; n++)
            for (int i = 0; i < 4; i++) sums[n][i] *= rescale[i / 2];
        multiply_turned<KEY_ROWS, SIZE / 8>(scores, values, sums);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int place = first + own + group + 8 * half;
        if (place >= s.length) continue;
        float* to = out + (u64)row_at(s, place) * h.heads * h.size + head * h.size;
#pragma unroll
        for (int n = 0; n < SIZE / 8; n++)
            for (int i = 0; i < 2; i++)
                if (8 * n + pair + i < h.size) to[8 * n + pair + i] = sums[n][2 * half + i] / totals[half];
        if (pair == 0) log_sums[(u64)row_at(s, place) * h.heads + head] = greatest[half] + logf(totals[half]);
    }
}

// The gradient of the queries.
template <int SIZE, int WARPS>
DEVICE void attention_tensor_backward_queries(Heads h, const u32* tiles, const float* qkv, const float* log_sums,
                                              const float* along, const float* dout, float* dqkv, u16* memory) {
    const int ROWS = 16 * WARPS, KEY_ROWS = 32, line = SIZE + PADDING;
    u16* queries = memory;
    u16* douts = queries + ROWS * line;
    u16* keys = douts + ROWS * line;
    u16* values = keys + KEY_ROWS * line;
    u16* turned_keys = values + KEY_ROWS * line;  // SIZE lines of KEY_ROWS
    Tile tile = tile_at(tiles, blockIdx.x);
    Sequence s = tile.sequence;
    int first = tile.first;
    int head = blockIdx.y, key_head = head / (h.heads / h.key_value_heads), stride = qkv_width(h);
    int own = threadIdx.x / WARP * 16, group = threadIdx.x % WARP / 4, pair = threadIdx.x % 4 * 2;
    float slope = h.slopes ? h.slopes[head] : 0.0f;

    load_narrow<SIZE>(qkv, stride, head * h.size, s, first, ROWS, h.size, queries, nullptr, 0, 0);
    load_narrow<SIZE>(dout, h.heads * h.size, head * h.size, s, first, ROWS, h.size, douts, nullptr, 0, 0);
    float own_log_sums[2], own_along[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int place = first + own + group + 8 * half;
        u64 at = (u64)row_at(s, place) * h.heads + head;
        own_log_sums[half] = place < s.length ? log_sums[at] : 0.0f;
        own_along[half] = place < s.length ? along[at] : 0.0f;
    }
    float sums[SIZE / 8][4];
#pragma unroll
    for (int n = 0; n < SIZE / 8; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    int beyond = min(s.length, first + ROWS);
    for (int key = first_key(h, first) / KEY_ROWS * KEY_ROWS; key < beyond; key += KEY_ROWS) {
        __syncthreads();
        load_narrow<SIZE>(qkv, stride, key_column(h, key_head), s, key, KEY_ROWS, h.size, keys, turned_keys, 0,
                          SIZE);
        load_narrow<SIZE>(qkv, stride, value_column(h, key_head), s, key, KEY_ROWS, h.size, values, nullptr, 0, 0);
        __syncthreads();
        float scores[KEY_ROWS / 8][4], dweights[KEY_ROWS / 8][4];
        multiply_rows<SIZE, KEY_ROWS / 8>(queries + own * line, keys, scores);
        multiply_rows<SIZE, KEY_ROWS / 8>(douts + own * line, values, dweights);
#pragma unroll
        for (int n = 0; n < KEY_ROWS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query_at = first + own + group + i / 2 * 8, key_at = key + 8 * n + pair + i % 2;
                float score = scores[n][i] * h.scale + slope * (float)(key_at - query_at);
                float weight = sees(h, query_at, key_at) && query_at < s.length ? expf(score - own_log_sums[i / 2]) : 0.0f;
                scores[n][i] = weight * (dweights[n][i] - own_along[i / 2]) * h.scale;
            }
        }
        multiply_turned<KEY_ROWS, SIZE / 8>(scores, turned_keys, sums);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int place = first + own + group + 8 * half;
        if (place >= s.length) continue;
        float* to = dqkv + (u64)row_at(s, place) * stride + head * h.size;
#pragma unroll
        for (int n = 0; n < SIZE / 8; n++)
            for (int i = 0; i < 2; i++)
                if (8 * n + pair + i < h.size) to[8 * n + pair + i] = sums[n][2 * half + i];
    }
}

// The gradients of OUT columns of the keys and values; a head wider than OUT takes several blocks, which the second
// dimension of the grid counts within a key-value head.
template <int SIZE, int WARPS, int OUT>
DEVICE void attention_tensor_backward_keys(Heads h, const u32* tiles, const float* qkv, const float* log_sums,
                                           const float* along, const float* dout, float* dqkv, u16* memory) {
    const int ROWS = 16 * WARPS, QUERY_ROWS = 32, line = SIZE + PADDING, turned_line = QUERY_ROWS + PADDING;
    u16* keys = memory;
    u16* values = keys + ROWS * line;
    u16* queries = values + ROWS * line;
    u16* douts = queries + QUERY_ROWS * line;
    u16* turned_queries = douts + QUERY_ROWS * line;  // OUT lines of QUERY_ROWS
    u16* turned_douts = turned_queries + OUT * turned_line;
    float* tile_log_sums = (float*)(turned_douts + OUT * turned_line);
    float* tile_along = tile_log_sums + QUERY_ROWS;
    Tile tile = tile_at(tiles, blockIdx.x);
    Sequence s = tile.sequence;
    int first = tile.first;
    int key_head = blockIdx.y / (SIZE / OUT), from = blockIdx.y % (SIZE / OUT) * OUT;
    int heads = h.heads / h.key_value_heads, stride = qkv_width(h);
    int own = threadIdx.x / WARP * 16, group = threadIdx.x % WARP / 4, pair = threadIdx.x % 4 * 2;

    load_narrow<SIZE>(qkv, stride, key_column(h, key_head), s, first, ROWS, h.size, keys, nullptr, 0, 0);
    load_narrow<SIZE>(qkv, stride, value_column(h, key_head), s, first, ROWS, h.size, values, nullptr, 0, 0);
    float dkeys[OUT / 8][4], dvalues[OUT / 8][4];
#pragma unroll
    for (int n = 0; n < OUT / 8; n++)
        for (int i = 0; i < 4; i++) dkeys[n][i] = dvalues[n][i] = 0.0f;
    for (int turn = 0; turn < heads * (1 + tile.followers); turn++) {
        int head = key_head * heads + turn / (1 + tile.followers), follower = turn % (1 + tile.followers) - 1;
        float slope = h.slopes ? h.slopes[head] : 0.0f;
        Sequence of = seen_by(tile, follower);
        for (int query = first_query(tile, follower); query < of.length && first_key(h, query) < first + ROWS;
             query += QUERY_ROWS) {
            __syncthreads();
            load_narrow<SIZE>(qkv, stride, head * h.size, of, query, QUERY_ROWS, h.size, queries, turned_queries,
                              from, OUT);
            load_narrow<SIZE>(dout, h.heads * h.size, head * h.size, of, query, QUERY_ROWS, h.size, douts,
                              turned_douts, from, OUT);
            if (threadIdx.x < QUERY_ROWS) {
                u64 at = (u64)row_at(of, query + threadIdx.x) * h.heads + head;
                bool inside = query + (int)threadIdx.x < of.length;
                tile_log_sums[threadIdx.x] = inside ? log_sums[at] : 0.0f;
                tile_along[threadIdx.x] = inside ? along[at] : 0.0f;
            }
            __syncthreads();
            float weights[QUERY_ROWS / 8][4], dscores[QUERY_ROWS / 8][4];
            multiply_rows<SIZE, QUERY_ROWS / 8>(keys + own * line, queries, weights);
            multiply_rows<SIZE, QUERY_ROWS / 8>(values + own * line, douts, dscores);
#pragma unroll
            for (int n = 0; n < QUERY_ROWS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int place = 8 * n + pair + i % 2;
                    int key_at = first + own + group + i / 2 * 8, query_at = query + place;
                    float score = weights[n][i] * h.scale + slope * (float)(key_at - query_at);
                    bool seen = sees(h, query_at, key_at) && query_at < of.length;
                    weights[n][i] = seen ? expf(score - tile_log_sums[place]) : 0.0f;
                    dscores[n][i] = weights[n][i] * (dscores[n][i] - tile_along[place]) * h.scale;
                }
            }
            multiply_turned<QUERY_ROWS, OUT / 8>(weights, turned_douts, dvalues);
            multiply_turned<QUERY_ROWS, OUT / 8>(dscores, turned_queries, dkeys);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int place = first + own + group + 8 * half;
        if (place >= s.length) continue;
        float* to = dqkv + (u64)row_at(s, place) * stride + from;
#pragma unroll
        for (int n = 0; n < OUT / 8; n++) {
            for (int i = 0; i < 2; i++) {
                int column = 8 * n + pair + i;
                if (from + column >= h.size) continue;
                to[key_column(h, key_head) + column] = dkeys[n][2 * half + i];
                to[value_column(h, key_head) + column] = dvalues[n][2 * half + i];
            }
        }
    }
}

// The widths that heads are padded to; `attention.rs` picks among them.
#define ATTENTION_FOR(SIZE, WARPS, KEY_ROWS, OUT)                                                                          \
    KERNEL(attention_tensor_##SIZE)(Heads h, const u32* tiles, const float* qkv, float* out, float* log_sums) {           \
        DYNAMIC_SHARED(memory);                                                                                            \
        attention_tensor<SIZE, WARPS, KEY_ROWS>(h, tiles, qkv, out, log_sums, (u16*)memory);                               \
    }                                                                                                                      \
    KERNEL(attention_tensor_backward_queries_##SIZE)(Heads h, const u32* tiles, const float* qkv, const float* log_sums,  \
                                                      const float* along, const float* dout, float* dqkv) {                \
        DYNAMIC_SHARED(memory);                                                                                            \
        attention_tensor_backward_queries<SIZE, WARPS>(h, tiles, qkv, log_sums, along, dout, dqkv, (u16*)memory);          \
    }                                                                                                                      \
    KERNEL(attention_tensor_backward_keys_##SIZE)(Heads h, const u32* tiles, const float* qkv, const float* log_sums,     \
                                                   const float* along, const float* dout, float* dqkv) {                   \
        DYNAMIC_SHARED(memory);                                                                                            \
        attention_tensor_backward_keys<SIZE, WARPS, OUT>(h, tiles, qkv, log_sums, along, dout, dqkv, (u16*)memory);        \
    }

// NVRTC takes seconds for each: it is given one width at a time, when the first head of that width is met.
#if !defined(ATTENTION_SIZE) || ATTENTION_SIZE == 32
ATTENTION_FOR(32, 4, 64, 32)
#endif
#if !defined(ATTENTION_SIZE) || ATTENTION_SIZE == 64
ATTENTION_FOR(64, 4, 64, 64)
#endif
#if !defined(ATTENTION_SIZE) || ATTENTION_SIZE == 96
ATTENTION_FOR(96, 4, 64, 96)
#endif
#if !defined(ATTENTION_SIZE) || ATTENTION_SIZE == 128
ATTENTION_FOR(128, 4, 64, 128)
#endif
#if !defined(ATTENTION_SIZE) || ATTENTION_SIZE == 256
ATTENTION_FOR(256, 2, 32, 128)
#endif
