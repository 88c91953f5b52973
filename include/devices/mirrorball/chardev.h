/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CHARDEV_H
#define MIRRORBALL_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A stream of characters between a device of the guest (front: serial port, virtio console) and the
 * world (back: a terminal, a file, a test). A back never blocks the caller. The front goes first:
 * its destructor detaches it.
 *
 * Lock order: a back's for calling the front, the front's, a back's for ops->write and
 * ops->readable.
 */
struct mb_chardev;

struct mb_chardev_ops {
	/*
	 * Front to back, any thread: takes up to n bytes, returns how many were taken (fewer: the
	 * back is full and calls front->writable when there is room).
	 */
	size_t (*write)(struct mb_chardev *chr, const void *buf, size_t n);
	/*
	 * The front has room again for input that it refused. Any thread, no lock of the front
	 * held. May be NULL.
	 */
	void (*readable)(struct mb_chardev *chr);
	/*
	 * Sets chr->front to NULL; when it returns, no function of the front runs or will be
	 * called. No lock of the front held. May be NULL for a back without threads.
	 */
	void (*detach)(struct mb_chardev *chr);
};

struct mb_chardev_front {
	/* Back to front, on the back's thread: returns how many bytes were taken. */
	size_t (*receive)(void *dev, const void *buf, size_t n);
	/* There is room again after a short write. On the back's thread. */
	void (*writable)(void *dev);
};

struct mb_chardev {
	const struct mb_chardev_ops *ops;
	/* Set by mb_chardev_attach before the machine runs; NULL: nobody listens. */
	const struct mb_chardev_front *front;
	void *front_dev;
};

static inline void mb_chardev_attach(
	struct mb_chardev *chr, const struct mb_chardev_front *front, void *dev)
{
	chr->front = front;
	chr->front_dev = dev;
}

static inline void mb_chardev_detach(struct mb_chardev *chr)
{
	if (chr->ops->detach)
		chr->ops->detach(chr);
	else
		chr->front = NULL;
}

#endif
