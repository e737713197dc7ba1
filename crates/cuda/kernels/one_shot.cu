// Exchanges between GPUs of one host that are small: columns joined in a group,
// rows to all who may have their experts, and what the experts answer back home.
// Each is a kernel that sends and one that receives; one_shot.cuh says why that works.
#include "one_shot.cuh"

// An expert that is nobody's, or not this rank's to run: as in exchange.cu.
constexpr u32 NOWHERE = 0xFFFFFFFFu;

// Blocks for data.
DEVICE u32 data_blocks() {
    return gridDim.x - 1;
}

struct OneShotClearArgs {
    uint4* memory;
    OneShotState* state;
    u64 num_words;          // of 16 bytes
};

// Forgets all exchanges: nobody is in one.
KERNEL(one_shot_clear, OneShotClearArgs, 256) {
    pdl_wait();
    pdl_trigger();
    const u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    for (u64 word = first; word < args.num_words; word += (u64)gridDim.x * blockDim.x) {
        args.memory[word] = make_uint4(0u, 0u, 0u, 0u);
    }
    if (first == 0) {
        args.state->number = 0;
        args.state->done = 0;
        args.state->failed = 0;
    }
}

// --- Columns -------------------------------------------------------------------

struct OneShotSendPartArgs {
    OneShot link;
    const uint4* part;
    u64 first_unit;         // of the part, among those of all members
    u64 num_units;
};

KERNEL(one_shot_send_part, OneShotSendPartArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    if (!begin_sending(link, number)) return;
    const u64 step = (u64)data_blocks() * blockDim.x;
    for (u64 unit = (u64)blockIdx.x * blockDim.x + threadIdx.x; unit < args.num_units; unit += step) {
        const uint4 value = args.part[unit];
        for (u32 i = 0; i < link.num_members; i++) {
            // Not all to the same one at a time.
            const u32 receiver = (link.member + 1 + i) % link.num_members;
            send_unit(slot_at(link, receiver, number), args.first_unit + unit, value, number);
        }
    }
}

struct OneShotJoinArgs {
    OneShot link;
    u8* whole;              // [rows, whole_bytes]
    u64 num_units;          // of all parts
    u32 rows;
    u32 whole_bytes;        // from one row to the next
    u32 units_before[MAX_MEMBERS + 1];  // units of a row of the parts before each part
    u32 bytes_before[MAX_MEMBERS + 1];  // bytes of a row, the same without padding
};

// `Element` is what columns are cut at: a part need not begin at a whole unit.
template <class Element>
DEVICE void join_parts(const OneShotJoinArgs& args, u32 number) {
    const OneShot& link = args.link;
    u8* slot = slot_at(link, link.member, number);
    const u64 step = (u64)data_blocks() * blockDim.x;
    for (u64 unit = (u64)blockIdx.x * blockDim.x + threadIdx.x; unit < args.num_units; unit += step) {
        u32 part = 0;
        while (unit >= (u64)args.units_before[part + 1] * args.rows) part++;
        uint4 value;
        if (!receive_unit(link, slot, unit, part, number, value)) return;
        const u32 row_units = args.units_before[part + 1] - args.units_before[part];
        const u32 row_bytes = args.bytes_before[part + 1] - args.bytes_before[part];
        const u32 in_part = (u32)(unit - (u64)args.units_before[part] * args.rows);
        const u32 row = in_part / row_units, first = in_part % row_units * 16;
        u8* to = args.whole + (u64)row * args.whole_bytes + args.bytes_before[part] + first;
        if (first + 16 <= row_bytes && (u64)to % 16 == 0) {
            *reinterpret_cast<uint4*>(to) = value;
            continue;
        }
        const u32 words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (u32 i = 0; i < 16 / sizeof(Element); i++) {
            const u32 at = i * sizeof(Element);
            if (first + at < row_bytes) {
                *reinterpret_cast<Element*>(to + at) = (Element)(words[at / 4] >> at % 4 * 8);
            }
        }
    }
}

template <class Element>
DEVICE void join(const OneShotJoinArgs& args) {
    u32 number;
    if (begin_receiving(args.link, number)) join_parts<Element>(args, number);
    end_exchange(args.link, number);
}

KERNEL(one_shot_join_2, OneShotJoinArgs, 256) {
    join<u16>(args);
}

KERNEL(one_shot_join_4, OneShotJoinArgs, 256) {
    join<u32>(args);
}

// --- Rows to experts -------------------------------------------------------------

struct OneShotSendRowsArgs {
    OneShot link;
    const uint4* rows;      // this rank's first
    const u32* experts;     // [rows, top_k]
    const float* weights;
    u32 num_rows;           // that there are
    u32 share_rows;         // that there could be: choices of the rest go nowhere
    u32 first_row;          // where the share begins among those of all homes
    u32 all_rows;
    u32 row_units;
    u32 stride_units;       // from one of `rows` to the next
    u32 top_k;
    u32 pad;
};

