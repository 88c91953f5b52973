// SPDX-License-Identifier: Apache-2.0
#include "base.h"
#include "blk_impl.h"
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pmem.h>
#include <mirrorball/pmem.h>
#include <mirrorball/range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CLASS_CODE 0x058000 /* memory controller, other */
#define QUEUE_SIZE 64

/* 5.19.6.2; linux/virtio_pmem.h does not name them. */
#define RESP_OK	 0u
#define RESP_EIO 1u

struct mb_pmem {
	struct mb_virtio *vdev;
	struct mb_blk_file file;
	struct mb_base base;
	char *name; /* "pmem PATH" */
	const char *path;
	uint64_t gpa, bytes;
};

static void config_read(void *dev, unsigned offset, void *data, unsigned len)
{
	const struct mb_pmem *pmem = dev;
	const struct virtio_pmem_config config = {.start = pmem->gpa, .size = pmem->bytes};

	memcpy(data, (const uint8_t *)&config + offset, len);
}

/*
 * Nothing is ever written, so that everything is durable. A driver that leaves no room for an
 * answer has none.
 */
static uint32_t answer(const struct mb_chain *chain)
{
	struct virtio_pmem_req req;
	struct virtio_pmem_resp resp = {.ret = RESP_EIO};

	if (mb_chain_read(chain, 0, &req, sizeof(req)) == sizeof(req) &&
		req.type == VIRTIO_PMEM_REQ_TYPE_FLUSH)
		resp.ret = RESP_OK;
	return (uint32_t)mb_chain_write(chain, 0, &resp, sizeof(resp));
}

static void queue_kick(void *dev, struct mb_virtq *vq)
{
	struct mb_chain *chain;

	while (mb_virtq_pop(vq, &chain) > 0)
		mb_virtq_push(vq, chain, answer(chain));
	mb_virtq_signal(vq);
}

static const struct mb_virtio_ops ops = {.config_read = config_read, .queue_kick = queue_kick};

/* ---- the file ---- */

bool mb_pmem_holds(struct mb_pmem *pmem)
{
	bool news, holds = mb_base_holds(&pmem->base, &news);
	struct stat st;

	if (!news)
		return holds;
	if (!fstat(pmem->file.fd, &st) && (uint64_t)st.st_size < pmem->base.was.bytes)
		mb_log("%s: was cut off by somebody while it is memory of a guest: it has %llu "
		       "bytes instead of %llu; the machine ends where the guest uses the others",
			pmem->name, (unsigned long long)st.st_size,
			(unsigned long long)pmem->base.was.bytes);
	else
		mb_log("%s: was changed by somebody while it is memory of a guest, which may see "
		       "some of it as it was and some as it is",
			pmem->name);
	return holds;
}

const char *mb_pmem_path(const struct mb_pmem *pmem)
{
	return pmem->path;
}

int mb_pmem_fd(const struct mb_pmem *pmem)
{
	return pmem->file.fd;
}

uint64_t mb_pmem_gpa(const struct mb_pmem *pmem)
{
	return pmem->gpa;
}

uint64_t mb_pmem_bytes(const struct mb_pmem *pmem)
{
	return pmem->bytes;
}

uint64_t mb_pmem_file_bytes(const struct mb_pmem *pmem)
{
	return pmem->base.was.bytes;
}

/* ---- life ---- */

static int open_file(struct mb_pmem *pmem, struct mb_error *err)
{
	int rc = mb_base_open(&pmem->file, pmem->path, true, &pmem->base.was, err);

	if (rc)
		return mb_error_prefix(err, rc, "pmem");
	pmem->base.fd = pmem->file.fd;
	pmem->base.is_device = pmem->file.block_device;
	pmem->bytes = mb_align_up(pmem->base.was.bytes, MB_PMEM_ALIGN);
	return 0;
}

int mb_pmem_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	const struct mb_pmem_config *config, struct mb_pmem **out, struct mb_error *err)
{
	struct mb_pmem *pmem = calloc(1, sizeof(*pmem));
	struct mb_virtio_config vcfg = {
		.type = VIRTIO_ID_PMEM,
		.class_code = CLASS_CODE,
		.n_queues = 1,
		.queue_size = QUEUE_SIZE,
		.config_bytes = sizeof(struct virtio_pmem_config),
		.loops = &loop,
		.ops = &ops,
		.dev = pmem,
	};
	int rc;

	if (!pmem)
		return mb_error_set(err, ENOMEM, "pmem %s: out of memory", config->path);
	pmem->file.fd = -1;
	pmem->path = config->path;
	pmem->gpa = config->gpa;
	rc = asprintf(&pmem->name, "pmem %s", config->path) < 0
		     ? mb_error_set(err, ENOMEM, "pmem %s: out of memory", config->path)
		     : open_file(pmem, err);
	vcfg.name = pmem->name;
	if (!rc)
		rc = mb_virtio_create(pci, dma, &vcfg, &pmem->vdev, err);
	if (rc) {
		mb_pmem_destroy(pmem);
		return rc;
	}
	*out = pmem;
	return 0;
}

void mb_pmem_destroy(struct mb_pmem *pmem)
{
	if (!pmem)
		return;
	mb_virtio_destroy(pmem->vdev);
	mb_blk_file_close(&pmem->file);
	free(pmem->name);
	free(pmem);
}

void mb_pmem_reset(struct mb_pmem *pmem)
{
	mb_virtio_reset(pmem->vdev);
}

/* ---- snapshots ---- */

#define STATE_VERSION 1u

int mb_pmem_pause(struct mb_pmem *pmem, uint64_t timeout_ns, struct mb_error *err)
{
	return mb_virtio_pause(pmem->vdev, timeout_ns, err);
}

void mb_pmem_resume(struct mb_pmem *pmem)
{
	mb_virtio_resume(pmem->vdev);
}

int mb_pmem_save(struct mb_pmem *pmem, struct mb_state_out *out, struct mb_error *err)
{
	if (!mb_pmem_holds(pmem))
		return mb_error_set(err, ESTALE, "%s: was changed while it is in use", pmem->name);
	mb_state_begin(out, "pmem", STATE_VERSION);
	mb_state_put_u64(out, pmem->gpa);
	mb_state_put_u64(out, pmem->base.was.bytes);
	mb_state_put_u64(out, (uint64_t)pmem->base.was.mtime_ns);
	mb_state_end(out);
	mb_virtio_save(pmem->vdev, out);
	return 0;
}

int mb_pmem_load(struct mb_pmem *pmem, struct mb_state_in *in, struct mb_error *err)
{
	const struct mb_qcow2_base *was = &pmem->base.was;
	struct mb_state_in part;
	uint64_t gpa, bytes;
	int64_t mtime_ns;
	int rc = mb_state_enter(in, "pmem", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	gpa = mb_state_get_u64(&part);
	bytes = mb_state_get_u64(&part);
	mtime_ns = (int64_t)mb_state_get_u64(&part);
	rc = mb_state_leave(&part, err);
	if (rc)
		return rc;
	/* Those before it in guest memory may have another size, too. */
	if (gpa != pmem->gpa || bytes != was->bytes || mtime_ns != was->mtime_ns)
		return mb_error_set(err, ESTALE,
			"%s: was changed since the snapshot was made, which does not fit it any "
			"more",
			pmem->name);
	return mb_virtio_load(pmem->vdev, in, err);
}
