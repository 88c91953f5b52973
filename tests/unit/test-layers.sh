#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An include in the wrong direction does not compile, with the options that the build really uses, and every
# header compiles alone, with gcc and with clang.
#
#   cli -> src -> devices -> kvm
#           '--> numa ----'
# tests/run: once
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${MB_BUILD:=$PWD/build}"
[ -e "$MB_BUILD/compile_commands.json" ] || {
	echo "no build in $MB_BUILD"
	exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_checks=0
n_bad=0

declare -A may=([kvm]="kvm" [numa]="numa kvm" [devices]="devices kvm" [src]="src devices numa kvm"
	[cli]="src devices numa kvm")

# The include paths of a file of the layer, absolute, one a line.
includes_of() {
	python3 - "$MB_BUILD/compile_commands.json" "$1" <<'END'
import json, os, shlex, sys
for entry in json.load(open(sys.argv[1])):
    path = os.path.normpath(os.path.join(entry["directory"], entry["file"]))
    if os.path.relpath(path).split("/")[0] == sys.argv[2]:
        for word in shlex.split(entry["command"]):
            if word.startswith("-I"):
                print("-I" + os.path.normpath(os.path.join(entry["directory"], word[2:])))
        break
END
}

compiles() { # compiler header include-paths...
	printf '#include <mirrorball/%s>\n' "$2" >"$work/one.c"
	"$1" -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Wundef -Wno-unused-parameter -Werror -fsyntax-only "${@:3}" \
		"$work/one.c" >"$work/said" 2>&1
}

compilers=(gcc)
if command -v clang >/dev/null; then
	compilers+=(clang)
fi
for layer in kvm numa devices src cli; do
	mapfile -t include < <(includes_of "$layer")
	[ ${#include[@]} -gt 0 ] || {
		echo "FAILED: nothing of $layer/ is built"
		n_bad=$((n_bad + 1))
		continue
	}
	for path in include/*/mirrorball/*.h; do
		owner=${path#include/}
		owner=${owner%%/*}
		header=${path##*/}
		n_checks=$((n_checks + 1))
		if [[ " ${may[$layer]} " == *" $owner "* ]]; then
			for cc in "${compilers[@]}"; do
				compiles "$cc" "$header" "${include[@]}" || {
					echo "FAILED: $layer/ with $cc: $owner's $header does not compile alone"
					cat "$work/said"
					n_bad=$((n_bad + 1))
				}
			done
		elif compiles gcc "$header" "${include[@]}"; then
			echo "FAILED: $layer/ may include $owner's $header"
			n_bad=$((n_bad + 1))
		elif ! grep -q 'No such file' "$work/said"; then
			echo "FAILED: $layer/ with $owner's $header: not for a missing path:"
			cat "$work/said"
			n_bad=$((n_bad + 1))
		fi
	done
done

# Two headers of one name would shadow each other.
doubles=$(printf '%s\n' include/*/mirrorball/*.h | sed 's|.*/||' | sort | uniq -d)
[ -z "$doubles" ] || {
	echo "FAILED: several layers have $doubles"
	n_bad=$((n_bad + 1))
}
echo "$n_checks checks with ${compilers[*]}, $n_bad failed"
[ "$n_bad" -eq 0 ]
