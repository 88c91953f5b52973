// SPDX-License-Identifier: Apache-2.0
#include "net_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/*
 * Tap interfaces (Documentation/networking/tuntap.rst). With IFF_VNET_HDR each packet has the
 * header that virtio uses itself, so readv and writev go straight to guest memory, and a packet of
 * up to 64 KiB and an unfinished checksum pass through undivided. The kernel checks what the guest
 * wrote there.
 */
#define MIN_FRAME 14u /* an Ethernet header */

/* Linux 6.2; both or neither. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

struct mb_tap {
	unsigned n_fds;
	unsigned n_on; /* queues attached; the control queue's thread */
	int fds[];
};

int mb_tap_fd(const struct mb_tap *tap, unsigned pair)
{
	return tap->fds[pair];
}

/* ---- packets ---- */

static ssize_t tap_recv(struct mb_net_queue *q, const struct iovec *iov, unsigned n_iov)
{
	for (;;) {
		ssize_t got = readv(q->watch.fd, iov, (int)n_iov);

		if (got >= 0)
			return got ? got : -EAGAIN;
		if (errno != EINTR)
			return errno == ENOMEM || errno == ENOBUFS ? -EAGAIN : -errno;
	}
}

static bool tap_more(const struct mb_net_queue *q)
{
	return false;
}

static int tap_send(struct mb_net_queue *q, struct mb_chain *chain)
{
	if (chain->out_bytes < MB_NET_HDR_BYTES + MIN_FRAME)
		return 0;
	while (writev(q->watch.fd, chain->iov, (int)chain->n_out) < 0) {
		if (errno == EINTR)
			continue;
		/* EBADFD: the interface was deleted. Others are about this packet, or it is down
		 * (EIO). */
		return errno == EAGAIN || errno == EBADFD ? -errno : 0;
	}
	return 0;
}

/* ---- settings ---- */

static unsigned offload_flags(uint64_t features)
{
	unsigned flags = 0;

	if (!(features & MB_NET_FEATURE(VIRTIO_NET_F_GUEST_CSUM)))
		return 0; /* the others rest on it (virtio 1.2, 5.1.3.1) */
	flags |= TUN_F_CSUM;
	if (features & MB_NET_FEATURE(VIRTIO_NET_F_GUEST_TSO4))
		flags |= TUN_F_TSO4;
	if (features & MB_NET_FEATURE(VIRTIO_NET_F_GUEST_TSO6))
		flags |= TUN_F_TSO6;
	if (flags & (TUN_F_TSO4 | TUN_F_TSO6) && features & MB_NET_FEATURE(VIRTIO_NET_F_GUEST_ECN))
		flags |= TUN_F_TSO_ECN;
	if (features & MB_NET_FEATURE(VIRTIO_NET_F_GUEST_UFO))
		flags |= TUN_F_UFO;
	if (features & MB_NET_FEATURE(MB_NET_F_GUEST_USO4) &&
		features & MB_NET_FEATURE(MB_NET_F_GUEST_USO6))
		flags |= TUN_F_USO4 | TUN_F_USO6;
	return flags;
}

static int tap_set_offloads(struct mb_net *net, uint64_t features)
{
	/* Of the interface, so any of its descriptors does; the first is always attached. */
	return ioctl(net->tap->fds[0], TUNSETOFFLOAD, offload_flags(features)) ? -errno : 0;
}

