#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A guest that sends garbage to every device register and queue neither crashes, hangs nor grows the monitor.
# MB_FUZZ_MS: how long each round takes. MB_FUZZ_ROUNDS: how many there are of each kind.
source "$(dirname "$0")/lib.sh"
need_kvm
ms=${MB_FUZZ_MS:-4000}
rounds=${MB_FUZZ_ROUNDS:-1}
limit=$((ms * 4 / 1000 + 60))

nets=()
if [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ] && ip tuntap add dev "mbf$$" mode tap 2>/dev/null; then
	cleanups+=("ip link del mbf$$")
	ip link set "mbf$$" up
	nets+=(--net "tap=mbf$$")
fi
# A file system with less room than the disk has: the guest's writes fail, and nothing else.
full=
if [ "$(id -u)" = 0 ] && mkdir full && mount -t tmpfs -o size=2M tmpfs full 2>/dev/null; then
	cleanups+=("umount $work/full")
	full=full/disk.img
fi
# What was written there before is gone.
make_room() { rm -f full/* && truncate -s 64M "$full"; }
# What a server has; a machine does not lock it.
network=
if command -v nbdkit >/dev/null && nbdkit -U "$work/nbd.sock" -P "$work/nbd.pid" memory 16M 2>/dev/null; then
	cleanups+=('kill "$(cat "$work/nbd.pid")"')
	network="nbd+unix:///?socket=$work/nbd.sock"
	"$MIRRORBALL" run --dry-run --disk "$network" splash hello >/dev/null 2>&1 || network= # built without
fi
truncate -s 16M disk.img
truncate -s 16M readonly.img
before=$(sha256sum readonly.img)

# Runs the guest and watches the monitor: what of its memory is not the guest's (RssAnon) at the start and at the
# end. $1: name, $2: its most growth in KiB, rest: arguments. ends_ms: when it is ended from outside.
watched() {
	local name=$1 growth=$2 pid got=0 first='' last='' value ends=$limit
	shift 2
	n_checks=$((n_checks + 1))
	[ -z "${ends_ms-}" ] || ends=$((ends_ms / 1000)).$(printf %03d $((ends_ms % 1000)))
	timeout -k 5 "$ends" "$MIRRORBALL" run --memory 64M "$@" </dev/null >.out 2>&1 &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.5
		value=$(awk '/^RssAnon/ { print $2 }' "/proc/$(pgrep -P "$pid" | head -n 1)/status" 2>/dev/null) || value=
		[ -z "$value" ] || last=$value
		[ -n "$first" ] || first=$last
	done
	wait "$pid" || got=$?
	out=$(tr -d '\0' <.out)
	seed=$(grep -oE 'seed=?[ =][0-9a-fx]+' <<<"$out" | head -n 1 || true)
	case $got in
	0 | 4) ;; # powered off or crashed, which is its right
	124) [ -n "${ends_ms-}" ] || bad "$name: no end within $ends s ($seed)" ;;
	*) bad "$name: status $got ($seed): $(tail -c 3000 <<<"$out")" ;;
	esac
	look "$got" '' "$got" "$name ($seed)"
	if [ -n "$first" ] && [ $((last - first)) -gt "$growth" ] && [[ ${MB_BUILD-} != */asan ]]; then
		bad "$name: the monitor grew from $first to $last KiB ($seed)"
	fi
	lines=$(grep -c '^mirrorball: ' <<<"$out" || true)
	[ "$lines" -le $((40 + ms / 100)) ] || bad "$name: the guest made the monitor say $lines lines"
	echo "$name: status $got, ${first:-?} to ${last:-?} KiB, $lines lines, $seed"
}

for ((round = 0; round < rounds; round++)); do
	for cpus in 1 4; do
		watched "fuzz, $cpus vCPUs" 8192 --cpus $cpus --console virtio --disk disk.img --disk readonly.img,ro --pmem readonly.img \
			"${nets[@]}" splash fuzz "ms=$ms"
	done
	ends_ms=$ms watched 'fuzz with resets' 8192 --cpus 2 --disk disk.img --pmem readonly.img "${nets[@]}" splash fuzz "ms=$ms" reset=1
	grep -qE '^mirrorball: disk: .* [1-9][0-9]* resets?\b' <<<"$out" || bad "fuzz with resets: no reset ($seed): $out"
	echo "fuzz with resets: $(grep -oE '[0-9]+ resets?' <<<"$out")"
	[ -z "$full" ] || make_room
	[ -z "$full" ] || watched 'fuzz, full disk' 8192 --cpus 2 --disk "$full" splash fuzz "ms=$ms"
	watched 'fuzz, base and overlay' 8192 --cpus 4 --disk readonly.img,overlay=fuzz.qcow2 --disk readonly.img,cow=memory \
		splash fuzz "ms=$ms"
	ends_ms=$ms watched 'fuzz with resets, overlay' 8192 --cpus 2 --disk readonly.img,overlay=fuzz.qcow2 splash fuzz "ms=$ms" reset=1
	expect 0 '^in order$' "$MIRRORBALL" image check fuzz.qcow2
	if command -v qemu-img >/dev/null; then expect 0 'No errors' qemu-img check fuzz.qcow2; fi
	if [ -n "$network" ]; then
		# Bounce buffers: 16 MiB of each queue of each disk.
		watched 'fuzz, network disk' 81920 --cpus 2 --disk "$network,ro" --disk "$network,cow=memory" splash fuzz "ms=$ms"
		ends_ms=$ms watched 'fuzz with resets, network disk' 81920 --cpus 2 --disk "$network" splash fuzz "ms=$ms" reset=1
	fi
	[ -z "$full" ] || make_room
	[ -z "$full" ] || watched 'fuzz, full disk, overlay' 8192 --cpus 2 --disk readonly.img,overlay=full/fuzz.qcow2 splash fuzz "ms=$ms"
done
[ "$before" = "$(sha256sum readonly.img)" ] || bad "a read-only disk was written"
[ "$(stat -c %s disk.img)" = $((16 << 20)) ] || bad "the disk changed its size"
finish
