// SPDX-License-Identifier: Apache-2.0
#include "blk_nbd.h"
#include <errno.h>

/* In the place of blk_nbd.c in a build without libnbd's header: no such disk is ever opened. */

int mb_nbd_open(struct mb_nbd **out, struct mb_blk *blk, const char *uri, bool readonly,
	struct mb_error *err)
{
	return mb_error_set(err, ENOTSUP,
		"disk %s: this mirrorball was built without network disks; build it where "
		"libnbd-dev is installed",
		uri);
}

void mb_nbd_close(struct mb_nbd *nbd)
{
}

void mb_nbd_describe(const struct mb_nbd *nbd, struct mb_blk_file *file, struct mb_nbd_can *can)
{
}

int mb_nbd_queue_init(struct mb_blk_queue *q, struct mb_error *err)
{
	return -ENOTSUP;
}

void mb_nbd_queue_finish(struct mb_blk_queue *q)
{
}

int mb_nbd_queue_start(struct mb_blk_queue *q, struct mb_loop *loop)
{
	return -ENOTSUP;
}

void mb_nbd_queue_stop(struct mb_blk_queue *q)
{
}

void mb_nbd_put(struct mb_blk_req *req)
{
}

bool mb_nbd_reap(struct mb_blk_queue *q)
{
	return false;
}

void mb_nbd_drain(struct mb_blk_queue *q)
{
}
