#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Disks: what a guest wrote is there after its reboot, and on the host; read-only disks, discard, a host
# whose disk is full, and two machines that want the same disk.
# tests/run: last 56
. "$(dirname "$0")/guests.sh"

# What the guests write and this script looks for: block i of 1 MiB is 2048 times its number and more.
cat >pattern.py <<'END'
def block(i):
    return (b"%08d mirrorball" % i).ljust(512, b"%c" % (i % 251)) * 2048
END

cd /scratch || exit
truncate -s 256M data.img raw.img
truncate -s 64M trim.img
head -c 8M /dev/urandom >ro.img
ro_sum=$(sha256sum <ro.img)
mkdir small
truncate -s 48M small.fs
mkfs.ext4 -q -m 0 small.fs && modprobe loop && mount -o loop small.fs small
truncate -s 1G small/full.img
cd "$work" || exit

durable() {
	# The second half runs after the reboot.
	reboots=1 quick_guest durable cloud-6.1 --cpus 2 --disk "/lab/guest/root$lane.img" \
		--disk /scratch/data.img,serial=DATA-1,queues=2 --disk /scratch/raw.img \
		--disk /scratch/ro.img,ro --disk /scratch/trim.img,direct=off <<-END
		mkdir -p /mnt/data
		if [ ! -e /written ]; then
			check "serial number" same DATA-1 "\$(cat /sys/block/vdb/serial)"
			check "queues" same 2 "\$(ls /sys/block/vdb/mq | wc -l)"
			check "size" same \$((256 << 11)) "\$(cat /sys/block/vdb/size)"
			head -c 24M /dev/urandom >/root/file
			mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt/data
			cp -r /usr/bin /root/file /mnt/data/
			(cd /mnt/data && find . -type f -exec sha256sum {} +) >/root/sums
			sha256sum /root/file >/written
			sync
			reboot -f
			sleep 1000
		fi
		check "root's file after the reboot" sha256sum --quiet -c /written
		check "mounts the other disk again" mount /dev/vdb /mnt/data
		check "its \$(wc -l </root/sums) files" \
			bash -c 'cd /mnt/data && sha256sum --quiet -c /root/sums'
		rm -r /mnt/data/bin /mnt/data/file
		sync
		check "trims the file system" fstrim /mnt/data
		umount /mnt/data

		check "writes raw" python3 -c '
		$(cat pattern.py)
		import os
		fd = os.open("/dev/vdc", os.O_RDWR)
		for i in list(range(0, 64, 2)) + list(range(1, 64, 2)): os.pwrite(fd, block(i), i << 20)
		os.fsync(fd)
		os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
		assert all(os.pread(fd, 1 << 20, i << 20) == block(i) for i in range(64))
		'
		check "discards a part" blkdiscard -o 32M -l 16M /dev/vdc
		check "zeroes another" blkdiscard -z -o 48M -l 8M /dev/vdc
		check "which it reads as zeroes" \
			cmp -n 8M /dev/zero <(dd if=/dev/vdc bs=1M skip=48 count=8 status=none)
		last=\$(((256 << 11) - 1))
		check "the last sector" \
			dd if=/dev/urandom of=/dev/vdc bs=512 seek=\$last count=1 oflag=direct
		check "nothing after it" \
			bash -c "! dd if=/dev/zero of=/dev/vdc bs=512 seek=\$((last + 1)) count=1"

		check "knows that one is read-only" same 1 "\$(cat /sys/block/vdd/ro)"
		check "reads it" same '$ro_sum' "\$(sha256sum </dev/vdd)"
		check "does not write it" bash -c '! dd if=/dev/zero of=/dev/vdd bs=4k count=1 conv=fsync'
		blockdev --setrw /dev/vdd
		check "not even when told to" bash -c '! dd if=/dev/zero of=/dev/vdd bs=4k count=1 conv=fsync'

		check "fills a disk" dd if=/dev/urandom of=/dev/vde bs=1M count=64 conv=fsync
		check "discards all of it" blkdiscard /dev/vde
	END
	expect_match "durable: counts its reset" 'powered off after .* 1 reset' durable.err
	expect "durable: said so once on the second boot" 2 "$(grep -ac '^LABTEST-BEGIN' durable.out)"
	expect "raw.img on the host" "" "$(python3 -c '
from pattern import block
f = open("/scratch/raw.img", "rb")
for i in range(64):
    want = bytes(1 << 20) if 32 <= i < 56 else block(i)
    if i >= 32 and i < 48: # discarded: block or zeroes, in general; zeroes where a file was punched
        want = bytes(1 << 20)
    if f.read(1 << 20) != want:
        print("block", i, "differs")')"
	expect "raw.img: its size" $((256 << 20)) "$(stat -c %s /scratch/raw.img)"
	expect "raw.img: what was discarded is free" 1 $(($(stat -c %b /scratch/raw.img) <= 57 << 11))
	expect "trim.img: all is free" 1 $(($(stat -c %b /scratch/trim.img) <= 64))
	expect "trim.img: its size" $((64 << 20)) "$(stat -c %s /scratch/trim.img)"
	expect "data.img: what was trimmed is free" 1 $(($(stat -c %b /scratch/data.img) <= 24 << 11))
	expect "data.img: a clean file system" 0 "$(e2fsck -fn /scratch/data.img >fsck 2>&1; echo $?)"
	expect "ro.img: as it was" "$ro_sum" "$(sha256sum </scratch/ro.img)"
}