static int tap_set_pairs(struct mb_net *net, unsigned n_pairs)
{
	struct mb_tap *tap = net->tap;

	while (tap->n_on != n_pairs) {
		bool attach = tap->n_on < n_pairs;
		unsigned pair = attach ? tap->n_on : tap->n_on - 1;
		struct ifreq ifr = {.ifr_flags = attach ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

		if (ioctl(tap->fds[pair], TUNSETQUEUE, &ifr))
			return -errno;
		tap->n_on += attach ? 1 : -1;
	}
	return 0;
}

static const struct mb_net_back_ops tap_ops = {
	.recv = tap_recv,
	.more = tap_more,
	.send = tap_send,
	.set_offloads = tap_set_offloads,
	.set_pairs = tap_set_pairs,
};

/* ---- opening ---- */

/* Whether the interface is a tap: tun's driver says which of the two it is as the bus. */
static bool is_tap(int sock, const char *ifname)
{
	struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
	struct ifreq ifr = {.ifr_data = (void *)&info};

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", ifname);
	return !ioctl(sock, SIOCETHTOOL, &ifr) && !strcmp(info.driver, "tun") &&
	       !strcmp(info.bus_info, "tap");
}

static int check_interface(const struct mb_net *net, const char *ifname, struct mb_error *err)
{
	int sock, rc = 0;

	if (!*ifname || strlen(ifname) >= IFNAMSIZ || strpbrk(ifname, "/%: "))
		return mb_error_set(err, EINVAL,
			"%s: not an interface name; give 1 to %u characters, as ip link shows them",
			net->name, IFNAMSIZ - 1);
	/* Looked for first: TUNSETIFF would make an interface that nobody has set up. */
	if (!if_nametoindex(ifname))
		return mb_error_set(err, ENODEV,
			"%s: no such interface; create it with: ip tuntap add dev %s mode tap%s "
			"user $USER && ip link set %s up",
			net->name, ifname, net->n_pairs > 1 ? " multi_queue" : "", ifname);
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock >= 0 && !is_tap(sock, ifname))
		rc = mb_error_set(err, EINVAL,
			"%s: is an interface, but not a tap; create a tap with: ip tuntap add dev "
			"tap0 mode tap, and join the two in a bridge",
			net->name);
	if (sock >= 0)
		close(sock);
	return rc;
}

static int explain_attach(
	const struct mb_net *net, const char *ifname, int errnum, struct mb_error *err)
{
	switch (errnum) {
	case EBUSY:
		return mb_error_set(err, errnum,
			"%s: in use by another machine; stop that one or give another tap",
			net->name);
	case EPERM:
		return mb_error_set(err, errnum,
			"%s: no permission: the tap belongs to another user; create it with: ip "
			"tuntap add dev %s mode tap user $USER",
			net->name, ifname);
	case EINVAL:
		return mb_error_set(err, errnum,
			"%s: was created %s multi_queue and the machine wants %u queue pair%s; "
			"create it again with: ip tuntap add dev %s mode tap%s user $USER",
			net->name, net->n_pairs > 1 ? "without" : "with", net->n_pairs,
			net->n_pairs > 1 ? "s" : "", ifname,
			net->n_pairs > 1 ? " multi_queue" : "");
	case E2BIG:
		return mb_error_set(err, errnum,
			"%s: the tap cannot have %u queue pairs; ask for fewer", net->name,
			net->n_pairs);
	default:
		return mb_error_set(
			err, errnum, "%s: cannot attach: %s", net->name, strerror(errnum));
	}
}

static int open_queue(struct mb_net *net, const char *ifname, int *out, struct mb_error *err)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), rc;

	if (fd < 0) {
		if (errno == EACCES || errno == EPERM)
			return mb_error_set(err, errno,
				"%s: no permission to open /dev/net/tun; allow it with: chmod 0666 "
				"/dev/net/tun",
				net->name);
		if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
			return mb_error_set(err, errno,
				"%s: the host has no /dev/net/tun; load it with: modprobe tun",
				net->name);
		return mb_error_set(
			err, errno, "%s: cannot open /dev/net/tun: %s", net->name, strerror(errno));
	}
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", ifname);
	if (net->n_pairs > 1)
		ifr.ifr_flags |= IFF_MULTI_QUEUE;
	if (ioctl(fd, TUNSETIFF, &ifr)) {
		rc = explain_attach(net, ifname, errno, err);
		close(fd);
		return rc;
	}
	*out = fd;
	return 0;
}

