# SPDX-License-Identifier: Apache-2.0
# Completion of mirrorball(1) for bash. Needs nothing but bash; installed as
# share/bash-completion/completions/mirrorball.

_mirrorball_words() {
	mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

# $1: what is typed of a comma-separated value, $2: the parts that may follow.
_mirrorball_parts() {
	local done=${1%,*} last=${1##*,}

	mapfile -t COMPREPLY < <(compgen -P "$done," -W "$2" -- "$last")
	compopt -o nospace 2>/dev/null || true
}

_mirrorball_files() {
	mapfile -t COMPREPLY < <(compgen -f -- "$1")
	compopt -o filenames 2>/dev/null || true
}

# Bash splits words at "=" and ":"; this puts them together again: the word under the cursor into
# `cur`, and into `glued` what of it bash leaves in place.
_mirrorball_current() {
	local line=${COMP_LINE:0:COMP_POINT}

	cur=${line##*[[:space:]]}
	glued=
	if [[ $cur == *[=:]* ]]; then
		glued=${cur%"${cur##*[=:]}"}
	fi
}

# Names of this user's running machines, and PIDs where one is being typed; from the names of their control sockets,
# because asking a machine may take long.
_mirrorball_machines() {
	local dirs=("/tmp/mirrorball-$EUID") words=() dir socket file

	if [[ $EUID == 0 ]]; then
		dirs=(/run/mirrorball)
	elif [[ ${XDG_RUNTIME_DIR-} == /* ]]; then
		dirs+=("$XDG_RUNTIME_DIR/mirrorball")
	fi
	for dir in "${dirs[@]}"; do
		for socket in "$dir"/*.*; do
			file=${socket##*/}
			[[ -S $socket && -d /proc/${file##*.} ]] || continue
			words+=("${file%.*}")
			[[ $cur != [1-9]* ]] || words+=("${file##*.}")
		done
	done
	_mirrorball_words "${words[*]} $1" "$cur"
}

# $1: options of a command that takes a machine.
_mirrorball_one_machine() {
	local options=$1 word

	for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do
		if [[ $word != -* ]]; then
			_mirrorball_words "$options" "$cur"
			return
		fi
	done
	if [[ $cur == -* ]]; then
		_mirrorball_words "$options" "$cur"
	else
		_mirrorball_machines "$options"
	fi
}

_mirrorball_run() {
	local options="--kernel --initrd --append --no-reboot --cpus --memory --memory-overcommit
		--views --track --migrate --replicas --share --trust-group --content-budget --placement --name --disk --pmem --net --console --free-page-reporting --dry-run --json --quiet --help --version"
	local i word

	# After "splash" comes one of its programs, and then words that only it knows.
	for ((i = 2; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		case $word in
		--kernel | --initrd | --append | --cpus | --memory | --views | --track | --migrate | --replicas | --share | --trust-group | --content-budget | --placement | --name | --disk | --pmem | --net | --console | --free-page-reporting)
			((++i)) ;;
		splash)
			if ((i + 1 == COMP_CWORD)); then
				_mirrorball_words "--list $("${COMP_WORDS[0]}" run splash --list 2>/dev/null |
					sed -n 's/^\([a-z][a-z0-9_-]*\).*/\1/p')" "$cur"
			fi
			return
			;;
		esac
	done

	case $prev in
	--kernel | --initrd | --pmem) _mirrorball_files "$cur" ;;
	--console) _mirrorball_words "serial virtio off" "$cur" ;;
	--free-page-reporting) _mirrorball_words "on off" "$cur" ;;
	--views) _mirrorball_words "auto 1 2" "$cur" ;;
	--track) _mirrorball_words "auto on off auto,budget= on,budget=" "$cur" ;;
	--migrate) _mirrorball_words "auto on off storm" "$cur" ;;
	--replicas) _mirrorball_words "auto off 256M 1G 25% 100%" "$cur" ;;
	--share) _mirrorball_words "on off" "$cur" ;;
	--placement) _mirrorball_words "auto nodes= spread none" "$cur" ;;
	--cpus) _mirrorball_words "1 2 4 8" "$cur" ;;
	--memory) _mirrorball_words "512M 1G 2G 4G 8G 16G" "$cur" ;;
	--content-budget) _mirrorball_words "off 1 2 5" "$cur" ;;
	--append | --name | --trust-group) COMPREPLY=() ;;
	--disk)
		if [[ $cur == *,overlay=* ]]; then
			mapfile -t COMPREPLY < <(compgen -P "${cur%=*}=" -f -- "${cur##*=}")
		elif [[ $cur == *,* ]]; then
			_mirrorball_parts "$cur" "ro cow cow=memory overlay= direct=on direct=off serial= queues="
		else
			_mirrorball_files "$cur"
			# Only where it can be nothing else: hardly a file is called so. Bash cuts at a colon.
			if [[ $cur == nb* && $cur != *:* ]]; then
				mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "nbd:// nbds:// nbd+unix:///" -- "$cur")
			fi
		fi
		;;
	--net)
		if [[ $cur == passt,* ]]; then
			_mirrorball_parts "$cur" "mac= arg="
		elif [[ $cur == tap=*,* ]]; then
			_mirrorball_parts "$cur" "mac= queues="
		elif [[ $cur == tap=* ]]; then
			local taps=() dir
			for dir in /sys/class/net/*/tun_flags; do
				[[ -e $dir ]] || continue
				dir=${dir%/tun_flags}
				taps+=("tap=${dir##*/}")
			done
			_mirrorball_words "${taps[*]}" "$cur"
		else
			_mirrorball_words "tap= tap-fd= passt" "$cur"
			compopt -o nospace 2>/dev/null || true
		fi
		;;
	*) _mirrorball_words "$options splash" "$cur" ;;
	esac
}

