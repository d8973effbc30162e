# shellcheck shell=bash
# The backup tools that ./test and ./bench compare with and that are no packages of the machine's own distribution, installed under
# CACHE, which is kept. Sourced after common.sh.

CACHE=${PGINSTANT_TEST_CACHE:-/var/cache/pginstant-test}

# install_pgbackrests SUITE…: pgBackRest of these Debians, each with the libraries of its own: it runs by that one's loader, without
# a chroot.
install_pgbackrests() {
    local suite place
    export PGINSTANT_TEST_PGBACKREST=$CACHE/pgbackrest
    for suite in "$@"; do
        place=$PGINSTANT_TEST_PGBACKREST/$suite
        [[ ! -e $place/complete ]] || continue
        step "installing pgBackRest of Debian $suite into $place"
        rm -rf "$place"
        mkdir -p "$place"
        make_pgbackrest "$suite" "$place" ||
            die "pgBackRest of Debian $suite could not be installed" "See apt's words above; is deb.debian.org reachable?"
        chmod -R a+rX "$CACHE"
        touch "$place/complete"
    done
}

make_pgbackrest() (
    set -e
    suite=$1 place=$2
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work"/{parts,lists/partial,cache/archives/partial}
    : >"$work/status" # nothing is installed there, so everything that is needed is fetched
    printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "$suite" /usr/share/keyrings/debian-archive-keyring.gpg >"$work/parts/debian.sources"
    apt=(apt-get -qq -y -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State::Lists=$work/lists"
        -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1
        # A mirror may lag behind; what it has is signed all the same.
        -o Acquire::Check-Valid-Until=false)
    "${apt[@]}" update
    "${apt[@]}" --no-install-recommends --download-only install pgbackrest
    for package in "$work"/cache/archives/{pgbackrest_,lib,zlib}*.deb; do
        dpkg -x "$package" "$place"
    done
    loader=$(find "$place" -name 'ld-linux*.so.*' -print -quit)
    libraries=$(printf '%s:' "$place"/{usr/,}lib/*-linux-gnu*)
    # By its name it starts its own processes.
    # shellcheck disable=SC2016 # expanded when it runs
    printf '#!/bin/sh\nexec %s --argv0 "$0" --library-path %s %s "$@"\n' "$loader" "$libraries" "$place/usr/bin/pgbackrest" \
        >"$place/pgbackrest"
    chmod 755 "$place/pgbackrest"
    "$place/pgbackrest" version
)

# install_barmans VERSION…: Barman beside Debian's, with its programs for clouds; its module for PostgreSQL is Debian's.
install_barmans() {
    local version venv
    for version in "$@"; do
        venv=$CACHE/barman-$version
        [[ ! -e $venv/cloud ]] || continue
        step "installing Barman $version from PyPI into $venv"
        rm -rf "$venv"
        mkdir -p "$CACHE"
        /usr/bin/python3 -m venv --system-site-packages "$venv"
        "$venv/bin/pip" install --quiet "barman[cloud]==$version" ||
            die "Barman $version could not be installed from PyPI" "See pip's words above; is pypi.org reachable?"
        chmod -R a+rX "$CACHE"
        touch "$venv/cloud"
    done
}
