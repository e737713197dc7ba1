// Kernels that do little but call each primitive of gpu.cuh once: tests compare
// what they write with plain arithmetic.
#include "fp8.cuh"

struct SelftestArgs {
    const u32* in;
    u32* out;
    u32 count;
    u32 pad;
};

// Of the pairs of words that come in, every function of two words or floats.
KERNEL(selftest_numbers, SelftestArgs, 64) {
    pdl_wait();
    pdl_trigger();
    for (u32 i = blockIdx.x * 64 + threadIdx.x; i < args.count; i += gridDim.x * 64) {
        const u32 a = args.in[2 * i], b = args.in[2 * i + 1];
        const float x = __uint_as_float(a), y = __uint_as_float(b);
        const float2 halves = unpack_bf16(a);
        u32* out = args.out + 16 * i;
        out[0] = float_to_bf16(x).bits;
        out[1] = __float_as_uint(bf16_to_float(bf16{(u16)b}));
        out[2] = pack_bf16(x, y);
        out[3] = __float_as_uint(halves.x);
        out[4] = __float_as_uint(halves.y);
        out[5] = mul_bf16x2(a, b);
        out[6] = byte_perm(a, b, a >> 16);
        out[7] = __float_as_uint(exp2_approx(x));
        out[8] = __float_as_uint(exp_approx(x));
        out[9] = __float_as_uint(rsqrt_approx(x));
        out[10] = (u32)__popc(a);
        out[11] = (u32)__clz((int)a);
        out[12] = (u32)__ffs((int)a);
        out[13] = __umulhi(a, b);
        out[14] = min(a, b);
        out[15] = __float_as_uint(fmaxf(x, y));
    }
}

// Of the pairs of words that come in: as floats their codes, the first one's
// exponent as a row, and the first word as four codes.
KERNEL(selftest_fp8, SelftestArgs, 64) {
    pdl_wait();
    pdl_trigger();
    for (u32 i = threadIdx.x; i < args.count; i += 64) {
        const u32 word = args.in[2 * i];
        const float x = __uint_as_float(word), y = __uint_as_float(args.in[2 * i + 1]);
        u32* out = args.out + 4 * i;
        out[0] = pack_e4m3(x, y);
        out[1] = row_exponent(fabsf(x));
        decode_codes(word, out[2], out[3]);
    }
}

// 32 words go through shared memory one by one; every third is not valid.
KERNEL(selftest_words, SelftestArgs, 32) {
    SHARED(shared, u32[32]);
    const u32 lane = threadIdx.x;
    pdl_wait();
    const bool valid = lane % 3 != 2;
    cp_async4(&shared[lane], valid ? args.in + lane : nullptr, valid);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    args.out[lane] = shared[(lane + 1) % 32];
}

// What comes in goes through shared memory in three groups of copies; every
// third copy is not valid.
KERNEL(selftest_copies, SelftestArgs, 32) {
    DYN_SHARED(bytes);
    uint4* shared = reinterpret_cast<uint4*>(bytes);
    const uint4* in = reinterpret_cast<const uint4*>(args.in);
    uint4* out = reinterpret_cast<uint4*>(args.out);
    const u32 lane = threadIdx.x;
    prefetch_l2(args.in);
    pdl_wait();
    for (u32 group = 0; group < 3; group++) {
        const u32 i = group * 32 + lane;
        const bool valid = i % 3 != 2;
        // Where nothing is read, nothing needs to be there.
        cp_async16(shared + i, valid ? in + i : nullptr, valid);
        cp_async_commit();
    }
    cp_async_wait<1>();
    __syncwarp();
    // The next lane's copies of the first two groups.
    out[lane] = shared[(lane + 1) % 32];
    out[32 + lane] = shared[32 + (lane + 1) % 32];
    cp_async_wait<0>();
    __syncwarp();
    out[64 + lane] = shared[64 + (lane + 1) % 32];
    out[96 + lane] = load_streaming16(in + lane);
}

// 32 rows of 8 u16 come in; the fragments of each load go out.
KERNEL(selftest_fragments, SelftestArgs, 32) {
    SHARED(rows, uint4[32]);
    const u32 lane = threadIdx.x;
    pdl_wait();
    rows[lane] = reinterpret_cast<const uint4*>(args.in)[lane];
    __syncwarp();
    u32 four[4], two[2];
    u32* out = args.out + lane;
    ldmatrix_x4(four, &rows[lane]);
    for (int i = 0; i < 4; i++) {
        out[32 * i] = four[i];
    }
    ldmatrix_x4_trans(four, &rows[lane]);
    for (int i = 0; i < 4; i++) {
        out[128 + 32 * i] = four[i];
    }
    ldmatrix_x2(two, &rows[lane % 16]);
    out[256] = two[0];
    out[288] = two[1];
    ldmatrix_x2_trans(two, &rows[lane % 16]);
    out[320] = two[0];
    out[352] = two[1];
}

