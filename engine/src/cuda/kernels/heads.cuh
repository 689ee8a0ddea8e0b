// What attention knows of the heads. A row of `qkv` has the queries of all heads, then the keys, then the values of the
// key-value heads.

// As `device.rs` lays it out.
struct Heads {
    int heads, key_value_heads, size;
    float scale;
    const float* slopes;  // ALiBi's, one a query head, or null
};

DEVICE int qkv_width(Heads h) { return (h.heads + 2 * h.key_value_heads) * h.size; }
DEVICE int key_column(Heads h, int key_head) { return (h.heads + key_head) * h.size; }
DEVICE int value_column(Heads h, int key_head) { return (h.heads + h.key_value_heads + key_head) * h.size; }

