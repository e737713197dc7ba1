//! What this machine has to offer: memory, and how fast it is read. Decoding
//! reads weights and does little else, so the rate is a rank's speed.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Larger than any cache's share of a thread, small enough to be read in some milliseconds.
const BYTES_EACH: usize = 32 << 20;
/// The best of these: others may be using the machine.
const NUM_RUNS: usize = 3;

/// Bytes a second that so many threads read together.
pub(crate) fn memory_bytes_per_s(num_threads: usize) -> u64 {
    let buffers: Vec<Vec<u64>> = (0..num_threads).map(|index| vec![index as u64; BYTES_EACH / 8]).collect();
    let best = (0..NUM_RUNS).map(|_| read(&buffers)).min().unwrap_or(Duration::MAX);
    ((num_threads * BYTES_EACH) as f64 / best.as_secs_f64().max(1e-9)) as u64
}

fn read(buffers: &[Vec<u64>]) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for buffer in buffers {
            scope.spawn(|| black_box(buffer.iter().fold(0, |sum: u64, word| sum ^ word)));
        }
    });
    started.elapsed()
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_read_at_a_rate_that_can_be() {
        let rate = super::memory_bytes_per_s(1);
        assert!((100_000_000..10_000_000_000_000).contains(&rate), "{rate} bytes a second");
    }
}
