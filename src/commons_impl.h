/* SPDX-License-Identifier: Apache-2.0 */
#ifndef COMMONS_IMPL_H
#define COMMONS_IMPL_H

#include "commons_protocol.h"
#include "commons_socket.h"
#include <mirrorball/commons.h>
#include <pthread.h>
#include <sys/queue.h>
#include <sys/types.h>

/* A monitor's side, inside. */

#define MB_COMMONS_BUCKETS 1024u

struct held {
	struct held *next;
	uint64_t index;
	unsigned node;
	int fd;
	const char *data; /* MB_COMMONS_FILE_BYTES */
	const struct mb_commons_state *state;
	uint64_t inode, generation;
	bool live; /* of the daemon that is there now, which knows that we have it */
};

struct mb_commons_base {
	struct mb_commons *commons;
	char *group; /* its name; NULL: a file */
	struct mb_content_key key;
	int fd;
	int status; /* as mb_commons_base_status */
	bool number_is_known;
	uint32_t number;			 /* of the daemon's */
	uint64_t open_tag;			 /* of the OPEN that is under way; 0: none */
	uint64_t bytes, hash;			 /* bytes 0: not known yet */
	struct held *bucket[MB_COMMONS_BUCKETS]; /* changed by the owner's thread, with the lock */
};

struct want {
	bool used;
	uint64_t tag;
	enum mb_commons_type type;
	struct mb_commons_done done;
};

/* What the socket did not take at once. */
struct unsent {
	STAILQ_ENTRY(unsent) next;
	struct mb_commons_request msg;
	struct mb_commons_base *base; /* OPEN: whose descriptor goes along; JOIN: whose name */
};

struct mb_commons {
	struct mb_commons_config config;
	int epoll_fd, timer_fd, socket_fd; /* socket: -1: none */
	bool writing;			   /* epoll is asked when the socket takes more */
	enum mb_commons_status status;
	unsigned retry_ms;
	uint64_t retry_ns;    /* when to look for a daemon next */
	uint64_t no_start_ns; /* until then none is started: it did not work */
	pid_t daemon;	      /* that we started, and is to be waited for; 0: none */
	uint64_t last_tag, last_generation;
	STAILQ_HEAD(, unsent) unsent;
	struct mb_commons_base *base[MB_COMMONS_MAX_OPEN];
	struct want want[MB_COMMONS_CLIENT_PENDING];
	/* Held for reading by mb_commons_read, for writing by the owner's thread where it changes
	 * what is in buckets. */
	pthread_rwlock_t lock;
};

/* ---- commons.c ---- */
/* Sends it, or later. -ENOTCONN, -ENOMEM. */
int mb_commons_send(struct mb_commons *commons, const struct mb_commons_request *msg,
	struct mb_commons_base *base);
/* The same at once or not at all, with what follows it. -EAGAIN. */
int mb_commons_send_packet(struct mb_commons *commons, const struct mb_commons_packet *packet);
uint64_t mb_commons_new_tag(struct mb_commons *commons);

/* ---- commons_pieces.c ---- */
void mb_commons_announce(struct mb_commons_base *base);
/* The daemon is gone: what it knew is void. */
void mb_commons_forget(struct mb_commons *commons);
/* A reply, with the descriptor that came along or -1, taken over. -errno: not what a daemon of ours
 * says. */
int mb_commons_take(struct mb_commons *commons, const struct mb_commons_reply *msg, int fd);
struct mb_commons_request mb_commons_request_of(enum mb_commons_type type);
/* A new base, announced if there is a daemon; fd is taken over, also on failure, and may be -1. */
int mb_commons_add_base(
	struct mb_commons *commons, int fd, const char *group, struct mb_commons_base **out);
/* One that is not used; NULL: there are too many, or something waits to be sent. */
struct want *mb_commons_new_want(struct mb_commons *commons);
struct want *mb_commons_find_want(struct mb_commons *commons, uint64_t tag);
/* With the want's offset and node: a piece came along (fd, taken over, or -1), or should be here. *status:
 * what the daemon said, or that it is not. -EBADMSG: not what a daemon of ours says. */
int mb_commons_take_file(
	struct mb_commons_base *base, const struct mb_commons_done *done, int fd, int *status);
void mb_commons_finish(struct mb_commons *commons, struct want *want, int status);
void mb_commons_set_status(struct mb_commons_base *base, int status);
void mb_commons_send_close(struct mb_commons *commons, uint32_t number);

/* ---- commons_group.c ---- */
int mb_commons_take_content(struct mb_commons *commons, const struct mb_commons_reply *msg, int fd);
int mb_commons_take_join(struct mb_commons *commons, const struct mb_commons_reply *msg);

#endif
