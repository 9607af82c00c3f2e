//! Handles SIGBUS, which the kernel sends when a mapped shard is truncated or its disk fails: prints one line that
//! names the shard, and exits.

use std::os::raw::{c_int, c_void};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// A mapped file and its error message. Never freed: the handler may read it at any time.
struct MappedRegion {
    start: usize,
    /// 0 after unmapping.
    end: AtomicUsize,
    message: Vec<u8>,
    next: AtomicPtr<MappedRegion>,
}

static MAPS: AtomicPtr<MappedRegion> = AtomicPtr::new(std::ptr::null_mut());
static INSTALL: Once = Once::new();
/// The previous SIGBUS handler: the Rust runtime's check for stack overflows.
static BEFORE: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

/// Watches a map until dropped.
pub(super) struct SigbusGuard(&'static MappedRegion);

impl SigbusGuard {
    /// Watches the bytes `map` of the shard at `path`.
    pub(super) fn watch(path: &Path, map: &[u8]) -> SigbusGuard {
        INSTALL.call_once(install);
        let here = crate::process::phase::here();
        // `pack` opens shards too, but is not a rank.
        let who = match here.host.is_empty() {
            true => String::new(),
            false => format!("rank {} on {}: ", here.rank, here.host),
        };
        let message = format!(
            "{who}shard {}: truncated, replaced in place or unreadable while it was read (SIGBUS); terminating all \
             ranks; copy it again or pack it again (datasets/README.md), then resume with --resume\n",
            path.display()
        );
        let start = map.as_ptr() as usize;
        let entry: &'static MappedRegion = Box::leak(Box::new(MappedRegion {
            start,
            end: AtomicUsize::new(start + map.len()),
            message: message.into_bytes(),
            next: AtomicPtr::default(),
        }));
        let pointer = std::ptr::from_ref(entry).cast_mut();
        let mut first = MAPS.load(Acquire);
        loop {
            entry.next.store(first, Release);
            match MAPS.compare_exchange(first, pointer, AcqRel, Acquire) {
                Ok(_) => return SigbusGuard(entry),
                Err(now) => first = now,
            }
        }
    }
}

impl Drop for SigbusGuard {
    fn drop(&mut self) {
        self.0.end.store(0, Release);
    }
}

fn install() {
    // SAFETY: plain calls with live arguments; `handle` is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &action, &mut before) == 0 {
            BEFORE.store(before.sa_sigaction, Release);
        }
    }
}

/// The signal handler: no allocation, no lock, only `write` and `_exit`.
extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a live `info` to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut at = MAPS.load(Acquire);
    // SAFETY: entries are never freed, and only changed through their atomics.
    while let Some(entry) = unsafe { at.as_ref() } {
        if (entry.start..entry.end.load(Acquire)).contains(&address) {
            // SAFETY: both calls are async-signal-safe; the message is never freed.
            unsafe {
                libc::write(2, entry.message.as_ptr().cast(), entry.message.len());
                libc::_exit(1)
            }
        }
        at = entry.next.load(Acquire);
    }
    // Not a watched map: call the previous handler. If there was none, restore the default action, which ends the
    // process when the access is repeated.
    match BEFORE.load(Acquire) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        before => {
            // SAFETY: the runtime's handler, installed with SA_SIGINFO.
            let before: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(before) };
            before(signal, info, context);
        }
    }
}
