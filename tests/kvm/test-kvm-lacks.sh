#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A KVM that lacks something: what is required ends the program with one line before anything else, and doctor
# names it; without the rest a machine runs.
source "$(dirname "$0")/lib.sh"
need_kvm
without=("$here/without")
"${without[@]}" cap:9999 -- /bin/true || skip "needs seccomp filters"
run=("$MIRRORBALL" run --quiet --memory 64M --cpus 2)

# As expect, with one line of ours when it ends with 1. $1 rules
lacks() {
	local rules=$1
	shift
	# shellcheck disable=SC2086 # several rules
	expect "$1" "$2" "${without[@]}" $rules -- "${@:3}"
}
one_line() {
	[ "$(grep -c '' "$work/.out")" = 1 ] || bad "$1: not one line: $out"
}

# The table of kvm/host.c; the numbers are ABI (uapi/linux/kvm.h).
while read -r number name; do
	lacks "cap:$number" 1 "^mirrorball: KVM: KVM_CAP_$name \\(.*since Linux .*\\) is missing: no machine can run; use " \
		"${run[@]}" splash hello
	one_line "$name"
	lacks "cap:$number" 1 "missing +KVM_CAP_$name" "$MIRRORBALL" doctor
	grep -q 'cannot run a machine: 1 required thing is missing' <<<"$out" || bad "doctor without $name: $out"
done <<'END'
3 USER_MEMORY
14 MP_STATE
16 SYNC_MMU
32 IRQFD
36 IOEVENTFD
41 VCPU_EVENTS
77 SIGNAL_MSI
121 SPLIT_IRQCHIP
136 IMMEDIATE_EXIT
END
lacks cap:121 1 KVM_CAP_SPLIT_IRQCHIP "${run[@]}" --dry-run
lacks cap:121 1 '"can_run": false' "$MIRRORBALL" doctor --json

# Wanted, all of them away: ADJUST_CLOCK, GET_TSC_KHZ, TSC_DEADLINE_TIMER, X86_SMM, MULTI_ADDRESS_SPACE, X2APIC_API,
# BINARY_STATS_FD, XSAVE2, READONLY_MEM.
wanted='cap:39 cap:61 cap:72 cap:81 cap:117 cap:118 cap:129 cap:203 cap:208'
lacks "$wanted" 0 'hello: ok' "${run[@]}" splash hello
lacks "$wanted" 0 'can run machines, with 1 view ' "$MIRRORBALL" doctor
truncate -s 2M image
lacks cap:81 1 'pmem image: .*KVM_CAP_READONLY_MEM' "${run[@]}" --pmem image splash hello
one_line 'READONLY_MEM'
lacks "$wanted" 1 'views.*more than the 1 ' "${run[@]}" --views 2 splash hello
if "$MIRRORBALL" run --dry-run --cpus 300 --memory 64M splash hello &>/dev/null; then
	lacks cap:129 1 '300 vCPUs: .*KVM_CAP_X2APIC_API' "$MIRRORBALL" run --cpus 300 --memory 64M splash hello
	one_line 'X2APIC_API'
fi

# Another API (KVM_GET_API_VERSION), a kvm_run that is too small, and a KVM that makes no machine: EBUSY.
lacks ioctl:0xae00:0 1 'KVM: API version 0, but 12 is needed' "${run[@]}" splash hello
one_line 'API version'
lacks ioctl:0xae00:25 1 'does not answer as KVM does.*is it /dev/kvm' "${run[@]}" splash hello
one_line 'no API'
lacks ioctl:0xae04:0 1 'KVM: the vCPU mapping has 0 bytes' "${run[@]}" splash hello
one_line 'kvm_run'
lacks ioctl:0xae01:16 1 'KVM: cannot create a virtual machine: Device or resource busy' "${run[@]}" splash hello
one_line 'no machine'
finish
