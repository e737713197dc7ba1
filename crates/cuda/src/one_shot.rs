//! Small exchanges between GPUs that reach each other's memory: kernels send and
//! receive, and nothing else takes part. kernels/one_shot.cuh says how.
//!
//! Each rank has an [`Area`] that it offers to the others; with theirs it becomes a
//! [`Circle`]. An exchange is begun by what sends and ended by what receives, one
//! after the other in each of the circle's channels. All members make the same
//! calls. Nobody waits for ever: who waits in vain says for whom, and all that
//! follows fails at once.

mod exchanges;

pub use exchanges::Ways;

use crate::cuda::Cuda;
use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::memory::Memory;
use crate::peers::{Exported, HostWords, Offer, Peer, unreachable};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;
use std::time::Duration;

/// The most members of a circle.
const MAX_MEMBERS: usize = 16;
const TOKEN_BYTES: usize = 128;
const TOKENS_BYTES: usize = 2 * MAX_MEMBERS * TOKEN_BYTES;

/// Bytes that cross at a time; they take twice the room.
const UNIT_BYTES: usize = 16;
/// Units whose words lie together.
const LINE_UNITS: usize = 32;

/// An exchange's number shows in each word of it, and each number comes once: so
/// many exchanges, and the areas are to be cleared.
const RENEWAL: u32 = 1 << 31;

/// Of [`HostWords`].
const ABORT: usize = 0;
const FAILURE: usize = 1;
const FAILED_BY_SOMEBODY: u32 = 0xffff;
const FAILED_BY_ABORT: u32 = 0x1_0000;

const CLEAR: Kernel = Kernel { name: "one_shot_clear", threads: 256 };

/// State of a channel: numbers of its own that kernels count.
const STATE_BYTES: usize = 256;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinkArgs {
    areas: [u64; MAX_MEMBERS],
    state: u64,
    host: u64,
    timeout_ns: u64,
    slot_bytes: u64,
    member: u32,
    num_members: u32,
    shares_gpu: u32,
    pad: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ClearArgs {
    memory: u64,
    state: u64,
    num_words: u64,
}

/// Bytes of a slot that units take.
fn units_room(units: usize) -> usize {
    units.div_ceil(LINE_UNITS) * 2 * LINE_UNITS * UNIT_BYTES
}

/// Bytes of a channel in which at most `max_bytes` come to a member at a time.
fn channel_room(max_bytes: usize) -> usize {
    TOKENS_BYTES + 2 * slot_room(max_bytes)
}

fn slot_room(max_bytes: usize) -> usize {
    units_room(max_bytes.div_ceil(UNIT_BYTES))
}

/// Bytes of the GPU that an [`Area`] takes.
pub fn area_room(num_channels: usize, max_bytes: usize) -> usize {
    Exported::room(num_channels * channel_room(max_bytes)) + num_channels * STATE_BYTES
}

/// Where the others write to a rank.
pub struct Area {
    memory: Arc<Exported>,
    state: Memory,
    host: Arc<HostWords>,
    num_channels: usize,
    max_bytes: usize,
}

/// Keeps an area's memory for those of other processes who may still write to it.
#[derive(Clone)]
pub struct KeptArea {
    _memory: Arc<Exported>,
    bytes: usize,
}

/// Ranks that reach each other's areas, as one of them has it.
pub struct Circle {
    area: Area,
    /// By member; `None` for this one.
    _peers: Vec<Option<Peer>>,
    addresses: [u64; MAX_MEMBERS],
    member: usize,
    num_members: usize,
    /// Two members are queues of one GPU.
    shares_gpu: bool,
    timeout: Duration,
    /// Exchanges of each channel since it was cleared.
    numbers: Vec<u32>,
    renewal: u32,
}

/// Ends the exchanges of a circle from elsewhere. It does not keep the circle.
#[derive(Clone)]
pub struct CircleAbort(std::sync::Weak<HostWords>);

/// Tells, on any thread, whether exchanges of a circle have failed.
#[derive(Clone)]
pub struct CircleWatch(Arc<HostWords>);

/// Why exchanges failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A member did not send in time.
    Member(usize),
    /// Some member did not.
    Somebody,
    /// They were aborted.
    Aborted,
}

impl Area {
    /// An area of channels in each of which at most `max_bytes` come at a time. It
    /// is ready for others when this returns.
    ///
    /// # Errors
    ///
    /// [`GpuError::Unreachable`] where nobody could reach it.
    pub fn new(device: &mut Cuda, num_channels: usize, max_bytes: usize) -> Result<Self, GpuError> {
        let stream = &mut device.stream;
        let len = num_channels * channel_room(max_bytes);
        let area = Self {
            memory: Exported::new(stream.gpu(), stream.heap(), len)?,
            state: stream.alloc(num_channels * STATE_BYTES)?,
            host: Arc::new(HostWords::new(stream.heap(), 2)?),
            num_channels,
            max_bytes,
        };
        (0..num_channels).for_each(|channel| area.clear(device, channel));
        device.wait()?;
        Ok(area)
    }

    /// What the others need.
    pub fn offer(&self) -> &Offer {
        self.memory.offer()
    }

    /// The area's memory, to be kept when all else of it is gone.
    pub fn keep(&self) -> KeptArea {
        KeptArea { _memory: Arc::clone(&self.memory), bytes: self.memory.len() }
    }

