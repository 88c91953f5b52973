/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BLK_IMPL_H
#define MIRRORBALL_BLK_IMPL_H

#include "blk_nbd.h"
#include "cow.h"
#include <liburing.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <mirrorball/blk.h>
#include <mirrorball/log.h>
#include <mirrorball/range.h>

/*
 * The block device's parts, private to devices/:  blk.c speaks virtio, blk_io.c moves the bytes
 * with io_uring, blk_file.c opens, locks and measures the file, blk_cow.c says which file it is
 * where changes go to another one, blk_nbd.c is there for a server in the place of the file.
 */
#define MB_BLK_SECTOR	     512u
#define MB_BLK_HEADER	     16u /* struct virtio_blk_outhdr */
#define MB_BLK_QUEUE_SIZE    256u
#define MB_BLK_BOUNCE_BYTES  (64u << 10)
#define MB_BLK_N_BOUNCE	     16u	/* a queue */
#define MB_BLK_ZERO_BYTES    (1u << 20) /* largest write of the write-zeroes fallback */
#define MB_BLK_MAX_SEGMENTS  32u	/* of a discard or write-zeroes request */
#define MB_BLK_RANGE_SECTORS (1u << 22) /* 2 GiB: largest discard or write-zeroes segment */

/* What the file underneath is and can do. */
struct mb_blk_file {
	int fd; /* -1: a server has the disk */
	bool readonly;
	bool block_device;
	bool direct;	    /* O_DIRECT is on */
	bool can_punch;	    /* fallocate may be able to give blocks back */
	uint64_t n_sectors; /* of 512 bytes */
	uint32_t mem_align; /* direct I/O: alignment of memory, 1 when buffered */
	uint32_t io_align;  /* alignment of offsets and lengths, 1: any; of direct I/O, a server */
	uint32_t block_bytes; /* the logical block that the guest is told */
	uint32_t phys_bytes;  /* writes smaller than this cost a read */
	uint32_t min_io_bytes;
	uint32_t opt_io_bytes; /* 0: unknown */
	uint32_t align_bytes;  /* where the first physical block starts */
};

int mb_blk_file_open(struct mb_blk_file *file, const char *path, bool readonly, bool direct,
	struct mb_error *err);
void mb_blk_file_close(struct mb_blk_file *file);

/*
 * Locks all of fd, for one writer or any number of readers: an open-file-description lock. 0 too
 * where the file system has none, which is said. path is for messages.
 */
int mb_blk_lock(int fd, const char *path, bool readonly, struct mb_error *err);
void mb_blk_unlock_and_close(int fd);
/* -errnum, with what a failed open(2) of a disk's file means. */
int mb_blk_explain_open(const char *path, bool readonly, int errnum, struct mb_error *err);

enum mb_blk_op {
	MB_BLK_GUEST,  /* read or write straight from or to guest memory */
	MB_BLK_BOUNCE, /* the same through a bounce buffer: guest memory is not aligned */
	MB_BLK_FSYNC,
	MB_BLK_FALLOCATE, /* mode is in req->mode */
	MB_BLK_ZERO,	  /* writes zeroes: fallocate cannot */
	/* With a delta: a cluster that is written in part, by way of the bounce buffer. */
	MB_BLK_FILL_READ,
	MB_BLK_FILL_WRITE,
};

/*
 * A request: a slot of its queue from pop to push. It has at most one operation in flight and goes
 * on to the next when that completes.
 */
struct mb_blk_req {
	struct mb_blk_queue *q;
	struct mb_blk_req *next; /* in the free list, or waiting for a bounce buffer */
	struct mb_chain *chain;
	uint32_t type; /* VIRTIO_BLK_T_* */
	enum mb_blk_op op;
	bool dsync;	 /* each write is to be durable when it completes */
	bool sync_after; /* one more fdatasync before the guest is told */
	uint8_t n_again;
	int mode;	 /* of fallocate */
	uint64_t offset; /* of the next byte on the disk */
	uint64_t left;	 /* bytes to go in this transfer or segment */
	uint64_t done;	 /* bytes of data transferred */
	/* The operation: `part` bytes of what is left, at `at` in the file fd; -1: for the server.
	 */
	int fd;
	uint64_t at, part;
	unsigned segment; /* next one of discard or write-zeroes */
	unsigned n_segments;

	/*
	 * The data in guest memory that is left. iov points into chain->iov, whose first and last
	 * entry are cut to fit: what they were is kept here and put back before the push.
	 */
	struct iovec *iov;
	unsigned n_iov;
	struct iovec *cut_first, *cut_last, *cut_end; /* end: of this operation only */
	struct iovec first, last, end;
	uint8_t *bounce;

	/* With a delta. */
	struct mb_cow_claim claim;
	struct mb_cow_flush flush;
	struct mb_cow_waiter waiter;
	bool from_base;
	bool filled; /* the bounce buffer has what the base has of the claimed cluster */