static int take_fd(const struct mb_net *net, int fd, struct mb_error *err)
{
	struct ifreq ifr = {0};
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return mb_error_set(err, EBADF,
			"%s: is not an open descriptor; the program that starts the machine must "
			"pass it on",
			net->name);
	if (ioctl(fd, TUNGETIFF, &ifr) || !(ifr.ifr_flags & IFF_TAP))
		return mb_error_set(
			err, EINVAL, "%s: is not a tap; open one from /dev/net/tun", net->name);
	if (!(ifr.ifr_flags & IFF_VNET_HDR) || !(ifr.ifr_flags & IFF_NO_PI))
		return mb_error_set(err, EINVAL,
			"%s: the tap was opened without IFF_VNET_HDR and IFF_NO_PI; open it with "
			"both",
			net->name);
	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return 0;
}

/* What the kernel's tap can do, into net->offered. */
static void offer(struct mb_net *net)
{
	int fd = net->tap->fds[0], sock;
	struct ifreq ifr = {0};

	net->offered |= MB_NET_FEATURE(VIRTIO_NET_F_CSUM) | MB_NET_FEATURE(VIRTIO_NET_F_HOST_TSO4) |
			MB_NET_FEATURE(VIRTIO_NET_F_HOST_TSO6) |
			MB_NET_FEATURE(VIRTIO_NET_F_HOST_ECN) |
			MB_NET_FEATURE(VIRTIO_NET_F_HOST_UFO);
	if (!ioctl(fd, TUNSETOFFLOAD,
		    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO))
		net->offered |= MB_NET_FEATURE(VIRTIO_NET_F_GUEST_CSUM) |
				MB_NET_FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
				MB_NET_FEATURE(VIRTIO_NET_F_GUEST_TSO6) |
				MB_NET_FEATURE(VIRTIO_NET_F_GUEST_ECN) |
				MB_NET_FEATURE(VIRTIO_NET_F_GUEST_UFO) |
				MB_NET_FEATURE(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
	if (!ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6))
		net->offered |= MB_NET_FEATURE(MB_NET_F_GUEST_USO4) |
				MB_NET_FEATURE(MB_NET_F_GUEST_USO6) |
				MB_NET_FEATURE(MB_NET_F_HOST_USO);
	ioctl(fd, TUNSETOFFLOAD, 0);

	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return;
	/* At least 1280, or IPv6 would be lost in the guest. */
	if (!ioctl(fd, TUNGETIFF, &ifr) && !ioctl(sock, SIOCGIFMTU, &ifr) && ifr.ifr_mtu >= 1280 &&
		ifr.ifr_mtu <= UINT16_MAX)
		net->mtu = (uint16_t)ifr.ifr_mtu;
	close(sock);
}

int mb_tap_open(struct mb_net *net, const struct mb_net_config *config, struct mb_error *err)
{
	int hdr_bytes = (int)MB_NET_HDR_BYTES, rc;
	struct mb_tap *tap = calloc(1, sizeof(*tap) + config->n_pairs * sizeof(tap->fds[0]));

	if (!tap)
		return mb_error_set(err, ENOMEM, "%s: out of memory", net->name);
	net->tap = tap;
	net->back = &tap_ops;
	if (config->back == MB_NET_TAP_FD) {
		tap->fds[tap->n_fds++] = config->fd;
		rc = take_fd(net, config->fd, err);
	} else {
		rc = check_interface(net, config->ifname, err);
		for (; !rc && tap->n_fds < net->n_pairs; tap->n_fds++) {
			rc = open_queue(net, config->ifname, &tap->fds[tap->n_fds], err);
			if (rc)
				break;
		}
	}
	if (rc)
		return rc;
	for (unsigned i = 0; i < tap->n_fds; i++)
		if (ioctl(tap->fds[i], TUNSETVNETHDRSZ, &hdr_bytes))
			return mb_error_set(err, errno,
				"%s: cannot set the packet header's size: %s", net->name,
				strerror(errno));
	tap->n_on = net->n_pairs;
	offer(net);
	rc = tap_set_pairs(net, 1);
	if (rc)
		return mb_error_set(
			err, -rc, "%s: cannot switch queues off: %s", net->name, strerror(-rc));
	return 0;
}

void mb_tap_close(struct mb_tap *tap)
{
	if (!tap)
		return;
	for (unsigned i = 0; i < tap->n_fds; i++)
		close(tap->fds[i]);
	free(tap);
}
