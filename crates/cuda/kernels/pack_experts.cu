// Brings one MXFP4 matrix of one expert from the checkpoint's layout into that
// of mxfp4.cuh. Of gate and up, whose rows alternate in the checkpoint, a tile
// gets 8 gates and then their 8 ups, so one lane holds both of a pair.
#include "mxfp4.cuh"

struct PackArgs {
    const u8* blocks;     // [rows, cols / 2]: low nibbles are even columns
    const u8* scales;     // [rows, cols / 32]
    const u16* bias;      // bf16 [rows], or null
    u8* expert;
    PackedMatrix matrix;
    u32 interleaved;      // gates and ups alternate
    u32 pad;
};

// The checkpoint's row that is row `row` of tile `tile`.
DEVICE u32 source_row(const PackArgs& args, u32 tile, u32 row) {
    if (!args.interleaved) return tile * TILE_ROWS + row;
    return 2 * (tile * 8 + row % 8) + row / 8;
}

// A warp for each row: its shift, and its bias. Launched before pack_tiles.
KERNEL(pack_edges, PackArgs, 256) {
    pdl_wait();
    pdl_trigger();
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= args.matrix.row_tiles * TILE_ROWS) return;
    const u32 source = source_row(args, row / TILE_ROWS, row % TILE_ROWS);
    const u32 num_scales = args.matrix.cols / 32;
    const u8* scales = args.scales + (size_t)source * num_scales;
    int largest = 0;
    for (u32 i = lane; i < num_scales; i += 32) largest = max(largest, (int)scales[i]);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, distance));
    }
    if (lane > 0) return;
    const int shift = largest > 128 ? largest - 128 : largest < 64 ? largest - 64 : 0;
    RowEdge edge;
    edge.multiplier = __uint_as_float((u32)(shift + 127) << 23);
    edge.bias = args.bias != nullptr ? __uint_as_float((u32)args.bias[source] << 16) : 0.0f;
    reinterpret_cast<RowEdge*>(args.expert + args.matrix.edges)[row] = edge;
}

// The stored byte of a row's scale, 0 behind the last column.
DEVICE u32 scale_byte(const PackArgs& args, u32 source, u32 block, int shift) {
    const u32 num_scales = args.matrix.cols / 32;
    if (block >= num_scales) return 0;
    const int exponent = (int)args.scales[(size_t)source * num_scales + block] + 126 - shift;
    return (u32)max(exponent, 0);
}

// A byte of codes, two columns that begin with `col`, 0 behind the last column.
DEVICE u32 code_byte(const PackArgs& args, u32 source, u32 col) {
    if (col >= args.matrix.cols) return 0;
    return args.blocks[((size_t)source * args.matrix.cols + col) / 2];
}

// A warp for each tile.
KERNEL(pack_tiles, PackArgs, 256) {
    pdl_wait();
    pdl_trigger();
    const u32 index = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (index >= args.matrix.row_tiles * args.matrix.chunks) return;
    const u32 tile = index / args.matrix.chunks, chunk = index % args.matrix.chunks;
    const u32 upper = source_row(args, tile, lane / 4), lower = source_row(args, tile, lane / 4 + 8);
    u32 words[4];
#pragma unroll
    for (u32 step = 0; step < 4; step++) {
        const u32 col = chunk * TILE_COLS + step * 16 + lane % 4 * 2;
        const u32 a = code_byte(args, upper, col), b = code_byte(args, lower, col);
        const u32 c = code_byte(args, upper, col + 8), d = code_byte(args, lower, col + 8);
        words[step] = (place_code(a & 15) | place_code(a >> 4) << 16) |
                      (place_code(b & 15) | place_code(b >> 4) << 16) >> 3 |
                      (place_code(c & 15) | place_code(c >> 4) << 16) >> 6 |
                      (place_last_code(d & 15) | place_last_code(d >> 4) << 16);
    }
    uint4* codes = reinterpret_cast<uint4*>(args.expert + args.matrix.codes + (size_t)index * TILE_CODES);
    codes[lane] = make_uint4(words[0], words[1], words[2], words[3]);
    if (lane % 4 != 0) return;
    const RowEdge* edges = reinterpret_cast<const RowEdge*>(args.expert + args.matrix.edges) + tile * TILE_ROWS + lane / 4;
    const int shift = (int)(__float_as_uint(edges[0].multiplier) >> 23) - 127;
    const int lower_shift = (int)(__float_as_uint(edges[8].multiplier) >> 23) - 127;
    u32* scales = reinterpret_cast<u32*>(args.expert + args.matrix.scales + (size_t)index * TILE_SCALES);
    scales[lane / 4] = scale_byte(args, upper, chunk * 2, shift) | scale_byte(args, upper, chunk * 2 + 1, shift) << 8 |
                       scale_byte(args, lower, chunk * 2, lower_shift) << 16 |
                       scale_byte(args, lower, chunk * 2 + 1, lower_shift) << 24;
}
