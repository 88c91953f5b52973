#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mirrorball heat against made-up machines: text, JSON, pictures, the live map, and machines that misbehave.
source "$(dirname "$0")/lib.sh"
export XDG_RUNTIME_DIR=$work # not root: its sockets
machines=()
cleanup() {
	kill "${machines[@]}" 2>/dev/null || true
	wait || true
	rm -rf "$work"
}

# A machine of its own name for each run of this test. $1: its name, $2: kind, $3: answers until it ends.
machine() {
	"$here/tests/unit/fake-machine" "heat-$1-$$" "${@:2}" >"$1.pid" &
	machines+=($!)
	for _ in {1..100}; do
		[ ! -s "$1.pid" ] || return 0
		sleep 0.1
	done
	bad "no fake machine $1"
}
heat() { # name, words
	local name=heat-$1-$$
	shift
	"$MIRRORBALL" heat "$name" "$@"
}
for kind in two one eight tib empty copies hang refuse nonsense wrong; do
	machine "$kind" "$kind"
done

# Text.
expect 0 '' heat two
has '1 GiB of memory, 720 MiB in use'
has '^own node +[0-9]+ MiB +[0-9]+ %'
has '^ lives on 0000'
! grep -q $'\033' out || bad "escapes where no terminal is"
expect 0 '' heat one --once
has 'writes not known'
has '^in use +198 MiB +99 %'
expect 0 '' heat eight
has 'h view 7 \(nodes 14,15\)'
expect 0 '' heat tib
has '1 TiB of memory'
expect 0 '' heat empty
has 'touched no memory'
expect 0 '' "$MIRRORBALL" heat --once "$(cat two.pid)"
! grep -q '+ has copies' out || bad "copies where there are none"
expect 0 '' heat copies --once
has '^lives on .*\+ has copies: 78\.4 MiB$'
has '^ lives on [0-9:?]*\++[0-9:?]*$'

# JSON.
expect 0 '' heat two --json
python3 -c '
import json
a = json.load(open("out"))
assert a["tracker"]["covered"] >= 0.9, a["tracker"]
assert len(a["extents"]) == 360
keys = [*a, *a["tracker"], *a["views"][0], *a["extents"][0]]
page = open("'"$here"'/man/mirrorball-heat.1.scd").read()
assert not [key for key in keys if f"_{key}_" not in page and f"*{key}*" not in page]' || bad "JSON"
expect 0 '' heat copies --json
python3 -c '
import json
a = json.load(open("out"))
assert sum(e["bytes"] * e["copied"][1] for e in a["extents"]) == 39.2 * (2 << 20)
page = open("'"$here"'/man/mirrorball-heat.1.scd").read()
assert not [key for key in a["extents"][0] if f"_{key}_" not in page]' || bad "JSON of copies"
expect 0 '' heat two --json --seconds 1 --interval 0.2
python3 -c '
import json
lines = [json.loads(line) for line in open("out")]
assert 3 <= len(lines) <= 8, len(lines)
assert lines[0]["time_ms"] < lines[-1]["time_ms"]' || bad "JSON lines"

# Pictures.
for kind in two one eight tib empty copies; do
	expect 0 '' heat "$kind" --svg "$kind.svg" --seconds 1 --interval 0.2
	python3 - "$kind.svg" <<'END' || bad "$kind.svg"
import re, sys, xml.etree.ElementTree as tree
text = open(sys.argv[1]).read()
root = tree.fromstring(text)
assert root.tag.endswith("}svg") and root.get("viewBox"), root.tag
words = [e.text or "" for e in root.iter() if e.tag.endswith("}text")]
for want in ("Read by", "Written by", "Lives on", "seconds"):
    assert want in words, want
assert len(text) < 500000, len(text)
# What a rectangle's class is has a colour.
styles = set(re.findall(r"\.(i\d+)\{", text))
assert set(re.findall(r'class="(i\d+)"', text)) <= styles
END
done
[ "$(stat -c %a two.svg)" = "$(printf '%o' $((0666 & ~$(umask))))" ] || bad "mode of two.svg"
expect 0 '' heat two --svg - --seconds 0.5
has '</svg>'
ln -s real.svg link.svg
expect 0 '' heat two --svg link.svg --seconds 0.3 --interval 0.1
# A link to nothing yet is a place to write to as well as a name.
[ -s link.svg ] || bad "link.svg"
expect 1 '/dev/full: No space left.*not written' heat two --svg /dev/full --seconds 0.3
expect 1 'no/x.svg: No such file' heat two --svg no/x.svg
expect 1 'Is a directory|directory' heat two --svg .
echo before >kept.svg
limited() { # files of 1 KiB at most: as a full disk
	ulimit -f 1
	heat two --svg kept.svg --seconds 0.3
}
status=0
(limited) >out 2>err || status=$?
[ "$status" = 1 ] || bad "a full disk: status $status"
has 'kept.svg: File too large; the picture was not written' err
[ "$(cat kept.svg)" = before ] || bad "a picture that failed has replaced the one before"

# Interrupted: what there is is written.
"$MIRRORBALL" heat "heat-two-$$" --svg cut.svg --seconds 60 --interval 0.2 2>err &
pid=$!
sleep 1.5
# A script's background jobs ignore SIGINT, and so does what they start.
kill -TERM $pid
status=0
wait $pid || status=$?
[ "$status" = 143 ] || bad "SIGTERM while it records: status $status"
has '</svg>' cut.svg
left=$(find . -name '*.svg.*')
[ -z "$left" ] || bad "left behind: $left"

# Machines that end, sooner or later.
machine short two 3
expect 0 'the machine has ended' heat short --json --seconds 10 --interval 0.1
[ "$(wc -l <out)" -ge 2 ] || bad "JSON lines of a machine that ended"
machine shorter two 2
expect 0 'the picture ends there' heat shorter --svg short.svg --interval 0.1
has '</svg>' short.svg
machine shortest two 0
expect 1 'no machine|has ended' heat shortest
expect 1 'no machine' heat nobody

# Machines that are none.
expect 1 'no pagemap' heat refuse
expect 1 'no pagemap' heat refuse --svg refuse.svg
[ ! -e refuse.svg ] || bad "a picture of nothing"
expect 1 'makes no sense' heat nonsense
expect 1 'extents\[7\].gpa is out of range' heat wrong
expect 1 'extents\[7\].gpa is out of range' heat wrong --json
expect 1 'extents\[7\].gpa is out of range' heat wrong --svg wrong.svg
expect 1 'no answer for 10 s' heat hang

# Command lines.
expect 2 'which machine' "$MIRRORBALL" heat
expect 2 'one machine' heat two three
expect 2 'exclude each other' heat two --json --once
expect 2 'exclude each other' heat two --json --svg x
expect 2 'exclude each other' heat two --svg x --once
expect 2 'given twice' "$MIRRORBALL" heat --seconds 3 two --seconds 4
expect 2 '--interval: .*printed once' heat two --interval 3
expect 2 '--interval: .*needs --seconds' heat two --json --interval 3
expect 2 'room for 400' heat two --svg x --seconds 1000 --interval 1
expect 2 'not a number of seconds' heat two --seconds 1h
expect 2 'out of range' heat two --interval 0.01
expect 2 'did you mean --seconds' heat two --secunds 3
expect 1 'standard output' bash -c '"$MIRRORBALL" heat "$1" >/dev/full' - "heat-two-$$"

machine mortal two 6
"$here/tests/unit/heat_terminal.py" "heat-two-$$" "heat-hang-$$" "heat-mortal-$$" || bad "the live map"
finish