// Where the choices begin, behind the rows.
DEVICE u64 choices_at(u32 all_rows, u32 row_units) {
    return ((u64)all_rows * row_units + 31) / 32 * 1024;
}

KERNEL(one_shot_send_rows, OneShotSendRowsArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    if (!begin_sending(link, number)) return;
    const u64 choices = choices_at(args.all_rows, args.row_units);
    for (u32 row = blockIdx.x; row < args.share_rows; row += data_blocks()) {
        const bool is_row = row < args.num_rows;
        const u32 at = args.first_row + row;
        for (u32 i = 0; i < link.num_members; i++) {
            u8* slot = slot_at(link, (link.member + 1 + i) % link.num_members, number);
            if (threadIdx.x < args.top_k) {
                const u32 choice = row * args.top_k + threadIdx.x;
                const u32 expert = is_row ? args.experts[choice] : NOWHERE;
                const u32 weight = is_row ? __float_as_uint(args.weights[choice]) : 0u;
                u8* word = slot + choices + ((u64)at * args.top_k + threadIdx.x) * 16;
                store_system16(word, make_uint4(expert, number, weight, number));
            }
            if (!is_row) continue;
            for (u32 unit = threadIdx.x; unit < args.row_units; unit += blockDim.x) {
                const uint4 value = args.rows[(u64)row * args.stride_units + unit];
                send_unit(slot, (u64)at * args.row_units + unit, value, number);
            }
        }
    }
}

struct OneShotReceiveRowsArgs {
    OneShot link;
    uint4* rows;            // [all_rows]; those that are not claimed are not written
    u32* experts;           // [all_rows, top_k]: NOWHERE where another rank computes it
    float* weights;
    const u32* table;       // as in exchange.cu
    u32* loads;             // [experts]
    u32 all_rows;
    u32 home_rows;          // of each home
    u32 share_rows;         // of each member
    u32 row_units;
    u32 top_k;
    u32 num_experts;
};

KERNEL(one_shot_receive_rows, OneShotReceiveRowsArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    const bool has_failed = !begin_receiving(link, number);
    SHARED(is_wanted, u32);
    if (is_token_block()) {
        end_exchange(link, number);
        return;
    }
    u8* slot = slot_at(link, link.member, number);
    const u64 choices = choices_at(args.all_rows, args.row_units);
    for (u32 row = blockIdx.x; row < args.all_rows; row += data_blocks()) {
        const u32 sender = row / args.share_rows;
        if (threadIdx.x == 0) is_wanted = 0;
        __syncthreads();
        if (threadIdx.x < args.top_k) {
            const u32 choice = row * args.top_k + threadIdx.x;
            // What does not come is nobody's.
            uint2 chosen = make_uint2(NOWHERE, 0u);
            if (!has_failed) receive_word(link, slot + choices + (u64)choice * 16, sender, number, chosen);
            bool is_here = false;
            if (chosen.x < args.num_experts) {
                const u32 home = row / args.home_rows, row_at_home = row % args.home_rows;
                const u32 entry = args.table[home * args.num_experts + chosen.x];
                const u32 copies = entry & 0xFFFFu;
                is_here = copies != 0 && row_at_home % copies == entry >> 16;
            }
            args.experts[choice] = is_here ? chosen.x : NOWHERE;
            args.weights[choice] = __uint_as_float(chosen.y);
            if (is_here) {
                atomicAdd(args.loads + chosen.x, 1u);
                atomicOr(&is_wanted, 1u);
            }
        }
        __syncthreads();
        if (is_wanted) {
            for (u32 unit = threadIdx.x; unit < args.row_units; unit += blockDim.x) {
                const u64 at = (u64)row * args.row_units + unit;
                uint4 value;
                if (!receive_unit(link, slot, at, sender, number, value)) break;
                args.rows[at] = value;
            }
        }
        __syncthreads();
    }
    end_exchange(link, number);
}

// --- Answers home ------------------------------------------------------------------

struct OneShotSendChoicesArgs {
    OneShot link;
    const uint4* outputs;   // [slots, row_units]: bf16
    const u32* experts;     // [slots], as claimed
    u32 num_slots;          // of all homes
    u32 home_slots;         // of each home
    u32 group_size;
    u32 row_units;
};

// Each choice is one rank's, which writes it where it belongs.
KERNEL(one_shot_send_choices, OneShotSendChoicesArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    if (!begin_sending(link, number)) return;
    for (u32 slot = blockIdx.x; slot < args.num_slots; slot += data_blocks()) {
        if (args.experts[slot] == NOWHERE) continue;
        const u32 home = slot / args.home_slots;
        const u64 at = (u64)(slot % args.home_slots) * args.row_units;
        for (u32 unit = threadIdx.x; unit < args.row_units; unit += blockDim.x) {
            const uint4 value = args.outputs[(u64)slot * args.row_units + unit];
            for (u32 i = 0; i < args.group_size; i++) {
                send_unit(slot_at(link, home * args.group_size + i, number), at + unit, value, number);
            }
        }
    }
}

