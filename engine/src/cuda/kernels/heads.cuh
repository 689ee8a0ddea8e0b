// What attention knows of the heads. A row of `qkv` has the queries of all heads, then the keys, then the values of the
// key-value heads.

// As `device.rs` lays it out.
struct Heads {
    int heads, key_value_heads, size;
    float scale;
    int window;            // positions that a query sees, its own among them
    const float* slopes;  // ALiBi's, one a query head, or null
};

// Whether a query at one place of a sequence sees the key at another.
DEVICE bool sees(Heads h, int query, int key) { return key <= query && query - key < h.window; }

// The first key that a query sees.
DEVICE int first_key(Heads h, int query) { return max(0, query - h.window + 1); }

DEVICE int qkv_width(Heads h) { return (h.heads + 2 * h.key_value_heads) * h.size; }
DEVICE int key_column(Heads h, int key_head) { return (h.heads + key_head) * h.size; }
DEVICE int value_column(Heads h, int key_head) { return (h.heads + h.key_value_heads + key_head) * h.size; }

