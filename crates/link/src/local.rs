//! Ranks that are threads of one process: frames pass through bounded queues
//! in memory, one for each pair and direction.

use crate::endings::Endings;
use crate::transport::{Fault, Frame, Transport};
use chorale_plan::Rank;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Frames that wait in a queue. Ranks run in step, so more than one layer's
/// never wait unless a rank is lost.
const MAX_FRAMES: usize = 8;

/// Connects `num_ranks` ranks with each other. A rank that hears nothing for
/// `timeout` gives up.
pub fn local(num_ranks: u32, timeout: Duration) -> Vec<LocalTransport> {
    let num_lanes = num_ranks as usize * num_ranks as usize;
    let world = Arc::new(World {
        num_ranks,
        lanes: (0..num_lanes).map(|_| Lane::default()).collect(),
        is_over: AtomicBool::new(false),
        endings: Endings::default(),
    });
    let transport = |rank| LocalTransport { world: Arc::clone(&world), rank, timeout };
    (0..num_ranks).map(transport).collect()
}

/// A rank's connections with the other ranks of its process. Dropping it breaks
/// them for the others, after what it has sent.
#[derive(Debug)]
pub struct LocalTransport {
    world: Arc<World>,
    rank: u32,
    timeout: Duration,
}

/// Ends the epoch for all ranks of a process: whoever waits stops waiting.
#[derive(Clone, Debug)]
pub struct LocalAbort(Arc<World>);

#[derive(Debug)]
struct World {
    num_ranks: u32,
    /// From each rank to each.
    lanes: Vec<Lane>,
    is_over: AtomicBool,
    endings: Endings,
}

/// A queue of one direction.
#[derive(Debug, Default)]
struct Lane {
    state: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// One of the two has gone.
    is_closed: bool,
}

impl LocalTransport {
    /// What ends the epoch.
    pub fn abort_handle(&self) -> LocalAbort {
        LocalAbort(Arc::clone(&self.world))
    }

    fn lane(&self, from: u32, to: u32) -> Result<&Lane, Fault> {
        let (other, num_ranks) = (if from == self.rank { to } else { from }, self.world.num_ranks);
        if from >= num_ranks || to >= num_ranks {
            return Err(Fault::Broken { rank: Rank(other), reason: "there is no such rank".to_owned() });
        }
        Ok(&self.world.lanes[from as usize * num_ranks as usize + to as usize])
    }

    /// Waits until `ready` gives something, the epoch is over, or time is up.
    fn wait<T>(
        &self,
        lane: &Lane,
        other: Rank,
        mut ready: impl FnMut(&mut Queue) -> Option<T>,
    ) -> Result<T, Fault> {
        let deadline = Instant::now() + self.timeout;
        let mut queue = lock(&lane.state);
        loop {
            if self.world.is_over.load(Ordering::Acquire) {
                return Err(Fault::Over);
            }
            if let Some(value) = ready(&mut queue) {
                return Ok(value);
            }
            if queue.is_closed {
                return Err(Fault::Broken { rank: other, reason: "it has gone".to_owned() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::Timeout { rank: other, waited: self.timeout });
            }
            let waited = lane.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Transport for LocalTransport {
    fn send(&mut self, to: Rank, frame: Frame) -> Result<(), Fault> {
        let lane = self.lane(self.rank, to.0)?;
        let mut frame = Some(frame);
        self.wait(lane, to, |queue| {
            let is_taken = queue.frames.len() < MAX_FRAMES && !queue.is_closed;
            if is_taken {
                queue.frames.extend(frame.take());
            }
            is_taken.then_some(())
        })?;
        lane.changed.notify_all();
        Ok(())
    }

    fn receive(&mut self, from: Rank) -> Result<Frame, Fault> {
        let lane = self.lane(from.0, self.rank)?;
        let frame = self.wait(lane, from, |queue| queue.frames.pop_front())?;
        lane.changed.notify_all();
        Ok(frame)
    }

    fn broken(&self) -> Option<Fault> {
        if self.world.is_over.load(Ordering::Acquire) {
            return Some(Fault::Over);
        }
        let gone = |&other: &u32| {
            let lane = self.lane(other, self.rank);
            other != self.rank && lane.is_ok_and(|lane| lock(&lane.state).is_closed)
        };
        let rank = Rank((0..self.world.num_ranks).find(gone)?);
        Some(Fault::Broken { rank, reason: "it has gone".to_owned() })
    }

    fn at_end(&mut self, then: Box<dyn FnOnce() + Send>) {
        self.world.endings.add(then);
    }
}

impl Drop for LocalTransport {
    fn drop(&mut self) {
        for other in 0..self.world.num_ranks {
            for (from, to) in [(self.rank, other), (other, self.rank)] {
                if let Ok(lane) = self.lane(from, to) {
                    lock(&lane.state).is_closed = true;
                    lane.changed.notify_all();
                }
            }
        }
    }
}

impl LocalAbort {
    /// Everything that waits, or will, ends with [`Fault::Over`].
    pub fn abort(&self) {
        self.0.is_over.store(true, Ordering::Release);
        for lane in &self.0.lanes {
            // Whoever has looked at the flag before it was set waits by now.
            drop(lock(&lane.state));
            lane.changed.notify_all();
        }
        self.0.endings.end();
    }
}

fn lock(state: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use chorale_plan::Epoch;

    fn frame(exchange: u32) -> Frame {
        Frame { epoch: Epoch(1), step: 2, exchange, payload: Bytes::from_static(b"rows") }
    }

    fn pair(timeout_ms: u64) -> (LocalTransport, LocalTransport) {
        let mut both = local(2, Duration::from_millis(timeout_ms));
        let second = both.remove(1);
        (both.remove(0), second)
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let (mut first, mut second) = pair(1000);
        first.send(Rank(1), frame(0)).unwrap();
        first.send(Rank(1), frame(1)).unwrap();
        assert_eq!(second.receive(Rank(0)), Ok(frame(0)));
        assert_eq!(second.receive(Rank(0)), Ok(frame(1)));
    }

    #[test]
    fn silence_and_a_full_queue_name_the_other_rank() {
        let (mut first, _second) = pair(10);
        let waited = Duration::from_millis(10);
        assert_eq!(first.receive(Rank(1)), Err(Fault::Timeout { rank: Rank(1), waited }));
        for exchange in 0..MAX_FRAMES as u32 {
            first.send(Rank(1), frame(exchange)).unwrap();
        }
        assert_eq!(first.send(Rank(1), frame(9)), Err(Fault::Timeout { rank: Rank(1), waited }));
    }

    #[test]
    fn a_rank_that_goes_breaks_its_connections_after_what_it_sent() {
        let (mut first, second) = pair(1000);
        let mut second = second;
        second.send(Rank(0), frame(0)).unwrap();
        drop(second);
        assert_eq!(first.receive(Rank(1)), Ok(frame(0)));
        assert!(matches!(first.receive(Rank(1)), Err(Fault::Broken { rank: Rank(1), .. })));
        assert!(matches!(first.send(Rank(1), frame(1)), Err(Fault::Broken { rank: Rank(1), .. })));
        assert!(matches!(first.receive(Rank(7)), Err(Fault::Broken { rank: Rank(7), .. })));
    }

    #[test]
    fn the_end_of_the_epoch_wakes_who_waits() {
        let (mut first, second) = pair(60_000);
        let abort = second.abort_handle();
        let waiting = std::thread::spawn(move || first.receive(Rank(1)));
        abort.abort();
        assert_eq!(waiting.join().unwrap(), Err(Fault::Over));
    }
}
