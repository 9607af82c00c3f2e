//! Tables of C functions loaded from a vendor's library at run time.
//!
//! The types come from cudarc, but not the loader: cudarc looks for `libnccl.so` where wheels ship `libnccl.so.2`,
//! cannot be given the file that libtorch uses, panics on a missing symbol, and returns codes as Rust enums, so that a
//! code added by a newer library would be undefined behaviour.

use libloading::Library;

/// Declares a table of functions that return a code, 0 for success. `header` is the cudarc module whose bindings must
/// have exactly the same arguments: a mismatch does not compile.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident, header $header:path, code $code:ty;
     $( fn $function:ident ( $($argument:ident: $type:ty),* $(,)? ); )*) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $table {
            $( pub(crate) $function: unsafe extern "C" fn($($argument: $type),*) -> u32, )*
        }

        impl $table {
            /// Looks up every function in `library`; the error is the name of the first missing one.
            pub(crate) fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the type is the one that cudarc generated from the vendor's header.
                    $( $function: unsafe { $crate::cuda::library::symbol(library, stringify!($function))? }, )*
                })
            }
        }

        const _: () = {
            use $header as header;
            $( let _: unsafe fn($($type),*) -> $code = header::$function; )*
        };
    };
}
pub(crate) use table;

/// Looks up the function `name` in `library`.
///
/// # Safety
/// `F` must be the type of the function.
pub(crate) unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: guaranteed by the caller.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|function| *function).map_err(|_| name)
}