# Blocks are written one by one and synced, until the host has no room.
full() {
	quick_guest full cloud-6.12 --cpus 2 --disk "/lab/guest/root$lane.img" \
		--disk "/scratch/small/full.img$1" <<-END
		check "the host gets full" python3 -c '
		$(cat pattern.py)
		import errno, os, sys
		fd = os.open("/dev/vdb", os.O_RDWR)
		n = 0
		try:
		    while n < 1024:
		        assert os.pwrite(fd, block(n), n << 20) == 1 << 20
		        os.fsync(fd)
		        n += 1
		    sys.exit("no error")
		except OSError as error:
		    assert error.errno in (errno.EIO, errno.ENOSPC), error
		print("ACKNOWLEDGED", n, file=open("/dev/console", "w"), flush=True)
		os.close(fd)
		fd = os.open("/dev/vdb", os.O_RDWR)
		os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
		for i in range(n): assert os.pread(fd, 1 << 20, i << 20) == block(i), i
		assert n > 20, n'
		check "the root goes on" bash -c 'head -c 1M /dev/urandom >/root/more && sync /root/more'
		check "overwrites what is there" python3 -c '
		$(cat pattern.py)
		import os
		fd = os.open("/dev/vdb", os.O_RDWR)
		os.pwrite(fd, block(999), 5 << 20)
		os.fsync(fd)'
	END
	local n
	n=$(tr -d '\r' <full.out | sed -n 's/^ACKNOWLEDGED //p')
	expect "full$1: $n MiB are on the host" "" "$(python3 -c '
import sys
from pattern import block
f = open("/scratch/small/full.img", "rb")
for i in range(int(sys.argv[1])):
    if f.read(1 << 20) != block(999 if i == 5 else i):
        print("block", i, "differs")' "${n:-0}" 2>&1)"
	expect_match "full$1: the monitor says why" '^mirrorball: .*full.*No space left' full.err
	expect "full$1: not too often" 1 $(($(wc -l <full.err) < 40))
	rm /scratch/small/full.img
	truncate -s 1G /scratch/small/full.img
}

# While the first machine runs, with its disks.
in_use() {
	local disk
	if ! await durable.out '^LABTEST-BEGIN' 400; then
		bad "in use: no first machine"
		return
	fi
	for disk in /lab/guest/root0.img /scratch/data.img /scratch/data.img,ro /scratch/ro.img; do
		mirrorball run --quiet --disk "$disk" splash hello >second.out 2>second.err </dev/null
		expect "in use: $disk is refused" 1 $?
		expect_match "in use: says by whom" \
			"^mirrorball: disk ${disk%,ro}: in use by another machine" second.err
		expect "in use: in one line" 1 "$(wc -l <second.err)"
	done
	mirrorball run --quiet --cpus 1 --disk /scratch/ro.img,ro splash hello >second.out 2>&1 </dev/null
	expect "in use: but two may read" 0 $?
	full ''
	full ',direct=off'
}

# The second needs the first to run.
both() {
	(
		lane=1
		in_use
	) &
	durable
	wait
}

in_lanes both
finish
