// Kernels that do little but call the primitives of hopper.cuh: tests compare
// what they write with plain arithmetic.
#include "hopper.cuh"

struct BoxArgs {
    TensorMap map;
    const u32* plain;
    u32* out;
    int column, row;
    u32 plain_bytes;
    u32 pad[25];
};

// One box of 16 rows, and plain bytes after it, through shared memory.
KERNEL(selftest_boxes, BoxArgs, 64) {
#ifdef HOPPER
    DYN_SHARED(bytes);
    SHARED(arrived, u64);
    const u32 box_bytes = 16 * 128;
    if (threadIdx.x == 0) {
        tma_prefetch(&args.map);
        mbarrier_init(&arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    pdl_wait();
    if (threadIdx.x == 0) {
        mbarrier_expect(&arrived, box_bytes + args.plain_bytes);
        tma_load(bytes, &args.map, &arrived, args.column, args.row);
        bulk_load(bytes + box_bytes, args.plain, args.plain_bytes, &arrived);
    }
    mbarrier_wait(&arrived, 0);
    const u32* words = reinterpret_cast<const u32*>(bytes);
    for (u32 i = threadIdx.x; i < (box_bytes + args.plain_bytes) / 4; i += 64) {
        args.out[i] = words[i];
    }
#endif
}

struct WgmmaArgs {
    // 64 rows of the left matrix; rows of the right, or of its transpose.
    TensorMap left, right;
    const u32* left_words;
    float* out;
    u64 pad[14];
};

#ifdef HOPPER

// out = left right, 64 by N, with 64 columns of the left: from shared memory,
// then added to it from registers.
template <int N, bool TRANSPOSED>
DEVICE void multiply(const WgmmaArgs& args) {
    DYN_SHARED(bytes);
    SHARED(arrived, u64);
    const u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32, group = lane / 4, pair = lane % 4;
    const u32 left_bytes = 64 * 128;
    unsigned char* right = bytes + left_bytes;
    // The transpose has 64 rows of N columns, in chunks of 64.
    const u32 chunks = TRANSPOSED ? (N + 63) / 64 : 1;
    const u32 chunk_bytes = TRANSPOSED ? 64 * 128 : N * 128;
    // Where there is but one chunk, nothing is between chunks.
    const u32 apart = chunks > 1 ? chunk_bytes : 0;
    if (thread == 0) {
        mbarrier_init(&arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    pdl_wait();
    if (thread == 0) {
        mbarrier_expect(&arrived, left_bytes + chunks * chunk_bytes);
        tma_load(bytes, &args.left, &arrived, 0, 0);
        for (u32 i = 0; i < chunks; i++) {
            tma_load(right + i * chunk_bytes, &args.right, &arrived, (int)i * 64, 0);
        }
    }
    mbarrier_wait(&arrived, 0);

    float d[N / 2];
    u32 a[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const u32* words = args.left_words + (warp * 16 + group) * 32 + k * 8 + pair;
        a[k][0] = words[0];
        a[k][1] = words[8 * 32];
        a[k][2] = words[4];
        a[k][3] = words[8 * 32 + 4];
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (TRANSPOSED) {
            wgmma_transposed<N>(d, desc128(bytes + k * 32), desc128_transposed(right + k * 2048, apart), k > 0);
        } else {
            wgmma<N>(d, desc128(bytes + k * 32), desc128(right + k * 32), k > 0);
        }
    }
    wgmma_commit();
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (TRANSPOSED) {
            wgmma_transposed<N>(d, a[k], desc128_transposed(right + k * 2048, apart));
        } else {
            wgmma<N>(d, a[k], desc128(right + k * 32));
        }
    }
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_wait<0>();
    pin(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const u32 row = warp * 16 + group + i / 2 % 2 * 8, column = i / 4 * 8 + pair * 2 + i % 2;
        args.out[row * N + column] = d[i];
    }
}

#define SELFTEST_WGMMA(name, N, TRANSPOSED) \
    KERNEL(name, WgmmaArgs, 128) { multiply<N, TRANSPOSED>(args); }

#else

#define SELFTEST_WGMMA(name, N, TRANSPOSED) \
    KERNEL(name, WgmmaArgs, 128) {}

#endif

SELFTEST_WGMMA(selftest_wgmma_8, 8, false)
SELFTEST_WGMMA(selftest_wgmma_16, 16, false)
SELFTEST_WGMMA(selftest_wgmma_32, 32, false)
SELFTEST_WGMMA(selftest_wgmma_40, 40, false)
SELFTEST_WGMMA(selftest_wgmma_64, 64, false)
SELFTEST_WGMMA(selftest_wgmma_80, 80, false)
SELFTEST_WGMMA(selftest_wgmma_128, 128, false)
SELFTEST_WGMMA(selftest_wgmma_256, 256, false)
SELFTEST_WGMMA(selftest_wgmma_transposed_8, 8, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_16, 16, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_32, 32, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_40, 40, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_64, 64, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_80, 80, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_128, 128, true)
SELFTEST_WGMMA(selftest_wgmma_transposed_256, 256, true)

struct RingArgs {
    TensorMap left, right;
    float* out;
    u32 rows, cols, steps;
    // What the ring is to do wrong, see planted.cu; 0 for nothing.
    u32 bug;
    u64 pad[13];
};

// Bugs are for the emulator to find: a GPU's compiler would mend some of them.
#ifdef CHORALE_EMULATED
#define HAS_BUG(number) (args.bug == number)
#else
#define HAS_BUG(number) false
#endif

#define RING_STAGES 3u
#define RING_BYTES (2u * 128 * 128)

// A product the way that fast kernels make it: one warpgroup keeps a ring of
// boxes filled, two multiply, 64 rows each.
KERNEL(selftest_ring, RingArgs, 384, 1) {
#ifdef HOPPER
    DYN_SHARED(ring);
    SHARED(full, u64[RING_STAGES]);
    SHARED(empty, u64[RING_STAGES]);
    const u32 group = threadIdx.x / 128;
    const u32 first_row = blockIdx.y * 128, first_col = blockIdx.x * 128;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < RING_STAGES; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 2 * 4);
        }
        if (!HAS_BUG(1)) {
            fence_mbarrier_init();
        }
    }
    __syncthreads();
    pdl_wait();
    if (group == 0) {
        setmaxnreg_dec<40>();
        for (u32 step = 0; threadIdx.x == 0 && step < args.steps; step++) {
            const u32 stage = step % RING_STAGES, parity = step / RING_STAGES & 1;
            if (!HAS_BUG(2)) {
                mbarrier_wait(&empty[stage], parity ^ 1);
            }
            mbarrier_expect(&full[stage], HAS_BUG(3) ? RING_BYTES + 16 : RING_BYTES);
            tma_load(ring + stage * RING_BYTES, &args.left, &full[stage], (int)step * 64, (int)first_row);
            tma_load(ring + stage * RING_BYTES + RING_BYTES / 2, &args.right, &full[stage], (int)step * 64,
                     (int)first_col);
        }
    } else {
        setmaxnreg_inc<232>();
        float d[64];
#pragma unroll
        for (int i = 0; i < 64; i++) {
            d[i] = 0.0f;
        }
        for (u32 step = 0; step < args.steps; step++) {
            const u32 stage = step % RING_STAGES, parity = step / RING_STAGES & 1;
            const unsigned char* left = ring + stage * RING_BYTES + (group - 1) * 64 * 128;
            const unsigned char* right = ring + stage * RING_BYTES + RING_BYTES / 2;
            if (!HAS_BUG(4)) {
                mbarrier_wait(&full[stage], parity);
            }
            if (!HAS_BUG(5)) {
                wgmma_fence();
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                wgmma<128>(d, desc128(left + k * 32), desc128(right + k * 32));
            }
            wgmma_commit();
            if (!HAS_BUG(6) || step + 1 == args.steps) {
                wgmma_wait<0>();
            }
            pin(d);
            // One warp for all four of them is that bug.
            const u32 arrivals = !HAS_BUG(7) ? 1 : threadIdx.x % 128 < 32 ? 4 : 0;
            for (u32 i = 0; threadIdx.x % 32 == 0 && i < arrivals; i++) {
                mbarrier_arrive(&empty[stage]);
            }
        }
        const u32 lane = threadIdx.x % 32;
        const u32 row = first_row + (group - 1) * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
        for (u32 i = 0; i < 64; i++) {
            const u32 r = row + i / 2 % 2 * 8, c = first_col + i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (r < args.rows && c < args.cols) {
                args.out[(size_t)r * args.cols + c] = d[i];
            }
        }
    }
#endif
}

