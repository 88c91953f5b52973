#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# As tests/kvm/test-differential.sh, with two views and two nodes: what is shared is in the memory of each, moves, and is copied
# besides; and the machines' cgroup has too little memory now and then. SEED=N has the same order again.
# tests/run: last 85
if [ -z "${LAB-}" ]; then
	lab_options=(--in "$(dirname "$0")/../kvm/differential.sh")
	lab_words=("${SEED:-$RANDOM}")
fi
. "$(dirname "$0")/guests.sh"
seed=$1
echo "SEED=$seed"
mirrorball=mirrorball daemon=mirrorballd image_mib=4 least_kib=8
mkdir /scratch/differential && cd /scratch/differential || exit
# shellcheck source=tests/kvm/differential.sh
. /in/differential.sh

# Together with the daemon that they start.
group=/sys/fs/cgroup/differential
mkdir "$group"
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
# shellcheck disable=SC2016 # for the inner shell
within=(sh -c 'echo $$ >'"$group"'/cgroup.procs; exec "$@"' sh)

# Less than they have: what they can do without goes.
limit_memory() {
	local current
	current=$(cat "$group/memory.current")
	echo $((current - (1 << 20) - RANDOM * 64)) >"$group/memory.high"
	say "all of them may have less than $((current >> 20)) MiB"
	some_ms 500 1500
	echo max >"$group/memory.high"
}

machine=(--memory 16M --trust-group differential --content-budget 100)
both=(--cpus 2 --views 2 --placement "nodes=0-1")
mkdir small
room_mib=1
mount -t tmpfs -o "size=${room_mib}M" tmpfs small
make_image base.img
add one "--cpus 1 --disk base.img,cow=memory" size=4M
add two "${both[*]} --disk base.img,overlay=two.qcow2" size=4M
add three "${both[*]} --migrate storm --replicas 100% --disk base.img,cow=." size=4M
add four "--cpus 1 --disk base.img,overlay=small/four.qcow2" "size=4M full=1"
all_share
happen kill_daemon kill_daemon kill_daemon limit_memory limit_memory limit_mappings give_room "restart two"
all_say "has no room" four
give_room 16
holds "the daemon was killed, $n_deaths times" [ "$n_deaths" -ge 2 ]
some_ms 1000 2000
how=(written cut)
lose_image base.img "${how[seed % 2]}"
all_end
holds "four: wrote when there was room again" [ "$(note four "good,")" -gt 0 ]
expect "nobody was killed for want of memory" "oom_kill 0" "$(grep '^oom_kill ' "$group/memory.events")"
finish
