#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Bad input: each is refused with one line that names what, why and what to do, before a guest runs.
source "$(dirname "$0")/lib.sh"
need_kvm
guest hello
run=("$MIRRORBALL" run --memory 64M --cpus 1)
kernel() {
	expect 1 "$1" "${run[@]}" --kernel "$2" "${@:3}"
}

# ---- the command line: status 2, and where help is
usage() {
	expect 2 "$1" "$MIRRORBALL" "${@:2}"
	[ "$(wc -l <<<"$out")" = 2 ] || bad "${*:2}: not two lines: $out"
	grep -q "^Try 'mirrorball" <<<"$out" || bad "${*:2}: does not say where help is: $out"
}
usage "unknown command 'rnu'" rnu
usage "did you mean 'doctor'" docter
usage 'did you mean --cpus' run --cpsu 3
usage 'unknown option' run --frobnicate
usage 'unknown option -x' run -x
usage 'needs a value' run --memory
usage 'takes no value' run --no-reboot=yes
usage 'several begin like this' run --me 64M
usage 'given twice' run --cpus 1 --cpus 2
usage 'minimum of 16M' run --memory 0
usage 'minimum of 16M' run --memory 1M
usage 'bytes is less.*write K, M, G or T' run --memory 512
usage 'not a multiple of 2M.*512M or 514M' run --memory 513M
usage 'negative' run --memory -1G
usage 'too large' run --memory 99999999999999999999G
usage 'too large' run --memory 99999999999G
usage 'more than the 8T' run --memory 9T
usage 'not a number' run --memory lots
usage 'not a number' run --memory ' 1G'
usage 'is not a unit' run --memory 1Q
usage 'whole number' run --memory 1.5G
usage '1 to 1024' run --cpus 0
usage '1 to 1024' run --cpus 1025
usage '1 to 1024' run --cpus 99999999999999999999
usage 'whole number' run --cpus two
usage 'whole number' run --cpus -1
usage '1 to 64' run --views 0
usage 'auto, on or off' run --track maybe
usage "did you mean 'budget'" run --track on,budgt=1
usage '0.1 to 50 percent' run --track on,budget=0.01
usage 'not a number' run --track on,budget=1e1
usage 'given twice' run --track auto,budget=1,budget=2
usage 'costs nothing' run --track off,budget=1
usage 'auto, on, off or storm' run --migrate yes
usage 'auto, nodes=LIST, spread or none' run --placement all
usage 'a list as nodes=0,2-3' run --placement nodes=
usage 'a list as nodes=0,2-3' run --placement nodes=3-1
usage 'no nodes above 1023' run --placement nodes=0-5000
usage 'must be known' run --migrate on --track off
usage 'must be known' run --replicas 1G --track off
usage 'the same decides' run --replicas 10% --migrate off
usage 'not a number' run --replicas much
usage '1 to 800' run --replicas 801%
usage "'x' is not a console" run --console x
usage "'yes': on or off" run --free-page-reporting yes
usage 'name' run --name ../../etc
usage 'unknown part' run --disk disk.img,rw
usage "did you mean 'queues'" run --disk disk.img,queue=2
usage 'direct=maybe: on or off' run --disk disk.img,direct=maybe
usage 'serial' run --disk disk.img,serial=123456789012345678901
usage 'empty part' run --disk disk.img,
usage 'given twice' run --disk disk.img --disk disk.img
usage 'unknown part' run --net bridge=br0
usage 'not an interface name' run --net tap=interfacenamelong
usage 'tap-fd' run --net tap-fd=0
usage 'MAC address' run --net passt,mac=1:2:3
usage 'group address' run --net passt,mac=01:00:00:00:00:01
usage 'only tap=NAME' run --net passt,queues=2
usage 'only passt' run --net tap=tap0,arg=-d
usage '--initrd: there is no --kernel' run --initrd hello.elf
usage '--append: there is no --kernel' run --append quiet
usage '--append: there is no --kernel' run --append quiet splash hello
usage 'a machine has one guest' run --kernel hello.elf splash hello
usage 'for a kernel write --kernel' run hello.elf
usage 'no program named' run splash
usage "did you mean 'radix'" run splash raddix
usage 'only together with --dry-run' run --json
usage 'takes options only' doctor now

