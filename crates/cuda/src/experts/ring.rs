//! Experts on their way to the GPU for one call: while a layer with many rows
//! computes, those of the next one that lie with the host are copied.
//!
//! There are two halves. A copy into one begins when the last kernels that read
//! it are done, and a call waits for the copy that it reads.

use super::table::{Counted, Kind, Table};
use crate::gpu::{GpuError, Point, Transfer};
use crate::memory::Memory;
use crate::stream::Stream;
use std::cmp::Reverse;

/// Room on the GPU for experts of two layers.
pub(super) struct Ring {
    memory: Memory,
    expert_bytes: usize,
    /// Experts that a half has room for.
    capacity: usize,
    halves: [Half; 2],
    /// The half that was read last.
    last: usize,
}

#[derive(Default)]
struct Half {
    brought: Option<Brought>,
    /// Behind the last kernels that read it.
    read: Option<Point>,
}

/// What is in a half.
struct Brought {
    table: u64,
    /// Indices of experts, and where they are.
    experts: Vec<(usize, u64)>,
    /// Behind the copies.
    done: Point,
}

impl Ring {
    pub(super) fn new(memory: Memory, expert_bytes: usize) -> Self {
        let capacity = memory.len() / expert_bytes / 2;
        Self { memory, expert_bytes, capacity, halves: Default::default(), last: 1 }
    }

    /// Begins to copy a layer's experts beside what is computed, behind `after` and
    /// all that reads what is overwritten. Gives the point behind the copies, if
    /// there are any that were not begun before.
    pub(super) fn bring(
        &mut self,
        stream: &mut Stream,
        (table, counted): (&Table, &Counted),
        after: Point,
    ) -> Result<Option<Point>, GpuError> {
        if self.half_of(counted.id).is_some() {
            return Ok(None);
        }
        // What was read last may be read again; the other was read before.
        let index = 1 - self.last;
        let half = &mut self.halves[index];
        let after = half.read.map_or(after, |read| read.max(after));
        let mut hosted: Vec<(u32, usize, u64)> = Vec::new();
        for (index, expert) in table.experts.iter().enumerate() {
            let (from, kind) = expert.place();
            if kind == Kind::Host {
                hosted.push((expert.state().heat, index, from));
            }
        }
        // Where there is no room for all, for those that are read most.
        hosted.sort_unstable_by_key(|&(heat, index, _)| (Reverse(heat), index));
        hosted.truncate(self.capacity);
        let begin = self.memory.address() + (index * self.capacity * self.expert_bytes) as u64;
        let to = |place: usize| begin + (place * self.expert_bytes) as u64;
        let transfers: Vec<Transfer> = hosted
            .iter()
            .enumerate()
            .map(|(place, &(_, _, from))| Transfer { from, to: to(place), len: self.expert_bytes })
            .collect();
        let done = stream.copy_aside(after, &transfers)?;
        let experts = hosted.iter().enumerate().map(|(place, &(_, index, _))| (index, to(place))).collect();
        half.brought = Some(Brought { table: counted.id, experts, done });
        Ok(Some(done))
    }

    /// Lets what is queued from now on read a layer's experts that were brought;
    /// gives where they are.
    pub(super) fn enter(
        &mut self,
        stream: &mut Stream,
        counted: &Counted,
    ) -> Result<Vec<(usize, u64)>, GpuError> {
        let Some(index) = self.half_of(counted.id) else { return Ok(Vec::new()) };
        self.last = index;
        match &self.halves[index].brought {
            Some(brought) => {
                stream.follow(brought.done)?;
                Ok(brought.experts.clone())
            }
            None => Ok(Vec::new()),
        }
    }

    /// All that reads what was entered last is queued.
    pub(super) fn leave(&mut self, stream: &mut Stream) -> Result<(), GpuError> {
        self.halves[self.last].read = Some(stream.point()?);
        Ok(())
    }

    /// Others lie with the host now: what was brought is brought anew.
    pub(super) fn forget(&mut self) {
        for half in &mut self.halves {
            half.brought = None;
        }
    }

    fn half_of(&self, table: u64) -> Option<usize> {
        let has = |half: &Half| half.brought.as_ref().is_some_and(|brought| brought.table == table);
        self.halves.iter().position(has)
    }
}
