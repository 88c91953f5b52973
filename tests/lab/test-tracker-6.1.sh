#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The tracker on a kernel that has neither PAGEMAP_SCAN nor asynchronous write protection (before 6.7): it tells who
# uses what, and not who writes. And without userfaultfd as well.
# tests/run: alone
lab_options=(--kernel 6.1 --in "$(dirname "$0")/tracker.sh" --in "$(dirname "$0")/../kvm/without")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

# private NAME LINES: what it says of two views' memory, and in how many lines what it cannot
private() {
	told "$1" 16 private size=64M
	holds "$1: most of the 64 MiB is hot" 'hot >= 56 << 10'
	holds "$1: of one view each" '(own0 + own1) * 100 >= hot * 80'
	holds "$1: both have some" 'own0 >= 20 << 10 && own1 >= 20 << 10'
	holds "$1: lives with its user" 'at_home * 100 >= (own0 + own1) * 95'
	holds "$1: no writes are told" 'extents > 0 && untold == extents'
	grep 'tracker: ' "$1.err" | sed 's/^/  ! /'
	expect "$1: says once that writes are not told" 1 "$(grep -c 'tracker: this host does not tell written' "$1.err")"
	expect "$1: lines" "$2" "$(grep -c 'tracker: ' "$1.err")"
}

expect_match "the host" '^6\.1\.' /proc/sys/kernel/osrelease
private old 1
as_user=(/in/without call:323:1 -- /usr/bin/env)
private denied 2
expect_match "denied: says that userfaultfd is" 'tracker: userfaultfd is refused' denied.err
finish
