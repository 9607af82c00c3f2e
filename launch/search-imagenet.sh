#!/usr/bin/env bash
# The published search on your ImageNet: splits and packs it unless that has been done, then searches on MPI ranks. To
# resume after an interruption, run it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# -- change these lines --------------------------------------------------------------------------------------------
IMAGENET=/path/to/imagenet/train        # <class>/<image>.JPEG, 1000 folders
SHARDS=shards                           # about 18 GB, packed once
RUN=runs/search-imagenet                # checkpoints, metrics, genotype
RANKS=8                                 # 1, 2, 4 or 8 (a divisor of search.replicas); with GPUs, one rank per GPU
DEVICE=auto                             # cuda, cpu, or auto: GPUs if every rank has one, the CPU if there is none
CONFIG=configs/search-imagenet.toml
# Two hosts with 4 GPUs each: MPIRUN=(mpirun --bind-to none --host node1:4,node2:4). Both need this folder at the same path;
# run launch/setup.sh on a host with an NVIDIA driver. Pass NCCL variables with -x, for example -x NCCL_SOCKET_IFNAME=eth0
# to choose the network or -x NCCL_DEBUG=INFO for NCCL's log.
MPIRUN=(mpirun --bind-to none)
# ------------------------------------------------------------------------------------------------------------------

launch/setup.sh
# shellcheck source=launch/env.sh
. launch/env.sh
cargo build --release --locked

if [ ! -e "$SHARDS/valid/set.json" ]; then
    [ -d "$IMAGENET" ] || {
        echo "search-imagenet.sh: $IMAGENET is not a folder; set IMAGENET at the top of this script" >&2
        exit 1
    }
    # The same seed draws the same lists, so both commands can be repeated.
    drnas-dist split "$IMAGENET" --fractions 0.10,0.025 --names train,valid --out "$SHARDS/lists" --seed 0
    for part in train valid; do
        drnas-dist pack "$IMAGENET" "$SHARDS/$part" --list "$SHARDS/lists/$part.txt"
    done
fi

exec "${MPIRUN[@]}" -n "$RANKS" drnas-dist search-imagenet --config "$CONFIG" \
    --train "$SHARDS/train" --valid "$SHARDS/valid" --out "$RUN" --set device="$DEVICE" --resume "$@"
