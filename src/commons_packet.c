// SPDX-License-Identifier: Apache-2.0
#include "commons_socket.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Packets with at most one descriptor. */

union control {
	struct cmsghdr head;
	char room[CMSG_SPACE(sizeof(int))];
};

int mb_commons_packet_send(int socket_fd, const void *packet, size_t len, int fd)
{
	union control control = {0};
	struct iovec iov = {.iov_base = (void *)packet, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		m.msg_control = control.room;
		m.msg_controllen = sizeof(control.room);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	}
	if (sendmsg(socket_fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 0;
	/* ETOOMANYREFS: too many descriptors are on the way that nobody takes: that is an error. */
	return errno == EINTR || errno == ENOBUFS || errno == ENOMEM ? -EAGAIN : -errno;
}

ssize_t mb_commons_packet_receive(int socket_fd, void *packet, size_t len, int *fd)
{
	union control control = {0};
	struct iovec iov = {.iov_base = packet, .iov_len = len};
	/* Not all of the room: what is there for alignment would hold a second descriptor. */
	struct msghdr m = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.room,
		.msg_controllen = CMSG_LEN(sizeof(int))};
	ssize_t n = recvmsg(socket_fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c;

	*fd = -1;
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		c->cmsg_len >= CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	/* One that is missing found no place here; of several, one is there. */
	if ((m.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) == MSG_CTRUNC && *fd < 0)
		return -EMFILE;
	return m.msg_flags & (MSG_CTRUNC | MSG_TRUNC) ? -EBADMSG : n;
}
