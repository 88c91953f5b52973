#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2016 # expanded in the host, not here
# splash under nested QEMU, started through PVH: the programs hold, and the instrument counts what they do.
. "$(dirname "$0")/test-common.sh"
build=${MB_BUILD:-$here/../../build}

cat >"$tmp/under.sh" <<'END'
#!/bin/bash
# under.sh MACHINE CPUS PROGRAM...: status is splash's own
machine=$1 cpus=$2
shift 2
numactl -N 0 -m 1 timeout 120 qemu-system-x86_64 -accel kvm -cpu host -M "$machine" -smp "$cpus" -m 128M \
	-nodefaults -display none -no-reboot -debugcon stdio -device isa-debug-exit,iobase=0xf4,iosize=4 \
	-kernel /in/splash.elf -append "$*" </dev/null
exit $(($? >> 1))
END
chmod +x "$tmp/under.sh"
under() { "$lab" --build "$build" --in "$build/tests/guest/splash/splash.elf" --in "$tmp/under.sh" "$@"; }

under -- bash -c './under.sh pc 4 churn ms=2000; echo "status $?"; ./under.sh pc 2 nonsense; echo "status $?"
	./under.sh microvm,acpi=on 2 radix keys=64K ms=100; echo "status $?"' >"$tmp/out"
expect_match "churn" '^splash: churn: ok$' "$tmp/out"
expect_match "on four vCPUs" 'churn: all 4 vCPUs' "$tmp/out"
expect_match "on a microvm" 'radix: all 2 vCPUs' "$tmp/out"
expect "statuses" "status 0 status 2 status 0" "$(grep '^status' "$tmp/out" | xargs)"

under --truth "$tmp/truth.json" -- ./under.sh pc 1 walk size=8M rounds=4 >"$tmp/out"
expect "walk" 0 $?
for what in loads stores load_misses store_misses; do
	said=$(python3 "$here/truth/check.py" "$tmp/truth.json" "$what" '0 524288; 0 0')
	expect "$what of QEMU's guest: $said" 0 $?
done
finish
