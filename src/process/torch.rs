//! What libtorch is told once for the whole process (its threads, and whether it may use TensorFloat-32), and small copies.

use std::ffi::c_void;
use tch::{Device, Tensor};

/// Gives libtorch `num_threads` threads, for the inside of operations only. Before the first tensor.
pub fn set_threads(num_threads: usize) {
    tch::set_num_threads(num_threads as i32);
    // Nothing here runs operations side by side inside libtorch; libtorch takes this number once only.
    if tch::get_num_interop_threads() != 1 {
        tch::set_num_interop_threads(1);
    }
}

/// The number of threads that the environment variable OMP_NUM_THREADS asks for; none if it is not set.
pub fn omp_num_threads() -> Option<usize> {
    parse_num_threads(&std::env::var("OMP_NUM_THREADS").ok()?)
}

/// The first number of a list, one per level of nesting, as OpenMP reads it; none if that is not within 1..=1024, as `run.threads`.
fn parse_num_threads(list: &str) -> Option<usize> {
    list.split(',').next()?.trim().parse().ok().filter(|&threads| (1..=1024).contains(&threads))
}

/// Allows libtorch to use TensorFloat-32, or forbids it: in convolutions and products. (The variable NVIDIA_TF32_OVERRIDE=0
/// forbids it to the libraries whatever is said here.)
pub fn allow_tf32(allow: bool) {
    // SAFETY: at::globalContext() of the libtorch this is linked with (tch is pinned to its version) returns a
    // reference to an object that lives as long as the process; the two setters take it and a bool, and may be
    // called before CUDA is there. On x86-64 and aarch64 `this` and a reference are passed as pointers.
    unsafe {
        let context = global_context();
        set_allow_tf32_cudnn(context, allow);
        set_allow_tf32_cublas(context, allow);
    }
}

/// Copies a small tensor of the host to `device`; the host does not wait for a GPU.
pub fn upload(tensor: &Tensor, device: Device) -> Tensor {
    match device {
        // Not `pin_memory`: it warns that an argument is deprecated which tch always gives.
        Device::Cuda(_) => tensor.internal_pin_memory(device).to_device_(device, tensor.kind(), true, false),
        _ => tensor.to_device(device),
    }
}

// tch has no names for these. Linked, not looked up: another libtorch fails at build time.
unsafe extern "C" {
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    #[link_name = "_ZN2at7Context17setAllowTF32CuDNNEb"]
    fn set_allow_tf32_cudnn(context: *mut c_void, allow: bool);
    #[link_name = "_ZN2at7Context18setAllowTF32CuBLASEb"]
    fn set_allow_tf32_cublas(context: *mut c_void, allow: bool);
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        #[link_name = "_ZNK2at7Context15allowTF32CuBLASEv"]
        fn allow_tf32_cublas(context: *const c_void) -> bool;
        // backend: 1 CUDA; op: 1 convolution, 3 product; result: 2 is TF32 (ATen/Context.h).
        #[link_name = "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE"]
        fn float32_precision(context: *const c_void, backend: i32, op: i32) -> i32;
    }

    #[test]
    fn omp_num_threads_is_read_as_openmp_reads_it() {
        for (list, threads) in
            [("3", Some(3)), (" 4,2 ", Some(4)), ("0", None), ("-1", None), ("", None), ("two", None)]
        {
            assert_eq!(parse_num_threads(list), threads, "{list:?}");
        }
        assert_eq!(parse_num_threads("3000000000"), None);
    }

    #[test]
    fn libtorch_is_told() {
        for allow in [true, false, true, false] {
            allow_tf32(allow);
            // SAFETY: as in `allow_tf32`; these only read.
            let found = unsafe {
                let context = global_context();
                (
                    allow_tf32_cublas(context),
                    float32_precision(context, 1, 1) == 2,
                    float32_precision(context, 1, 3) == 2,
                )
            };
            assert_eq!(found, (allow, allow, allow));
        }
    }
}
