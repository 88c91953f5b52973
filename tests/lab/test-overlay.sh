#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Two stock guests on one root disk that stays as it is: what one writes the other never sees, an overlay has it at the next
# run, and after a kill in the middle of it what was synced.
# tests/run: last 60
. "$(dirname "$0")/guests.sh"

base=/lab/guest/root0.img
sum=$(sha256sum <"$base")
times=$(stat -c %Y "$base")

# What each guest does with its own name: files, some of them in place, synced, and read from the disk again.
writes=$(
	cat <<'END'
writes() {
	head -c 24M /dev/urandom >"/root/$1.file" && sync
	dd if=/dev/urandom of="/root/$1.file" bs=1000 seek=777 count=300 conv=notrunc,fsync status=none
	sha256sum "/root/$1.file" >"/root/$1.sum"
	mkdir "/root/$1.many"
	(cd "/root/$1.many" && seq 400 | while read -r i; do echo "$1 $i" >"$i"; done)
	sync
	echo 3 >/proc/sys/vm/drop_caches
	sha256sum --quiet -c "/root/$1.sum"
}
reads() {
	sha256sum --quiet -c "/root/$1.sum" && [ "$(cat "/root/$1.many"/* | sort -u | wc -l)" -eq 400 ]
}
END
)

twin() { # NAME DISK: the name of the other one
	quick_guest "$1" cloud-6.12 --cpus 2 --disk "$2" <<-END
		$writes
		check "writes" writes $1
		check "sees nothing of the other" bash -c '! ls /root | grep -v "^$1[.]" | grep "[.]sum\$"'
		check "frees" rm -r /root/$1.many
		check "trims" fstrim /
		check "writes again" bash -c 'mkdir /root/$1.many && cd /root/$1.many && for i in {1..400}; do echo "$1 \$i" >\$i; done'
		check "reads" reads $1
		$([ "$1" != second ] || echo quiet_kernel)
	END
}

first() {
	twin first "$base,cow=memory"
}

second() {
	twin second "$base,overlay=/scratch/second.qcow2"
	expect "second: its overlay is in order" "in order" "$(mirrorball image check /scratch/second.qcow2 2>&1)"
	quick_guest again cloud-6.1 --cpus 1 --disk "$base,overlay=/scratch/second.qcow2" <<-END
		$writes
		check "has what it wrote" reads second
		check "and nothing else" same "second.file second.many second.sum" "\$(ls /root | grep '[.]' | tr '\n' ' ' | sed 's/ \$//')"
	END
}

kill_it() {
	await "$1.out" 'SYNCED 25' 400
	kill -KILL "$pid"
}

# Killed while it writes and syncs: what it said is synced is there.
killed() {
	local n
	cat >"$work/until.sh" <<-'END'
		i=0
		while :; do
			i=$((i + 1))
			head -c 300000 /dev/urandom >/root/k.$i
			sha256sum /root/k.$i >/root/k.$i.sum
			sync
			echo "SYNCED $i" >/dev/console
		done
	END
	(
		verdict() { :; } # it does not come to the end of its script
		when_up=kill_it
		quick_guest killed cloud-6.12 --cpus 2 --disk "$base,overlay=/scratch/killed.qcow2" <"$work/until.sh"
	)
	n=$(tr -d '\r' <killed.out | sed -n 's/^SYNCED \([0-9]*\)$/\1/p' | tail -n 1)
	expect "killed: after 25 and more" 1 $((${n:-0} >= 25))
	expect_match "killed: its overlay was not closed" 'was not closed' <(mirrorball image check /scratch/killed.qcow2 2>&1)
	quick_guest revived cloud-6.12 --cpus 2 --disk "$base,overlay=/scratch/killed.qcow2" <<-END
		check "what was synced, $n files" bash -c 'for i in {1..${n:-0}}; do sha256sum --quiet -c /root/k.\$i.sum || exit; done'
		check "no complaint of the file system" same "" "\$(dmesg | grep -E 'EXT4-fs (error|warning)|I/O error')"
	END
	expect "revived: its overlay is in order" "in order" "$(mirrorball image check /scratch/killed.qcow2 2>&1)"
}

both() {
	first &
	second
	wait
	# Neither changed the base, not even its times.
	expect "the base is as it was" "$sum" "$(sha256sum <"$base")"
	expect "and its time" "$times" "$(stat -c %Y "$base")"
}

in_lanes both killed
finish
