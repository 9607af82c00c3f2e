#!/usr/bin/env bash
# Runs the same search with several seeds as a job array:  sbatch launch/slurm/seeds.sh
# Each array index is a seed with its own run folder; each job requeues itself like search.sh.
#
# -- change these lines --------------------------------------------------------------------------------------------
#SBATCH --job-name=drnas-seeds
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
SEARCH=${SEARCH:-search-imagenet}       # or search-cifar, search-nb201 (give --dataset), with their CONFIG
CONFIG=${CONFIG:-configs/search-imagenet.toml}
TRAIN=${TRAIN:-shards/train}
VALID=${VALID:-shards/valid}
RUNS=${RUNS:-runs/seeds}                # RUNS/0, RUNS/1 ...
LAUNCHER=${LAUNCHER:-mpirun}            # or srun
# ------------------------------------------------------------------------------------------------------------------

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=launch/slurm/common.sh
. launch/slurm/common.sh
submitted launch/slurm/seeds.sh "$@"
ranks "$SLURM_NTASKS"
go "$RUNS/$SLURM_ARRAY_TASK_ID" drnas-dist "$SEARCH" --config "$CONFIG" --train "$TRAIN" --valid "$VALID" \
    --set "seed=$SLURM_ARRAY_TASK_ID" "$@"
