# shellcheck shell=bash
# Docker for tests/compose/run: a daemon of its own when none runs, and base images that no registry is needed for.

DEBIAN_BASE=pginstant-test/debian:trixie
RABBITMQ_BASE=pginstant-test/rabbitmq:4

ensure_docker() {
    if docker info >/dev/null 2>&1; then
        say "Using the Docker that runs."
        return
    fi
    step "starting dockerd"
    export DOCKER_HOST=unix://$WORK/docker.sock
    setsid dockerd --data-root "$CACHE/docker" --exec-root "$WORK/docker-run" --pidfile "$WORK/docker.pid" --host "$DOCKER_HOST" \
        >"$WORK/dockerd.log" 2>&1 </dev/null &
    write_pid_file "$WORK/dockerd.pid" $!
    wait_until 60 docker_answers || {
        tail -n 20 "$WORK/dockerd.log" >&2
        die "dockerd did not start" "Its last lines are above."
    }
}

docker_answers() {
    pid_of "$WORK/dockerd.pid" >/dev/null || return 0 # it ended: no use in waiting, the next command says so
    docker info >/dev/null 2>&1
}

stop_docker() {
    [[ -e $WORK/dockerd.pid ]] || return 0
    end_process "$WORK/dockerd.pid" 60
    awk -v root="$WORK/" 'index($2, root) == 1 { print $2 }' /proc/self/mounts | sort -r | xargs -r -n 1 umount -l
}

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Debian 13's debootstrap in place of debian:trixie-slim, and its RabbitMQ 4 in place of rabbitmq:4.
make_base_images() {
    if ! has_image "$DEBIAN_BASE"; then
        if [[ ! -e $CACHE/trixie.tar ]]; then
            step "making a Debian 13 with debootstrap"
            rm -rf "$CACHE/trixie.part"
            debootstrap --variant=minbase --include=ca-certificates trixie "$CACHE/trixie.part" http://deb.debian.org/debian \
                >"$WORK/debootstrap.log" || {
                tail -n 20 "$WORK/debootstrap.log" >&2
                die "debootstrap failed" "Its last lines are above."
            }
            rm -rf "$CACHE/trixie.part/var/cache/apt/archives"/*.deb
            tar --create --file "$CACHE/trixie.tar.part" --directory "$CACHE/trixie.part" --exclude=./dev --exclude=./proc --exclude=./sys .
            mv "$CACHE/trixie.tar.part" "$CACHE/trixie.tar"
            rm -rf --one-file-system "$CACHE/trixie.part"
        fi
        step "importing it as $DEBIAN_BASE"
        docker import --change 'CMD ["/bin/bash"]' "$CACHE/trixie.tar" "$DEBIAN_BASE" >/dev/null
    fi
    if ! has_image "$RABBITMQ_BASE"; then
        step "building $RABBITMQ_BASE"
        docker build --tag "$RABBITMQ_BASE" --build-arg "DEBIAN_IMAGE=$DEBIAN_BASE" "$ROOT/tests/compose/rabbitmq" >"$WORK/build.log" 2>&1 || {
            tail -n 20 "$WORK/build.log" >&2
            die "the RabbitMQ image could not be built" "The last lines are above."
        }
    fi
}
