//! Experts that do not all fit the GPU: which lie there, which with the host, and
//! when they change places.
//!
//! Kernels take each expert's address from a table, and read what lies with the
//! host over the bus. So an expert may be anywhere as long as the table says
//! where: its weights are copied beside the running steps, and only when they
//! are there does the table change, between two steps. What a step gives does
//! not depend on it.

use super::counting::{self, EXPERTS_MAX};
use super::packed::{self, Layout, Slab, Slot};
use super::policy::{self, Candidate, Change, Limits};
use super::ring::Ring;
use super::room::{CHANGES_MAX, ExpertFill, ExpertRoom};
use super::table::{Counted, Expert, KINDS, Kind, Table};
use super::traffic::ExpertTraffic;
use crate::gpu::{Arriving, GpuError, Point, Transfer};
use crate::groups::Grouped;
use crate::stream::Stream;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};

/// Steps from one look at the counts to the next.
const ROUND_STEPS: u64 = 16;
/// Steps that counts have for their way to the host: more than are in flight at a
/// time, so that nobody waits for them.
const ARRIVAL_STEPS: u64 = 3;
/// Choices for each expert from which on a call's experts are streamed: six of
/// seven are read then, and a copy engine beside the kernels is faster than they.
const STREAMED_CHOICES: usize = 2;
/// Layers, perhaps several times, whose counts come to the host together.
const COUNTED_TABLES: usize = 64;

/// What experts were given to lie in.
#[derive(Clone, Copy, Debug)]
enum Given {
    Room(ExpertRoom),
    Fill(ExpertFill),
}

/// Where the experts of all layers lie.
pub(crate) struct Residency {
    given: Given,
    /// None if all are on the GPU.
    room: Option<ExpertRoom>,
    traffic: Arc<ExpertTraffic>,
    layout: Option<Layout>,
    gpu: Vec<Arc<Slab>>,
    host: Vec<Arc<Slab>>,
    /// What kernels count.
    counts: Vec<Arc<Slab>>,
    tables: Vec<Weak<Table>>,
    next_table: u64,
    ring: Option<Ring>,
    /// Copies under way, in order.
    moves: VecDeque<Move>,
    fetched: Option<Fetched>,
    steps: u64,
    /// Behind what was written when experts were loaded last.
    loaded: Option<Point>,
    /// Behind all copies beside the steps.
    copied: Option<Point>,
    /// Rows from which on calls like the last one are streamed.
    streamed_rows: usize,
    /// Whether somebody says when a step begins; else the order of the layers does.
    has_begins: bool,
    last_order: usize,
}

/// Experts that change places.
struct Move {
    /// Each with its next slot.
    experts: Vec<(Arc<Expert>, Slot)>,
    done: Point,
}

/// Counts on their way to the host.
struct Fetched {
    step: u64,
    counts: Vec<(Arc<Slab>, Arriving)>,
    /// What was counted.
    tables: Vec<Weak<Table>>,
}

/// A call that is about to be queued.
pub(super) struct Call {
    /// Where its table lies.
    pub(super) table: u64,
    is_streamed: bool,
}

impl Residency {
    pub(crate) fn fixed(room: ExpertRoom) -> Self {
        Self::new(Given::Room(room))
    }

    pub(crate) fn filling(fill: ExpertFill) -> Self {
        Self::new(Given::Fill(fill))
    }

    /// Whether experts take what memory is left, so that all else is made first.
    pub(crate) fn fills(&self) -> bool {
        matches!(self.given, Given::Fill(_))
    }

    fn new(given: Given) -> Self {
        Self {
            given,
            room: None,
            traffic: Arc::default(),
            layout: None,
            gpu: Vec::new(),
            host: Vec::new(),
            counts: Vec::new(),
            tables: Vec::new(),
            next_table: 0,
            ring: None,
            moves: VecDeque::new(),
            fetched: None,
            steps: 0,
            loaded: None,
            copied: None,
            streamed_rows: usize::MAX,
            has_begins: false,
            last_order: 0,
        }
    }

    pub(crate) fn traffic(&self) -> &Arc<ExpertTraffic> {
        &self.traffic
    }

