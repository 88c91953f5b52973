// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <mirrorball/range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

/*
 * virtio-blk (virtio 1.2, 5.2).
 *
 * Durability: what the guest was told is written is in the page cache or in the drive's own cache;
 * a FLUSH is one fdatasync of the file, started after all of that, so it covers every write that
 * any queue has completed before. A driver that does not ask for flushes, or that chose
 * write-through, gets each write with RWF_DSYNC instead. After a failed fdatasync the kernel may
 * have thrown the data away and says so only once, so from then on every flush fails until the
 * machine is reset.
 *
 * DISCARD is offered on every writable file: whether its file system can give blocks back shows
 * only when it is to. Where it cannot, or not this range, all stays as it is, which a discard
 * permits. WRITE_ZEROES is always offered on a writable disk: where fallocate cannot, zeroes are
 * written.
 */
#define FEATURE(bit) (1ull << (bit))
#define LOG_DISK                                                                                   \
	"%s: %s of %" PRIu64 " bytes at byte %" PRIu64 " failed: %s%s; the guest gets an I/O "     \
	"error"

static bool has_feature(const struct mb_blk_queue *q, unsigned bit)
{
	return q->features & FEATURE(bit);
}

/* Whether completed writes may still be volatile. Without FLUSH the driver could never change that.
 */
static bool write_back(const struct mb_blk *blk, uint64_t features)
{
	if (!(features & FEATURE(VIRTIO_BLK_F_FLUSH)))
		return false;
	if (features & FEATURE(VIRTIO_BLK_F_CONFIG_WCE))
		return __atomic_load_n(&blk->wce, __ATOMIC_RELAXED);
	return true;
}

/* ---- completion ---- */

/* Tells the guest. The status is the last byte of the in-part (virtio 1.2, 5.2.6). */
static void finish(struct mb_blk_req *req, uint8_t status)
{
	struct mb_chain *chain = req->chain;
	struct mb_virtq *vq = req->q->vq;
	uint64_t data_in = chain->in_bytes - 1;
	uint32_t written;

	mb_blk_restore(req);
	mb_chain_write(chain, data_in, &status, 1);
	/* How far the in-part was written without a gap (2.7.8.2); `done` counts out-bytes for
	 * others. */
	if (req->type != VIRTIO_BLK_T_IN && req->type != VIRTIO_BLK_T_GET_ID)
		req->done = 0;
	if (req->done >= data_in)
		written = chain->in_bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)chain->in_bytes;
	else
		written = req->done > UINT32_MAX ? UINT32_MAX : (uint32_t)req->done;
	mb_blk_req_put(req);
	mb_virtq_push(vq, chain, written);
}

static const char *op_name(const struct mb_blk_req *req)
{
	switch (req->type) {
	case VIRTIO_BLK_T_IN:
		return "read";
	case VIRTIO_BLK_T_OUT:
		return req->op == MB_BLK_FSYNC ? "sync" : "write";
	case VIRTIO_BLK_T_DISCARD:
		return "discard";
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return "write of zeroes";
	default:
		return "flush";
	}
}

void mb_blk_sync_failed(struct mb_blk_req *req, int err)
{
	struct mb_blk *blk = req->q->blk;

	/* The server was not asked. Whether anything was lost with the connection is known there.
	 */
	if (blk->nbd && err == ENOTCONN)
		return;
	__atomic_store_n(&blk->flush_failed, true, __ATOMIC_RELAXED);
	if (blk->cow)
		mb_cow_flush_cancel(blk->cow, &req->flush, true);
}

static void fail(struct mb_blk_req *req, int err)
{
	struct mb_blk *blk = req->q->blk;

	if (req->op == MB_BLK_FSYNC)
		mb_blk_sync_failed(req, err);
	mb_log_guest(&blk->rl, LOG_DISK, blk->name, op_name(req), req->left, req->offset,
		blk->nbd && err == ENOTCONN ? "no connection to the server" : strerror(err),
		err == ENOSPC ? " (make room there; what the guest was told is written stays)"
			      : "");
	finish(req, VIRTIO_BLK_S_IOERR);
}

static void next_range(struct mb_blk_req *req);

