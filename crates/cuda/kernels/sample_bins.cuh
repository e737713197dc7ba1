// Finding where a job's tokens, from the most probable down, reach a number or a
// mass: in counts and masses of bins, the greatest tokens first.
#pragma once
#include "sample.cuh"

// What bins hold together with all bins before them: a thread knows of four.
struct Tally {
    u64 count[4];
    u64 mass[4];
    u64 counted;  // in all bins
    u64 weighed;
};

// A bin, and what is in the bins before it.
struct Place {
    u32 bin;  // NONE if the bound is not reached
    u64 count_before;
    u64 mass_before;
    u64 count;
    u64 mass;

    DEVICE u64 count_through() const { return count_before + count; }
    DEVICE u64 mass_through() const { return mass_before + mass; }
};

struct BinsRoom {
    u64 warps[WARPS];
    Place place;
};

DEVICE Tally tally_of(const u32* counts, const u64* masses, BinsRoom& room) {
    Tally tally;
    u64 count = 0, mass = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        count += counts[threadIdx.x * 4 + i];
        mass += masses[threadIdx.x * 4 + i];
        tally.count[i] = count;
        tally.mass[i] = mass;
    }
    const u64 counted = block_scan(count, room.warps), weighed = block_scan(mass, room.warps);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        tally.count[i] += counted - count;
        tally.mass[i] += weighed - mass;
    }
    tally.counted = block_max(counted, room.warps);
    tally.weighed = block_max(weighed, room.warps);
    return tally;
}

// The first bin with which the count, or the mass, is at least `bound`, which
// is above 0.
DEVICE Place first_reaching(const Tally& tally, bool by_mass, u64 bound, BinsRoom& room) {
    if (threadIdx.x == 0) room.place.bin = NONE;
    __syncthreads();
    u64 count = __shfl_up_sync(ALL, tally.count[3], 1), mass = __shfl_up_sync(ALL, tally.mass[3], 1);
    if (threadIdx.x % 32 == 31) room.warps[threadIdx.x / 32] = tally.count[3];
    __syncthreads();
    if (threadIdx.x % 32 == 0) count = threadIdx.x == 0 ? 0 : room.warps[threadIdx.x / 32 - 1];
    __syncthreads();
    if (threadIdx.x % 32 == 31) room.warps[threadIdx.x / 32] = tally.mass[3];
    __syncthreads();
    if (threadIdx.x % 32 == 0) mass = threadIdx.x == 0 ? 0 : room.warps[threadIdx.x / 32 - 1];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u64 before = by_mass ? mass : count, through = by_mass ? tally.mass[i] : tally.count[i];
        // Sums only grow: this is true for one bin at most.
        if (before < bound && bound <= through) {
            room.place = {threadIdx.x * 4 + i, count, mass, tally.count[i] - count, tally.mass[i] - mass};
        }
        count = tally.count[i];
        mass = tally.mass[i];
    }
    __syncthreads();
    const Place place = room.place;
    __syncthreads();
    return place;
}

// The bins, from the first on, that hold all tokens that a job may need.
struct Cut {
    u32 last;
    u64 count;  // of tokens in them
};

// True if the job keeps fewer tokens than there are because of their number.
DEVICE bool is_counted(const SampleJob& job, const Tally& tally) {
    return job.top_k > 0 && job.top_k < tally.counted;
}

DEVICE Cut cut_of(const SampleJob& job, const Tally& tally, BinsRoom& room) {
    if (is_counted(job, tally)) {
        // A share of these is known only when they are listed.
        const Place place = first_reaching(tally, false, job.top_k, room);
        return {place.bin, place.count_through()};
    }
    if (job.kind == BY_WEIGHT && job.top_p < 1.0f) {
        const double share = static_cast<double>(job.top_p) * static_cast<double>(tally.weighed);
        const Place place = first_reaching(tally, true, static_cast<u64>(share) + 1, room);
        if (place.bin != NONE) return {place.bin, place.count_through()};
    }
    return {BINS - 1, tally.counted};
}
