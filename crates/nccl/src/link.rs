//! A world of GPUs: all that crosses goes from GPU to GPU, and the host only
//! says what.
//!
//! Rows of all homes are gathered on every rank, which picks what its experts
//! are to compute. For the way home every rank has a place for each choice of
//! each row, which is 0 but on the one rank that computed it: the sum over the
//! ranks is the choice's own answer, exactly, however many ranks there are. With
//! `fast_combine` each rank's weighted sums of a row are added instead.
//!
//! What is small goes another way, by the circles of ranks that agreed on it: rows
//! are sent as they are shared out, and each choice comes home from the one rank that
//! computed it.
//!
//! All is enqueued on the GPU's one stream, so what this gives back may still be
//! on its way. Whatever a rank waits for on the GPU, an abort ends it.

#![expect(unsafe_code, reason = "hands NCCL addresses of the GPU's memory")]

use crate::bring_up::Comms;
use crate::circles::{Circles, Small};
use crate::claims::{table_len, tables};
use crate::comm::{Comm, Kind, Operation};
use crate::counted::Counted;
use crate::error::NcclError;
use crate::shares::Shares;
use chorale_cuda::{
    Buffer, CHOICE_BYTES, Cuda, Gathered, GpuError, MAX_PARTS, Matrix, Routing, Share, part_bytes,
};
use chorale_device::{Device, Precision};
use chorale_link::{Arrived, Fault, Half, Home, Link, LinkError, Place, PlaceError, Transport};
use chorale_plan::{Placement, RowFormat};
use std::time::{Duration, Instant};

pub(crate) type Groups = <Cuda as Device>::Groups;

/// The link of a rank whose world has GPUs only.
pub struct NcclLink {
    /// Carry what is small. First: what waits in them on the GPU ends before NCCL does.
    pub(crate) circles: Circles,
    pub(crate) comms: Comms,
    transport: Box<dyn Transport>,
    pub(crate) place: Place,
    pub(crate) placement: Placement,
    /// By layer.
    pub(crate) groups: Vec<Groups>,
    /// What this rank claims, by layer, home and expert.
    pub(crate) tables: Buffer,
    /// What it has claimed.
    pub(crate) counted: Counted,
    step: u64,
    pub(crate) halves: Vec<Exchange>,
    pub(crate) waited: Duration,
}

/// One half's exchanges.
pub(crate) struct Exchange {
    layer: usize,
    /// `None` until the step's rows are known.
    shares: Option<Shares>,
    /// Rows of all ranks, in rank order.
    arrived: Matrix,
    choices: Buffer,
    /// The choices that are computed here.
    claimed: Routing,
    /// Columns of the group, one part after the other.
    parts: Option<(Buffer, usize)>,
    /// Weighted sums of all ranks' rows, then of this rank's share.
    sums: Option<(Buffer, Buffer)>,
}

impl NcclLink {
    /// Takes a place in a world whose communicators are there.
    ///
    /// # Errors
    ///
    /// [`PlaceError`], where the GPU has no room, or NCCL does not do what the
    /// place asks for.
    pub fn new(
        device: &mut Cuda,
        comms: Comms,
        transport: Box<dyn Transport>,
        place: Place,
        placement: Placement,
    ) -> Result<Self, PlaceError<GpuError>> {
        check_place(&place).map_err(|reason| PlaceError::Unfit { reason })?;
        let (groups, tables) = claims(device, &place, &placement)?;
        let halves = (0..num_halves(&place)).map(|half| Exchange::new(device, &place, half));
        Ok(Self {
            halves: halves.collect::<Result<_, _>>()?,
            counted: Counted::new(device, place.num_layers, place.num_experts)?,
            comms,
            circles: Circles::default(),
            transport,
            place,
            placement,
            groups,
            tables,
            step: 0,
            waited: Duration::ZERO,
        })
    }

    /// Lets circles of the same ranks carry what is small; all of them do it, or none.
    pub fn with_circles(self, circles: Circles) -> Self {
        Self { circles, ..self }
    }

