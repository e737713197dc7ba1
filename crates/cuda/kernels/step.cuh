// The step's descriptor: what every kernel may ask about the batch. Rust's side
// is src/batch.rs. All offsets count 32-bit words from the descriptor's start.
#pragma once
#include "gpu.cuh"

// At the start of the descriptor.
struct StepHeader {
    u32 num_rows;
    u32 num_slices;
    u32 num_logit_rows;
    u32 draw_lists;           // what single draws bring along: biases, histories, allowed tokens
    u32 spare[12];
};

// The rows of one sequence, at consecutive positions.
struct StepSlice {
    u32 first_row;
    u32 num_rows;
    u32 first_position;
    u32 full_first;           // the first page that is held, counted from position 0
    u32 full_pages;           // offset of its page numbers
    u32 sliding_first;
    u32 sliding_pages;
    u32 pad;
};

__device__ __forceinline__ const StepHeader& step_header(const u32* step) {
    return *reinterpret_cast<const StepHeader*>(step);
}

// Where the keys of one head of one page begin; its values follow them.
// A layer's cache is [page][kv head][keys, values][block_size][64] bf16.
__device__ __forceinline__ size_t page_offset(u32 page, u32 head, u32 num_kv_heads, u32 block_size) {
    return (static_cast<size_t>(page) * num_kv_heads + head) * 2 * block_size * 64;
}
