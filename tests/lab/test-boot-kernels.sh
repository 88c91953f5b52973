#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Debian's stock kernels, with 1 and 4 vCPUs, come up on a root disk (with systemd: cloud-6.1 in test-boot-ends.sh, cloud-6.12
# in test-views.sh), find the machine as it was asked for, and power it off. The same kernel as an ELF file; more vCPUs than
# xAPIC has ids.
# tests/run: last 102
. "$(dirname "$0")/guests.sh"

# The kernel that is in a bzImage (boot.rst, payload_offset and payload_length; an LZ4 frame and its
# unpacked length), which is an ELF file with an entry for PVH
pvh() {
	python3 - /lab/guest/vmlinuz-cloud-6.1 <<-'END' | lz4 -dc >vmlinux
		import struct, sys
		image = open(sys.argv[1], "rb").read()
		offset, length = struct.unpack_from("<II", image, 0x248)
		payload = (image[0x1f1] + 1) * 512 + offset
		sys.stdout.buffer.write(image[payload:payload + length - 4])
	END
	local kernel_file=$work/vmlinux
	chmod 644 vmlinux
	quick_stock pvh cloud-6.1 1 3584 </dev/null
	rm vmlinux
}

# many CPUS VIEWS. So many vCPUs cannot all run on four emulated CPUs; the last of them can, and what depends on its number
# is the APICs' mode, INIT and SIPI, the kernel's own interrupts and the devices'.
many() {
	local append=maxcpus=2 last=$(($1 - 1))
	quick_guest "many$2" cloud-6.1 --cpus "$1" --views "$2" --memory 1G --disk "/lab/guest/root$lane.img" <<-END
		check "APICs found in x2APIC mode" same 0 "\$(dmesg | grep -c 'x2apic entry ignored')"
		check "vCPUs" same "0-$last" "\$(cat /sys/devices/system/cpu/present)"
		check "vCPU $last comes up" tee /sys/devices/system/cpu/cpu$last/online <<<1
		check "and works" same $last "\$(taskset -c $last sed 's/.*) //' /proc/self/stat | cut -d ' ' -f 37)"
		modprobe virtio_rng
		irq=\$(sed -n 's/^ *\([0-9]*\):.*virtio.-input\$/\1/p' /proc/interrupts)
		check "the entropy device's interrupt goes there" tee "/proc/irq/\$irq/smp_affinity_list" <<<$last
		count() { sed -n "s/^ *\$irq: *//p" /proc/interrupts | tr -s ' ' | cut -d ' ' -f 3; }
		before=\$(count)
		head -c 4096 /dev/hwrng >/run/entropy
		check "and arrives" [ "\$(count)" -gt "\$before" ]
	END
}

in_lanes \
	"quick_stock cloud61x1 cloud-6.1 1 512 </dev/null" \
	"quick_stock cloud612x4 cloud-6.12 4 514 </dev/null" "quick_stock cloud612x1 cloud-6.12 1 256 </dev/null" \
	"stock full61x4 full-6.1 4 768 </dev/null" "pvh" "many 300 2"
finish
