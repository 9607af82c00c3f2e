#!/usr/bin/env bash
# Measures the throughput of 1, 2, 4 ... ranks with one short search for each, one after another, and prints a table:
#   sbatch launch/slurm/scaling.sh
# Before its time limit the job requeues itself and resumes; finished measurements are kept.
#
# -- change these lines --------------------------------------------------------------------------------------------
#SBATCH --job-name=drnas-scaling
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
SEARCH=${SEARCH:-search-imagenet}       # or search-cifar, with its CONFIG
CONFIG=${CONFIG:-configs/search-imagenet.toml}
TRAIN=${TRAIN:-shards/train}
VALID=${VALID:-shards/valid}
RUNS=${RUNS:-runs/scaling}              # RUNS/1, RUNS/2 ...
RANKS=${RANKS:-1 2 4 8}                 # without BATCH, all must divide search.replicas of CONFIG (8)
STEPS=${STEPS:-50}                      # measured steps, after the same number of warm-up steps
BATCH=${BATCH:-}                        # images per rank (weak scaling); empty: CONFIG's global batch is divided
LAUNCHER=${LAUNCHER:-mpirun}            # or srun
# ------------------------------------------------------------------------------------------------------------------

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=launch/slurm/common.sh
. launch/slurm/common.sh
submitted launch/slurm/scaling.sh "$@"
runs=()
for n in $RANKS; do
    ranks "$n"
    # The first stage only, in two epochs: weight steps as warm-up, then full steps, which are measured.
    steps=(--set "search.steps_per_epoch=$STEPS" --set search.architecture_from_epoch=1 --set weights.warmup_epochs=0
        --set 'search.stage=[{ k = 6, ops_kept = 7, epochs = 2 }]' --set run.log_every=1 --set run.checkpoint_every="$STEPS")
    if [ -n "$BATCH" ]; then
        steps+=(--set "search.replicas=$n" --set "search.global_batch=$((n * BATCH))")
    fi
    go "$RUNS/$n" drnas-dist "$SEARCH" --config "$CONFIG" --train "$TRAIN" --valid "$VALID" "${steps[@]}" "$@"
    runs+=("$RUNS/$n")
done
drnas-dist report scaling "${runs[@]}" | tee "$RUNS/scaling.md"
