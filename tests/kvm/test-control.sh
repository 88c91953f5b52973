#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Running machines, seen by ps and stat through their control sockets.
source "$(dirname "$0")/own-run.sh" "$@"
source "$(dirname "$0")/lib.sh"
need_kvm
if [ "$(id -u)" = 0 ]; then
	[ -n "${MB_OWN_RUN-}" ] || skip "needs mount namespaces, as root"
	sockets=/run/mirrorball
else
	mkdir -m 700 run
	export XDG_RUNTIME_DIR=$work/run
	sockets=$work/run/mirrorball
fi

declare -A machines=() # PIDs of those that run
end_all() {
	if [ "${#machines[@]}" -gt 0 ]; then
		kill -KILL "${!machines[@]}"
		wait
	fi 2>/dev/null
}
cleanups+=(end_all)
# Starts a machine that runs until it is ended, and waits for its socket. $1 name, rest: arguments of run. Sets pid.
begin() {
	local name=$1 i
	shift
	"$MIRRORBALL" run --memory 32M --cpus 1 --name "$name" "$@" </dev/null >"$name.log" 2>&1 &
	pid=$!
	machines[$pid]=1
	for ((i = 0; i < 100; i++)); do
		[ ! -S "$sockets/$name.$pid" ] || return 0
		sleep 0.1
	done
	bad "$name: no socket: $(cat "$name.log")"
}
# Ends it with a signal and waits. $1 signal, $2 PID
end() {
	kill -s "$1" "$2" || bad "$2 had ended"
	wait "$2" 2>/dev/null || true
	unset "machines[$2]"
}
check() {
	n_checks=$((n_checks + 1))
	"$@" || bad "$*: $(head -c 1500 <<<"$out")"
}
long=(splash radix ms=600000)

expect 0 '^mirrorball: no machine is running$' "$MIRRORBALL" ps
check test "$(grep -c '' <<<"$out")" = 1
expect 0 '^\[\]$' "$MIRRORBALL" ps --json
check test "$(grep -c '' <<<"$out")" = 1
expect 0 '^mirrorball: no machine is running$' "$MIRRORBALL" stat
expect 0 '"machines": \[\],$' "$MIRRORBALL" stat --json
check test ! -e "$sockets"
expect 1 "^mirrorball: stat: no machine 'web1' is running; 'mirrorball ps' shows" "$MIRRORBALL" stat web1

begin web1 "${long[@]}"
web1=$pid
begin db.2 "${long[@]}"
db=$pid
guest halt
begin linux --kernel "$PWD/halt.elf"
linux=$pid
check test "$(stat -c %a "$sockets" "$sockets/web1.$web1" | tr '\n' ' ')" = '700 600 '
expect 0 "^NAME +PID +STATE +CPUS +MEMORY +RESIDENT +CPU-TIME +UPTIME +GUEST$" "$MIRRORBALL" ps
expect 0 "^web1 +$web1 +running +1 +32M +[0-9.]+M +[0-9.]+s +[0-9.]+s +splash radix$" "$MIRRORBALL" ps
check grep -qE "^db.2 +$db +running " <<<"$out"
check grep -qE "^linux +$linux +running .* $PWD/halt.elf$" <<<"$out"
check test "$(grep -c '' <<<"$out")" = 4
expect 0 '^guest +splash radix$' "$MIRRORBALL" stat web1
check grep -qE "^PID +$web1$" <<<"$out"
check grep -qE '^exits +[0-9]+$' <<<"$out"
expect 0 '^name +db.2$' "$MIRRORBALL" stat "$db"
expect 1 "did you mean 'web1'" "$MIRRORBALL" stat web2
expect 2 "'b' is too much" "$MIRRORBALL" stat a b
expect 2 "unexpected word 'web1'" "$MIRRORBALL" ps web1

# The keys of the answer are those of the page, and both commands print the same object.
expect 0 '"ok": true' "$MIRRORBALL" stat web1 --json
cp .out stat.json
expect 0 '"ok": true' "$MIRRORBALL" ps --json
n_checks=$((n_checks + 1))
python3 - stat.json .out "$web1" >keys <<'END' || bad "--json is not what was expected: $(cat stat.json .out)"
import json, sys
stat, ps = (json.load(open(path)) for path in sys.argv[1:3])
assert [m["name"] for m in ps] == ["db.2", "linux", "web1"], ps
same = [m for m in ps if m["pid"] == int(sys.argv[3])][0]
assert list(same) + ["footprint"] == list(stat), (same, stat)
for key in "name", "pid", "guest", "memory_bytes":
    assert same[key] == stat[key]
