#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tests/lab/boots counts boots, tells a hang from a crash, and reports where every CPU and vCPU was.
. "$(dirname "$0")/test-common.sh"
boots() { "$here/boots" --build "${MB_BUILD:-$here/../../build}" --reports "$tmp/reports" "$@" >"$tmp/out" 2>"$tmp/err"; }

boots --boots 1
expect "status" 0 $?
for monitor in qemu mirrorball; do
	expect_match "$monitor: a boot" "^\| $monitor \| 1 \|" "$tmp/out"
done
expect_match "the verdict" '^Mirrorball fails no more often' "$tmp/out"

# A guest that stays at a prompt hangs; one without its first program panics, and resets itself.
boots --boots 1 --seconds 35 --append mb.init=shell
expect "a hang of both: status" 0 $?
for monitor in qemu mirrorball; do
	report=$tmp/reports/$monitor-1-hung.txt
	expect_match "$monitor: hung" "^\| $monitor \| 1 \| 1 \| 0 \| 0 \| 100.0% \|" "$tmp/out"
	expect "$monitor: CPUs of the host" 4 "$(grep -Eo 'NMI backtrace for cpu [0-9]+|sending NMI from' "$report" 2>/dev/null |
		sed 's/sending NMI from/x/' | sort -u | wc -l)"
	expect_match "$monitor: threads of the monitor" 'threads of [0-9]+:' "$report"
	expect_match "$monitor: the guest's console" '^/ #' "$report"
done
expect "qemu: registers of every vCPU" 4 "$(grep -c '^CPU#' "$tmp/reports/qemu-1-hung.txt")"
expect "mirrorball: registers of every vCPU" 4 "$(grep -c '^vCPU [0-3] in view' "$tmp/reports/mirrorball-1-hung.txt")"

boots --boots 1 --monitor mirrorball --append 'rdinit=/none'
expect "a crash of ours: status" 0 $?
expect_match "mirrorball: crashed" "^\| mirrorball \| 1 \| 0 \| 1 \| 0 \|" "$tmp/out"

"$here/boots" --boots 0 >"$tmp/out" 2>&1
expect "no boots at all" 2 $?
finish
