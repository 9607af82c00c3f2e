//! Loads the NCCL library, checks its version and formats its errors.

use crate::comm::error::{Error, Result};
use crate::cuda;
use crate::cuda::library::{symbol, table};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Environment variable: path of an NCCL to use instead of libtorch's, for example a newer one that lets ranks share a
/// GPU.
pub const NCCL_VARIABLE: &str = "DRNAS_NCCL";

/// The oldest version with all functions used here (2.18.0): averaging, bf16, the message of the last error.
const OLDEST: i32 = 21_800;
/// The oldest version that lets ranks share a GPU (2.30.0).
pub(super) const OLDEST_SHARING: i32 = 23_000;

const SETUP: &str = "run launch/setup.sh on a machine with an NVIDIA driver, or name a file in DRNAS_NCCL";

table! {
    /// The NCCL functions in use.
    Calls, header cudarc::nccl::sys, code ncclResult_t;
    fn ncclGetVersion(version: *mut c_int);
    fn ncclGetUniqueId(id: *mut ncclUniqueId);
    fn ncclCommInitRank(comm: *mut ncclComm_t, size: c_int, id: ncclUniqueId, rank: c_int);
    fn ncclCommDestroy(comm: ncclComm_t);
    fn ncclCommGetAsyncError(comm: ncclComm_t, code: *mut ncclResult_t);
    fn ncclGroupStart();
    fn ncclGroupEnd();
    fn ncclAllReduce(
        from: *const c_void,
        to: *mut c_void,
        count: usize,
        kind: ncclDataType_t,
        operation: ncclRedOp_t,
        comm: ncclComm_t,
        stream: cudaStream_t,
    );
    fn ncclBroadcast(
        from: *const c_void,
        to: *mut c_void,
        count: usize,
        kind: ncclDataType_t,
        root: c_int,
        comm: ncclComm_t,
        stream: cudaStream_t,
    );
}

type NcclErrorString = unsafe extern "C" fn(u32) -> *const c_char;
type LastError = unsafe extern "C" fn(ncclComm_t) -> *const c_char;

/// NCCL, never unloaded: it has its own threads.
pub(crate) struct Library {
    pub(super) calls: Calls,
    error_string: NcclErrorString,
    last_error: LastError,
    /// 22809 is 2.28.9.
    pub(super) version: i32,
    pub(super) path: PathBuf,
}

impl Library {
    /// Returns the library that libtorch uses, or the one named by [`NCCL_VARIABLE`]; the first call loads it.
    pub(crate) fn open() -> Result<&'static Library> {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        if let Some(library) = LIBRARY.get() {
            return Ok(library);
        }
        let (library, path) = Self::find()?;
        let library = Self::of(library, path)?;
        Ok(LIBRARY.get_or_init(|| library))
    }

    fn find() -> Result<(libloading::Library, PathBuf)> {
        let candidates = match std::env::var_os(NCCL_VARIABLE) {
            Some(path) => vec![PathBuf::from(path)],
            None => cuda::library_candidates("libnccl.so", &["libnccl.so.2", "libnccl.so"]),
        };
        let mut why = String::new();
        for path in candidates {
            // SAFETY: the vendor's library, opened as libtorch opens it.
            match unsafe { libloading::Library::new(&path) } {
                Ok(library) => {
                    let path = match path.is_absolute() {
                        true => path,
                        false => cuda::mapped_library("libnccl.so").unwrap_or(path),
                    };
                    return Ok((library, path));
                }
                // Report the error of the first candidate, the preferred one.
                Err(error) if why.is_empty() => why = error.to_string(),
                Err(_) => {}
            }
        }
        Err(Error::NcclMissing { why, advice: SETUP })
    }

    fn of(library: libloading::Library, path: PathBuf) -> Result<Library> {
        let missing = |symbol| Error::NcclSymbol { path: path.clone(), symbol, advice: SETUP };
        let calls = Calls::of(&library).map_err(missing)?;
        // SAFETY: const char *ncclGetErrorString(ncclResult_t), const char *ncclGetLastError(ncclComm_t).
        let (error_string, last_error) = unsafe {
            (
                symbol(&library, "ncclGetErrorString").map_err(missing)?,
                symbol(&library, "ncclGetLastError").map_err(missing)?,
            )
        };
        std::mem::forget(library);
        let mut version = 0;
        // SAFETY: a live out pointer.
        let code = unsafe { (calls.ncclGetVersion)(&mut version) };
        let library = Library { calls, error_string, last_error, version, path };
        if code != 0 {
            let text = library.text_of(code, std::ptr::null_mut());
            return Err(Error::NcclStart { call: "ncclGetVersion", text });
        }
        if version < OLDEST {
            return Err(Error::NcclTooOld {
                path: library.path,
                found: version_text(version),
                oldest: version_text(OLDEST),
                advice: SETUP,
            });
        }
        Ok(library)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Formats the message for `code` and NCCL's last error on `comm` (on any communicator, if null).
    pub(super) fn text_of(&self, code: u32, comm: ncclComm_t) -> String {
        // SAFETY: each returns a string owned by the library, or null; `comm` is live or null.
        let texts = unsafe { [(self.error_string)(code), (self.last_error)(comm)] };
        let [what, more] = texts.map(|text| match text.is_null() {
            true => String::new(),
            // SAFETY: not null, a zero-terminated string.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().replace('\n', " "),
        });
        match more.is_empty() {
            true => format!("{what} (NCCL error {code})"),
            false => format!("{what} (NCCL error {code}): {more}"),
        }
    }
}

/// Formats 22809 as "2.28.9".
pub(crate) fn version_text(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
