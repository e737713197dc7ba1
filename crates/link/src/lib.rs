//! What crosses between ranks: rows out to the experts and home again over the
//! world, columns joined inside a group.
//!
//! [`Link`] is the contract; [`Solo`] is the world of one rank, where nothing
//! moves; [`Mesh`] is any other, over a [`Transport`]. A worker holds its link as
//! a [`Member`]: one with a place in a world. Deliberately absent: what is
//! computed, and scheduling.
//!
//! Each exchange begins with what is sent and ends with what is received. A step
//! may be computed in two halves, so that one computes while the other's rows
//! travel; whoever has one half only ends each exchange as it has begun.
//!
//! Invariant: every rank makes the same calls in the same order; rows come
//! back to the rank and the row they left. A link that cannot finish says
//! which rank it waited for.

mod endings;
pub mod grpc;
mod layout;
mod loads;
mod local;
mod member;
mod mesh;
mod round;
mod rows;
mod transport;
mod wire;

pub use layout::Layout;
pub use loads::Loads;
pub use local::{LocalAbort, LocalTransport, local};
pub use member::{Health, JoinError, Joining, Member, Meshes};
pub use mesh::{Mesh, Place, PlaceError};
pub use transport::{Fault, Frame, Transport};

use chorale_device::Device;

/// The part of a step that is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The step, or its first half.
    First,
    /// Its second half.
    Second,
}

impl Half {
    /// Both, in the order of their rows.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];
}

/// Moves rows and columns between ranks.
///
/// Each half goes through its exchanges in turn: two gathers, a dispatch and a
/// combine for each layer. An exchange ends before the half's next one begins;
/// what the other half does meanwhile is its own affair.
///
/// Nothing here adds numbers of different ranks: columns are joined in rank
/// order and expert outputs come home unweighted, so that the answer does not
/// depend on how many ranks there are.
pub trait Link<D: Device>: Send {
    /// Starts a step: what is exchanged from now on belongs to it.
    fn begin(&mut self, step: u64);

    /// Says how many rows each home has in the step that was started, and whether
    /// it comes in halves, to links that do not learn it from what arrives.
    fn expect(&mut self, _home_rows: &[u32], _in_halves: bool) {}

    /// Sends this rank's columns of a matrix, `part`, to its group. `cols` names
    /// the columns of each rank's part.
    fn begin_gather(
        &mut self,
        device: &mut D,
        half: Half,
        cols: &[usize],
        part: &D::Matrix,
    ) -> Result<(), LinkError<D::Error>>;

    /// Joins the group's columns in rank order: from this rank's `part`, as the
    /// gather began with it, `[rows, cols of the part]`, to `whole`
    /// `[rows, all cols]`. What `part` holds afterwards is unspecified.
    fn end_gather(
        &mut self,
        device: &mut D,
        half: Half,
        cols: &[usize],
        part: &mut D::Matrix,
        whole: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>>;

    /// Sends each row to the ranks that hold its experts. All ranks of a group
    /// have the same rows.
    fn begin_dispatch(
        &mut self,
        device: &mut D,
        half: Half,
        rows: &D::Matrix,
        routing: &D::Routing,
    ) -> Result<(), LinkError<D::Error>>;

    /// Gives the rows that arrived here, grouped by local expert. `rows` and
    /// `routing` are those that the dispatch began with. What is given holds
    /// until the other half's arrive.
    fn end_dispatch<'a>(
        &'a mut self,
        device: &mut D,
        half: Half,
        rows: &'a D::Matrix,
        routing: &D::Routing,
    ) -> Result<Arrived<'a, D>, LinkError<D::Error>>;

    /// Sends the expert outputs of the half's dispatch home. What `outputs` holds
    /// afterwards is unspecified; `home` belongs to the combine until its end.
    fn begin_combine(
        &mut self,
        device: &mut D,
        half: Half,
        outputs: &mut D::Matrix,
        home: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>>;

    /// Lays out what came home.
    fn end_combine(
        &mut self,
        device: &mut D,
        half: Half,
        home: &mut D::Matrix,
    ) -> Result<Home, LinkError<D::Error>>;
}

/// What lies in the matrix that came home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// `home[r * top_k + j]` is what row `r`'s `j`-th choice answered, unweighted.
    Choices,
    /// `home[r]` is the weighted sum over row `r`'s choices.
    Sums,
}

/// Rows that came to this rank's experts.
pub struct Arrived<'a, D: Device> {
    /// The rows, from all ranks.
    pub rows: &'a D::Matrix,
    /// Which of them each local expert takes.
    pub groups: &'a D::Groups,
}

/// Why rows did not cross.
#[derive(Debug, thiserror::Error)]
pub enum LinkError<E> {
    /// The device failed; the ranks are well.
    #[error(transparent)]
    Device(#[from] E),
    /// Another rank did not do its part.
    #[error("{exchange} of step {step}: {fault}")]
    Peer {
        /// Which step.
        step: u64,
        /// Which exchange: `layer 3, dispatch`.
        exchange: String,
        /// Who, and what.
        fault: Fault,
    },
}

/// The link of a world of one rank.
pub struct Solo<D: Device> {
    groups: D::Groups,
}

impl<D: Device> Solo<D> {
    /// A world whose one rank holds all `num_experts`.
    pub fn new(device: &mut D, num_experts: u32) -> Result<Self, D::Error> {
        let all: Vec<u32> = (0..num_experts).collect();
        Ok(Self { groups: device.groups(&all)? })
    }
}

impl<D: Device> Link<D> for Solo<D> {
    fn begin(&mut self, _step: u64) {}

    fn begin_gather(
        &mut self,
        _device: &mut D,
        _half: Half,
        _cols: &[usize],
        _part: &D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        Ok(())
    }

    fn end_gather(
        &mut self,
        _device: &mut D,
        _half: Half,
        _cols: &[usize],
        part: &mut D::Matrix,
        whole: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        std::mem::swap(part, whole);
        Ok(())
    }

    fn begin_dispatch(
        &mut self,
        _device: &mut D,
        _half: Half,
        _rows: &D::Matrix,
        _routing: &D::Routing,
    ) -> Result<(), LinkError<D::Error>> {
        Ok(())
    }

    fn end_dispatch<'a>(
        &'a mut self,
        device: &mut D,
        _half: Half,
        rows: &'a D::Matrix,
        routing: &D::Routing,
    ) -> Result<Arrived<'a, D>, LinkError<D::Error>> {
        device.group(routing, &mut self.groups)?;
        Ok(Arrived { rows, groups: &self.groups })
    }

    fn begin_combine(
        &mut self,
        _device: &mut D,
        _half: Half,
        outputs: &mut D::Matrix,
        home: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        std::mem::swap(outputs, home);
        Ok(())
    }

    fn end_combine(
        &mut self,
        _device: &mut D,
        _half: Half,
        _home: &mut D::Matrix,
    ) -> Result<Home, LinkError<D::Error>> {
        Ok(Home::Choices)
    }
}
