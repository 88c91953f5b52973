#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# How a stock guest's machine ends or starts again: reset, panic, triple fault, signals, keys; on both
# consoles; with memory above the PCI hole. And kernels and initial ramdisks that cannot start.
# tests/run: last 79
lab_options=(--memory-per-node 3G)
. "$(dirname "$0")/guests.sh"

kernel=cloud-6.1

# The stock driver for pvpanic, which tells the monitor of a panic, is a module.
{
	cat "/lab/guest/initrd-$kernel"
	mkdir modules
	find /lib/modules/6.1.*-cloud-amd64/ -name 'pvpanic*.ko' -exec cp {} modules/ \;
	busybox cpio -i --to-stdout modules/order <"/lab/guest/initrd-$kernel" 2>/dev/null >order
	cat order <(printf '%s\n' pvpanic.ko pvpanic-mmio.ko) >modules/order
	find modules | busybox cpio -o -H newc 2>/dev/null
} >pvpanic.initrd

# ends NAME APPEND COMMAND STATUS SAYS: a machine with --no-reboot whose guest does this
ends() {
	shell "$1" "$kernel" "$2" --cpus 2 --memory 128M --no-reboot || return
	type_in "$1" "$3"
	ended 60
	expect "$1: status" "$4" "$status"
	expect_match "$1: says why" "$5" "$1.err"
}

panics_to_monitor() {
	local initrd=$work/pvpanic.initrd
	ends panic-told '' 'echo c >/proc/sysrq-trigger' 4 "panic-told: the guest's kernel panicked"
}

# The same without --no-reboot: each time the guest comes up again, until signals end it.
starts_again() {
	local initrd=$work/pvpanic.initrd what
	shell again "$kernel" reboot=t --cpus 2 --memory 128M || return
	for what in 'echo c >/proc/sysrq-trigger' 'reboot -f'; do
		type_in again "$what"
		if ! await again.out "$prompt" "$boot_seconds"; then
			bad "again: comes up after '$what'"
			show again
		fi
	done
	expect_match "again: says that it panicked" "again: the guest's kernel panicked" again.err
	expect_match "again: says that it had a triple fault" 'again: vCPU [01]: triple fault' again.err
	expect "again: says that it starts again" 2 "$(grep -c 'again: restarting after the crash' again.err)"

	# Nobody in there listens to the power button.
	kill -TERM "$pid"
	await again.err 'pressed the guest.s power button; once more ends it at once' 10
	type_in again 'echo $((6 * 7))'
	await again.out '^42' 30
	expect "again: goes on after the first SIGTERM" 0 $?
	kill -TERM "$pid"
	ended 10
	expect "again: the second SIGTERM ends it" 143 "$status"
	expect_match "again: counts its resets" 'ended by Terminated after .* 2 resets' again.err
}

# The guest's own systemd powers off when the button is pressed. Its logind, which would listen, needs
# D-Bus, which the root has not: a line of Python stands in.
button() {
	when_up=press guest button "$kernel" --cpus 2 --disk "/lab/guest/root$lane.img" <<-'END'
		modprobe -a button evdev
		until [ -e /dev/input/event0 ]; do sleep 0.1; done
		exec 5</dev/input/event0
		echo LISTENING
		check "the power button" same "1 116 1" "$(python3 -c '
		import struct
		print(*struct.unpack("qqHHi", open(5, "rb").read(24))[2:])')"
	END
	expect_match "button: says what SIGTERM does" "pressed the guest's power button" button.err
	expect_match "button: systemd ended" 'reboot: Power down' button.out
}

press() {
	await "$1.out" '^LISTENING' 60
	kill -TERM "$pid"
}

cat >terminal.py <<'END'
# On a terminal: terminal.py CONSOLE OPTION...
import os, re, select, struct, sys, fcntl, termios, time

console, options = sys.argv[1], sys.argv[2:]
seen = b""
failed = 0

def check(what, good):
    global failed
    print("ok: " + what if good else "FAILED: %s: %r" % (what, seen[-400:]), flush=True)
    failed |= not good

def expect(what, pattern, limit=30):
    global seen
    end = time.monotonic() + limit
    while not re.search(pattern, seen) and time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
    good = bool(re.search(pattern, seen))
    check(what, good)
    seen = b"" if good else seen
    return good

def keys(text):
    os.write(master, text)

def size(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

master, slave = os.openpty()
size(33, 111)
before = termios.tcgetattr(slave)
child = os.fork()
if child == 0:
    os.login_tty(slave) if hasattr(os, "login_tty") else (
        os.setsid(), fcntl.ioctl(slave, termios.TIOCSCTTY, 0), [os.dup2(slave, n) for n in range(3)])
    os.execvp("mirrorball", ["mirrorball", "run", "--console", console] + options)
check_up = expect("the keys are shown", rb"Ctrl-\] then q ends")
if not expect("a prompt", rb"/ # ", 120):
    sys.exit(3)
check("the terminal is raw", not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ISIG))
keys(b"echo $((6 * 7))\r")
expect("what is typed arrives", rb"\n42\r")
keys(b"sleep 1000\r")
time.sleep(1)
keys(b"\x03")
expect("Ctrl-C is the guest's", rb"/ # ")
if console == "virtio":
    keys(b"busybox stty size\r")
    expect("the guest knows the terminal's size", rb"33 111")
    size(44, 99)
    time.sleep(1)
    keys(b"busybox stty size\r")
    expect("and its new one", rb"44 99")