    /// Waits for all that is computed, and brings what [`chorale_link::Member`] says
    /// of loads up to date.
    pub fn fetch_loads(&mut self, device: &mut Cuda) -> Result<(), GpuError> {
        self.counted.fetch(device)
    }

    /// What a rank does in one exchange has failed, as far as can be told by whom.
    fn fault(&self, half: Half, exchange: &str, error: NcclError) -> LinkError<GpuError> {
        let fault = match (self.circles.fault(), error) {
            (Some(Fault::Over) | None, NcclError::Aborted { .. }) => Fault::Over,
            (Some(fault), _) => fault,
            (None, error) => Fault::Unknown { reason: error.to_string() },
        };
        self.peer_error(half, exchange, fault)
    }

    /// An exchange has failed; what the transport knows of it comes first.
    fn peer_error(&self, half: Half, exchange: &str, fault: Fault) -> LinkError<GpuError> {
        let fault = self.transport.broken().unwrap_or(fault);
        let layer = self.halves[half as usize].layer;
        let at = if layer < self.place.num_layers { format!("layer {layer}") } else { "head".to_owned() };
        let of = if half == Half::Second { " of the second half" } else { "" };
        LinkError::Peer { step: self.step, exchange: format!("{at}, {exchange}{of}"), fault }
    }

    /// Enqueues exchanges with all ranks, or with the group's.
    pub(crate) fn enqueue(
        &mut self,
        device: &mut Cuda,
        (half, exchange): (Half, &str),
        who: fn(&Comms) -> Option<&Comm>,
        operations: &[Operation],
    ) -> Result<(), LinkError<GpuError>> {
        let Some(comm) = who(&self.comms) else { return Ok(()) };
        let started = Instant::now();
        // SAFETY: the addresses are of buffers and matrices of this device, whose spans
        // were checked, and which free their memory behind what is on the stream.
        let enqueued = device.enqueue(|stream| unsafe { comm.enqueue(stream, operations) })?;
        self.waited += started.elapsed();
        enqueued.map_err(|error| self.fault(half, exchange, error))
    }

    fn half(&mut self, half: Half) -> &mut Exchange {
        let num_halves = self.halves.len();
        self.halves.get_mut(half as usize).unwrap_or_else(|| panic!("room for {num_halves} halves"))
    }

    pub(crate) fn shares(&mut self, half: Half) -> Shares {
        self.half(half).shares.expect("the rows of the step's homes were said")
    }

    /// Ranks with attention: those that rows come home to.
    fn num_homing(&self) -> usize {
        self.place.shape.num_attention_ranks() as usize
    }

    fn has_group(&self) -> bool {
        self.comms.group.is_some()
    }

    /// Brings `count` elements for each homing rank, from `from` on, home as sums:
    /// this rank's to `to`.
    fn reduction(&self, (from, to): (u64, u64), count: usize, kind: Kind, bytes: usize) -> Vec<Operation> {
        if self.num_homing() == self.place.shape.num_ranks as usize {
            return vec![Operation::ReduceScatter { from, to, count, kind }];
        }
        // Ranks with experts only get nothing.
        let part = |root: u32| from + u64::from(root) * (count * bytes) as u64;
        let roots = 0..self.num_homing() as u32;
        roots.map(|root| Operation::Reduce { from: part(root), to, count, kind, root }).collect()
    }
}

/// How many parts of a step are under way at a time.
pub(crate) fn num_halves(place: &Place) -> usize {
    if place.exchange.overlap_min_rows.is_some() { 2 } else { 1 }
}

impl Exchange {
    pub(crate) fn new(device: &mut Cuda, place: &Place, half: usize) -> Result<Self, GpuError> {
        let size = place.shape.tensor_parallel_size as usize;
        let share = if half == 0 { place.max_rows } else { place.max_rows.div_ceil(2) }.div_ceil(size);
        let gathered = share * place.shape.num_ranks as usize;
        let homed = share * place.shape.num_attention_ranks() as usize;
        let sums = match place.exchange.fast_combine {
            true => {
                let row_bytes = place.hidden_size * size_of::<f32>();
                Some((device.buffer(homed * row_bytes)?, device.buffer(share * row_bytes)?))
            }
            false => None,
        };
        Ok(Self {
            layer: 0,
            shares: None,
            arrived: device.matrix(gathered, place.hidden_size, Precision::Half)?,
            choices: device.buffer(gathered * place.top_k * CHOICE_BYTES)?,
            claimed: device.routing(homed, place.top_k)?,
            parts: None,
            sums,
        })
    }

