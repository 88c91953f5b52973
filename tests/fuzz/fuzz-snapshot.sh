#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Snapshots with garbage in them and a checksum that fits: a machine comes of it that runs, or that ends, or a message; the
# monitor goes on or says why not. MB_FUZZ_SECONDS: how long; MB_FUZZ_SEED: the seed, which is printed. Best with a build with sanitizers
# (MIRRORBALL).
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
: "${MIRRORBALL:=$here/build/cli/mirrorball}"
if [ ! -x "$MIRRORBALL" ] || [ ! -w /dev/kvm ]; then
	echo "needs $MIRRORBALL and /dev/kvm"
	exit 77
fi
work=$(mktemp -d)
pid=
cleanup() {
	[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
truncate -s 4M disk.img
"$MIRRORBALL" run --memory 32M --cpus 2 --name "fuzz-$$" --disk disk.img,cow --console virtio splash fuzz ms=60000 \
	</dev/null >/dev/null 2>&1 &
pid=$!
for _ in {1..100}; do
	sleep 0.1
	"$MIRRORBALL" stat "fuzz-$$" >/dev/null 2>&1 && break
done
sleep 1
"$MIRRORBALL" snapshot "fuzz-$$" good
kill -QUIT "$pid"
wait "$pid" 2>/dev/null || true
pid=
python3 - "$MIRRORBALL" "${MB_FUZZ_SECONDS:-30}" "${MB_FUZZ_SEED:-$RANDOM}" <<'END'
import os, random, shutil, signal, struct, subprocess, sys, time

program, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
print("seed", seed)
rng = random.Random(seed)
table = []
for i in range(256):
    for _ in range(8):
        i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
    table.append(i)

def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF

good = open("good/state", "rb").read()
shutil.copytree("good", "bad", copy_function=shutil.copy2)
os.chmod("bad/state", 0o600)
# Where parts begin, so that each gets its share, however short.
parts, at = [], 64
while at < len(good):
    length = struct.unpack_from("<I", good, at + 16)[0]
    parts.append((good[at : at + 12].rstrip(b"\0").decode(), at, 20 + length))
    at += 20 + length
ends, n, end = {}, 0, time.monotonic() + seconds
while time.monotonic() < end:
    state = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8))):
        name, start, length = rng.choice(parts)
        at = start + rng.randrange(length)
        kind = rng.randrange(3)
        if kind == 0:
            state[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            state[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        else:
            value = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32))))
            state[at : at + 4] = value[: len(state) - at]
    if rng.randrange(16) == 0:
        del state[rng.randrange(64, len(state)) :]
        struct.pack_into("<Q", state, 16, len(state))
    struct.pack_into("<I", state, 12, 0)
    struct.pack_into("<I", state, 12, crc32c(state))
    with open("bad/state", "wb") as f:
        f.write(state)
    p = subprocess.Popen([program, "restore", "bad"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    try:
        said = p.communicate(timeout=0.5)[0]
    except subprocess.TimeoutExpired:
        p.send_signal(signal.SIGQUIT)
        try:
            said = p.communicate(timeout=20)[0]
        except subprocess.TimeoutExpired:
            p.kill()
            said = p.communicate()[0]
            p.returncode = "hangs"
    n += 1
    ends[p.returncode] = ends.get(p.returncode, 0) + 1
    # -3: our own signal, before the machine takes it.
    fine = p.returncode in (-3, 0, 1, 3, 4, 5, 131) or (isinstance(p.returncode, int) and 64 <= p.returncode <= 125)
    if not fine or b"Sanitizer" in said or b"runtime error:" in said:
        print("FAILED: status", p.returncode, "after", n, said[-3000:].decode(errors="replace"))
        shutil.copy("bad/state", "/tmp/fuzz-snapshot.state")
        sys.exit(1)
print(n, "snapshots, by exit status:", dict(sorted(ends.items(), key=str)))
END