_mirrorball_heat() {
	local options="--once --json --svg --interval --seconds --help --version"
	local word before='' named=''

	for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do
		if [[ $word != -* && $before != --svg && $before != --interval && $before != --seconds ]]; then
			named=yes
		fi
		before=$word
	done
	case $prev in
	--svg) _mirrorball_files "$cur" ;;
	--interval) _mirrorball_words "0.2 0.5 1 5" "$cur" ;;
	--seconds) _mirrorball_words "10 60 600" "$cur" ;;
	*)
		if [[ -n $named || $cur == -* ]]; then
			_mirrorball_words "$options" "$cur"
		else
			_mirrorball_machines "$options"
		fi
		;;
	esac
}

_mirrorball_sim() {
	local options="--program --machines --cpus --memory --rate --period --trace --machine --nodes --span
		--views --start --seconds --interval --seed --json --svg --help --version"

	case $prev in
	--program) _mirrorball_words "private readshare writeshare phase radix idle mixed" "$cur" ;;
	--start) _mirrorball_words "first interleave worst best" "$cur" ;;
	--trace | --machine | --svg) _mirrorball_files "$cur" ;;
	--nodes | --span | --views | --cpus) _mirrorball_words "1 2 4 8" "$cur" ;;
	--machines) _mirrorball_words "1 10 100" "$cur" ;;
	--memory) _mirrorball_words "4G 64G 1T" "$cur" ;;
	--rate | --seed) COMPREPLY=() ;;
	--period | --seconds) _mirrorball_words "10 60 600" "$cur" ;;
	--interval) _mirrorball_words "0.5 1 5" "$cur" ;;
	*) _mirrorball_words "$options" "$cur" ;;
	esac
}

_mirrorball_image() {
	local options="--base --size --repair --json --help --version"

	case $prev in
	--base) _mirrorball_files "$cur" ;;
	--size) _mirrorball_words "1G 8G 64G" "$cur" ;;
	*)
		if [[ $cur == -* ]]; then
			_mirrorball_words "$options" "$cur"
		elif ((COMP_CWORD == 2)); then
			_mirrorball_words "create info check commit rebase $options" "$cur"
		else
			_mirrorball_files "$cur"
		fi
		;;
	esac
}

# Of a machine to a directory.
_mirrorball_snapshot() {
	local options="--json --help --version" word n=0

	for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do
		[[ $word == -* ]] || n=$((n + 1))
	done
	if [[ $cur == -* ]] || ((n > 1)); then
		_mirrorball_words "$options" "$cur"
	elif ((n)); then
		_mirrorball_files "$cur"
	else
		_mirrorball_machines "$options"
	fi
}

_mirrorball_restore() {
	case $prev in
	--name) ;;
	*)
		if [[ $cur == -* ]]; then
			_mirrorball_words "--name --check --quiet --help --version" "$cur"
		else
			_mirrorball_files "$cur"
		fi
		;;
	esac
}

_mirrorball_clone() {
	local machines

	case $prev in
	--number | -n | --name) ;;
	--output) _mirrorball_files "$cur" ;;
	*)
		if [[ $cur == -* ]]; then
			_mirrorball_words "--number --name --output --help --version" "$cur"
			return
		fi
		_mirrorball_machines ""
		machines=("${COMPREPLY[@]}")
		_mirrorball_files "$cur"
		COMPREPLY+=("${machines[@]}")
		;;
	esac
}

_mirrorball() {
	local cur prev=${COMP_WORDS[COMP_CWORD - 1]} glued i

	COMPREPLY=()
	_mirrorball_current
	# "--net tap=x" is four words to bash: the option is the word before them.
	if [[ -n $glued ]]; then
		for ((i = COMP_CWORD; i > 1; i--)); do
			if [[ ${COMP_WORDS[i]} == --* ]]; then
				prev=${COMP_WORDS[i]}
				break
			fi
		done
	fi
	if ((COMP_CWORD == 1)); then
		_mirrorball_words "run ps stat heat numa sim image snapshot restore clone doctor help --help --version" "$cur"
	else
		case ${COMP_WORDS[1]} in
		run) _mirrorball_run ;;
		stat) _mirrorball_one_machine "--json --help --version" ;;
		numa) _mirrorball_one_machine "--why --json --help --version" ;;
		heat) _mirrorball_heat ;;
		sim) _mirrorball_sim ;;
		image) _mirrorball_image ;;
		snapshot) _mirrorball_snapshot ;;
		restore) _mirrorball_restore ;;
		clone) _mirrorball_clone ;;
		ps | doctor) _mirrorball_words "--json --help --version" "$cur" ;;
		help) ((COMP_CWORD == 2)) && _mirrorball_words "run ps stat heat numa sim image snapshot restore clone doctor" "$cur" ;;
		esac
	fi
	# What bash keeps of the word must not come again.
	for i in "${!COMPREPLY[@]}"; do
		COMPREPLY[i]=${COMPREPLY[i]#"$glued"}
	done
	return 0
}

complete -F _mirrorball mirrorball
