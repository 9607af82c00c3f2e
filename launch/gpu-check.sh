#!/usr/bin/env bash
# Runs on one NVIDIA GPU the checks that need a GPU: correctness, ranks that share the GPU, faults, overlap, speed.
# Needs python3 with torch 2.11 and its CUDA libraries, and the bundle made by launch/gpu-bundle.sh; no root, network, MPI
# or compiler. For a GPU with at least 40 GB. Planned to take less than 400 s.
#
#   bash gpu-check.sh BUNDLE              on a GPU; BUNDLE: the file, or the unpacked folder
#   bash gpu-check.sh BUNDLE --dry        everything on the CPU, at tiny sizes, with MPI instead of NCCL; times are meaningless
#   bash gpu-check.sh BUNDLE --only 'speed-*,plain-*'     only these checks
#
# The checks are listed in launch/gpu/check.py. OUT gets two files, rewritten after every check: result.json, and
# gpu-check.tar.gz with all logs, JSON and metrics files. A check is ok, failed, skipped, or rounding: a golden file is
# outside its tolerance but matches in float64. Exit code 0: no check failed.
#
#   PYTHON=/path/to/python3   the Python that has torch (default: python3)
#   OUT=gpu-check             folder for the two files; other files in it are kept
#   GPU_CHECK_DIR=...         working folder, new or empty, 0.5 GB; it is kept. Default: one in the temporary folder,
#                             removed at the end
#   GPU_CHECK_SECONDS=520     time limit of this script: a check that is planned to end later is skipped, and checks still
#                             running 20 s after the limit are killed
#   BATCH=64                  images per step of the full-size networks, a multiple of 8; lower it for a smaller GPU
set -euo pipefail

die() {
    printf 'gpu-check: %s\n' "$*" >&2
    exit 1
}
bundle=${1:-}
[ -e "$bundle" ] || die "usage: gpu-check.sh BUNDLE [--dry] [--only NAMES]; launch/gpu-bundle.sh makes the bundle"
shift
bundle=$(realpath "$bundle")
python=${PYTHON:-python3}
seconds=${GPU_CHECK_SECONDS:-520}
[[ $seconds =~ ^[1-9][0-9]{0,6}$ ]] || die "GPU_CHECK_SECONDS=$seconds: expected a number of seconds"
batch=${BATCH:-64}
[[ $batch =~ ^[1-9][0-9]{0,6}$ && $((batch % 8)) = 0 ]] || die "BATCH=$batch: expected a multiple of 8"
command -v "$python" >/dev/null || die "$python is missing; set PYTHON"
out=${OUT:-gpu-check}
mkdir -p "$out" || die "cannot create $out"
out=$(realpath "$out")

if [ -n "${GPU_CHECK_DIR:-}" ]; then
    work=$GPU_CHECK_DIR keep=--keep
    mkdir -p "$work" || die "cannot create $work"
    [ -z "$(ls -A "$work")" ] || die "$work is not empty; name a new folder in GPU_CHECK_DIR"
else
    work=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check.XXXXXX") keep=''
    trap 'rm -rf "$work"' EXIT # until check.py takes over
fi
work=$(realpath "$work")
printf '{"state": "unpacking", "checks": []}\n' >"$out/result.json"
if [ -f "$bundle" ]; then
    "$python" -m tarfile -e "$bundle" "$work" || die "cannot unpack $bundle into $work" # tarfile: xz may be missing
    bundle=$work/gpu-bundle
fi
[ -f "$bundle/check.py" ] || die "$bundle is not a bundle made by launch/gpu-bundle.sh"
# shellcheck disable=SC2086 # one word or none
exec "$python" "$bundle/check.py" --out "$out" --work "$work" $keep --batch "$batch" --seconds "$seconds" \
    --spent "$SECONDS" "$@"
