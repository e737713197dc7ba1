//! A communicator: ranks that exchange what lies on their GPUs. All its calls
//! return at once; what they began is asked for until a deadline.
//!
//! An abort, from whichever thread, ends what is on its way and what comes
//! later: kernels of a collective that wait on the GPU for a rank that is gone
//! end by nothing else. NCCL then waits until the GPU has come past all that the
//! communicator enqueued, and before that it may be held up by what another one
//! enqueued: so each is aborted on a thread of its own, and all begin at once.

#![expect(unsafe_code, reason = "calls a C library with addresses of a GPU's memory")]

use crate::error::NcclError;
use crate::library::{Calls, Config, IN_PROGRESS, Id, Library, Raw, RawStream, SUCCESS};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, mpsc};
use std::time::{Duration, Instant};

/// A call may take so long to let an abort have the communicator. One that does
/// not return waits for a GPU that itself waits: the abort then goes ahead.
const GRACE: Duration = Duration::from_millis(500);

/// An abort may take so long before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions in turn before the thread rests between two.
const NUM_SPINS: u32 = 200;
/// Between two questions, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LAST_PAUSE: Duration = Duration::from_millis(2);

/// What numbers an operation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, of whatever they are.
    Bytes,
    /// bf16.
    Half,
    /// f32.
    Full,
}

impl Kind {
    /// `ncclDataType_t`.
    fn code(self) -> c_int {
        match self {
            Self::Bytes => 1,
            Self::Half => 9,
            Self::Full => 7,
        }
    }
}

/// `ncclSum`.
const SUM: c_int = 0;

/// One exchange. Addresses are of the rank's own GPU, counts are of elements.
/// All ranks of a communicator enqueue the same in the same order, except sends
/// and receives, which match each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are from where, to where, how many of what, and who")]
pub enum Operation {
    /// Each rank's `count` to all, in rank order. In place if `from` is the rank's
    /// part of `to`.
    AllGather { from: u64, to: u64, count: usize, kind: Kind },
    /// The sum over all ranks to all.
    AllReduce { from: u64, to: u64, count: usize, kind: Kind },
    /// Part `r` of the sum over all ranks to rank `r`, of `count` each.
    ReduceScatter { from: u64, to: u64, count: usize, kind: Kind },
    /// The sum over all ranks to one, `root`; the others' `to` is not written.
    Reduce { from: u64, to: u64, count: usize, kind: Kind, root: u32 },
    /// What `root` has to all.
    Broadcast { from: u64, to: u64, count: usize, kind: Kind, root: u32 },
    /// To one rank.
    Send { from: u64, count: usize, kind: Kind, rank: u32 },
    /// From one rank.
    Receive { to: u64, count: usize, kind: Kind, rank: u32 },
}

/// What ranks a communicator has, and which of them this is.
#[derive(Clone, Debug)]
pub struct Members {
    /// For people: `the world of epoch 3`.
    pub name: String,
    /// This rank's number among them.
    pub rank: u32,
    /// How many there are.
    pub num_ranks: u32,
    /// How long they may take to find each other, and for an exchange to begin.
    pub timeout: Duration,
    /// Is set before an abort: what is on its way then ends like any other, and
    /// may be wrong.
    pub is_broken: Arc<AtomicBool>,
}

/// Makes the calling thread one whose current context is the GPU's: NCCL would
/// make another one on the machine's first GPU.
pub type Bind = Arc<dyn Fn() + Send + Sync>;

/// A communicator of a rank. Dropping it aborts what is on its way.
#[derive(Debug)]
pub struct Comm {
    inner: Arc<Inner>,
}

/// Aborts a communicator from elsewhere.
#[derive(Clone, Debug)]
pub struct Abort(Arc<Inner>);

struct Inner {
    library: Arc<Library>,
    members: Members,
    bind: Bind,
    /// Nothing more is called but the abort.
    is_aborted: AtomicBool,
    /// Null once the abort has it.
    raw: AtomicPtr<c_void>,
    /// Held by the one call that uses `raw`.
    using: Mutex<()>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("library", &self.library).field("members", &self.members).finish()
    }
}

/// An abort that has begun.
#[must_use = "whoever does not wait for it says so"]
pub(crate) struct Aborting(Option<(mpsc::Receiver<()>, Arc<Inner>)>);

impl Aborting {
    /// Waits until all of the communicator is given back, if that does not take
    /// too long.
    pub(crate) fn wait(self) {
        let Some((done, inner)) = self.0 else { return };
        if let Err(mpsc::RecvTimeoutError::Timeout) = done.recv_timeout(PATIENCE) {
            tracing::warn!(
                communicator = inner.members.name,
                "NCCL has not ended a communicator within {PATIENCE:?}: its memory is given back later"
            );
        }
    }
}

impl Abort {
    /// Ends what is on its way, and all that comes later, with an error.
    pub fn abort(&self) {
        self.0.begin_abort().wait();
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        self.begin_abort().wait();
    }
}