    /// Room for the columns of a group.
    pub(crate) fn parts(&mut self, device: &mut Cuda, len: usize) -> Result<u64, GpuError> {
        if self.parts.as_ref().is_none_or(|(_, room)| *room < len) {
            self.parts = None;
            let len = len.next_power_of_two();
            self.parts = Some((device.buffer(len)?, len));
        }
        Ok(self.parts.as_ref().map_or(0, |(parts, _)| parts.address()))
    }
}

/// What NCCL cannot do, or not yet.
fn check_place(place: &Place) -> Result<(), String> {
    let size = place.shape.tensor_parallel_size as usize;
    if size > MAX_PARTS {
        return Err(format!("a group of {size} ranks joins its columns over NCCL, {MAX_PARTS} at most can"));
    }
    if !place.max_rows.is_multiple_of(size) {
        return Err(format!("{} rows of a step are not shared evenly by a group of {size}", place.max_rows));
    }
    if place.exchange.dispatch != RowFormat::F32 {
        return Err("rows travel over NCCL as they are, not as 8-bit integers".to_owned());
    }
    Ok(())
}

/// The groups and the tables of a placement.
pub(crate) fn claims(
    device: &mut Cuda,
    place: &Place,
    placement: &Placement,
) -> Result<(Vec<Groups>, Buffer), PlaceError<GpuError>> {
    place.check(placement).map_err(|reason| PlaceError::Unfit { reason })?;
    let layers = 0..place.num_layers;
    let groups = layers.map(|layer| device.groups(&placement.experts_of(place.rank, layer)));
    let groups = groups.collect::<Result<_, _>>()?;
    let words = tables(place.shape, place.rank, placement);
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    Ok((groups, device.buffer_of(&bytes)?))
}

impl Link<Cuda> for NcclLink {
    fn begin(&mut self, step: u64) {
        self.step = step;
        for half in &mut self.halves {
            (half.layer, half.shares) = (0, None);
        }
    }

    fn expect(&mut self, home_rows: &[u32], in_halves: bool) {
        let Place { shape, rank, .. } = self.place;
        let shares = Shares::halves(shape, rank, home_rows, in_halves);
        for (half, shares) in self.halves.iter_mut().zip(shares) {
            half.shares = Some(shares);
        }
    }

    fn begin_gather(
        &mut self,
        device: &mut Cuda,
        half: Half,
        cols: &[usize],
        part: &Matrix,
    ) -> Result<(), LinkError<GpuError>> {
        if !self.has_group() {
            return Ok(());
        }
        let small = Small::Columns(cols, part);
        self.make_ready(device, (half, "gather"), small)?;
        if let Some(circle) = self.circles.carrier(small) {
            circle.send_columns(device, half as usize, cols, part);
            return Ok(());
        }
        let lens: Vec<usize> = cols.iter().map(|&cols| part_bytes(cols, part)).collect();
        let to = self.half(half).parts(device, lens.iter().sum())?;
        let (from, kind) = (device.laid_out(part), Kind::Bytes);
        let is_even = lens.windows(2).all(|pair| pair[0] == pair[1]);
        let mut first = to;
        let operations: Vec<Operation> = match is_even {
            true => vec![Operation::AllGather { from, to, count: lens[0], kind }],
            false => {
                let each = lens.iter().zip(0..).map(|(&count, root)| {
                    let to = first;
                    first += count as u64;
                    Operation::Broadcast { from, to, count, kind, root }
                });
                each.collect()
            }
        };
        if lens.iter().sum::<usize>() == 0 {
            return Ok(());
        }
        self.enqueue(device, (half, "gather"), |comms| comms.group.as_ref(), &operations)
    }

