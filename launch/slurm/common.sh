# shellcheck shell=bash
# To be sourced by the batch scripts beside it, in the folder that sbatch was called in: what they share.
#
#   submitted SCRIPT ARGUMENTS...   how this job was submitted: what an interrupted run is told to go on with
#   ranks N                         what is started next has N ranks
#   go RUN COMMAND...               trains until RUN has finished or the job ends, whatever comes first
#
# - Slurm warns this script before the time limit (--signal=B:USR1@120). The ranks are told, write a checkpoint and end;
#   the job is put back into the queue and goes on where it was. So it does after a node was lost: Slurm requeues it.
# - A run that fails is started again from its newest good checkpoint, RETRIES times.
# - RUN/finished.json says that a run has finished. No exit code does.
# - scancel, and pre-emption without that warning, cost the steps since the newest checkpoint (run.checkpoint_every).

: "${PMI:=pmix}"            # what srun speaks with MPI: pmix for Open MPI, pmi2 for MPICH
: "${RETRIES:=2}"
: "${MAX_RESTARTS:=1000}"   # a job that gets nowhere does not stay in the queue for ever

# shellcheck source=launch/env.sh
. launch/env.sh
# shellcheck source=launch/linger.sh
. launch/linger.sh

say() { printf '%(%F %T)T %s: %s\n' -1 "job ${SLURM_JOB_ID:-none}" "$*"; }

# Settings that came from outside are exported, those that a script gave itself are not.
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
    *) say "LAUNCHER=$LAUNCHER: mpirun or srun is expected" && exit 2 ;;
    esac
}

# Signals: USR1 is Slurm's warning, TERM the end.
pid='' warned='' ended=''
tell() { [ -z "$pid" ] || kill -s "$1" "$pid" 2>/dev/null || true; }
trap 'warned=1; say "warned by Slurm: the ranks write a checkpoint"; tell USR1' USR1
trap 'ended=1; say "ended by Slurm: the newest checkpoint stays good"; tell TERM' TERM

go() {
    local run=$1 rc failures=0
    shift
    say "start ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this machine}: ${start[*]} $*"
    while true; do
        "${start[@]}" "$@" --out "$run" --resume &
        pid=$!
        if [ "$LAUNCHER" = mpirun ]; then end_lingering "$run" "$pid" & fi
        [ -z "$warned" ] || tell USR1
        rc=0
        wait "$pid" || rc=$?
        # A signal ends `wait`, not what is waited for.
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
        # 75: stopped by a signal that somebody else sent.
        if [ -n "$warned" ] || [ "$rc" = 75 ]; then
            again
        fi
        # 1 and 2 are what the program says of a mistake. Another code is a crash, and mpirun says 0 when a daemon of its own
        # was ended, by pre-emption with a GraceTime for one.
        if [[ $rc = [12] ]] && [ ! -d "$run/checkpoints" ]; then
            say "$run failed before its first checkpoint, with exit code $rc: a mistake, told above"
            exit 1
        fi
        failures=$((failures + 1))
        if [ "$failures" -gt "$RETRIES" ]; then
            say "$run failed $failures times, the last time with exit code $rc; go on with: $DRNAS_COMMAND"
            exit 1
        fi
        say "$run failed with exit code $rc; start $((failures + 1)) of $((RETRIES + 1)) goes on where it was"
    done
}

# Puts this job back into the queue, and ends it.
again() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
        say "restarted $SLURM_RESTART_COUNT times: that is enough. Go on with: $DRNAS_COMMAND"
        exit 75
    fi
    say "not finished: back into the queue"
    # Slurm ends the job and all in it, scontrol too, at times before that has heard of its success.
    trap '' TERM
    scontrol requeue "$SLURM_JOB_ID" || {
        say "Slurm does not requeue it. Go on with: $DRNAS_COMMAND"
        exit 75
    }
    exit 0
}