struct GatherArgs {
    const uint4* left;    // [chunk of 64 columns][tile of 16 rows][step of 16 columns][lane], eight tiles
    const uint4* right;   // rows
    const u32* picked;    // 64 of these
    float* out;           // [128][64]
    u32 chunks;
    u32 stride;           // of the right's rows, in pieces of 16 bytes
};

#define GATHER_STAGES 3u
#define GATHER_RIGHT_BYTES (64u * 128)
#define GATHER_LEFT_BYTES (8u * 4 * 512)
#define GATHER_BYTES (GATHER_RIGHT_BYTES + GATHER_LEFT_BYTES)

// As selftest_ring, of rows that lie apart: threads copy and swizzle them, and bulk
// copies bring the left matrix, which goes to registers. One set of these is loaded
// while wgmmas read the other.
KERNEL(selftest_gather, GatherArgs, 384, 1) {
#ifdef HOPPER
    DYN_SHARED(ring);
    SHARED(full, u64[GATHER_STAGES]);
    SHARED(empty, u64[GATHER_STAGES]);
    const u32 thread = threadIdx.x, lane = thread % 32;
    if (thread == 0) {
        for (u32 i = 0; i < GATHER_STAGES; i++) {
            // Those who copy rows, and once more the one that announces the bulk copy.
            mbarrier_init(&full[i], 128 + 1);
            mbarrier_init(&empty[i], 2 * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    pdl_wait();
    if (thread < 128) {
        setmaxnreg_dec<56>();
        for (u32 chunk = 0; chunk < args.chunks; chunk++) {
            const u32 stage = chunk % GATHER_STAGES;
            unsigned char* right = ring + stage * GATHER_BYTES;
            mbarrier_wait(&empty[stage], (chunk / GATHER_STAGES & 1) ^ 1);
            if (thread == 0) {
                mbarrier_expect(&full[stage], GATHER_LEFT_BYTES);
                bulk_load(right + GATHER_RIGHT_BYTES, args.left + chunk * (GATHER_LEFT_BYTES / 16), GATHER_LEFT_BYTES,
                          &full[stage]);
            }
            for (u32 row = thread / 8; row < 64; row += 16) {
                const uint4* from = args.right + args.picked[row] * args.stride + chunk * 8 + thread % 8;
                cp_async16(right + row * 128 + (thread % 8 ^ row % 8) * 16, from, true);
            }
            cp_async_commit();
            if (chunk > 0) {
                cp_async_wait<1>();
                fence_proxy_async();
                mbarrier_arrive(&full[(chunk - 1) % GATHER_STAGES]);
            }
        }
        cp_async_wait<0>();
        fence_proxy_async();
        mbarrier_arrive(&full[(args.chunks - 1) % GATHER_STAGES]);
    } else {
        setmaxnreg_inc<224>();
        const u32 tile = thread / 32 - 4;
        float d[32];
        u32 a[2][4][4];
        for (u32 first = 0; first < args.chunks; first += 2) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 chunk = first + half;
                if (chunk < args.chunks) {
                    const u32 stage = chunk % GATHER_STAGES;
                    const unsigned char* right = ring + stage * GATHER_BYTES;
                    mbarrier_wait(&full[stage], chunk / GATHER_STAGES & 1);
                    const uint4* left = reinterpret_cast<const uint4*>(right + GATHER_RIGHT_BYTES) + tile * 128 + lane;
#pragma unroll
                    for (u32 k = 0; k < 4; k++) {
                        const uint4 words = left[k * 32];
                        a[half][k][0] = words.x, a[half][k][1] = words.y;
                        a[half][k][2] = words.z, a[half][k][3] = words.w;
                    }
                    wgmma_fence();
#pragma unroll
                    for (u32 k = 0; k < 4; k++) {
                        wgmma<64>(d, a[half][k], desc128(right + k * 32), chunk > 0 || k > 0);
                    }
                    wgmma_commit();
                    wgmma_wait<1>();
                    fence_proxy_async();
                    __syncwarp();
                    if (lane == 0 && chunk > 0) mbarrier_arrive(&empty[(chunk - 1) % GATHER_STAGES]);
                }
            }
        }
        wgmma_wait<0>();
        pin(d);
#pragma unroll
        for (u32 i = 0; i < 32; i++) {
            const u32 row = tile * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            args.out[row * 64 + column] = d[i];
        }
    }
#endif
}