want = {"ok": True, "name": "web1", "pid": int(sys.argv[3]), "state": "running", "guest": "splash radix", "cpus": 1,
        "memory_bytes": 32 << 20, "views": 1, "resets": 0}
assert {key: stat[key] for key in want} == want, stat
assert 1 << 20 < stat["resident_bytes"] and 0 <= stat["exits"] <= same["exits"], stat
assert 0 < stat["uptime_ms"] <= same["uptime_ms"] < 600000 and 0 < stat["cpu_ms"] <= same["cpu_ms"], (stat, same)
print("\n".join(stat))
END
while read -r key; do
	check grep -qE "\*$key\*" "$here/../../man/mirrorball-stat.1.scd"
done <keys

# What they take of the host: Linux' own sum, within 1 %, which it has before and after at the latest; and the keys are
# those of the page.
expect 0 '^NAME +PID +FOOTPRINT +PRIVATE +OF-SHARED +COPIES +MONITOR +SHARED +WITH$' "$MIRRORBALL" stat
check grep -qE "^web1 +$web1 +[0-9.]+M +[0-9.]+M +0 +0 +[0-9.]+[KM] +0 +-$" <<<"$out"
check grep -qE '^3 machines take [0-9.]+M, of it 0 in common; sharing saves 0$' <<<"$out"
expect 0 '^footprint +[0-9.]+M$' "$MIRRORBALL" stat web1
check grep -qE '^  private +[0-9.]+M$' <<<"$out"
n_checks=$((n_checks + 1))
python3 - "$MIRRORBALL" "$web1" >keys <<'END' || bad "footprint: see above"
import contextlib, json, mmap, re, subprocess, sys
def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
def asked(*words):
    return json.loads(subprocess.run([sys.argv[1], "stat", *words, "--json"], check=True, capture_output=True).stdout)
# stat has parts of the program and its libraries mapped, and so its share in them, while it looks: at most what we have here.
def pss_beside_another(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        for path in set(re.findall(r"/(?:usr|lib|" + sys.argv[1][1:] + r").*", file.read())):
            with open(path, "rb") as mapped:
                m = stack.enter_context(mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ))
            sum(m[::4096])
        return pss(pid)
pid = int(sys.argv[2])
for _ in range(50):
    before = pss(pid)
    answer = asked(str(pid))
    after = pss(pid)
    f = answer["footprint"]
    if abs(after - before) < before / 200:
        break
else:
    sys.exit(f"{pid} does not rest: {before} and {after}")
least = pss_beside_another(pid)
assert least * .99 <= f["proportional_bytes"] <= max(before, after) * 1.01, (before, least, f, after)
assert f["proportional_bytes"] == sum(f[k + "_bytes"] for k in ("private", "copies", "monitor", "shared_proportional")), f
backed = answer["free_page_reporting"]["backed_bytes"]
assert abs(f["private_bytes"] - backed) <= backed / 100, answer
everything = asked()
assert [list(m) for m in everything["machines"]] == [list(answer)] * 3, everything
host = everything["host"]
assert host["machines"] == 3 and host["saved_bytes"] == 0, host
assert host["taken_bytes"] == sum(m["footprint"]["proportional_bytes"] for m in everything["machines"]), everything
print("\n".join([*f, "machines", *host]))
END
while read -r key; do
	check grep -qE "[_*]${key}[_*]" "$here/../../man/mirrorball-stat.1.scd"
done <keys

# Nobody takes what they print.
for words in ps 'ps --json' 'stat web1' 'stat web1 --json' stat 'stat --json'; do
	# shellcheck disable=SC2016,SC2086 # for the inner shell; words
	expect 1 '^mirrorball: standard output: No space left on device; not everything was written$' \
		bash -c '"$@" >/dev/full' _ "$MIRRORBALL" $words
done

# Two of one name: the PID says which.
begin web1 "${long[@]}"
second=$pid
expect 1 "several machines are called 'web1'; give a PID: ($web1, $second|$second, $web1)$" "$MIRRORBALL" stat web1
expect 0 "^PID +$second$" "$MIRRORBALL" stat "$second"

