// The first passes over rows of logits: the largest logit and the mass of each
// slice; then, where only some tokens are kept, how they fall into bins, and a
// list of those that matter. A block for each slice of each job.
#include "sample_bins.cuh"

// The part of scores: the largest logit, and the mass relative to it.
DEVICE SamplePart scores_of(const float (&values)[HELD], u32 cols, u64 (&shared)[WARPS]) {
    const u32 slice = blockIdx.x;
    float largest = __uint_as_float(0xFF800000u);
    bool has_exponentials = true;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        if (token_at(slice, i) < cols) {
            largest = fmaxf(largest, values[i]);
            has_exponentials = has_exponentials && values[i] < __uint_as_float(0x7F800000u);
        }
    }
    const u64 best = block_max(key_of(ordered(largest), 0), shared);
    const float reference = is_finite(logit_of(best)) ? logit_of(best) : 0.0f;
    u64 mass = 0;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        if (token_at(slice, i) < cols) mass += mass_of(weight_of(values[i], reference, 1.0));
    }
    mass = block_sum(mass, shared);
    const bool all = block_max(has_exponentials ? 0 : 1, shared) == 0;
    return {best, all ? mass : NO_MASS};
}

// The part of a draw: the best key, and the mass relative to it if it is wanted.
DEVICE SamplePart part_of(const SampleJob& job, const float (&values)[HELD], u32 cols, u64 (&shared)[WARPS]) {
    const u32 slice = blockIdx.x;
    u64 best = 0;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 token = token_at(slice, i);
        if (token < cols) best = max(best, draw_key(values[i], token));
    }
    best = block_max(best, shared);
    if (job.kind != BY_TOKEN || !is_finite(logit_of(best))) return {best, 0};
    u64 mass = 0;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        if (token_at(slice, i) < cols) {
            mass += mass_of(weight_of(values[i], logit_of(best), job.inverse_temperature));
        }
    }
    return {best, block_sum(mass, shared)};
}

DEVICE bool is_sorted(const SampleJob& job) {
    return job.kind == BY_WEIGHT || (job.kind == SCORES && job.top_k > 0);
}

KERNEL(sample_scan, SampleArgs, 256, 4) {
    SHARED(staged, float[SLICE]);
    SHARED(shared, u64[WARPS]);
    pdl_wait();
    pdl_trigger();
    const u32 slice = blockIdx.x;
    const SampleJob& job = args.jobs[blockIdx.y];
    if (is_sorted(job)) {
        SampleBins& bins = args.bins[blockIdx.y];
        for (u32 i = slice * THREADS + threadIdx.x; i < BINS; i += args.slices * THREADS) {
            bins.masses[i] = 0;
            bins.counts[i] = 0;
        }
        if (slice == 0 && threadIdx.x == 0) bins.listed = 0;
    }
    float values[HELD];
    load_slice(row_of(args, job), slice, values, staged);
    const SamplePart part =
        job.kind == SCORES ? scores_of(values, args.cols, shared) : part_of(job, values, args.cols, shared);
    if (threadIdx.x == 0) args.parts[static_cast<size_t>(blockIdx.y) * args.slices + slice] = part;
}

KERNEL(sample_weigh, SampleArgs, 256, 4) {
    SHARED(staged, float[SLICE]);
    SHARED(shared, u64[WARPS]);
    SHARED(counts, u32[BINS]);
    // Masses as two words: shared memory adds words, and carries are rare.
    SHARED(low, u32[BINS]);
    SHARED(high, u32[BINS]);
    pdl_wait();
    pdl_trigger();
    const u32 slice = blockIdx.x;
    const SampleJob& job = args.jobs[blockIdx.y];
    const bool sorted = is_sorted(job);
    if (!sorted && job.kind != BY_TOKEN_FLOORED) return;
    const Filter filter = filter_of(job, best_of(args, blockIdx.y, shared));
    // The largest is drawn then, whatever else there is.
    if (!filter.scores && !is_finite(filter.largest)) return;
    float values[HELD];
    load_slice(row_of(args, job), slice, values, staged);
    if (!sorted) {
        u64 sum = 0;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            const u32 token = token_at(slice, i);
            u64 mass;
            if (token < args.cols && filter.keeps(values[i], token, mass)) sum += mass;
        }
        sum = block_sum(sum, shared);
        if (threadIdx.x == 0) args.parts[static_cast<size_t>(blockIdx.y) * args.slices + slice].mass = sum;
        return;
    }
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) counts[i] = low[i] = high[i] = 0;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 token = token_at(slice, i);
        u64 mass;
        if (token < args.cols && filter.keeps(values[i], token, mass)) {
            const u32 bin = filter.bin(values[i]);
            atomicAdd(&counts[bin], 1u);
            const u32 lower = static_cast<u32>(mass);
            u32 upper = static_cast<u32>(mass >> 32);
            if (lower > 0) upper += atomicAdd(&low[bin], lower) > ~lower ? 1 : 0;
            if (upper > 0) atomicAdd(&high[bin], upper);
        }
    }
    __syncthreads();
    SampleBins& bins = args.bins[blockIdx.y];
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
        const u64 mass = static_cast<u64>(high[i]) << 32 | low[i];
        if (counts[i] > 0) atomicAdd(&bins.counts[i], counts[i]);
        if (mass > 0) atomicAdd(&bins.masses[i], mass);
    }
}

KERNEL(sample_list, SampleArgs, 256, 4) {
    SHARED(staged, float[SLICE]);
    SHARED(room, BinsRoom);
    pdl_wait();
    pdl_trigger();
    const u32 slice = blockIdx.x;
    const SampleJob& job = args.jobs[blockIdx.y];
    if (!is_sorted(job)) return;
    const Filter filter = filter_of(job, best_of(args, blockIdx.y, room.warps));
    if (!filter.scores && !is_finite(filter.largest)) return;
    SampleBins& bins = args.bins[blockIdx.y];
    const Cut cut = cut_of(job, tally_of(bins.counts, bins.masses, room), room);
    // Then sample_pick goes through the row itself.
    if (cut.count > LISTED) return;
    float values[HELD];
    load_slice(row_of(args, job), slice, values, staged);
    u64* listed = args.listed + static_cast<size_t>(blockIdx.y) * LISTED;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 token = token_at(slice, i);
        u64 mass;
        // In any order: they are sorted when all are there.
        if (token < args.cols && filter.bin(values[i]) <= cut.last && filter.keeps(values[i], token, mass)) {
            const u32 place = atomicAdd(&bins.listed, 1u);
            if (place < LISTED) listed[place] = filter.key(values[i], token);
        }
    }
}
