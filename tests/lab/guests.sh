# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests that run machines in the lab. On the outside it takes the whole test into a lab,
# with the options in $lab_options and the words in $lab_words, and ends with the lab's status. What stands after the line that
# sources it runs inside, as root, in /tmp/work.
#
# The emulator may lose a boot (README.md): a stock guest that hangs or resets itself before it is up is
# started once more, with a report of where each CPU and vCPU was, and finish says how many were. Where it
# loses the whole host, another one goes on with what was not finished (in_lanes).
set -uo pipefail

if [ -z "${LAB-}" ]; then
	. "$(dirname "${BASH_SOURCE[0]}")/test-common.sh"
	lab_options+=() # declared at least
	lab_words+=()
	lost=0
	: >"$tmp/finished"
	while :; do
		"$lab" --time 32m --build "${MB_BUILD:-$here/../../build}" "${lab_options[@]}" \
			--in "$0" --in "${BASH_SOURCE[0]}" --in "$tmp/finished" -- "./$(basename "$0")" "${lab_words[@]}" |
			tee "$tmp/said"
		status=${PIPESTATUS[0]}
		! grep -aq '^FAILED: ' "$tmp/said" || failures=1
		[ "$status" = 125 ] || break
		# Twice in a row without getting any further is not the emulator's bad day.
		if grep -a '^finished: ' "$tmp/said" >>"$tmp/finished"; then lost=0; fi
		lost=$((lost + 1))
		[ "$lost" -lt 3 ] || break
		echo "lab: lost its host; another one goes on after $(wc -l <"$tmp/finished") finished parts"
	done
	[ "$status" != 0 ] || status=$failures
	exit "$status"
fi

work=/tmp/work
boot_seconds=${boot_seconds:-300} # for a guest to come up, on a loaded machine
run_seconds=${run_seconds:-400}   # and to end after that
mkdir -p "$work" && chmod 777 "$work" && cd "$work" || exit
: >failures
: >retries

ok() { echo "ok: $1"; }
bad() {
	echo "FAILED: $1"
	echo "$1" >>"$work/failures"
}

# expect WHAT WANTED GOT
expect() {
	if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: wanted '$2', got '$3'"; fi
}

# kib_on_nodes PID FILE: what nodes 0 to 3 have of mirrorball-FILE (ram, copies), as far as it is in page tables, by the kernel's
# count
kib_on_nodes() {
	awk -v file="mirrorball-$2" '$0 ~ file { for (i = 1; i <= NF; i++) if ($i ~ /^N[0-3]=/) { split($i, a, /[N=]/); n[a[2]] += a[3] * 4 } }
		END { print n[0] + 0, n[1] + 0, n[2] + 0, n[3] + 0 }' "/proc/$1/numa_maps" || echo 0 0 0 0
}

# expect_match WHAT REGEX FILE
expect_match() {
	if grep -Eaq -- "$2" "$3"; then
		ok "$1"
	else
		bad "$1: no '$2' in:"
		tail -n 20 "$3" | tr -d '\r' | sed 's/^/  > /'
	fi
}

finish() {
	sed 's/^/failed: /' "$work/failures"
	echo "retried: $(wc -l <"$work/retries")"
	exit $(($(wc -l <"$work/failures") > 0))
}

# ---- machines. Each has a NAME, and in $work its input NAME.in, and what it and the monitor said in
# ---- NAME.out and NAME.err. $pid is the monitor's, $keys the descriptor to type into.

# start NAME OPTION...: the array as_user may hold a command to run the monitor with
as_user=()
start() {
	local name=$1
	shift
	rm -f "$name.in"
	mkfifo "$name.in"
	: >"$name.out"
	exec {keys}<>"$name.in"
	"${as_user[@]}" mirrorball run --name "$name" "$@" <"$name.in" >>"$name.out" 2>"$name.err" {keys}>&- &
	pid=$!
}

# await FILE REGEX SECONDS: whether that is said before the time is up and the machine ends
await() {
	local end=$((SECONDS + $3))
	until grep -Eaqs -- "$2" "$1"; do
		if ! kill -0 "${pid:-$$}" 2>/dev/null; then
			grep -Eaqs -- "$2" "$1"
			return
		fi
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.3
	done
}

