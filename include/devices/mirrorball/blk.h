/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BLK_H
#define MIRRORBALL_BLK_H

#include <mirrorball/virtio.h>
#include <sys/uio.h>

/*
 * A virtio block device (virtio 1.2, 5.2) over a raw file or block device, with io_uring, or over
 * what an NBD server has, with libnbd.
 */
struct mb_blk;

/*
 * What several machines have of one base (cow, overlay); on threads of the queues, several at once,
 * which it must not keep waiting.
 */
struct mb_blk_base_ops {
	/* Whether bytes [at, at + len) of the base were in memory, and are in buf now. If not, buf may
	 * be changed. */
	bool (*read)(void *ctx, uint64_t at, void *buf, uint64_t len);
	/* The first len bytes of these buffers, in guest memory, are what the base has at `at`. */
	void (*saw)(void *ctx, uint64_t at, const struct iovec *iov, unsigned n_iov, uint64_t len);
};

struct mb_blk_config {
	const char *path; /* or an NBD URI, see mb_blk_is_uri */
	bool readonly;
	/*
	 * Changes go elsewhere, and path is only read: to the qcow2 file `overlay`, which is made
	 * if it is missing; or, with cow, to a file that is gone at the end, in the directory
	 * cow_dir (NULL: $TMPDIR or /var/tmp; "": in memory). Not with readonly; through the page
	 * cache, whatever `direct` says.
	 */
	bool cow;
	const char *cow_dir;
	const char *overlay; /* not with a URI */
	const struct mb_blk_base_ops *base_ops; /* NULL: nobody wants to know of the base */
	void *base_ctx;
	bool dry;    /* nothing is made, or changed: only to see whether it can be opened */
	bool direct; /* O_DIRECT; falls back to buffered I/O where the file system refuses it */
	const char *serial; /* up to 20 bytes, NULL: made from the path's file name */
	unsigned n_queues; /* with a server that cannot do more: 1 of them is used */
	struct mb_loop *const *loops; /* of n_queues */
};

/*
 * Opens and locks path (an OFD lock on the whole file: shared when read-only, exclusive otherwise).
 * Errors name the file and say what to do: missing, directory, unreadable, odd-sized, locked.
 * With a URI it connects to the server, for which it waits some seconds; nothing is locked there.
 */
int mb_blk_create(struct mb_pci_bus *pci, struct mb_dma *dma, const struct mb_blk_config *config,
	struct mb_blk **out, struct mb_error *err);
void mb_blk_destroy(struct mb_blk *blk);
void mb_blk_reset(struct mb_blk *blk);
/* The base's descriptor, for reading, as long as the disk is there. -1: it has no base. */
int mb_blk_base_fd(const struct mb_blk *blk);

/*
 * For a snapshot (virtio.h); vCPUs paused. can_save: -ENOTSUP where the disk would not stay as it is. delta_fd: a file for
 * what the guest has changed, where it has a delta: empty to save, or what was saved; else -1. load: into a new one,
 * -ESTALE: the disk is not the one that it was.
 */
int mb_blk_can_save(const struct mb_blk *blk, struct mb_error *err);
bool mb_blk_has_delta(const struct mb_blk *blk);
int mb_blk_pause(struct mb_blk *blk, uint64_t timeout_ns, struct mb_error *err);
void mb_blk_resume(struct mb_blk *blk);
int mb_blk_save(struct mb_blk *blk, int delta_fd, struct mb_state_out *out, struct mb_error *err);
int mb_blk_load(struct mb_blk *blk, int delta_fd, struct mb_state_in *in, struct mb_error *err);

uint64_t mb_blk_bytes(const struct mb_blk *blk); /* of the disk */
unsigned mb_blk_n_queues(const struct mb_blk *blk);

/* Whether a disk's path is the URI of an NBD export, as nbd://host/export: by what it begins with. */
bool mb_blk_is_uri(const char *path);

#endif
