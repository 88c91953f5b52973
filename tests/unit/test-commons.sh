#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mirrorballd as a command: its options, how it is started and by whom, how it ends, and what its page says.
source "$(dirname "$0")/lib.sh"
: "${MIRRORBALLD:=$(dirname "$MIRRORBALL")/mirrorballd}"
page=$here/man/mirrorballd.8.scd
sock=$work/run/commons.sock
pids=()
# One that did not end where it should must not be left behind.
cleanup() {
	for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
	rm -rf "$work"
}

# $1: socket; rest: in front of the command
answers() {
	for _ in $(seq 100); do
		"${@:2}" "$MIRRORBALLD" --stat --socket "$1" >stat.json 2>/dev/null && return
		sleep 0.05
	done
	bad "nobody answers at $1"
}
# $1: PID; waits for its end and expects status $2
ends() {
	local status=0
	wait "$1" || status=$?
	n_checks=$((n_checks + 1))
	[ "$status" -eq "$2" ] || bad "ended with $status, not $2"
}

# What it takes, and what it does not.
expect 0 '' "$MIRRORBALLD" --help
cp out help
awk 'length > 80 { exit 1 }' help || bad "--help is wider than 80 columns"
expect 0 '' "$MIRRORBALLD" -h
diff out help || bad "-h differs"
expect 0 '' "$MIRRORBALLD" --version
[ "$(cat out)" = "$("$MIRRORBALL" --version)" ] || bad "another version: $(cat out)"
expect 2 "unknown option --memori; did you mean --memory" "$MIRRORBALLD" --memori
expect 2 "not a number" "$MIRRORBALLD" --memory lots
expect 2 "8M is the least" "$MIRRORBALLD" --memory 1M
expect 2 "number of seconds" "$MIRRORBALLD" --idle soon
expect 2 "is given twice" "$MIRRORBALLD" --idle 1 --idle 2
expect 2 "is too much" "$MIRRORBALLD" now
expect 1 "no mirrorballd is running" "$MIRRORBALLD" --stat --socket "$sock"
expect 1 "commons" "$MIRRORBALLD" --socket /nowhere/at/all/sock
mkdir -m 777 open
chmod 777 open
expect 1 "others may write" "$MIRRORBALLD" --socket "$work/open/sock"

# --help and the page have the same options, and the page all statuses.
in_help=$(sed -n 's/^  \(-h, \)\{0,1\}\(--[a-z-]*\).*/\2/p' help | sort -u)
in_page=$(grep -E '^\*-' "$page" | grep -oE -- '\*--[a-z-]+' | tr -d '*' | sort -u)
[ "$in_help" = "$in_page" ] || bad "--help and $page differ: $in_help / $in_page"
for status in 0 1 2; do grep -qE "\*$status\*" "$page" || bad "the page lacks status $status"; done

# One, and no second; its lock is no leftover, and a socket that is one is replaced.
"$MIRRORBALLD" --socket "$sock" &
pids+=($!)
answers "$sock"
has "\"pid\":$!" stat.json
for key in $(json_keys stat.json) path group device inode base_bytes stale; do
	grep -qE "[_*]${key}[_*]" "$page" || bad "mirrorballd(8) lacks the key $key"
done
expect 1 "there is a daemon already" "$MIRRORBALLD" --socket "$sock"
[ "$(stat -c %a "$sock")" = 600 ] || bad "the socket's mode is $(stat -c %a "$sock")"
[ "$(stat -c %a "$work/run")" = 700 ] || bad "the directory's mode is $(stat -c %a "$work/run")"
kill -KILL "$!"
ends "$!" 137
[ -S "$sock" ] || bad "no socket is left to be replaced"
"$MIRRORBALLD" --socket "$sock" &
pids+=($!)
answers "$sock"
kill -HUP "$!"
answers "$sock"
kill -TERM "$!"
ends "$!" 0
"$MIRRORBALLD" --socket "$sock" --idle 0.3 &
pids+=($!)
ends "$!" 0

# Its usual place, and with a limit of open files that is low.
if [ "$(id -u)" != 0 ]; then
	export XDG_RUNTIME_DIR=$work/xdg
	mkdir -m 700 "$XDG_RUNTIME_DIR"
	"$MIRRORBALLD" --idle 5 &
	pids+=($!)
	answers "$XDG_RUNTIME_DIR/mirrorball/commons.sock"
	kill -INT "$!"
	ends "$!" 0