// 16 by 16 bf16, then 8 columns of 16, come in; their product, plus 1, goes out.
KERNEL(selftest_mma, SelftestArgs, 32) {
    const u32 group = threadIdx.x / 4, pair = threadIdx.x % 4;
    pdl_wait();
    // Words hold two columns of a row, or two rows of a column.
    const u32* left = args.in + pair;
    const u32* right = args.in + 128 + group * 8 + pair;
    const u32 a[4] = {left[group * 8], left[(group + 8) * 8], left[group * 8 + 4], left[(group + 8) * 8 + 4]};
    float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_bf16(c, a, right[0], right[4]);
    u32* out = args.out + group * 8 + pair * 2;
    out[0] = __float_as_uint(c[0]);
    out[1] = __float_as_uint(c[1]);
    out[64] = __float_as_uint(c[2]);
    out[65] = __float_as_uint(c[3]);
}

// The same factors; their product alone goes out.
KERNEL(selftest_mma_from_zero, SelftestArgs, 32) {
    const u32 group = threadIdx.x / 4, pair = threadIdx.x % 4;
    pdl_wait();
    const u32* left = args.in + pair;
    const u32* right = args.in + 128 + group * 8 + pair;
    const u32 a[4] = {left[group * 8], left[(group + 8) * 8], left[group * 8 + 4], left[(group + 8) * 8 + 4]};
    float c[4];
    mma_bf16_from_zero(c, a, right[0], right[4]);
    u32* out = args.out + group * 8 + pair * 2;
    out[0] = __float_as_uint(c[0]);
    out[1] = __float_as_uint(c[1]);
    out[64] = __float_as_uint(c[2]);
    out[65] = __float_as_uint(c[3]);
}

// The quotients of the pairs of floats that come in.
KERNEL(selftest_quotients, SelftestArgs, 32) {
    pdl_wait();
    const u32* in = keep(args.in);
    for (u32 i = keep(threadIdx.x); i < args.count; i += 32) {
        args.out[i] = __float_as_uint(divide_approx(__uint_as_float(in[2 * i]), __uint_as_float(in[2 * i + 1])));
    }
}

// Each lane's word goes through every operation of a warp.
KERNEL(selftest_warps, SelftestArgs, 32) {
    const u32 lane = threadIdx.x, all = 0xFFFFFFFFu;
    pdl_wait();
    const u32 value = args.in[lane];
    const float number = (float)(value % 100);
    u32* out = args.out + lane;
    out[0] = __shfl_sync(all, value, (int)(value % 32));
    out[32] = __shfl_xor_sync(all, value, 5);
    out[64] = __shfl_down_sync(all, value, 3);
    out[96] = __shfl_up_sync(all, value, 3);
    out[128] = __shfl_xor_sync(all, value, 1, 8);
    out[160] = __ballot_sync(all, value % 3 == 0);
    out[192] = __match_any_sync(all, value % 4);
    out[224] = __reduce_add_sync(all, value % 1000);
    out[256] = __reduce_max_sync(all, value);
    out[288] = (u32)warp_sum(number);
    out[320] = (u32)warp_max(number);
    out[352] = (u32)__any_sync(all, value % 7 == 0) + 2 * (u32)__all_sync(all, value % 7 < 7);
    // Halves of the warp apart.
    if (lane < 16) {
        out[384] = __shfl_xor_sync(0x0000FFFFu, value, 8);
    } else {
        out[384] = __ballot_sync(0xFFFF0000u, value % 2 == 0);
    }
}

// Every thread of a grid in three directions: its number of visits, and sums by
// way of static shared memory, of barriers and of atomics.
KERNEL(selftest_order, SelftestArgs, 128) {
    SHARED(values, u32[128]);
    SHARED(pairs, u32[2]);
    const u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const u32 blocks = gridDim.x * gridDim.y * gridDim.z;
    pdl_wait();
    values[threadIdx.x] = block * blockDim.x + threadIdx.x;
    // Two pairs of warps, each behind a barrier of its own.
    const u32 half = threadIdx.x / 64;
    named_barrier(1 + half, 64);
    if (threadIdx.x % 64 == 0) {
        u32 sum = 0;
        for (u32 i = 0; i < 64; i++) {
            sum += values[half * 64 + i];
        }
        pairs[half] = sum;
    }
    __syncthreads();
    atomicAdd(&args.out[blocks + threadIdx.x], 1u);
    atomicMax(&args.out[blocks + 128], values[127 - threadIdx.x]);
    __threadfence();
    if (threadIdx.x == 0) {
        args.out[block] = pairs[0] + pairs[1];
    }
}

// Adds to what the kernel before wrote.
KERNEL(selftest_chain, SelftestArgs, 64) {
    pdl_wait();
    pdl_trigger();
    const u32 i = blockIdx.x * 64 + threadIdx.x;
    if (i < args.count) {
        args.out[i] = args.in[i] * 3 + 1;
    }
}

// Adds to what the kernel two before wrote, which the one before has waited for.
KERNEL(selftest_early, SelftestArgs, 64) {
    const u32 i = blockIdx.x * 64 + threadIdx.x;
    const u32 value = i < args.count ? load_early(args.in + i) : 0;
    pdl_wait();
    pdl_trigger();
    if (i < args.count) {
        args.out[i] = value + 1;
    }
}
