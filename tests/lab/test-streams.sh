#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2016 # expanded in the host, not here
# Both outputs come through apart from each other, byte for byte and as they are written; status,
# arguments and files too. Two labs run side by side.
. "$(dirname "$0")/test-common.sh"

head -c 2000000 /dev/urandom >"$tmp/a"
tac "$tmp/a" | head -c 1000001 >"$tmp/b"
mkdir "$tmp/dir"
echo inside >"$tmp/dir/file"

"$lab" --in "$tmp/a" --in "$tmp/b" --in "$tmp/dir" --out "$tmp/new/out" -- bash -c '
	cat a; cat b >/dev/stderr
	cp dir/file "$LAB_OUT/"; mkdir "$LAB_OUT/sub"; cp b "$LAB_OUT/sub/b"
	setsid sleep 1000 &
	exit 42' >"$tmp/out" 2>"$tmp/err" &
first=$!
# The first line has to arrive long before the command ends.
coproc "$lab" -- bash -c 'echo first; sleep 10; printf "[%s]" "$@"; kill -SEGV $$' name 'two  words' '' "it's" \
	$'new\nline' '*' 2>/dev/null
# shellcheck disable=SC2153 # bash sets it
second=$COPROC_PID
exec {said}<&"${COPROC[0]}"
read -r -t 300 line <&"$said"
expect "output as it comes" first "$line"
kill -0 "$second" 2>/dev/null
expect "while the command runs" 0 $?
cat <&"$said" >"$tmp/arguments"
wait "$second"
expect "status of a signal" 139 $?
expect "arguments" "[two  words][][it's][new"$'\n'"line][*]" "$(cat "$tmp/arguments")"

wait "$first"
expect "exit status" 42 $?
expect "standard output" "$(sha256sum <"$tmp/a")" "$(sha256sum <"$tmp/out")"
expect "standard error" "$(sha256sum <"$tmp/b")" "$(tail -c 1000001 "$tmp/err" | sha256sum)"
expect "nothing but a line of ours before it" "" \
	"$(head -c -1000001 "$tmp/err" | grep -a -v '^lab: warning:')"
expect "a file that came out" inside "$(cat "$tmp/new/out/file")"
expect "a larger one" "$(sha256sum <"$tmp/b")" "$(sha256sum <"$tmp/new/out/sub/b")"

# A person's terminal: what is typed there arrives, its size is known, and the escape key ends it.
cat >"$tmp/type.py" <<'END'
import os, pty, select, struct, sys, termios, fcntl, time
wait_for, keys, *command = sys.argv[1:]
pid, fd = pty.fork()
if not pid:
    os.execvp(command[0], command)
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 37, 91, 0, 0))
said, typed, end = b"", False, time.monotonic() + 150
while time.monotonic() < end:
    try:
        if select.select([fd], [], [], 1)[0]:
            data = os.read(fd, 4096)
            said += data
    except OSError:
        break
    if not typed and wait_for.encode() in said:
        os.write(fd, keys.encode().decode("unicode_escape").encode())
        typed = True
os.write(1, said.replace(b"\r", b""))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if said else 99)
END
python3 "$tmp/type.py" '# ' 'stty size; tty; exit 7\n' "$lab" --shell >"$tmp/out"
expect "a shell: status" 7 $?
expect_match "its terminal" '^/dev/hvc0$' "$tmp/out"
expect_match "as large as ours" '(^|2004l)37 91$' "$tmp/out"
python3 "$tmp/type.py" 'waiting' '\x1d' "$lab" --shell -- sh -c 'echo waiting; sleep 1000' >"$tmp/out"
expect "the escape key: status" 130 $?
finish
