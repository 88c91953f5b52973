#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The completion for bash, driven as readline drives it.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
: "${MIRRORBALL:=$here/build/cli/mirrorball}"
# shellcheck source=../../cli/mirrorball.bash
source "$here/cli/mirrorball.bash"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
touch vmlinuz debian.img
n_checks=0
n_bad=0

# Completes a line at its end: words split as bash does, at blanks and at "=" and ":". Sets COMPREPLY.
complete_line() {
	local line=$1 word rest
	COMP_LINE=$line
	COMP_POINT=${#line}
	COMP_WORDS=()
	for word in $line; do
		while [[ $word =~ ^([^=:]*)([=:]+)(.*)$ ]]; do
			[ -z "${BASH_REMATCH[1]}" ] || COMP_WORDS+=("${BASH_REMATCH[1]}")
			COMP_WORDS+=("${BASH_REMATCH[2]}")
			rest=${BASH_REMATCH[3]}
			word=$rest
		done
		[ -z "$word" ] || COMP_WORDS+=("$word")
	done
	if [[ $line == *' ' || $line == *[=:] ]]; then
		COMP_WORDS+=("")
	fi
	COMP_WORDS[0]=$MIRRORBALL
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
	COMPREPLY=()
	_mirrorball
}

# $1: a line, rest: what must be offered; "!word": what must not.
offers() {
	local line=$1 want
	shift
	complete_line "$line"
	for want in "$@"; do
		n_checks=$((n_checks + 1))
		if [[ $want == '!'* ]]; then
			[[ " ${COMPREPLY[*]} " != *" ${want#!} "* ]] || {
				echo "FAILED: '$line' offers ${want#!}: ${COMPREPLY[*]}"
				n_bad=$((n_bad + 1))
			}
		elif [[ " ${COMPREPLY[*]} " != *" $want "* ]]; then
			echo "FAILED: '$line' does not offer $want: ${COMPREPLY[*]}"
			n_bad=$((n_bad + 1))
		fi
	done
}

offers 'mirrorball ' run ps stat heat numa sim snapshot restore clone doctor help --version
offers 'mirrorball d' doctor '!run'
offers 'mirrorball help ' run ps stat heat numa sim image snapshot restore clone doctor
mkdir snap
offers 'mirrorball restore s' snap
offers 'mirrorball restore snap --n' --name '!snap'
offers 'mirrorball clone s' snap '!--number'
offers 'mirrorball sim --program ' private phase mixed '!--json'
offers 'mirrorball sim --machine vm' vmlinuz
offers 'mirrorball sim --start w' worst '!first'
offers 'mirrorball image c' create check commit '!info'
offers 'mirrorball image create --base d' debian.img
offers 'mirrorball image commit d' debian.img '!--base'
offers 'mirrorball run --disk debian.img,o' debian.img,overlay=
# Bash keeps what is before "=".
offers 'mirrorball run --disk debian.img,overlay=d' debian.img
offers 'mirrorball doctor --' --json --help
offers 'mirrorball run ' splash --kernel --cpus
offers 'mirrorball run --me' --memory --memory-overcommit '!--cpus'
offers 'mirrorball run --console ' serial virtio off '!--kernel'
offers 'mirrorball run --free-page-reporting ' on off '!--kernel'
offers 'mirrorball run --views a' auto
offers 'mirrorball run --placement s' spread
offers 'mirrorball run --kernel vm' vmlinuz
offers 'mirrorball run --disk d' debian.img
offers 'mirrorball run --disk nb' nbd:// nbd+unix:/// '!debian.img'
offers 'mirrorball run --disk debian.img,' debian.img,ro debian.img,queues=
offers 'mirrorball run --disk debian.img,ro,s' debian.img,ro,serial=
offers 'mirrorball run --net t' tap= tap-fd=
offers 'mirrorball run --net passt,' passt,mac= passt,arg=
# Bash keeps "tap=" and gets the rest.
offers 'mirrorball run --net tap=x,q' x,queues= '!tap=x,queues='
offers 'mirrorball run --kernel splash ' --append
offers 'mirrorball run splash ' --list
mapfile -t programs < <("$MIRRORBALL" run splash --list | sed -n 's/^\([a-z][a-z0-9_-]*\) .*/\1/p')
[ "${#programs[@]}" -ge 8 ] || {
	echo "FAILED: splash has only ${programs[*]}"
	n_bad=$((n_bad + 1))
}
offers 'mirrorball run --cpus 4 splash ' "${programs[@]}"
offers 'mirrorball run splash ra' radix '!hello'
offers 'mirrorball run splash radix ' '!--cpus' '!radix'

# Machines, by the sockets that there are; not those of processes that are gone.
if [ "$(id -u)" = 0 ]; then
	sockets=/run/mirrorball
else
	export XDG_RUNTIME_DIR=$work
	sockets=$work/mirrorball
fi
if mkdir -p "$sockets"; then
	python3 - "$sockets" "$$" <<-'END'
		import os, socket, sys
		os.chdir(sys.argv[1])
		for name in f"mb-completion.1.{sys.argv[2]}", "mb-completion.gone.4194305":
		    if os.path.exists(name):
		        os.unlink(name)
		    socket.socket(socket.AF_UNIX).bind(name)
	END
	offers 'mirrorball stat mb-c' "mb-completion.1" '!mb-completion.gone'
	offers "mirrorball stat $$" "$$"
	offers 'mirrorball stat ' "mb-completion.1" --json "!$$"
	offers 'mirrorball stat --json mb-c' "mb-completion.1"
	offers 'mirrorball stat mb-completion.1 ' --json "!mb-completion.1"
	offers 'mirrorball snapshot mb-c' "mb-completion.1"
	offers 'mirrorball snapshot mb-completion.1 sn' snap
	offers 'mirrorball clone mb-c' "mb-completion.1"
	offers 'mirrorball heat mb-c' "mb-completion.1"
	offers 'mirrorball heat --seconds 5 mb-c' "mb-completion.1"
	offers 'mirrorball heat mb-completion.1 --seconds 5 ' --json "!mb-completion.1"
	rm -f "$sockets/mb-completion.1.$$" "$sockets/mb-completion.gone.4194305"
fi

# Every option of --help, and no other.
for command in run ps stat heat numa sim image snapshot restore clone doctor; do
	mapfile -t options < <("$MIRRORBALL" "$command" --help | sed -n 's/^  \(-h, \)\{0,1\}\(--[a-z-]*\).*/\2/p')
	[ "${#options[@]}" -ge 3 ] || {
		echo "FAILED: $command --help shows ${options[*]}"
		n_bad=$((n_bad + 1))
	}
	offers "mirrorball $command --" "${options[@]}"
	[ "${#COMPREPLY[@]}" -eq "${#options[@]}" ] || {
		echo "FAILED: $command offers ${COMPREPLY[*]}, but --help has ${options[*]}"
		n_bad=$((n_bad + 1))
	}
done
echo "$n_checks checks, $n_bad failed"
[ "$n_bad" -eq 0 ]