    fn clear(&self, device: &mut Cuda, channel: usize) {
        let args = ClearArgs {
            memory: self.memory.address() + (channel * channel_room(self.max_bytes)) as u64,
            state: self.state.address() + (channel * STATE_BYTES) as u64,
            num_words: (channel_room(self.max_bytes) / UNIT_BYTES) as u64,
        };
        device.stream.launch(CLEAR, [64, 1, 1], 0, &args);
    }

    /// Makes a circle with the others' areas, all of the same size; `offers` are of
    /// all members in their order, this one's at `member`.
    ///
    /// # Errors
    ///
    /// [`GpuError::Unreachable`] says which member's memory this GPU does not reach.
    pub fn connect(
        self,
        device: &mut Cuda,
        member: usize,
        offers: &[Offer],
        timeout: Duration,
    ) -> Result<Circle, GpuError> {
        let num_members = offers.len();
        if num_members > MAX_MEMBERS {
            return Err(unreachable(format!("{num_members} ranks are too many, {MAX_MEMBERS} may be")));
        }
        let mut addresses = [0; MAX_MEMBERS];
        let mut peers = Vec::with_capacity(num_members);
        for (other, (offer, address)) in offers.iter().zip(&mut addresses).enumerate() {
            if other == member {
                *address = self.memory.address();
                peers.push(None);
                continue;
            }
            if offer.len != self.memory.len() as u64 {
                let reason = format!("member {other} offers {} bytes, not {}", offer.len, self.memory.len());
                return Err(unreachable(reason));
            }
            let peer = Peer::reach(device.stream.gpu(), device.stream.heap(), offer);
            let peer = peer.map_err(|error| match error {
                GpuError::Unreachable { reason } => unreachable(format!("member {other}: {reason}")),
                error => error,
            })?;
            *address = peer.address();
            peers.push(Some(peer));
        }
        let is_shared = |(index, offer): (usize, &Offer)| {
            offers[..index].iter().any(|other| (other.host, other.device) == (offer.host, offer.device))
        };
        Ok(Circle {
            _peers: peers,
            addresses,
            member,
            num_members,
            shares_gpu: offers.iter().enumerate().any(is_shared),
            timeout,
            numbers: vec![0; self.num_channels],
            renewal: RENEWAL,
            area: self,
        })
    }
}

impl KeptArea {
    /// Its bytes on the GPU.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Circle {
    /// How many members there are.
    pub fn num_members(&self) -> usize {
        self.num_members
    }

    /// The area, to be kept.
    pub fn keep(&self) -> KeptArea {
        self.area.keep()
    }

    /// What ends its exchanges from elsewhere.
    pub fn abort_handle(&self) -> CircleAbort {
        CircleAbort(Arc::downgrade(&self.area.host))
    }

    /// What tells whether they have failed.
    pub fn watch(&self) -> CircleWatch {
        CircleWatch(Arc::clone(&self.area.host))
    }

    /// True if a channel's area is to be cleared before its next exchange, by
    /// [`Self::renew`] while nobody is in one.
    pub fn is_worn(&self, channel: usize) -> bool {
        self.numbers[channel] >= self.renewal
    }

    /// Clears a channel: behind all exchanges of all members, and before any later one.
    pub fn renew(&mut self, device: &mut Cuda, channel: usize) {
        self.area.clear(device, channel);
        self.numbers[channel] = 0;
    }

    /// How long each exchange that is begun from now on may wait for a member.
    pub fn wait_at_most(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Lets channels wear out after so many exchanges.
    pub fn wear_out_after(&mut self, renewal: u32) {
        self.renewal = renewal.clamp(1, RENEWAL);
    }

    fn slot_bytes(&self) -> usize {
        slot_room(self.area.max_bytes)
    }

    fn args(&self, channel: usize) -> LinkArgs {
        assert!(channel < self.area.num_channels, "channel {channel} of {}", self.area.num_channels);
        let at = (channel * channel_room(self.area.max_bytes)) as u64;
        let here = &self.addresses[..self.num_members];
        let mut areas = [0; MAX_MEMBERS];
        areas.iter_mut().zip(here).for_each(|(area, address)| *area = address + at);
        LinkArgs {
            areas,
            state: self.area.state.address() + (channel * STATE_BYTES) as u64,
            host: self.area.host.address(),
            timeout_ns: u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX >> 1),
            slot_bytes: self.slot_bytes() as u64,
            member: self.member as u32,
            num_members: self.num_members as u32,
            shares_gpu: u32::from(self.shares_gpu),
            pad: 0,
        }
    }
}

impl Drop for Circle {
    /// What still waits waits for nothing.
    fn drop(&mut self) {
        self.area.host.set(ABORT, 1);
    }
}

impl CircleAbort {
    /// Ends what waits now and what comes later.
    pub fn abort(&self) {
        if let Some(host) = self.0.upgrade() {
            host.set(ABORT, 1);
        }
    }
}

impl CircleWatch {
    /// Why exchanges failed, if one did: what was computed since may be wrong.
    pub fn failure(&self) -> Option<Failure> {
        match self.0.get(FAILURE) {
            0 => None,
            FAILED_BY_SOMEBODY => Some(Failure::Somebody),
            FAILED_BY_ABORT.. => Some(Failure::Aborted),
            member => Some(Failure::Member(member as usize - 1)),
        }
    }

    /// Whether they were aborted: what was computed since may be wrong, too.
    pub fn is_aborted(&self) -> bool {
        self.0.get(ABORT) != 0
    }
}
