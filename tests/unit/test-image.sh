#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mirrorball image: what it makes, tells, mends and commits, with QEMU's tools as the judge and as the writer.
source "$(dirname "$0")/lib.sh"
if ! command -v qemu-img >/dev/null || ! command -v qemu-io >/dev/null; then
	echo "no qemu-img and qemu-io"
	exit 77
fi

image() {
	"$MIRRORBALL" image "$@"
}
# A condition on the JSON in out, as j.
holds() {
	n_checks=$((n_checks + 1))
	python3 -c 'import json, sys; j = json.load(open("out")); sys.exit(not eval(sys.argv[1]))' "$1" || bad "not true: $1: $(cat out)"
}
# $1: what to check, rest: command
right() {
	local what=$1
	shift
	n_checks=$((n_checks + 1))
	"$@" >right.out 2>&1 || bad "$what: $(head -c 500 right.out)"
}
in_qemu() { # FILE COMMAND...
	local file=$1 words=() word
	shift
	for word in "$@"; do words+=(-c "$word"); done
	qemu-io -f qcow2 "${words[@]}" "$file" >qemu.out || bad "qemu-io: $(cat qemu.out)"
}

# The command line.
expect 2 'what\? There are create' image
expect 2 "did you mean 'commit'" image comit x
expect 2 'which file' image info
expect 2 'which base' image rebase x
expect 2 'is too much' image info a b
expect 2 'is not for this' image info --repair a
expect 2 'either --base DISK or --size' image create new
expect 2 'not a multiple of 512' image create --size 1000 new
expect 2 'given twice' image create --size 1G --size 2G new
expect 0 '' image --help
expect 1 'missing.img: no such file' image create --base missing.img new
expect 1 'missing: no such file' image check missing
[ ! -e new ] || bad "left something behind"

# Making them.
head -c 6M /dev/urandom >base.img
expect 0 '' image create --base base.img a.qcow2
expect 1 'a.qcow2: cannot be made: File exists' image create --base base.img a.qcow2
expect 1 'are less than the 6291456 of its base' image create --base base.img --size 2M small.qcow2
expect 1 'odd.img: size 1000 is not a multiple' bash -c 'truncate -s 1000 odd.img && "$MIRRORBALL" image create --base odd.img odd.qcow2'
expect 0 '' image create --size 3G raw.img
[ "$(stat -c %s raw.img)" -eq $((3 << 30)) ] || bad "raw.img has $(stat -c %s raw.img) bytes"
right "what QEMU says of a new one" qemu-img check a.qcow2
right "which is the base" qemu-img compare -f qcow2 -F raw a.qcow2 base.img
expect 0 '' image create --base base.img --size 64G large.qcow2
right "of a large one" qemu-img check large.qcow2
[ "$(du -k large.qcow2 | cut -f1)" -lt 1024 ] || bad "an empty overlay takes $(du -k large.qcow2)"
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
	mkdir -m 755 closed
	expect 1 'closed/x: cannot be made: Permission denied' setpriv --reuid 65534 --regid 65534 --clear-groups "$MIRRORBALL" image create --size 1M "$work/closed/x"
fi

# What it tells.
expect 0 '' image info raw.img
has '^kind +raw$'
has '^disk +3G \(3221225472 bytes\)$'
has '^takes +0 '
expect 0 '' image info a.qcow2
has '^base +base.img, as it was when this was made$'
has '^changed +0 '
in_qemu a.qcow2 'write -P 1 4k 4k' 'write -z 12k 8k'
expect 0 '' image info --json a.qcow2
holds 'j["kind"] == "overlay" and j["changed_bytes"] == 12288 and j["base_state"] == "unchanged"'
for key in $(json_keys out); do
	grep -q "_${key}_" "$here/man/mirrorball-image.1.scd" || bad "mirrorball-image(1) lacks the key $key"
done
mkdir sub
expect 0 '' image create --base base.img sub/b.qcow2
expect 0 '' image info --json sub/b.qcow2
holds 'j["base"].startswith("/") and j["base"].endswith("/base.img")'
cp -p base.img sub/
expect 0 '' image create --base sub/base.img sub/c.qcow2
expect 0 '' image info --json sub/c.qcow2
holds 'j["base"] == "sub/base.img"'