# ended SECONDS: waits for the monitor's end. $status: its own, or "none" where it had to be killed
ended() {
	if timeout "$1" tail -s 0.2 --pid="$pid" -f /dev/null; then
		wait "$pid"
		status=$?
	else
		echo "no end within $1 s; threads of the monitor:"
		ps -L -o lwp,psr,stat,time,wchan:20,comm -p "$pid"
		status=none
		kill -QUIT "$pid"
		timeout 5 tail -s 0.2 --pid="$pid" -f /dev/null || kill -KILL "$pid"
		wait "$pid"
	fi
	pid=
	exec {keys}>&-
}

# show NAME: the end of what it said
show() {
	tail -n 25 "$1.out" | tr -d '\r' | sed 's/^/  | /'
	tail -n 40 "$1.err" | sed 's/^/  ! /'
}

# boot NAME READY OPTION...: starts a stock guest and waits until it says READY
boot() {
	local name=$1 ready=$2 attempt begun
	shift 2
	for attempt in 1 2; do
		begun=$SECONDS
		start "$name" "$@"
		if await "$name.out" "$ready" "$boot_seconds"; then
			echo "$name: up after $((SECONDS - begun)) s"
			return 0
		fi
		[ -z "$pid" ] || where-cpus "$pid" | sed 's/^/  # /'
		ended 0.1
		echo "$name: attempt $attempt came to nothing after $((SECONDS - begun)) s, status $status"
		show "$name"
		# What KVM or the monitor refuses is not the emulator's doing.
		case $status in
		none | 4 | 5) ;;
		*) break ;;
		esac
		[ "$attempt" = 2 ] || echo "$name" >>"$work/retries"
	done
	bad "$name: boots"
	return 1
}

# padded FILE: a copy that can be a disk
padded() {
	cp "$1" "$work/disk.${1##*/}" && truncate -s %512 "$work/disk.${1##*/}" && echo "$work/disk.${1##*/}"
}

# ---- a guest at the shell of its initial ramdisk: what is typed there, it does

# shell NAME KERNEL APPEND OPTION...: up to the prompt
prompt='^/ # '
shell() {
	local name=$1 kernel=$2 append=$3
	shift 3
	boot "$name" "$prompt" --kernel "/lab/guest/vmlinuz-$kernel" \
		--initrd "${initrd-/lab/guest/initrd-$kernel}" --append "quiet $append mb.init=shell" "$@"
}

# type_in NAME TEXT: forgets what was said so far
type_in() {
	: >"$1.out"
	printf '%s\n' "$2" >&"$keys"
}

# ---- a guest with a script on its root disk

# The script has check WHAT COMMAND..., same WANTED GOT and quiet_kernel; its verdicts become the test's.
guest_prelude=$(
	cat <<'END'
failed=0
check() {
	local what=$1
	shift
	if "$@" >/run/said 2>&1; then
		echo "ok: $what"
	else
		echo "FAILED: $what: $(tail -c 400 /run/said | tr '\n' ' ')"
		failed=1
	fi
}
quiet_kernel() {
	local bad='BUG|WARNING|Oops|\[Firmware|Call Trace|detected stall|I/O error|ailed to|segfault|opcode'
	check "no complaint of the kernel" same "" "$(dmesg | grep -E "$bad|NETDEV WATCHDOG|hw csum")"
}
# kexec_load WORDS: the kernel and initial ramdisk in /run, with these on its command line. kexec_now: into it, at once.
kexec_load() {
	python3 - "console=ttyS0 quiet loglevel=1 $1" <<'PYTHON'
import ctypes, sys
files = [open("/run/" + name) for name in ("vmlinuz", "initrd")]
line = sys.argv[1].encode()
assert ctypes.CDLL(None).syscall(320, *(f.fileno() for f in files), len(line) + 1, line, 0) == 0
PYTHON
}
kexec_now() { python3 -c 'import ctypes; ctypes.CDLL(None).syscall(169, 0xfee1dead, 672274793, 0x45584543, 0)'; }
same() { [ "$1" = "$2" ] || { echo "wanted '$1', got '$2'"; return 1; }; }
END
)

# guest NAME KERNEL OPTION...: boots KERNEL with systemd and runs the script on standard input in it.
# These may be set for it: $append, for its command line; $kernel_file, another form of KERNEL; $reboots,
# when it is to reset itself; $when_up, a function to call with NAME when the script has begun.
guest() {
	local name=$1 kernel=$2
	shift 2
	{
		echo "$guest_prelude"
		cat
		# shellcheck disable=SC2016 # the guest's
		echo 'exit $failed'
	} >"$name.sh"
	run_script "$name" "$kernel" labtest "$@"
}

