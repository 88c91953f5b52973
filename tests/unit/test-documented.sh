#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# --help and the man pages know the same options, ids and programs.
source "$(dirname "$0")/lib.sh"

for command in run ps stat heat numa sim snapshot restore clone doctor; do
	page=$here/man/mirrorball-$command.1.scd
	in_help=$("$MIRRORBALL" "$command" --help | sed -n 's/^  \(-h, \)\{0,1\}\(--[a-z-]*\).*/\2/p' | sort -u)
	# An option has a paragraph that begins with it.
	in_page=$(grep -E '^\*-' "$page" | grep -oE -- '\*--[a-z-]+' | tr -d '*' | sort -u)
	[ "$in_help" = "$in_page" ] || bad "$command: --help and $page differ:
$(diff <(echo "$in_help") <(echo "$in_page") || true)"
	# What takes a value in one does in the other.
	while read -r option value; do
		if [ -n "$value" ]; then
			grep -qE -- "^\*$option\* [_*]" "$page" || bad "$page: $option has no value, --help: $value"
		else
			grep -qE -- "$option\*$" "$page" || bad "$page: $option takes no value"
		fi
	done < <("$MIRRORBALL" "$command" --help | sed -nE 's/^  (-h, )?(--[a-z-]+) ?([^ ]*).*/\2 \3/p')
	"$MIRRORBALL" "$command" --help | awk 'length > 80 { exit 1 }' || bad "$command --help is wider than 80 columns"
	diff <("$MIRRORBALL" "$command" --help) <("$MIRRORBALL" help "$command") || bad "help $command differs"
	diff <("$MIRRORBALL" "$command" --help) <("$MIRRORBALL" "$command" -h) || bad "$command -h differs"
done

# Numbers that a program can be told from the text.
for status in 0 1 2 3 4 5 6; do
	grep -qE "\*$status\*" "$here/man/mirrorball-run.1.scd" || bad "mirrorball-run(1) lacks status $status"
	grep -qE "\*$status\*" "$here/man/mirrorball.1.scd" || bad "mirrorball(1) lacks status $status"
done
version=$(sed -n "s/^  version: '\(.*\)',/\1/p" "$here/meson.build")
[ "$("$MIRRORBALL" --version)" = "mirrorball $version" ] || bad "--version is not $version"

# The keys of doctor's JSON are those of its page.
"$MIRRORBALL" doctor --json >doctor.json || true
for key in $(json_keys doctor.json); do
	grep -qE "[_*]${key}[_*]" "$here/man/mirrorball-doctor.1.scd" || bad "mirrorball-doctor(1) lacks the key $key"
done

if command -v scdoc >/dev/null; then
	for page in "$here"/man/*.scd; do
		scdoc <"$page" >/dev/null || bad "$page is not scdoc"
	done
fi
echo "$n_bad failed"
[ "$n_bad" -eq 0 ]
