# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: Apache-2.0
# Sourced by the lab's tests.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=$here/lab
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0

if ! "$here/images" --check && [ "$(id -u)" != 0 ]; then
	echo "skipped: no images, and only root can make them"
	exit 77
fi

# expect WHAT WANTED GOT
expect() {
	if [ "$2" = "$3" ]; then
		echo "ok: $1"
	else
		echo "FAILED: $1: wanted '$2', got '$3'"
		failures=$((failures + 1))
	fi
}

# expect_match WHAT REGEX FILE
expect_match() {
	if grep -Eq -- "$2" "$3"; then
		echo "ok: $1"
	else
		echo "FAILED: $1: no '$2' in:"
		sed 's/^/  > /' "$3"
		failures=$((failures + 1))
	fi
}

finish() { exit $((failures > 0)); }
