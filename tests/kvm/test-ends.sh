#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# How machines end, and the exit status of each way.
source "$(dirname "$0")/lib.sh"
need_kvm
for what in halt spin hello echo poweroff reset triple panic lost; do
	guest "$what"
done
run=("$MIRRORBALL" run --memory 32M --cpus 1)

expect 0 'powered off' "${run[@]}" --kernel poweroff.elf
expect 0 '^hello from the tiny guest' "${run[@]}" --kernel hello.elf
expect 0 '^hello from the tiny guest' "${run[@]}" --kernel hello.elf --quiet
[ "$(wc -l <<<"$out")" = 1 ] || bad "--quiet: more than the guest's own line: $out"
expect 0 '' "${run[@]}" --kernel hello.elf --console off --quiet
[ -z "$out" ] || bad "--console off: $out"
expect 5 'reset itself.*--no-reboot' "${run[@]}" --kernel reset.elf --no-reboot
expect 4 'crashed' "${run[@]}" --kernel triple.elf --no-reboot
expect 4 'giving up' "${run[@]}" --kernel triple.elf
expect 4 'panic' "${run[@]}" --kernel panic.elf --no-reboot
expect 3 'KVM could not go on' "${run[@]}" --kernel lost.elf --no-reboot
grep -qiE 'rip[ =:]+(0x)?0*d0000000' <<<"$out" || bad "lost: registers do not show where it was: $out"

# A guest that resets itself for ever does so until it is told to stop, and costs no more each time.
held() { # descriptors, threads and mappings
	local fds=("/proc/$pid/fd"/*) tasks=("/proc/$pid/task"/*)
	echo $((${#fds[@]} + ${#tasks[@]} + $(wc -l <"/proc/$pid/maps")))
}
anon_kib() { sed -n 's/^RssAnon:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$pid/status"; }
"${run[@]}" --kernel reset.elf </dev/null >.out 2>&1 &
pid=$!
before=
for _ in {1..20}; do
	sleep 1
	[ "$(held)" != "$before" ] || break
	before=$(held)
done
kib=$(anon_kib)
sleep 4
n_checks=$((n_checks + 3))
# A sanitizer has memory of its own for what was freed, and more of it for each CPU that a thread was on.
slack=2
[[ $(ldd "$MIRRORBALL") != *san.so* ]] || slack=256 kib=$((kib + 65536))
# While it loads the guest it has its file open.
[ "$(held)" -le $((before + slack)) ] || bad "resets: held $before at first, $(held) in the end"
[ "$(anon_kib)" -le $((kib + 256)) ] || bad "resets: $kib KiB at first, $(anon_kib) KiB in the end"
kill -QUIT "$pid"
got=0
wait "$pid" || got=$?
out=$(cat .out)
look 131 '[0-9]{3} resets' "$got" "reset.elf without --no-reboot"

# More vCPUs than xAPIC has ids for: their APICs are set up anew in the other mode.
expect 131 "resets?" timeout --preserve-status -s QUIT 4 "$MIRRORBALL" run --memory 64M --cpus 300 --kernel reset.elf

# Input: a pipe, at its end nothing, and a closed descriptor.
n_checks=$((n_checks + 3))
got=0
printf 'abcQ' | timeout 30 "${run[@]}" --kernel echo.elf >.out 2>&1 || got=$?
out=$(cat .out)
look 0 'abcQ' "$got" "echo.elf from a pipe"
got=0
timeout 30 "${run[@]}" --kernel hello.elf >.out 2>&1 <&- || got=$?
out=$(cat .out)
look 0 '^hello' "$got" "stdin closed"
got=0
timeout 30 "${run[@]}" --kernel hello.elf <&- >&- 2>&- || got=$?
out=
look 0 '' "$got" "all closed"
got=0
timeout 30 "${run[@]}" --kernel hello.elf </dev/null 2>.out >/dev/full || got=$?
out=$(cat .out)
n_checks=$((n_checks + 1))
look 0 '' "$got" "output to a full device"
n_checks=$((n_checks + 1))
got=0
{ timeout 30 "${run[@]}" --kernel hello.elf </dev/null 2>.out || echo $? >.status; } | true
[ ! -e .status ] || got=$(cat .status)
out=$(cat .out)
look 0 '' "$got" "nobody reads the output"
finish
