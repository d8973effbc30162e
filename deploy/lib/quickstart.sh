# shellcheck shell=bash
# The steps of ./quickstart, each of which finds its work done when it is. Sourced by it, after common.sh.

STATE=${PGINSTANT_QUICKSTART_DIR:-$PWD/.quickstart}
OS_USER=postgres
REPOSITORY=demo
DATABASE=bench

# --- the host -----------------------------------------------------------------------------------------------------

check_host() {
    ((EUID == 0)) || die "this needs root: it installs packages, mounts with FUSE and runs PostgreSQL as the user $OS_USER" \
        "Run: sudo ./quickstart"
    [[ -r /proc/self/stat ]] || die "/proc is not mounted" "Mount it: mount -t proc proc /proc"
    if [[ ! -e /dev/fuse ]]; then
        have modprobe && modprobe fuse 2>/dev/null
        [[ -e /dev/fuse ]] || die "/dev/fuse is missing, so nothing can be mounted" \
            "On a machine: modprobe fuse." \
            "In a container: start it with --device /dev/fuse --cap-add SYS_ADMIN." \
            "In a chroot: mknod /dev/fuse c 10 229, or bind-mount /dev."
    fi
    (exec 3<>/dev/fuse) 2>/dev/null || die "/dev/fuse cannot be opened, so nothing can be mounted" \
        "In a container: start it with --device /dev/fuse --cap-add SYS_ADMIN."
    [[ -w /dev/shm ]] || die "/dev/shm is missing, and PostgreSQL needs it" "Mount it: mount -t tmpfs tmpfs /dev/shm"
    if [[ -z ${PGINSTANT_BINARIES:-} ]] && ! have cargo && [[ ! -x $HOME/.cargo/bin/cargo && -z ${SUDO_USER:-} ]]; then
        die "cargo is missing" "Install Rust from https://rustup.rs, then run this again."
    fi
}