keys(b"\x1dp")
expect("it pauses", rb"paused")
keys(b"echo $((7 * 7))\r")
time.sleep(1.5)
while select.select([master], [], [], 0)[0]:
    seen += os.read(master, 65536)
check("and is silent", b"49" not in seen)
keys(b"\x1dp")
expect("and goes on", rb"\n49\r")
keys(b"\x1dq")
end = time.monotonic() + 10
pid = 0
while not pid and time.monotonic() < end:
    pid, status = os.waitpid(child, os.WNOHANG)
    time.sleep(0.05)
    while select.select([master], [], [], 0)[0]:
        seen += os.read(master, 65536)
check("the escape key ends it, status 6", pid and os.waitstatus_to_exitcode(status) == 6)
check("and the terminal is as before", termios.tcgetattr(slave) == before)
sys.exit(failed)
END

# on_terminal CONSOLE
on_terminal() {
	local attempt
	for attempt in 1 2; do
		timeout 300 python3 terminal.py "$1" --cpus 1 --memory 128M \
			--kernel "/lab/guest/vmlinuz-$kernel" --initrd "/lab/guest/initrd-$kernel" \
			--append 'quiet mb.init=shell' >"pty-$1.out" 2>&1
		status=$?
		[ "$status" = 3 ] || break
		cat "pty-$1.out"
		[ "$attempt" = 2 ] || echo "terminal-$1" >>"$work/retries"
	done
	sed -n "s/^ok:/ok: terminal, $1:/p" "pty-$1.out"
	[ "$status" = 0 ] || bad "terminal, $1: status $status, $(grep -v ^ok: "pty-$1.out")"
}

# 3 GiB below the hole for PCI, the rest above 4 GiB
large() {
	quick_guest large "$kernel" --cpus 2 --memory 4G --disk "/lab/guest/root$lane.img" <<-'END'
		read -r _ mem_total _ </proc/meminfo
		check "MemTotal, $mem_total KiB" [ "$mem_total" -gt $((3900 << 10)) ]
		above=0
		for range in /sys/firmware/memmap/*; do
			read -r type <"$range/type"
			read -r first <"$range/start"
			read -r last <"$range/end"
			[ "$type" != "System RAM" ] || [ $((first)) -lt $((1 << 32)) ] || above=$((last - first + 1))
		done
		check "1 GiB above 4 GiB" same $((1 << 30)) "$above"
		# The kernel takes what processes ask for from above first.
		check "which can be used" python3 -c '
		import hashlib
		def free():
		    text = open("/proc/zoneinfo").read()
		    return int(text[text.index("Normal"):].split("pages free")[1].split()[0])
		before = free()
		block = bytearray(b"mirrorball" * 104858)
		many = [bytearray(block) for _ in range(300)]
		assert before - free() > 50000, (before, free())
		assert all(b == block for b in many)'
	END
}

# refused WHAT SAYS OPTION...
refused() {
	local what=$1 says=$2
	shift 2
	timeout -s QUIT 20 mirrorball run --cpus 1 "$@" </dev/null >/dev/null 2>refused.err
	expect "$what: status" 1 $?
	expect "$what: one line" 1 "$(wc -l <refused.err)"
	expect_match "$what: says why" "^mirrorball: $says" refused.err
}

cannot_start() {
	local name bytes
	for name in cloud-6.1 cloud-6.12 full-6.1; do
		# The last ones of the file are a signature, which nothing here reads.
		for bytes in 100 1000 20000 1000000 -2000; do
			head -c "$bytes" "/lab/guest/vmlinuz-$name" >short
			refused "$name of $bytes bytes" 'kernel short: .*(truncated|not a kernel)' --kernel short
		done
	done
	truncate -s 600M huge
	refused "an initrd larger than memory" 'initrd huge: .*600 MiB|initrd huge: .*629145600' \
		--kernel /lab/guest/vmlinuz-cloud-6.1 --initrd huge
	refused "a long command line" 'kernel .*: takes a command line of up to 2047 bytes' \
		--kernel /lab/guest/vmlinuz-cloud-6.1 --append "$(printf '%3000s' x)"
	refused "too little memory for the kernel" 'kernel /lab/guest/vmlinuz-cloud-6.1: ' \
		--kernel /lab/guest/vmlinuz-cloud-6.1 --memory 16M
}

cannot_start
in_lanes \
	"ends reset '' 'reboot -f' 5 'reset: the guest reset itself'" \
	"starts_again" \
	"ends triple reboot=t 'reboot -f' 4 'triple: vCPU [01]: triple fault'" \
	"on_terminal serial" \
	"ends panic panic=-1 'echo c >/proc/sysrq-trigger' 5 'panic: the guest reset itself'" \
	"on_terminal virtio" \
	"panics_to_monitor" \
	"large" \
	"button"
finish
