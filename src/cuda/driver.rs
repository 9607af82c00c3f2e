//! The NVIDIA driver: its version and GPUs, queried without creating a context.

use super::library::{symbol, table};
use crate::cuda::error::{Error, Result};
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUresult, CUstream, CUuuid};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::fs::File;
use std::sync::OnceLock;

/// File name of the driver library.
pub const DRIVER_FILE: &str = "libcuda.so.1";

table! {
    /// The driver functions in use.
    Calls, header cudarc::driver::sys, code CUresult;
    fn cuInit(flags: c_uint);
    fn cuDriverGetVersion(version: *mut c_int);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice);
    fn cuDeviceGetPCIBusId(text: *mut c_char, length: c_int, device: CUdevice);
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    fn cuCtxSetCurrent(context: CUcontext);
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    fn cuStreamDestroy_v2(stream: CUstream);
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventQuery(event: CUevent);
    fn cuEventSynchronize(event: CUevent);
    fn cuEventElapsedTime_v2(ms: *mut f32, start: CUevent, end: CUevent);
    fn cuEventDestroy_v2(event: CUevent);
}

type CuErrorString = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

/// The initialised driver. It has its own threads and is never unloaded.
pub struct Driver {
    pub(super) calls: Calls,
    error_string: CuErrorString,
    num_gpus: usize,
}

/// Properties of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Index among the GPUs visible to this process.
    pub index: usize,
    /// Product name.
    pub name: String,
    /// Total memory.
    pub memory_bytes: usize,
    /// Unique and independent of the index; a MIG instance has its own.
    pub uuid: [u8; 16],
    /// PCI bus ID, such as "0000:81:00.0".
    pub bus_id: String,
}

/// Why the driver cannot be used.
#[derive(Clone, Debug)]
pub enum DriverUnavailable {
    /// No driver is installed.
    Absent(String),
    /// The driver is too old or failed to initialise.
    Unusable(String),
}

impl fmt::Display for DriverUnavailable {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let (DriverUnavailable::Absent(why) | DriverUnavailable::Unusable(why)) = self;
        out.write_str(why)
    }
}

/// Returns whether this process may use an NVIDIA GPU of this machine, whichever libraries are installed: its device
/// file can be opened. (A container may have the file without the driver library.)
pub fn gpu_is_present() -> bool {
    let openable = |path: String| File::options().read(true).write(true).open(path).is_ok();
    (0..16).any(|number| openable(format!("/dev/nvidia{number}")))
}

impl Driver {
    /// Returns the driver, or the reason why it is unavailable. The first call loads it.
    pub fn open() -> Result<&'static Driver, DriverUnavailable> {
        static DRIVER: OnceLock<Result<Driver, DriverUnavailable>> = OnceLock::new();
        DRIVER.get_or_init(Driver::new).as_ref().map_err(DriverUnavailable::clone)
    }

    fn new() -> Result<Driver, DriverUnavailable> {
        // SAFETY: the constructors of the driver library have no preconditions.
        let library = unsafe { Library::new(DRIVER_FILE) }
            .map_err(|error| DriverUnavailable::Absent(format!("no NVIDIA driver ({error})")))?;
        let missing = |name| {
            DriverUnavailable::Unusable(format!("the NVIDIA driver is too old: {DRIVER_FILE} has no {name}"))
        };
        let calls = Calls::of(&library).map_err(missing)?;
        // SAFETY: CUresult cuGetErrorString(CUresult, const char **).
        let error_string = unsafe { symbol(&library, "cuGetErrorString") }.map_err(missing)?;
        // Never unloaded: once initialised it has its own threads.
        std::mem::forget(library);
        let mut driver = Driver { calls, error_string, num_gpus: 0 };
        let mut count = 0;
        // SAFETY: no argument.
        let started = unsafe { (driver.calls.cuInit)(0) };
        // Without a GPU, cuInit fails.
        if started == sys::CUresult::CUDA_ERROR_NO_DEVICE as u32 {
            return Ok(driver);
        }
        // SAFETY: a live out pointer.
        let counted = driver.check("cuInit", started).and_then(|()| unsafe {
            driver.check("cuDeviceGetCount", (driver.calls.cuDeviceGetCount)(&mut count))
        });
        counted.map_err(|error| DriverUnavailable::Unusable(format!("the NVIDIA driver failed: {error}")))?;
        driver.num_gpus = count as usize;
        Ok(driver)
    }

    /// Returns the number of GPUs visible to this process.
    pub fn num_gpus(&self) -> usize {
        self.num_gpus
    }

    /// Returns the CUDA version supported by the driver, 13000 for 13.0.
    pub fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: a live out pointer.
        let code = unsafe { (self.calls.cuDriverGetVersion)(&mut version) };
        self.check("cuDriverGetVersion", code)?;
        Ok(version)
    }

    /// Returns the properties of GPU `index`.
    pub fn gpu(&self, index: usize) -> Result<Gpu> {
        let device = self.device(index)?;
        let (mut name, mut bus_id) = ([0 as c_char; 256], [0 as c_char; 32]);
        let (mut memory_bytes, mut uuid) = (0, CUuuid { bytes: [0; 16] });
        // SAFETY: every out pointer is live; the buffers have the given lengths, including the terminating zero.
        unsafe {
            self.check("cuDeviceGetName", (self.calls.cuDeviceGetName)(name.as_mut_ptr(), 256, device))?;
            self.check(
                "cuDeviceGetPCIBusId",
                (self.calls.cuDeviceGetPCIBusId)(bus_id.as_mut_ptr(), 32, device),
            )?;
            self.check("cuDeviceTotalMem", (self.calls.cuDeviceTotalMem_v2)(&mut memory_bytes, device))?;
            self.check("cuDeviceGetUuid", (self.calls.cuDeviceGetUuid_v2)(&mut uuid, device))?;
        }
        // SAFETY: both buffers are zero-terminated by the driver, or still all zero.
        let text =
            |chars: &[c_char]| unsafe { CStr::from_ptr(chars.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Gpu {
            index,
            name: text(&name),
            memory_bytes,
            uuid: uuid.bytes.map(|byte| byte as u8),
            bus_id: text(&bus_id),
        })
    }

    pub(super) fn device(&self, index: usize) -> Result<CUdevice> {
        let mut device = 0;
        // SAFETY: a live out pointer.
        let code = unsafe { (self.calls.cuDeviceGet)(&mut device, index as c_int) };
        self.check("cuDeviceGet", code)?;
        Ok(device)
    }

    /// Returns an error with the driver's message unless `code` is 0.
    pub(super) fn check(&self, call: &'static str, code: u32) -> Result<()> {
        if code == sys::CUresult::CUDA_SUCCESS as u32 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: a live out pointer; the driver sets it to a string of its own or to null.
        let known = unsafe { (self.error_string)(code, &mut text) } == 0 && !text.is_null();
        let text = match known {
            // SAFETY: not null, a constant string of the driver.
            true => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
            false => "unknown error".into(),
        };
        Err(Error::CallFailed { call, code, text })
    }
}
