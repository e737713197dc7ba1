// What lies between a rank's own rows and those of all ranks: rows and choices
// laid out to be gathered, choices claimed by the rank that computes them,
// answers of others cleared so that a sum over ranks is a choice, and columns
// joined. Nothing here waits for another rank.
#include "gpu.cuh"

// An expert that is nobody's, or not this rank's to run.
constexpr u32 NOWHERE = 0xFFFFFFFFu;

struct ShareRowsArgs {
    const uint4* rows;      // this rank's first; null if rows stay where they are
    const u32* experts;     // [rows, top_k]
    const float* weights;
    uint4* to_rows;         // [share]
    uint2* to_choices;      // [share, top_k]: expert, and the weight's bits
    u32 num_rows;           // of the share; choices of the rest go nowhere
    u32 row_words;          // of 16 bytes
    u32 stride_words;       // from one of `rows` to the next
    u32 top_k;
};

// One block for each row of the share.
KERNEL(share_rows, ShareRowsArgs, 128) {
    pdl_wait();
    pdl_trigger();
    const u32 row = blockIdx.x;
    const bool is_row = row < args.num_rows;
    if (threadIdx.x < args.top_k) {
        const u32 choice = row * args.top_k + threadIdx.x;
        uint2 packed = make_uint2(NOWHERE, 0u);
        if (is_row) packed = make_uint2(args.experts[choice], __float_as_uint(args.weights[choice]));
        args.to_choices[choice] = packed;
    }
    if (!is_row || args.rows == nullptr) return;
    const uint4* from = args.rows + (u64)row * args.stride_words;
    uint4* to = args.to_rows + (u64)row * args.row_words;
    for (u32 word = threadIdx.x; word < args.row_words; word += blockDim.x) to[word] = from[word];
}

struct ClaimChoicesArgs {
    const uint2* choices;   // [slots], of all homes
    const u32* table;       // [homes, experts]: copies of the expert that share the
                            // home's rows, 0 if none is here, and which share is here << 16
    u32* experts;           // [slots]: NOWHERE where another rank computes it
    float* weights;         // [slots]
    u32* loads;             // [experts]
    u32 num_slots;
    u32 top_k;
    u32 home_rows;          // of each home
    u32 num_experts;
};

KERNEL(claim_choices, ClaimChoicesArgs, 256) {
    pdl_wait();
    pdl_trigger();
    const u32 slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= args.num_slots) return;
    const uint2 choice = args.choices[slot];
    const u32 row = slot / args.top_k;
    const u32 home = row / args.home_rows, row_at_home = row % args.home_rows;
    bool is_here = false;
    if (choice.x < args.num_experts) {
        const u32 entry = args.table[home * args.num_experts + choice.x];
        const u32 copies = entry & 0xFFFFu;
        is_here = copies != 0 && row_at_home % copies == entry >> 16;
    }
    args.experts[slot] = is_here ? choice.x : NOWHERE;
    args.weights[slot] = __uint_as_float(choice.y);
    if (is_here) atomicAdd(args.loads + choice.x, 1u);
}

struct ClearElsewhereArgs {
    const u32* experts;     // [slots], as claimed
    uint4* outputs;
    u32 row_words;          // of 16 bytes
    u32 pad;
};

// One block for each slot.
KERNEL(clear_elsewhere, ClearElsewhereArgs, 128) {
    pdl_wait();
    pdl_trigger();
    if (args.experts[blockIdx.x] != NOWHERE) return;
    uint4* output = args.outputs + (u64)blockIdx.x * args.row_words;
    for (u32 word = threadIdx.x; word < args.row_words; word += blockDim.x) {
        output[word] = make_uint4(0u, 0u, 0u, 0u);
    }
}

struct SumChoicesArgs {
    const uint4* outputs;   // bf16 [slots, cols]
    const u32* experts;     // [slots], as claimed
    const float* weights;
    float4* sums;           // f32 [rows, cols]
    u32 row_words;          // of 8 columns
    u32 top_k;
};