# Changed, and the same but for its time.
touch -d '2020-01-01' sub/base.img
expect 0 '' image info sub/c.qcow2
has 'WAS CHANGED'
expect 1 'was changed since it was made' image commit sub/c.qcow2
expect 0 '' image rebase sub/c.qcow2 sub/base.img
expect 0 '' image commit sub/c.qcow2
mv sub/base.img sub/moved.img
expect 0 '' image info sub/c.qcow2
has 'WHICH IS MISSING'
expect 1 'moved-too.img: no such file' image rebase sub/c.qcow2 sub/moved-too.img
expect 0 '' image rebase sub/c.qcow2 sub/moved.img
expect 0 '' image info --json sub/c.qcow2
holds 'j["base"] == "sub/moved.img" and j["base_state"] == "unchanged"'
right "what QEMU says after it" qemu-img check sub/c.qcow2

# In use.
exec 8<>a.qcow2
python3 - <<-'END'
	import fcntl, struct
	fcntl.fcntl(8, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)) # F_OFD_SETLK
END
expect 1 'a.qcow2: in use by another machine' image info a.qcow2
expect 1 'in use' image commit a.qcow2
exec 8>&-

# Reference counts: wrong in a file that says that they are right; and in one that was not closed.
spoil() { # FILE: one of somebody's, and one of nobody's
	python3 - "$1" <<-'END'
		import struct, sys
		with open(sys.argv[1], "r+b") as f:
		    def at(offset, form, value=None):
		        f.seek(offset)
		        if value is None:
		            return struct.unpack(form, f.read(struct.calcsize(form)))[0]
		        f.write(struct.pack(form, value))
		    block = at(at(48, ">Q"), ">Q")
		    at(block, ">H", 0)
		    at(block + 2 * 1900, ">H", 1)
	END
}
cp a.qcow2 wrong.qcow2
expect 0 '' image check wrong.qcow2
has '^in order$'
spoil wrong.qcow2
expect 1 '' bash -c '"$MIRRORBALL" image check wrong.qcow2; s=$?; echo "one line" >&2; exit $s'
has '1 clusters in use are counted as free, 1 that nobody uses are not'
expect 0 '' image check --repair wrong.qcow2
right "what QEMU says of what was mended" qemu-img check wrong.qcow2
expect 0 '' image check --json wrong.qcow2
holds 'not j["dirty"] and j["leaked_clusters"] == j["missing_clusters"] == 0'
for key in $(json_keys out); do
	grep -q "_${key}_" "$here/man/mirrorball-image.1.scd" || bad "mirrorball-image(1) lacks the key $key"
done
spoil wrong.qcow2
printf '\1' | dd of=wrong.qcow2 bs=1 seek=79 conv=notrunc status=none
expect 0 '' image check wrong.qcow2
has 'was not closed'
expect 0 '' image check --repair wrong.qcow2
right "what QEMU says of what was not closed" qemu-img check wrong.qcow2
truncate -s 8k wrong.qcow2
expect 1 'is damaged' image check wrong.qcow2
expect 1 'is damaged' image commit wrong.qcow2

