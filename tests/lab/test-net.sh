#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Traffic both ways at once, verified by checksums: through a tap, through a tap with several queues,
# and through passt as a user without privilege.
# tests/run: last 123
. "$(dirname "$0")/guests.sh"

# The other side: what comes to port 5001 is hashed; who comes to port 5002 gets down.bin.
head -c 16M /dev/urandom >down.bin
cat >serve.py <<'END'
import hashlib, socket, threading

def take(connection):
    digest, n = hashlib.sha256(), 0
    while data := connection.recv(1 << 18):
        digest.update(data)
        n += len(data)
    print("GOT", n, digest.hexdigest(), flush=True)
    connection.sendall(digest.hexdigest().encode())
    connection.close()

def give(connection):
    connection.sendall(open("down.bin", "rb").read())
    connection.close()

def serve(port, act):
    listener = socket.create_server(("0.0.0.0", port))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=act, args=(connection,)).start()

threading.Thread(target=serve, args=(5001, take)).start()
serve(5002, give)
END
python3 serve.py >served &
down=$(sha256sum <down.bin | cut -d' ' -f1)

# The guest's part: traffic HOST FLOWS sends 16 MiB in so many connections and gets 16 MiB in each of
# as many others.
traffic=$(
	cat <<'END'
cat >/tmp/traffic.py <<'PYTHON'
import hashlib, os, socket, sys, threading

host, flows = sys.argv[1], int(sys.argv[2])
cpus = sorted(os.sched_getaffinity(0))
said = []

def up(flow):
    os.sched_setaffinity(0, [cpus[flow % len(cpus)]])
    data = os.urandom((16 << 20) // flows)
    s = socket.create_connection((host, 5001))
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
    there = b"".join(iter(lambda: s.recv(100), b"")).decode()
    said.append("up ok" if there == hashlib.sha256(data).hexdigest() else "up wrong")

def down(flow):
    os.sched_setaffinity(0, [cpus[flow % len(cpus)]])
    digest, n = hashlib.sha256(), 0
    s = socket.create_connection((host, 5002))
    while data := s.recv(1 << 18):
        digest.update(data)
        n += len(data)
    said.append("down %d %s" % (n, digest.hexdigest()))

threads = [threading.Thread(target=f, args=(i,)) for i in range(flows) for f in (up, down)]
for t in threads: t.start()
for t in threads: t.join()
print("\n".join(sorted(said)))
PYTHON
traffic() {
	local i
	python3 /tmp/traffic.py "$1" "$2" >/tmp/said 2>&1
	for ((i = 0; i < $2; i++)); do echo "down 16777216 $down"; done >/tmp/wanted
	for ((i = 0; i < $2; i++)); do echo "up ok"; done >>/tmp/wanted
	check "16 MiB up, $((16 * $2)) MiB down" diff /tmp/wanted /tmp/said
}
END
)

tap() {
	ip tuntap add dev tap0 mode tap
	ip addr add 10.0.0.1/24 dev tap0
	ip link set tap0 up
	quick_guest tap cloud-6.1 --cpus 2 --disk "/lab/guest/root$lane.img" \
		--net tap=tap0,mac=52:54:00:00:00:77 <<-END
			down=$down
			$traffic
			modprobe virtio_net
			check "its MAC address" same 52:54:00:00:00:77 "\$(cat /sys/class/net/eth0/address)"
			ip addr add 10.0.0.2/24 dev eth0
			ip link set eth0 up
			check "small packets" ping -q -c 3 -i 0.2 -W 10 10.0.0.1
			check "large packets" ping -q -c 3 -i 0.2 -W 10 -s 20000 10.0.0.1
			for offload in tx-checksumming tcp-segmentation-offload rx-checksumming; do
				check "\$offload" same "\$offload: on" "\$(ethtool -k eth0 | grep -o "^\$offload: on")"
			done
			traffic 10.0.0.1 1
			check "and without offloads" ethtool -K eth0 tx off rx off tso off gso off gro off
			traffic 10.0.0.1 1
			quiet_kernel
		END
}

# Each vCPU has a pair of queues; a connection stays with the queue on which it sends.
queues() {
	ip tuntap add dev tap1 mode tap multi_queue
	ip addr add 10.0.1.1/24 dev tap1
	ip link set tap1 up
	quick_guest queues cloud-6.12 --cpus 4 --disk "/lab/guest/root$lane.img" \
		--net tap=tap1,queues=4 <<-END
			down=$down
			$traffic
			modprobe virtio_net
			ip addr add 10.0.1.2/24 dev eth0
			ip link set eth0 up
			check "4 pairs of queues" same "4 4" \
				"\$(ethtool -l eth0 | sed -n 's/^Combined:\t*//p' | tr '\n' ' ' | sed 's/ $//')"
			traffic 10.0.1.1 4
			for queue in 0 1 2 3; do
				n=\$(sed -n "/-input.\$queue\$/s/PCI.*//p" /proc/interrupts |
					awk '{ for (i = 2; i <= NF; i++) n += \$i } END { print n }')
				check "queue \$queue had something to do, \$n times" [ "\$n" -gt 5 ]
			done
			check "one queue for all" ethtool -L eth0 combined 1
			traffic 10.0.1.1 2
			check "and four again" ethtool -L eth0 combined 4
			check "still there" ping -q -c 3 -i 0.2 -W 10 10.0.1.1
			quiet_kernel
		END
}

# passt takes its addresses from the host's route to the outside; the gateway is the host's loopback.
passt() {
	modprobe dummy && ip link add outside type dummy
	ip addr add 192.0.2.10/24 dev outside
	ip link set outside up
	ip route add default via 192.0.2.1
	chmod 666 "$(readlink -f "/lab/guest/root$lane.img")"
	as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all)
	when_up=from_outside quick_guest passt cloud-6.1 --cpus 2 \
		--disk "/lab/guest/root$lane.img" --net passt,arg=-t,arg=5003 <<-END
			modprobe virtio_net
			ip addr add 192.0.2.10/24 dev eth0
			# As passt's DHCP says. With 1500 it takes minutes to get 16 MiB out of an emulated
			# guest, and may give up.
			ip link set eth0 up mtu 65520
			ip route add default via 192.0.2.1
			check "16 MiB down" same "$down" \
				"\$(socat -u TCP:192.0.2.1:5002 STDOUT | sha256sum | cut -d' ' -f1)"
			head -c 16M /dev/urandom >/tmp/up
			check "16 MiB up" same "\$(sha256sum </tmp/up | cut -d' ' -f1)" \
				"\$(socat -t 60 - TCP:192.0.2.1:5001 </tmp/up)"
			echo LISTENING
			check "from the outside" same "$down" \
				"\$(socat -u TCP-LISTEN:5003 STDOUT | sha256sum | cut -d' ' -f1)"
			quiet_kernel
		END
	expect "passt: none is left behind" "" "$(pgrep -x 'passt(\.avx2)?')"
}

# shellcheck disable=SC2317 # called by guest
from_outside() {
	expect "passt: the monitor has no privilege" "0000000000000000 65534" \
		"$(awk '/^CapEff/ { cap = $2 } /^Uid/ { uid = $2 } END { print cap, uid }' "/proc/$pid/status")"
	await "$1.out" '^LISTENING' "$run_seconds" || return
	sleep 1
	socat -u FILE:down.bin TCP:127.0.0.1:5003
}

in_lanes tap queues passt
# This host had them all unless it took over from another.
[ -s /in/finished ] || expect "what the guests sent came, in the end" $((16777216 * 5)) \
	"$(awk '/^GOT/ { n += $2 } END { print n }' served)"
finish