# One that is killed leaves its socket; whoever looks next removes it, and no other file.
touch "$sockets/a.file.4194304" "$sockets/README"
end KILL "$second"
check test -S "$sockets/web1.$second"
expect 0 "^PID +$web1$" "$MIRRORBALL" stat web1
check test ! -e "$sockets/web1.$second"
check test -e "$sockets/a.file.4194304" -a -e "$sockets/README"

# One that ends takes its socket along, however it ends.
end TERM "$db"
check test ! -e "$sockets/db.2.$db"
end QUIT "$linux"
check test ! -e "$sockets/linux.$linux"
expect 0 . "$MIRRORBALL" run --memory 32M --quiet --name short splash hello
expect 1 missing "$MIRRORBALL" run --memory 32M --quiet --name fails --kernel missing
expect 0 . "$MIRRORBALL" run --memory 32M --dry-run --name dry splash hello
check test "$(cd "$sockets" && echo *)" = "README a.file.4194304 web1.$web1"

# Clients that send garbage, flood it, send without end or read nothing: it goes on.
n_checks=$((n_checks + 1))
timeout 60 python3 - "$sockets/web1.$web1" <<'END' || bad "hostile clients"
import json, os, socket, sys, threading
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(sys.argv[1])
    return s
def flood(s):
    try:
        s.settimeout(None)
        while True:
            s.sendall(b'{"request":"stat"}\n' * 1000)
    except OSError:
        pass
clients = [connect() for _ in range(3)]
clients[0].sendall(os.urandom(60000).replace(b"\n", b"x") + b"\n")
assert b'"ok":false' in clients[0].recv(65536)
threading.Thread(target=flood, args=(clients[1],), daemon=True).start()
clients[2].sendall(b"x" * 65537)
assert b"at most 65536" in clients[2].recv(65536)
s = connect()
lines = s.makefile("rwb")
for _ in range(100):
    lines.write(b'{"request":"stat"}\n')
    lines.flush()
    assert json.loads(lines.readline())["ok"]
os._exit(0)
END
expect 0 "^PID +$web1$" "$MIRRORBALL" stat web1

# All connections are taken.
python3 - "$sockets/web1.$web1" <<'END' &
import socket, sys, time
clients = [socket.socket(socket.AF_UNIX) for _ in range(16)]
for s in clients:
    s.connect(sys.argv[1])
    s.sendall(b'{"request":"stat"}\n')
    s.recv(65536)
open("taken", "w").close()
time.sleep(60)
END
taker=$!
machines[$taker]=1
for ((i = 0; i < 100; i++)); do
	[ ! -e taken ] || break
	sleep 0.1
done
expect 1 "^mirrorball: stat: web1 \(PID $web1\): this machine has 16 connections already; end one" "$MIRRORBALL" stat web1
end KILL "$taker"
expect 0 "^PID +$web1$" "$MIRRORBALL" stat web1

# Machines that do not answer: ps shows the others, too, and waits once.
begin web2 "${long[@]}"
web2=$pid
begin web3 "${long[@]}"
web3=$pid
kill -STOP "$web1" "$web3"
start=$SECONDS
"$MIRRORBALL" stat web1 >stat.out 2>&1 &
asker=$!
# shellcheck disable=SC2016 # for the inner shell
expect 1 "^mirrorball: web3 \(PID $web3\): no answer for 10 s; it may be stopped" bash -c '"$1" ps' _ "$MIRRORBALL"
check grep -qE "^web1 +$web1 +unknown +- " <<<"$out"
check grep -qE "^web2 +$web2 +running " <<<"$out"
got=0
wait "$asker" || got=$?
check test "$got" = 1
check grep -qE "^mirrorball: stat: web1 \(PID $web1\): no answer for 10 s" stat.out
check test $((SECONDS - start)) -lt 19
kill -CONT "$web1" "$web3"
expect 0 "^PID +$web1$" "$MIRRORBALL" stat web1
end TERM "$web3"
end TERM "$web2"

# Paused, and going on.
n_checks=$((n_checks + 1))
timeout 60 python3 - <<'END' || bad "a paused machine is not shown"
import json, os, pty, subprocess, sys, time
pid, fd = pty.fork()
if pid == 0:
    words = ["run", "--memory", "32M", "--cpus", "1", "--name", "rests", "--kernel", "halt.elf"]
    os.execv(os.environ["MIRRORBALL"], [os.environ["MIRRORBALL"]] + words)
