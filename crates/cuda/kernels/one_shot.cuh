// How kernels of GPUs that reach each other's memory exchange what is small, at
// the price of one way. Each member of an exchange writes what it has for another
// into that one's own memory: units of 16 bytes, as two words of 16 bytes that
// hold 8 of them and twice the number of the exchange. Who reads a word with the
// number that is due has its 8 bytes as well, so nothing is fenced, and what is
// late or missing is never taken for what is there.
//
// An exchange is a kernel that sends and waits for nobody, and a later one that
// receives: no launch waits for another of its own GPU, however few blocks fit.
// Each sends every other a token in each exchange, with data or without, and waits
// for everybody's. Of two slots that take turns, one is then written again only
// when nobody reads it any more: who has all tokens of an exchange knows that all
// were through with the one before. What kernels count is in the GPU's memory, so
// that a graph can be replayed.
#pragma once

#include "gpu.cuh"

constexpr u32 MAX_MEMBERS = 16;
constexpr u32 TOKEN_BYTES = 128;
constexpr u32 TOKENS_BYTES = 2 * MAX_MEMBERS * TOKEN_BYTES;

// Written to OneShotHost::failure: 0, or a member's number, plus 1, that was
// waited for in vain, or one of these.
constexpr u32 FAILED_BY_SOMEBODY = 0xFFFFu;
constexpr u32 FAILED_BY_ABORT = 0x10000u;
// A member that nobody can name.
constexpr u32 SOMEBODY = FAILED_BY_SOMEBODY - 1;

// Of this GPU alone.
struct OneShotState {
    u32 number;             // of the last exchange that is done
    u32 done;               // blocks of a receiving kernel that are done
    u32 failed;             // an exchange failed, and so do all that follow
    u32 pad;
};

// In the host's memory.
struct OneShotHost {
    u32 abort;              // not 0: who waits gives up
    u32 failure;
};

// What every kernel of an exchange gets: tokens and slots of each member, and where
// this one's own state is.
struct OneShot {
    u8* areas[MAX_MEMBERS];
    OneShotState* state;
    OneShotHost* host;
    u64 timeout_ns;
    u64 slot_bytes;
    u32 member;             // which of them this GPU is
    u32 num_members;
    u32 shares_gpu;         // not 0: two of them are queues of one GPU
    u32 pad;
};

// Between two looks at whether to go on; a look at the host's memory takes long.
constexpr u32 LOOKS = 64;
constexpr u32 LOOKS_AT_HOST = 4096;

// The number of the exchange that a kernel is part of.
DEVICE u32 exchange_number(const OneShot& link) {
    return link.state->number + 1;
}

DEVICE u8* token_at(const OneShot& link, u32 receiver, u32 sender, u32 number) {
    return link.areas[receiver] + ((number & 1) * MAX_MEMBERS + sender) * TOKEN_BYTES;
}

DEVICE u8* slot_at(const OneShot& link, u32 receiver, u32 number) {
    return link.areas[receiver] + TOKENS_BYTES + (number & 1) * link.slot_bytes;
}

// Where the first of a unit's two words is; the other is 512 bytes behind it, so
// that a warp's words follow each other.
DEVICE u8* unit_at(u8* slot, u64 unit) {
    return slot + unit / 32 * 1024 + unit % 32 * 16;
}

DEVICE void send_unit(u8* slot, u64 unit, uint4 value, u32 number) {
    u8* word = unit_at(slot, unit);
    store_system16(word, make_uint4(value.x, number, value.y, number));
    store_system16(word + 512, make_uint4(value.z, number, value.w, number));
}

// The last block of each kernel is for the tokens, the others take turns at the data.
DEVICE bool is_token_block() {
    return blockIdx.x == gridDim.x - 1;
}

// By the threads of one block of a sending kernel.
DEVICE void send_tokens(const OneShot& link, u32 number) {
    if (threadIdx.x < link.num_members) {
        store_release_system(reinterpret_cast<u32*>(token_at(link, threadIdx.x, link.member, number)), number);
    }
}

DEVICE void fail(const OneShot& link, u32 failure) {
    if (atomicCAS(&link.state->failed, 0u, 1u) == 0u) store_relaxed_system(&link.host->failure, failure);
}

// True once nothing is to be waited for any more; `looks` counts from 1.
DEVICE bool gives_up(const OneShot& link, u32 looks, u32 sender, u64& deadline) {
    look_again();
    if (looks % LOOKS != 0) return false;
    if (load_relaxed_system(&link.state->failed) != 0) return true;
    const u64 now = nanoseconds();
    if (deadline == 0) deadline = now + link.timeout_ns;
    if (now >= deadline) {
        fail(link, sender + 1);
        return true;
    }
    if (looks % LOOKS_AT_HOST == 0 && load_relaxed_system(&link.host->abort) != 0) {
        fail(link, FAILED_BY_ABORT);
        return true;
    }
    return false;
}

// Waits for a word of 8 bytes that was sent twice over, or gives up.
DEVICE bool receive_word(const OneShot& link, const u8* word, u32 sender, u32 number, uint2& value) {
    uint4 found = load_system16(word);
    u64 deadline = 0;
    for (u32 looks = 1; found.y != number || found.w != number; looks++) {
        if (gives_up(link, looks, sender, deadline)) return false;
        found = load_system16(word);
    }
    value = make_uint2(found.x, found.z);
    return true;
}

// Waits for a unit, or gives up.
DEVICE bool receive_unit(const OneShot& link, u8* slot, u64 unit, u32 sender, u32 number, uint4& value) {
    const u8* word = unit_at(slot, unit);
    uint4 low = load_system16(word), high = load_system16(word + 512);
    u64 deadline = 0;
    for (u32 looks = 1; low.y != number || low.w != number || high.y != number || high.w != number; looks++) {
        if (gives_up(link, looks, sender, deadline)) return false;
        low = load_system16(word);
        high = load_system16(word + 512);
    }
    value = make_uint4(low.x, low.z, high.x, high.z);
    return true;
}

// By the threads of one block of a receiving kernel.
DEVICE void receive_tokens(const OneShot& link, u32 number) {
    if (threadIdx.x >= link.num_members) return;
    const u32* token = reinterpret_cast<const u32*>(token_at(link, link.member, threadIdx.x, number));
    u64 deadline = 0;
    for (u32 looks = 1; load_acquire_system(token) != number; looks++) {
        if (gives_up(link, looks, threadIdx.x, deadline)) return;
    }
}

// The beginning of a sending kernel, for all its threads: true if there is data to send.
DEVICE bool begin_sending(const OneShot& link, u32& number) {
    pdl_wait();
    pdl_trigger();
    if (link.state->failed) return false;
    number = exchange_number(link);
    if (!is_token_block()) return true;
    send_tokens(link, number);
    return false;
}

// The beginning of a receiving kernel, for all its threads: true if there is data to
// receive. Where a GPU is shared, the next kernel's blocks do not come before others'
// have gone: they could take the room that a member needs to come to its sending.
DEVICE bool begin_receiving(const OneShot& link, u32& number) {
    pdl_wait();
    if (!link.shares_gpu) pdl_trigger();
    number = exchange_number(link);
    if (link.state->failed) return false;
    if (!is_token_block()) return true;
    receive_tokens(link, number);
    return false;
}

// The end of a receiving kernel, for all its threads: when all blocks were here,
// the next exchange may begin.
DEVICE void end_exchange(const OneShot& link, u32 number) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(&link.state->done, 1u) == gridDim.x - 1) {
        link.state->done = 0;
        link.state->number = number;
    }
}
