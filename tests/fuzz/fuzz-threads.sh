#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The hostile guest while ThreadSanitizer watches the monitor's threads: no data race. MB_TSAN: a build with
# -Db_sanitize=thread. MB_FUZZ_MS: how long each round takes.
set -euo pipefail
export MB_BUILD=${MB_TSAN:-$(dirname "$0")/../../build/tsan}
export MIRRORBALL=$MB_BUILD/cli/mirrorball
# 98 is no status of ours.
export TSAN_OPTIONS=exitcode=98:halt_on_error=0
source "$(dirname "$0")/../kvm/lib.sh"
need_kvm
ms=${MB_FUZZ_MS:-4000}

nets=()
if [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ] && ip tuntap add dev "mbt$$" mode tap 2>/dev/null; then
	cleanups+=("ip link del mbt$$")
	ip link set "mbt$$" up
	nets+=(--net "tap=mbt$$")
fi
truncate -s 16M disk.img

# $1 status, 124: runs until it is ended; rest: arguments
races() {
	local want=$1 got=0 limit=$((ms / 1000 + 60))
	shift
	[ "$want" != 124 ] || limit=$((ms / 1000 + 2))
	n_checks=$((n_checks + 1))
	timeout -s INT -k 20 "$limit" "$MIRRORBALL" run --memory 64M --cpus 4 --disk disk.img "$@" \
		>.out 2>&1 </dev/null || got=$?
	out=$(tr -d '\0' <.out)
	look "$want" '' "$got" "$*"
	if grep -q ThreadSanitizer <<<"$out"; then
		bad "$*: ThreadSanitizer spoke: $(grep -A 30 ThreadSanitizer <<<"$out" | head -c 6000)"
	fi
	echo "$*: status $got, $(tail -n 1 <<<"$out")"
}

races 0 --console virtio "${nets[@]}" splash fuzz "ms=$ms"
races 0 "${nets[@]}" splash fuzz "ms=$ms"
races 124 --console virtio "${nets[@]}" splash fuzz "ms=$((ms * 10))" reset=1
races 0 --console virtio splash demo
finish
