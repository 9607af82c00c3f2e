#!/usr/bin/env bash
# Checks on one NVIDIA GPU what cannot be checked without: numbers, ranks that share the card, faults, overlap, speed.
# Needs python3 with torch 2.11 and its CUDA libraries, and the bundle of launch/gpu-bundle.sh; no root, network, MPI or
# compiler. For a card of 40 GB or more; no check begins after 7 minutes. Leaves gpu-check/result.json, and prints its table.
#
#   bash gpu-check.sh BUNDLE          on a GPU
#   bash gpu-check.sh BUNDLE --dry    every line on the CPU, at tiny sizes: MPI in place of NCCL, times mean nothing
#
#   PYTHON=/path/to/python3   the Python that has torch (default: python3)
#   BATCH=64                  images of a step of the full-size networks: for a card with less memory
#   OUT=gpu-check             where everything goes; an older one is removed
set -uo pipefail

die() {
    printf 'gpu-check: %s\n' "$*" >&2
    exit 1
}
bundle=${1:-}
dry=${2:-}
[ -f "$bundle" ] || die "usage: gpu-check.sh BUNDLE [--dry]; launch/gpu-bundle.sh makes the bundle"
[ -z "$dry" ] || [ "$dry" = --dry ] || die "$dry is not --dry"
bundle=$(realpath "$bundle")
python=${PYTHON:-python3}
command -v "$python" >/dev/null || die "$python is missing; set PYTHON"
started=$SECONDS
ENOUGH_S=420   # no check begins later

out=${OUT:-gpu-check}
rm -rf "$out"
{ mkdir -p "$out" && cd "$out"; } || die "cannot make $out"
"$python" -m tarfile -e "$bundle" . || die "$bundle cannot be unpacked"   # there may be no xz
here=$PWD/gpu-bundle
export TMPDIR=$PWD/tmp
mkdir -p "$TMPDIR"

# -- libraries -----------------------------------------------------------------------------------------------------
# Not imported: that alone takes seconds.
torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])') ||
    die "$python has no torch; set PYTHON to one that has"
libraries=$here/lib:$torch/lib:$here/openmpi/lib
for folder in "$torch"/../nvidia/*/lib; do
    [ ! -d "$folder" ] || libraries=$libraries:$folder
done
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH=$here/openmpi/bin:$PATH OPAL_PREFIX=$here/openmpi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# The bundle's NCCL, not the one of torch, which is too old to share a card: named for the program, and loaded first so
# that libtorch gets the same.
export DRNAS_NCCL=$here/lib/libnccl.so.2 NCCL_MULTI_RANK_GPU_ENABLE=1
nccl=(env "LD_PRELOAD=$DRNAS_NCCL")
counted=(env "LD_PRELOAD=$here/lib/libgpu-count.so")
program=$here/drnas-dist

if [ -z "$dry" ]; then
    device=cuda batch=${BATCH:-64} steps=4 blocks=3 warmup=2 share=--share-gpu tiny=()
    golden=("$here"/golden/*.safetensors)
else
    device=cpu batch=4 steps=1 blocks=1 warmup=1 share='' nccl=(env)
    tiny=(--set model.init_channels=12 --set model.layers=3 --set model.num_classes=4 --set data.px=32 --set run.threads=1)
    golden=("$here"/golden/darts_imagenet_stage1.safetensors)
fi

# -- one check -----------------------------------------------------------------------------------------------------
# check NAME LIMIT_S COMMAND...: its output goes to NAME.log, its end to checks.jsonl.
check() {
    local name=$1 limit=$2 begin=$SECONDS code=0
    shift 2
    if [ $((SECONDS - started)) -gt "$ENOUGH_S" ]; then
        printf '{"check": "%s", "code": -1, "wall_s": 0}\n' "$name" >>checks.jsonl
        printf 'skipped %-34s the time is up\n' "$name"
        return 0
    fi
    timeout --kill-after=5 "$limit" "$@" >"$name.log" 2>&1 || code=$?
    printf '{"check": "%s", "code": %d, "wall_s": %d}\n' "$name" "$code" $((SECONDS - begin)) >>checks.jsonl
    if [ "$code" = 0 ]; then
        printf 'ok      %-34s %4d s\n' "$name" $((SECONDS - begin))
    else
        printf 'FAILED  %-34s %4d s  code %d: %s\n' "$name" $((SECONDS - begin)) "$code" "$(grep -v '^$' "$name.log" | tail -n 1)"
    fi
    return 0
}

check doctor 60 "$program" doctor

# -- numbers -------------------------------------------------------------------------------------------------------
for precision in fp32 tf32 bf16; do
    check "golden-$precision" 60 "$program" verify --device "$device" --precision "$precision" "${golden[@]}"
done
check golden-channels-first 60 "$program" verify --device "$device" --channels-first "${golden[@]}"
check golden-checkpoint-cells 60 "$program" verify --device "$device" --checkpoint-cells "${golden[@]}"

# -- ranks: 1, 2 and 4 of them compute what one computes for all replicas ---------------------------------------------
cat >ranks.toml <<'TOML'
[model]
init_channels = 12
layers = 3
num_classes = 4
[data]
px = 32
crop_area_min = 0.3
[search]
replicas = 4
global_batch = 16
architecture_from_epoch = 1
steps_per_epoch = 3
[[search.stage]]
k = 6
ops_kept = 7
epochs = 2
[weights]
lr = 0.003
warmup_epochs = 1
[run]
log_every = 1
threads = 1
time_limit_s = 20
TOML
search=("$program" search-imagenet --config ranks.toml --train "$here/shards/train" --valid "$here/shards/valid" --set "device=$device")
# In float64 the order in which NCCL adds does not show.
for count in 1 2 4; do
    mpirun=(mpirun --bind-to none -n "$count" "${nccl[@]}")
    [ "$count" != 1 ] || mpirun=()
    check "ranks-$count" 90 "${mpirun[@]}" "${search[@]}" $share --set precision=fp64 --out "runs/ranks-$count"
done
check ranks-2-bf16 90 mpirun --bind-to none -n 2 "${nccl[@]}" "${search[@]}" $share --set precision=bf16 --out runs/ranks-2-bf16
check ranks-agree 10 "$python" "$here/gpu-report.py" agree runs/ranks-1 runs/ranks-2 runs/ranks-4

# -- faults: of two ranks one is killed, or stops; the other one ends, and mpirun with it ------------------------------
fault() { # fault SIGNAL NAME
    local signal=$1 name=$2 victim
    mpirun --bind-to none -n 2 "${nccl[@]}" "${search[@]}" $share --set search.steps_per_epoch=0 --set search.stage.1.epochs=100000 \
        --out "runs/$name" >"$name-run.log" 2>&1 &
    local launcher=$!
    for _ in $(seq 300); do
        [ ! -s "runs/$name/metrics.jsonl" ] || break
        sleep 0.2
    done
    # Children of prterun, which mpirun becomes.
    victim=$(grep -l "^PPid:[[:space:]]*$launcher\$" /proc/[0-9]*/status 2>/dev/null | tail -n 1 | cut -d/ -f3)
    [ -n "$victim" ] || {
        echo "no rank of $launcher is running:"
        tail -n 3 "$name-run.log"
        kill "$launcher" 2>/dev/null
        return 1
    }
    local begin=$SECONDS
    kill "-$signal" "$victim"
    for _ in $(seq 300); do
        kill -0 "$launcher" 2>/dev/null || break
        sleep 0.2
    done
    kill -KILL "$victim" 2>/dev/null
    if kill -0 "$launcher" 2>/dev/null; then
        echo "still running after $((SECONDS - begin)) s"
        kill "$launcher"
        return 1
    fi
    echo "all ended $((SECONDS - begin)) s after $signal"
    tail -n 5 "$name-run.log"
    [ $((SECONDS - begin)) -le 30 ]
}
fault_check() {
    local begin=$SECONDS code=0
    fault "$1" "$2" >"$2.log" 2>&1 || code=$?
    printf '{"check": "%s", "code": %d, "wall_s": %d}\n' "$2" "$code" $((SECONDS - begin)) >>checks.jsonl
    printf '%-7s %-34s %4d s  %s\n' "$([ "$code" = 0 ] && echo ok || echo FAILED)" "$2" $((SECONDS - begin)) "$(head -n 1 "$2.log")"
}
fault_check KILL rank-killed
fault_check STOP rank-stopped

