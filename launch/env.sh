# shellcheck shell=bash
# Source this file, from any directory:  . launch/env.sh
# Puts mpirun and drnas-dist of this checkout on the PATH, and lets Open MPI run as root and on few cores.

drnas_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="${CARGO_TARGET_DIR:-$drnas_root/target}/release:$drnas_root/native/bin:$PATH"

# Open MPI does not start without HOME.
export HOME="${HOME:-/}"

# Containers run as root, which Open MPI refuses unless both variables are set.
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# Open MPI counts cores, not hardware threads, and starts at most one rank per core. Under Slurm that is right.
drnas_cores=$(lscpu -p=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)
if [ -z "${SLURM_JOB_ID:-}" ] && [ "$drnas_cores" -lt "${RANKS:-4}" ]; then
    export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
fi
unset drnas_root drnas_cores
