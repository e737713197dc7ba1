//! Where the experts of a layer lie, for the host and for the kernels.

use super::packed::Slot;
use crate::gpu::GpuError;
use crate::memory::Memory;
use crate::stream::Stream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where an expert lies, as kernels are told; `KINDS` in kernels/count_experts.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// On the GPU.
    Gpu = 0,
    /// With the host: it is read over the bus.
    Host = 1,
    /// With the host, and copied to the GPU for this call.
    Streamed = 2,
}

/// How many kinds there are.
pub(super) const KINDS: usize = 3;

/// One expert's weights, wherever they lie.
pub(super) struct Expert {
    state: Mutex<State>,
}

/// What changes about an expert.
pub(super) struct State {
    pub(super) slot: Slot,
    pub(super) heat: u32,
    /// Set while it is copied to another slot.
    pub(super) is_moving: bool,
}

impl Expert {
    pub(super) fn new(slot: Slot) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { slot, heat: 0, is_moving: false }) })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its address, and what that is.
    pub(super) fn place(&self) -> (u64, Kind) {
        let state = self.state();
        (state.slot.address(), if state.slot.is_on_gpu() { Kind::Gpu } else { Kind::Host })
    }
}

/// The experts of a layer in order, and their places as kernels see them.
pub(super) struct Table {
    pub(super) experts: Vec<Arc<Expert>>,
    memory: Memory,
    /// None if all stay where they are.
    pub(super) counted: Option<Counted>,
}

/// What a table has whose experts change places.
pub(super) struct Counted {
    /// No other table has it.
    pub(super) id: u64,
    /// The layer's number among those that were loaded.
    pub(super) order: usize,
    /// What kernels count, in the slab of all layers.
    pub(super) counts: Slot,
    /// A table for calls whose experts are streamed.
    streamed: Memory,
    written: Mutex<Written>,
}

/// What the GPU was told, and what it told.
#[derive(Default)]
struct Written {
    places: Vec<(u64, Kind)>,
    counts: Vec<u32>,
}

impl Table {
    /// A table on the GPU.
    pub(super) fn new(
        stream: &mut Stream,
        experts: Vec<Arc<Expert>>,
        counted: Option<(u64, usize, Slot)>,
    ) -> Result<Arc<Self>, GpuError> {
        let bytes = experts.len() * (size_of::<u64>() + size_of::<u32>());
        let memory = stream.alloc(bytes)?;
        let counted = match counted {
            None => None,
            Some((id, order, counts)) => {
                let zeros = vec![0; (experts.len() + KINDS) * size_of::<u32>()];
                stream.upload(&zeros, counts.slab().memory(), counts.offset())?;
                let written = Mutex::default();
                Some(Counted { id, order, counts, streamed: stream.alloc(bytes)?, written })
            }
        };
        let table = Self { experts, memory, counted };
        table.write(stream)?;
        Ok(Arc::new(table))
    }

    /// Where the addresses lie, for kernels; behind them, the kinds.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Tells the GPU where the experts lie now, if it was told otherwise. Work that
    /// is queued later reads it.
    pub(super) fn write(&self, stream: &mut Stream) -> Result<(), GpuError> {
        let places: Vec<(u64, Kind)> = self.experts.iter().map(|expert| expert.place()).collect();
        if let Some(counted) = &self.counted {
            let mut written = counted.written();
            if written.places == places {
                return Ok(());
            }
            written.places.clone_from(&places);
        }
        stream.upload(&bytes(&places), &self.memory, 0)
    }

    /// Writes the table of a call for which some experts lie at other addresses;
    /// gives where it lies.
    pub(super) fn write_streamed(
        &self,
        stream: &mut Stream,
        counted: &Counted,
        streamed: &[(usize, u64)],
    ) -> Result<u64, GpuError> {
        let mut places: Vec<(u64, Kind)> = self.experts.iter().map(|expert| expert.place()).collect();
        for &(index, address) in streamed {
            // What has come to the GPU since is read there.
            if places[index].1 == Kind::Host {
                places[index] = (address, Kind::Streamed);
            }
        }
        stream.upload(&bytes(&places), &counted.streamed, 0)?;
        Ok(counted.streamed.address())
    }
}

impl Counted {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kernels have counted since the last time, of all that they counted.
    pub(super) fn news(&self, counts: Vec<u32>) -> Vec<u32> {
        let mut written = self.written();
        let before = std::mem::replace(&mut written.counts, counts);
        let before = before.into_iter().chain(std::iter::repeat(0));
        written.counts.iter().zip(before).map(|(now, before)| now.wrapping_sub(before)).collect()
    }
}

fn bytes(places: &[(u64, Kind)]) -> Vec<u8> {
    let addresses = places.iter().flat_map(|&(address, _)| address.to_le_bytes());
    let kinds = places.iter().flat_map(|&(_, kind)| (kind as u32).to_le_bytes());
    addresses.chain(kinds).collect()
}