# Names that others have chosen neither make lines nor reach the terminal.
usage "unexpected word 'a[?]mirrorball: all is well'" run $'a\nmirrorball: all is well'
usage "unknown command 'a[?]\\[2J'" $'a\e[2J'
kernel 'kernel a[?]mirrorball: b[?]\[2J: no such file' $'a\nmirrorball: b\e[2J'
expect 1 'disk a[?]b: no such file' "${run[@]}" --disk $'a\nb' splash hello
cp hello.elf $'new\nline\e[2J'
expect 0 '^kernel    new[?]line[?]\[2J, ' "${run[@]}" --dry-run --kernel $'new\nline\e[2J'

# ---- what this host cannot do: status 1
expect 1 'more than the [0-9]+ MiB that this host has.*--memory-overcommit' "$MIRRORBALL" run --memory 7T splash hello
max=$("$MIRRORBALL" doctor --json | python3 -c '
import json, sys
print(next(c["value"] for c in json.load(sys.stdin)["checks"] if c["id"] == "kvm.max_vcpus"))')
if [ "$max" -lt 1024 ]; then
	expect 1 "more than the $max vCPUs" "$MIRRORBALL" run --cpus $((max + 1)) splash hello
fi
expect 1 'views.*more than the' "$MIRRORBALL" run --views 64 splash hello
expect 1 'may not use a node 1023 of this host; it may use 0' "$MIRRORBALL" run --placement nodes=0,1023 splash hello

# ---- kernels
kernel 'kernel missing.elf: no such file' missing.elf
mkdir directory
kernel 'kernel directory: is a directory' directory
: >empty
kernel 'kernel empty: is empty' empty
echo 'just some words' >text
kernel 'kernel text: .*not a kernel' text
head -c 4096 /dev/zero >zeroes
kernel 'kernel zeroes: .*not a kernel' zeroes
head -c 65536 /dev/urandom >random
kernel 'kernel random: ' random
for bytes in 1 40 100 180; do
	head -c "$bytes" hello.elf >short.elf
	kernel 'kernel short.elf: .*(truncated|not a kernel)' short.elf
done
kernel 'kernel /bin/true: .*without a PVH entry' /bin/true
python3 - <<'END'
import struct
elf = bytearray(open("hello.elf", "rb").read())
def variant(name, offset, value):
    copy = bytearray(elf)
    copy[offset:offset + len(value)] = value
    open(name, "wb").write(copy)
variant("elf32", 4, b"\x01")
variant("i386", 18, struct.pack("<H", 3))
variant("arm", 18, struct.pack("<H", 183))
variant("object", 16, struct.pack("<H", 1))
variant("manyheaders", 56, struct.pack("<H", 65535))
variant("noheaders", 56, struct.pack("<H", 0))
variant("faroffset", 64 + 8, struct.pack("<Q", 2**63))
variant("highaddress", 64 + 24, struct.pack("<Q", 2**63))
variant("wrapping", 64 + 24, struct.pack("<Q", 2**64 - 1))
variant("outside", 64 + 24, struct.pack("<Q", 512 << 20))
variant("hugesegment", 64 + 40, struct.pack("<Q", 2**62))
variant("badentry", len(elf) - 4, struct.pack("<I", 0x200000))
# A bzImage header: boot protocol 2.06, without and with a 64-bit entry, and one that ends too early.
def bzimage(name, version, xloadflags, size=64 << 10, setup_sects=4, paras=None):
    image = bytearray(size)
    image[0x1f1] = setup_sects
    image[0x1fe:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x66"
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = struct.pack("<H", version)
    image[0x211] = 1
    image[0x1f4:0x1f8] = struct.pack("<I", paras if paras is not None else (size - (setup_sects + 1) * 512) // 16)
    image[0x214:0x218] = struct.pack("<I", 0x100000)
    image[0x230:0x234] = struct.pack("<I", 0x200000)
    image[0x234] = 1
    image[0x236:0x238] = struct.pack("<H", xloadflags)
    image[0x238:0x23c] = struct.pack("<I", 2047)
    image[0x258:0x260] = struct.pack("<Q", 0x1000000)
    image[0x260:0x264] = struct.pack("<I", 0x400000)
    open(name, "wb").write(image)
bzimage("bz-old", 0x0206, 0)
bzimage("bz-32", 0x020c, 0)
bzimage("bz-short", 0x020f, 1, paras=1 << 20)
END
for what in elf32 i386 arm object manyheaders noheaders faroffset highaddress wrapping outside hugesegment badentry \
	bz-old bz-32 bz-short; do
	kernel "kernel $what: " "$what"
done
kernel 'kernel i386: .*32-bit' i386
kernel 'kernel bz-32: .*32-bit|64-bit' bz-32
mkfifo fifo
kernel 'kernel fifo: is a device, pipe or socket' fifo
kernel 'kernel /dev/zero: is a device' /dev/zero

# ---- initrd and command line
truncate -s 1G big-initrd
kernel 'initrd big-initrd: ' hello.elf --initrd big-initrd
kernel 'initrd missing: no such file' hello.elf --initrd missing
kernel 'initrd directory: is a directory' hello.elf --initrd directory
kernel 'command line' hello.elf --append "$(printf 'x%.0s' {1..3000})"

# ---- disks
disk() {
	expect 1 "$1" "${run[@]}" "${@:2}" splash hello
}
truncate -s 1M disk.img
disk 'disk missing.img: no such file' --disk missing.img
disk 'disk directory: is a directory' --disk directory
head -c 1000 /dev/zero >odd.img
disk 'disk odd.img: size 1000 is not a multiple of 512' --disk odd.img
disk 'disk empty: .*empty' --disk empty
disk 'disk /dev/zero: ' --disk /dev/zero
disk 'disk fifo: ' --disk fifo
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all)
chmod 755 "$work"
if [ "$(id -u)" = 0 ] && "${nobody[@]}" test -x "$MIRRORBALL" && unshare --mount true 2>/dev/null; then
	# Somebody who may open KVM, but not this disk.
	mknod -m 666 kvm c 10 232
	install -m 600 disk.img secret.img
	install -m 444 disk.img readable.img
	as_nobody=(unshare --mount bash -c 'mount --bind kvm /dev/kvm; exec "$@"' _ "${nobody[@]}")
	expect 1 'disk secret.img: no permission to read and write' "${as_nobody[@]}" "${run[@]}" --disk secret.img splash hello
	expect 1 'disk readable.img: no permission.*,ro' "${as_nobody[@]}" "${run[@]}" --disk readable.img splash hello
	expect 0 . "${as_nobody[@]}" "${run[@]}" --quiet --disk readable.img,ro splash hello
	install -m 600 hello.elf secret.elf
	expect 1 'kernel secret.elf: no permission' "${as_nobody[@]}" "${run[@]}" --kernel secret.elf
fi

# One writer, or several readers. The first machine has the disk as long as it runs.
guest halt
hold() {
	"${run[@]}" --disk "$1" --kernel halt.elf </dev/null >.hold 2>&1 &
	holder=$!
	sleep 1
}
release() {
	kill -QUIT "$holder" 2>/dev/null || bad "the machine that holds it had ended: $(cat .hold)"
	wait "$holder" || true
}
hold disk.img
disk 'disk disk.img: in use by another machine' --disk disk.img
disk 'disk disk.img: in use by another machine' --disk disk.img,ro
expect 1 'disk disk.img: in use' "${run[@]}" --dry-run --disk disk.img splash hello
release
expect 0 . "${run[@]}" --quiet --disk disk.img splash hello
hold disk.img,ro
expect 0 . "${run[@]}" --quiet --disk disk.img,ro splash hello
disk 'disk disk.img: in use by another machine' --disk disk.img
release
ln disk.img link.img
disk 'disk link.img: in use|disk disk.img: in use' --disk disk.img --disk link.img

# ---- networks
# A number that nobody has opened must not reach a descriptor of the monitor's own.
bare() {
	limit=10 expect 1 "$1" bash -c 'for fd in {3..255}; do exec {fd}>&-; done; exec "$@"' _ "${run[@]}" "${@:2}" splash hello
	[ "$(wc -l <<<"$out")" = 1 ] || bad "${*:2}: not one line: $out"
}
for fd in {3..20} 77; do
	bare "^mirrorball: --net tap-fd=$fd: is not an open descriptor; the program that starts" --net "tap-fd=$fd"
done
bare 'tap-fd=5: is not an open' --dry-run --net tap-fd=5
bare 'tap-fd=4: is not an open' --net passt --net tap-fd=4
usage 'tap-fd=5 is given twice' run --net tap-fd=5 --net tap-fd=5
disk 'disk.img|not a tap|tap' --net tap-fd=9 9<disk.img
if [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ]; then
	disk 'mb-no-such-tap' --net tap=mb-no-such-tap
	! ip link show mb-no-such-tap >/dev/null 2>&1 || bad "a mistyped tap name made an interface"
	if ip tuntap add dev "mbt$$" mode tap 2>/dev/null; then
		cleanups+=("ip link del mbt$$")
		expect 0 . "${run[@]}" --quiet --net "tap=mbt$$" splash hello
		"${run[@]}" --net "tap=mbt$$" --kernel halt.elf </dev/null >.hold 2>&1 &
		holder=$!
		sleep 1
		disk "mbt$$.*(busy|in use)" --net "tap=mbt$$"
		release
		disk "mbt$$" --net "tap=mbt$$,queues=2"
	fi
fi

expect 1 'passt is not installed; apt install passt' env PATH=/nonexistent "${run[@]}" --net passt splash hello
mkdir bin
echo nonsense >bin/passt
expect 1 'cannot start the program passt: Permission denied; see' env PATH="$work/bin" "${run[@]}" --net passt splash hello
if command -v passt >/dev/null; then
	for mode in '' --dry-run; do
		# shellcheck disable=SC2086 # no word when empty
		expect 1 "passt ended at once .status 1.: .*no-such-option.*; put that right, see passt" \
			"${run[@]}" $mode --net passt,arg=--no-such-option splash hello
	done
fi
# Where there is no way out of the host, passt does not start.
if command -v passt >/dev/null && ip route | grep -q '^default'; then
	expect 0 . "${run[@]}" --quiet --net passt splash hello
	expect 0 . "${run[@]}" --quiet --net passt,arg=-t,arg=23456 --net passt splash hello
	# It ends later: one line, and the machine goes on with its link down.
	"${run[@]}" --net passt --kernel halt.elf </dev/null >.hold 2>&1 &
	holder=$!
	sleep 1
	passt=$(pgrep -P "$holder") || bad "no passt: $(cat .hold)"
	kill -KILL "$passt"
	sleep 0.5
	release
	[ "$(grep -c 'net passt: link down: the program passt ended (signal 9); the machine goes on' .hold)" = 1 ] ||
		bad "not one line about the end of passt: $(cat .hold)"
	"${run[@]}" --net passt --kernel halt.elf </dev/null >.hold 2>&1 &
	holder=$!
	sleep 1
	passt=$(pgrep -P "$holder") || bad "no passt: $(cat .hold)"
	release
	! kill -0 "$passt" 2>/dev/null || bad "a passt was left behind"
fi

# ---- few descriptors, little address space
# Whichever step meets the limit, one line says what it was and what helps. The soft limit is not met at all.
few() {
	expect "$2" "$3" bash -c 'for fd in {3..255}; do exec {fd}>&-; done; ulimit '"$1"'; exec "$@"' _ \
		"$MIRRORBALL" run --quiet --memory 64M --cpus 2 --disk disk.img --console virtio splash hello
}
for n in {6..18}; do
	few "-n $n" 1 '^mirrorball: .*Too many open files.*[(]ulimit -n[)]'
	[ "$(wc -l <<<"$out")" = 1 ] || bad "$n descriptors: not one line: $out"
done
few '-Sn 6' 0 'hello: ok'
# A sanitizer needs more address space than any limit leaves.
if [[ ${MB_BUILD-} != */asan ]]; then
	expect 1 . bash -c 'ulimit -v 400000; exec "$@"' _ "$MIRRORBALL" run --memory 1G splash hello
fi
finish
