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

// A sequence by its places: those of the prefix that it goes on from, if any, then its own.
struct Sequence {
    int prefix, prefix_length;  // the prefix's first row, and how many it has
    int start, length;          // its own first row; all its places, the prefix's among them
};

// The row of a place.
DEVICE int row_at(Sequence s, int place) {
    return place < s.prefix_length ? s.prefix + place : s.start + place - s.prefix_length;
}

// What a block has of a sequence: some of its own places, from `first` on.
struct Tile {
    Sequence sequence;
    int first;
    int followers;                 // sequences whose prefix this one is
    const u32* of_followers;  // two numbers each
};

// Numbers of a tile in `tiles`; `attention.rs` writes them.
#define TILE_NUMBERS 7

DEVICE Tile tile_at(const u32* tiles, int number) {
    const u32* of = tiles + TILE_NUMBERS * number;
    Tile tile = {{(int)of[0], (int)of[1], (int)of[2], (int)of[3]}, (int)of[4], (int)of[5], tiles + of[6]};
    return tile;
}

// The sequence whose queries see a tile's keys: its own (-1), or a follower's.
DEVICE Sequence seen_by(Tile tile, int follower) {
    if (follower < 0) return tile.sequence;
    const u32* of = tile.of_followers + 2 * follower;
    Sequence s = {tile.sequence.start, tile.sequence.length, (int)of[0], (int)of[1]};
    return s;
}

// The first of those queries: a follower's own places come after all of its prefix's.
DEVICE int first_query(Tile tile, int follower) { return follower < 0 ? tile.first : tile.sequence.length; }
