/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_COMMONS_SERVER_H
#define MIRRORBALL_COMMONS_SERVER_H

#include <jansson.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * What mirrorballd does, as a value: several can be in one process. Monitors' side: commons.h.
 *
 * One thread runs it and has all bookkeeping; disks are read by others, one for each base that is
 * being read and one for each client whose descriptor is being opened, since either may hang
 * in a file system of that client's choice.
 */
struct mb_commons_server;

struct mb_commons_server_config {
	int listen_fd;	    /* a listening Unix socket of packets; taken over, also on failure */
	uint64_t max_bytes; /* that copies may take; 0: an eighth of the host's memory */
	unsigned idle_ms;   /* run ends after so long without a client; 0: never */
	bool any_user;	    /* serves everybody who can connect, not only this user and root */
	const char *root;   /* in front of /proc and /sys for memory's state, for tests; NULL:
			       nothing. Must stay. */
	uint64_t note_ns;   /* a hash is forgotten so long after it was offered, for tests; 0: an
			       hour */
};

int mb_commons_server_create(const struct mb_commons_server_config *config,
	struct mb_commons_server **out, struct mb_error *err);
/* Until stop, or idle. 0 or -errno. */
int mb_commons_server_run(struct mb_commons_server *server);
void mb_commons_server_stop(struct mb_commons_server *server); /* any thread; async-signal-safe */
/*
 * After run has returned. Waits for reads in flight, but no longer than 1 s: what a read that hangs
 * needs is then left as it is, and false returned; the process had better end. Takes NULL.
 */
bool mb_commons_server_destroy(struct mb_commons_server *server);

/* As mirrorballd(8) explains; `details`: with each base. On the thread that runs it, or before and
 * after. NULL: out of memory. */
json_t *mb_commons_server_stat(const struct mb_commons_server *server, bool details);

/*
 * The socket for it. Either what systemd passed (sd_listen_fds(3)) or a machine that started this
 * process; or made at path, NULL: in the usual place. The lock that says that there is one daemon
 * is held by *lock_fd (-1: systemd sees to it), which is to stay open. Descriptors that are passed
 * become close-on-exec. -EADDRINUSE: there is a daemon.
 */
struct mb_commons_listen {
	int fd, lock_fd;
	bool passed; /* by systemd or by a machine */
};
int mb_commons_listen(
	const char *path, bool any_user, struct mb_commons_listen *out, struct mb_error *err);

#endif
