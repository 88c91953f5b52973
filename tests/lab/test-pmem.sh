#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Two stock guests that have one image as memory, one of them with two views: each reads all of it right without a copy
# of its own, the host has it once, a disk takes it from there, what they write is dropped, and whoever cuts it off ends
# the machine and not the monitor.
# tests/run: last 90
. "$(dirname "$0")/guests.sh"

# Not a multiple of what a guest maps at least.
image=/scratch/image bytes=$((43 * 1048576 + 4096)) region=$((44 * 1048576))
mkdir content
head -c 24M /dev/urandom >content/blob
cp /usr/lib/python3.11/[a-m]*.py content
(cd content && sha256sum -- * >/tmp/work/sums && mv /tmp/work/sums SUMS)
blob=$(sha256sum <content/blob)
truncate -s "$bytes" "$image"
mke2fs -q -t ext4 -b 4096 -m 0 -O ^has_journal,^resize_inode -d content "$image" || bad "an image"
sum=$(sha256sum <"$image")
truncate -s 24M /scratch/two.img

# What both of them do.
reads=$(
	cat <<-'END'
		modprobe -a virtio_rng virtio_pmem nd_pmem
		for _ in $(seq 100); do [ ! -b /dev/pmem0 ] || break; sleep 0.1; done
		cached() { awk '/^(Cached|Buffers):/ { n += $2 } END { print n }' /proc/meminfo; }
		right() { (cd /mnt && sha256sum --quiet -c SUMS); }
		no_copy() { now=$(cached); echo "had $1 KiB of files, has $now"; [ "$((now - $1))" -lt 8192 ]; }
		check "as large as it is mapped" same "$region" "$(blockdev --getsize64 /dev/pmem0)"
		check "mounts it with DAX" mount -t ext4 -o ro,dax=always /dev/pmem0 /mnt
		check "with DAX indeed" grep -q ' /mnt ext4 .*dax=always' /proc/mounts
		sha256sum /usr/bin/sort >/dev/null
		before=$(cached)
		check "all files are right" right
		check "without a copy" no_copy "$before"
	END
)

# What only one does.
writes=$(
	cat <<-'END'
		cat >/tmp/direct.py <<'PYTHON'
		import mmap, os
		source = os.open("/mnt/blob", os.O_RDONLY)
		memory = mmap.mmap(source, 0, mmap.MAP_SHARED, mmap.PROT_READ)
		disk = os.open("/dev/vdb", os.O_WRONLY | os.O_DIRECT)
		step, view = 1 << 20, memoryview(memory)
		for at in range(0, len(memory), step):
		    assert os.pwrite(disk, view[at:at + step], at) == step
		PYTHON
		check "a disk takes it from there" python3 /tmp/direct.py
		check "as it is" same "$blob" "$(sha256sum </dev/vdb)"
		at() { dd if=/dev/pmem0 bs=4096 iflag=direct skip="$1" count=1 status=none | sha256sum; }
		for page in $((bytes / 4096 - 1)) $((region / 4096 - 1)); do
			was=$(at "$page")
			tr '\0' x </dev/zero | head -c 4096 >/tmp/x
			dd if=/tmp/x of=/dev/pmem0 bs=4096 oflag=direct seek="$page" conv=notrunc,fsync status=none
			check "what is written to page $page is dropped" same "$was" "$(at "$page")"
		done
		check "all files are right still" right
	END
)

# once FILE: waits until the other guest's part has made it
once() { for _ in $(seq 1200); do [ ! -e "$1" ] || return 0; sleep 0.1; done; bad "nobody made $1"; }

