//! Tells the linker where the native libraries are, so that the binary starts without LD_LIBRARY_PATH.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=MPICC");
    let real = |name: &str| env::var_os(name).map(PathBuf::from).and_then(|path| path.canonicalize().ok());
    let mut folders = Vec::new();
    if let Some(torch) = real("LIBTORCH") {
        folders.push(torch.join("lib"));
    }
    // bin/mpicc is a wrapper in the folder beside lib/.
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
