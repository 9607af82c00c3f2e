//! Sets the RUNPATH to the native libraries, so that the binary starts without LD_LIBRARY_PATH.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=MPICC");
    let canonical =
        |name: &str| env::var_os(name).map(PathBuf::from).and_then(|path| path.canonicalize().ok());
    let mut folders = Vec::new();
    if let Some(torch) = canonical("LIBTORCH") {
        folders.push(torch.join("lib"));
    }
    // mpicc is in PREFIX/bin, the libraries are in PREFIX/lib.
    if let Some(prefix) = env::var_os("MPICC")
        .map(PathBuf::from)
        .and_then(|mpicc| mpicc.parent()?.parent()?.canonicalize().ok())
    {
        folders.push(prefix.join("lib"));
    }
    for folder in folders {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
