# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced before all else, with the script's arguments. Root's sockets and root's daemon have one place, where other machines may
# have theirs: as root the script goes on in a /run of its own, if that is possible, and MB_OWN_RUN is yes then.
if [ "$(id -u)" = 0 ] && [ -z "${MB_OWN_RUN-}" ] && unshare --mount true 2>/dev/null; then
	# shellcheck disable=SC2016 # for the inner shell
	exec unshare --mount env MB_OWN_RUN=yes bash -c 'mount -t tmpfs none /run && exec bash "$@"' _ "$0" "$@"
fi
