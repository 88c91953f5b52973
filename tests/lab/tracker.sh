# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the lab's tests of the tracker, after guests.sh: tracked machines with splash, and figures of
# what their heat says. A fault of a vCPU costs half a millisecond in the lab, 400 times as much as on a
# processor: with less than the highest budget nothing would be learnt within seconds.

# begin NAME WORD...: starts splash with these words, on a machine with the options in $machine and $track
machine=(--views 2 --cpus 4 --memory 256M --replicas off)
track=on,budget=50
begin() {
	local name=$1
	shift
	start "$name" --quiet "${machine[@]}" --track "$track" splash "$@"
}

# ended_ok NAME SECONDS: by itself, and splash found its memory as it should be
ended_ok() {
	ended "$2"
	# shellcheck disable=SC2154 # ended sets it
	expect "$1: status" 0 "$status"
	expect_match "$1: checks itself" '^splash: [a-z]+: ok' "$1.out"
	[ "$status" = 0 ] || show "$1"
}

# answers NAME: waits until it does
answers() {
	local end=$((SECONDS + 20))
	# shellcheck disable=SC2154 # start sets it
	until mirrorball stat --json "$1" >"$1.stat" 2>/dev/null; do
		[ "$SECONDS" -lt "$end" ] && kill -0 "$pid" 2>/dev/null || return
		sleep 0.2
	done
}

# ask NAME SECONDS: looks every second for so long or until the machine ends
ask() {
	answers "$1" && mirrorball heat "$1" --json --seconds "$2" --interval 1 >"$1.heat" || bad "$1: mirrorball heat"
}

# tell NAME: prints figures of the looks, and leaves them in $tell, for holds. KiB of memory, at the last look:
#   hot         with heat: 0.05 touches a second or more; a view with less than a twentieth of them does not count
#   own0, own1, ...  which only view 0, or 1, uses; at_home: of all these, what lives on a node of its view
#   read_both   which both views use and nobody writes
#   written     which somebody writes; written_both: both do
#   nodeless    whose node is not known
# And: extents; untold, those whose writes are not told; windows; covered in percent; mean and most zaps a second.
tell() {
	tell=$(python3 - "$1.heat" <<-'END'
		import json, sys

		looks = [json.loads(line) for line in open(sys.argv[1])]
		last, n = looks[-1], dict.fromkeys(("hot", "at_home", "read_both", "written", "written_both", "nodeless",
		                                    "extents", "untold"), 0)
		n |= {f"own{view}": 0 for view in range(len(last["views"]))}

		def counts(touches):
		    return [sum(touches) >= 0.05 and x >= sum(touches) / 20 for x in touches]

		for e in last["extents"]:
		    n["extents"] += 1
		    n["untold"] += e["write"] is None
		    write = e["write"] or [0] * len(e["read"])
		    users = counts([r + w for r, w in zip(e["read"], write)])
		    writers = [u and w >= 0.05 and w >= (r + w) / 20 for u, r, w in zip(users, e["read"], write)]
		    kib = e["bytes"] >> 10
		    if not any(users):
		        continue
		    n["hot"] += kib
		    n["nodeless"] += kib * (e["node"] is None)
		    if sum(users) == 1:
		        view = users.index(True)
		        n[f"own{view}"] += kib
		        n["at_home"] += kib * (e["node"] in last["views"][view]["nodes"])
		    elif not any(writers):
		        n["read_both"] += kib
		    n["written"] += kib * any(writers)
		    n["written_both"] += kib * (sum(writers) > 1)
		zaps = [look["tracker"]["zaps_per_s"] for look in looks[1:]] or [0]
		n["zaps"], n["most_zaps"] = sum(zaps) // len(zaps), max(zaps)
		n["windows"], n["covered"] = last["tracker"]["windows"], int(last["tracker"]["covered"] * 100)
		n["seconds"] = len(looks)
		print(*(f"{key}={value}" for key, value in n.items()))
	END
	)
	echo "$1: $tell"
}

# holds WHAT EXPRESSION: of the figures
holds() {
	local figure
	for figure in $tell; do local -i "$figure"; done
	if [ -n "$tell" ] && (($2)); then ok "$1"; else bad "$1: not so: $2: $tell"; fi
}

# told NAME SECONDS WORD...: runs splash for so long and a bit, and tells of its last look. Where the tracker came to
# few windows in that time, since others are busy here, once more, for longer.
told() {
	local name=$1 seconds windows
	for seconds in "$2" $(($2 * 3)); do
		begin "$name" "${@:3}" ms=$(((seconds + 2) * 1000))
		ask "$name" "$seconds"
		tell "$name"
		ended_ok "$name" 60
		windows=${tell#*windows=}
		[ "${windows%% *}" -lt 30 ] 2>/dev/null || break
	done
}
