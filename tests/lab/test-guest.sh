#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2016 # expanded in the host, not here
# Nested KVM works: the host's own QEMU boots the guests that the lab offers, to the marker of the
# initial ramdisk, and one of them to a script run by systemd on a writable root.
. "$(dirname "$0")/test-common.sh"

cat >"$tmp/hello.sh" <<'END'
echo "guest $(uname -r) $(findmnt -no FSTYPE /)"
systemctl is-system-running --wait
echo "error output" >&2
touch /written && sync && exit 7
END
cat >"$tmp/boot.sh" <<'END'
#!/bin/bash
# boot.sh KERNEL WANTED APPEND [OPTION...]: try once more where a boot comes to nothing
kernel=$1 wanted=$2 append=$3
shift 3
guest-initrd "$kernel" /in/hello.sh >/tmp/initrd
for attempt in 1 2; do
	timeout 240 qemu-system-x86_64 -accel kvm -cpu host -M pc -nodefaults -no-user-config \
		-display none -no-reboot -serial stdio -m 512 \
		-kernel "/lab/guest/vmlinuz-$kernel" -initrd /tmp/initrd "$@" \
		-append "console=ttyS0 quiet panic=-1 $append" </dev/null >/tmp/console 2>&1
	status=$?
	if [ $status = 0 ] && grep -q "$wanted" /tmp/console; then break; fi
	echo "attempt $attempt to boot $kernel failed with status $status"
	tail -n 5 /tmp/console
done
echo "== $kernel: status $status, attempt $attempt"
tr -d '\r' </tmp/console
END
chmod +x "$tmp/boot.sh"

"$lab" --time 30m --in "$tmp/hello.sh" --in "$tmp/boot.sh" -- bash -c '
	for kernel in cloud-6.1 full-6.1; do
		./boot.sh $kernel "^MB-INIT [0-9]" mb.init=poweroff
	done
	./boot.sh cloud-6.12 "^LABTEST-END 7" labtest \
		-drive if=virtio,format=raw,file=/lab/guest/root0.img' >"$tmp/out" 2>"$tmp/err"
expect "status" 0 $?
grep -A 5 -E '^attempt' "$tmp/out"
for kernel in cloud-6.1 full-6.1; do
	expect "$kernel reaches its initial ramdisk" 1 \
		"$(sed -n "/^== $kernel:/,/^== /p" "$tmp/out" | grep -Ec '^MB-INIT [0-9]+\.[0-9]+')"
done
expect_match "the script ended as it should" '^LABTEST-END 7' "$tmp/out"
expect_match "cloud-6.12" '^guest 6\.12\..*-cloud-amd64 ext4' "$tmp/out"
expect_match "systemd is content" '^running' "$tmp/out"
expect_match "standard error" '^error output' "$tmp/out"
finish
