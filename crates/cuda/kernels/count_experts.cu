// Counts which experts a call of the layer reads, where some of them are not on
// the GPU. An expert is hot that gets its even share of the rows that came to
// this rank: one of few rows always, one of many rows if it is chosen more often
// than others.
#include "experts.cuh"

constexpr u32 THREADS = 512;
// Where an expert may lie.
constexpr u32 KINDS = 3;

struct CountArgs {
    const u32* choices;   // expert of the model that each slot goes to
    const u32* local;     // as in ExpertsArgs
    const u32* kinds;     // where each local expert lies, below KINDS
    u32* counts;          // [num_experts] calls in which it was hot, then [KINDS] experts that were read
    u32 num_known;
    u32 num_slots;
    u32 num_experts;      // local ones, at most THREADS
    u32 pad;
};

KERNEL(count_experts, CountArgs, THREADS) {
    SHARED(slots, u32[THREADS]);       // of each expert
    SHARED(sums, u32[KINDS + 1]);      // experts by where they lie; slots of all
    const u32 thread = threadIdx.x;
    slots[thread] = 0;
    if (thread <= KINDS) sums[thread] = 0;
    __syncthreads();
    pdl_wait();
    pdl_trigger();
    u32 here = 0;
    for (u32 slot = thread; slot < args.num_slots; slot += THREADS) {
        u32 expert = args.choices[slot];
        if (expert >= args.num_known) {
            expert = NOT_LOCAL;
        } else if (args.local != nullptr) {
            expert = args.local[expert];
        }
        if (expert < args.num_experts) {
            atomicAdd(&slots[expert], 1u);
            here++;
        }
    }
    if (here > 0) atomicAdd(&sums[KINDS], here);
    __syncthreads();
    if (thread < args.num_experts && slots[thread] > 0) {
        atomicAdd(&sums[args.kinds[thread]], 1u);
        if (slots[thread] * args.num_experts >= sums[KINDS]) args.counts[thread]++;
    }
    __syncthreads();
    if (thread < KINDS) args.counts[args.num_experts + thread] += sums[thread];
}