impl Comm {
    /// Becomes one of those who know each other by `id`; all of them come here
    /// at about the same time. The thread's current context is the GPU's, and `bind`
    /// makes it that of other threads. `begun` is told what aborts it, from before
    /// anybody is waited for.
    ///
    /// # Errors
    ///
    /// [`NcclError`], where the library refuses or the others do not come.
    pub fn join(
        library: Arc<Library>,
        id: &Id,
        members: Members,
        bind: Bind,
        begun: impl FnOnce(Abort),
    ) -> Result<Self, NcclError> {
        let mut config = Config::non_blocking();
        let mut raw: Raw = std::ptr::null_mut();
        let (num_ranks, rank) = (members.num_ranks as c_int, members.rank as c_int);
        // SAFETY: the id and the configuration are what the function takes; it writes
        // the communicator.
        let code = unsafe { (library.calls.init)(&mut raw, num_ranks, *id, rank, &mut config) };
        let what = format!("its {num_ranks} ranks to find each other");
        if code == SUCCESS && num_ranks > 1 {
            // They cannot have found each other yet: the call has waited for them.
            tracing::warn!(
                communicator = members.name,
                "NCCL waits in its calls, where no deadline ends them: unset NCCL_COMM_BLOCKING, \
                 also in /etc/nccl.conf and ~/.nccl.conf"
            );
        }
        let inner = Arc::new(Inner {
            library,
            members,
            bind,
            is_aborted: AtomicBool::new(false),
            raw: AtomicPtr::new(raw),
            using: Mutex::default(),
        });
        let comm = Self { inner };
        comm.inner.check("ncclCommInitRankConfig", code)?;
        begun(comm.abort_handle());
        comm.inner.settle("ncclCommInitRankConfig", &what)?;
        Ok(comm)
    }

    /// Who the ranks are.
    pub fn members(&self) -> &Members {
        &self.inner.members
    }

    /// What aborts it from elsewhere.
    pub fn abort_handle(&self) -> Abort {
        Abort(Arc::clone(&self.inner))
    }

    /// Ends what is on its way, and all that comes later.
    pub(crate) fn begin_abort(&self) -> Aborting {
        self.inner.begin_abort()
    }

    /// Enqueues exchanges on a stream, several as one. Returns when the GPU has
    /// them, not when they are done.
    ///
    /// # Errors
    ///
    /// [`NcclError`]; the communicator can then no longer be used.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of this rank's GPU, and each operation's addresses are
    /// of memory of this GPU that is large enough, until the stream has come past.
    pub unsafe fn enqueue(&self, stream: u64, operations: &[Operation]) -> Result<(), NcclError> {
        let Some((first, rest)) = operations.split_first() else { return Ok(()) };
        let stream = stream as usize as RawStream;
        let inner = &self.inner;
        let name = if rest.is_empty() { first.name() } else { "ncclGroupEnd" };
        let code = inner.with_raw(|calls, raw| {
            if rest.is_empty() {
                // SAFETY: whoever calls this says so.
                return unsafe { first.call(calls, raw, stream) };
            }
            // SAFETY: a group takes nothing; what is in it is as its caller says. It
            // ends whatever happened in it, for it is the thread's.
            unsafe {
                let begun = (calls.group_start)();
                let called = operations.iter().map(|operation| operation.call(calls, raw, stream));
                let failed = called.fold(begun, worse);
                worse(failed, (calls.group_end)())
            }
        })?;
        inner.check(name, code)?;
        inner.settle(name, "an exchange to begin")
    }

    /// Whether all that was enqueued went well so far: networks fail while the
    /// GPU waits for them.
    ///
    /// # Errors
    ///
    /// [`NcclError`]; the communicator can then no longer be used.
    pub fn check(&self) -> Result<(), NcclError> {
        match self.inner.state("ncclCommGetAsyncError")? {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => self.inner.check("ncclCommGetAsyncError", code),
        }
    }
}

/// The first of two results that is a failure, or that is not done.
fn worse(one: c_int, other: c_int) -> c_int {
    match (one, other) {
        (SUCCESS, other) => other,
        (IN_PROGRESS, SUCCESS) => IN_PROGRESS,
        (IN_PROGRESS, other) => other,
        (failed, _) => failed,
    }
}

impl Inner {
    /// Runs one call; none other runs meanwhile.
    fn with_raw(&self, run: impl FnOnce(&Calls, Raw) -> c_int) -> Result<c_int, NcclError> {
        let _using = self.using.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = self.raw.load(Ordering::Acquire);
        let is_over = raw.is_null() || self.is_aborted.load(Ordering::Acquire);
        if is_over { Err(self.aborted()) } else { Ok(run(&self.library.calls, raw)) }
    }

    /// What has become of what was begun.
    fn state(self: &Arc<Self>, call: &'static str) -> Result<c_int, NcclError> {
        let mut state = SUCCESS;
        let asked = self.with_raw(|calls, raw| {
            // SAFETY: the communicator is one, and is not aborted meanwhile.
            unsafe { (calls.async_error)(raw, &mut state) }
        })?;
        self.check(call, asked)?;
        Ok(state)
    }

