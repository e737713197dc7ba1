//! The library: found at run time, never linked, and its functions by name.
//!
//! The types are our own: results are plain integers, because a newer library
//! may return numbers that an enumeration of today does not have, and the
//! configuration is an old one, which every newer version reads by its size and
//! version.

#![expect(unsafe_code, reason = "loads a C library and names the types of its functions")]

use crate::error::{NcclError, Version};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// The oldest version that will do: before it, an abort from another thread frees
/// what a launch that is under way still uses, or itself while it is at it.
pub(crate) const LEAST: Version = Version { major: 2, minor: 22, patch: 0 };

/// Whose [`Config`] it is.
const CONFIG: Version = Version { major: 2, minor: 18, patch: 0 };

/// Where the library is, if nobody says: runtime packages have only the first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// A communicator as the library knows it.
pub(crate) type Raw = *mut c_void;
/// A CUDA stream as the library knows it.
pub(crate) type RawStream = *mut c_void;

/// `ncclResult_t`.
pub(crate) const SUCCESS: c_int = 0;
pub(crate) const IN_PROGRESS: c_int = 7;

/// Bytes of an [`Id`].
pub const ID_BYTES: usize = 128;

/// What the ranks of one communicator know each other by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Id(pub [u8; ID_BYTES]);

/// `ncclConfig_t` of 2.18.
#[repr(C)]
pub(crate) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once, and everything else is as the library likes it.
    pub(crate) fn non_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: CONFIG.code(),
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type Buffer = *const c_void;
type BufferMut = *mut c_void;

/// The functions, as nccl.h declares them.
pub(crate) struct Calls {
    pub(crate) get_unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    pub(crate) init: unsafe extern "C" fn(*mut Raw, c_int, Id, c_int, *mut Config) -> c_int,
    pub(crate) async_error: unsafe extern "C" fn(Raw, *mut c_int) -> c_int,
    pub(crate) abort: unsafe extern "C" fn(Raw) -> c_int,
    pub(crate) group_start: unsafe extern "C" fn() -> c_int,
    pub(crate) group_end: unsafe extern "C" fn() -> c_int,
    pub(crate) all_gather: unsafe extern "C" fn(Buffer, BufferMut, usize, c_int, Raw, RawStream) -> c_int,
    pub(crate) all_reduce:
        unsafe extern "C" fn(Buffer, BufferMut, usize, c_int, c_int, Raw, RawStream) -> c_int,
    pub(crate) reduce_scatter:
        unsafe extern "C" fn(Buffer, BufferMut, usize, c_int, c_int, Raw, RawStream) -> c_int,
    pub(crate) reduce:
        unsafe extern "C" fn(Buffer, BufferMut, usize, c_int, c_int, c_int, Raw, RawStream) -> c_int,
    pub(crate) broadcast:
        unsafe extern "C" fn(Buffer, BufferMut, usize, c_int, c_int, Raw, RawStream) -> c_int,
    pub(crate) send: unsafe extern "C" fn(Buffer, usize, c_int, c_int, Raw, RawStream) -> c_int,
    pub(crate) receive: unsafe extern "C" fn(BufferMut, usize, c_int, c_int, Raw, RawStream) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Raw) -> *const c_char,
}

/// A loaded library.
pub struct Library {
    path: PathBuf,
    version: Version,
    pub(crate) calls: Calls,
    /// Never unloaded: threads of its own may outlive the last communicator.
    _library: ManuallyDrop<libloading::Library>,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("path", &self.path).field("version", &self.version).finish()
    }
}