# Through a link: the file is emptied, not the link replaced. What lies about is left alone.
rm -f ./*.qcow2
expect 0 '' image create --base base.img a.qcow2
in_qemu a.qcow2 'write -P 5 0 64k'
mv a.qcow2 sub/real.qcow2
expect 0 '' image rebase sub/real.qcow2 base.img
ln -s sub/real.qcow2 link.qcow2
touch sub/real.qcow2.new
expect 0 '' image commit link.qcow2
[ -L link.qcow2 ] && [ -e sub/real.qcow2.new ] || bad "commit through a link: $(ls -l . sub)"
expect 0 '' image info --json sub/real.qcow2
holds 'j["changed_bytes"] == 0 and j["base_state"] == "unchanged"'
[ "$(find . -name '*.new-*' | wc -l)" -eq 0 ] || bad "left something behind: $(ls . sub)"

# An overlay that does not say that its base is raw, and a base that does not look so.
qemu-img create -q -f qcow2 inner.qcow2 1M
expect 0 '' image create --base base.img --size 8M b.qcow2
python3 - <<-'END'
	data = bytearray(open("b.qcow2", "rb").read())
	at = data.index(bytes.fromhex("e2792aca"))
	data[at:at + 4] = b"\x12\x34\x56\x78"
	open("b.qcow2", "wb").write(data)
END
expect 0 '' image rebase b.qcow2 base.img
python3 - <<-'END'
	data = bytearray(open("b.qcow2", "rb").read())
	at = data.index(bytes.fromhex("e2792aca"))
	data[at:at + 4] = b"\x12\x34\x56\x78"
	data = data.replace(b"base.img", b"innr.img")
	open("b.qcow2", "wb").write(data)
END
mv inner.qcow2 innr.img
truncate -s %512 innr.img
inner_sum=$(sha256sum <innr.img)
expect 1 'is a qcow2 file; only raw ones' bash -c '"$MIRRORBALL" image commit b.qcow2 2>&1 | tail -n 1 >&2; exit ${PIPESTATUS[0]}'
[ "$inner_sum" = "$(sha256sum <innr.img)" ] || bad "the base was changed all the same"

# One of no base, and one of a base that is an overlay itself.
qemu-img create -q -f qcow2 own.qcow2 8M
truncate -s %512 own.qcow2
expect 1 'is a disk of its own' image rebase own.qcow2 base.img
expect 1 'is a disk of its own' image commit own.qcow2
last_line() { bash -c '"$MIRRORBALL" image "$@" 2>&1 | tail -n 1 >&2; exit ${PIPESTATUS[0]}' _ "$@"; }
expect 1 'is a qcow2 file; only raw ones' last_line create --base own.qcow2 new.qcow2
[ ! -e new.qcow2 ] || bad "made an overlay of an overlay"
# An interrupted commit, and another file in the base's place.
expect 0 '' image create --base base.img c.qcow2
in_qemu c.qcow2 'write -P 5 4M 1M'
cp base.img kept.img
! (ulimit -f 4200 && image commit c.qcow2) >/dev/null 2>&1 || bad "commit: no interruption"
head -c 2M /dev/zero >base.img
expect 1 'is another file now' image commit c.qcow2
cmp -s base.img <(head -c 2M /dev/zero) || bad "the other file was written"
cp kept.img base.img
expect 0 '' image commit c.qcow2

# Into the base: what QEMU makes of both is what is in it then; random, and at its end.
for seed in 1 2 3; do
	rm -f ./*.qcow2
	head -c 6M /dev/urandom >base.img
	expect 0 '' image create --base base.img --size 8M a.qcow2
	mapfile -t commands < <(python3 - "$seed" <<-'END'
		import random, sys
		random.seed(sys.argv[1])
		for i in range(60):
		    n = random.choice([1, 3, 8, 100, 500])
		    at = random.randrange(0, 16384 - n)
		    print(f"write {'-z' if random.random() < 0.2 else f'-P {i + 1}'} {at * 512} {n * 512}")
		print("write -P 99 8388096 512")
	END
	)
	in_qemu a.qcow2 "${commands[@]}"
	qemu-img convert -f qcow2 -O raw a.qcow2 wanted.raw
	if [ "$seed" -eq 3 ]; then
		# Ended in the middle: the file may not grow so far. It is told, and can be done again.
		n_checks=$((n_checks + 1))
		! (ulimit -f 4096 && image commit a.qcow2) >/dev/null 2>&1 || bad "commit: no interruption"
		expect 0 '' image info --json a.qcow2
		holds 'j["base_state"] == "committing"'
		expect 1 'a commit into its base was interrupted' image rebase a.qcow2 base.img
	fi
	expect 0 '' image commit a.qcow2
	right "what was committed" cmp wanted.raw base.img
	right "what is left" qemu-img check a.qcow2
	right "which is the same" qemu-img compare -f qcow2 -F raw a.qcow2 wanted.raw
	expect 0 '' image info --json a.qcow2
	holds 'j["changed_bytes"] == 0 and j["base_state"] == "unchanged"'
done
finish