fi

# As a user without rights: it opens files again, and nobody of the same user gets at its memory.
as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null && [ -x /usr/bin/python3 ] && "${as_nobody[@]}" "$MIRRORBALLD" --version >out 2>&1; then
	chmod 755 "$work"
	mkdir -m 700 nobody
	head -c 100000 /dev/urandom >nobody/base
	chmod 600 nobody/base
	chown -R 65534:65534 nobody
	"${as_nobody[@]}" "$MIRRORBALLD" --socket "$work/nobody/sock" &
	pids+=($!)
	answers "$work/nobody/sock" "${as_nobody[@]}"
	cat >client.py <<-'END'
		import array, mmap, os, socket, struct, sys
		os.chdir(sys.argv[1])
		s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
		s.connect("sock")
		def ask(type, base=0, offset=0, length=0, flags=0, fds=()):
		    socket.send_fds(s, [struct.pack("=IHHQIIQQII", 0x636d626d, 1, type, 7, base, 0, offset, length, flags, 0)], fds)
		    reply, fds, *_ = socket.recv_fds(s, 100, 4)
		    return struct.unpack("=IHHQiIIIQQ", reply), fds
		base = os.open("base", os.O_RDONLY)
		assert ask(1)[0][4] == 0
		assert ask(2, fds=[base])[0][4] == 0
		reply, fds = ask(4, 0, 0, 102400, 1)
		assert reply[4] == 0 and reply[9] == 25 and len(fds) == 1, reply
		assert mmap.mmap(fds[0], 100000, prot=mmap.PROT_READ)[:] == open("base", "rb").read()
		for name in "mem", "fd/3", "map_files":
		    try:
		        os.open(f"/proc/{sys.argv[2]}/{name}", os.O_RDONLY)
		        sys.exit(f"may open {name} of the daemon")
		    except PermissionError:
		        pass
	END
	expect 0 '' "${as_nobody[@]}" /usr/bin/python3 client.py "$work/nobody" "$!"
	kill -TERM "$!"
	ends "$!" 0
else
	echo "as a user without rights: needs root, setpriv and a program that he may run"
fi

# A socket that is passed: systemd's way.
expect 1 "no listening Unix socket" bash -c "LISTEN_FDS=1 LISTEN_PID=\$\$ exec '$MIRRORBALLD' 3</dev/null"
expect 1 "2 sockets were passed" bash -c "LISTEN_FDS=2 LISTEN_PID=\$\$ exec '$MIRRORBALLD'"
mkdir -m 700 passed
python3 - "$MIRRORBALLD" "$work/passed/commons.sock" <<-'END' &
	import os, socket, sys
	s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
	s.bind(sys.argv[2])
	s.listen(16)
	fd = s.fileno()
	if fd != 3:
	    os.dup2(fd, 3)
	os.set_inheritable(3, True)
	os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
	os.execv(sys.argv[1], [sys.argv[1], "--idle", "0.5"])
END
pids+=($!)
answers "$work/passed/commons.sock"
ends "$!" 0
if command -v systemd-socket-activate >/dev/null; then
	mkdir -m 700 activated
	systemd-socket-activate --seqpacket -l "$work/activated/commons.sock" "$MIRRORBALLD" --idle 0.5 2>/dev/null &
	pids+=($!)
	answers "$work/activated/commons.sock"
	ends "$!" 0
else
	echo "no systemd-socket-activate"
fi

# Its units, where systemd can look at them.
units=$(dirname "$MIRRORBALLD")
if command -v systemd-analyze >/dev/null && [ -e "$units/mirrorballd.service" ]; then
	for unit in mirrorballd.service mirrorballd.socket; do
		sed "s|^ExecStart=.*|ExecStart=$MIRRORBALLD|; /^Documentation=/d" "$units/$unit" >"$unit"
	done
	SYSTEMD_UNIT_PATH=$work: systemd-analyze verify ./mirrorballd.socket ./mirrorballd.service >units 2>&1 || true
	! grep -E '^[^ ]*mirrorballd\.(service|socket)' units | grep -v 'Command .* failed' || bad "units: $(cat units)"
fi
finish
