// Where queries, keys and values go: queries and keys are rotated, keys and
// values written to the pages of their positions.
#pragma once
#include "fp8.cuh"
#include "linear.cuh"
#include "step.cuh"

struct QkvArgs {
    Product product;       // outputs: query heads, then as many key as value heads
    bf16* queries;         // [rows, query heads * 64]
    bf16* layer;           // the layer's pages
    u8* exponents;         // of its rows, which then are FP8; or null
    const u32* step;       // the descriptor
    const u32* positions;
    const u32* row_slices;
    const StepSlice* slices;
    const float2* rotary;  // [rows, 32]: cosine and sine
    u32 query_stride;      // of `queries` in elements, a multiple of 8
    u32 query_outputs;
    u32 num_kv_heads;
    u32 block_size;
    u32 sliding;           // 1 on layers with a window
    u32 pad;
};

struct Qkv {
    typedef bf16 Element;
    static constexpr bool HAS_HEADS = true;

    const QkvArgs& args;

    // From this result on, if there is one, results of a row become one exponent a
    // head, that is 64 of them: they are handed on by put_head().
    DEVICE u32 first_head() const { return args.exponents ? args.query_outputs : ~0u; }

    // The page of each row of input, and the place in it: 128 threads find them.
    DEVICE void prepare(uint2* places, u32 first_row, u32 rows, u32 thread) const {
        for (u32 i = thread; i < rows; i += 128) {
            const u32 position = args.positions[first_row + i];
            const StepSlice& slice = args.slices[args.row_slices[first_row + i]];
            const u32 first = args.sliding ? slice.sliding_first : slice.full_first;
            const u32 pages = args.sliding ? slice.sliding_pages : slice.full_pages;
            const u32 page = args.step[pages + position / args.block_size - first];
            places[i] = make_uint2(page, position % args.block_size);
        }
    }

    // Queries and keys turn; `output` is in the lower half of its head.
    DEVICE float2 turn(u32 output, u32 row) const {
        if (output >= args.query_outputs + args.num_kv_heads * 64) {
            return make_float2(1.0f, 0.0f);
        }
        return args.rotary[static_cast<size_t>(row) * 32 + output % 64];
    }

    DEVICE void rotate(float2 turn, float& low, float& high) const {
        const float turned = low * turn.x - high * turn.y;
        high = high * turn.x + low * turn.y;
        low = turned;
    }

    DEVICE bf16* address(u32 output, u32 row, uint2 place) const {
        if (output < args.query_outputs) {
            return args.queries + static_cast<size_t>(row) * args.query_stride + output;
        }
        const u32 outputs = args.num_kv_heads * 64;
        const u32 both = output - args.query_outputs;
        const bool is_value = both >= outputs;
        const u32 own = is_value ? both - outputs : both;
        bf16* page = args.layer + page_offset(place.x, own / 64, args.num_kv_heads, args.block_size);
        return page + ((is_value ? args.block_size : 0) + place.y) * 64 + own % 64;
    }

    // Writes a head's 64 results of one row; all lanes of a warp call it together.
    DEVICE void put_head(u32 output, u32 row, uint2 place, const float* values) const {
        const u32 lane = threadIdx.x % 32;
        if (output < args.query_outputs) {
            u32* query = reinterpret_cast<u32*>(address(output, row, place));
            query[lane] = pack_bf16(values[lane * 2], values[lane * 2 + 1]);
            return;
        }
        // A lane's codes lie side by side: see code_place().
        const u32 dimension = lane / 2 * 4 + lane % 2;
        const float low = values[dimension], high = values[dimension + 2];
        const u32 exponent = row_exponent(warp_max(fmaxf(fabsf(low), fabsf(high))));
        const float scale = inverse_power(exponent);
        const u32 head = (output - args.query_outputs) / 64;
        const u32 is_value = head >= args.num_kv_heads ? 1 : 0;
        const u32 own = head - is_value * args.num_kv_heads;
        const size_t rows = (static_cast<size_t>(place.x) * args.num_kv_heads + own) * args.block_size;
        const size_t code_row = rows * 2 + is_value * args.block_size + place.y;
        u8* codes = reinterpret_cast<u8*>(args.layer) + code_row * FP8_ROW_BYTES;
        reinterpret_cast<u16*>(codes)[lane] = static_cast<u16>(pack_e4m3(low * scale, high * scale));
        if (lane == 0) args.exponents[(rows + place.y) * 2 + is_value] = static_cast<u8>(exponent);
    }

    DEVICE void put(u32 output, u32 row, uint2 place, float value) const {
        *address(output, row, place) = float_to_bf16(value);
    }

    DEVICE void put_piece(u32 output, u32 row, uint2 place, const uint4* piece) const {
        *reinterpret_cast<uint4*>(address(output, row, place)) = *piece;
    }
};