    /// Slots for experts of the next layer, or of one that is held: on the GPU as
    /// far as its share, or what is left of all, goes.
    pub(super) fn take_slots(
        &mut self,
        stream: &mut Stream,
        layout: &Layout,
        held: Option<&Table>,
        count: usize,
    ) -> Result<Vec<Slot>, GpuError> {
        self.tables.retain(|table| table.strong_count() > 0);
        if self.tables.is_empty() {
            self.begin_model(stream, layout, count)?;
        }
        assert_eq!(self.layout, Some(*layout), "experts of one model");
        let Some(room) = self.room else {
            return packed::take_slots(stream, layout, held, count);
        };
        // Slots that are free may still be read by copies beside the steps.
        if let Some(copied) = self.copied {
            stream.follow(copied)?;
        }
        let share = held.map_or_else(|| room.share_of(self.next_order()), |_| count);
        let spares = room.spares();
        let capacity: usize = self.gpu.iter().map(|slab| slab.num_slots()).sum();
        let unused = num_free(&self.gpu).saturating_sub(spares);
        let num_gpu = share.min(count).min(unused + room.gpu_experts.saturating_sub(capacity));
        let new = num_gpu - unused.min(num_gpu);
        if new > 0 {
            self.gpu.push(Slab::new(stream.alloc(new * layout.bytes)?, layout.bytes));
        }
        let num_host = count - num_gpu;
        let new = num_host.saturating_sub(num_free(&self.host).saturating_sub(spares));
        if new > 0 {
            self.host.push(Slab::new(stream.alloc_host(new * layout.bytes)?, layout.bytes));
        }
        let gpu = self.gpu.iter().rev().flat_map(|slab| std::iter::from_fn(|| slab.take())).take(num_gpu);
        let host = self.host.iter().rev().flat_map(|slab| std::iter::from_fn(|| slab.take())).take(num_host);
        Ok(gpu.chain(host).collect())
    }

    /// What a model has that none was loaded of before.
    fn begin_model(&mut self, stream: &mut Stream, layout: &Layout, count: usize) -> Result<(), GpuError> {
        let traffic = Arc::clone(&self.traffic);
        *self = Self {
            traffic,
            has_begins: self.has_begins,
            next_table: self.next_table,
            ..Self::new(self.given)
        };
        self.layout = Some(*layout);
        self.room = match self.given {
            Given::Room(room) => Some(room),
            Given::Fill(fill) => fill.room(count, layout.bytes, stream.free_bytes()?)?,
        };
        let Some(room) = self.room else { return Ok(()) };
        let gib = |experts: usize| (experts * layout.bytes) as f64 / f64::from(1 << 30);
        let (each_layer, spares) = (room.each_layer(count), room.spares());
        let host = (count * room.num_layers + spares).saturating_sub(room.gpu_experts - spares);
        tracing::info!(
            each_layer_on_gpu = each_layer,
            each_layer = count,
            gpu_gib = gib(room.gpu_experts),
            streaming_gib = gib(2 * room.ring_experts),
            pinned_host_gib = gib(host),
            "experts lie with the host as far as they do not fit the GPU"
        );
        if spares > 0 {
            self.gpu.push(Slab::new(stream.alloc(spares * layout.bytes)?, layout.bytes));
            self.host.push(Slab::new(stream.alloc_host(spares * layout.bytes)?, layout.bytes));
        }
        if room.ring_experts > 0 {
            let memory = stream.alloc(2 * room.ring_experts * layout.bytes)?;
            self.ring = Some(Ring::new(memory, layout.bytes));
        }
        Ok(())
    }

    /// A table of experts whose slots are written by what is queued: of the next
    /// layer, or of the one that is held.
    pub(super) fn table(
        &mut self,
        stream: &mut Stream,
        experts: Vec<Arc<Expert>>,
        held: Option<&Table>,
    ) -> Result<Arc<Table>, GpuError> {
        assert!(experts.len() <= EXPERTS_MAX, "at most {EXPERTS_MAX} local experts");
        if self.room.is_none() {
            let table = Table::new(stream, experts, None)?;
            self.tables.push(Arc::downgrade(&table));
            self.tell_places();
            return Ok(table);
        }
        let held = held.and_then(|held| held.counted.as_ref());
        let order = held.map_or_else(|| self.next_order(), |held| held.order);
        let counts = match self.counts.iter().find_map(|slab| slab.take()) {
            Some(counts) => counts,
            None => {
                let each = (EXPERTS_MAX + KINDS).next_multiple_of(4) * size_of::<u32>();
                let slab = Slab::new(stream.alloc(COUNTED_TABLES * each)?, each);
                self.counts.push(Arc::clone(&slab));
                slab.take().expect("a new slab has free slots")
            }
        };
        let table = Table::new(stream, experts, Some((self.next_table, order, counts)))?;
        self.next_table += 1;
        self.loaded = Some(stream.point()?);
        self.tables.push(Arc::downgrade(&table));
        self.tell_places();
        Ok(table)
    }

