#!/usr/bin/env bash
# Runs Python with the PyTorch of native/: tests/python/torch.sh SCRIPT ARGUMENTS. Exit code 77, with the reason on
# stderr, if PyTorch cannot run.
#
# That PyTorch is a CUDA build, installed without its CUDA libraries (4 GB). It never calls them on a CPU, but does not
# start without them. Missing libraries are replaced by stubs in which every required function traps. The stubs and the
# Python packages that torch.optim requires (86 MB unpacked, mostly sympy) are installed once in target/python-torch;
# that takes ten seconds and needs the network.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
torch=${LIBTORCH:-$root/native/torch}
native=$(dirname "$torch")
home=$root/target/python-torch
packages=(typing_extensions==4.15.0 sympy==1.14.0 mpmath==1.3.0)

cannot() {
    printf 'torch.sh: %s\n' "$*" >&2
    exit 77
}
[ -x "$native/bin/python" ] || cannot "$native/bin/python not found; run launch/setup.sh"
for tool in nm readelf ldd "${CC:-cc}"; do
    command -v "$tool" >/dev/null || cannot "$tool not found"
done

if [ ! -e "$home/done" ]; then
    # Concurrent tests each build a copy; the first one is kept.
    mkdir -p "$root/target"
    work=$(mktemp -d "$home.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/lib"
    users=("$torch"/lib/libtorch_{cuda,python,nvshmem}.so)
    symbols=$(nm -D --undefined-only "${users[@]}" | awk '$1 == "U" { print $2 }' | sort -u)
    needs=$(readelf -VW "${users[@]}" | awk '/File:/ { file = $5 } /Name:/ { print file, $3 }' | sort -u)
    for library in $(ldd "${users[@]}" | awk '/not found/ { print $1 }' | sort -u); do
        # A versioned symbol belongs to the library with that version; unversioned ones are defined in every stub.
        version=$(awk -v file="$library" '$1 == file { print $2; exit }' <<<"$needs")
        awk -F@ -v version="${version:-none}" \
            '$2 == version || (NF == 1 && /^(cu|nccl)/) { print "void " $1 "(void) { __builtin_trap(); }" }' \
            <<<"$symbols" >"$work/stub.c"
        [ -z "$version" ] || printf '%s { global: *; };\n' "$version" >"$work/stub.map"
        "${CC:-cc}" -shared -fPIC -Wl,-soname,"$library" ${version:+-Wl,--version-script="$work/stub.map"} \
            -o "$work/lib/$library" "$work/stub.c"
    done
    "$native/bin/python" -m pip install --quiet --no-deps --disable-pip-version-check --no-input \
        --retries 2 --timeout 30 --target "$work/site" "${packages[@]}" >&2 || cannot "pip could not fetch ${packages[*]}"
    touch "$work/done"
    mv -T "$work" "$home" 2>/dev/null || [ -e "$home/done" ]
    # Removes the copy if it was not the first: `exec` skips the trap.
    rm -rf "$work"
fi
export LD_LIBRARY_PATH=$home/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONPATH=$home/site PYTHONDONTWRITEBYTECODE=1
exec "$native/bin/python" -W ignore "$@"
