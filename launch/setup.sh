#!/usr/bin/env bash
# Installs the native parts (libtorch, Open MPI, libclang; with an NVIDIA driver also CUDA) into native/ of this
# checkout. No root. The versions are in launch/native.txt, .cargo/config.toml tells cargo where they are.
#
# Needs: cargo, a C++ compiler, Python 3.10 or newer with its venv module; the network, once.
# A second run costs nothing; a run that was interrupted, or other versions, mean a new installation.
#
#   PYTHON=/path/to/python3   which Python makes the environment (default: python3)
#   CUDA=0 or CUDA=1          without or with the CUDA libraries, whatever the machine has
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# -- what the machine must have ------------------------------------------------------------------------------------
python=${PYTHON:-python3}
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || die "only Linux on x86-64 is supported, this is $(uname -s) $(uname -m)"
case $PWD in
*[[:space:]]*) die "the path \"$PWD\" has a space, which the compiler wrapper of MPI cannot live with: move the checkout" ;;
esac
command -v cargo >/dev/null || die "cargo is missing: install Rust 1.88 or newer from https://rustup.rs"
rust=$(rustc --version | cut -d' ' -f2)
[ "$(printf '1.88\n%s\n' "$rust" | sort -V | head -n 1)" = 1.88 ] ||
    die "Rust $rust is too old: 1.88 or newer is needed, from https://rustup.rs"
cxx=${CXX:-c++}
command -v "$cxx" >/dev/null || die "no C++ compiler ($cxx): install one, on Debian or Ubuntu with: apt-get install g++"
command -v "${CC:-cc}" >/dev/null || die "no C compiler (${CC:-cc}): install one, on Debian or Ubuntu with: apt-get install gcc"

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
*) die "CUDA=$cuda must be 0 or 1" ;;
esac

# -- install, unless it is there -----------------------------------------------------------------------------------
stamp=$(cat native/stamp 2>/dev/null || true)
# With the CUDA libraries it serves a machine without a driver too: a shared checkout is not installed back and forth.
if [ "$stamp" != "$packages" ] && [ "$stamp" != "$every" ]; then
    command -v "$python" >/dev/null || die "$python is missing: install Python 3.10 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$("$python" --version) is too old: 3.10 or newer is needed; set PYTHON to another one"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python has no venv module: install it, on Debian or Ubuntu with: apt-get install python3-venv"

    rm -rf native
    say "installing into native/ ($([ "$cuda" = 1 ] && echo "with CUDA, 5 GB" || echo "without CUDA, 1.3 GB")), once"
    log=target/setup.log
    mkdir -p target
    "$python" -m venv native >"$log" 2>&1 || die "$python -m venv failed: $(tail -n 1 "$log")"
    # Nothing is resolved: exactly the listed wheels, or an error.
    # shellcheck disable=SC2086 # one word per package
    native/bin/python -m pip install --no-deps --only-binary=:all: --no-input --disable-pip-version-check \
        --retries 2 --timeout 30 $packages 2>"$log" || {
        die "pip could not fetch the native parts; does this machine reach its package index? $(grep '^ERROR' "$log" | tail -n 1) (all of it: $log)"
    }
    site=$(cd native && echo lib/python3.*/site-packages)
    ln -sfn "$site/torch" native/torch
    ln -sfn "$site/clang/native" native/clang
    for part in torch/lib/libtorch_cpu.so clang/libclang.so bin/mpicc bin/mpirun; do
        [ -e "native/$part" ] || die "native/$part is not there after the installation; remove native/ and try again"
    done
    printf '%s\n' "$packages" >native/stamp
fi

# The libclang wheel has no headers of its own (stddef.h ...): it borrows those of the compiler, also after an upgrade.
headers=$("${CC:-cc}" -print-file-name=include)
[ -e "$headers/stddef.h" ] || die "the headers of ${CC:-cc} are missing (stddef.h is not in $headers)"
[ "$(readlink native/cc-include || true)" = "$headers" ] || ln -sfn "$headers" native/cc-include
say "the native parts are in native/ ($([ "$(cat native/stamp)" = "$every" ] && echo "with" || echo "without") CUDA)"
