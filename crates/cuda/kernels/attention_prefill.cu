// Attention of many rows by the matrix instruction of a warp. For its 32 rows a
// warp loads keys and values from shared memory but once.
#include "attention_prefill.cuh"

namespace {

struct MmaTile : WarpTile {
    using WarpTile::WarpTile;

    static DEVICE void show_writes() {}

    // Takes 64 keys and values in.
    DEVICE void attend(u32 key, const unsigned char* keys) {
        if (!sees(key)) return;
        const unsigned char* values = keys + KEY_TILE * Bf16Rows::ROW_BYTES;
        float scores[MMAS][KEY_TILE / 8][4];
#pragma unroll
        for (u32 step = 0; step < HEAD_DIM / 16; step++) {
#pragma unroll
            for (u32 pair = 0; pair < KEY_TILE / 16; pair++) {
                u32 fragment[4];
                load_keys(fragment, keys, pair * 16, step);
#pragma unroll
                for (u32 m = 0; m < MMAS; m++) {
                    add_scores(scores[m][pair * 2], queries[m][step], fragment[0], fragment[1], step);
                    add_scores(scores[m][pair * 2 + 1], queries[m][step], fragment[2], fragment[3], step);
                }
            }
        }
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
            soften(m, scores[m], key);
        }
#pragma unroll
        for (u32 pair = 0; pair < KEY_TILE / 16; pair++) {
            u32 powers[MMAS][4];
#pragma unroll
            for (u32 m = 0; m < MMAS; m++) {
                pack_powers(powers[m], scores[m], pair);
            }
#pragma unroll
            for (u32 step = 0; step < HEAD_DIM / 16; step++) {
                u32 fragment[4];
                load_values(fragment, values, pair * 16, step);
#pragma unroll
                for (u32 m = 0; m < MMAS; m++) {
                    mma_bf16(output[m][step * 2], powers[m], fragment[0], fragment[1]);
                    mma_bf16(output[m][step * 2 + 1], powers[m], fragment[2], fragment[3]);
                }
            }
        }
    }
};

}  // namespace

KERNEL(attention_prefill, AttentionArgs, ATTENTION_THREADS, 2) {
    DYN_SHARED(shared);
    prefill<MmaTile, CopiedTiles>(args, shared);
}

KERNEL(attention_prefill_fp8, AttentionArgs, ATTENTION_THREADS, 2) {
    DYN_SHARED(shared);
    prefill<MmaTile, DecodedTiles>(args, shared);
}