void mb_blk_done(struct mb_blk_req *req, int err)
{
	if (err) {
		fail(req, err);
		return;
	}
	if (req->segment < req->n_segments) {
		next_range(req);
		return;
	}
	if (req->sync_after) {
		struct mb_blk *blk = req->q->blk;

		req->sync_after = false;
		req->op = MB_BLK_FSYNC;
		/* What was acknowledged before write-back ended may be lost: who comes next is told. */
		if (__atomic_exchange_n(&blk->sync_owed, false, __ATOMIC_RELAXED) &&
			__atomic_load_n(&blk->flush_failed, __ATOMIC_RELAXED)) {
			fail(req, EIO);
			return;
		}
		mb_blk_issue(req);
		return;
	}
	finish(req, VIRTIO_BLK_S_OK);
}

/* ---- requests ---- */

/* Sets the file range of a transfer of len bytes from sector on; false if it is not on the disk. */
static bool set_range(struct mb_blk_req *req, uint64_t sector, uint64_t len)
{
	uint64_t n_sectors = req->q->blk->n_sectors;

	if (len % MB_BLK_SECTOR || sector > n_sectors || len / MB_BLK_SECTOR > n_sectors - sector)
		return false;
	req->offset = sector * MB_BLK_SECTOR;
	req->left = len;
	return true;
}

