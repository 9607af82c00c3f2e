# shellcheck shell=bash
# To be sourced: an mpirun can outlive its ranks. Cut off from a host, ranks end themselves and give the run folder back, but
# mpirun waits for its daemon there, for many minutes. And the PMIx 5 of Open MPI 5 can lock itself up for ever over a rank
# that ends in the middle of MPI_Init.

: "${LINGER_S:=60}"    # how long mpirun may live when all ranks have ended

# Whether process $1 has a child that is no zombie. Where `ps` cannot say, it has.
has_children() {
    local all
    all=$(ps -A -o ppid= -o stat=) || return 0
    awk -v parent="$1" '$1 == parent && $2 !~ /^Z/ { found = 1 } END { exit !found }' <<<"$all"
}

#   end_lingering RUN PID    ends the mpirun PID, and its group, when it has had no ranks for LINGER_S seconds
#
# Ranks are there while mpirun has children and, once RUN was locked, while it is. Returns when mpirun has ended.
end_lingering() {
    local locked='' lingers=0
    while sleep 1 >/dev/null 2>&1 && kill -0 "$2" 2>/dev/null; do
        if [ -e "$1/lock.json" ]; then locked=1; fi
        if has_children "$2" && { [ -z "$locked" ] || [ -e "$1/lock.json" ]; }; then
            lingers=0
        elif [ $((lingers += 1)) -ge "$LINGER_S" ]; then
            say "the ranks have ended, mpirun has not; it is ended"
            kill -KILL -- "-$2" 2>/dev/null || kill -KILL "$2"
            return
        fi
    done
}
