//! Rows that came to each expert: counted on the GPU, and fetched now and then.

use chorale_cuda::{Arriving, Buffer, Cuda, GpuError};
use chorale_link::Loads;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often counts are fetched.
const INTERVAL: Duration = Duration::from_secs(1);

/// Counts of the GPU, and what the host knows of them.
pub(crate) struct Counted {
    loads: Arc<Loads>,
    num_experts: usize,
    /// u32, by layer and expert.
    counts: Buffer,
    /// As they were last fetched: they count in 32 bits.
    last: Vec<u32>,
    totals: Vec<u64>,
    arriving: Option<Arriving>,
    fetched: Instant,
}

impl Counted {
    pub(crate) fn new(device: &mut Cuda, num_layers: usize, num_experts: usize) -> Result<Self, GpuError> {
        let len = num_layers * num_experts;
        Ok(Self {
            loads: Arc::new(Loads::new(num_layers, num_experts)),
            num_experts,
            counts: device.buffer_of(&vec![0; len * size_of::<u32>()])?,
            last: vec![0; len],
            totals: vec![0; len],
            arriving: None,
            fetched: Instant::now(),
        })
    }

    /// Where the GPU counts.
    pub(crate) fn counts(&self) -> &Buffer {
        &self.counts
    }

    /// As they were last fetched.
    pub(crate) fn loads(&self) -> &Arc<Loads> {
        &self.loads
    }

    /// Waits for all that is computed, and fetches the counts.
    pub(crate) fn fetch(&mut self, device: &mut Cuda) -> Result<(), GpuError> {
        self.arriving = None;
        let bytes = device.begin_read_buffer(&self.counts, self.bytes())?()?;
        self.add(&bytes);
        Ok(())
    }

    /// Takes what was asked for a while ago, and asks again: nobody waits.
    pub(crate) fn keep(&mut self, device: &mut Cuda) -> Result<(), GpuError> {
        if self.fetched.elapsed() < INTERVAL {
            return Ok(());
        }
        self.fetched = Instant::now();
        if let Some(arriving) = self.arriving.take() {
            let bytes = arriving()?;
            self.add(&bytes);
        }
        self.arriving = Some(device.begin_read_buffer(&self.counts, self.bytes())?);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.last.len() * size_of::<u32>()
    }

    fn add(&mut self, bytes: &[u8]) {
        let counts = bytes.as_chunks::<4>().0.iter().map(|count| u32::from_le_bytes(*count));
        for ((count, last), total) in counts.zip(&mut self.last).zip(&mut self.totals) {
            *total += u64::from(count.wrapping_sub(*last));
            *last = count;
        }
        for (layer, totals) in self.totals.chunks(self.num_experts).enumerate() {
            self.loads.set(layer, totals.iter().copied());
        }
    }
}
