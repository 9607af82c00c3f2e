#!/usr/bin/env bash
# Keeps a run going: starts it, and again from its newest good checkpoint whenever a rank, a host or a disk fails.
#
#   launch/supervise.sh RUN drnas-dist search-imagenet --config ... --train ... --valid ... --out RUN
#
# The command is given without mpirun and without --resume. Each start takes the hosts that answer and the largest number
# of ranks that they have room for and that divides the replicas. SIGUSR1, SIGTERM, SIGINT and SIGHUP are handed on as
# SIGUSR1: a checkpoint, then exit 75. Exit codes: 0 finished (RUN/finished.json), 75 stopped and can go on, else that of
# the last try.
set -euo pipefail

# -- change these lines, or set them from outside --------------------------------------------------------------------
: "${RESTARTS:=5}"                # starts after a failure; those that got no step further count double
: "${REPLICAS:=}"                 # as configured; default: what RUN/config.toml says, else as many as there are slots
: "${RANKS:=}"                    # the most ranks; default: the slots of the hosts, or the cores of this machine
: "${HOSTS:=}"                    # node1:4,node2:4 (slots); default: the Slurm allocation, or this machine
: "${ALIVE:=ssh -o BatchMode=yes -o ConnectTimeout=5}"    # "$ALIVE HOST true" asks a host of HOSTS
: "${MPIRUN:=mpirun --bind-to none}"
: "${PAUSE_S:=5}"                 # before another try
# ---------------------------------------------------------------------------------------------------------------------

[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
run=$1
shift
say() { printf 'supervise: %s\n' "$*" >&2; }
# shellcheck source=launch/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=launch/linger.sh
. "$(dirname "$0")/linger.sh"

# The newest whole checkpoint's step, 0 if there is none.
newest() {
    local step=0 marker
    for marker in "$run"/checkpoints/step-*/DONE; do
        [ -e "$marker" ] || continue
        marker=${marker%/DONE}
        step=$((10#${marker##*step-}))
    done
    echo "$step"
}

# HOST:SLOTS of what is left, one a line. Slurm takes lost nodes out of an allocation that it keeps (--no-kill).
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

# The largest divisor of the replicas that is at most $1.
fitting() {
    local ranks=$1
    while [ "$ranks" -gt 1 ] && [ $((replicas % ranks)) -ne 0 ]; do ranks=$((ranks - 1)); done
    echo "$ranks"
}

child=
asked=
hand_on() {
    asked=1
    if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null || true; fi
}
trap hand_on USR1 TERM INT HUP

tries=0
while :; do
    if [ -n "$asked" ]; then exit 75; fi
    left=$(hosts) || say "Slurm does not say which nodes are left; all are taken"
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
        if [ -n "$HOSTS" ]; then say "no host of $HOSTS answers ($ALIVE HOST true)"; exit 1; fi
        slots=${RANKS:-${SLURM_NTASKS:-$(nproc)}}
    fi
    if [ -n "$RANKS" ] && [ "$slots" -gt "$RANKS" ]; then slots=$RANKS; fi
    replicas=$REPLICAS
    if [ -z "$replicas" ] && [ -e "$run/config.toml" ]; then
        replicas=$(sed -n 's/^replicas = \([0-9]*\).*/\1/p' "$run/config.toml" | head -n 1)
    fi
    replicas=${replicas:-$slots}
    ranks=$(fitting "$slots")

    before=$(newest)
    say "start with $ranks ranks${list:+ on $list}, from step $before"
    set -m   # a group of its own: Ctrl-C on the terminal is for this script alone, which hands it on
    # shellcheck disable=SC2086
    $MPIRUN ${list:+--host "$list"} -n "$ranks" "$@" --resume </dev/null &
    child=$!
    end_lingering "$run" "$child" </dev/null &
    set +m
    code=0
    wait "$child" || code=$?
    # A signal of this script ends `wait`, not the run.
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    child=
    if [ -e "$run/finished.json" ]; then exit 0; fi
    case $code in
        75) say "stopped with a checkpoint, after step $(newest)"; exit 75 ;;
        2) exit 2 ;;
        0) code=1 ;;    # mpirun says so even of runs that it has ended
    esac
    if [ -n "$asked" ]; then exit 75; fi
    after=$(newest)
    if [ "$after" -gt "$before" ]; then tries=$((tries + 1)); else tries=$((tries + 2)); fi
    if [ "$tries" -gt "$RESTARTS" ]; then
        say "exit code $code after step $after; no more restarts ($RESTARTS)"
        exit "$code"
    fi
    say "exit code $code after step $after; another start ($tries of $RESTARTS used)"
    sleep "$PAUSE_S" &
    wait $! || true
done