    /// A step of so many rows begins.
    pub(crate) fn begin(&mut self, stream: &mut Stream, num_rows: usize) -> Result<(), GpuError> {
        self.has_begins = true;
        if self.room.is_none() {
            return Ok(());
        }
        self.turn(stream)?;
        if num_rows >= self.streamed_rows {
            self.bring(stream, 0)?;
        }
        Ok(())
    }

    /// Before the kernels of a call are queued: what table they read.
    pub(super) fn enter(
        &mut self,
        stream: &mut Stream,
        table: &Table,
        counted: &Counted,
        grouped: &Grouped,
    ) -> Result<Call, GpuError> {
        if !self.has_begins && counted.order < self.last_order {
            self.turn(stream)?;
        }
        self.last_order = counted.order;
        let choices = STREAMED_CHOICES * grouped.num_known as usize;
        self.streamed_rows = choices.div_ceil(grouped.top_k.max(1));
        let mut call = Call { table: table.address(), is_streamed: false };
        if grouped.num_slots >= choices
            && let Some(ring) = &mut self.ring
        {
            let after = self.loaded.map_or_else(|| stream.point(), Ok)?;
            self.copied = ring.bring(stream, (table, counted), after)?.or(self.copied);
            let streamed = ring.enter(stream, counted)?;
            call = Call { table: table.write_streamed(stream, counted, &streamed)?, is_streamed: true };
        }
        counting::launch(stream, (table, counted), call.table, grouped);
        Ok(call)
    }

    /// After the kernels of a call are queued.
    pub(super) fn leave(
        &mut self,
        stream: &mut Stream,
        counted: &Counted,
        call: &Call,
    ) -> Result<(), GpuError> {
        match &mut self.ring {
            Some(ring) if call.is_streamed => ring.leave(stream)?,
            Some(_) | None => return Ok(()),
        }
        self.bring(stream, counted.order + 1)
    }

    /// Begins to stream the experts of a layer, if there is one of that number.
    fn bring(&mut self, stream: &mut Stream, order: usize) -> Result<(), GpuError> {
        let mut tables = self.tables.iter().filter_map(Weak::upgrade);
        let of_order = |table: &Arc<Table>| table.counted.as_ref().is_some_and(|own| own.order == order);
        // Of several the newest: the others will not be used for long.
        let Some(table) = tables.rfind(of_order) else { return Ok(()) };
        if let (Some(ring), Some(counted), Some(loaded)) = (&mut self.ring, &table.counted, self.loaded) {
            self.copied = ring.bring(stream, (&table, counted), loaded)?.or(self.copied);
        }
        Ok(())
    }

    /// Between two steps: experts whose copies are done are read where they are
    /// now, and others begin to change places.
    fn turn(&mut self, stream: &mut Stream) -> Result<(), GpuError> {
        self.settle(stream)?;
        self.steps += 1;
        if self.fetched.as_ref().is_some_and(|fetched| self.steps >= fetched.step + ARRIVAL_STEPS)
            && let Some(fetched) = self.fetched.take()
        {
            let experts = self.digest(fetched)?;
            self.change(stream, &experts)?;
        }
        if self.fetched.is_none() && self.steps.is_multiple_of(ROUND_STEPS) {
            let arriving = |slab: &Arc<Slab>| {
                let arriving = stream.begin_download(slab.memory(), 0, slab.memory().len())?;
                Ok((Arc::clone(slab), arriving))
            };
            let counts = self.counts.iter().map(arriving).collect::<Result<_, GpuError>>()?;
            self.fetched = Some(Fetched { step: self.steps, counts, tables: self.tables.clone() });
        }
        Ok(())
    }

    /// Ends moves that are done.
    fn settle(&mut self, stream: &mut Stream) -> Result<(), GpuError> {
        let mut left = Vec::new();
        while let Some(first) = self.moves.front()
            && stream.gpu().is_past(first.done)?
        {
            for (expert, slot) in self.moves.pop_front().into_iter().flat_map(|done| done.experts) {
                let mut state = expert.state();
                left.push(std::mem::replace(&mut state.slot, slot));
                state.is_moving = false;
            }
            self.traffic.moved();
        }
        if !left.is_empty() {
            for table in self.tables.iter().filter_map(Weak::upgrade) {
                table.write(stream)?;
            }
            self.tell_places();
            if let Some(ring) = &mut self.ring {
                ring.forget();
            }
        }
        // Free from here on: whoever writes there comes behind the tables.
        drop(left);
        Ok(())
    }

