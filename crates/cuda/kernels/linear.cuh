// What all products with dense weights share: their operands, and where results
// of plain ones go. Whoever takes results gets two rows of a tile at once, `gap`
// apart, so that it can rotate them; see fragments.cuh.
#pragma once
#include "int8.cuh"

// weights [outputs, cols] times the transpose of input [rows, cols], plus bias.
struct Product {
    const uint4* weights;  // loads
    const float* bias;     // [outputs], padded to 16; of integers as many scales follow
    const bf16* input;
    const u32* picked;     // which rows of the input; null takes the first ones
    u32 outputs;
    u32 cols;              // a multiple of 8
    u32 rows;
    u32 stride;            // of the input in elements, a multiple of 8
};

// Where a row of the input begins, in pieces of 16 bytes: of 64 GiB at most.
DEVICE u32 input_piece(const Product& product, u32 row) {
    const u32 picked = product.picked ? product.picked[row] : row;
    return picked * (product.stride / 8);
}

// What a row of weights makes of its sums.
struct RowEdge {
    float scale;
    float bias;
};

template <class Weights>
DEVICE RowEdge row_edge(const Product& product, u32 output) {
    RowEdge edge = {1.0f, product.bias[output]};
    if constexpr (Weights::HAS_SCALES) {
        edge.scale = product.bias[tiles_of(product.outputs) * TILE_ROWS + output];
    }
    return edge;
}

template <class Weights>
DEVICE float finished(const RowEdge& edge, float sum) {
    if constexpr (Weights::HAS_SCALES) return fmaf(sum, edge.scale, edge.bias);
    return sum + edge.bias;
}

DEVICE void put_element(float* to, float value) { *to = value; }
DEVICE void put_element(bf16* to, float value) { *to = float_to_bf16(value); }

// Results as a row-major matrix.
template <class Type>
struct Plain {
    typedef Type Element;
    static constexpr bool HAS_HEADS = false;

    Type* out;
    u32 outputs;
    u32 stride;  // of `out` in elements

    // Whatever is to be known of rows of the input: nothing.
    DEVICE void prepare(uint2*, u32, u32, u32) const {}
    DEVICE float2 turn(u32, u32) const { return make_float2(1.0f, 0.0f); }
    DEVICE void rotate(float2, float&, float&) const {}

    // Writes one result.
    DEVICE void put(u32 output, u32 row, uint2, float value) const {
        if (output < outputs) {
            put_element(out + static_cast<size_t>(row) * stride + output, value);
        }
    }

    // Writes those of `piece`, 16 bytes from a multiple of their number.
    DEVICE void put_piece(u32 output, u32 row, uint2, const uint4* piece) const {
        constexpr u32 COUNT = 16 / sizeof(Type);
        Type* to = out + static_cast<size_t>(row) * stride + output;
        if (output + COUNT <= outputs && stride % COUNT == 0) {
            *reinterpret_cast<uint4*>(to) = *piece;
            return;
        }
        const Type* from = reinterpret_cast<const Type*>(piece);
        for (u32 i = 0; i < COUNT && output + i < outputs; i++) {
            to[i] = from[i];
        }
    }
};
