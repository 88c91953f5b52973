#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What two stock guests have read of one root disk is in memory once: each finds there what the disk has and what it wrote
# itself, whatever the other one writes, with one view and with two, after the daemon was killed.
# tests/run: last 120
. "$(dirname "$0")/guests.sh"

base=/lab/guest/root0.img

# sharing NAME KEY: of its answer
sharing() { mirrorball stat "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["sharing"][sys.argv[1]])' "$2"; }

# footprint NAME: that what stat says adds up to what Linux does (PSS), within 1 %, while the guest waits; and with whom it shares.
footprint() {
	python3 - "$1" "$base" <<-'END'
		import json, os, subprocess, sys
		def asked(*words):
		    return json.loads(subprocess.run(["mirrorball", *words, "--json"], check=True, capture_output=True).stdout)
		def pss(pid):
		    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
		        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
		running = asked("ps")
		pid = next(m["pid"] for m in running if m["name"] == sys.argv[1])
		for _ in range(20):
		    before = pss(pid)
		    said = asked("stat", str(pid))
		    after = pss(pid)
		    if abs(before - after) < before / 200:
		        break
		f = said["footprint"]
		print(f"{sys.argv[1]}: PSS {before} and {after}, {json.dumps(f)}")
		assert min(before, after) * .99 <= f["proportional_bytes"] <= max(before, after) * 1.01, (before, after)
		assert f["proportional_bytes"] == sum(f[k + "_bytes"] for k in ("private", "copies", "monitor", "shared_proportional"))
		shared = said["sharing"]["shared_bytes"]
		assert abs(f["shared_bytes"] - shared) <= shared / 100, shared
		# The next daemon does not know what was mapped before; here the second guest has it killed.
		if sys.argv[1] == "two":
		    (origin,) = f["origins"]
		    assert origin["path"] == os.path.realpath(sys.argv[2]), origin
		    assert origin["others"] in (len(running) - 1, len(asked("ps")) - 1), running
	END
}

# What a guest reads: the sum of it, and each line's first letters are what it wrote there.
reads=$(
	cat <<'END'
sum() { (cd /usr && find sbin bin/[a-k]* -type f | sort | xargs sha256sum) | sha256sum | cut -c 1-64; }
# mine NAME: in place, in memory that is shared
mine() { for f in /usr/lib/python3.11/[a-m]*.py; do printf %s "$1" | dd of="$f" conv=notrunc status=none || return; done; }
has() { for f in /usr/lib/python3.11/[a-m]*.py; do [ "$(head -c ${#1} "$f")" = "$1" ] || return; done; }
END
)

look() { # NAME: once its script waits
	local shared n=0
	await "$1.out" 'READY' 400 || bad "$1: not ready"
	until shared=$(sharing "$1" shared_bytes) && [ "$shared" -gt 20000000 ] || ((++n > 20)); do sleep 1; done
	mirrorball stat "$1" | sed -n '/^sharing/,/^[a-r]/p'
	expect "$1: shares" 1 $((shared > 20000000))
	footprint "$1" || bad "$1: footprint"
	mirrorball stat
	[ "$1" = one ] || pkill -KILL -x mirrorballd
	printf '\n' >&"$keys"
}

guest() { # NAME OPTION...
	local name=$1
	shift
	(
		when_up=look
		quick_guest "$name" cloud-6.12 --memory 384M "$@" <<-END
			$reads
			echo "SUM \$(sum)"
			cat /usr/lib/python3.11/[a-m]*.py >/dev/null
			echo READY >/dev/console
			read -r _ </dev/console
			check "writes what is shared" mine $name
			check "has what it wrote" has $name
			cp /usr/bin/[d-p]* /tmp && rm -f /tmp/[d-p]*
			check "reads the same again" same "$disk_sum" "\$(sum)"
			sync && echo 3 >/proc/sys/vm/drop_caches
			check "has what it wrote, from its disk" has $name
			check "and the same once more" same "$disk_sum" "\$(sum)"
			quiet_kernel
		END
	)
}

# What the disk has, without all that.
quick_guest alone cloud-6.12 --cpus 1 --memory 384M --share off --disk "$base,cow=memory" <<-END
	$reads
	echo "SUM \$(sum)"
END
disk_sum=$(tr -d '\r' <alone.out | sed -n 's/^SUM //p')
expect "alone: a sum" 64 "${#disk_sum}"

guest one --cpus 1 --disk "$base,cow=memory" &
guest two --cpus 2 --views 2 --placement nodes=0-1 --disk "$base,overlay=/scratch/two.qcow2"
wait
for name in one two; do
	expect "$name: found what the disk has" "$disk_sum" "$(tr -d '\r' <"$name.out" | sed -n 's/^SUM //p')"
done
finish