// One block for each row: the sum of what was computed here, weighted.
KERNEL(sum_choices, SumChoicesArgs, 128) {
    pdl_wait();
    pdl_trigger();
    const u32 first = blockIdx.x * args.top_k;
    for (u32 word = threadIdx.x; word < args.row_words; word += blockDim.x) {
        float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
        for (u32 slot = first; slot < first + args.top_k; slot++) {
            if (args.experts[slot] == NOWHERE) continue;
            const float weight = args.weights[slot];
            const uint4 output = args.outputs[(u64)slot * args.row_words + word];
            const float2 a = unpack_bf16(output.x), b = unpack_bf16(output.y);
            const float2 c = unpack_bf16(output.z), d = unpack_bf16(output.w);
            low.x += weight * a.x, low.y += weight * a.y, low.z += weight * b.x, low.w += weight * b.y;
            high.x += weight * c.x, high.y += weight * c.y, high.z += weight * d.x, high.w += weight * d.y;
        }
        float4* sum = args.sums + ((u64)blockIdx.x * args.row_words + word) * 2;
        sum[0] = low;
        sum[1] = high;
    }
}

struct RoundSumsArgs {
    const float4* sums;
    uint4* rounded;         // bf16
    u32 num_words;          // of 8 numbers
    u32 pad;
};

KERNEL(round_sums, RoundSumsArgs, 256) {
    pdl_wait();
    pdl_trigger();
    const u32 word = blockIdx.x * blockDim.x + threadIdx.x;
    if (word >= args.num_words) return;
    const float4 low = args.sums[(u64)word * 2], high = args.sums[(u64)word * 2 + 1];
    args.rounded[word] = make_uint4(pack_bf16(low.x, low.y), pack_bf16(low.z, low.w),
                                    pack_bf16(high.x, high.y), pack_bf16(high.z, high.w));
}

constexpr u32 MAX_PARTS = 16;
constexpr u32 JOINED_UNITS = 2048;  // of a block

// Lengths are in units of what one thread copies at a time.
struct JoinColumnsArgs {
    const void* parts;      // one after the other, [rows, stride] each
    void* whole;            // [rows, whole_stride]
    u32 rows;
    u32 num_parts;
    u32 whole_stride;
    u32 first[MAX_PARTS + 1];   // first column of each part, and the end
    u32 strides[MAX_PARTS];
};

// A block joins JOINED_UNITS units, the y-th, of the x-th row.
template <class Unit>
DEVICE void join_columns(const JoinColumnsArgs& args) {
    const u32 row = blockIdx.x;
    const u32 begin = blockIdx.y * JOINED_UNITS;
    const u32 end = min(begin + JOINED_UNITS, args.first[args.num_parts]);
    Unit* to = static_cast<Unit*>(args.whole) + (u64)row * args.whole_stride;
    const Unit* from = static_cast<const Unit*>(args.parts) + (u64)row * args.strides[0];
    u32 part = 0;
    u64 rows_before = args.rows - row;
    for (u32 column = begin + threadIdx.x; column < end; column += blockDim.x) {
        while (column >= args.first[part + 1]) {
            // To the end of this part, and to the row in the next one.
            from += rows_before * args.strides[part] + (u64)row * args.strides[part + 1];
            part++;
        }
        to[column] = from[column - args.first[part]];
    }
}

KERNEL(join_columns_2, JoinColumnsArgs, 256) {
    pdl_wait();
    pdl_trigger();
    join_columns<u16>(args);
}

KERNEL(join_columns_4, JoinColumnsArgs, 256) {
    pdl_wait();
    pdl_trigger();
    join_columns<u32>(args);
}

KERNEL(join_columns_16, JoinColumnsArgs, 256) {
    pdl_wait();
    pdl_trigger();
    join_columns<uint4>(args);
}
