#!/bin/sh
# Fills the passwords into RabbitMQ's definitions: fill-passwords.sh DEFINITIONS SECRETS_DIRECTORY > FILLED
#
# Each placeholder @PASSWORD_HASH:user@ becomes the salted SHA-256 hash of the secret in SECRETS_DIRECTORY/user. A user
# without a secret file gets no password and cannot log in. Plain POSIX tools: it runs in the broker's own image.
set -eu
umask 077

definitions=$1
secrets=$2

# Hexadecimal digits on standard input become bytes.
bytes() {
    fold -w 2 | while read -r pair || [ -n "$pair" ]; do
        # shellcheck disable=SC2059
        printf "\\$(printf %03o "0x$pair")"
    done
}

script=
for user in $(sed -n 's/.*@PASSWORD_HASH:\([a-z-]*\)@.*/\1/p' "$definitions"); do
    hash=
    if [ -s "$secrets/$user" ]; then
        salt=$(head -c 4 /dev/urandom | od -An -tx1 | tr -d ' \n')
        # $(…) takes the line end off the secret.
        digest=$({ printf %s "$salt" | bytes; printf %s "$(cat "$secrets/$user")"; } | sha256sum | cut -c 1-64)
        hash=$(printf %s "$salt$digest" | bytes | base64 | tr -d '\n')
    else
        echo "fill-passwords.sh: no secret file $secrets/$user: user $user cannot log in" >&2
    fi
    script="$script
s|@PASSWORD_HASH:$user@|$hash|"
done
sed "$script" "$definitions"