    /// Takes in what was counted; gives all experts, once each.
    fn digest(&self, fetched: Fetched) -> Result<Vec<Arc<Expert>>, GpuError> {
        let mut arrived = Vec::with_capacity(fetched.counts.len());
        for (slab, arriving) in fetched.counts {
            arrived.push((slab, arriving()?));
        }
        let mut experts: Vec<(Arc<Expert>, u32)> = Vec::new();
        let mut index_of = std::collections::HashMap::new();
        for table in fetched.tables.iter().filter_map(Weak::upgrade) {
            let Some(counted) = &table.counted else { continue };
            let bytes = arrived.iter().find(|(slab, _)| Arc::ptr_eq(slab, counted.counts.slab()));
            let Some((_, bytes)) = bytes else { continue };
            let (words, _) = bytes[counted.counts.offset()..].as_chunks::<4>();
            let words = words.iter().take(table.experts.len() + KINDS).map(|word| u32::from_le_bytes(*word));
            let news = counted.news(words.collect());
            let (calls, kinds) = news.split_at(table.experts.len());
            for (expert, &calls) in table.experts.iter().zip(calls) {
                let index = *index_of.entry(Arc::as_ptr(expert)).or_insert_with(|| {
                    experts.push((Arc::clone(expert), 0));
                    experts.len() - 1
                });
                experts[index].1 += calls;
            }
            for (kind, &reads) in [Kind::Gpu, Kind::Host, Kind::Streamed].into_iter().zip(kinds) {
                self.traffic.read(kind, reads);
            }
        }
        let warm = |(expert, calls): (Arc<Expert>, u32)| {
            let mut state = expert.state();
            state.heat = policy::warmed(state.heat, calls);
            drop(state);
            expert
        };
        Ok(experts.into_iter().map(warm).collect())
    }

    /// Begins to move experts.
    fn change(&mut self, stream: &mut Stream, experts: &[Arc<Expert>]) -> Result<(), GpuError> {
        let (Some(layout), Some(room)) = (self.layout, self.room) else { return Ok(()) };
        let still: Vec<&Arc<Expert>> = experts.iter().filter(|expert| !expert.state().is_moving).collect();
        let candidate = |expert: &&Arc<Expert>| {
            let state = expert.state();
            Candidate { heat: state.heat, is_on_gpu: state.slot.is_on_gpu() }
        };
        let candidates: Vec<Candidate> = still.iter().map(candidate).collect();
        let free = num_free(&self.gpu);
        // Each exchange under way gives a place back.
        let exchanges = self.moves.iter().filter(|one| one.experts.len() > 1).count();
        let unused = (free + exchanges).saturating_sub(room.spares()).min(free);
        let changes = free.min(num_free(&self.host)).min(CHANGES_MAX);
        let changes = policy::choose(&candidates, Limits { changes, unused });
        if changes.is_empty() {
            return Ok(());
        }
        // All steps that may still read what is overwritten are before it.
        let after = stream.point()?;
        for Change { up, down } in changes {
            let up = self.gpu.iter().find_map(|slab| slab.take()).map(|slot| (up, slot));
            let down = down.and_then(|down| Some((down, self.host.iter().find_map(|slab| slab.take())?)));
            let mut moving = Move { experts: Vec::with_capacity(2), done: after };
            let mut transfers = Vec::with_capacity(2);
            for (index, slot) in up.into_iter().chain(down) {
                let expert = still[index];
                let mut state = expert.state();
                state.is_moving = true;
                transfers.push(Transfer {
                    from: state.slot.address(),
                    to: slot.address(),
                    len: layout.bytes,
                });
                moving.experts.push((Arc::clone(expert), slot));
            }
            moving.done = stream.copy_aside(after, &transfers)?;
            self.copied = Some(moving.done);
            self.moves.push_back(moving);
        }
        Ok(())
    }

    fn next_order(&self) -> usize {
        let tables = self.tables.iter().filter_map(Weak::upgrade);
        let orders = tables.filter_map(|table| table.counted.as_ref().map(|counted| counted.order));
        orders.max().map_or(0, |last| last + 1)
    }

    /// Says how many experts are where.
    fn tell_places(&self) {
        let mut seen = HashSet::new();
        let (mut gpu, mut host) = (0, 0);
        for table in self.tables.iter().filter_map(Weak::upgrade) {
            for expert in &table.experts {
                if seen.insert(Arc::as_ptr(expert)) {
                    match expert.place().1 {
                        Kind::Gpu => gpu += 1,
                        Kind::Host | Kind::Streamed => host += 1,
                    }
                }
            }
        }
        self.traffic.lie(gpu, host);
    }
}

fn num_free(slabs: &[Arc<Slab>]) -> usize {
    slabs.iter().map(|slab| slab.num_free()).sum()
}
