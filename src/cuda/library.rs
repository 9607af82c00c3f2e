//! Tables of C functions taken from a vendor's library at run time.
//!
//! The types are those of cudarc, its loader is not used: it looks for `libnccl.so` where wheels ship `libnccl.so.2`, it
//! cannot be told which file libtorch uses, it panics where something is missing, and it reads answers as Rust enums, so
//! that a code of a newer library would be undefined behaviour.

use libloading::Library;

/// Declares a table of functions that answer with a code, 0 for success. `header` is the module of cudarc whose bindings
/// must have the very same arguments: a table that differs does not compile.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident, header $header:path, code $code:ty;
     $( fn $function:ident ( $($argument:ident: $type:ty),* $(,)? ); )*) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $table {
            $( pub(crate) $function: unsafe extern "C" fn($($argument: $type),*) -> u32, )*
        }

        impl $table {
            /// Every function of `library`, or the name of the first that it lacks.
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

/// The function `name` of `library`.
///
/// # Safety
/// `F` is the type of the function.
pub(crate) unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: as promised by the caller.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|function| *function).map_err(|_| name)
}
