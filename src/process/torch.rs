//! Process-wide settings of libtorch (threads and TensorFloat-32), and non-blocking copies to a device.

use std::ffi::c_void;
use tch::{Device, Tensor};

/// Sets libtorch's number of intra-op threads. Called before the first tensor.
pub fn set_threads(num_threads: usize) {
    tch::set_num_threads(num_threads as i32);
    // Operations never run concurrently inside libtorch; this number can be set only once.
    if tch::get_num_interop_threads() != 1 {
        tch::set_num_interop_threads(1);
    }
}

/// Allows or forbids TensorFloat-32 in convolutions and matrix products. The environment variable
/// NVIDIA_TF32_OVERRIDE=0 forbids it in the libraries regardless.
pub fn allow_tf32(allow: bool) {
    // SAFETY: at::globalContext() of the linked libtorch (tch is pinned to its version) returns a reference to an
    // object that lives as long as the process; the two setters take it and a bool, and may be called before CUDA is
    // initialised. On x86-64 and aarch64 `this` and a reference are passed as pointers.
    unsafe {
        let context = global_context();
        set_allow_tf32_cudnn(context, allow);
        set_allow_tf32_cublas(context, allow);
    }
}

/// Copies a small tensor of the host to `device`. The host does not wait for a GPU.
pub fn upload(tensor: &Tensor, device: Device) -> Tensor {
    match device {
        // Not `pin_memory`, which warns about a deprecated argument that tch always passes.
        Device::Cuda(_) => tensor.internal_pin_memory(device).to_device_(device, tensor.kind(), true, false),
        _ => tensor.to_device(device),
    }
}

// tch does not bind these. They are linked, not looked up, so that a different libtorch fails at build time.
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
    fn tf32_is_set_in_libtorch() {
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
