// Cosine and sine of each pair's angle at the step's positions. Angles are
// reduced in f64: in f32 they are off by 3e-3 at position 131071. Then they are
// counted in half turns, for which no slow path is needed.
#include "step.cuh"

struct RotaryArgs {
    const u32* positions;
    const double* frequencies;  // radians per position
    float2* out;                // [rows, pairs]: cosine and sine
    u32 num_rows;
    u32 num_pairs;
    float factor;               // multiplies both
    u32 pad;
};

KERNEL(rotary, RotaryArgs, 128) {
    pdl_wait();
    pdl_trigger();
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.num_rows * args.num_pairs) return;
    const u32 row = index / args.num_pairs, pair = index % args.num_pairs;
    const double half_turns_per_radian = 0.3183098861837907;
    const double angle = static_cast<double>(args.positions[row]) * args.frequencies[pair];
    const double half_turns = angle * half_turns_per_radian;
    const float2 turn = cos_sin_pi(static_cast<float>(half_turns - 2.0 * rint(half_turns * 0.5)));
    args.out[index] = make_float2(turn.x * args.factor, turn.y * args.factor);
}
