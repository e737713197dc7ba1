//! What this machine has to offer: memory, and how fast it is read. Decoding
//! reads weights and does little else, so the rate is a rank's speed.

use crate::serve::room::available_bytes;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Larger than any cache's share of a thread, small enough to be read in some milliseconds.
const BYTES_EACH: usize = 32 << 20;
/// All threads together need no more, whatever caches they have.
const BYTES_MAX: usize = 1 << 30;
/// It is also measured beside a model: where memory is short, that matters more.
const SPARE_TIMES: u64 = 4;
/// The best of these: others may be using the machine.
const NUM_RUNS: usize = 3;

/// Bytes a second that so many threads read together; `None` if memory is short.
pub(crate) fn memory_bytes_per_s(num_threads: usize) -> Option<u64> {
    let bytes_each = BYTES_EACH.min(BYTES_MAX / num_threads.max(1)) / 8 * 8;
    let bytes = num_threads * bytes_each;
    if available_bytes().is_some_and(|available| available < SPARE_TIMES * bytes as u64) {
        return None;
    }
    let buffers: Vec<Vec<u64>> = (0..num_threads).map(|index| vec![index as u64; bytes_each / 8]).collect();
    let best = (0..NUM_RUNS).map(|_| read(&buffers)).min().unwrap_or(Duration::MAX);
    Some((bytes as f64 / best.as_secs_f64().max(1e-9)) as u64)
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
        let rate = super::memory_bytes_per_s(1).unwrap();
        assert!((100_000_000..10_000_000_000_000).contains(&rate), "{rate} bytes a second");
    }
}
