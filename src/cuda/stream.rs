//! Order on a GPU: its context, streams of work, and events between streams. Nothing here waits on the host unless it says so.
//!
//! libtorch works on the legacy default stream ([`Stream::legacy`]) of the primary context ([`Context`]). A stream made here
//! does not wait for that one by itself: whoever shares memory between the two places events.

use super::driver::Driver;
use crate::cuda::error::Result;
use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUevent, CUevent_flags, CUstream, CUstream_flags};
use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;

/// The primary context of one GPU: the one that libtorch uses. Kept until the process ends.
#[derive(Clone, Copy)]
pub struct Context {
    driver: &'static Driver,
    raw: CUcontext,
}

// SAFETY: a context may be used by any thread; each makes it current for itself.
unsafe impl Send for Context {}
// SAFETY: as above; the handle never changes.
unsafe impl Sync for Context {}

impl Context {
    /// The primary context of GPU `index`, current on this thread from now on.
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

    /// Makes it current on this thread: streams, events and NCCL then mean this GPU.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: a context that is never released.
        let code = unsafe { (self.driver.calls.cuCtxSetCurrent)(self.raw) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    /// Free and total bytes of the GPU's memory; the context is current on this thread.
    pub fn memory_bytes(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two live out pointers.
        let code = unsafe { (self.driver.calls.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", code)?;
        Ok((free, total))
    }
}

/// Work of a GPU that runs in the order it was given.
pub struct Stream {
    context: Context,
    raw: CUstream,
}

// SAFETY: the driver takes calls about a stream from any thread.
unsafe impl Send for Stream {}

impl Stream {
    /// A new stream that does not wait for the legacy default stream by itself. The context is current on this thread.
    pub fn new(context: Context) -> Result<Stream> {
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        let mut raw = null_mut();
        // SAFETY: a live out pointer.
        let code = unsafe { (context.driver.calls.cuStreamCreate)(&mut raw, flags) };
        context.driver.check("cuStreamCreate", code)?;
        Ok(Stream { context, raw })
    }

    /// The stream that libtorch works on.
    pub fn legacy(context: Context) -> Stream {
        Stream { context, raw: null_mut() }
    }

    /// What comes after on this stream waits until `event`, as recorded last, has come. The host does not wait.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: a live stream and a live event.
        let code = unsafe { (self.context.driver.calls.cuStreamWaitEvent)(self.raw, event.raw, 0) };
        self.context.driver.check("cuStreamWaitEvent", code)
    }

    /// Copies `bytes` from the host to the GPU, in this stream's order. From pinned memory the host does not wait.
    ///
    /// # Safety
    /// Both places have so many bytes, and keep them, unchanged, until the copy is done.
    pub unsafe fn copy_to_gpu(&self, to: *mut c_void, from: *const c_void, bytes: usize) -> Result<()> {
        let calls = &self.context.driver.calls;
        // SAFETY: as promised by the caller.
        let code = unsafe { (calls.cuMemcpyHtoDAsync_v2)(to as CUdeviceptr, from, bytes, self.raw) };
        self.context.driver.check("cuMemcpyHtoDAsync", code)
    }

    /// For calls of other libraries.
    pub fn raw(&self) -> CUstream {
        self.raw
    }
}

impl Drop for Stream {
    /// Work on it still runs to its end.
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by `new`, destroyed once. A refusal harms nobody: the process is about to end.
            unsafe { (self.context.driver.calls.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A point in a stream's work.
pub struct Event {
    context: Context,
    raw: CUevent,
}

// SAFETY: the driver takes calls about an event from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event for order alone, the cheapest kind. The context is current on this thread.
    pub fn new(context: Context) -> Result<Event> {
        Self::with(context, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that knows its time, for [`Event::ms_since`].
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

    /// Marks the end of the work that `stream` has by now.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: a live event and a live stream of the same context.
        let code = unsafe { (self.context.driver.calls.cuEventRecord)(self.raw, stream.raw) };
        self.context.driver.check("cuEventRecord", code)
    }

    /// Whether the work before it is done. Errors of that work come to light here. Does not wait.
    pub fn is_done(&self) -> Result<bool> {
        const NOT_READY: u32 = cudarc::driver::sys::CUresult::CUDA_ERROR_NOT_READY as u32;
        // SAFETY: a live event.
        match unsafe { (self.context.driver.calls.cuEventQuery)(self.raw) } {
            NOT_READY => Ok(false),
            code => self.context.driver.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// The host waits, without limit, until the work before it is done: not for the inside of a step.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: a live event.
        let code = unsafe { (self.context.driver.calls.cuEventSynchronize)(self.raw) };
        self.context.driver.check("cuEventSynchronize", code)
    }

    /// Milliseconds from `start` to this event; both timed, recorded and done.
    pub fn ms_since(&self, start: &Event) -> Result<f64> {
        let mut ms = 0.0;
        // SAFETY: a live out pointer and two live events.
        let code = unsafe { (self.context.driver.calls.cuEventElapsedTime_v2)(&mut ms, start.raw, self.raw) };
        self.context.driver.check("cuEventElapsedTime", code)?;
        Ok(f64::from(ms))
    }
}

impl Drop for Event {
    /// What waits for it still does.
    fn drop(&mut self) {
        // SAFETY: made by `with`, destroyed once.
        unsafe { (self.context.driver.calls.cuEventDestroy_v2)(self.raw) };
    }
}
