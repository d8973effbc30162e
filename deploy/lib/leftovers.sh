# shellcheck shell=bash
# Ending what works below one directory: processes and mounts. Sourced after common.sh by what sets STATE, that directory.

# leftovers [NAME]: pids of our programs (of that name) that work in the state directory or were told its path. A shell or
# an editor that somebody has open there is not ours.
leftovers() {
    local pid name
    {
        find /proc -maxdepth 2 -path '/proc/[0-9]*' \( -name cwd -o -name exe \) -lname "$STATE/*" 2>/dev/null
        grep -alF -- "$STATE/" /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null
    } | cut -d/ -f3 | sort -un | while read -r pid; do
        name=$(cat "/proc/$pid/comm" 2>/dev/null) || continue
        case $name in
        postgres | pginstant-* | mount-svc | recovery-svc | explorer | beam.smp | epmd | erl_child_setup | inet_gethost | \
            initdb | pg_ctl | pgbench | psql | pg_basebackup | cp | tar | barman | rsync | pgbackrest | ld-linux-*)
            [[ $name != "${1:-$name}" ]] || printf '%s\n' "$pid"
            ;;
        esac
    done
}

none_left() { [[ -z $(leftovers "$@") ]]; }

signal_leftovers() {
    local signal=$1
    shift
    # shellcheck disable=SC2046 # pids are numbers
    none_left "$@" || kill "-$signal" $(leftovers "$@") 2>/dev/null || true
}

unmount_all() {
    local mount
    while read -r mount; do
        umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || say "could not unmount $mount"
    done < <(awk -v root="$STATE/" 'index($2, root) == 1 { print $2 }' /proc/self/mounts | sort -r)
}

# What is still there after the orderly way (a service was killed, the broker is gone): PostgreSQL first, so that it writes
# its last pages while the mount is there.
end_leftovers() {
    signal_leftovers INT postgres
    wait_until 20 none_left postgres || signal_leftovers KILL postgres
    unmount_all
    signal_leftovers TERM
    wait_until 10 none_left || signal_leftovers KILL
    wait_until 10 none_left || say "these processes do not end: $(leftovers | tr '\n' ' ')"
    unmount_all
}