    /// Waits until what was begun is under way.
    fn settle(self: &Arc<Self>, call: &'static str, what: &str) -> Result<(), NcclError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        for asked in 0.. {
            match self.state(call)? {
                SUCCESS => return Ok(()),
                IN_PROGRESS => {}
                code => return self.check(call, code),
            }
            let waited = self.members.timeout;
            if started.elapsed() >= waited {
                self.give_up();
                let communicator = self.members.name.clone();
                return Err(NcclError::Timeout { communicator, what: what.to_owned(), waited });
            }
            if asked < NUM_SPINS {
                std::thread::yield_now();
            } else {
                std::thread::park_timeout(pause);
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
        Ok(())
    }

    /// A failure is the end of the communicator.
    fn check(self: &Arc<Self>, call: &'static str, code: c_int) -> Result<(), NcclError> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        if self.is_aborted.load(Ordering::Acquire) {
            // Whatever the call says of it, this is why.
            return Err(self.aborted());
        }
        let reason = self.library.reason(code);
        self.give_up();
        Err(NcclError::Call { call, communicator: self.members.name.clone(), reason })
    }

    fn aborted(&self) -> NcclError {
        NcclError::Aborted { communicator: self.members.name.clone() }
    }

    /// Aborts without waiting: whoever failed is to say so at once, for it may be
    /// another communicator, not aborted yet, that holds the GPU up.
    fn give_up(self: &Arc<Self>) {
        drop(self.begin_abort());
    }

    fn begin_abort(self: &Arc<Self>) -> Aborting {
        self.members.is_broken.store(true, Ordering::Release);
        if self.is_aborted.swap(true, Ordering::AcqRel) {
            return Aborting(None);
        }
        let (done, is_done) = mpsc::sync_channel(1);
        let inner = Arc::clone(self);
        let run = move || {
            inner.abort();
            let _ = done.send(());
        };
        match std::thread::Builder::new().name("nccl-abort".to_owned()).spawn(run) {
            Ok(_) => Aborting(Some((is_done, Arc::clone(self)))),
            Err(error) => {
                tracing::error!(%error, "no thread for the end of a communicator");
                self.abort();
                Aborting(None)
            }
        }
    }

    fn abort(&self) {
        let deadline = Instant::now() + GRACE;
        let using = loop {
            match self.using.try_lock() {
                Ok(using) => break Some(using),
                Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => break None,
            }
        };
        let raw = self.raw.swap(std::ptr::null_mut(), Ordering::AcqRel);
        // Later calls find nothing, and none shall wait for the GPU with the abort.
        drop(using);
        if !raw.is_null() {
            (self.bind)();
            // SAFETY: the communicator is one, and nobody gets it from now on. A call that
            // still has it is stuck, and an abort is what NCCL has to end it.
            let _ = unsafe { (self.library.calls.abort)(raw) };
        }
    }
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::AllGather { .. } => "ncclAllGather",
            Self::AllReduce { .. } => "ncclAllReduce",
            Self::ReduceScatter { .. } => "ncclReduceScatter",
            Self::Reduce { .. } => "ncclReduce",
            Self::Broadcast { .. } => "ncclBroadcast",
            Self::Send { .. } => "ncclSend",
            Self::Receive { .. } => "ncclRecv",
        }
    }

    /// # Safety
    ///
    /// As of [`Comm::enqueue`]; the communicator is one.
    unsafe fn call(&self, calls: &Calls, raw: Raw, stream: RawStream) -> c_int {
        let (at, at_mut) = (
            |address: u64| address as usize as *const c_void,
            |address: u64| address as usize as *mut c_void,
        );
        // SAFETY: the arguments are what each function takes; whoever calls this vouches
        // for what they point to.
        unsafe {
            match *self {
                Self::AllGather { from, to, count, kind } => {
                    (calls.all_gather)(at(from), at_mut(to), count, kind.code(), raw, stream)
                }
                Self::AllReduce { from, to, count, kind } => {
                    (calls.all_reduce)(at(from), at_mut(to), count, kind.code(), SUM, raw, stream)
                }
                Self::ReduceScatter { from, to, count, kind } => {
                    (calls.reduce_scatter)(at(from), at_mut(to), count, kind.code(), SUM, raw, stream)
                }
                Self::Reduce { from, to, count, kind, root } => {
                    let root = root as c_int;
                    (calls.reduce)(at(from), at_mut(to), count, kind.code(), SUM, root, raw, stream)
                }
                Self::Broadcast { from, to, count, kind, root } => {
                    (calls.broadcast)(at(from), at_mut(to), count, kind.code(), root as c_int, raw, stream)
                }
                Self::Send { from, count, kind, rank } => {
                    (calls.send)(at(from), count, kind.code(), rank as c_int, raw, stream)
                }
                Self::Receive { to, count, kind, rank } => {
                    (calls.receive)(at_mut(to), count, kind.code(), rank as c_int, raw, stream)
                }
            }
        }
    }
}
