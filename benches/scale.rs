//! What a cluster would do on hardware that is not at hand: the step of
//! gpt-oss-120b on 1, 8, 16 and 64 ranks, from bytes, bandwidths and latencies.
//! No clock is read here; every constant says where it comes from.
//!
//! One rank holds `experts / ranks` experts and runs the attention of its own
//! sequences (data parallel, a group is one rank). Per layer rows go out to the
//! experts and come home; the step waits for the slowest of both, once without
//! overlap and once with two halves of the batch that hide each other's exchange.

#![expect(clippy::print_stdout, reason = "the figures are the output")]

const LAYERS: f64 = 36.0;
const HIDDEN: f64 = 2880.0;
const EXPERTS: f64 = 128.0;
const TOP_K: f64 = 4.0;
/// gate, up and down of one expert at 4.25 bit.
const EXPERT_BYTES: f64 = 24_883_200.0 * 4.25 / 8.0;
/// Attention of all layers, bf16, and the output matrix.
const DENSE_BYTES: f64 = LAYERS * 26_542_080.0 * 2.0 + 579_133_440.0 * 2.0;
/// Keys and values of one sequence at 1.5k tokens: 36,864 B a token in the full
/// layers, and a window of 128 in the sliding ones.
const KV_BYTES: f64 = 36_864.0 * 1536.0 + 4.72e6;
/// What an H100 delivers of its 3.35 TB/s, measured.
const MEMORY_BYTES_PER_S: f64 = 3.0e12;

/// What connects the ranks.
struct Network {
    name: &'static str,
    /// Of one rank, in each direction.
    bytes_per_s: f64,
    /// From one exchange's begin to the last row's arrival, without the bytes.
    latency_s: fn(ranks: f64) -> f64,
}

const NETWORKS: [Network; 2] = [
    // TCP through the kernel: 80 % of the line, and some 30 µs for a message
    // with its wakeups, which a rank's messages to several peers share.
    Network { name: "ethernet_100g", bytes_per_s: 0.8 * 12.5e9, latency_s: |ranks| 30e-6 + 1e-6 * ranks },
    // DeepEP's low-latency kernels over 400 Gb/s: 77, 118 and 173 µs for 128
    // tokens of 7168 bytes to 8, 16 and 64 ranks; what its bytes at 45 GB/s do
    // not explain.
    Network { name: "infiniband_400g", bytes_per_s: 45e9, latency_s: |ranks| 10e-6 + 6e-6 * ranks.log2() },
];

/// How rows are sent.
struct Format {
    name: &'static str,
    dispatch_bytes: f64,
    /// One row home for each choice, or one for each rank that was asked.
    combine_is_per_choice: bool,
}

const FORMATS: [Format; 3] = [
    Format { name: "exact", dispatch_bytes: 2.0 * HIDDEN, combine_is_per_choice: true },
    Format { name: "int8_dispatch", dispatch_bytes: HIDDEN + 4.0, combine_is_per_choice: true },
    Format { name: "int8_dispatch_fast_combine", dispatch_bytes: HIDDEN + 4.0, combine_is_per_choice: false },
];

/// Other ranks that one row goes to: choices are distinct experts, spread evenly.
fn remote_ranks(ranks: f64) -> f64 {
    let choose = |n: f64| n * (n - 1.0) * (n - 2.0) * (n - 3.0);
    let hit = 1.0 - choose(EXPERTS - EXPERTS / ranks) / choose(EXPERTS);
    (ranks - 1.0) * hit
}

/// Experts of all that a step of so many rows reads, at the most: even routing.
fn experts_hit(rows: f64) -> f64 {
    EXPERTS * (1.0 - (1.0 - TOP_K / EXPERTS).powf(rows))
}

/// Reading what a rank reads for a step of `batch` sequences at each rank.
fn compute_s(batch: f64, ranks: f64) -> f64 {
    let weights = DENSE_BYTES + LAYERS * experts_hit(batch * ranks) / ranks * EXPERT_BYTES;
    (weights + batch * KV_BYTES) / MEMORY_BYTES_PER_S
}

/// Rows out and home, of all layers.
fn exchange_s(batch: f64, ranks: f64, network: &Network, format: &Format) -> f64 {
    let choices_away = TOP_K * (1.0 - 1.0 / ranks);
    let home = if format.combine_is_per_choice { choices_away } else { remote_ranks(ranks) };
    let bytes = batch * (remote_ranks(ranks) * format.dispatch_bytes + home * 2.0 * HIDDEN);
    LAYERS * (2.0 * (network.latency_s)(ranks) + bytes / network.bytes_per_s)
}

fn main() {
    for batch in [1.0, 32.0, 128.0] {
        line(batch, 1.0, "none", "local", compute_s(batch, 1.0), None);
        for ranks in [8.0, 16.0, 64.0] {
            for network in &NETWORKS {
                for format in &FORMATS {
                    let serial_s = compute_s(batch, ranks) + exchange_s(batch, ranks, network, format);
                    // Each half reads the weights that it hits, dense ones both
                    // times; while one computes, the other's rows travel.
                    let half_s =
                        compute_s(batch / 2.0, ranks).max(exchange_s(batch / 2.0, ranks, network, format));
                    let overlapped_s = 2.0 * half_s;
                    line(batch, ranks, network.name, format.name, serial_s, Some(overlapped_s));
                }
            }
        }
    }
}

fn line(batch: f64, ranks: f64, network: &str, rows: &str, serial_s: f64, overlapped_s: Option<f64>) {
    let ms = |seconds: f64| (seconds * 1e5).round() / 100.0;
    let best_s = overlapped_s.map_or(serial_s, |overlapped_s| serial_s.min(overlapped_s));
    println!(
        "{{\"bench\":\"scale\",\"ranks\":{ranks},\"sequences_per_rank\":{batch},\"network\":\"{network}\",\"rows\":\"{rows}\",\
         \"step_ms\":{},\"step_overlapped_ms\":{},\"tokens_per_s_per_rank\":{}}}",
        ms(serial_s),
        overlapped_s.map_or("null".to_owned(), |seconds| ms(seconds).to_string()),
        (batch / best_s).round(),
    );
}
