// The last pass: one block for each job finds the token that the uniform number
// points at, in the order of tokens or by descending weight, and writes what the
// host reads.
#include "sample_bins.cuh"

// Shared memory of a job.
struct Room {
    // A slice while it is adjusted; else masses of a sorted list, each with
    // those before it.
    union {
        alignas(16) float staged[SLICE];
        u64 through[LISTED];
    };
    // A list of keys; else bins of a range of keys.
    union {
        u64 keys[LISTED];
        struct {
            u64 masses[BINS];
            u32 counts[BINS];
        };
    };
    double scaled[MAX_SLICES];
    BinsRoom bins;
    u64 wanted;
    u32 number;
    u32 token;
};

// A job at work.
struct Job {
    const SampleArgs& args;
    const SampleJob& job;
    const Row row;
    const Filter filter;
    Room& room;
};

// Puts this thread's logits of a slice where a loop can find them; gives the
// place of the first four. Each thread reads what it wrote, so nobody waits.
DEVICE const float4* stage(const float (&values)[HELD], Room& room) {
    float4* mine = reinterpret_cast<float4*>(room.staged) + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        mine[i * THREADS] = make_float4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
    }
    return mine;
}

// Calls `use(value, token, key, mass)` for every token of the row that the job
// keeps and whose key is in `low ..= high`.
template <class Use>
DEVICE void each_kept(const Job& at, u64 low, u64 high, Use use) {
    for (u32 slice = 0; slice < at.args.slices; slice++) {
        float values[HELD];
        load_slice(at.row, slice, values, at.room.staged);
        // What is done with a value is long, and stands here once.
        stage(values, at.room);
#pragma unroll 1
        for (u32 i = 0; i < HELD; i++) {
            const u32 token = token_at(slice, i);
            const float value = at.room.staged[token - slice * SLICE];
            const u64 key = at.filter.key(value, token);
            u64 mass;
            if (token < at.args.cols && key >= low && key <= high && at.filter.keeps(value, token, mass)) {
                use(value, key, mass);
            }
        }
    }
    __syncthreads();
}

// --- Sorted lists ------------------------------------------------------------

// Sorts the first `count` keys of the room, the greatest first.
DEVICE void sort(Room& room, u32 count) {
    u32 size = 2;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += THREADS) room.keys[i] = 0;
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 distance = run / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (u32 pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const u32 i = pair / distance * distance * 2 + pair % distance;
                const u64 a = room.keys[i], b = room.keys[i + distance];
                if ((a < b) == ((i & run) == 0)) {
                    room.keys[i] = b;
                    room.keys[i + distance] = a;
                }
            }
        }
    }
    __syncthreads();
}

// Fills `through` for the first `count` keys, which are sorted.
DEVICE void weigh(const Job& at, u32 count) {
    Room& room = at.room;
    const u32 each = (count + THREADS - 1) / THREADS;
    const u32 begin = min(threadIdx.x * each, count), end = min(begin + each, count);
    u64 sum = 0;
    for (u32 i = begin; i < end; i++) {
        u64 mass;
        at.filter.keeps(logit_of(room.keys[i]), token_of(room.keys[i]), mass);
        sum += mass;
        room.through[i] = sum;
    }
    const u64 before = block_scan(sum, room.bins.warps) - sum;
    for (u32 i = begin; i < end; i++) room.through[i] += before;
    __syncthreads();
}

// The first of `count` places by which the mass is at least `bound`, which is
// above 0; the last if there is none.
DEVICE u32 place_of(Room& room, u32 count, u64 bound) {
    if (threadIdx.x == 0) room.number = count - 1;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        if (room.through[i] >= bound && (i == 0 || room.through[i - 1] < bound)) room.number = i;
    }
    __syncthreads();
    const u32 place = room.number;
    __syncthreads();
    return place;
}

