#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# --dry-run shows the machine that a run would start, and changes nothing.
source "$(dirname "$0")/lib.sh"
need_kvm
guest hello
truncate -s 3M web1.img 'a,b.img'
printf 'contents' | dd of=web1.img conv=notrunc status=none
traces() { # what a backup or a curious person looks at
	sha256sum web1.img
	stat -c '%n %s %b %y %z' web1.img a,b.img
}
before=$(traces)

expect 0 '^splash +radix keys=1M$' "$MIRRORBALL" run --dry-run splash radix keys=1M
! grep -q ops <<<"$out" || bad "--dry-run ran the guest"
expect 0 '^kernel +hello.elf' "$MIRRORBALL" run --dry-run --kernel hello.elf --disk web1.img
grep -qE '^name +web1$' <<<"$out" || bad "no name from the disk: $out"
expect 1 'no such file' "$MIRRORBALL" run --dry-run --kernel missing
expect 1 'no such file' "$MIRRORBALL" run --dry-run --disk missing splash hello

expect 0 '"name": "x"' "$MIRRORBALL" run --dry-run --json --name x --cpus 3 --memory 64M --views auto \
	--kernel hello.elf --append 'quiet "a b"' --no-reboot --console virtio --disk web1.img,serial=S1,direct=off \
	--pmem a,b.img \
	--disk a,,b.img,ro,queues=2 --quiet
python3 - "$work/.out" <<'END' || bad "--json is not what was asked for: $out"
import json, sys
got = json.load(open(sys.argv[1]))
views = got.pop("host_views")
assert views >= 1, views
plain = {"cow": False, "cow_dir": None, "overlay": None}
want = {
    "format": 1, "name": "x",
    "guest": {"kind": "kernel", "kernel": "hello.elf", "initrd": None, "append": 'quiet "a b"'},
    "vcpus": 3, "memory_bytes": 64 << 20, "memory_overcommit": False, "views": "auto",
    "track": "auto", "migrate": "auto", "replica_bytes": "auto", "share": True, "trust_group": None, "content_ppm": "auto", "placement": "auto",
    "disks": [
        {"path": "web1.img", "size_bytes": 3 << 20, "readonly": False, **plain, "direct": False, "serial": "S1", "queues": 3},
        {"path": "a,b.img", "size_bytes": 3 << 20, "readonly": True, **plain, "direct": True, "serial": None, "queues": 2},
    ],
    "pmems": [{"path": "a,b.img", "address": 0x100000000, "size_bytes": 4 << 20}],
    "nets": [], "console": "virtio", "free_page_reporting": True, "reboot": False, "quiet": True,
}
assert got == want, (got, want)
END
# Two of one base: an overlay that is not there is not made, and one that is there is left alone.
"$MIRRORBALL" image create --base a,b.img there.qcow2 || bad "no overlay"
there=$(sha256sum there.qcow2; stat -c '%s %y %z' there.qcow2)
expect 0 '"overlay": "there.qcow2"' "$MIRRORBALL" run --dry-run --json --disk a,,b.img,overlay=new.qcow2 \
	--disk a,,b.img,overlay=there.qcow2 --disk a,,b.img,cow=memory --disk a,,b.img,cow
grep -q '"name": "new"' <<<"$out" || bad "no name from the overlay: $out"
[ ! -e new.qcow2 ] || bad "--dry-run made an overlay"
[ "$there" = "$(sha256sum there.qcow2; stat -c '%s %y %z' there.qcow2)" ] || bad "--dry-run changed an overlay"
expect 2 'is given twice' "$MIRRORBALL" run --dry-run --disk a,,b.img,overlay=o --disk web1.img,overlay=o
expect 2 'is given twice' "$MIRRORBALL" run --dry-run --disk a,,b.img --disk a,,b.img,cow
expect 2 '--pmem web1.img is a --disk that is written' "$MIRRORBALL" run --dry-run --disk web1.img --pmem web1.img
expect 0 '^pmem 0 +web1.img, 4M at 0x100000000, read-only$' "$MIRRORBALL" run --dry-run --pmem web1.img splash hello
expect 1 'pmem: disk missing: no such file' "$MIRRORBALL" run --dry-run --pmem missing splash hello
[ "$before" = "$(traces)" ] || bad "--dry-run changed a disk: $before; now $(traces)"
expect 0 '"kind": "splash"' "$MIRRORBALL" run --dry-run --json
for words in 'run --dry-run' 'run --dry-run --json' 'run --help' 'run splash --list' doctor 'doctor --json' help --version; do
	# shellcheck disable=SC2086 # words
	expect 1 '^mirrorball: standard output: No space left on device; not everything was written$' \
		bash -c '"$@" >/dev/full' _ "$MIRRORBALL" $words
	[ "$(wc -l <<<"$out")" = 1 ] || bad "$words: not one line: $out"
done
finish
