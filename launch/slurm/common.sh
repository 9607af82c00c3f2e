# shellcheck shell=bash
# Shared by the batch scripts in this folder, which source it from the directory that sbatch was called in.
#
#   submitted SCRIPT ARGUMENTS...   records how this job was submitted: the command that an interrupted run prints
#   ranks N                         sets the number of ranks of the next start
#   go RUN COMMAND...               trains until RUN has finished or the job ends
#
# - Slurm signals this script before the time limit (--signal=B:USR1@120). The signal is forwarded to the ranks, which write
#   a checkpoint and exit; the job is requeued and resumes. After a lost node Slurm requeues the job as well.
# - A run that fails is restarted from its newest valid checkpoint, up to RETRIES times.
# - A run has finished when RUN/finished.json exists. Exit codes do not show it.
# - scancel, and preemption without the signal, lose the steps since the newest checkpoint (run.checkpoint_every).

: "${PMI:=pmix}"            # srun's MPI plugin: pmix for Open MPI, pmi2 for MPICH
: "${RETRIES:=2}"
: "${MAX_RESTARTS:=1000}"   # so that a job without progress is not requeued forever

# shellcheck source=launch/env.sh
. launch/env.sh
# shellcheck source=launch/linger.sh
. launch/linger.sh

say() { printf '%(%F %T)T %s: %s\n' -1 "job ${SLURM_JOB_ID:-none}" "$*"; }

# Settings of the user are exported, defaults of the script are not.
submitted() {
    local name text=''
    for name in SEARCH EVALUATE CONFIG GENOTYPE TRAIN VALID TEST RUN RUNS RANKS STEPS BATCH LAUNCHER PMI; do
        if [[ $(declare -p "$name" 2>/dev/null) = 'declare -x '* ]]; then
            text+="$name=$(printf %q "${!name}") "
        fi
    done
    text+="sbatch${SLURM_ARRAY_TASK_ID:+ --array=$SLURM_ARRAY_TASK_ID}$(printf ' %q' "$@")"
    export DRNAS_COMMAND=$text
}

ranks() {
    case $LAUNCHER in
    mpirun) start=(mpirun --bind-to none -n "$1") ;;
    srun) start=(srun "--mpi=$PMI" --kill-on-bad-exit=1 -n "$1") ;;
    *) say "LAUNCHER: expected mpirun or srun, found $LAUNCHER" && exit 2 ;;
    esac
}

# Signals: USR1 is sent before the time limit, TERM when the job ends.
pid='' warned='' ended=''
forward() { [ -z "$pid" ] || kill -s "$1" "$pid" 2>/dev/null || true; }
trap 'warned=1; say "time limit or preemption is near: the ranks write a checkpoint"; forward USR1' USR1
trap 'ended=1; say "terminated by Slurm: the newest checkpoint stays valid"; forward TERM' TERM

go() {
    local run=$1 rc failures=0
    shift
    say "start ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this machine}: ${start[*]} $*"
    while true; do
        "${start[@]}" "$@" --out "$run" --resume &
        pid=$!
        if [ "$LAUNCHER" = mpirun ]; then end_lingering "$run" "$pid" & fi
        [ -z "$warned" ] || forward USR1
        rc=0
        wait "$pid" || rc=$?
        # A signal interrupts `wait`, not the process.
        while [ "$rc" -gt 128 ] && kill -0 "$pid" 2>/dev/null; do
            rc=0
            wait "$pid" || rc=$?
        done
        pid=''
        if [ -e "$run/finished.json" ]; then
            say "$run has finished"
            return
        fi
        [ -z "$ended" ] || exit 143
        # 75: stopped by a signal that did not come through this script.
        if [ -n "$warned" ] || [ "$rc" = 75 ]; then
            requeue
        fi
        # The program exits with 1 or 2 on a user's mistake. Another code is a crash; mpirun returns 0 when one of its daemons
        # was killed, e.g. by preemption with a GraceTime.
        if [[ $rc = [12] ]] && [ ! -d "$run/checkpoints" ]; then
            say "$run failed before its first checkpoint, with exit code $rc; not restarted, see the error above"
            exit 1
        fi
        failures=$((failures + 1))
        if [ "$failures" -gt "$RETRIES" ]; then
            say "$run failed $failures times, the last time with exit code $rc. To resume: $DRNAS_COMMAND"
            exit 1
        fi
        say "$run failed with exit code $rc; resuming (start $((failures + 1)) of $((RETRIES + 1)))"
    done
}

# Requeues this job and exits.
requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
        say "not requeued: MAX_RESTARTS=$MAX_RESTARTS is reached. To resume: $DRNAS_COMMAND"
        exit 75
    fi
    say "not finished: requeueing the job"
    # Slurm terminates the whole job, sometimes before scontrol has received the reply.
    trap '' TERM
    scontrol requeue "$SLURM_JOB_ID" || {
        say "Slurm refused to requeue the job. To resume: $DRNAS_COMMAND"
        exit 75
    }
    exit 0
}