struct OneShotReceiveChoicesArgs {
    OneShot link;
    uint4* home;
    u64 num_units;          // of this rank's rows; none if it has no home
};

KERNEL(one_shot_receive_choices, OneShotReceiveChoicesArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    if (begin_receiving(link, number)) {
        u8* slot = slot_at(link, link.member, number);
        const u64 step = (u64)data_blocks() * blockDim.x;
        for (u64 unit = (u64)blockIdx.x * blockDim.x + threadIdx.x; unit < args.num_units; unit += step) {
            uint4 value;
            if (!receive_unit(link, slot, unit, SOMEBODY, number, value)) break;
            args.home[unit] = value;
        }
    }
    end_exchange(link, number);
}

// --- Sums home -----------------------------------------------------------------------

struct OneShotSendSumsArgs {
    OneShot link;
    const uint4* outputs;   // [slots, row_units]: bf16
    const u32* experts;     // [slots], as claimed
    const float* weights;
    u32 all_rows;           // of all homes
    u32 home_rows;          // of each home
    u32 group_size;
    u32 row_units;          // of 8 columns
    u32 top_k;
    u32 pad;
};

DEVICE u32 bits(float value) {
    return __float_as_uint(value);
}

// For each row the weighted sum of what was computed here, to the row's home.
KERNEL(one_shot_send_sums, OneShotSendSumsArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    if (!begin_sending(link, number)) return;
    for (u32 row = blockIdx.x; row < args.all_rows; row += data_blocks()) {
        const u32 home = row / args.home_rows, first = row * args.top_k;
        const u64 at = ((u64)link.member * args.home_rows + row % args.home_rows) * args.row_units;
        for (u32 unit = threadIdx.x; unit < args.row_units; unit += blockDim.x) {
            float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
            for (u32 slot = first; slot < first + args.top_k; slot++) {
                if (args.experts[slot] == NOWHERE) continue;
                const float weight = args.weights[slot];
                const uint4 output = args.outputs[(u64)slot * args.row_units + unit];
                const float2 a = unpack_bf16(output.x), b = unpack_bf16(output.y);
                const float2 c = unpack_bf16(output.z), d = unpack_bf16(output.w);
                low.x += weight * a.x, low.y += weight * a.y, low.z += weight * b.x, low.w += weight * b.y;
                high.x += weight * c.x, high.y += weight * c.y, high.z += weight * d.x, high.w += weight * d.y;
            }
            const uint4 lows = make_uint4(bits(low.x), bits(low.y), bits(low.z), bits(low.w));
            const uint4 highs = make_uint4(bits(high.x), bits(high.y), bits(high.z), bits(high.w));
            for (u32 i = 0; i < args.group_size; i++) {
                u8* slot = slot_at(link, home * args.group_size + i, number);
                send_unit(slot, (at + unit) * 2, lows, number);
                send_unit(slot, (at + unit) * 2 + 1, highs, number);
            }
        }
    }
}

struct OneShotReceiveSumsArgs {
    OneShot link;
    uint4* home;            // [rows, row_units]: bf16
    u64 num_units;          // of this rank's rows; none if it has no home
    u64 sender_units;       // of each member: those of a home's rows
};

// Adds the members' sums in their order.
KERNEL(one_shot_receive_sums, OneShotReceiveSumsArgs, 256) {
    const OneShot& link = args.link;
    u32 number;
    if (begin_receiving(link, number)) {
        u8* slot = slot_at(link, link.member, number);
        const u64 step = (u64)data_blocks() * blockDim.x;
        for (u64 unit = (u64)blockIdx.x * blockDim.x + threadIdx.x; unit < args.num_units; unit += step) {
            float sums[8] = {};
            bool is_whole = true;
            for (u32 sender = 0; sender < link.num_members && is_whole; sender++) {
                const u64 at = (sender * args.sender_units + unit) * 2;
                uint4 low, high;
                is_whole = receive_unit(link, slot, at, sender, number, low) &&
                           receive_unit(link, slot, at + 1, sender, number, high);
                if (!is_whole) break;
                sums[0] += __uint_as_float(low.x), sums[1] += __uint_as_float(low.y);
                sums[2] += __uint_as_float(low.z), sums[3] += __uint_as_float(low.w);
                sums[4] += __uint_as_float(high.x), sums[5] += __uint_as_float(high.y);
                sums[6] += __uint_as_float(high.z), sums[7] += __uint_as_float(high.w);
            }
            if (!is_whole) break;
            args.home[unit] = make_uint4(pack_bf16(sums[0], sums[1]), pack_bf16(sums[2], sums[3]),
                                         pack_bf16(sums[4], sums[5]), pack_bf16(sums[6], sums[7]));
        }
    }
    end_exchange(link, number);
}
