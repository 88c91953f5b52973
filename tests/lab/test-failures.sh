#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The lab's own failures have statuses of their own, and say what the host said.
. "$(dirname "$0")/test-common.sh"

# refused WHAT REGEX ARGUMENT...
refused() {
	local what=$1 regex=$2
	shift 2
	"$lab" "$@" >"$tmp/out" 2>"$tmp/err"
	expect "$what: status" 125 $?
	expect "$what: one line" 1 "$(wc -l <"$tmp/err")"
	expect_match "$what: why" "^lab: $regex" "$tmp/err"
}
refused "no command" "no COMMAND"
refused "no nodes" "argument --nodes: 0: not a number from 1 to 8" --nodes 0 -- true
refused "no such size" "argument --memory-per-node: 1K: not a size" --memory-per-node 1K -- true
refused "no such kernel" "argument --kernel: .*2.4" --kernel 2.4 -- true
refused "no such option" "unrecognized arguments: --nonsense" --nonsense -- true
refused "no such node" "--cpuless-node 2: the nodes are 0 to 1" --cpuless-node 2 -- true
refused "CPUs behind a node without" "--cpuless-node: node 1 has CPUs" --cpuless-node 0 -- true
refused "an empty node" "node 1 has neither" --cpuless-node 1 --memoryless-node 1 -- true
refused "no memory at all" "no node has memory" --nodes 1 --memoryless-node 0 -- true
refused "too few distances" "--distance: 2 nodes need 2 rows" --distance 10 -- true
refused "distances of nothing" "argument --distance: x: neither a file nor" --distance x -- true
refused "too far" "--distance: 255 from node 0 to 1" --distance '10 255;21 10' -- true
refused "not at home" "--distance: 11 from node 1 to 1" --distance '10 20;20 11' -- true
refused "missing file" "--in /missing: no such file" --in /missing -- true
refused "same name twice" "--in /etc/passwd: .* taken" --in /etc/passwd --in /etc/passwd -- true
refused "no such count" "argument --truth: nonsense: not cache=" --truth t.json,nonsense -- true
refused "no such cache" "argument --truth: .* ways" --truth t.json,cache=1K,ways=3 -- true
refused "truth to nowhere" "--truth /missing/t.json: No such file" --truth /missing/t.json -- true
refused "no terminal" "--shell: .* must be a terminal" --shell </dev/null

"$lab" -- no-such-command >"$tmp/out" 2>"$tmp/err"
expect "a command that is not there" 127 $?

"$lab" --time 5 -- sleep 1000 >"$tmp/out" 2>"$tmp/err"
expect "time limit" 124 $?
expect_match "the host lived" "^lab: the time limit of 5 s passed: .* alive" "$tmp/err"
expect_match "who hung" "^  \| .*sleep 1000" "$tmp/err"

"$lab" -- sh -c 'echo before; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger' \
	>"$tmp/out" 2>"$tmp/err"
expect "panic of the host" 125 $?
expect "output before it" before "$(cat "$tmp/out")"
expect_match "says so" "^lab: the emulated host ended before COMMAND did" "$tmp/err"
expect_match "with its console" "^  \| .*sysrq_handle_crash" "$tmp/err"

# A CPU that says nothing any more: its beat is stopped.
LAB_BEAT_SECONDS=25 "$lab" -- sh -c 'echo before; pkill -STOP -f "echo .beat.* 1$" && sleep 1000' >"$tmp/out" 2>"$tmp/err"
expect "a silent CPU" 125 $?
expect_match "which one" "^lab: CPU 1 of the emulated host was not heard of for 25 s" "$tmp/err"
finish