# Both wait: that the host has the image once, and stat's footprints are what Linux tells, within 1 %.
measure() {
	python3 - "$image" "$bytes" <<-'END'
		import json, re, subprocess, sys
		image, size = sys.argv[1], int(sys.argv[2])
		def asked(*words):
		    return json.loads(subprocess.run(["mirrorball", *words, "--json"], check=True, capture_output=True).stdout)
		def pss(pid):
		    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
		        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
		total, cached = 0, 25 << 20 # what is in it
		for machine in asked("ps"):
		    pid = machine["pid"]
		    for _ in range(20):
		        before, said, after = pss(pid), asked("stat", str(pid)), pss(pid)
		        if abs(before - after) < before / 200:
		            break
		    f = said["footprint"]
		    print(machine["name"], "PSS", before, "and", after, json.dumps(f))
		    assert min(before, after) * .99 <= f["proportional_bytes"] <= max(before, after) * 1.01, (before, after)
		    (origin,) = (o for o in f["origins"] if o["kind"] == "pmem")
		    assert origin["path"] == image and cached < origin["shared_bytes"] <= size, origin
		    with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
		        parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", file.read(), flags=re.M)
		    (part,) = (p for p in parts if image in p.split("\n")[0])
		    assert re.search(r"^Private_Dirty: +0 kB$", part, re.M), part
		    total += int(re.search(r"^Pss: +(\d+)", part, re.M)[1]) * 1024
		print("both together map", total, "of", size)
		assert cached < total <= size + 8192, total
		host = asked("stat")["host"]
		assert abs(host["pmem_bytes"] - total) <= 65536 and host["saved_bytes"] > cached, host
	END
}

meet() { # NAME: the hook of the first one
	await "$1.out" READY 400 || bad "$1: not ready"
	touch "$1.ready"
	once measured
	printf '\n' >&"$keys"
}

cut() { # NAME: of the other
	await "$1.out" READY 400 || bad "$1: not ready"
	once one.ready
	measure || bad "the host has it once"
	mirrorball stat
	touch measured
	printf '\n' >&"$keys"
	await "$1.out" 'LABTEST-WRITTEN' 200 || bad "$1: has not written"
	expect_match "$1: a write is said" "pmem $image: the guest wrote to it, .* is dropped" "$1.err"
	expect "$1: once" 1 "$(grep -c 'guest wrote' "$1.err")"
	expect "$1: the image is as it was" "$sum" "$(sha256sum <"$image")"
	once one.done
	truncate -s 1M "$image"
	printf '\n' >&"$keys"
	ended 60
	expect "$1: status of the monitor whose image was cut off" 3 "$status"
	expect_match "$1: says so" "pmem $image: was cut off by somebody .* 1048576 bytes instead of $bytes" "$1.err"
	tr -d '\r' <"$1.out" | grep -aE '^(ok|FAILED): ' | sed "s/: /: $1: /" | tee said
	expect "$1: nothing failed in it" 0 "$(grep -c '^FAILED' said)"
	expect "$1: its checks" 1 $(($(grep -c '^ok' said) >= 10))
	[ "$status-$(grep -c '^FAILED' said)" = 3-0 ] || show "$1"
	exit 0
}

pmem_guest() { # NAME HOOK OPTION...; the script's own part on standard input
	local name=$1
	when_up=$2
	shift 2
	{
		echo "region=$region bytes=$bytes blob='$blob'"
		echo "$reads"
		echo 'echo READY >/dev/console; read -r _ </dev/console'
		cat
	} | quick_guest "$name" cloud-6.12 --memory 256M --pmem "$image" "$@"
	touch "$name.done"
}

root=(--disk '/lab/guest/root0.img,cow=memory')
(
	pmem_guest one meet --cpus 1 --views 1 "${root[@]}" <<-'END'
		check "all files are right again" right
		quiet_kernel
	END
) &
(
	pmem_guest two cut --cpus 2 --views 2 --placement nodes=0-1 "${root[@]}" --disk /scratch/two.img <<-END
		$writes
		quiet_kernel
		echo; echo LABTEST-WRITTEN; read -r _ </dev/console
		echo 3 >/proc/sys/vm/drop_caches
		cat /mnt/* >/dev/null
	END
)
wait
# The machine of a file that is there and cannot be used.
truncate -s 5M /scratch/locked
exec {lock}<>/scratch/locked
python3 - "$lock" <<-'END'
	import fcntl, struct, sys
	fcntl.fcntl(int(sys.argv[1]), 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
END
mirrorball run --pmem /scratch/locked splash hello >locked.err 2>&1
expect "a writer keeps it" 1 $?
expect_match "and is told" 'pmem: disk /scratch/locked: in use' locked.err
finish