    fn end_gather(
        &mut self,
        device: &mut Cuda,
        half: Half,
        cols: &[usize],
        part: &mut Matrix,
        whole: &mut Matrix,
    ) -> Result<(), LinkError<GpuError>> {
        if !self.has_group() {
            std::mem::swap(part, whole);
            return Ok(());
        }
        if let Some(circle) = self.circles.carrier(Small::Columns(cols, part)) {
            circle.join_columns(device, half as usize, cols, part.rows(), whole);
            return Ok(());
        }
        let parts = self.half(half).parts.as_ref().map_or(0, |(parts, _)| parts.address());
        device.join_columns(parts, cols, part.rows(), whole);
        Ok(())
    }

    fn begin_dispatch(
        &mut self,
        device: &mut Cuda,
        half: Half,
        rows: &Matrix,
        routing: &Routing,
    ) -> Result<(), LinkError<GpuError>> {
        self.transport.come_to_exchange();
        if self.half(half).layer == 0 && half == Half::First {
            self.comms.world.check().map_err(|error| self.fault(half, "dispatch", error))?;
            if let Some(fault) = self.circles.fault() {
                return Err(self.peer_error(half, "an exchange before the dispatch", fault));
            }
            self.counted.keep(device)?;
        }
        let shares = self.shares(half);
        let Shares { share, first_row, num_rows, own_rows, .. } = shares;
        assert_eq!(rows.rows(), own_rows, "rows of the home");
        let Place { rank, top_k, hidden_size, .. } = self.place;
        let num_ranks = self.place.shape.num_ranks as usize;
        let has_home = (rank.0 as usize) < self.num_homing();
        let ways = self.ways(half);
        self.make_ready(device, (half, "dispatch"), Small::Rows(&ways))?;
        if let Some(circle) = self.circles.carrier(Small::Rows(&ways)) {
            let share = Share { rows: Some(rows), routing, first_row, num_rows, max_rows: share };
            circle.send_rows(device, half as usize, &ways, has_home.then_some(&share));
            return Ok(());
        }
        // A group's shares, and those of ranks without rows, are cut from elsewhere.
        let is_in_place = self.has_group() || !has_home;
        let row_bytes = hidden_size * size_of::<u16>();
        let (share_bytes, choice_bytes) = (share * row_bytes, share * top_k * CHOICE_BYTES);
        let exchange = self.half(half);
        let all_rows = device.dense_rows_mut(&mut exchange.arrived, num_ranks * share, shares.all_rows);
        let all_choices = exchange.choices.span(0, num_ranks * choice_bytes);
        let own_rows_at = all_rows + (rank.0 as usize * share_bytes) as u64;
        let own_choices = all_choices + (rank.0 as usize * choice_bytes) as u64;
        let shared = is_in_place.then_some(rows);
        let share_of = Share { rows: shared, routing, first_row, num_rows, max_rows: share };
        device.share_rows(&share_of, own_rows_at, own_choices);
        if share == 0 {
            return Ok(());
        }
        let from = if is_in_place { own_rows_at } else { device.dense_rows(rows, share) };
        let kind = Kind::Bytes;
        let operations = [
            Operation::AllGather { from, to: all_rows, count: share_bytes, kind },
            Operation::AllGather { from: own_choices, to: all_choices, count: choice_bytes, kind },
        ];
        self.enqueue(device, (half, "dispatch"), |comms| Some(&comms.world), &operations)
    }

