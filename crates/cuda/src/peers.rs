//! Memory that other GPUs of this host read and write while kernels run: how a
//! rank offers it, how others of this process or another one reach it, and that
//! nobody loses what somebody still uses.

#![expect(unsafe_code, reason = "reaches other GPUs' memory, and words that a kernel writes meanwhile")]

use crate::gpu::{Gpu, GpuError};
use crate::memory::{Heap, Memory};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// What an offer takes on its way to another rank.
pub const OFFER_BYTES: usize = 16 + 16 + 16 + 8 + 8 + 1 + IPC_BYTES;
const IPC_BYTES: usize = 64;

/// Memory that is shared begins and ends with what CUDA maps: what lies beside it
/// would be shared, too.
const GRANULE_BYTES: usize = 2 << 20;

/// Where a kernel of this host boots from anew: the same in all its containers.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How others reach memory of a GPU. It means something on one host alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which host, since it was started.
    pub host: [u8; 16],
    /// Which process on it.
    pub process: [u8; 16],
    /// Which GPU, by its UUID.
    pub device: [u8; 16],
    /// Where the memory is, to the process.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
    /// CUDA's handle for other processes, where it gives one.
    pub ipc: Option<[u8; 64]>,
}

/// What of an offer the GPU alone knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The GPU's UUID.
    pub device: [u8; 16],
    /// CUDA's handle for other processes, where it gives one.
    pub ipc: Option<[u8; 64]>,
}

/// Memory of another GPU, as kernels of this one reach it until this is dropped.
pub trait Reached: Send + Sync {
    /// Where it begins.
    fn address(&self) -> u64;
}

impl Offer {
    /// Of memory of this process; `None` if the host does not say which it is.
    pub fn new(exposed: Exposed, address: u64, len: usize) -> Option<Self> {
        let Exposed { device, ipc } = exposed;
        Some(Self { host: host_id()?, process: process_id(), device, address, len: len as u64, ipc })
    }

    /// For the way to another rank.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.host, self.process, self.device].concat();
        bytes.extend(self.address.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.push(u8::from(self.ipc.is_some()));
        bytes.extend(self.ipc.unwrap_or([0; IPC_BYTES]));
        bytes
    }

    /// From another rank; `None` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (host, bytes) = bytes.split_first_chunk::<16>()?;
        let (process, bytes) = bytes.split_first_chunk::<16>()?;
        let (device, bytes) = bytes.split_first_chunk::<16>()?;
        let (address, bytes) = bytes.split_first_chunk::<8>()?;
        let (len, bytes) = bytes.split_first_chunk::<8>()?;
        let (has_ipc, bytes) = bytes.split_first()?;
        let ipc = <[u8; IPC_BYTES]>::try_from(bytes).ok()?;
        Some(Self {
            host: *host,
            process: *process,
            device: *device,
            address: u64::from_le_bytes(*address),
            len: u64::from_le_bytes(*len),
            ipc: match has_ipc {
                0 => None,
                1 => Some(ipc),
                _ => return None,
            },
        })
    }

    /// True if it is of the calling process.
    pub fn is_own(&self) -> bool {
        host_id() == Some(self.host) && self.process == process_id()
    }
}

/// Which host this is, if it says so.
fn host_id() -> Option<[u8; 16]> {
    static HOST: OnceLock<Option<[u8; 16]>> = OnceLock::new();
    *HOST.get_or_init(|| {
        let text = std::fs::read_to_string(BOOT_ID).ok()?;
        let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let bytes: Vec<u8> =
            digits.as_chunks::<2>().0.iter().map(|[high, low]| (high << 4 | low) as u8).collect();
        <[u8; 16]>::try_from(bytes).ok()
    })
}

/// Which process this is: a number of its own would come again in another container.
fn process_id() -> [u8; 16] {
    static PROCESS: OnceLock<[u8; 16]> = OnceLock::new();
    *PROCESS.get_or_init(|| {
        let draw = || u128::from(RandomState::new().hash_one(std::process::id()));
        (draw() << 64 | draw()).to_le_bytes()
    })
}

/// Memory that is offered. Whoever of this process reaches it keeps it.
pub(crate) struct Exported {
    memory: Memory,
    offer: Offer,
}

