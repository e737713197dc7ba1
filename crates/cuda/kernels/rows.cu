// What is done row by row: looking embeddings up, RMSNorm, and what is added to
// the residual before it. Rows begin at multiples of 16 bytes; what lies between
// a row's columns and the next row is written as zeros.
#include "gpu.cuh"

// Set in a token that is a place among the samples of the step before.
constexpr u32 FEED_BIT = 0x80000000u;
constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;
// Columns that a thread takes at once.
constexpr u32 WIDTH = 8;
// Of those, how many a thread keeps in registers: rows of up to 4096 columns
// are read once.
constexpr u32 KEPT = 2;

DEVICE void unpack(float (&values)[WIDTH], uint4 packed) {
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16(words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

DEVICE void load(float (&values)[WIDTH], const float* from) {
    const float4 low = reinterpret_cast<const float4*>(from)[0];
    const float4 high = reinterpret_cast<const float4*>(from)[1];
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}

DEVICE void store(float* to, const float (&values)[WIDTH]) {
    reinterpret_cast<float4*>(to)[0] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(values[4], values[5], values[6], values[7]);
}

// --- Embedding ---------------------------------------------------------------

struct EmbedArgs {
    const u32* tokens;
    const u32* fed;
    const bf16* table;  // [table_rows, width * 8], zeros beyond the columns
    float* hidden;
    u32 num_rows;
    u32 table_rows;
    u32 width;          // of a row, in eights
    u32 stride;         // of hidden
};

KERNEL(embed, EmbedArgs, 256) {
    // First, for it is the step's: what later kernels read before they wait, such as
    // keys and values, the steps before have then written.
    pdl_wait();
    pdl_trigger();
    const u32 index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= args.num_rows * args.width) return;
    const u32 row = index / args.width, column = index % args.width * WIDTH;
    u32 token = args.tokens[row];
    if (token & FEED_BIT) token = args.fed[token & ~FEED_BIT];
    // No token makes this leave the table.
    token = min(token, args.table_rows - 1);
    float values[WIDTH];
    unpack(values, load_streaming16(args.table + static_cast<size_t>(token) * args.width * WIDTH + column));
    store(args.hidden + static_cast<size_t>(row) * args.stride + column, values);
}

// --- RMSNorm -----------------------------------------------------------------

struct NormArgs {
    float* hidden;         // [rows, cols]
    const bf16* gain;      // [cols], then zeros
    bf16* normed;          // [rows, cols]
    const bf16* added;     // a row for each row, or for each choice of each row
    const float* weights;  // [rows, top_k], of the choices
    u32 cols;
    u32 hidden_stride;
    u32 normed_stride;
    u32 added_stride;
    u32 top_k;
    float eps;
    u32 num_rows;
    u32 ahead_lines;
    const unsigned char* ahead;  // lines of memory to ask for
};

// What is added to hidden before it is normed.
enum Added { NOTHING, DELTA, CHOICES };

// Adds to COUNT eights of columns, `from` the first and THREADS eights apart,
// and sets what is beyond the row to 0. Loads are begun before any is used.
template <Added ADDED, u32 COUNT>
DEVICE void add(float (&values)[COUNT][WIDTH], const NormArgs& args, u32 row, u32 from) {
    if (ADDED == DELTA) {
        uint4 delta[COUNT];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const u32 column = (from + i * THREADS) * WIDTH;
            if (column < args.cols) {
                delta[i] = *reinterpret_cast<const uint4*>(
                    args.added + static_cast<size_t>(row) * args.added_stride + column);
            }
        }
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            if ((from + i * THREADS) * WIDTH < args.cols) {
                float deltas[WIDTH];
                unpack(deltas, delta[i]);
#pragma unroll
                for (u32 j = 0; j < WIDTH; j++) values[i][j] += deltas[j];
            }
        }
    }
    if (ADDED == CHOICES) {
        for (u32 first = 0; first < args.top_k; first += 4) {
            float weights[4];
            uint4 outputs[COUNT][4];
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                const size_t slot = static_cast<size_t>(row) * args.top_k + first + k;
                const bool chosen = first + k < args.top_k;
                weights[k] = chosen ? args.weights[slot] : 0.0f;
#pragma unroll
                for (u32 i = 0; i < COUNT; i++) {
                    const u32 column = (from + i * THREADS) * WIDTH;
                    outputs[i][k] = make_uint4(0, 0, 0, 0);
                    if (chosen && column < args.cols) {
                        outputs[i][k] =
                            *reinterpret_cast<const uint4*>(args.added + slot * args.added_stride + column);
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < COUNT; i++) {
#pragma unroll
                for (u32 k = 0; k < 4; k++) {
                    float output[WIDTH];
                    unpack(output, outputs[i][k]);
#pragma unroll
                    for (u32 j = 0; j < WIDTH; j++) values[i][j] = fmaf(weights[k], output[j], values[i][j]);
                }
            }
        }
    }
}