    fn end_dispatch<'a>(
        &'a mut self,
        device: &mut Cuda,
        half: Half,
        _rows: &'a Matrix,
        _routing: &Routing,
    ) -> Result<Arrived<'a, Cuda>, LinkError<GpuError>> {
        let (shares, ways) = (self.shares(half), self.ways(half));
        let Place { shape, num_experts, .. } = self.place;
        let word = size_of::<u32>();
        let exchange = &mut self.halves[half as usize];
        let layer = exchange.layer;
        let gathered = Gathered {
            choices: &exchange.choices,
            table: &self.tables,
            table_offset: layer * table_len(shape, num_experts) * word,
            loads: self.counted.counts(),
            loads_offset: layer * num_experts * word,
            num_experts,
            num_homes: shape.data_parallel_size as usize,
            home_rows: shares.home_rows,
        };
        let Exchange { arrived, claimed, .. } = exchange;
        match self.circles.carrier(Small::Rows(&ways)) {
            Some(circle) => circle.receive_rows(device, (half as usize, &ways), &gathered, arrived, claimed),
            None => device.claim_choices(&gathered, claimed),
        }
        device.group(&exchange.claimed, &mut self.groups[layer])?;
        Ok(Arrived { rows: &exchange.arrived, groups: &self.groups[layer] })
    }

    fn begin_combine(
        &mut self,
        device: &mut Cuda,
        half: Half,
        outputs: &mut Matrix,
        home: &mut Matrix,
    ) -> Result<(), LinkError<GpuError>> {
        self.transport.come_to_exchange();
        let ways = self.ways(half);
        let small = self.way_home(&ways);
        self.make_ready(device, (half, "combine"), small)?;
        if let Some(circle) = self.circles.carrier(small) {
            let (way, claimed) = ((half as usize, &ways), &self.halves[half as usize].claimed);
            match self.place.exchange.fast_combine {
                true => circle.send_sums(device, way, claimed, outputs),
                false => circle.send_choices(device, way, claimed, outputs),
            }
            return Ok(());
        }
        let Shares { share, home_rows, own_rows, all_rows, .. } = self.shares(half);
        let Place { shape, rank, top_k, hidden_size, exchange, .. } = self.place;
        let has_home = (rank.0 as usize) < self.num_homing();
        // Of a row in what comes home.
        let slots = if exchange.fast_combine { 1 } else { top_k };
        let homed = if has_home { home_rows * slots } else { 0 };
        let home_at = device.dense_rows_mut(home, homed, own_rows * slots);
        let member = (rank.0 % shape.tensor_parallel_size) as usize;
        let part_rows = share * slots;
        let part_bytes = part_rows * hidden_size * size_of::<u16>();
        let part_at = home_at + (member * part_bytes) as u64;
        let half_state = &mut self.halves[half as usize];
        let is_at = (half, "combine");
        let world: fn(&Comms) -> Option<&Comm> = |comms| Some(&comms.world);
        match &half_state.sums {
            None => {
                device.clear_elsewhere(&half_state.claimed, outputs);
                let from = device.dense_rows(outputs, outputs.rows());
                let count = part_rows * hidden_size;
                let bytes = size_of::<u16>();
                let reduction = self.reduction((from, part_at), count, Kind::Half, bytes);
                if share > 0 {
                    self.enqueue(device, is_at, world, &reduction)?;
                }
            }
            Some((all, own)) => {
                let (count, bytes) = (share * hidden_size, size_of::<f32>());
                let from = all.span(0, all_rows * hidden_size * bytes);
                let to = own.span(0, count * bytes);
                device.sum_choices(&half_state.claimed, outputs, from);
                let reduction = self.reduction((from, to), count, Kind::Full, bytes);
                if share > 0 {
                    self.enqueue(device, is_at, world, &reduction)?;
                }
                if has_home {
                    device.round_sums(to, share, home, member * share);
                }
            }
        }
        if share == 0 {
            return Ok(());
        }
        let gather =
            Operation::AllGather { from: part_at, to: home_at, count: part_bytes, kind: Kind::Bytes };
        self.enqueue(device, is_at, |comms| comms.group.as_ref(), &[gather])
    }

    fn end_combine(
        &mut self,
        device: &mut Cuda,
        half: Half,
        home: &mut Matrix,
    ) -> Result<Home, LinkError<GpuError>> {
        self.half(half).layer += 1;
        let is_fast = self.place.exchange.fast_combine;
        let (ways, own_rows) = (self.ways(half), self.shares(half).own_rows);
        let small = self.way_home(&ways);
        if let Some(circle) = self.circles.carrier(small) {
            let way = (half as usize, &ways);
            match is_fast {
                true => circle.receive_sums(device, way, own_rows, home),
                false => circle.receive_choices(device, way, own_rows, home),
            }
        }
        if self.half(half).layer == self.place.num_layers {
            // Others wait for what is queued, also if nobody fetches anything here.
            device.flush()?;
        }
        Ok(if is_fast { Home::Sums } else { Home::Choices })
    }
}
