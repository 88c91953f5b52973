#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Stock guests tell what memory they have freed (virtio balloon, free page reporting): the host has it back within seconds, and
# the guest gets it anew, with what it writes and nothing else, while memory moves, has copies and is tracked. One of them
# relies on freed memory being zero (init_on_free).
# tests/run: last 120
lab_options=(--memory-per-node 3G)
. "$(dirname "$0")/guests.sh"

# ask NAME KEY: of what the machine says of it
ask() { mirrorball stat --json "$1" | python3 -c "import json, sys; print(json.load(sys.stdin)['free_page_reporting']['$2'])"; }

# file_mib PID: what the host has behind the file that is the guest's memory, by the kernel's count
file_mib() {
	local fd
	for fd in /proc/"$1"/fd/*; do
		[[ $(readlink "$fd") != *mirrorball-ram* ]] || echo $(($(stat -L -c %b "$fd") / 2048))
	done | head -n 1
}

wanted=150 # MiB of 200, at least
go_on() { printf '\n' >&"$keys"; }

# Filled, freed, and gone within a minute on any machine.
watch_memory() { # NAME
	local before after end
	await "$1.out" "^FILLED" "$run_seconds" || bad "$1: comes so far"
	before=$(file_mib "$pid")
	expect "$1: the guest's driver reports" on "$(ask "$1" state)"
	go_on
	await "$1.out" "^FREED" "$run_seconds" || bad "$1: comes so far"
	end=$((SECONDS + 60))
	until after=$(file_mib "$pid") && [ $((before - after)) -ge "$wanted" ] || [ "$SECONDS" -ge "$end" ]; do sleep 1; done
	echo "$1: $before MiB with 200 in a file, $after MiB $((SECONDS - end + 60)) s after it is gone"
	expect "$1: the host has $wanted of 200 MiB back" 1 "$((before - after >= wanted))"
	go_on
	mirrorball stat "$1" | grep -A 6 '^free page'
	expect "$1: nothing failed" 0 "$(ask "$1" failures)"
	expect "$1: what is told is what the kernel counts" 1 "$((after - $(ask "$1" backed_bytes) / 1048576 < 32))"
	expect "$1: that much was discarded" 1 "$(($(ask "$1" discarded_bytes) >= wanted << 20))"
}

script=$(
	cat <<'END'
modprobe virtio_balloon
made() { yes "this is in each line" | head -c 200M; }
mkdir /tmp/freed
mount -t tmpfs -o size=256M tmpfs /tmp/freed
# What is new reads as zero, whatever was there.
zeroes() {
	python3 - <<'PYTHON'
import mmap
m = mmap.mmap(-1, 128 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
assert not any(m[i:i + (1 << 20)].strip(b"\0") for i in range(0, len(m), 1 << 20))
PYTHON
}
made >/tmp/freed/file
check "what it has written" cmp /tmp/freed/file <(made)
echo FILLED
read -r _
rm /tmp/freed/file
echo FREED
read -r _
check "new memory is empty" zeroes
quiet_kernel
END
)

gives() { # NAME KERNEL WORDS OPTION...
	local name=$1 kernel=$2 words=$3
	shift 3
	append=$words when_up=watch_memory quick_guest "$name" "$kernel" --cpus 2 --memory 512M \
		--disk "/lab/guest/root$lane.img" "$@" <<<"$script"
}

# Without a driver that is loaded, or the device, all goes on as before.
keeps() {
	quick_guest keeps cloud-6.1 --cpus 1 --memory 256M --free-page-reporting off \
		--disk "/lab/guest/root$lane.img" <<-'END'
			modprobe virtio_balloon
			check "no balloon" same "" "$(grep -l 0x0005 /sys/bus/virtio/devices/*/device)"
		END
}

# Memory is filled, read by others, verified and freed in a storm of moves and copies.
watch_storm() { # NAME
	while kill -0 "$pid" 2>/dev/null; do
		mirrorball stat --json "$1" >"$1.stat.new" 2>/dev/null && mv "$1.stat.new" "$1.stat"
		sleep 2
	done
}
storms() {
	when_up=watch_storm run_seconds=600 quick_guest storms cloud-6.1 --cpus 4 --memory 416M --views 2 --track on \
		--migrate storm --replicas 100% --disk "/lab/guest/root$lane.img" <<-'END'
			modprobe virtio_balloon
			cat >/tmp/churn.py <<'PYTHON'
			import mmap, os, random, sys, time

			SIZE, PART = 60 << 20, 1 << 16 # together most of what there is: what is reported is used again at once
			end = time.monotonic() + float(sys.argv[1])

			def work(i):
			    rng, rounds = random.Random(i), 0
			    os.sched_setaffinity(0, [i % os.cpu_count()])
			    while time.monotonic() < end:
			        m = mmap.mmap(-1, SIZE)
			        seed = rng.randbytes(PART - 8)
			        part = lambda at: seed + (rounds << 32 | at).to_bytes(8, "little")
			        for at in range(0, SIZE, PART):
			            assert not any(m[at:at + PART:512]), "process %d, round %d: not empty" % (i, rounds)
			            m[at:at + PART] = part(at)
			        for turn in range(2):
			            os.sched_setaffinity(0, [rng.randrange(os.cpu_count())])
			            for at in range(0, SIZE, PART):
			                assert m[at:at + PART] == part(at), "process %d, round %d, at %d: not as written" % (i, rounds, at)
			        m.close()
			        rounds += 1
			        time.sleep(rng.random() * 3)
			    print("process", i, "rounds", rounds, flush=True)

			children = []
			for i in range(4):
			    child = os.fork()
			    if child == 0:
			        try:
			            work(i)
			            os._exit(0)
			        except BaseException as error:
			            print(repr(error), flush=True)
			            os._exit(1)
			    children.append(child)
			sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
			PYTHON
			check "memory is as it was written" python3 /tmp/churn.py 15
			cat /run/said
			quiet_kernel
		END
	python3 - storms.stat >storms.said <<-'END'
		import json, sys
		a = json.load(open(sys.argv[1]))
		f, r, m = a["free_page_reporting"], a["replicas"], a["migration"]
		print(f["discarded_bytes"] >> 20 >= 100 and f["failures"] == 0 and r["copied_bytes"] > 0 and m["moved_bytes"] > 0,
		      f"{f['reported_bytes'] >> 20} MiB reported, {f['discarded_bytes'] >> 20} discarded, {f['failures']} failures;",
		      f"{r['copied_bytes'] >> 20} MiB copied, {r['faults']} writes that waited; {m['moved_bytes'] >> 20} MiB moved")
	END
	cat storms.said
	expect "storms: memory was given back, copied and moved" True "$(cut -d ' ' -f 1 storms.said)"
}

in_lanes "gives plain cloud-6.1 '' --views 2 --track on --replicas 100%" storms "gives init cloud-6.12 init_on_free=1" keeps
finish