static void start_data(struct mb_blk_req *req, uint64_t sector)
{
	struct mb_blk_queue *q = req->q;
	struct mb_blk *blk = q->blk;
	bool write = req->type == VIRTIO_BLK_T_OUT;
	uint64_t len = write ? req->chain->out_bytes - MB_BLK_HEADER : req->chain->in_bytes - 1;

	if (!set_range(req, sector, len) || (write && blk->readonly)) {
		finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	if (!len) {
		mb_blk_done(req, 0);
		return;
	}
	if ((req->offset | len) % blk->file.io_align) {
		/* A block device of 4 KiB blocks says so in blk_size; direct I/O cannot do less,
		 * and some servers. */
		mb_log_guest(&blk->rl,
			"%s: the guest ignores the disk's block size of %u bytes and gets an I/O "
			"error%s",
			blk->name, blk->file.io_align,
			blk->nbd ? "" : "; use the disk without direct I/O");
		finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	req->op = MB_BLK_GUEST;
	mb_blk_data(req, write, write ? MB_BLK_HEADER : 0);
	mb_blk_issue(req);
}

/* The next segment of a DISCARD or WRITE_ZEROES (virtio 1.2, 5.2.6.2). */
static void next_range(struct mb_blk_req *req)
{
	struct mb_blk *blk = req->q->blk;
	struct virtio_blk_discard_write_zeroes seg;
	bool discard = req->type == VIRTIO_BLK_T_DISCARD;
	bool punch = !__atomic_load_n(&blk->no_punch, __ATOMIC_RELAXED);
	uint32_t flags, n_sectors;

	mb_chain_read(req->chain, MB_BLK_HEADER + req->segment * sizeof(seg), &seg, sizeof(seg));
	req->segment++;
	flags = le32toh(seg.flags);
	n_sectors = le32toh(seg.num_sectors);
	if (flags & ~(discard ? 0u : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)) {
		finish(req, VIRTIO_BLK_S_UNSUPP);
		return;
	}
	if (n_sectors > MB_BLK_RANGE_SECTORS ||
		!set_range(req, le64toh(seg.sector), (uint64_t)n_sectors * MB_BLK_SECTOR)) {
		finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	if (!n_sectors || (discard && !punch && !blk->cow)) {
		mb_blk_done(req, 0);
		return;
	}
	if (blk->cow) {
		req->op = MB_BLK_ZERO;
		mb_blk_issue(req);
		return;
	}
	req->op = MB_BLK_FALLOCATE;
	req->mode = FALLOC_FL_KEEP_SIZE;
	if (blk->nbd) {
		req->mode |= discard || flags ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
		if (!discard && !blk->can.zero)
			req->op = MB_BLK_ZERO;
	} else if (discard || (flags && punch && blk->file.can_punch))
		req->mode |= FALLOC_FL_PUNCH_HOLE;
	else if (!__atomic_load_n(&blk->no_zero_range, __ATOMIC_RELAXED))
		req->mode |= FALLOC_FL_ZERO_RANGE;
	else
		req->op = MB_BLK_ZERO;
	mb_blk_issue(req);
}

static void start_ranges(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;
	uint64_t len = req->chain->out_bytes - MB_BLK_HEADER;
	uint64_t n = len / sizeof(struct virtio_blk_discard_write_zeroes);
	bool offered = req->type == VIRTIO_BLK_T_DISCARD
			       ? has_feature(q, VIRTIO_BLK_F_DISCARD)
			       : has_feature(q, VIRTIO_BLK_F_WRITE_ZEROES);

	if (!offered) {
		finish(req, VIRTIO_BLK_S_UNSUPP);
		return;
	}
	if (q->blk->readonly || !n || n > MB_BLK_MAX_SEGMENTS ||
		len % sizeof(struct virtio_blk_discard_write_zeroes)) {
		finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	req->n_segments = (unsigned)n;
	req->sync_after |= req->dsync;
	next_range(req);
}

static void start_flush(struct mb_blk_req *req)
{
	struct mb_blk *blk = req->q->blk;

	if (__atomic_load_n(&blk->flush_failed, __ATOMIC_RELAXED)) {
		finish(req, VIRTIO_BLK_S_IOERR);
	} else if (blk->readonly) {
		finish(req, VIRTIO_BLK_S_OK);
	} else {
		req->sync_after = false;
		req->op = MB_BLK_FSYNC;
		mb_blk_issue(req);
	}
}

static void start_get_id(struct mb_blk_req *req)
{
	req->done = mb_chain_write(req->chain, 0, req->q->blk->serial,
		req->chain->in_bytes - 1 < sizeof(req->q->blk->serial)
			? req->chain->in_bytes - 1
			: sizeof(req->q->blk->serial));
	finish(req, VIRTIO_BLK_S_OK);
}

static bool changes(uint32_t type)
{
	return type == VIRTIO_BLK_T_OUT || type == VIRTIO_BLK_T_DISCARD ||
	       type == VIRTIO_BLK_T_WRITE_ZEROES;
}

static void start(struct mb_blk_queue *q, struct mb_chain *chain)
{
	struct mb_blk *blk = q->blk;
	struct mb_blk_req *req = q->free_reqs;
	struct virtio_blk_outhdr header;

	if (!chain->in_bytes) {
		mb_virtq_push(q->vq, chain, 0);
		mb_virtio_broken(blk->vdev, "a request has no room for its status");
		return;
	}
	q->free_reqs = req->next;
	*req = (struct mb_blk_req){.q = q, .chain = chain, .type = UINT32_MAX};
	chain->user = req;
	/* The header may lie in any number of buffers (2.7.4); copied once. */
	if (mb_chain_read(chain, 0, &header, sizeof(header)) < sizeof(header)) {
		finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	req->type = le32toh(header.type);
	if (!write_back(blk, q->features)) {
		/* With a delta a write is durable when its entry is. */
		req->dsync = !blk->cow && (!blk->nbd || blk->can.fua);
		req->sync_after = !req->dsync && changes(req->type);
		/* Set once when write-back ends: whoever comes next, and to its end, makes the
		 * earlier writes durable too. */
		if ((changes(req->type) || req->type == VIRTIO_BLK_T_IN) && !blk->readonly &&
			__atomic_load_n(&blk->sync_owed, __ATOMIC_RELAXED))
			req->sync_after = true;
	}
	switch (req->type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT:
		start_data(req, le64toh(header.sector));
		break;
	case VIRTIO_BLK_T_FLUSH:
		start_flush(req);
		break;
	case VIRTIO_BLK_T_GET_ID:
		start_get_id(req);
		break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		start_ranges(req);
		break;
	default:
		finish(req, VIRTIO_BLK_S_UNSUPP);
	}
}

/* ---- the queue; on its loop's thread ---- */

static void ring_ready(struct mb_watch *watch, uint32_t events)
{
	struct mb_blk_queue *q = watch->ctx;

	mb_blk_reap(q);
	mb_virtq_signal(q->vq);
}

static int queue_start(void *dev, struct mb_virtq *vq, uint64_t features)
{
	struct mb_blk *blk = dev;
	unsigned index = mb_virtq_index(vq);
	struct mb_blk_queue *q = &blk->queues[index];
	struct mb_loop *loop = blk->loops[index];
	int rc;

	q->vq = vq;
	q->features = features;
	q->stopping = false;
	q->watch = (struct mb_watch){
		.fd = q->ring.ring_fd,
		.events = EPOLLIN,
		.ready = ring_ready,
		.ctx = q,
	};
	rc = q->has_ring ? mb_loop_add(loop, &q->watch) : 0;
	if (rc)
		return rc;
	rc = blk->cow ? mb_loop_add(loop, &q->wake_watch) : 0;
	if (rc)
		goto err_ring;
	rc = blk->nbd ? mb_nbd_queue_start(q, loop) : 0;
	if (!rc)
		return 0;
	if (blk->cow)
		mb_loop_remove(loop, &q->wake_watch);
err_ring:
	if (q->has_ring)
		mb_loop_remove(loop, &q->watch);
	return rc;
}

static void queue_kick(void *dev, struct mb_virtq *vq)
{
	struct mb_blk *blk = dev;
	struct mb_blk_queue *q = &blk->queues[mb_virtq_index(vq)];
	struct mb_chain *chain;

	while (mb_virtq_pop(vq, &chain) > 0)
		start(q, chain);
	mb_blk_submit(q);
	/* What the page cache had is complete already. */
	mb_blk_reap(q);
	mb_virtq_signal(vq);
}

static void queue_stop(void *dev, struct mb_virtq *vq)
{
	struct mb_blk *blk = dev;
	unsigned index = mb_virtq_index(vq);
	struct mb_blk_queue *q = &blk->queues[index];

	if (q->vq != vq)
		return;
	mb_blk_drain(q);
	if (blk->nbd)
		mb_nbd_queue_stop(q);
	if (q->has_ring)
		mb_loop_remove(blk->loops[index], &q->watch);
	if (blk->cow)
		mb_loop_remove(blk->loops[index], &q->wake_watch);
	q->vq = NULL;
}

/* ---- configuration; on vCPU threads ---- */

static void config_read(void *dev, unsigned offset, void *data, unsigned len)
{
	const struct mb_blk *blk = dev;
	const struct mb_blk_file *file = &blk->file;
	uint32_t block = file->block_bytes;
	uint64_t features = mb_virtio_features(blk->vdev);
	struct virtio_blk_config cfg = {
		.capacity = htole64(blk->n_sectors),
		.size_max = htole32(1u << 20),
		.seg_max = htole32(MB_BLK_QUEUE_SIZE - 2),
		.blk_size = htole32(block),
		.physical_block_exp = (uint8_t)__builtin_ctz(file->phys_bytes / block),
		.alignment_offset = (uint8_t)(file->align_bytes / block),
		.min_io_size = htole16((uint16_t)(file->min_io_bytes / block)),
		.opt_io_size = htole32(file->opt_io_bytes / block),
		/* Before the driver has chosen: what it gets if it accepts everything. */
		.wce = features ? write_back(blk, features)
				: __atomic_load_n(&blk->wce, __ATOMIC_RELAXED),
		.num_queues = htole16((uint16_t)blk->n_queues),
		.max_discard_sectors = htole32(MB_BLK_RANGE_SECTORS),
		.max_discard_seg = htole32(MB_BLK_MAX_SEGMENTS),
		.discard_sector_alignment = htole32(file->phys_bytes / MB_BLK_SECTOR),
		.max_write_zeroes_sectors = htole32(MB_BLK_RANGE_SECTORS),
		.max_write_zeroes_seg = htole32(MB_BLK_MAX_SEGMENTS),
		.write_zeroes_may_unmap = blk->cow || (blk->nbd ? blk->can.zero : file->can_punch),
	};

	memset(data, 0, len);
	if (offset < sizeof(cfg))
		memcpy(data, (const uint8_t *)&cfg + offset,
			len < sizeof(cfg) - offset ? len : sizeof(cfg) - offset);
}

static void config_write(void *dev, unsigned offset, const void *data, unsigned len)
{
	struct mb_blk *blk = dev;
	uint64_t features = mb_virtio_features(blk->vdev);
	bool wce;

	/* `writeback` is the only field that a driver may write (5.2.4). */
	if (offset != offsetof(struct virtio_blk_config, wce) || len != 1 ||
		!(features & FEATURE(VIRTIO_BLK_F_CONFIG_WCE)))
		return;
	wce = *(const uint8_t *)data;
	if (__atomic_exchange_n(&blk->wce, wce, __ATOMIC_RELAXED) && !wce)
		__atomic_store_n(&blk->sync_owed, true, __ATOMIC_RELAXED);
}

static const struct mb_virtio_ops blk_ops = {
	.config_read = config_read,
	.config_write = config_write,
	.queue_start = queue_start,
	.queue_kick = queue_kick,
	.queue_stop = queue_stop,
};

/* ---- life ---- */

static uint64_t offered_features(const struct mb_blk *blk)
{
	uint64_t features = FEATURE(VIRTIO_BLK_F_SIZE_MAX) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |
			    FEATURE(VIRTIO_BLK_F_BLK_SIZE) | FEATURE(VIRTIO_BLK_F_TOPOLOGY) |
			    FEATURE(VIRTIO_BLK_F_FLUSH);

	if (blk->n_queues > 1)
		features |= FEATURE(VIRTIO_BLK_F_MQ);
	if (blk->readonly)
		return features | FEATURE(VIRTIO_BLK_F_RO);
	features |= FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_WRITE_ZEROES);
	if (blk->cow || blk->file.can_punch)
		features |= FEATURE(VIRTIO_BLK_F_DISCARD);
	return features;
}

/* The last part of a path. Of a URI the export's, or if that has no name, the host's or socket's.
 */
static const char *last_part(const char *path, size_t *len)
{
	size_t n = strlen(path), query = strcspn(path, "?");

	if (mb_blk_is_uri(path)) {
		while (query && path[query - 1] == '/')
			query--;
		if (query && path[query - 1] != ':')
			n = query;
	}
	*len = 0;
	while (n && path[n - 1] != '/') {
		n--;
		++*len;
	}
	return path + n;
}

static void set_serial(struct mb_blk *blk, const char *serial, const char *path)
{
	size_t len;

	if (serial)
		len = strlen(serial);
	else
		serial = last_part(path, &len);
	/* Not terminated when it fills all 20 bytes (5.2.6). */
	for (unsigned i = 0; i < sizeof(blk->serial) && i < len; i++)
		blk->serial[i] = serial[i] > ' ' && serial[i] < 0x7f ? serial[i] : '_';
}

static int check_config(const struct mb_blk_config *config, struct mb_error *err)
{
	if (!config->n_queues || config->n_queues > MB_VIRTIO_MAX_QUEUES)
		return mb_error_set(err, EINVAL, "disk %s: %u queues; 1 to %u are possible",
			config->path, config->n_queues, MB_VIRTIO_MAX_QUEUES);
	if (config->serial && strlen(config->serial) > 20)
		return mb_error_set(err, EINVAL,
			"disk %s: serial number '%s' is longer than 20 bytes; shorten it",
			config->path, config->serial);
	return 0;
}

bool mb_blk_is_uri(const char *path)
{
	size_t len = strcspn(path, ":");

	/* nbd, nbds, and what libnbd has of nbd+unix, nbds+vsock ... */
	return !strncmp(path, "nbd", 3) && !strncmp(path + len, "://", 3) &&
	       strspn(path, "abcdefghijklmnopqrstuvwxyz+") == len;
}

static int open_server(
	struct mb_blk *blk, const struct mb_blk_config *config, bool readonly, struct mb_error *err)
{
	int rc;

	if (config->overlay)
		return mb_error_set(err, EINVAL,
			"disk %s: overlay= needs a file or block device beneath; with a network "
			"disk, cow is possible",
			config->path);
	rc = mb_nbd_open(&blk->nbd, blk, config->path, readonly, err);
	if (rc)
		return rc;
	mb_nbd_describe(blk->nbd, &blk->file, &blk->can);
	/* A flush on one connection would not be for what was written on others. */
	if (!blk->can.multi_conn)
		blk->n_queues = 1;
	return 0;
}

static int open_files(struct mb_blk *blk, const struct mb_blk_config *config, struct mb_error *err)
{
	bool cow = config->cow || config->overlay, readonly = config->readonly || cow;
	struct mb_cow_config cow_config;
	int rc;

	if (mb_blk_is_uri(config->path))
		rc = open_server(blk, config, readonly, err);
	else /* Through the page cache, of which machines with the same base have one copy. */
		rc = mb_blk_file_open(
			&blk->file, config->path, readonly, config->direct && !cow, err);
	if (rc)
		return rc;
	cow_config = (struct mb_cow_config){
		.base_fd = blk->file.fd,
		.base_path = config->path,
		.base_bytes = blk->file.n_sectors * MB_BLK_SECTOR,
		.base_is_device = blk->file.block_device || blk->nbd,
		.overlay_path = config->overlay,
		.dir = config->cow_dir,
		.dry = config->dry,
	};
	blk->readonly = config->readonly;
	blk->n_sectors = blk->file.n_sectors;
	if (!cow)
		return 0;
	blk->base_ops = config->base_ops;
	blk->base_ctx = config->base_ctx;
	rc = mb_cow_create(&blk->cow, &cow_config, err);
	if (!rc)
		blk->n_sectors = mb_cow_bytes(blk->cow) / MB_BLK_SECTOR;
	return rc;
}

int mb_blk_create(struct mb_pci_bus *pci, struct mb_dma *dma, const struct mb_blk_config *config,
	struct mb_blk **out, struct mb_error *err)
{
	struct mb_virtio_config vcfg;
	struct mb_blk *blk;
	int rc = check_config(config, err);

	if (rc)
		return rc;
	blk = calloc(1, sizeof(*blk));
	if (!blk)
		return mb_error_set(err, ENOMEM, "disk %s: out of memory", config->path);
	blk->file.fd = -1;
	blk->n_queues = config->n_queues;
	blk->loops = config->loops;
	blk->wce = true;
	set_serial(blk, config->serial, config->path);
	blk->queues = calloc(config->n_queues, sizeof(*blk->queues));
	/* Only ever read: all of it is the kernel's one page of zeroes. */
	blk->zeroes = mmap(NULL, MB_BLK_ZERO_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (blk->zeroes == MAP_FAILED)
		blk->zeroes = NULL;
	if (!blk->queues || !blk->zeroes || asprintf(&blk->name, "disk %s", config->path) < 0) {
		rc = mb_error_set(err, ENOMEM, "disk %s: out of memory", config->path);
		goto err_destroy;
	}
	rc = open_files(blk, config, err);
	if (rc)
		goto err_destroy;
	for (unsigned i = 0; i < blk->n_queues; i++) {
		rc = mb_blk_queue_init(&blk->queues[i], blk, err);
		if (rc && (!blk->nbd || !i))
			goto err_destroy;
		if (rc) {
			/* A server may say that it takes several, and mean a few. */
			mb_log("%s: %u queues, for the server takes no more connections: %s", blk->name,
				i, err->text);
			mb_blk_queue_finish(&blk->queues[i]);
			blk->n_queues = i;
			rc = 0;
		}
	}
	vcfg = (struct mb_virtio_config){
		.type = VIRTIO_ID_BLOCK,
		.class_code = 0x018000, /* mass storage, other */
		.features = offered_features(blk),
		.n_queues = blk->n_queues,
		.queue_size = MB_BLK_QUEUE_SIZE,
		.config_bytes = offsetof(struct virtio_blk_config, max_secure_erase_sectors),
		.loops = blk->loops,
		.ops = &blk_ops,
		.dev = blk,
		.name = blk->name,
	};
	rc = mb_virtio_create(pci, dma, &vcfg, &blk->vdev, err);
	if (rc)
		goto err_destroy;
	*out = blk;
	return 0;

err_destroy:
	mb_blk_destroy(blk);
	return rc;
}

void mb_blk_destroy(struct mb_blk *blk)
{
	if (!blk)
		return;
	if (blk->vdev)
		mb_virtio_destroy(blk->vdev);
	if (blk->queues)
		for (unsigned i = 0; i < blk->n_queues; i++)
			mb_blk_queue_finish(&blk->queues[i]);
	mb_cow_destroy(blk->cow);
	mb_nbd_close(blk->nbd);
	mb_blk_file_close(&blk->file);
	if (blk->zeroes)
		munmap(blk->zeroes, MB_BLK_ZERO_BYTES);
	free(blk->queues);
	free(blk->name);
	free(blk);
}

int mb_blk_base_fd(const struct mb_blk *blk)
{
	return blk->cow ? blk->file.fd : -1;
}

void mb_blk_reset(struct mb_blk *blk)
{
	mb_virtio_reset(blk->vdev);
	if (blk->nbd)
		mb_nbd_forget_written(blk->nbd);
	__atomic_store_n(&blk->wce, true, __ATOMIC_RELAXED);
	__atomic_store_n(&blk->sync_owed, false, __ATOMIC_RELAXED);
	__atomic_store_n(&blk->flush_failed, false, __ATOMIC_RELAXED);
}

uint64_t mb_blk_bytes(const struct mb_blk *blk)
{
	return blk->n_sectors * MB_BLK_SECTOR;
}

unsigned mb_blk_n_queues(const struct mb_blk *blk)
{
	return blk->n_queues;
}
