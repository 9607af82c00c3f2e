# shellcheck shell=bash
# Source this file: end_lingering kills an mpirun that outlives its ranks. When a host is cut off, the ranks exit and
# release the run folder, but mpirun waits many minutes for its daemon on that host. And PMIx 5 of Open MPI 5 can
# deadlock when a rank exits during MPI_Init.

: "${LINGER_S:=60}"    # how long mpirun may run after all ranks have exited

# True if process $1 has a child that is not a zombie, or if `ps` fails.
has_children() {
    local all
    all=$(ps -A -o ppid= -o stat=) || return 0
    awk -v parent="$1" '$1 == parent && $2 !~ /^Z/ { found = 1 } END { exit !found }' <<<"$all"
}

#   end_lingering RUN PID    kills the mpirun PID and its process group after LINGER_S seconds without ranks
#
# Ranks are running while mpirun has children and, once RUN has been locked, while it is locked. Returns when mpirun has
# exited.
end_lingering() {
    local locked='' lingers=0
    while sleep 1 >/dev/null 2>&1 && kill -0 "$2" 2>/dev/null; do
        if [ -e "$1/lock.json" ]; then locked=1; fi
        if has_children "$2" && { [ -z "$locked" ] || [ -e "$1/lock.json" ]; }; then
            lingers=0
        elif [ $((lingers += 1)) -ge "$LINGER_S" ]; then
            say "all ranks have exited but mpirun has not; killing it"
            kill -KILL -- "-$2" 2>/dev/null || kill -KILL "$2"
            return
        fi
    done
}
