/* SPDX-License-Identifier: Apache-2.0 */
#ifndef COMMONS_SOCKET_H
#define COMMONS_SOCKET_H

#include <limits.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * Where mirrorballd's socket is, and who may make it.
 *
 *   DIR/commons.sock   the socket
 *   DIR/commons.lock   locked (flock) by the daemon as long as it lives, and before by whoever
 * starts it DIR/commons.log    what a daemon that a machine started has to say
 *
 * The lock goes with the last descriptor of it, whatever becomes of the process: who has it may
 * take away a socket that nobody answers any more, and there is no moment between a machine that
 * makes the socket and the daemon that has it.
 */
struct mb_commons_place {
	int dir_fd; /* -1: none */
	char dir[PATH_MAX];
	char file[NAME_MAX + 1]; /* the socket */
};

/*
 * path: of the socket, or NULL: in the first directory of mb_control_dirs that there is or, with
 * `create`, can be made. As mb_control_open_dir where it fails.
 */
int mb_commons_place_open(
	struct mb_commons_place *place, const char *path, bool create, struct mb_error *err);
void mb_commons_place_close(struct mb_commons_place *place);

/* A connected socket that never waits. -ENOENT, -ECONNREFUSED: no daemon; -EPERM: one of somebody
 * who is neither root nor we. */
int mb_commons_place_connect(const struct mb_commons_place *place);

/* The same wherever one may be: path, or all the places of this user, then that of root. -ENOENT or
 * -ECONNREFUSED: nowhere. */
int mb_commons_connect(const char *path);

/* A descriptor that holds the lock; -EWOULDBLOCK: somebody else has it. */
int mb_commons_place_lock(const struct mb_commons_place *place);

/*
 * A listening socket; with any_user everybody can come, where the directory lets him. The caller
 * has the lock. -EADDRINUSE: somebody listens there, although he does not have it (systemd).
 */
int mb_commons_place_listen(const struct mb_commons_place *place, bool any_user);

/*
 * Starts `program` with these two as its descriptors 3 and 4, apart from this process: a session of
 * its own, no other descriptor. *pid is to be waited for. Closes neither.
 */
int mb_commons_spawn(const struct mb_commons_place *place, const char *program, int listen_fd,
	int lock_fd, int *pid);

/*
 * Packets, without waiting. Send: with fd, if it is not negative. 0, -EAGAIN, or -errno: it is
 * over. Receive: its length (0: the end, or empty), -EAGAIN, or -errno; *fd: what came along, or
 * -1. -EBADMSG: more than one descriptor came along (no more than one is left open), or the packet
 * is longer than len.
 */
int mb_commons_packet_send(int socket_fd, const void *packet, size_t len, int fd);
ssize_t mb_commons_packet_receive(int socket_fd, void *packet, size_t len, int *fd);

/* Says in the daemon's environment that it was started so. */
#define MB_COMMONS_ENV "MIRRORBALL_COMMONS_FDS"

#endif
