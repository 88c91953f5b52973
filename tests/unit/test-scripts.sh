#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every script of the project passes shellcheck, has a licence line and is executable.
# tests/run: once
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v shellcheck >/dev/null || {
	echo "needs shellcheck"
	exit 77
}
n_bad=0
scripts=()
while IFS= read -r -d '' file; do
	first=$(head -c 64 "$file" | tr -d '\0' | head -n 1)
	case $first in
	'#!/bin/bash'* | '#!/usr/bin/env bash'* | '#!/bin/sh'*)
		scripts+=("$file")
		[ -x "$file" ] || {
			echo "FAILED: $file is not executable"
			n_bad=1
		}
		;;
	'#!'*) ;;
	*) continue ;;
	esac
	sed -n 2p "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' || {
		echo "FAILED: $file has no licence line"
		n_bad=1
	}
done < <(find . -path ./.git -prune -o -path './build*' -prune -o -type f -print0)
[ "${#scripts[@]}" -gt 0 ]
shellcheck -S warning -x "${scripts[@]}" cli/mirrorball.bash || n_bad=1
echo "${#scripts[@]} scripts"
[ "$n_bad" -eq 0 ]
