#!/usr/bin/env bash
# Installs the native libraries (libtorch, Open MPI, libclang; with an NVIDIA driver also CUDA) into native/ of this
# checkout. Needs no root. Versions are in launch/native.txt; .cargo/config.toml tells cargo where the libraries are.
#
# Requirements: cargo, a C++ compiler, Python 3.10 or newer with its venv module; internet access for the first run.
# Does nothing if the installation is complete; reinstalls after an interruption or a version change.
#
#   PYTHON=/path/to/python3   the Python that creates the environment (default: python3)
#   CUDA=0 or CUDA=1          install without or with the CUDA libraries, whatever the machine has
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# -- requirements ----------------------------------------------------------------------------------------------------
python=${PYTHON:-python3}
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || die "expected Linux x86_64, found $(uname -s) $(uname -m)"
case $PWD in
*[[:space:]]*) die "the path \"$PWD\" contains a space, which the MPI compiler wrapper does not support: move the checkout" ;;
esac
command -v cargo >/dev/null || die "cargo not found: install Rust 1.88 or newer from https://rustup.rs"
rust=$(rustc --version | cut -d' ' -f2)
[ "$(printf '1.88\n%s\n' "$rust" | sort -V | head -n 1)" = 1.88 ] ||
    die "expected Rust 1.88 or newer, found $rust: update it with rustup (https://rustup.rs)"
cxx=${CXX:-c++}
command -v "$cxx" >/dev/null || die "C++ compiler $cxx not found: install one, on Debian or Ubuntu with: apt-get install g++"
command -v "${CC:-cc}" >/dev/null || die "C compiler ${CC:-cc} not found: install one, on Debian or Ubuntu with: apt-get install gcc"

if [ -n "${CUDA:-}" ]; then
    cuda=$CUDA
elif [ -e /proc/driver/nvidia/version ] || nvidia-smi >/dev/null 2>&1; then
    cuda=1
else
    cuda=0
fi
every=$(grep -v '^#' launch/native.txt)
case $cuda in
0) packages=$(sed '/^# -- with an NVIDIA driver/,$d' launch/native.txt | grep -v '^#') ;;
1) packages=$every ;;
*) die "CUDA: expected 0 or 1, found $cuda" ;;
esac

# -- installation --------------------------------------------------------------------------------------------------
stamp=$(cat native/stamp 2>/dev/null || true)
# An installation with CUDA also serves machines without a driver, so hosts that share a checkout do not reinstall it in turn.
if [ "$stamp" != "$packages" ] && [ "$stamp" != "$every" ]; then
    command -v "$python" >/dev/null || die "$python not found: install Python 3.10 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "expected Python 3.10 or newer, found $("$python" --version): set PYTHON to another one"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python has no venv module: install it, on Debian or Ubuntu with: apt-get install python3-venv"

    rm -rf native
    say "installing into native/ ($([ "$cuda" = 1 ] && echo "with CUDA, 5 GB" || echo "without CUDA, 1.3 GB"))"
    log=target/setup.log
    mkdir -p target
    "$python" -m venv native >"$log" 2>&1 || die "$python -m venv failed: $(tail -n 1 "$log")"
    # No dependency resolution: exactly the listed wheels, or an error.
    # shellcheck disable=SC2086 # one word per package
    native/bin/python -m pip install --no-deps --only-binary=:all: --no-input --disable-pip-version-check \
        --retries 2 --timeout 30 $packages 2>"$log" || {
        die "pip could not download the native libraries; check the connection to its package index: $(grep '^ERROR' "$log" | tail -n 1) (log: $log)"
    }
    site=$(cd native && echo lib/python3.*/site-packages)
    ln -sfn "$site/torch" native/torch
    ln -sfn "$site/clang/native" native/clang
    for part in torch/lib/libtorch_cpu.so clang/libclang.so bin/mpicc bin/mpirun; do
        [ -e "native/$part" ] || die "native/$part is missing after the installation; remove native/ and run this script again"
    done
    printf '%s\n' "$packages" >native/stamp
fi

# The libclang wheel has no builtin headers (stddef.h ...): link those of the compiler, again after a compiler upgrade.
headers=$("${CC:-cc}" -print-file-name=include)
[ -e "$headers/stddef.h" ] || die "stddef.h not found in $headers, the builtin headers of ${CC:-cc}: reinstall the compiler"
[ "$(readlink native/cc-include || true)" = "$headers" ] || ln -sfn "$headers" native/cc-include
say "native libraries are in native/ ($([ "$(cat native/stamp)" = "$every" ] && echo "with" || echo "without") CUDA)"