	/* With a server. */
	bool sent; /* its operation is the library's */
	int res;
	uint32_t sent_bytes;
	uint64_t n_covered; /* of a flush: operations that had completed before */
};

struct mb_blk_queue {
	struct mb_blk *blk;
	struct mb_virtq *vq; /* NULL: not started */
	struct io_uring ring;
	bool has_ring;
	struct mb_watch watch;	 /* the ring's descriptor */
	struct mb_nbd_conn *nbd; /* with a server */
	bool stopping;
	uint64_t features;
	unsigned n_inflight; /* operations that the ring has, or will have at the next submit */
	struct mb_blk_req *reqs, *free_reqs;
	struct mb_blk_req *waiting, **waiting_last; /* for a bounce buffer */
	uint8_t *bounces;			    /* MB_BLK_N_BOUNCE */
	size_t bounce_bytes;
	uint8_t *free_bounces[MB_BLK_N_BOUNCE];
	unsigned n_free_bounces;
	struct mb_cow_queue cow_queue; /* with a delta */
	struct mb_watch wake_watch;    /* its eventfd; ctx is NULL without */
};

struct mb_blk {
	struct mb_virtio *vdev;
	struct mb_blk_file file;
	struct mb_cow *cow; /* NULL: what is written goes to the file */
	const struct mb_blk_base_ops *base_ops; /* NULL: none */
	void *base_ctx;
	struct mb_nbd *nbd; /* NULL: there is a file */
	struct mb_nbd_can can;
	bool readonly;
	uint64_t n_sectors; /* of 512 bytes */
	char *name;	    /* "disk PATH" */
	char serial[20];
	unsigned n_queues;
	struct mb_loop *const *loops;
	struct mb_blk_queue *queues;
	void *zeroes; /* MB_BLK_ZERO_BYTES of the zero page */
	struct mb_ratelimit rl;

	/* Shared between the queues' threads and vCPUs; atomic, relaxed: each stands alone. */
	bool wce;	/* the driver's choice, VIRTIO_BLK_F_CONFIG_WCE */
	bool sync_owed; /* write-back was switched off: the next request syncs what came before */
	bool no_punch;	/* the file system turned out to have no FALLOC_FL_PUNCH_HOLE */
	bool no_zero_range; /* the same of FALLOC_FL_ZERO_RANGE */
	bool flush_failed;
};

/* ---- blk_io.c; on the queue's thread ---- */

int mb_blk_queue_init(struct mb_blk_queue *q, struct mb_blk *blk, struct mb_error *err);
void mb_blk_queue_finish(struct mb_blk_queue *q);

/* Puts the request's next operation into the ring, or makes it wait for a bounce buffer. */
void mb_blk_issue(struct mb_blk_req *req);
/* Gives everything issued to the kernel. */
void mb_blk_submit(struct mb_blk_queue *q);
/* Handles the completions that are there, submits what follows from them. */
void mb_blk_reap(struct mb_blk_queue *q);
/* Waits for everything in flight; no request is left afterwards, nothing is pushed. */
void mb_blk_drain(struct mb_blk_queue *q);

/* Points the request at its data: `skip` bytes into the out-part (a write), or the in-part less the
 * status byte (a read). */
void mb_blk_data(struct mb_blk_req *req, bool write, uint64_t skip);
/* The chain's buffers as they were: before anything else looks at them. */
void mb_blk_restore(struct mb_blk_req *req);
void mb_blk_req_put(struct mb_blk_req *req);
/* n bytes of the data are done. */
void mb_blk_advance(struct mb_blk_req *req, uint64_t n);
/* Gives the request a bounce buffer, or makes it wait for one: false, and it is issued again then.
 */
bool mb_blk_take_bounce(struct mb_blk_req *req);
void mb_blk_drop_bounce(struct mb_blk_req *req);
/* The operation has completed: so many bytes, or -errno. */
void mb_blk_completed(struct mb_blk_req *req, int res);

/* ---- blk_cow.c; on the queue's thread ---- */

int mb_blk_cow_init(struct mb_blk_queue *q, struct mb_error *err);
void mb_blk_cow_finish(struct mb_blk_queue *q);
/* Sets the request's next operation; false: there is none now, it waits or is over. */
bool mb_blk_aim(struct mb_blk_req *req);
void mb_blk_cow_completed(struct mb_blk_req *req, int res);
/* The request is given up: what it has claimed is free. */
void mb_blk_cow_drop(struct mb_blk_req *req);
/* All of the queue's requests that wait for others' are given up. */
void mb_blk_cow_drain(struct mb_blk_queue *q);

/* ---- blk.c; called from blk_io.c ---- */

/* What the guest was told is written may be lost: no flush is good until the machine is reset. */
void mb_blk_sync_failed(struct mb_blk_req *req, int err);

/* The data, range or sync of the request is done (err 0) or failed (a positive errno). */
void mb_blk_done(struct mb_blk_req *req, int err);

#endif
