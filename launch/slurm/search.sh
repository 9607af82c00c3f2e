#!/usr/bin/env bash
# Runs a search as a Slurm job, on one node or several:  sbatch launch/slurm/search.sh
# Submit it from the checkout, after `cargo build --release`; all nodes must be able to read the checkout. Arguments go to
# the program (--set seed=1). Before its time limit the job requeues itself and resumes.
#
# -- change these lines --------------------------------------------------------------------------------------------
#SBATCH --job-name=drnas-search
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
SEARCH=${SEARCH:-search-imagenet}       # or search-cifar, search-nb201 (give --dataset), with their CONFIG
CONFIG=${CONFIG:-configs/search-imagenet.toml}
TRAIN=${TRAIN:-shards/train}
VALID=${VALID:-shards/valid}
RUN=${RUN:-runs/search-imagenet}
LAUNCHER=${LAUNCHER:-mpirun}            # or srun
# ------------------------------------------------------------------------------------------------------------------

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=launch/slurm/common.sh
. launch/slurm/common.sh
submitted launch/slurm/search.sh "$@"
ranks "$SLURM_NTASKS"
go "$RUN" drnas-dist "$SEARCH" --config "$CONFIG" --train "$TRAIN" --valid "$VALID" "$@"