def state():
    done = subprocess.run([os.environ["MIRRORBALL"], "stat", "rests", "--json"], capture_output=True)
    return json.loads(done.stdout)["state"] if done.returncode == 0 else None
def await_state(want):
    for _ in range(100):
        if state() == want:
            return
        time.sleep(0.1)
    sys.exit(f"{state()} instead of {want}")
await_state("running")
os.write(fd, b"\x1dp")
await_state("paused")
os.write(fd, b"\x1dp")
await_state("running")
os.write(fd, b"\x1dq")
os.waitpid(pid, 0)
END

# A directory that cannot be trusted: the machine runs without a socket and says why, and so do the commands.
end TERM "$web1"
rm -rf "$sockets"
# $1: pattern
no_socket() {
	expect 0 "^mirrorball: x: runs, but 'mirrorball ps' cannot see it: $1" "$MIRRORBALL" run --memory 32M --quiet \
		--name x splash hello
	check test "$(grep -c '^mirrorball: ' <<<"$out")" = 1
	expect 1 "^mirrorball: ps: $1" "$MIRRORBALL" ps
}
mkdir -m 777 elsewhere
ln -s "$PWD/elsewhere" "$sockets"
no_socket '.*symbolic link'
check test -z "$(ls elsewhere)"
rm "$sockets"
mkdir "$sockets"
chmod 770 "$sockets"
no_socket '.*others may write to it \(mode 770\); use chmod 700'
chmod 700 "$sockets"
if [ "$(id -u)" = 0 ]; then
	chown 65534 "$sockets"
	no_socket '.*belongs to user 65534, not to 0'
	rmdir "$sockets"
	mount -o remount,ro /run
	expect 0 "cannot see it: /run/mirrorball: cannot be made: Read-only" "$MIRRORBALL" run --memory 32M --quiet \
		--name x splash hello
	expect 0 '^mirrorball: no machine is running$' "$MIRRORBALL" ps
	mount -o remount,rw /run
fi

# Another user, if there is one here who may open KVM: he sees his own machines, and nobody else's.
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all)
chmod 755 "$work"
if [ "$(id -u)" != 0 ] || ! "${nobody[@]}" test -x "$MIRRORBALL"; then
	echo "there is no other user here who may start a machine: not tested"
	finish
	exit
fi
mknod -m 666 kvm c 10 232
mkdir user
chown 65534:65534 user
begin root1 "${long[@]}"
# $1: XDG_RUNTIME_DIR of the machine, $2: where its socket must be, $3: that of who looks for it
theirs() {
	local i theirs
	# shellcheck disable=SC2016 # for the inner shell
	XDG_RUNTIME_DIR=$1 unshare --mount bash -c 'mount --bind kvm /dev/kvm; exec "$@"' _ "${nobody[@]}" \
		"$MIRRORBALL" run --memory 32M --cpus 1 --quiet --name theirs "${long[@]}" </dev/null >theirs.log 2>&1 &
	theirs=$!
	machines[$theirs]=1
	for ((i = 0; i < 100; i++)); do
		[ ! -S "$2/theirs.$theirs" ] || break
		sleep 0.1
	done
	expect 0 "^theirs +$theirs +running " env XDG_RUNTIME_DIR="$3" "${nobody[@]}" "$MIRRORBALL" ps
	check test "$(grep -c '' <<<"$out")" = 2
	expect 0 '^root1 ' "$MIRRORBALL" ps
	check test "$(grep -c '' <<<"$out")" = 2
	end TERM "$theirs"
	check test ! -e "$2/theirs.$theirs"
	out=$(cat theirs.log)
	check test -z "$(grep '^mirrorball: ' theirs.log)"
}
tmp=/tmp/mirrorball-65534
theirs "$work/user" "$work/user/mirrorball" "$work/user"
# None, one that is not there, one that he may not write.
theirs '' "$tmp" "$work/user"
theirs /nonexistent "$tmp" ''
theirs "$work" "$tmp" "$work"
rmdir "$tmp" 2>/dev/null || true # or somebody else uses it
n_checks=$((n_checks + 1))
! "${nobody[@]}" ls "$sockets" 2>/dev/null || bad "a user looks into root's directory"
finish
