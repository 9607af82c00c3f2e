#!/usr/bin/env bash
# Trains a found architecture from scratch as a Slurm job:  sbatch launch/slurm/evaluate.sh
# Submit it from the checkout, after `cargo build --release`; all nodes must be able to read the checkout. Arguments go to
# the program. Before its time limit the job requeues itself and resumes.
#
# -- change these lines --------------------------------------------------------------------------------------------
#SBATCH --job-name=drnas-evaluate
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
EVALUATE=${EVALUATE:-evaluate-imagenet} # or evaluate-cifar
CONFIG=${CONFIG:-configs/evaluate-imagenet.toml}
GENOTYPE=${GENOTYPE:-runs/search-imagenet/genotype.json}
TRAIN=${TRAIN:-shards/all}
TEST=${TEST:-shards/val}
RUN=${RUN:-runs/evaluate-imagenet}
LAUNCHER=${LAUNCHER:-mpirun}            # or srun
# ------------------------------------------------------------------------------------------------------------------

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=launch/slurm/common.sh
. launch/slurm/common.sh
submitted launch/slurm/evaluate.sh "$@"
ranks "$SLURM_NTASKS"
go "$RUN" drnas-dist "$EVALUATE" --config "$CONFIG" --genotype "$GENOTYPE" --train "$TRAIN" --test "$TEST" "$@"
