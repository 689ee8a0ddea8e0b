// Causal attention over packed sequences, with grouped heads and ALiBi, in 32-bit floats: the arithmetic of the CPU.
// `attention_tensor.cu` has the same on tensor cores.
//
// A block of threads has a tile of QUERIES rows of one sequence and one head, or (for the gradients of keys and values)
// a tile of KEYS rows of one sequence and one key-value head; so every sum belongs to one block, and has one order.
// `tiles` says which rows those are; a sequence that goes on from a prefix sees the keys of both.

#define QUERIES 16
#define KEYS 16

// Places of a sequence into a tile of `count` rows of `size`; those beyond its end are zeros.
DEVICE void load_tile(const float* x, int stride, int column, Sequence s, int first, int count, int size, float* tile) {
    for (int at = threadIdx.x; at < count * size; at += blockDim.x) {
        int place = first + at / size;
        tile[at] = place < s.length ? x[(u64)row_at(s, place) * stride + column + at % size] : 0.0f;
    }
}

DEVICE float dot(const float* a, const float* b, int size) {
    float sum = 0.0f;
    for (int i = 0; i < size; i++) sum += a[i] * b[i];
    return sum;
}

// The score of a query and a key at these places of the sequence; minus infinity where the query does not see the key.
DEVICE float score(Heads h, float slope, const float* query, const float* key, int query_at, int key_at, int length) {
    if (query_at >= length || !sees(h, query_at, key_at)) return -INFINITE;
    return dot(query, key, h.size) * h.scale + slope * (float)(key_at - query_at);
}

// out[rows, heads * size] and log_sums[rows, heads], with a running softmax (Dao et al. 2022).
KERNEL(attention)(Heads h, const u32* tiles, const float* qkv, float* out, float* log_sums) {
    DYNAMIC_SHARED(memory);
    float* queries = memory;
    float* keys = queries + QUERIES * h.size;
    float* values = keys + KEYS * h.size;
    float* sums = values + KEYS * h.size;          // of weighted values: QUERIES × size
    float* weights = sums + QUERIES * h.size;      // QUERIES × KEYS
    float* greatest = weights + QUERIES * KEYS;    // of each query's scores so far
    float* totals = greatest + QUERIES;            // of exponentials
    float* rescale = totals + QUERIES;
    Tile tile = tile_at(tiles, blockIdx.x);
    Sequence s = tile.sequence;
    int first = tile.first;
    int head = blockIdx.y, key_head = head / (h.heads / h.key_value_heads), stride = qkv_width(h);
    float slope = h.slopes ? h.slopes[head] : 0.0f;

    load_tile(qkv, stride, head * h.size, s, first, QUERIES, h.size, queries);
    for (int at = threadIdx.x; at < QUERIES * h.size; at += blockDim.x) sums[at] = 0.0f;
    if (threadIdx.x < QUERIES) greatest[threadIdx.x] = -INFINITE, totals[threadIdx.x] = 0.0f;
    int beyond = min(s.length, first + QUERIES);
    for (int key = first_key(h, first) / KEYS * KEYS; key < beyond; key += KEYS) {
        __syncthreads();
        load_tile(qkv, stride, key_column(h, key_head), s, key, KEYS, h.size, keys);
        load_tile(qkv, stride, value_column(h, key_head), s, key, KEYS, h.size, values);
        __syncthreads();
        for (int at = threadIdx.x; at < QUERIES * KEYS; at += blockDim.x) {
            int i = at / KEYS, j = at % KEYS;
            weights[at] = score(h, slope, queries + i * h.size, keys + j * h.size, first + i, key + j, s.length);
        }
        __syncthreads();
        if (threadIdx.x < QUERIES) {
            float* row = weights + threadIdx.x * KEYS;
            float before = greatest[threadIdx.x], now = before, sum = 0.0f;
            for (int j = 0; j < KEYS; j++) now = fmaxf(now, row[j]);
            // A row beyond the sequence's end sees no key at all.
            for (int j = 0; j < KEYS; j++) sum += row[j] = now == -INFINITE ? 0.0f : expf(row[j] - now);
            rescale[threadIdx.x] = before == -INFINITE ? 0.0f : expf(before - now);
            totals[threadIdx.x] = totals[threadIdx.x] * rescale[threadIdx.x] + sum;
            greatest[threadIdx.x] = now;
        }
        __syncthreads();
        for (int at = threadIdx.x; at < QUERIES * h.size; at += blockDim.x) {
            int i = at / h.size, column = at % h.size;
            float sum = sums[at] * rescale[i];
            for (int j = 0; j < KEYS; j++) sum += weights[i * KEYS + j] * values[j * h.size + column];
            sums[at] = sum;
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < QUERIES * h.size; at += blockDim.x) {
        int i = at / h.size;
        if (first + i < s.length)
            out[(u64)row_at(s, first + i) * h.heads * h.size + head * h.size + at % h.size] = sums[at] / totals[i];
    }
    if (threadIdx.x < QUERIES && first + (int)threadIdx.x < s.length)
        log_sums[(u64)row_at(s, first + threadIdx.x) * h.heads + head] =
            greatest[threadIdx.x] + logf(totals[threadIdx.x]);
}

// along[row][head] = dout · out: a block a row, a warp a head at a time.
KERNEL(attention_along)(int heads, int size, const float* out, const float* dout, float* along) {
    for (int head = threadIdx.x / WARP; head < heads; head += blockDim.x / WARP) {
        u64 start = ((u64)blockIdx.x * heads + head) * size;
        float sum = 0.0f;
        for (int column = threadIdx.x % WARP; column < size; column += WARP) sum += out[start + column] * dout[start + column];
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) along[(u64)blockIdx.x * heads + head] = sum;
    }
}

