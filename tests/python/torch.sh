#!/usr/bin/env bash
# Runs Python with the PyTorch that native/ already has: tests/python/torch.sh SCRIPT ARGUMENTS. Exit code 77, with the
# reason on stderr, when there is none.
#
# That PyTorch is a CUDA build, installed without its CUDA libraries (4 GB), and does not start without them although it
# never calls them on a CPU. Where they are missing, empty ones take their place: every function that is asked for is
# there and traps. They, and the Python packages that torch.optim wants (86 MB unpacked, sympy mostly), go into
# target/python-torch, once: ten seconds and the network.
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
[ -x "$native/bin/python" ] || cannot "$native/bin/python is not there; run launch/setup.sh"
for tool in nm readelf ldd "${CC:-cc}"; do
    command -v "$tool" >/dev/null || cannot "$tool is not there"
done

if [ ! -e "$home/done" ]; then
    # Several tests may come here at once: each builds its own, the first one stays.
    mkdir -p "$root/target"
    work=$(mktemp -d "$home.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/lib"
    users=("$torch"/lib/libtorch_{cuda,python,nvshmem}.so)
    symbols=$(nm -D --undefined-only "${users[@]}" | awk '$1 == "U" { print $2 }' | sort -u)
    needs=$(readelf -VW "${users[@]}" | awk '/File:/ { file = $5 } /Name:/ { print file, $3 }' | sort -u)
    for library in $(ldd "${users[@]}" | awk '/not found/ { print $1 }' | sort -u); do
        # Symbols carry the version that belongs to their library; those without one are nobody's, so everybody's.
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
    # The one that came second; `exec` does not come to the trap.
    rm -rf "$work"
fi
export LD_LIBRARY_PATH=$home/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONPATH=$home/site PYTHONDONTWRITEBYTECODE=1
exec "$native/bin/python" -W ignore "$@"
