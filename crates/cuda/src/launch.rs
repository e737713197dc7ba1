//! Launches as data: kernels, their grids and their arguments, in order. A list
//! of them can be compared with one that ran before.

use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// A kernel as its source declares it: `KERNEL(name, Args, threads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The name in the source.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
}

/// One launch of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// Which kernel.
    pub kernel: Kernel,
    /// Blocks in x, y and z; none is 0.
    pub grid: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Where the kernel's one argument lies in the list.
    args: Range<usize>,
}

/// Launches in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Launches {
    calls: Vec<Call>,
    /// Arguments of all, each in lines of its own.
    args: Vec<Line>,
}

/// Arguments are aligned like what they hold, at most like a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

impl Launches {
    /// Adds a launch. `args` mirrors the struct in the kernel's source.
    pub fn push<A: Pod>(&mut self, kernel: Kernel, grid: [u32; 3], shared_bytes: u32, args: &A) {
        const { assert!(align_of::<A>() <= align_of::<Line>()) };
        assert!(grid.iter().all(|&blocks| blocks > 0), "{} has no blocks: {grid:?}", kernel.name);
        let start = self.args.len() * size_of::<Line>();
        self.args.resize(self.args.len() + size_of::<A>().div_ceil(size_of::<Line>()), Line::zeroed());
        let end = start + size_of::<A>();
        bytemuck::cast_slice_mut(&mut self.args)[start..end].copy_from_slice(bytemuck::bytes_of(args));
        self.calls.push(Call { kernel, grid, shared_bytes, args: start..end });
    }

    /// The launches with their arguments.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Call, &[u8])> {
        let args: &[u8] = bytemuck::cast_slice(&self.args);
        self.calls.iter().map(|call| (call, &args[call.args.clone()]))
    }

    /// Each launch as a list of its own, for whoever looks for the one that fails.
    pub fn apart(&self) -> impl Iterator<Item = Self> {
        self.calls.iter().map(|call| {
            let lines = call.args.start / size_of::<Line>()..call.args.end.div_ceil(size_of::<Line>());
            let args = self.args[lines].to_vec();
            Self { calls: vec![Call { args: 0..call.args.len(), ..call.clone() }], args }
        })
    }

    /// True if nothing is launched.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Forgets all launches, and keeps their room.
    pub fn clear(&mut self) {
        self.calls.clear();
        self.args.clear();
    }
}