// The weight of a query and a key again, and the gradient of their score, of tiles of both.
DEVICE void backward_tile(Heads h, float slope, const float* queries, const float* keys, const float* values,
                          const float* douts, int query_at, int key_at, int length, const float* log_sums,
                          const float* along, float* weights, float* dscores) {
    for (int at = threadIdx.x; at < QUERIES * KEYS; at += blockDim.x) {
        int i = at / KEYS, j = at % KEYS;
        float value = score(h, slope, queries + i * h.size, keys + j * h.size, query_at + i, key_at + j, length);
        float weight = value == -INFINITE ? 0.0f : expf(value - log_sums[i]);
        weights[at] = weight;
        dscores[at] = weight * (dot(douts + i * h.size, values + j * h.size, h.size) - along[i]) * h.scale;
    }
}

// `log_sums` and `along` of a tile of queries, zeros beyond the sequence's end.
DEVICE void load_sums(Heads h, int head, Sequence s, int first, const float* log_sums, const float* along,
                      float* tile_log_sums, float* tile_along) {
    if (threadIdx.x < QUERIES) {
        int place = first + threadIdx.x;
        u64 at = (u64)row_at(s, place) * h.heads + head;
        tile_log_sums[threadIdx.x] = place < s.length ? log_sums[at] : 0.0f;
        tile_along[threadIdx.x] = place < s.length ? along[at] : 0.0f;
    }
}

