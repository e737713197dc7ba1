// Attention of many rows by Hopper's matrix instruction, which the block's four
// warps, a warpgroup, use together and which reads keys and values from shared
// memory by itself. Each warp's rows are in two halves: while the halves' products
// are made in turn, the softmax of the other half is.
#include "hopper.cuh"
#include "attention_prefill.cuh"

#ifdef HOPPER

namespace {

// Accumulators as wgmma names them: those of 8 columns follow each other.
DEVICE float (&flat(float (&accumulators)[8][4]))[32] {
    return reinterpret_cast<float(&)[32]>(accumulators);
}

struct WgmmaTile : WarpTile {
    using WarpTile::WarpTile;

    // wgmma sees shared memory by another way than threads and their copies write it.
    static DEVICE void show_writes() {
        fence_proxy_async();
    }

    // Takes 64 keys and values in. All warps do, whether their rows see them or not.
    DEVICE void attend(u32 key, const unsigned char* keys) {
        const unsigned char* values = keys + KEY_TILE * Bf16Rows::ROW_BYTES;
        float scores[MMAS][KEY_TILE / 8][4];
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
            wgmma_fence();
#pragma unroll
            for (u32 step = 0; step < HEAD_DIM / 16; step++) {
                wgmma<KEY_TILE>(flat(scores[m]), queries[m][step], desc128(keys + step * 32), step != 0);
            }
            wgmma_commit();
        }
        u32 powers[MMAS][KEY_TILE / 16][4];
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
            // The scores of this half, but not yet what was begun after them.
            wgmma_wait<1>();
            pin(flat(scores[m]));
            soften(m, scores[m], key);
#pragma unroll
            for (u32 step = 0; step < KEY_TILE / 16; step++) {
                pack_powers(powers[m][step], scores[m], step);
                pin(powers[m][step]);
            }
            pin(flat(output[m]));
            wgmma_fence();
#pragma unroll
            for (u32 step = 0; step < KEY_TILE / 16; step++) {
                const u64 rows = desc128_transposed(values + step * 16 * Bf16Rows::ROW_BYTES, 0);
                wgmma_transposed<HEAD_DIM>(flat(output[m]), powers[m][step], rows);
            }
            wgmma_commit();
        }
        wgmma_wait<0>();
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
            pin(flat(output[m]));
        }
    }
};

}  // namespace

KERNEL(attention_prefill_sm90, AttentionArgs, ATTENTION_THREADS, 2) {
    DYN_SHARED(shared);
    prefill<WgmmaTile, CopiedTiles>(args, shared);
}

KERNEL(attention_prefill_sm90_fp8, AttentionArgs, ATTENTION_THREADS, 2) {
    DYN_SHARED(shared);
    prefill<WgmmaTile, DecodedTiles>(args, shared);
}

#endif  // HOPPER
