#!/bin/sh
# Deploys a release: one at a time, whoever starts it, wherever. Who comes second waits, for ten minutes at most.
#
#   deploy.sh RELEASE
set -eu

# Runs itself under the lock, if it does not yet.
[ "${PGLOCK_NAME:-}" = deploy ] || exec pglock --wait 600 --verbose deploy sh "$0" "$@"

release=$1
echo "deploying $release"
./fetch "$release"
./migrate "$release"
./switch-to "$release"
echo "deployed $release"