// The gradient of the queries.
KERNEL(attention_backward_queries)(Heads h, const u32* tiles, const float* qkv, const float* log_sums, const float* along,
                                   const float* dout, float* dqkv) {
    DYNAMIC_SHARED(memory);
    float* queries = memory;
    float* douts = queries + QUERIES * h.size;
    float* keys = douts + QUERIES * h.size;
    float* values = keys + KEYS * h.size;
    float* dqueries = values + KEYS * h.size;
    float* weights = dqueries + QUERIES * h.size;
    float* dscores = weights + QUERIES * KEYS;
    float* tile_log_sums = dscores + QUERIES * KEYS;
    float* tile_along = tile_log_sums + QUERIES;
    Tile tile = tile_at(tiles, blockIdx.x);
    Sequence s = tile.sequence;
    int first = tile.first;
    int head = blockIdx.y, key_head = head / (h.heads / h.key_value_heads), stride = qkv_width(h);
    float slope = h.slopes ? h.slopes[head] : 0.0f;

    load_tile(qkv, stride, head * h.size, s, first, QUERIES, h.size, queries);
    load_tile(dout, h.heads * h.size, head * h.size, s, first, QUERIES, h.size, douts);
    load_sums(h, head, s, first, log_sums, along, tile_log_sums, tile_along);
    for (int at = threadIdx.x; at < QUERIES * h.size; at += blockDim.x) dqueries[at] = 0.0f;
    int beyond = min(s.length, first + QUERIES);
    for (int key = first_key(h, first) / KEYS * KEYS; key < beyond; key += KEYS) {
        __syncthreads();
        load_tile(qkv, stride, key_column(h, key_head), s, key, KEYS, h.size, keys);
        load_tile(qkv, stride, value_column(h, key_head), s, key, KEYS, h.size, values);
        __syncthreads();
        backward_tile(h, slope, queries, keys, values, douts, first, key, s.length, tile_log_sums, tile_along, weights, dscores);
        __syncthreads();
        for (int at = threadIdx.x; at < QUERIES * h.size; at += blockDim.x) {
            float sum = dqueries[at];
            for (int j = 0; j < KEYS; j++) sum += dscores[at / h.size * KEYS + j] * keys[j * h.size + at % h.size];
            dqueries[at] = sum;
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < QUERIES * h.size; at += blockDim.x) {
        int place = first + at / h.size;
        if (place < s.length) dqkv[(u64)row_at(s, place) * stride + head * h.size + at % h.size] = dqueries[at];
    }
}

// The gradients of the keys and values: over all queries that see them, of all heads that share them.
KERNEL(attention_backward_keys)(Heads h, const u32* tiles, const float* qkv, const float* log_sums, const float* along,
                                const float* dout, float* dqkv) {
    DYNAMIC_SHARED(memory);
    float* queries = memory;
    float* douts = queries + QUERIES * h.size;
    float* keys = douts + QUERIES * h.size;
    float* values = keys + KEYS * h.size;
    float* dkeys = values + KEYS * h.size;
    float* dvalues = dkeys + KEYS * h.size;
    float* weights = dvalues + KEYS * h.size;
    float* dscores = weights + QUERIES * KEYS;
    float* tile_log_sums = dscores + QUERIES * KEYS;
    float* tile_along = tile_log_sums + QUERIES;
    Tile tile = tile_at(tiles, blockIdx.x);
    Sequence s = tile.sequence;
    int first = tile.first;
    int key_head = blockIdx.y, group = h.heads / h.key_value_heads, stride = qkv_width(h);

    load_tile(qkv, stride, key_column(h, key_head), s, first, KEYS, h.size, keys);
    load_tile(qkv, stride, value_column(h, key_head), s, first, KEYS, h.size, values);
    for (int at = threadIdx.x; at < KEYS * h.size; at += blockDim.x) dkeys[at] = dvalues[at] = 0.0f;
    for (int turn = 0; turn < group * (1 + tile.followers); turn++) {
        int head = key_head * group + turn / (1 + tile.followers), follower = turn % (1 + tile.followers) - 1;
        float slope = h.slopes ? h.slopes[head] : 0.0f;
        Sequence of = seen_by(tile, follower);
        for (int query = first_query(tile, follower); query < of.length && first_key(h, query) < first + KEYS;
             query += QUERIES) {
            __syncthreads();
            load_tile(qkv, stride, head * h.size, of, query, QUERIES, h.size, queries);
            load_tile(dout, h.heads * h.size, head * h.size, of, query, QUERIES, h.size, douts);
            load_sums(h, head, of, query, log_sums, along, tile_log_sums, tile_along);
            __syncthreads();
            backward_tile(h, slope, queries, keys, values, douts, query, first, of.length, tile_log_sums, tile_along,
                          weights, dscores);
            __syncthreads();
            for (int at = threadIdx.x; at < KEYS * h.size; at += blockDim.x) {
                int j = at / h.size, column = at % h.size;
                float dkey = dkeys[at], dvalue = dvalues[at];
                for (int i = 0; i < QUERIES; i++) {
                    dkey += dscores[i * KEYS + j] * queries[i * h.size + column];
                    dvalue += weights[i * KEYS + j] * douts[i * h.size + column];
                }
                dkeys[at] = dkey;
                dvalues[at] = dvalue;
            }
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < KEYS * h.size; at += blockDim.x) {
        int place = first + at / h.size;
        if (place < s.length) {
            float* to = dqkv + (u64)row_at(s, place) * stride + at % h.size;
            to[key_column(h, key_head)] = dkeys[at];
            to[value_column(h, key_head)] = dvalues[at];
        }
    }
}

// Decoding. A page has `page_size` positions: their keys, head by head (key_value_heads × page_size × size), then their
// values. Row i's pages are pages[page_starts[i]..], its own position positions[i].

DEVICE u64 page_length(Heads h, int page_size) { return 2ull * h.key_value_heads * page_size * h.size; }

// Each row's keys and values at its position: a block a row.
KERNEL(store_key_values)(Heads h, int page_size, const u32* page_starts, const u32* pages, const u32* positions,
                         const float* qkv, float* cache) {
    int position = positions[blockIdx.x], width = h.key_value_heads * h.size;
    const float* row = qkv + (u64)blockIdx.x * qkv_width(h);
    float* page = cache + pages[page_starts[blockIdx.x] + position / page_size] * page_length(h, page_size);
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        u64 to = ((u64)(at / h.size) * page_size + position % page_size) * h.size + at % h.size;
        page[to] = row[key_column(h, 0) + at];
        page[page_length(h, page_size) / 2 + to] = row[value_column(h, 0) + at];
    }
}

// Most columns of a head that a lane of a warp has: heads of up to 256.
#define LANE_COLUMNS 8

// Each row's attention over the positions up to its own that it sees: a block a row (x) and head (y). Warps take positions in turn, and
// join their running softmaxes at the end.
KERNEL(attention_cached)(Heads h, int page_size, const u32* page_starts, const u32* pages, const u32* positions,
                         const float* qkv, const float* cache, float* out) {
    DYNAMIC_SHARED(memory);  // a warp's sums of weighted values (size), maximum and total: in turn
    int head = blockIdx.y, key_head = head / (h.heads / h.key_value_heads);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    int position = positions[blockIdx.x];
    const u32* row_pages = pages + page_starts[blockIdx.x];
    const float* query = qkv + (u64)blockIdx.x * qkv_width(h) + head * h.size;
    float slope = h.slopes ? h.slopes[head] : 0.0f;

    float q[LANE_COLUMNS], sums[LANE_COLUMNS];
    for (int i = 0; i < LANE_COLUMNS; i++) {
        q[i] = lane + i * WARP < h.size ? query[lane + i * WARP] : 0.0f;
        sums[i] = 0.0f;
    }
    float greatest = -INFINITE, total = 0.0f;
    for (int key = first_key(h, position) + warp; key <= position; key += warps) {
        u64 at = row_pages[key / page_size] * page_length(h, page_size) +
                 ((u64)key_head * page_size + key % page_size) * h.size;
        const float* keys = cache + at;
        const float* values = keys + page_length(h, page_size) / 2;
        float product = 0.0f;
        for (int i = 0; i < LANE_COLUMNS; i++)
            if (lane + i * WARP < h.size) product += q[i] * keys[lane + i * WARP];
        float value = warp_sum(product) * h.scale + slope * (float)(key - position);
        float now = fmaxf(greatest, value), rescale = expf(greatest - now), weight = expf(value - now);
        total = total * rescale + weight;
        for (int i = 0; i < LANE_COLUMNS; i++)
            if (lane + i * WARP < h.size) sums[i] = sums[i] * rescale + weight * values[lane + i * WARP];
        greatest = now;
    }
    float* own = memory + warp * (h.size + 2);
    for (int i = 0; i < LANE_COLUMNS; i++)
        if (lane + i * WARP < h.size) own[lane + i * WARP] = sums[i];
    if (lane == 0) own[h.size] = greatest, own[h.size + 1] = total;
    __syncthreads();
    float all = memory[h.size];
    for (int other = 1; other < warps; other++) all = fmaxf(all, memory[other * (h.size + 2) + h.size]);
    for (int column = threadIdx.x; column < h.size; column += blockDim.x) {
        float sum = 0.0f, exponentials = 0.0f;
        for (int other = 0; other < warps; other++) {
            const float* part = memory + other * (h.size + 2);
            float rescale = expf(part[h.size] - all);
            sum += part[column] * rescale;
            exponentials += part[h.size + 1] * rescale;
        }
        out[((u64)blockIdx.x * h.heads + head) * h.size + column] = sum / exponentials;
    }
}