impl Library {
    /// Loads the library at `path`, or where the system finds it.
    ///
    /// # Errors
    ///
    /// [`NcclError`] says what was tried, or what the library found lacks.
    pub fn open(path: Option<&Path>) -> Result<Self, NcclError> {
        let names: Vec<PathBuf> = match path {
            Some(path) => vec![path.to_owned()],
            None => NAMES.iter().map(PathBuf::from).collect(),
        };
        let mut tried = Vec::new();
        for path in names {
            // SAFETY: what it runs when it is loaded is NCCL's own beginning, or that
            // of a file that whoever runs this named.
            match unsafe { libloading::Library::new(&path) } {
                Ok(library) => return Self::bind(path, library),
                Err(error) => tried.push(reason(&path, &error)),
            }
        }
        Err(NcclError::NotFound { tried: tried.join("; ") })
    }

    fn bind(path: PathBuf, library: libloading::Library) -> Result<Self, NcclError> {
        macro_rules! symbol {
            ($name:literal) => {{
                // SAFETY: the type is that of the function of this name in nccl.h.
                let found = unsafe { library.get(concat!($name, "\0")) };
                *found.map_err(|_| NcclError::Incomplete {
                    path: path.clone(),
                    symbol: $name,
                    least: LEAST,
                })?
            }};
        }
        let version: unsafe extern "C" fn(*mut c_int) -> c_int = symbol!("ncclGetVersion");
        let mut code = 0;
        // SAFETY: it writes the number, and nothing else.
        let outcome = unsafe { version(&mut code) };
        let found = Version::from_code(u32::try_from(code).unwrap_or(0));
        if outcome != SUCCESS || found < LEAST {
            return Err(NcclError::TooOld { path, found, least: LEAST });
        }
        let calls = Calls {
            get_unique_id: symbol!("ncclGetUniqueId"),
            init: symbol!("ncclCommInitRankConfig"),
            async_error: symbol!("ncclCommGetAsyncError"),
            abort: symbol!("ncclCommAbort"),
            group_start: symbol!("ncclGroupStart"),
            group_end: symbol!("ncclGroupEnd"),
            all_gather: symbol!("ncclAllGather"),
            all_reduce: symbol!("ncclAllReduce"),
            reduce_scatter: symbol!("ncclReduceScatter"),
            reduce: symbol!("ncclReduce"),
            broadcast: symbol!("ncclBroadcast"),
            send: symbol!("ncclSend"),
            receive: symbol!("ncclRecv"),
            error_string: symbol!("ncclGetErrorString"),
            last_error: symbol!("ncclGetLastError"),
        };
        Ok(Self { path, version: found, calls, _library: ManuallyDrop::new(library) })
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it was found; a name without folders is the system's own.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes what the ranks of one new communicator know each other by: one of
    /// them makes it, and listens for the others from then on.
    ///
    /// # Errors
    ///
    /// [`NcclError::Call`], where the network does not let it listen.
    pub fn unique_id(&self) -> Result<Id, NcclError> {
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: it writes the id, and nothing else.
        let code = unsafe { (self.calls.get_unique_id)(&mut id) };
        match code {
            SUCCESS => Ok(id),
            code => Err(NcclError::Call {
                call: "ncclGetUniqueId",
                communicator: "a new communicator".to_owned(),
                reason: self.reason(code),
            }),
        }
    }

    /// What a result means, and what the library wrote of it last.
    pub(crate) fn reason(&self, code: c_int) -> String {
        // SAFETY: both give strings of the library; the first lives for ever, and the
        // second, which takes no communicator, until this thread's next call.
        let (meaning, last) =
            unsafe { ((self.calls.error_string)(code), (self.calls.last_error)(std::ptr::null_mut())) };
        let meaning = text(meaning).unwrap_or_else(|| format!("result {code}"));
        match text(last).filter(|last| !last.is_empty()) {
            Some(last) => format!("{meaning}: {last}"),
            None => meaning,
        }
    }
}

fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: the library gives strings that end in a zero.
    let text = (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) });
    Some(text?.to_string_lossy().trim().to_owned())
}

/// The loader's own words hold the path already, most of the time.
fn reason(path: &Path, error: &libloading::Error) -> String {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let name = path.display().to_string();
    if cause.contains(&name) { cause } else { format!("{name}: {cause}") }
}
