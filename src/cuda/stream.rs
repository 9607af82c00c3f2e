//! Ordering of GPU work: contexts, streams and events. Calls do not block the host unless their documentation says so.
//!
//! libtorch works on the legacy default stream ([`Stream::legacy`]) of the primary context ([`Context`]). A stream
//! created here does not synchronise with it implicitly: code that shares memory between the two must use events.

use super::driver::Driver;
use crate::cuda::error::Result;
use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUevent, CUevent_flags, CUstream, CUstream_flags};
use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;

/// The primary context of a GPU, which libtorch uses too. Retained until the process ends.
#[derive(Clone, Copy)]
pub struct Context {
    driver: &'static Driver,
    raw: CUcontext,
}

// SAFETY: a context may be used by any thread; each thread makes it current for itself.
unsafe impl Send for Context {}
// SAFETY: as above; the handle never changes.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of GPU `index` and makes it current on this thread.
    pub fn new(driver: &'static Driver, index: usize) -> Result<Context> {
        let device = driver.device(index)?;
        let mut raw = null_mut();
        // SAFETY: a live out pointer.
        let code = unsafe { (driver.calls.cuDevicePrimaryCtxRetain)(&mut raw, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let context = Context { driver, raw };
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current on this thread, for streams, events and NCCL.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: a context that is never released.
        let code = unsafe { (self.driver.calls.cuCtxSetCurrent)(self.raw) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    /// Returns free and total bytes of the GPU's memory. The context must be current on this thread.
    pub fn memory_bytes(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two live out pointers.
        let code = unsafe { (self.driver.calls.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", code)?;
        Ok((free, total))
    }
}

/// A CUDA stream: GPU work that runs in the order of submission.
pub struct Stream {
    context: Context,
    raw: CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    /// Creates a stream that does not synchronise with the legacy default stream. The context must be current on this
    /// thread.
    pub fn new(context: Context) -> Result<Stream> {
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        let mut raw = null_mut();
        // SAFETY: a live out pointer.
        let code = unsafe { (context.driver.calls.cuStreamCreate)(&mut raw, flags) };
        context.driver.check("cuStreamCreate", code)?;
        Ok(Stream { context, raw })
    }

    /// Returns the stream on which libtorch works.
    pub fn legacy(context: Context) -> Stream {
        Stream { context, raw: null_mut() }
    }

    /// Makes later work on this stream wait for the last recorded state of `event`. Does not block the host.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: a live stream and a live event.
        let code = unsafe { (self.context.driver.calls.cuStreamWaitEvent)(self.raw, event.raw, 0) };
        self.context.driver.check("cuStreamWaitEvent", code)
    }

    /// Copies `bytes` bytes from the host to the GPU, in stream order. Does not block the host if `from` is pinned
    /// memory.
    ///
    /// # Safety
    /// Both buffers must hold `bytes` bytes, and stay allocated and unmodified, until the copy is complete.
    pub unsafe fn copy_to_gpu(&self, to: *mut c_void, from: *const c_void, bytes: usize) -> Result<()> {
        let calls = &self.context.driver.calls;
        // SAFETY: guaranteed by the caller.
        let code = unsafe { (calls.cuMemcpyHtoDAsync_v2)(to as CUdeviceptr, from, bytes, self.raw) };
        self.context.driver.check("cuMemcpyHtoDAsync", code)
    }

    /// Returns the handle, for calls of other libraries.
    pub fn raw(&self) -> CUstream {
        self.raw
    }
}

impl Drop for Stream {
    /// Work that has been submitted still completes.
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created by `new`, destroyed once. An error is harmless: the process is about to end.
            unsafe { (self.context.driver.calls.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A CUDA event: a point in a stream's work.
pub struct Event {
    context: Context,
    raw: CUevent,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Creates an event without timing, the cheapest kind. The context must be current on this thread.
    pub fn new(context: Context) -> Result<Event> {
        Self::with(context, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// Creates an event with timing, for [`Event::ms_since`].
    pub fn timed(context: Context) -> Result<Event> {
        Self::with(context, CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(context: Context, flags: CUevent_flags) -> Result<Event> {
        let mut raw = null_mut();
        // SAFETY: a live out pointer.
        let code = unsafe { (context.driver.calls.cuEventCreate)(&mut raw, flags as c_uint) };
        context.driver.check("cuEventCreate", code)?;
        Ok(Event { context, raw })
    }

    /// Records the work submitted to `stream` so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: a live event and a live stream of the same context.
        let code = unsafe { (self.context.driver.calls.cuEventRecord)(self.raw, stream.raw) };
        self.context.driver.check("cuEventRecord", code)
    }

    /// Returns whether the recorded work is complete, or the error of that work. Does not block the host.
    pub fn is_done(&self) -> Result<bool> {
        const NOT_READY: u32 = cudarc::driver::sys::CUresult::CUDA_ERROR_NOT_READY as u32;
        // SAFETY: a live event.
        match unsafe { (self.context.driver.calls.cuEventQuery)(self.raw) } {
            NOT_READY => Ok(false),
            code => self.context.driver.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Blocks the host, without limit, until the recorded work is complete: not for use within a step.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: a live event.
        let code = unsafe { (self.context.driver.calls.cuEventSynchronize)(self.raw) };
        self.context.driver.check("cuEventSynchronize", code)
    }

    /// Returns the milliseconds from `start` to this event; both must be timed, recorded and complete.
    pub fn ms_since(&self, start: &Event) -> Result<f64> {
        let mut ms = 0.0;
        // SAFETY: a live out pointer and two live events.
        let code = unsafe { (self.context.driver.calls.cuEventElapsedTime_v2)(&mut ms, start.raw, self.raw) };
        self.context.driver.check("cuEventElapsedTime", code)?;
        Ok(f64::from(ms))
    }
}

impl Drop for Event {
    /// Work that waits for the event still does.
    fn drop(&mut self) {
        // SAFETY: created by `with`, destroyed once.
        unsafe { (self.context.driver.calls.cuEventDestroy_v2)(self.raw) };
    }
}
