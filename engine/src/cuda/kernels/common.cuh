// What all kernels share: names, types of elements, sums over the threads of a block.
//
// Matrices are row-major; a row is a token of the micro-batch. Every sum's order depends on its length alone and no
// kernel adds atomically, so that two runs give the same bytes. The same text is compiled by NVRTC for a GPU, and by a
// C++ compiler for the tests' emulator (`emulator/`), which brings its own names for what the language has beyond C++.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef EMULATED
#define KERNEL(name) extern "C" __global__ void kernel_##name
#define DYNAMIC_SHARED(name) extern __shared__ float name[]
#define SHARED __shared__
#define DEVICE static __device__ __forceinline__
#define CONSTANT static __constant__
#define INFINITE __int_as_float(0x7f800000)
#endif

#define WARP 32
#define ALL_LANES 0xffffffffu

// Types of a matrix's elements, as `matrix.rs` numbers them.
#define TYPE_F32 0
#define TYPE_BF16 1
#define TYPE_F16 2

DEVICE float bf16_to_f32(u16 x) { return __uint_as_float((u32)x << 16); }

// Rounded to the nearest, ties to even.
DEVICE u16 f32_to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The exponent is moved by a product, which makes subnormal numbers right too.
DEVICE float f16_to_f32(u16 x) {
    u32 magnitude = (u32)(x & 0x7fffu) << 13;
    float value = (x & 0x7c00u) == 0x7c00u ? __uint_as_float(magnitude | 0x7f800000u)
                                           : __uint_as_float(magnitude) * __uint_as_float(0x77800000u);
    return (x & 0x8000u) ? -value : value;
}

// Element `at` of an array of any type, as a 32-bit float.
DEVICE float element(int type, const void* values, u64 at) {
    if (type == TYPE_BF16) return bf16_to_f32(((const u16*)values)[at]);
    if (type == TYPE_F16) return f16_to_f32(((const u16*)values)[at]);
    return ((const float*)values)[at];
}

// This thread's place among all of a one-dimensional grid, and how many there are.
DEVICE u64 thread_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE u64 thread_count() { return (u64)gridDim.x * blockDim.x; }

// The sum over a warp, in every lane.
DEVICE float warp_sum(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

DEVICE float warp_max(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, offset));
    return value;
}

// The sum over a block of whole warps, in every thread.
DEVICE float block_sum(float value) {
    SHARED float sums[WARP];
    value = warp_sum(value);
    __syncthreads();  // the sums of an earlier call have been read
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < (int)blockDim.x / WARP; warp++) total += sums[warp];
    return total;
}

DEVICE float block_max(float value) {
    SHARED float greatest[WARP];
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) greatest[threadIdx.x / WARP] = value;
    __syncthreads();
    float all = greatest[0];
    for (int warp = 1; warp < (int)blockDim.x / WARP; warp++) all = fmaxf(all, greatest[warp]);
    return all;
}

// Sums over rows: a block of COLUMNS by LINES threads takes COLUMNS columns, each line of threads every LINES-th row.
#define COLUMNS 32
#define LINES 8

DEVICE float line_sum(float value) {
    SHARED float sums[LINES][COLUMNS];
    int column = threadIdx.x % COLUMNS, line = threadIdx.x / COLUMNS;
    __syncthreads();
    sums[line][column] = value;
    __syncthreads();
    float total = 0.0f;
    for (int other = 0; other < LINES; other++) total += sums[other][column];
    return total;
}