// The mass above 0 that a draw's number points at, counted from 1.
DEVICE u64 target_of(double uniform, u64 mass) {
    const u64 target = static_cast<u64>(uniform * static_cast<double>(mass));
    return min(target, mass - 1) + 1;
}

DEVICE u64 share_of(float share, u64 mass) {
    const double part = static_cast<double>(share) * static_cast<double>(mass);
    const u64 whole = static_cast<u64>(part);
    return min(max(whole + (static_cast<double>(whole) < part ? 1 : 0), static_cast<u64>(1)), mass);
}

// Lists the tokens that the job keeps whose keys are in a range; gives how many.
DEVICE u32 list(const Job& at, u64 low, u64 high) {
    Room& room = at.room;
    if (threadIdx.x == 0) room.number = 0;
    __syncthreads();
    each_kept(at, low, high, [&](float, u64 key, u64) {
        const u32 place = atomicAdd(&room.number, 1u);
        if (place < LISTED) room.keys[place] = key;
    });
    const u32 count = min(room.number, LISTED);
    __syncthreads();
    return count;
}

// --- Rows of which too many tokens are kept to list them ----------------------

struct Reached {
    u64 key;
    u64 mass;  // down to the key, it included
};

// The key by which the row's tokens, the greatest key first, number `bound`, or
// weigh it. Narrows a range of keys until what is in it can be listed.
DEVICE Reached reach(const Job& at, bool by_mass, u64 bound) {
    Room& room = at.room;
    const SampleBins& bins = at.args.bins[blockIdx.x];
    Place place = first_reaching(tally_of(bins.counts, bins.masses, room.bins), by_mass, bound, room.bins);
    // The keys of the bin; their order is that of bins.
    const u32 bin = min(place.bin, BINS - 1);
    u64 least = ~0ull, greatest = 0;
    each_kept(at, 0, ~0ull, [&](float value, u64 key, u64) {
        if (at.filter.bin(value) == bin) {
            least = min(least, key);
            greatest = max(greatest, key);
        }
    });
    least = ~block_max(~least, room.bins.warps);
    greatest = block_max(greatest, room.bins.warps);

    u32 shift = 0;
    while (shift < 54 && (greatest - least) >> shift >= BINS) shift++;
    u64 count_before = place.count_before, mass_before = place.mass_before, inside = place.count;
    while (inside > LISTED) {
        for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
            room.masses[i] = 0;
            room.counts[i] = 0;
        }
        __syncthreads();
        each_kept(at, least, greatest, [&](float, u64 key, u64 mass) {
            const u32 digit = BINS - 1 - static_cast<u32>((key - least) >> shift);
            atomicAdd(&room.counts[digit], 1u);
            atomicAdd(&room.masses[digit], mass);
        });
        const u64 before = by_mass ? mass_before : count_before;
        place = first_reaching(tally_of(room.counts, room.masses, room.bins), by_mass, bound - before, room.bins);
        const u64 digit = BINS - 1 - min(place.bin, BINS - 1);
        least += digit << shift;
        greatest = min(greatest, least + ((1ull << shift) - 1));
        count_before += place.count_before;
        mass_before += place.mass_before;
        inside = place.count;
        if (shift == 0) break;
        shift = shift > 10 ? shift - 10 : 0;
    }
    const u32 count = max(list(at, least, greatest), 1u);
    sort(room, count);
    weigh(at, count);
    u32 last = static_cast<u32>(min(bound - count_before - 1, static_cast<u64>(count - 1)));
    if (by_mass) last = place_of(room, count, bound - mass_before);
    const Reached reached{room.keys[last], mass_before + room.through[last]};
    __syncthreads();
    return reached;
}

// --- Jobs --------------------------------------------------------------------

// The token of a draw from a sorted list of which all or the first may be drawn.
DEVICE u32 pick_listed(const Job& at, u32 count, const Tally& tally) {
    Room& room = at.room;
    weigh(at, count);
    u64 mass = is_counted(at.job, tally) ? room.through[count - 1] : tally.weighed;
    if (at.job.top_p < 1.0f) {
        count = place_of(room, count, share_of(at.job.top_p, mass)) + 1;
        mass = room.through[count - 1];
    }
    return token_of(room.keys[place_of(room, count, target_of(at.job.uniform, mass))]);
}

