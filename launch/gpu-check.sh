#!/usr/bin/env bash
# Checks on one NVIDIA GPU what cannot be checked without one: numbers, ranks that share the card, faults, overlap, speed.
# Needs python3 with torch 2.11 and its CUDA libraries, and the bundle of launch/gpu-bundle.sh; no root, network, MPI or
# compiler. For a card of 40 GB or more. Planned for less than 400 s.
#
#   bash gpu-check.sh BUNDLE              on a GPU; BUNDLE: the file, or the folder that was in it
#   bash gpu-check.sh BUNDLE --dry        everything on the CPU, at tiny sizes: MPI in place of NCCL, times mean nothing
#   bash gpu-check.sh BUNDLE --only 'speed-*,plain-*'     some of the checks
#
# The plan is in launch/gpu/check.py. Two files are left in OUT, written anew after every check: result.json, and
# gpu-check.tar.gz with every log, JSON and metrics file. A check is ok, failed, skipped, or rounding: a golden file is not
# met within what is allowed, but float64 meets it. Exit code 0: none failed.
#
#   PYTHON=/path/to/python3   the Python that has torch (default: python3)
#   OUT=gpu-check             where the two files go; what else is there stays
#   GPU_CHECK_DIR=...         folder to work in, new or empty, 0.5 GB; it stays. Default: one under the temporary folder,
#                             removed at the end
#   GPU_CHECK_SECONDS=520     from the start of this script: a check that would end later by plan is skipped, and what still
#                             runs 20 s after that is ended
#   BATCH=64                  images of a step of the full-size networks, a multiple of 8: less for a card with less memory
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
[[ $seconds =~ ^[1-9][0-9]{0,6}$ ]] || die "GPU_CHECK_SECONDS=$seconds is no number of seconds"
batch=${BATCH:-64}
[[ $batch =~ ^[1-9][0-9]{0,6}$ && $((batch % 8)) = 0 ]] || die "BATCH=$batch is no multiple of 8"
command -v "$python" >/dev/null || die "$python is missing; set PYTHON"
out=${OUT:-gpu-check}
mkdir -p "$out" || die "cannot make $out"
out=$(realpath "$out")

if [ -n "${GPU_CHECK_DIR:-}" ]; then
    work=$GPU_CHECK_DIR keep=--keep
    mkdir -p "$work" || die "cannot make $work"
    [ -z "$(ls -A "$work")" ] || die "$work is not empty; name a new folder in GPU_CHECK_DIR"
else
    work=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check.XXXXXX") keep=''
    trap 'rm -rf "$work"' EXIT # until check.py takes over
fi
work=$(realpath "$work")
printf '{"state": "unpacking", "checks": []}\n' >"$out/result.json"
if [ -f "$bundle" ]; then
    "$python" -m tarfile -e "$bundle" "$work" || die "$bundle cannot be unpacked into $work" # there may be no xz
    bundle=$work/gpu-bundle
fi
[ -f "$bundle/check.py" ] || die "$bundle is not a bundle of launch/gpu-bundle.sh"
# shellcheck disable=SC2086 # one word or none
exec "$python" "$bundle/check.py" --out "$out" --work "$work" $keep --batch "$batch" --seconds "$seconds" \
    --spent "$SECONDS" "$@"