# trace_views: a vCPU is in view 1 while KVM has it in System Management Mode; when that changes is in $trace/trace
trace=/sys/kernel/tracing
trace_views() {
	mount -t tracefs tracefs "$trace"
	echo 4096 >"$trace"/buffer_size_kb
	echo 1 >"$trace"/events/kvm/kvm_smm_transition/enable
}

# A part of such a script, for those that want it.
# shellcheck disable=SC2034 # they use it
load=$(
	cat <<'END'
# load SECONDS: each vCPU computes, writes memory and passes it on to the next; all is verified. /tmp/load.on has a line for
# each that is where it belongs
load() {
	cat >/tmp/load.py <<'PYTHON'
import hashlib, os, random, socket, sys, time

cpus = sorted(os.sched_getaffinity(0))
end = time.monotonic() + float(sys.argv[1])
ring = [socket.socketpair() for _ in cpus]

def work(i):
    os.sched_setaffinity(0, [cpus[i]])
    with open("/tmp/load.on", "a") as on: on.write("vCPU\n")
    mine, other, rounds = ring[i][0], ring[i - 1][1], 0
    for j, pair in enumerate(ring):
        if j != i: pair[0].close()
        if j != (i - 1) % len(ring): pair[1].close()
    want = None
    while time.monotonic() < end or rounds < 2:
        rng = random.Random(7)
        numbers = sorted(rng.getrandbits(60) for _ in range(20000))
        block = bytearray(hashlib.sha256(repr(numbers).encode()).digest() * 65536)
        block[::4096] = bytes(len(block[::4096]))
        digest = hashlib.sha256(block).digest()
        want = want or digest
        assert digest == want, "vCPU %d: round %d differs" % (i, rounds)
        # What the neighbour sends is of its round: the number, noise, and the noise's hash.
        noise = os.urandom(50000)
        try:
            mine.sendall(b"%08d" % rounds + noise + hashlib.sha256(noise).digest())
        except BrokenPipeError:
            pass # it has done its time
        got = b""
        while len(got) < 50040 and (part := other.recv(50040 - len(got))):
            got += part
        if got:
            assert int(got[:8]) == rounds, "vCPU %d: round %d is %s" % (i, rounds, got[:8])
            assert hashlib.sha256(got[8:-32]).digest() == got[-32:], "vCPU %d: noise" % i
        rounds += 1
    print("vCPU", i, "rounds", rounds, "digest", want.hex()[:16])
    sys.stdout.flush()

children = []
for i in range(len(cpus)):
    child = os.fork()
    if child == 0:
        try:
            work(i)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    children.append(child)
for a, b in ring: a.close(), b.close()
ends = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(ends))
PYTHON
	check "$1 s of load on all vCPUs" python3 /tmp/load.py "$1"
}
END
)

# quick_guest NAME KERNEL OPTION...: the same with the script as process 1, without systemd
quick_guest() {
	local name=$1 kernel=$2
	shift 2
	{
		echo '#!/bin/bash'
		echo 'export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8'
		echo 'ln -s /proc/self/fd /dev/fd; mount -t tmpfs tmp /tmp; cd /root'
		echo 'echo; echo LABTEST-BEGIN'
		echo "$guest_prelude"
		cat
		# shellcheck disable=SC2016 # the guest's
		echo 'echo; echo "LABTEST-END $failed"; sync; mount -o remount,ro /; poweroff -f'
	} >"$name.sh"
	chmod 755 "$name.sh"
	run_script "$name" "$kernel" init=/run/labtest "$@"
}

# run_script NAME KERNEL HOW OPTION...
run_script() {
	local name=$1 kernel=$2 how=$3 reset=(--no-reboot)
	shift 3
	[ -z "${reboots-}" ] || reset=()
	guest-initrd "$kernel" "$name.sh" >"$name.initrd"
	chmod 644 "$name.initrd"
	boot "$name" '^LABTEST-BEGIN' --kernel "${kernel_file-/lab/guest/vmlinuz-$kernel}" --initrd "$name.initrd" \
		--append "quiet loglevel=1 $how ${append-}" "${reset[@]}" "$@" || return
	${when_up-:} "$name"
	ended "$run_seconds"
	rm "$name.initrd"
	verdict "$name"
}