// The token of a draw from more tokens than can be listed.
DEVICE u32 pick_reached(const Job& at, const Tally& tally) {
    u64 mass = tally.weighed;
    if (is_counted(at.job, tally)) mass = reach(at, false, at.job.top_k).mass;
    if (at.job.top_p < 1.0f) mass = reach(at, true, share_of(at.job.top_p, mass)).mass;
    return token_of(reach(at, true, target_of(at.job.uniform, mass)).key);
}

// Lists the job's tokens, as many as it may need, in order. Gives how many, or
// NONE where they are too many.
DEVICE u32 sorted_list(const Job& at, const Tally& tally) {
    Room& room = at.room;
    const Cut cut = cut_of(at.job, tally, room.bins);
    const u32 wanted = at.job.top_k;
    u32 count;
    if (cut.count <= LISTED) {
        count = static_cast<u32>(cut.count);
        const u64* listed = at.args.listed + static_cast<size_t>(blockIdx.x) * LISTED;
        for (u32 i = threadIdx.x; i < count; i += THREADS) room.keys[i] = listed[i];
        __syncthreads();
    } else if (wanted > 0 && wanted <= LISTED) {
        // There are more than wanted, in the bin of the last of them.
        count = list(at, reach(at, false, wanted).key, ~0ull);
    } else {
        return NONE;
    }
    sort(room, count);
    return wanted > 0 ? min(count, wanted) : count;
}

// The token of a draw in the order of tokens, among all that are kept.
DEVICE u32 pick_by_token(const Job& at) {
    Room& room = at.room;
    const SampleArgs& args = at.args;
    const bool floored = at.job.kind == BY_TOKEN_FLOORED;
    const SamplePart* parts = args.parts + static_cast<size_t>(blockIdx.x) * args.slices;
    const double inverse_temperature = at.filter.inverse_temperature;
    if (threadIdx.x < args.slices) {
        const SamplePart part = parts[threadIdx.x];
        double scaled = static_cast<double>(part.mass);
        if (part.mass > 0 && !floored) {
            scaled *= weight_of(logit_of(part.best), at.filter.largest, inverse_temperature);
        }
        room.scaled[threadIdx.x] = scaled;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (u32 slice = 0; slice < args.slices; slice++) total += room.scaled[slice];
        const double target = at.job.uniform * total;
        double before = 0, through = 0;
        u32 drawn = 0;
        for (u32 slice = 0; slice < args.slices; slice++) {
            if (room.scaled[slice] > 0.0) {
                drawn = slice;
                before = through;
                through += room.scaled[slice];
                if (target < through) break;
            }
        }
        const double rest = (target - before) / room.scaled[drawn];
        room.number = drawn;
        // Where in the slice, in its own masses; rounding does not leave it.
        const u64 mass = parts[drawn].mass;
        room.token = token_of(parts[drawn].best);
        room.wanted = target_of(min(max(rest, 0.0), 1.0), mass);
    }
    __syncthreads();
    const u32 slice = room.number;
    const u64 wanted = room.wanted;
    const float reference = floored ? at.filter.largest : logit_of(parts[slice].best);
    float values[HELD];
    load_slice(at.row, slice, values, room.staged);
    const float4* mine = stage(values, room);
    u64 before = 0;
#pragma unroll 1
    for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
        const float4 four = mine[chunk * THREADS];
        const float value[4] = {four.x, four.y, four.z, four.w};
        u64 masses[4], here = 0;
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const u32 token = token_at(slice, 4 * chunk + k);
            u64 mass = mass_of(weight_of(value[k], reference, inverse_temperature));
            if (floored && !at.filter.keeps(value[k], token, mass)) mass = 0;
            masses[k] = token < args.cols ? mass : 0;
            here += masses[k];
        }
        const u64 through = before + block_scan(here, room.bins.warps);
        u64 sum = through - here;
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            // True for one token of the slice.
            if (sum < wanted && wanted <= sum + masses[k]) room.token = token_at(slice, 4 * chunk + k);
            sum += masses[k];
        }
        before += block_sum(here, room.bins.warps);
    }
    __syncthreads();
    return room.token;
}

