# shellcheck shell=bash
# What ./quickstart, ./test, ./bench and tests/compose/run share: messages, Debian packages, free ports, processes by pid file.
# Sourced, never run.

say() { printf '%s\n' "$*"; }

step() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }

# Ends the script with one sentence that names the thing and one that names the remedy.
die() {
    printf '\n%s: %s\n' "$(basename "$0")" "$1" >&2
    shift
    while (($# > 0)); do
        printf '    %s\n' "$1" >&2
        shift
    done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Prints those of the named Debian packages that are neither installed nor provided by one that is (postgresql-contrib is
# a package of its own in Debian 12, and not in 13).
missing_packages() {
    local package there
    there=$(dpkg-query -W -f '${db:Status-Status} ${Package} ${Provides}\n' 2>/dev/null | sed -n 's/^installed //p' |
        sed 's/([^)]*)//g' | tr -s ', ' '\n')
    for package in "$@"; do
        grep -qxF -- "$package" <<<"$there" || printf '%s\n' "$package"
    done
}

# Installs the named Debian packages that are missing. Their daemons are not started and PostgreSQL makes no cluster:
# policy-rc.d forbids the first, a drop-in of postgresql-common the second, both only while apt-get runs.
install_packages() {
    local missing=()
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} > 0)) || return 0
    have apt-get || die "these programs are missing and there is no apt-get here: ${missing[*]}" \
        "Install what these Debian packages hold by the means of your system, then run this again."
    ((EUID == 0)) || die "these Debian packages are missing: ${missing[*]}" \
        "Install them: sudo apt-get install --no-install-recommends ${missing[*]}"
    step "installing ${missing[*]}"
    (
        made=()
        # shellcheck disable=SC2317,SC2329 # called by the trap
        undo() { ((${#made[@]} == 0)) || rm -f "${made[@]}"; }
        trap undo EXIT
        if [[ ! -e /usr/sbin/policy-rc.d ]]; then
            printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
            chmod 755 /usr/sbin/policy-rc.d
            made+=(/usr/sbin/policy-rc.d)
        fi
        if [[ ! -e /etc/postgresql-common/createcluster.d/pginstant.conf ]]; then
            mkdir -p /etc/postgresql-common/createcluster.d
            printf 'create_main_cluster = false\n' >/etc/postgresql-common/createcluster.d/pginstant.conf
            made+=(/etc/postgresql-common/createcluster.d/pginstant.conf)
        fi
        export DEBIAN_FRONTEND=noninteractive
        log=$(mktemp)
        made+=("$log")
        if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } </dev/null >"$log" 2>&1; then
            tail -n 20 "$log" >&2
            exit 1
        fi
    ) || die "apt-get could not install ${missing[*]}" "Its last lines are above. Mend that, then run this again."
}

# Finds cargo, also that of the user who called sudo, and checks its version against rust-toolchain.toml.
# Sets CARGO (an array): the command to call.
find_cargo() {
    local wanted user home
    wanted=$(sed -n 's/^channel = "\([0-9.]*\)"/\1/p' rust-toolchain.toml)
    CARGO=(cargo)
    if ! have cargo && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    if ! have cargo; then
        user=${SUDO_USER:-}
        home=$(getent passwd "${user:-nobody}" | cut -d: -f6)
        if [[ -n $user && -x $home/.cargo/bin/cargo ]]; then
            CARGO=(runuser -u "$user" -- env "PATH=$home/.cargo/bin:$PATH" cargo)
        else
            die "cargo is missing" "Install Rust $wanted from https://rustup.rs, then run this again."
        fi
    fi
    "${CARGO[@]}" --version >/dev/null 2>&1 || die "cargo does not run here, or Rust $wanted is not installed" \
        "Install it: rustup toolchain install $wanted"
    local found
    found=$("${CARGO[@]}" --version | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
    [[ $(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]] ||
        die "Rust $found is too old: $wanted is needed" "Install it from https://rustup.rs: rustup toolchain install $wanted"
    have cc || die "a C compiler is missing (SQLite is compiled with the services)" "Install it: sudo apt-get install gcc libc6-dev"
}

# free_port PREFERRED: prints PREFERRED if nobody listens there on the loopback, else a free port of the system's choice.
free_port() {
    python3 - "$1" <<'PYTHON'
import socket, sys
for port in (int(sys.argv[1]), 0):
    try:
        # On all addresses, so that a listener on any of them is in the way; with SO_REUSEADDR, as servers
        # bind, so that old connections are not.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))
            probe.listen(1)
            print(probe.getsockname()[1])
            break
    except OSError:
        continue
else:
    sys.exit("no free port")
PYTHON
}

# start_time PID: when the process was started, in clock ticks since boot; with the pid it names a process for good.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) } # the name in parentheses may hold blanks
    cut -d' ' -f20 <<<"$stat"
}

# write_pid_file FILE PID
write_pid_file() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$1"; }

# pid_of FILE: prints the pid if the process that the file names still runs.
pid_of() {
    local pid started
    read -r pid started 2>/dev/null <"$1" || return 1
    [[ -n $started && $(start_time "$pid") == "$started" ]] || return 1
    [[ $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -c1) != Z ]] || return 1
    printf '%s\n' "$pid"
}

# end_process FILE SECONDS: asks the process of a pid file to end, then makes it; removes the file.
end_process() {
    local pid
    if pid=$(pid_of "$1"); then
        kill -TERM "$pid" 2>/dev/null || true
        wait_until "$2" pid_gone "$1" || {
            say "process $pid ($(basename "$1" .pid)) did not end within $2 s and is killed"
            kill -KILL "$pid" 2>/dev/null || true
            wait_until 10 pid_gone "$1" || true
        }
    fi
    rm -f "$1"
}

pid_gone() { ! pid_of "$1" >/dev/null; }

# wait_until SECONDS COMMAND…: tries the command until it succeeds or the time is over.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# http_ok PORT PATH: whether a GET on the loopback is answered with 200.
http_ok() {
    local status
    status=$(
        exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$2" >&3
        IFS= read -r -t 5 line <&3 && printf '%s' "$line"
    ) || return 1
    [[ $status == *" 200 "* ]]
}

# Seconds with fractions, for durations on the screen.
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
