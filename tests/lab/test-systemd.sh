#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2016 # expanded in the host, not here
# The host with systemd: it is up without a failure, runs services and sockets, and keeps a journal.
. "$(dirname "$0")/test-common.sh"

cat >"$tmp/services.sh" <<'END'
#!/bin/bash
systemctl is-system-running --wait
cat /proc/1/comm
systemctl list-units --failed --no-legend
systemd-run --quiet --unit=demo --service-type=exec mirrorball run --name demo --quiet splash hello
while systemctl is-active --quiet demo; do sleep 0.2; done
systemctl show -p Result demo
journalctl --no-pager -o cat -u demo | grep '^splash: hello: ok'
systemd-run --quiet --on-active=1 --unit=late touch /run/late
until [ -e /run/late ]; do sleep 0.2; done
busctl --no-pager call org.freedesktop.DBus / org.freedesktop.DBus GetId | cut -c 1
stat -c %a /dev/kvm
sleep 1000 &
exit 3
END
chmod +x "$tmp/services.sh"
"$lab" --systemd --in "$tmp/services.sh" -- ./services.sh >"$tmp/out" 2>"$tmp/err"
expect "status" 3 $?
expect "what it said" "running systemd Result=success splash: hello: ok s 666" "$(xargs <"$tmp/out")"
expect "no complaint" "" "$(grep -v '^lab: warning:' "$tmp/err")"
finish
