#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A host whose /dev/kvm is missing, not permitted or something else: run says what to do, and so does doctor.
source "$(dirname "$0")/lib.sh"
need_root
unshare --mount true 2>/dev/null || skip "needs mount namespaces"

# Runs a command in a mount namespace of its own, after doing something to it.
cat >in-namespace <<'END'
#!/bin/bash
set -e
eval "$1"
exec "${@:2}"
END
chmod +x in-namespace
with_kvm=(unshare --mount "$work/in-namespace")
missing='mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3; mkdir /dev/net'
touch not-kvm
other="mount --bind $work/not-kvm /dev/kvm"
# KVM as Debian has it: for its group only.
mknod -m 660 kvm c 10 232
private="mount --bind $work/kvm /dev/kvm"

expect 1 '/dev/kvm: No such file.*kvm_intel or kvm_amd' "${with_kvm[@]}" "$missing" "$MIRRORBALL" run splash hello
expect 1 'missing +/dev/kvm' "${with_kvm[@]}" "$missing" "$MIRRORBALL" doctor
grep -q 'cannot run a machine' <<<"$out" || bad "doctor does not say so: $out"
expect 1 '"can_run": false' "${with_kvm[@]}" "$missing" "$MIRRORBALL" doctor --json
if [ -e /dev/kvm ]; then
	expect 1 'KVM' "${with_kvm[@]}" "$other" "$MIRRORBALL" run splash hello
	expect 1 'missing +/dev/kvm' "${with_kvm[@]}" "$other" "$MIRRORBALL" doctor
	nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all)
	chmod 755 "$work"
	if "${nobody[@]}" test -x "$MIRRORBALL"; then
		expect 1 '/dev/kvm: Permission denied.*usermod -aG kvm' \
			"${with_kvm[@]}" "$private" "${nobody[@]}" "$MIRRORBALL" run splash hello
		expect 1 'usermod -aG kvm' "${with_kvm[@]}" "$private" "${nobody[@]}" "$MIRRORBALL" doctor
	fi
fi

# Odd hosts: no /sys, no /proc; doctor has a line for each thing that it cannot see. (A sanitizer needs /proc.)
need_kvm
if [[ ${MB_BUILD-} != */asan ]]; then
	bare='mount -t tmpfs tmpfs /sys; mount -t tmpfs tmpfs /proc'
	expect 0 'can run machines' "${with_kvm[@]}" "$bare" "$MIRRORBALL" doctor
	expect 0 '"can_run": true' "${with_kvm[@]}" "$bare" "$MIRRORBALL" doctor --json
	expect 0 . "${with_kvm[@]}" "$bare" "$MIRRORBALL" run --quiet --memory 64M splash hello
fi
finish
