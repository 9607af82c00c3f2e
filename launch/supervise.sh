#!/usr/bin/env bash
# Supervises a run: starts it, and restarts it from its newest valid checkpoint whenever a rank, a host or a disk fails.
#
#   launch/supervise.sh RUN drnas-dist search-imagenet --config ... --train ... --valid ... --out RUN
#
# Give the command without mpirun and without --resume. Each start uses the hosts that answer, with the largest number of
# ranks that fits their slots and divides the replicas. SIGUSR1, SIGTERM, SIGINT and SIGHUP are forwarded as SIGUSR1, which
# writes a checkpoint and exits with 75. Exit codes: 0 finished (RUN/finished.json exists), 75 stopped and can be resumed,
# otherwise that of the last attempt.
set -euo pipefail

# -- change these lines, or set the variables ------------------------------------------------------------------------
: "${RESTARTS:=5}"                # restarts after a failure; one without progress counts twice
: "${REPLICAS:=}"                 # as configured; default: from RUN/config.toml, otherwise the number of slots
: "${RANKS:=}"                    # maximum number of ranks; default: slots of the hosts, or cores of this machine
: "${HOSTS:=}"                    # node1:4,node2:4 (slots); default: the Slurm allocation, or this machine
: "${ALIVE:=ssh -o BatchMode=yes -o ConnectTimeout=5}"    # "$ALIVE HOST true" tests a host of HOSTS
: "${MPIRUN:=mpirun --bind-to none}"
: "${PAUSE_S:=5}"                 # pause before a restart
# ---------------------------------------------------------------------------------------------------------------------

[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
run=$1
shift
say() { printf 'supervise: %s\n' "$*" >&2; }
# shellcheck source=launch/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=launch/linger.sh
. "$(dirname "$0")/linger.sh"

# Prints the step of the newest complete checkpoint, 0 if there is none.
newest_step() {
    local step=0 marker
    for marker in "$run"/checkpoints/step-*/DONE; do
        [ -e "$marker" ] || continue
        marker=${marker%/DONE}
        step=$((10#${marker##*step-}))
    done
    echo "$step"
}

# Prints HOST:SLOTS of the remaining hosts, one per line. With --no-kill Slurm removes lost nodes from the allocation.
hosts() {
    local host
    if [ -n "$HOSTS" ]; then
        for host in ${HOSTS//,/ }; do
            # shellcheck disable=SC2086
            if $ALIVE "${host%%:*}" true </dev/null >/dev/null 2>&1; then echo "$host"; fi
        done
    elif [ -n "${SLURM_JOB_NODELIST:-}" ] && [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
        scontrol show hostnames "$(squeue -h -j "$SLURM_JOB_ID" -o %N)" |
            sed "s/\$/:${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-1} / SLURM_JOB_NUM_NODES))}/"
    fi
}

# Prints the largest divisor of the replicas that is at most $1.
fitting_ranks() {
    local ranks=$1
    while [ "$ranks" -gt 1 ] && [ $((replicas % ranks)) -ne 0 ]; do ranks=$((ranks - 1)); done
    echo "$ranks"
}

child=
stopping=
forward() {
    stopping=1
    if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null || true; fi
}
trap forward USR1 TERM INT HUP

restarts=0
while :; do
    if [ -n "$stopping" ]; then exit 75; fi
    left=$(hosts) || say "cannot query Slurm for the remaining nodes; using all nodes of the allocation"
    slots=0
    list=
    for host in $left; do
        list+=${list:+,}$host
        case $host in
            *:*) slots=$((slots + ${host##*:})) ;;
            *) slots=$((slots + 1)) ;;
        esac
    done
    if [ -z "$left" ]; then
        if [ -n "$HOSTS" ]; then say "no host of $HOSTS answers to \"$ALIVE HOST true\""; exit 1; fi
        slots=${RANKS:-${SLURM_NTASKS:-$(nproc)}}
    fi
    if [ -n "$RANKS" ] && [ "$slots" -gt "$RANKS" ]; then slots=$RANKS; fi
    replicas=$REPLICAS
    if [ -z "$replicas" ] && [ -e "$run/config.toml" ]; then
        replicas=$(sed -n 's/^replicas = \([0-9]*\).*/\1/p' "$run/config.toml" | head -n 1)
    fi
    replicas=${replicas:-$slots}
    ranks=$(fitting_ranks "$slots")

    before=$(newest_step)
    say "starting $ranks rank$([ "$ranks" = 1 ] || echo s)${list:+ on $list}, from step $before"
    set -m   # own process group: Ctrl-C on the terminal reaches only this script, which forwards it
    # shellcheck disable=SC2086
    $MPIRUN ${list:+--host "$list"} -n "$ranks" "$@" --resume </dev/null &
    child=$!
    end_lingering "$run" "$child" </dev/null &
    set +m
    code=0
    wait "$child" || code=$?
    # A signal to this script interrupts `wait`, not the run.
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    child=
    if [ -e "$run/finished.json" ]; then exit 0; fi
    case $code in
        75) say "stopped with a checkpoint, after step $(newest_step)"; exit 75 ;;
        2) exit 2 ;;
        0) code=1 ;;    # mpirun returns 0 even for runs that it has killed
    esac
    if [ -n "$stopping" ]; then exit 75; fi
    after=$(newest_step)
    if [ "$after" -gt "$before" ]; then restarts=$((restarts + 1)); else restarts=$((restarts + 2)); fi
    if [ "$restarts" -gt "$RESTARTS" ]; then
        say "exit code $code after step $after; no restarts left (RESTARTS=$RESTARTS)"
        exit "$code"
    fi
    say "exit code $code after step $after; restarting ($restarts of RESTARTS=$RESTARTS used)"
    sleep "$PAUSE_S" &
    wait $! || true
done
