// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/rng.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE 64
#define CLASS_CODE 0x100000 /* encryption controller: the nearest there is */
#define TYPE_RNG   4

/*
 * 5.4.6.1: the device may use less than the whole buffer; the guest cannot have the loop for
 * itself.
 */
#define MAX_BYTES 4096u

struct mb_rng {
	struct mb_virtio *vdev;
};

static uint32_t fill(const struct mb_chain *chain)
{
	const struct iovec *in = chain->iov + chain->n_out;
	uint32_t done = 0;

	for (unsigned i = 0; i < chain->n_in && done < MAX_BYTES; i++) {
		size_t want = in[i].iov_len;
		ssize_t got;

		if (want > MAX_BYTES - done)
			want = MAX_BYTES - done;
		/*
		 * Interrupted only while the host's own generator is not ready yet (getrandom(2)).
		 */
		do {
			got = getrandom(in[i].iov_base, want, 0);
		} while (got < 0 && errno == EINTR);
		if (got < 0)
			break;
		done += (uint32_t)got;
		if ((size_t)got < want)
			break;
	}
	return done;
}

static void queue_kick(void *dev, struct mb_virtq *vq)
{
	struct mb_chain *chain;

	while (mb_virtq_pop(vq, &chain) > 0)
		mb_virtq_push(vq, chain, fill(chain));
	mb_virtq_signal(vq);
}

static const struct mb_virtio_ops ops = {.queue_kick = queue_kick};

int mb_rng_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	struct mb_rng **out, struct mb_error *err)
{
	struct mb_rng *rng = calloc(1, sizeof(*rng));
	struct mb_virtio_config config = {
		.type = TYPE_RNG,
		.class_code = CLASS_CODE,
		.n_queues = 1,
		.queue_size = QUEUE_SIZE,
		.loops = &loop,
		.ops = &ops,
		.dev = rng,
		.name = "rng",
	};
	int rc;

	if (!rng)
		return mb_error_set(err, ENOMEM, "rng: out of memory");
	rc = mb_virtio_create(pci, dma, &config, &rng->vdev, err);
	if (rc) {
		free(rng);
		return rc;
	}
	*out = rng;
	return 0;
}

void mb_rng_destroy(struct mb_rng *rng)
{
	if (!rng)
		return;
	mb_virtio_destroy(rng->vdev);
	free(rng);
}

void mb_rng_reset(struct mb_rng *rng)
{
	mb_virtio_reset(rng->vdev);
}

int mb_rng_pause(struct mb_rng *rng, uint64_t timeout_ns, struct mb_error *err)
{
	return mb_virtio_pause(rng->vdev, timeout_ns, err);
}

void mb_rng_resume(struct mb_rng *rng)
{
	mb_virtio_resume(rng->vdev);
}

void mb_rng_save(struct mb_rng *rng, struct mb_state_out *out)
{
	mb_virtio_save(rng->vdev, out);
}

int mb_rng_load(struct mb_rng *rng, struct mb_state_in *in, struct mb_error *err)
{
	return mb_virtio_load(rng->vdev, in, err);
}