find_postgresql() {
    PG_BIN=$(find /usr/lib/postgresql/*/bin -maxdepth 1 -name initdb -printf '%h\n' 2>/dev/null | sort -V | tail -n 1)
    [[ -n $PG_BIN ]] || die "PostgreSQL's programs are not in /usr/lib/postgresql/*/bin" "Install them: apt-get install postgresql"
}

# as USER COMMAND…: becomes the user and then the command, with no process between that would catch signals, and from a
# directory that the user may enter.
as() {
    local user=$1
    shift
    (cd / && exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups -- env HOME=/ "$@")
}

# --- the state directory ------------------------------------------------------------------------------------------

# PostgreSQL and the broker run as users of their own and must be able to enter the directory, and the path of a Unix
# socket in it has room for about 40 characters of it. Where the checkout does not fit, .quickstart is a link.
choose_state_directory() {
    if ! locate_state_directory; then
        if [[ -e $STATE || -L $STATE ]]; then
            [[ -d $STATE && -z $(ls -A "$STATE") ]] || die "$STATE exists and was not made by quickstart" \
                "Remove it, or choose another directory: PGINSTANT_QUICKSTART_DIR=DIRECTORY ./quickstart"
            rmdir "$STATE"
        fi
        if [[ -n ${PGINSTANT_QUICKSTART_DIR:-} ]]; then
            mkdir -p "$STATE"
            fits "$STATE" || die "$STATE cannot be used: the user $OS_USER cannot enter it, or its path is longer than 40 characters" \
                "Choose another directory: PGINSTANT_QUICKSTART_DIR=DIRECTORY ./quickstart"
        elif fits "$PWD"; then
            mkdir "$STATE"
        else
            local elsewhere
            elsewhere=$(mktemp -d /var/tmp/pginstant-XXXXXX)
            ln -s "$elsewhere" "$STATE"
            STATE=$elsewhere
            say "The user $OS_USER cannot use $PWD (not allowed to enter, or the path is too long): .quickstart leads to $STATE."
        fi
        chmod 755 "$STATE"
        touch "$STATE/made-by-pginstant-quickstart"
    fi
    take_lock
    mkdir -p "$STATE/run" "$STATE/log" "$STATE/conf"
    chmod 700 "$STATE/run" "$STATE/conf"
}

fits() { ((${#1} <= 40)) && as "$OS_USER" test -x "$1" && as rabbitmq test -x "$1"; }

locate_state_directory() {
    STATE=$(readlink -m "$STATE")
    [[ -e $STATE/made-by-pginstant-quickstart ]]
}

# One quickstart at a time: what it starts must not inherit the lock, hence 9>&- wherever something is left running.
take_lock() {
    exec 9>"$STATE/lock"
    flock -n 9 || die "another ./quickstart is at work in $STATE" "Wait until it is done."
}

# Ports are chosen once and kept in a file, so that a second run and the printed lines agree.
settle_ports() {
    if [[ ! -s $STATE/conf/ports ]]; then
        {
            printf 'BROKER_PORT=%s\n' "$(free_port 5673)"
            printf 'EPMD_PORT=%s\n' "$(free_port 4379)"
            printf 'DIST_PORT=%s\n' "$(free_port 25673)"
            printf 'MOUNT_HTTP_PORT=%s\n' "$(free_port 9410)"
            printf 'RECOVERY_HTTP_PORT=%s\n' "$(free_port 9411)"
            printf 'PUBLISH_PORT=%s\n' "$(free_port 6543)"
        } >"$STATE/conf/ports.new"
        mv "$STATE/conf/ports.new" "$STATE/conf/ports"
    fi
    # shellcheck source=/dev/null
    source "$STATE/conf/ports"
}

# --- programs -----------------------------------------------------------------------------------------------------

build() {
    if [[ -n ${PGINSTANT_BINARIES:-} ]]; then
        BIN=$(readlink -f "$PGINSTANT_BINARIES")
    else
        find_cargo
        step "building (release; the first time takes some minutes)"
        "${CARGO[@]}" build --release --locked -p mount-svc -p recovery-svc -p agent -p explorer || die "the build failed" "The compiler's words are above."
        BIN=$PWD/target/release
    fi
    local program
    for program in mount-svc recovery-svc pginstant-agent explorer; do
        [[ -x $BIN/$program ]] || die "$BIN/$program is missing" "Build it: cargo build --release --bins"
    done
}

# start_program NAME COMMAND…: starts it detached, its output in log/NAME.log, its pid in run/NAME.pid.
start_program() {
    local name=$1
    shift
    setsid "$@" >>"$STATE/log/$name.log" 2>&1 </dev/null 9>&- &
    write_pid_file "$STATE/run/$name.pid" $!
    disown
}

runs() { pid_of "$STATE/run/$1.pid" >/dev/null; }

# --- the broker ---------------------------------------------------------------------------------------------------

start_broker() {
    if runs broker; then
        say "RabbitMQ runs already."
        return
    fi
    step "starting a private RabbitMQ node on 127.0.0.1:$BROKER_PORT"
    local home=$STATE/rabbitmq
    mkdir -p "$home"
    deploy/make-secrets "$STATE/conf/secrets" >/dev/null
    cp "$STATE/conf/secrets/rabbitmq-definitions.json" "$home/definitions.json"
    printf '[].\n' >"$home/enabled_plugins"
    : >"$home/env.conf"
    cat >"$home/rabbitmq.conf" <<CONF
listeners.tcp.default = 127.0.0.1:$BROKER_PORT
definitions.import_backend = local_filesystem
definitions.local.path = $home/definitions.json
definitions.skip_if_unchanged = true
CONF
    chown -R rabbitmq:rabbitmq "$home"
    chmod 700 "$home"
    if ! runs epmd; then
        start_program epmd "$(epmd_program)" -address 127.0.0.1 -port "$EPMD_PORT"
    fi
    start_program broker setpriv --reuid=rabbitmq --regid="$(id -g rabbitmq)" --init-groups -- \
        env -i "PATH=$PATH" LANG=C.UTF-8 "HOME=$home" "ERL_EPMD_PORT=$EPMD_PORT" ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_NODENAME=pginstant@localhost "RABBITMQ_DIST_PORT=$DIST_PORT" \
        "RABBITMQ_BASE=$home" "RABBITMQ_MNESIA_BASE=$home/mnesia" "RABBITMQ_LOG_BASE=$home/log" \
        "RABBITMQ_CONFIG_FILE=$home/rabbitmq.conf" "RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins" \
        "RABBITMQ_CONF_ENV_FILE=$home/env.conf" "RABBITMQ_PID_FILE=$home/pid" \
        'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}' \
        /usr/lib/rabbitmq/bin/rabbitmq-server
    wait_until 90 broker_ready || die "RabbitMQ did not come up within 90 s" "See $STATE/log/broker.log and $home/log/."
}

epmd_program() { command -v epmd || find /usr/lib/erlang -name epmd -perm -u+x -print -quit; }

# Definitions are loaded before the listener opens, so an open port means that users and queues are there.
broker_ready() {
    runs broker || die "RabbitMQ ended" "See $STATE/log/broker.log and $STATE/rabbitmq/log/."
    (exec 3<>"/dev/tcp/127.0.0.1/$BROKER_PORT") 2>/dev/null
}

# --- the services -------------------------------------------------------------------------------------------------

broker_section() {
    cat <<TOML
[broker]
host = "127.0.0.1"
port = $BROKER_PORT
vhost = "/recovery"
user = "$1"
password_file = "$STATE/conf/secrets/broker/$1"
TOML
}

write_configuration() {
    local target
    target=$(
        cat <<TOML
[targets.local]
connection = "local"
agent_program = "$BIN/pginstant-agent"
host = "127.0.0.1"
os_user = "$OS_USER"
mount_root = "$STATE/mounts"
cache_root = "$STATE/cache"
default_port = $PUBLISH_PORT
listen_addresses = "127.0.0.1"
superuser = "postgres"
TOML
    )
    cat >"$STATE/conf/mount-svc.toml" <<TOML
server = "demo"
state_directory = "$STATE/mount-svc"
http_listen = "127.0.0.1:$MOUNT_HTTP_PORT"

$(broker_section mount-svc)

[repositories.$REPOSITORY]
path = "$STATE/backups"

$target
TOML
    cat >"$STATE/conf/recovery-svc.toml" <<TOML
server = "demo"
state_directory = "$STATE/recovery-svc"
http_listen = "127.0.0.1:$RECOVERY_HTTP_PORT"

$(broker_section recovery-svc)

$target
TOML
    cat >"$STATE/conf/explorer.toml" <<TOML
server = "demo"

$(broker_section explorer)
TOML
    cat >"$STATE/explorer" <<SH
#!/bin/sh
exec "$BIN/explorer" --config "$STATE/conf/explorer.toml" "\$@"
SH
    chmod 755 "$STATE/explorer"
}

start_services() {
    mkdir -p "$STATE/mount-svc" "$STATE/recovery-svc" "$STATE/mounts" "$STATE/cache" "$STATE/backups"
    chmod 700 "$STATE/mount-svc" "$STATE/recovery-svc"
    write_configuration
    local name port
    for name in mount-svc recovery-svc; do
        if runs "$name"; then
            say "$name runs already."
            continue
        fi
        step "starting $name"
        start_program "$name" "$BIN/$name" --config "$STATE/conf/$name.toml"
    done
    for name in "mount-svc $MOUNT_HTTP_PORT" "recovery-svc $RECOVERY_HTTP_PORT"; do
        read -r name port <<<"$name"
        wait_until 60 service_ready "$name" "$port" || die "$name was not ready within 60 s" "See $STATE/log/$name.log."
    done
}

service_ready() {
    runs "$1" || die "$1 ended" "Its last words: $(tail -n 3 "$STATE/log/$1.log")" "See $STATE/log/$1.log."
    http_ok "$2" /readyz
}

# --- PostgreSQL and its backup ------------------------------------------------------------------------------------

make_original() {
    [[ ! -d $STATE/backups/quickstart ]] || return 0
    step "making a small PostgreSQL ($("$PG_BIN/postgres" -V)) with pgbench data, scale 10"
    rm -rf "$STATE/original" "$STATE/original-socket"
    install -d -o "$OS_USER" -m 700 "$STATE/original" "$STATE/original-socket"
    install -d -o "$OS_USER" -m 700 "$STATE/backups"
    if [[ ! -s $STATE/conf/pgpass ]]; then
        (umask 077 && printf '127.0.0.1:*:*:postgres:%s\n' "$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')" >"$STATE/conf/pgpass")
    fi
    install -m 600 -o "$OS_USER" /dev/null "$STATE/conf.password"
    cut -d: -f5 "$STATE/conf/pgpass" >"$STATE/conf.password"
    as "$OS_USER" "$PG_BIN/initdb" -D "$STATE/original" -U postgres --auth-local=peer --auth-host=scram-sha-256 \
        --pwfile="$STATE/conf.password" --data-checksums --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$STATE/log/original.log"
    rm "$STATE/conf.password"
    start_program original setpriv --reuid="$OS_USER" --regid="$(id -g "$OS_USER")" --init-groups -- "$PG_BIN/postgres" -D "$STATE/original" \
        -c listen_addresses= -c "unix_socket_directories=$STATE/original-socket" -c shared_buffers=64MB
    wait_until 60 original_ready || die "the small PostgreSQL did not start within 60 s" "See $STATE/log/original.log."
    as "$OS_USER" "$PG_BIN/createdb" -h "$STATE/original-socket" "$DATABASE"
    as "$OS_USER" "$PG_BIN/pgbench" -h "$STATE/original-socket" -q -i -s 10 "$DATABASE" >>"$STATE/log/original.log" 2>&1
}

original_ready() {
    runs original || die "the small PostgreSQL ended" "See $STATE/log/original.log."
    as "$OS_USER" "$PG_BIN/pg_isready" -q -h "$STATE/original-socket"
}

make_backup() {
    if [[ ! -d $STATE/backups/quickstart ]]; then
        step "backing it up with pg_basebackup, plain format, as anybody would"
        rm -rf "$STATE/backups/quickstart.part"
        as "$OS_USER" "$PG_BIN/pg_basebackup" -h "$STATE/original-socket" -D "$STATE/backups/quickstart.part" \
            --format=plain --wal-method=stream --checkpoint=fast --label=quickstart --no-sync
        mv "$STATE/backups/quickstart.part" "$STATE/backups/quickstart"
        say "$(du -sh "$STATE/backups/quickstart" | cut -f1) in $(find "$STATE/backups/quickstart" -type f | wc -l) files"
        # The original goes: what is published comes from the backup alone.
        end_process "$STATE/run/original.pid" 30
        rm -rf "$STATE/original" "$STATE/original-socket"
        backup_hash >"$STATE/conf/backup.sha256"
    fi
}

# Names, kinds, owners, modes, sizes, times and contents of everything in the backup, in one hash.
backup_hash() {
    (
        cd "$STATE/backups/quickstart" || exit
        find . -printf '%P %y %u:%g %m %s %T@ %l\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -d' ' -f1
}

# --- the sessions -------------------------------------------------------------------------------------------------

# open_sessions [STATUS]: ids of the sessions that have not ended, or of those with the status.
open_sessions() {
    "$STATE/explorer" --output json sessions 2>/dev/null | python3 -c '
import json, sys
text, wanted = sys.stdin.read(), sys.argv[1:]
decoder, at, found = json.JSONDecoder(), 0, []
while text[at:].strip():
    at += len(text[at:]) - len(text[at:].lstrip())
    value, at = decoder.raw_decode(text, at)
    found += value if isinstance(value, list) else value.get("sessions", [value])
for session in found:
    ended = session["status"] in ("Failed", "Completed", "Cancelled")
    if (session["status"] in wanted) if wanted else not ended:
        print(session["session_id"])
' "$@"
}

sql() { PGPASSFILE=$STATE/conf/pgpass "$PG_BIN/psql" -X -q -h 127.0.0.1 -p "$PUBLISH_PORT" -U postgres -d "$DATABASE" "$@"; }

first_query_answered() { sql -Atc 'SELECT 1' >/dev/null 2>&1; }

# Whether it is known how the session of an earlier run stands: its instance answers, or it waits for a retry.
earlier_session_is_settled() {
    first_query_answered || [[ -n $(open_sessions "Waiting for manual retry") ]]
}

publish_once() {
    local session began
    PUBLISHED_FOR=
    if [[ -n $(open_sessions) ]]; then
        wait_until 60 earlier_session_is_settled || die "the session of an earlier run neither answers nor waits for a retry" \
            "See: $STATE/explorer sessions. Or begin anew: ./quickstart stop && ./quickstart"
        if first_query_answered; then
            step "published already, on port $PUBLISH_PORT"
            return
        fi
        session=$(open_sessions "Waiting for manual retry" | tail -n 1)
        step "explorer retry $session" # its PostgreSQL is gone, its write cache is not
        began=$(now)
        "$STATE/explorer" retry "$session" || die "the retry failed" "See: $STATE/explorer session $session"
        wait_until 30 first_query_answered || die "the published instance does not answer on port $PUBLISH_PORT" \
            "See: $STATE/explorer session $session"
        PUBLISHED_FOR=$(since "$began")
        return
    fi
    if [[ $(free_port "$PUBLISH_PORT") != "$PUBLISH_PORT" ]]; then
        die "somebody listens on port $PUBLISH_PORT" "Stop it, or begin anew with other ports: ./quickstart stop && ./quickstart"
    fi
    step "explorer publish --repository $REPOSITORY --target local --port $PUBLISH_PORT"
    began=$(now)
    "$STATE/explorer" publish --repository "$REPOSITORY" --target local --port "$PUBLISH_PORT" ||
        die "publishing failed" "See: $STATE/explorer sessions, and the logs in $STATE/log/."
    wait_until 30 first_query_answered || die "the published instance does not answer on port $PUBLISH_PORT" \
        "See: $STATE/explorer sessions, and the logs in $STATE/log/."
    PUBLISHED_FOR=$(since "$began")
}

show_proof() {
    [[ -z $PUBLISHED_FOR ]] || step "first query answered $PUBLISHED_FOR s after the command"
    step "a query"
    sql -c 'SELECT count(*) AS accounts, sum(abalance) AS balance FROM pgbench_accounts'
    step "a write"
    sql -c 'UPDATE pgbench_accounts SET abalance = abalance + 100 WHERE aid <= 1000' \
        -c 'SELECT count(*) AS accounts, sum(abalance) AS balance FROM pgbench_accounts'
    PGPASSFILE=$STATE/conf/pgpass "$PG_BIN/pgbench" -n -c 2 -T 3 -h 127.0.0.1 -p "$PUBLISH_PORT" -U postgres "$DATABASE" 2>&1 |
        grep -E '^(tps|number of transactions actually)' || die "pgbench failed against the published instance" "See: $STATE/explorer sessions"
    step "the backup"
    local before after
    before=$(cat "$STATE/conf/backup.sha256")
    after=$(backup_hash)
    say "hash before  $before"
    say "hash now     $after"
    [[ $before == "$after" ]] || die "the backup has changed, which must never happen" "Please report it, with $STATE/log/."
    say "Unchanged: every write went to the write cache under $STATE/cache."
}

show_next() {
    step "what to type next"
    cat <<TEXT
PGPASSFILE=$STATE/conf/pgpass psql -h 127.0.0.1 -p $PUBLISH_PORT -U postgres $DATABASE
$STATE/explorer backups
$STATE/explorer sessions
$STATE/explorer session $(open_sessions Published | head -n 1)
$STATE/explorer publish --repository $REPOSITORY --target local --port $(free_port $((PUBLISH_PORT + 1)))
$STATE/explorer doctor
./quickstart stop
TEXT
}

# --- taking it down -----------------------------------------------------------------------------------------------

unpublish_everything() {
    [[ -x $STATE/explorer ]] && runs broker && runs recovery-svc || return 0
    local session
    timeout 120 "$STATE/explorer" unpublish --all --wait=2m || true
    for session in $(open_sessions || true); do # those that "all" does not fit: not published, waiting, failed half-way
        timeout 60 "$STATE/explorer" cancel "$session" --wait=1m || say "session $session is taken down by force"
    done
}

remove_state() {
    if grep -qF " $STATE/" /proc/self/mounts; then
        die "something is still mounted under $STATE" "See: grep $STATE /proc/self/mounts. Unmount it, then: ./quickstart stop"
    fi
    exec 9>&-
    rm -rf --one-file-system "$STATE"
    [[ ! -L $PWD/.quickstart || -e $PWD/.quickstart ]] || rm "$PWD/.quickstart"
}
