//! A bounded queue of frames between a rank's thread, which blocks, and a task,
//! which awaits. One end pushes, the other pops; either may be either.

use crate::transport::{Fault, Frame};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Frames that wait. Ranks run in step, so more than one layer's never wait
/// unless a rank is lost.
const MAX_FRAMES: usize = 8;
/// Bytes that wait before there is no room for another frame, however large.
const MAX_BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    /// Wakes the thread.
    changed: Condvar,
    /// Wakes the task. There is one, so that nobody else takes its permit.
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    /// No frame will follow those that wait.
    is_closed: bool,
    /// Why it ended.
    fault: Option<Fault>,
}

impl State {
    fn has_room(&self) -> bool {
        let num_bytes: usize = self.frames.iter().map(|frame| frame.payload.len()).sum();
        self.frames.len() < MAX_FRAMES && num_bytes < MAX_BYTES
    }

    /// The next frame, or the end: without a fault if it was closed.
    fn take(&mut self) -> Option<Result<Frame, Option<Fault>>> {
        match &self.fault {
            Some(Fault::Over) => Some(Err(Some(Fault::Over))),
            fault => match self.frames.pop_front() {
                Some(frame) => Some(Ok(frame)),
                None if fault.is_some() => Some(Err(fault.clone())),
                None if self.is_closed => Some(Err(None)),
                None => None,
            },
        }
    }
}

impl Lane {
    /// For the thread. `Ok(false)` if there was no room in time.
    pub(super) fn push_blocking(&self, frame: Frame, deadline: Instant) -> Result<bool, Fault> {
        let mut frame = Some(frame);
        let pushed = self.wait(deadline, |state| match &state.fault {
            Some(fault) => Some(Err(fault.clone())),
            None if state.is_closed => Some(Err(Fault::Over)),
            None if state.has_room() => {
                state.frames.extend(frame.take());
                Some(Ok(()))
            }
            None => None,
        });
        self.woken.notify_one();
        pushed.transpose().map(|pushed| pushed.is_some())
    }

    /// For the thread. `Ok(None)` if nothing came in time.
    pub(super) fn pop_blocking(&self, deadline: Instant) -> Result<Option<Frame>, Fault> {
        let popped = self.wait(deadline, State::take);
        self.woken.notify_one();
        popped.transpose().map_err(|fault| fault.unwrap_or(Fault::Over))
    }

    fn wait<T>(&self, deadline: Instant, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// For the task. False if nobody will take the frame.
    pub(super) async fn push(&self, frame: Frame) -> bool {
        loop {
            {
                let mut state = self.lock();
                if state.fault.is_some() || state.is_closed {
                    return false;
                }
                if state.has_room() {
                    state.frames.push_back(frame);
                    self.changed.notify_all();
                    return true;
                }
            }
            self.woken.notified().await;
        }
    }

    /// For the task. `None` if no frame will come.
    pub(super) async fn pop(&self) -> Option<Frame> {
        loop {
            let taken = self.lock().take();
            if let Some(taken) = taken {
                self.changed.notify_all();
                return taken.ok();
            }
            self.woken.notified().await;
        }
    }

    /// No frame will follow those that wait.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
        self.woken.notify_one();
    }

    /// Ends it, for both. The first fault stays, but nothing outlives an epoch.
    pub(super) fn end(&self, fault: Fault) {
        let mut state = self.lock();
        if fault == Fault::Over {
            state.frames.clear();
        }
        if state.fault.is_none() || fault == Fault::Over {
            state.fault = Some(fault);
        }
        drop(state);
        self.changed.notify_all();
        self.woken.notify_one();
    }

    /// Why it ended, if it has.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.lock().fault.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use chorale_plan::{Epoch, Rank};
    use std::time::Duration;

    fn frame(exchange: u32) -> Frame {
        Frame { epoch: Epoch(1), step: 1, exchange, payload: Bytes::new() }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(10)
    }

    fn broken() -> Fault {
        Fault::Broken { rank: Rank(1), reason: "gone".to_owned() }
    }

    #[test]
    fn a_full_lane_and_an_empty_one_make_the_thread_wait_its_time() {
        let lane = Lane::default();
        assert_eq!(lane.pop_blocking(soon()), Ok(None));
        for exchange in 0..MAX_FRAMES as u32 {
            assert_eq!(lane.push_blocking(frame(exchange), soon()), Ok(true));
        }
        assert_eq!(lane.push_blocking(frame(99), soon()), Ok(false));
        assert_eq!(lane.pop_blocking(soon()), Ok(Some(frame(0))));
    }

    #[test]
    fn large_frames_wait_one_by_one() {
        let lane = Lane::default();
        let large = Frame { payload: vec![0; MAX_BYTES].into(), ..frame(0) };
        assert_eq!(lane.push_blocking(large.clone(), soon()), Ok(true));
        assert_eq!(lane.push_blocking(frame(1), soon()), Ok(false));
        assert_eq!(lane.pop_blocking(soon()), Ok(Some(large)));
        assert_eq!(lane.push_blocking(frame(1), soon()), Ok(true));
    }

    #[test]
    fn what_came_before_a_break_is_still_good() {
        let lane = Lane::default();
        lane.push_blocking(frame(0), soon()).unwrap();
        lane.end(broken());
        assert_eq!(lane.pop_blocking(soon()), Ok(Some(frame(0))));
        assert_eq!(lane.pop_blocking(soon()), Err(broken()));
        assert_eq!(lane.push_blocking(frame(1), soon()), Err(broken()));
    }

    #[test]
    fn nothing_outlives_the_epoch() {
        let lane = Lane::default();
        lane.push_blocking(frame(0), soon()).unwrap();
        lane.end(broken());
        lane.end(Fault::Over);
        assert_eq!(lane.pop_blocking(soon()), Err(Fault::Over));
    }

    #[tokio::test]
    async fn a_task_waits_for_room_and_for_frames() {
        let lane = std::sync::Arc::new(Lane::default());
        let pushing = {
            let lane = lane.clone();
            tokio::spawn(async move {
                for exchange in 0..100 {
                    assert!(lane.push(frame(exchange)).await);
                }
            })
        };
        let popping = {
            let lane = lane.clone();
            move || {
                (0..100)
                    .map(|_| lane.pop_blocking(Instant::now() + Duration::from_secs(5)).unwrap())
                    .collect::<Vec<_>>()
            }
        };
        let popped = tokio::task::spawn_blocking(popping).await.unwrap();
        assert_eq!(popped, (0..100).map(|exchange| Some(frame(exchange))).collect::<Vec<_>>());
        pushing.await.unwrap();
        lane.close();
        assert_eq!(lane.pop().await, None);
        assert!(!lane.push(frame(0)).await);
    }
}