# verdict NAME: of a guest's script and its monitor
verdict() {
	local line before
	before=$(wc -l <"$work/failures")
	while IFS= read -r line; do
		case $line in
		"ok: "*) ok "$1: ${line#ok: }" ;;
		*) bad "$1: ${line#FAILED: }" ;;
		esac
	done < <(tr -d '\r' <"$1.out" | grep -aE '^(ok|FAILED): ')
	expect "$1: the end of its script" "LABTEST-END 0" \
		"$(tr -d '\r' <"$1.out" | grep -a '^LABTEST-END' | tail -n 1)"
	expect "$1: status of the monitor" 0 "$status"
	expect_match "$1: says that it powered off" "$1: powered off after" "$1.err"
	[ "$before" = "$(wc -l <"$work/failures")" ] || show "$1"
}

# in_lanes COMMAND...: runs these, two at a time, with $lane 0 and 1 and what each says in one piece.
# What a host that was lost had finished is not run again.
in_lanes() {
	local commands=("$@") lanes=() lane i
	for lane in 0 1; do
		(
			for ((i = lane; i < ${#commands[@]}; i += 2)); do
				! grep -Fqx "finished: ${commands[i]}" /in/finished || continue
				eval "${commands[i]}" >"$work/lane$lane" 2>&1
				echo "finished: ${commands[i]}" >>"$work/lane$lane"
				flock "$work/failures" cat "$work/lane$lane"
			done
		) &
		lanes+=($!)
	done
	for lane in "${lanes[@]}"; do wait "$lane" || bad "a lane ended before its time"; done
}

# What every stock guest must find, as part of its script, which sets cpus, memory_mib and release.
stock_checks=$(
	cat <<'END'
check "$cpus vCPUs" same "$cpus" "$(nproc)"
total=0
for range in /sys/firmware/memmap/*; do
	read -r type <"$range/type"
	[ "$type" = "System RAM" ] || continue
	read -r first <"$range/start"
	read -r last <"$range/end"
	total=$((total + last - first + 1))
done
# The hole below 1 MiB is all that is missing.
check "$memory_mib MiB of memory" same "$memory_mib" $(((total + 0xfffff) >> 20))
read -r _ mem_total _ </proc/meminfo
check "most of which the kernel uses" [ $((mem_total >> 10)) -gt $((memory_mib * 80 / 100)) ]
check "kernel $release" grep -Eq "^$release$" /proc/sys/kernel/osrelease
root=$(stat -c %Hd:%Ld /)
check "root on a virtio disk" grep -q /virtio <<<"$(readlink -f "/sys/dev/block/$root")"
clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
check "clocksource" same kvm-clock "$(cat "$clock")"
read -r rtc </sys/class/rtc/rtc0/since_epoch
off=$((rtc - $(date +%s)))
check "the RTC tells the time" [ "$off" -ge -2 -a "$off" -le 2 ]
echo "EPOCH $(date +%s)"
check "entropy device" grep -q ^virtio_rng /sys/class/misc/hw_random/rng_current
check "which gives bytes" same 256 "$(head -c 256 /dev/hwrng | wc -c)"
check "that differ" [ "$(head -c 256 /dev/hwrng | od -An -v -t x1 -w1 | sort -u | wc -l)" -gt 100 ]
[ "$$" = 1 ] || check "systemd is content" same running "$(systemctl is-system-running --wait)"
quiet_kernel
END
)

# Releases of the stock kernels, as regular expressions.
declare -A release_of=(
	[cloud-6.1]='6\.1\.[-0-9]+-cloud-amd64'
	[cloud-6.12]='6\.12\.[-0-9a-z+]+-cloud-amd64'
	[full-6.1]='6\.1\.[-0-9]+-amd64'
)

# stock NAME KERNEL CPUS MEMORY_MIB OPTION...: boots it to systemd, with more of its script on standard input
stock() { stock_by guest "$@"; }
# The same with the script as process 1: a third of the time
quick_stock() { stock_by quick_guest "$@"; }
stock_by() {
	local how=$1 name=$2 kernel=$3 cpus=$4 memory_mib=$5 begun now
	shift 5
	begun=$(date +%s)
	{
		echo "cpus=$cpus memory_mib=$memory_mib release='${release_of[$kernel]}'"
		# shellcheck disable=SC2016 # the guest's
		echo '[ "$$" != 1 ] || modprobe virtio_rng'
		echo "$stock_checks"
		cat
	} | "$how" "$name" "$kernel" --cpus "$cpus" --memory "${memory_mib}M" \
		--disk "/lab/guest/root$lane.img" "$@"
	now=$(sed -n 's/^EPOCH \([0-9]*\).*/\1/p' "$name.out" | head -n 1)
	expect "$name: its time is ours" 1 "$((now >= begun && now <= $(date +%s)))"
}
