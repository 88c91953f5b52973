#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A write in one machine is never seen in another: four machines on one image, which share what they can, by provenance and by
# content, and check everything they have all the time (splash diskchurn), while the daemon is killed, mappings fail, a disk is full,
# machines end and begin, and at last somebody writes to the image or cuts it. The order is by chance: SEED=N has it again, which
# is printed.
# tests/run: once
source "$(dirname "$0")/own-run.sh" "$@"
source "$(dirname "$0")/lib.sh"
need_kvm
if [ "$(id -u)" != 0 ]; then
	mkdir -m 700 run
	export XDG_RUNTIME_DIR=$work/run
elif [ -z "${MB_OWN_RUN-}" ]; then
	skip "needs a daemon of its own: unshare --mount is not possible here"
fi
export TMPDIR=$work
mirrorball=$MIRRORBALL daemon=$(dirname "$MIRRORBALL")/mirrorballd
seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
echo "SEED=$seed"
# shellcheck source=tests/kvm/differential.sh
source "$here/differential.sh"
end_all() {
	[ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
	kill_daemon
	! mountpoint -q small || umount -l small
}
cleanups+=(end_all)

machine=(--memory 24M --trust-group "differential-$$" --content-budget 100)
mkdir small
full='' room_mib=4
if mount -t tmpfs -o "size=${room_mib}M" tmpfs small 2>/dev/null; then full=yes; fi
make_image base.img

how=(written cut)
add one "--cpus 1 --disk base.img,cow=memory"
add two "--cpus 2 --disk base.img,overlay=two.qcow2"
add three "--cpus 2 --disk base.img,cow=$work"
add four "--cpus 1 --disk base.img,overlay=small/four.qcow2" "${full:+full=1}"
all_share
happen kill_daemon kill_daemon kill_daemon kill_daemon limit_mappings limit_mappings limit_mappings \
	${full:+give_room give_room} "restart one" "restart two"
if [ -n "$full" ]; then
	all_say "has no room" four
	give_room 16
fi
holds "the daemon was killed, $n_deaths times" [ "$n_deaths" -ge 3 ]
some_ms 2000 4000
lose_image base.img "${how[seed % 2]}"
all_end
if [ -n "$full" ]; then
	holds "four: wrote when there was room again" [ "$(note four "good,")" -gt 0 ]
fi

# The other thing that somebody may do to it.
make_image other.img
set_phase 0
add five "--cpus 1 --disk other.img,cow=memory"
add six "--cpus 1 --disk other.img,overlay=six.qcow2"
some_ms 2000 3000
lose_image other.img "${how[1 - seed % 2]}"
all_end
finish
