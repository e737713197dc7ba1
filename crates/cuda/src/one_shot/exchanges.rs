//! The exchanges of a circle: what each takes, and the launches that it is made of.

use super::{Circle, LinkArgs, UNIT_BYTES, units_room};
use crate::cuda::Cuda;
use crate::exchange::{Gathered, MAX_PARTS, Share};
use crate::launch::Kernel;
use crate::matrix::Matrix;
use crate::route::Routing;
use bytemuck::{Pod, Zeroable};

const THREADS: u32 = 256;
/// Blocks that share the data: more gain nothing at the sizes that go this way.
const MAX_BLOCKS: usize = 128;

const SEND_PART: Kernel = Kernel { name: "one_shot_send_part", threads: THREADS };
const JOIN_2: Kernel = Kernel { name: "one_shot_join_2", threads: THREADS };
const JOIN_4: Kernel = Kernel { name: "one_shot_join_4", threads: THREADS };
const SEND_ROWS: Kernel = Kernel { name: "one_shot_send_rows", threads: THREADS };
const RECEIVE_ROWS: Kernel = Kernel { name: "one_shot_receive_rows", threads: THREADS };
const SEND_CHOICES: Kernel = Kernel { name: "one_shot_send_choices", threads: THREADS };
const RECEIVE_CHOICES: Kernel = Kernel { name: "one_shot_receive_choices", threads: THREADS };
const SEND_SUMS: Kernel = Kernel { name: "one_shot_send_sums", threads: THREADS };
const RECEIVE_SUMS: Kernel = Kernel { name: "one_shot_receive_sums", threads: THREADS };

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SendPartArgs {
    link: LinkArgs,
    part: u64,
    first_unit: u64,
    num_units: u64,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct JoinArgs {
    link: LinkArgs,
    whole: u64,
    num_units: u64,
    rows: u32,
    whole_bytes: u32,
    units_before: [u32; MAX_PARTS + 1],
    bytes_before: [u32; MAX_PARTS + 1],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SendRowsArgs {
    link: LinkArgs,
    rows: u64,
    experts: u64,
    weights: u64,
    num_rows: u32,
    share_rows: u32,
    first_row: u32,
    all_rows: u32,
    row_units: u32,
    stride_units: u32,
    top_k: u32,
    pad: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ReceiveRowsArgs {
    link: LinkArgs,
    rows: u64,
    experts: u64,
    weights: u64,
    table: u64,
    loads: u64,
    all_rows: u32,
    home_rows: u32,
    share_rows: u32,
    row_units: u32,
    top_k: u32,
    num_experts: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SendChoicesArgs {
    link: LinkArgs,
    outputs: u64,
    experts: u64,
    num_slots: u32,
    home_slots: u32,
    group_size: u32,
    row_units: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ReceiveUnitsArgs {
    link: LinkArgs,
    home: u64,
    num_units: u64,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SendSumsArgs {
    link: LinkArgs,
    outputs: u64,
    experts: u64,
    weights: u64,
    all_rows: u32,
    home_rows: u32,
    group_size: u32,
    row_units: u32,
    top_k: u32,
    pad: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ReceiveSumsArgs {
    link: LinkArgs,
    home: u64,
    num_units: u64,
    sender_units: u64,
}

/// The way of all homes' rows to the experts and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// Rows of each homing rank's share.
    pub share_rows: usize,
    /// Ranks of a group: the shares of a home.
    pub group_size: usize,
    /// Homes, whose ranks are the circle's first members.
    pub num_homes: usize,
    /// Choices of a row.
    pub top_k: usize,
    /// Columns of a row.
    pub hidden_size: usize,
}

impl Ways {
    fn home_rows(&self) -> usize {
        self.group_size * self.share_rows
    }

    fn all_rows(&self) -> usize {
        self.num_homes * self.home_rows()
    }

    /// Units of a row of bf16.
    fn row_units(&self) -> usize {
        self.hidden_size * size_of::<u16>() / UNIT_BYTES
    }

    fn has_whole_units(&self) -> bool {
        (self.hidden_size * size_of::<u16>()).is_multiple_of(UNIT_BYTES)
    }
}

/// Blocks for so much to do, and one for the tokens.
fn grid(num_blocks: usize) -> [u32; 3] {
    [num_blocks.min(MAX_BLOCKS) as u32 + 1, 1, 1]
}

fn unit_grid(units: usize) -> [u32; 3] {
    grid(units.div_ceil(THREADS as usize))
}

/// Units of a part of columns, and of the parts before it in a row.
struct Parts {
    units_before: [u32; MAX_PARTS + 1],
    bytes_before: [u32; MAX_PARTS + 1],
}

impl Parts {
    fn new(cols: &[usize], width: usize) -> Self {
        let mut parts = Self { units_before: [0; MAX_PARTS + 1], bytes_before: [0; MAX_PARTS + 1] };
        for (part, &cols) in cols.iter().enumerate() {
            let units = Matrix::stride_of(cols) * width / UNIT_BYTES;
            parts.units_before[part + 1] = parts.units_before[part] + units as u32;
            parts.bytes_before[part + 1] = parts.bytes_before[part] + (cols * width) as u32;
        }
        parts
    }
}

impl Circle {
    /// True if columns of all members may be joined, of rows like those of one part.
    pub fn fits_columns(&self, cols: &[usize], part: &Matrix) -> bool {
        self.has_room(cols, part.rows(), part.width())
    }

    fn has_room(&self, cols: &[usize], rows: usize, width: usize) -> bool {
        let row_units: usize = cols.iter().map(|&cols| Matrix::stride_of(cols) * width / UNIT_BYTES).sum();
        cols.len() <= MAX_PARTS && units_room(rows * row_units) <= self.slot_bytes()
    }

    /// True if rows may go to the experts.
    pub fn fits_rows(&self, ways: &Ways) -> bool {
        let choices = ways.all_rows() * ways.top_k * UNIT_BYTES;
        let rows = units_room(ways.all_rows() * ways.row_units());
        ways.has_whole_units() && rows + choices <= self.slot_bytes()
    }

    /// True if what the experts answered to each choice may come home.
    pub fn fits_choices(&self, ways: &Ways) -> bool {
        let units = ways.home_rows() * ways.top_k * ways.row_units();
        ways.has_whole_units() && units_room(units) <= self.slot_bytes()
    }

    /// True if the members' weighted sums may come home.
    pub fn fits_sums(&self, ways: &Ways) -> bool {
        let units = self.num_members * ways.home_rows() * ways.row_units() * 2;
        ways.has_whole_units() && units_room(units) <= self.slot_bytes()
    }

    /// The arguments of an exchange that begins.
    fn begin(&mut self, channel: usize) -> LinkArgs {
        assert!(!self.is_worn(channel), "the channel was renewed");
        self.numbers[channel] += 1;
        self.args(channel)
    }

    /// Sends this member's columns to all: `part` is the one at its place in `cols`.
    pub fn send_columns(&mut self, device: &mut Cuda, channel: usize, cols: &[usize], part: &Matrix) {
        let (rows, width) = (part.rows(), part.width());
        assert_eq!(cols.len(), self.num_members, "columns of each member");
        assert_eq!(cols[self.member], part.cols(), "columns of the part");
        assert!(self.has_room(cols, rows, width), "{rows} rows of {cols:?} columns");
        let parts = Parts::new(cols, width);
        let [first, end] = [0, 1].map(|next| parts.units_before[self.member + next] as usize * rows);
        let args = SendPartArgs {
            link: self.begin(channel),
            part: part.address(),
            first_unit: first as u64,
            num_units: (end - first) as u64,
        };
        device.stream.launch(SEND_PART, unit_grid(end - first), 0, &args);
    }

    /// Joins the columns of all members to `rows` rows of `whole`.
    pub fn join_columns(
        &self,
        device: &mut Cuda,
        channel: usize,
        cols: &[usize],
        rows: usize,
        whole: &mut Matrix,
    ) {
        let width = whole.width();
        assert_eq!(cols.iter().sum::<usize>(), whole.cols(), "columns of the parts");
        assert!(cols.len() == self.num_members && self.has_room(cols, rows, width), "columns of all");
        whole.set_rows(rows);
        let Parts { units_before, bytes_before } = Parts::new(cols, width);
        let num_units = units_before[cols.len()] as usize * rows;
        let args = JoinArgs {
            link: self.args(channel),
            whole: whole.address(),
            num_units: num_units as u64,
            rows: rows as u32,
            whole_bytes: (whole.stride() * width) as u32,
            units_before,
            bytes_before,
        };
        let kernel = if width == 2 { JOIN_2 } else { JOIN_4 };
        device.stream.launch(kernel, unit_grid(num_units), 0, &args);
    }

    /// Sends a share of rows and its choices to all. Members without a home have none.
    pub fn send_rows(&mut self, device: &mut Cuda, channel: usize, ways: &Ways, share: Option<&Share<'_>>) {
        assert!(self.fits_rows(ways), "room for {ways:?}");
        let mut args = SendRowsArgs {
            all_rows: ways.all_rows() as u32,
            row_units: ways.row_units() as u32,
            top_k: ways.top_k as u32,
            ..Zeroable::zeroed()
        };
        if let Some(&Share { rows, routing, first_row, num_rows, max_rows }) = share {
            let rows = rows.expect("the rows of a share that is sent");
            assert!(max_rows == ways.share_rows && routing.top_k == ways.top_k, "a share of the way");
            assert!(num_rows <= max_rows && first_row + num_rows <= routing.rows, "rows of the share");
            assert!(num_rows == 0 || rows.rows() == routing.rows, "a routing for the rows");
            assert!(rows.cols() == ways.hidden_size && rows.width() == size_of::<u16>(), "rows of bf16");
            let stride = rows.stride() * rows.width();
            let choices = (first_row * routing.top_k * size_of::<u32>()) as u64;
            args.rows = rows.address() + (first_row * stride) as u64;
            args.experts = routing.experts.address() + choices;
            args.weights = routing.weights.address() + choices;
            args.num_rows = num_rows as u32;
            args.share_rows = max_rows as u32;
            args.first_row = (self.member * max_rows) as u32;
            args.stride_units = (stride / UNIT_BYTES) as u32;
        }
        args.link = self.begin(channel);
        assert!(args.first_row + args.share_rows <= args.all_rows, "a share among those of the homes");
        device.stream.launch(SEND_ROWS, grid(args.share_rows as usize), 0, &args);
    }

    /// Sets `rows` and a routing from the shares of all: choices that this member
    /// computes keep their expert, all others have none, and only rows that have
    /// such a choice are written.
    pub fn receive_rows(
        &self,
        device: &mut Cuda,
        (channel, ways): (usize, &Ways),
        gathered: &Gathered<'_>,
        rows: &mut Matrix,
        routing: &mut Routing,
    ) {
        let all_rows = ways.all_rows();
        assert!(self.fits_rows(ways) && rows.cols() == ways.hidden_size, "room for {ways:?}");
        assert!(rows.width() == size_of::<u16>() && routing.top_k == ways.top_k, "rows of bf16");
        assert!(all_rows * ways.top_k <= routing.max_choices(), "room for {all_rows} rows");
        let &Gathered { num_experts, num_homes, home_rows, .. } = gathered;
        assert_eq!((num_homes, home_rows), (ways.num_homes, ways.home_rows()), "rows of the homes");
        routing.rows = all_rows;
        let to = device.dense_rows_mut(rows, all_rows, all_rows);
        let args = ReceiveRowsArgs {
            link: self.args(channel),
            rows: to,
            experts: routing.experts.address(),
            weights: routing.weights.address(),
            table: gathered.table.span(gathered.table_offset, num_homes * num_experts * size_of::<u32>()),
            loads: gathered.loads.span(gathered.loads_offset, num_experts * size_of::<u32>()),
            all_rows: all_rows as u32,
            home_rows: home_rows as u32,
            share_rows: ways.share_rows as u32,
            row_units: ways.row_units() as u32,
            top_k: ways.top_k as u32,
            num_experts: num_experts as u32,
        };
        device.stream.launch(RECEIVE_ROWS, grid(all_rows), 0, &args);
    }

    /// Sends what was answered to the choices that this member claimed to all ranks
    /// of the rows' homes.
    pub fn send_choices(
        &mut self,
        device: &mut Cuda,
        (channel, ways): (usize, &Ways),
        claimed: &Routing,
        outputs: &Matrix,
    ) {
        assert!(self.fits_choices(ways), "room for {ways:?}");
        let num_slots = self.slots(ways, claimed, outputs);
        let args = SendChoicesArgs {
            link: self.begin(channel),
            outputs: device.dense_rows(outputs, num_slots),
            experts: claimed.experts.address(),
            num_slots: num_slots as u32,
            home_slots: (ways.home_rows() * ways.top_k) as u32,
            group_size: ways.group_size as u32,
            row_units: ways.row_units() as u32,
        };
        device.stream.launch(SEND_CHOICES, grid(num_slots), 0, &args);
    }

    /// Lays out what came home for each choice of `own_rows` rows; none where the
    /// member has no home.
    pub fn receive_choices(
        &self,
        device: &mut Cuda,
        (channel, ways): (usize, &Ways),
        own_rows: usize,
        home: &mut Matrix,
    ) {
        assert!(self.fits_choices(ways) && own_rows <= ways.home_rows(), "room for {ways:?}");
        assert!(home.cols() == ways.hidden_size && home.width() == size_of::<u16>(), "rows of bf16");
        let num_slots = own_rows * ways.top_k;
        let num_units = num_slots * ways.row_units();
        let home = device.dense_rows_mut(home, num_slots, num_slots);
        let args = ReceiveUnitsArgs { link: self.args(channel), home, num_units: num_units as u64 };
        device.stream.launch(RECEIVE_CHOICES, unit_grid(num_units), 0, &args);
    }

    /// Sends, for each row, the weighted sum of what this member claimed to all ranks
    /// of the row's home.
    pub fn send_sums(
        &mut self,
        device: &mut Cuda,
        (channel, ways): (usize, &Ways),
        claimed: &Routing,
        outputs: &Matrix,
    ) {
        assert!(self.fits_sums(ways), "room for {ways:?}");
        let num_slots = self.slots(ways, claimed, outputs);
        let args = SendSumsArgs {
            link: self.begin(channel),
            outputs: device.dense_rows(outputs, num_slots),
            experts: claimed.experts.address(),
            weights: claimed.weights.address(),
            all_rows: ways.all_rows() as u32,
            home_rows: ways.home_rows() as u32,
            group_size: ways.group_size as u32,
            row_units: ways.row_units() as u32,
            top_k: ways.top_k as u32,
            pad: 0,
        };
        device.stream.launch(SEND_SUMS, grid(ways.all_rows()), 0, &args);
    }

    /// Adds up the members' sums of `own_rows` rows, in the members' order; none where
    /// the member has no home.
    pub fn receive_sums(
        &self,
        device: &mut Cuda,
        (channel, ways): (usize, &Ways),
        own_rows: usize,
        home: &mut Matrix,
    ) {
        assert!(self.fits_sums(ways) && own_rows <= ways.home_rows(), "room for {ways:?}");
        assert!(home.cols() == ways.hidden_size && home.width() == size_of::<u16>(), "rows of bf16");
        let num_units = own_rows * ways.row_units();
        let args = ReceiveSumsArgs {
            link: self.args(channel),
            home: device.dense_rows_mut(home, own_rows, own_rows),
            num_units: num_units as u64,
            sender_units: (ways.home_rows() * ways.row_units()) as u64,
        };
        device.stream.launch(RECEIVE_SUMS, unit_grid(num_units), 0, &args);
    }

    /// The choices of all homes, which the routing and the outputs have.
    fn slots(&self, ways: &Ways, claimed: &Routing, outputs: &Matrix) -> usize {
        let num_homing = ways.num_homes * ways.group_size;
        assert!(num_homing <= self.num_members, "{ways:?} of {} members", self.num_members);
        assert_eq!((claimed.rows, claimed.top_k), (ways.all_rows(), ways.top_k), "choices of {ways:?}");
        assert!(outputs.cols() == ways.hidden_size && outputs.width() == size_of::<u16>(), "rows of bf16");
        ways.all_rows() * ways.top_k
    }
}