# -- overlap and waiting -------------------------------------------------------------------------------------------
bench=("$program" bench --config "$here/configs/search-imagenet.toml" --set "device=$device" --set "search.global_batch=$batch"
    "${tiny[@]}")
short=(--warmup 2 --steps 2 --blocks 1)
long=(--warmup "$warmup" --steps "$steps" --blocks "$blocks" --set search.replicas=1 --json speed.jsonl)
check overlap 90 mpirun --bind-to none -n 2 "${nccl[@]}" "${bench[@]}" "${short[@]}" $share --weights-only \
    --set search.replicas=2 --json overlap.jsonl
for precision in fp32 bf16; do
    check "waits-$precision" 60 "${counted[@]}" "${bench[@]}" "${short[@]}" --set "precision=$precision" \
        --set search.replicas=1 --json waits.jsonl
done

# -- speed ---------------------------------------------------------------------------------------------------------
for stage in 1 2; do
    for precision in fp32 tf32 bf16; do
        for channels_last in true false; do
            check "speed-stage$stage-$precision-$channels_last" 60 "${bench[@]}" "${long[@]}" --stage "$stage" \
                --set "precision=$precision" --set "channels_last=$channels_last"
        done
    done
done
for stage in 1 2; do
    check "speed-stage$stage-checkpoint-cells" 60 "${bench[@]}" "${long[@]}" --stage "$stage" --set precision=bf16 \
        --set checkpoint_cells=true
done
: >network.toml
network=("$program" bench --config network.toml --genotype DrNAS_imagenet --set "device=$device" --set evaluate.replicas=1
    --set "evaluate.global_batch=$batch" --warmup "$warmup" --steps "$steps" --blocks "$blocks" --json speed.jsonl)
[ -z "$dry" ] || network+=(--set model.init_channels=8 --set model.layers=3 --set model.num_classes=4 --set data.px=32
    --set evaluate.auxiliary_weight=0 --set run.threads=1)
for precision in fp32 tf32 bf16; do
    check "speed-network-$precision" 60 "${network[@]}" --set "precision=$precision"
done

# -- the end -------------------------------------------------------------------------------------------------------
"$python" "$here/gpu-report.py" report ${dry:+--dry} --wall-s $((SECONDS - started))