DEVICE float block_sum(float value) {
    SHARED(sums, float[WARPS]);
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (u32 warp = 0; warp < WARPS; warp++) sum += sums[warp];
    return sum;
}

// Loads columns of hidden, adds to them, writes them back, and gives the sum of
// their squares.
template <Added ADDED, u32 COUNT>
DEVICE float residual(float (&values)[COUNT][WIDTH], const NormArgs& args, u32 row, u32 from) {
    float* hidden = args.hidden + static_cast<size_t>(row) * args.hidden_stride;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        const u32 column = (from + i * THREADS) * WIDTH;
#pragma unroll
        for (u32 j = 0; j < WIDTH; j++) values[i][j] = 0.0f;
        if (column < args.cols) load(values[i], hidden + column);
    }
    add<ADDED, COUNT>(values, args, row, from);
    float sum = 0;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        const u32 column = (from + i * THREADS) * WIDTH;
        if (column < args.cols) {
            if (column + WIDTH > args.cols) {
#pragma unroll
                for (u32 j = 0; j < WIDTH; j++) values[i][j] = column + j < args.cols ? values[i][j] : 0.0f;
            }
            if (ADDED != NOTHING) store(hidden + column, values[i]);
#pragma unroll
            for (u32 j = 0; j < WIDTH; j++) sum = fmaf(values[i][j], values[i][j], sum);
        }
    }
    return sum;
}

DEVICE void store_normed(bf16* to, const float (&values)[WIDTH], float scale, uint4 packed_gain) {
    float gain[WIDTH];
    unpack(gain, packed_gain);
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = pack_bf16(values[2 * i] * scale * gain[2 * i], values[2 * i + 1] * scale * gain[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// One row, by one block.
template <Added ADDED>
DEVICE void norm_row(const NormArgs& args) {
    const u32 row = blockIdx.x;
    // Gains come from far memory, and no kernel writes them: they are under way
    // while the kernel before ends.
    uint4 gain[KEPT];
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 column = (threadIdx.x + i * THREADS) * WIDTH;
        gain[i] = column < args.cols ? load_streaming16(args.gain + column) : make_uint4(0, 0, 0, 0);
    }
    // The next kernel's weights may be on their way, too: it waits for this one.
    pdl_trigger();
    pdl_wait();
    float values[KEPT][WIDTH];
    float sum = residual<ADDED, KEPT>(values, args, row, threadIdx.x);
    const u32 rest = threadIdx.x + KEPT * THREADS;
    for (u32 from = rest; from * WIDTH < args.cols; from += THREADS) {
        float wide[1][WIDTH];
        sum += residual<ADDED, 1>(wide, args, row, from);
    }
    const float mean = block_sum(sum) / static_cast<float>(args.cols);
    const float scale = 1.0f / sqrtf(mean + args.eps);

    bf16* normed = args.normed + static_cast<size_t>(row) * args.normed_stride;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 column = (threadIdx.x + i * THREADS) * WIDTH;
        if (column < args.cols) store_normed(normed + column, values[i], scale, gain[i]);
    }
    for (u32 from = rest; from * WIDTH < args.cols; from += THREADS) {
        // This thread wrote it above, if anyone did.
        float wide[1][WIDTH];
        residual<NOTHING, 1>(wide, args, row, from);
        store_normed(normed + from * WIDTH, wide[0], scale, load_streaming16(args.gain + from * WIDTH));
    }
}

KERNEL(rms_norm, NormArgs, 256) {
    norm_row<NOTHING>(args);
}

// What comes after the experts is under way to the L2 cache while they are chosen,
// but not before the kernel before has all its own.
DEVICE void ask_ahead(const NormArgs& args) {
    pdl_trigger();
    pdl_wait();
    const u32 blocks = gridDim.x - args.num_rows;
    for (u32 line = (blockIdx.x - args.num_rows) * THREADS + threadIdx.x; line < args.ahead_lines; line += blocks * THREADS) {
        prefetch_l2_to_stay(args.ahead + static_cast<size_t>(line) * 128);
    }
}

KERNEL(add_rms_norm, NormArgs, 256) {
    if (blockIdx.x >= args.num_rows) {
        ask_ahead(args);
    } else {
        norm_row<DELTA>(args);
    }
}

// Three blocks to an SM: enough loads under way, and no spills.
KERNEL(combine_rms_norm, NormArgs, 256, 3) {
    norm_row<CHOICES>(args);
}