DEVICE u32 pick(const Job& at) {
    if (at.job.kind == LARGEST || !is_finite(at.filter.largest)) return at.filter.top;
    if (at.job.kind != BY_WEIGHT) return pick_by_token(at);
    const SampleBins& bins = at.args.bins[blockIdx.x];
    const Tally tally = tally_of(bins.counts, bins.masses, at.room.bins);
    const u32 count = sorted_list(at, tally);
    return count == NONE ? pick_reached(at, tally) : pick_listed(at, count, tally);
}

// The logarithm of the sum of the exponentials of a row, of which `job` are the
// scores.
DEVICE double normalizer_of(const SampleArgs& args, u32 job, Room& room) {
    const SamplePart* parts = args.parts + static_cast<size_t>(job) * args.slices;
    const float largest = logit_of(best_of(args, job, room.bins.warps));
    if (threadIdx.x < args.slices) {
        const SamplePart part = parts[threadIdx.x];
        double scaled = 0;
        if (part.mass == NO_MASS) {
            scaled = static_cast<double>(__uint_as_float(0x7FC00000u));
        } else if (part.mass > 0) {
            scaled = static_cast<double>(part.mass) * weight_of(logit_of(part.best), largest, 1.0);
        }
        room.scaled[threadIdx.x] = scaled;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        for (u32 slice = 0; slice < args.slices; slice++) sum += room.scaled[slice];
        room.scaled[0] = static_cast<double>(largest) + log(sum / ONE);
    }
    __syncthreads();
    const double normalizer = room.scaled[0];
    __syncthreads();
    return normalizer;
}

// Writes the most probable tokens of a row, and their log-probabilities.
DEVICE void report(const Job& at) {
    Room& room = at.room;
    const SampleBins& bins = at.args.bins[blockIdx.x];
    const double normalizer = normalizer_of(at.args, blockIdx.x, room);
    // Its list always fits.
    const u32 count = sorted_list(at, tally_of(bins.counts, bins.masses, room.bins));
    u32* tokens = at.args.reported + at.job.top_at;
    float* logprobs = reinterpret_cast<float*>(tokens + at.job.top_k);
    for (u32 i = threadIdx.x; i < min(count, LISTED); i += THREADS) {
        tokens[i] = token_of(room.keys[i]);
        logprobs[i] = static_cast<float>(static_cast<double>(logit_of(room.keys[i])) - normalizer);
    }
}

KERNEL(sample_pick, SampleArgs, 256, 2) {
    SHARED(room, Room);
    pdl_wait();
    pdl_trigger();
    const SampleJob& job = args.jobs[blockIdx.x];
    if (job.kind == SCORES && job.top_k == 0) return;
    const Job at{args, job, row_of(args, job), filter_of(job, best_of(args, blockIdx.x, room.bins.warps)), room};
    if (job.kind == SCORES) {
        report(at);
        return;
    }
    // Whatever logits hold, nobody is sent beyond the vocabulary.
    const u32 token = min(pick(at), args.cols - 1);
    if (threadIdx.x == 0) args.tokens[job.row] = token;
    if (job.scores != NONE) {
        const double normalizer = normalizer_of(args, job.scores, room);
        if (threadIdx.x == 0) {
            const float logit = args.logits[static_cast<size_t>(job.row) * args.stride + token];
            args.logprobs[job.row] = static_cast<float>(static_cast<double>(logit) - normalizer);
        }
    }
}
