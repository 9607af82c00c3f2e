//! Precision: the floating-point kinds that a network computes in, and what libtorch is told of it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::ffi::c_void;
use std::fmt;
use tch::Kind;

/// How exact a network computes. Weights, batch-norm statistics, mixing weights, losses and gradient sums are float32 in
/// all of them but `Fp64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32, on GPUs too: TensorFloat-32, which libtorch lets cuDNN use otherwise, is off.
    Fp32,
    /// float32 whose products a GPU rounds to TensorFloat-32 (10 bits of mantissa); on CPUs the same as `Fp32`.
    Tf32,
    /// Convolutions and activations in bfloat16 (7 bits of mantissa).
    Bf16,
    /// float64, for checks: slower, and differences between orders of summation vanish.
    Fp64,
}

impl Precision {
    /// Kind of weights, statistics, mixing weights, eta and losses.
    pub fn weights(self) -> Kind {
        if self == Precision::Fp64 { Kind::Double } else { Kind::Float }
    }

    /// Kind of convolutions, their weights, and activations.
    pub fn activations(self) -> Kind {
        if self == Precision::Bf16 { Kind::BFloat16 } else { self.weights() }
    }

    /// Allows libtorch to use TensorFloat-32, or forbids it: for the whole process, in convolutions and products. (The
    /// variable NVIDIA_TF32_OVERRIDE=0 forbids it to the libraries whatever is said here.)
    pub fn apply(self) {
        let allow = self == Precision::Tf32;
        // SAFETY: at::globalContext() of the libtorch this is linked with (tch is pinned to its version) returns a
        // reference to an object that lives as long as the process; the two setters take it and a bool, and may be
        // called before CUDA is there. On x86-64 and aarch64 `this` and a reference are passed as pointers.
        unsafe {
            let context = global_context();
            set_allow_tf32_cudnn(context, allow);
            set_allow_tf32_cublas(context, allow);
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::Fp64 => "fp64",
        })
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
    fn libtorch_is_told() {
        for (precision, tf32) in [
            (Precision::Tf32, true),
            (Precision::Fp32, false),
            (Precision::Tf32, true),
            (Precision::Bf16, false),
        ] {
            precision.apply();
            // SAFETY: as in `apply`; these only read.
            let found = unsafe {
                let context = global_context();
                (
                    allow_tf32_cublas(context),
                    float32_precision(context, 1, 1) == 2,
                    float32_precision(context, 1, 3) == 2,
                )
            };
            assert_eq!(found, (tf32, tf32, tf32), "{precision}");
        }
    }

    #[test]
    fn only_convolutions_and_activations_are_short() {
        for precision in [Precision::Fp32, Precision::Tf32] {
            assert_eq!((precision.weights(), precision.activations()), (Kind::Float, Kind::Float));
        }
        assert_eq!((Precision::Bf16.weights(), Precision::Bf16.activations()), (Kind::Float, Kind::BFloat16));
        assert_eq!(Precision::Fp64.weights(), Precision::Fp64.activations());
    }
}
