/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BLK_NBD_H
#define MIRRORBALL_BLK_NBD_H

#include <mirrorball/error.h>
#include <mirrorball/loop.h>
#include <stdbool.h>

/*
 * A disk that a server on the network has (NBD); private to devices/. With a delta it is the base,
 * which is only read. Operations whose req->fd is -1 are for it: those of blk.c and blk_cow.c, on
 * their way through mb_blk_issue.
 *
 * A queue has a connection of its own where the server says that a flush on one of them is for
 * what all have written; otherwise the disk has one queue.
 */
struct mb_blk;
struct mb_blk_file;
struct mb_blk_queue;
struct mb_blk_req;
struct mb_nbd;
struct mb_nbd_conn;

#define MB_NBD_BOUNCE_BYTES (1u << 20) /* what a guest of today asks for at once, at most */

struct mb_nbd_can {
	bool fua, zero, multi_conn;
};

/* Connects to the server and says what the disk is like; file->fd is -1. name is for messages. */
int mb_nbd_open(struct mb_nbd **out, struct mb_blk *blk, const char *uri, bool readonly,
	struct mb_error *err);
void mb_nbd_close(struct mb_nbd *nbd); /* takes NULL */
void mb_nbd_describe(const struct mb_nbd *nbd, struct mb_blk_file *file, struct mb_nbd_can *can);

/* Nobody will ask whether what was written until now was flushed: the machine was reset. */
void mb_nbd_forget_written(struct mb_nbd *nbd);

int mb_nbd_queue_init(struct mb_blk_queue *q, struct mb_error *err);
void mb_nbd_queue_finish(struct mb_blk_queue *q);

/* On the queue's thread. Between start and stop its loop looks after the connection. */
int mb_nbd_queue_start(struct mb_blk_queue *q, struct mb_loop *loop);
void mb_nbd_queue_stop(struct mb_blk_queue *q);
/* Sends the request's operation, or makes it wait for a bounce buffer. */
void mb_nbd_put(struct mb_blk_req *req);
/* Handles what has completed; false: nothing had. */
bool mb_nbd_reap(struct mb_blk_queue *q);
/*
 * Waits for everything in flight, for some seconds; then without the connection. The queue is
 * stopping.
 */
void mb_nbd_drain(struct mb_blk_queue *q);

#endif