fn exports() -> MutexGuard<'static, Vec<(u64, Weak<Exported>)>> {
    static EXPORTS: Mutex<Vec<(u64, Weak<Exported>)>> = Mutex::new(Vec::new());
    EXPORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Exported {
    /// Bytes that it takes of the GPU to offer `len`.
    pub(crate) fn room(len: usize) -> usize {
        len.next_multiple_of(GRANULE_BYTES)
    }

    /// New memory of at least `len` bytes, to be offered.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, heap: &Arc<Heap>, len: usize) -> Result<Arc<Self>, GpuError> {
        let memory = heap.alloc(Self::room(len))?;
        let exposed = gpu.expose(memory.address())?;
        let offer = Offer::new(exposed, memory.address(), memory.len());
        let offer = offer.ok_or_else(|| unreachable(format!("{BOOT_ID} does not say which host this is")))?;
        let exported = Arc::new(Self { memory, offer });
        exports().push((exported.address(), Arc::downgrade(&exported)));
        Ok(exported)
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    pub(crate) fn offer(&self) -> &Offer {
        &self.offer
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // Before the memory goes, whose address another may then have.
        let address = self.memory.address();
        exports().retain(|(exported, _)| *exported != address);
    }
}

/// Memory of another rank; it stays until what is enqueued here is done.
pub(crate) struct Peer {
    address: u64,
    /// Taken when it is dropped.
    kept: Option<Kept>,
    heap: Arc<Heap>,
}

struct Kept {
    _reached: Box<dyn Reached>,
    /// Of this process.
    _exported: Option<Arc<Exported>>,
}

impl Peer {
    /// Reaches what another rank offers.
    pub(crate) fn reach(gpu: &Arc<dyn Gpu>, heap: &Arc<Heap>, offer: &Offer) -> Result<Self, GpuError> {
        if host_id() != Some(offer.host) {
            return Err(unreachable("its memory is on another host".to_owned()));
        }
        let exported = match offer.is_own() {
            true => {
                let found =
                    exports().iter().find(|(address, _)| *address == offer.address).map(|(_, it)| it.clone());
                let found = found.and_then(|found| found.upgrade()).filter(|found| found.offer == *offer);
                Some(found.ok_or_else(|| unreachable("its memory is gone".to_owned()))?)
            }
            false => None,
        };
        // SAFETY: memory of this process is kept, and that of another one stays until
        // its owner knows that this rank has let go.
        let reached = unsafe { gpu.reach(offer) }?;
        let address = reached.address();
        let kept = Some(Kept { _reached: reached, _exported: exported });
        Ok(Self { address, kept, heap: Arc::clone(heap) })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.heap.drop_later(Box::new(kept));
        }
    }
}

/// Why there is no way between GPUs.
pub(crate) fn unreachable(reason: String) -> GpuError {
    GpuError::Unreachable { reason }
}

/// Words in the host's memory that kernels read and write while they run, 0 at first.
pub(crate) struct HostWords {
    memory: Memory,
    count: usize,
}

impl HostWords {
    pub(crate) fn new(heap: &Arc<Heap>, count: usize) -> Result<Self, GpuError> {
        let memory = heap.alloc_host(count * size_of::<u32>())?;
        let words = Self { memory, count };
        (0..count).for_each(|index| words.set(index, 0));
        Ok(words)
    }

    /// Where they are, to a kernel.
    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    pub(crate) fn get(&self, index: usize) -> u32 {
        self.word(index).load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, index: usize, value: u32) {
        self.word(index).store(value, Ordering::Release);
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count, "one of {} words", self.count);
        let first = self.memory.address() as *const AtomicU32;
        // SAFETY: the host's memory has the same address for both, it lives as long as
        // this, it has as many words, and everybody uses them as atomic ones.
        unsafe { &*first.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_come_over_as_they_were() {
        let offer = Offer {
            host: [1; 16],
            process: [2; 16],
            device: [3; 16],
            address: 0x7f00_1234_0000,
            len: 10 << 20,
            ipc: Some([4; IPC_BYTES]),
        };
        for offer in [offer, Offer { ipc: None, ..offer }] {
            let mut bytes = offer.to_bytes();
            assert_eq!((bytes.len(), Offer::from_bytes(&bytes)), (OFFER_BYTES, Some(offer)));
            assert_eq!(Offer::from_bytes(&bytes[1..]), None);
            bytes.push(0);
            assert_eq!(Offer::from_bytes(&bytes), None);
            bytes.pop();
            bytes[64] = 2;
            assert_eq!(Offer::from_bytes(&bytes), None);
        }
    }

    #[test]
    fn a_process_knows_itself() {
        let Some(offer) = Offer::new(Exposed { device: [0; 16], ipc: None }, 0, 0) else { return };
        assert!(offer.is_own());
        assert!(!Offer { process: [0; 16], ..offer }.is_own());
        assert!(!Offer { host: [0; 16], ..offer }.is_own());
    }
}
