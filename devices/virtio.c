// SPDX-License-Identifier: Apache-2.0
#include "virtio_dev.h"

#include <errno.h>
#include <linux/virtio_pci.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The state of a virtio device (virtio 1.2, chapters 2 and 3): status, features, running queues. */

#define DRIVER_STATUS                                                                              \
	(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |        \
		VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED)

/* ---- interrupts and errors: any thread, no lock ---- */

static void raise_vector(struct mb_virtio *vdev, const _Atomic uint16_t *vector)
{
	uint16_t v = atomic_load_explicit(vector, memory_order_relaxed);

	if (v != VIRTIO_MSI_NO_VECTOR)
		mb_pci_msix_raise(vdev->pdev, v);
}

static void notify_config(struct mb_virtio *vdev)
{
	if (!(atomic_load(&vdev->status) & VIRTIO_CONFIG_S_DRIVER_OK))
		return;
	atomic_fetch_or(&vdev->isr, VIRTIO_PCI_ISR_CONFIG);
	raise_vector(vdev, &vdev->config_vector);
}

void mb_virtio_config_changed(struct mb_virtio *vdev)
{
	atomic_fetch_add(&vdev->generation, 1);
	notify_config(vdev);
}

uint64_t mb_virtio_features(const struct mb_virtio *vdev)
{
	return atomic_load(&vdev->accepted);
}

void mb_virtio_broken(struct mb_virtio *vdev, const char *why)
{
	uint8_t old;

	atomic_store(&vdev->stopped, true);
	old = atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_NEEDS_RESET);
	if (old & VIRTIO_CONFIG_S_NEEDS_RESET)
		return;
	mb_log_guest(&vdev->limit, "%s: %s; the device waits for the guest to reset it", vdev->name,
		why);
	notify_config(vdev); /* 2.1.2 */
}

void mb_virtio_kick(struct mb_virtio_queue *q)
{
	int fd = atomic_load_explicit(&q->kick_fd, memory_order_acquire);
	uint64_t one = 1;
	ssize_t n;

	if (fd < 0)
		return;
	n = write(fd, &one, sizeof(one));
	(void)n; /* EAGAIN: it has been kicked often enough */
}

void mb_virtio_interrupt_all(struct mb_virtio *vdev)
{
	for (unsigned i = 0; i < vdev->config.n_queues; i++)
		if (vdev->queue[i].ready)
			raise_vector(vdev, &vdev->queue[i].vector);
	mb_virtio_config_changed(vdev);
}

/* ---- a queue on its loop ---- */

static struct mb_virtio_queue *queue_of(struct mb_virtq *vq)
{
	return vq->p.ctx;
}

static void hook_interrupt(struct mb_virtq *vq)
{
	struct mb_virtio_queue *q = queue_of(vq);

	raise_vector(q->vdev, &q->vector);
}

static void hook_kick(struct mb_virtq *vq)
{
	mb_virtio_kick(queue_of(vq));
}

static void hook_broken(struct mb_virtq *vq, const char *why)
{
	mb_virtio_broken(queue_of(vq)->vdev, why);
}

static const struct mb_virtq_hooks hooks = {
	.interrupt = hook_interrupt,
	.kick = hook_kick,
	.broken = hook_broken,
};

static void kicked(struct mb_watch *watch, uint32_t events)
{
	struct mb_virtio_queue *q = watch->ctx;
	struct mb_virtio *vdev = q->vdev;
	uint64_t n;

	if (read(watch->fd, &n, sizeof(n)) != sizeof(n) || atomic_load(&vdev->stopped))
		return;
	mb_virtq_kick_begin(&q->vq);
	vdev->config.ops->queue_kick(vdev->config.dev, &q->vq);
	mb_virtq_kick_end(&q->vq);
}

static void start_on_loop(void *arg)
{
	struct mb_virtio_queue *q = arg;
	struct mb_virtio *vdev = q->vdev;
	const struct mb_virtio_ops *ops = vdev->config.ops;
	uint64_t n;
	int fd = atomic_load(&q->kick_fd);
	ssize_t got = read(fd, &n, sizeof(n)); /* kicks of the time before */

	(void)got;
	if (ops->queue_start &&
		ops->queue_start(vdev->config.dev, &q->vq, atomic_load(&vdev->accepted))) {
		mb_virtio_broken(vdev, "a queue could not be started");
		return;
	}
	q->watch = (struct mb_watch){.fd = fd, .events = EPOLLIN, .ready = kicked, .ctx = q};
	if (mb_loop_add(q->loop, &q->watch)) {
		if (ops->queue_stop)
			ops->queue_stop(vdev->config.dev, &q->vq);
		mb_virtio_broken(vdev, "a queue could not be watched");
		return;
	}
	q->started = true;
	/* The driver may have made chains available before it said DRIVER_OK. */
	mb_virtio_kick(q);
}

static void stop_on_loop(void *arg)
{
	struct mb_virtio_queue *q = arg;
	const struct mb_virtio_config *config = &q->vdev->config;

	if (q->started) {
		mb_loop_remove(q->loop, &q->watch);
		q->started = false;
		if (config->ops->queue_stop)
			config->ops->queue_stop(config->dev, &q->vq);
	}
	mb_virtq_finish(&q->vq);
}

/* ---- start and stop ---- */

/* Everything that can be refused before the device hears of the queue. */
static const char *prepare(struct mb_virtio_queue *q)
{
	struct mb_virtio *vdev = q->vdev;
	struct mb_virtq_params params = {
		.vdev = vdev,
		.dma = vdev->dma,
		.hooks = &hooks,
		.stopped = &vdev->stopped,
		.ctx = q,
		.features = atomic_load(&vdev->accepted),
		.index = q->index,
		.size = q->size,
		.desc_gpa = q->desc_gpa,
		.driver_gpa = q->driver_gpa,
		.device_gpa = q->device_gpa,
	};
	const char *why;

	if (q->size > vdev->config.queue_size)
		return "a queue is larger than the device offers";
	if (atomic_load(&q->kick_fd) < 0) {
		int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

		if (fd < 0)
			return "the monitor has too many open files (ulimit -n)";
		atomic_store_explicit(&q->kick_fd, fd, memory_order_release);
	}
	if (mb_virtq_init(&q->vq, &params, &why))
		return why;
	if (q->resumes && mb_virtq_set_place(&q->vq, q->place)) {
		mb_virtq_finish(&q->vq);
		return "a queue goes on outside its ring";
	}
	q->ready = true;
	return NULL;
}

static void start(struct mb_virtio *vdev)
{
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		struct mb_virtio_queue *q = &vdev->queue[i];
		const char *why = q->enabled ? prepare(q) : NULL;

		if (why) {
			mb_virtio_broken(vdev, why);
			return;
		}
	}
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		struct mb_virtio_queue *q = &vdev->queue[i];

		if (!q->ready)
			continue;
		mb_loop_call(q->loop, start_on_loop, q);
		if (q->started)
			mb_virtio_want_ioeventfd(q, true);
	}
}

void mb_virtio_stop(struct mb_virtio *vdev)
{
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		if (vdev->queue[i].ready)
			mb_virtio_want_ioeventfd(&vdev->queue[i], false);
	}
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		struct mb_virtio_queue *q = &vdev->queue[i];

		if (q->ready)
			mb_loop_call(q->loop, stop_on_loop, q);
		q->ready = false;
	}
	atomic_fetch_and(&vdev->status, (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK);
}

void mb_virtio_clear(struct mb_virtio *vdev)
{
	mb_virtio_stop(vdev);
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		struct mb_virtio_queue *q = &vdev->queue[i];

		q->size = vdev->config.queue_size;
		q->enabled = q->resumes = q->paused = false;
		q->desc_gpa = q->driver_gpa = q->device_gpa = 0;
		atomic_store(&q->vector, VIRTIO_MSI_NO_VECTOR);
	}
	vdev->device_feature_select = vdev->driver_feature_select = 0;
	vdev->driver_features = 0;
	vdev->unknown_features = false;
	vdev->queue_select = 0;
	atomic_store(&vdev->config_vector, VIRTIO_MSI_NO_VECTOR);
	atomic_store(&vdev->isr, 0);
	atomic_store(&vdev->accepted, 0);
	atomic_store(&vdev->stopped, false);
	/* Last: the driver waits for 0 (4.1.4.3.1). */
	atomic_store(&vdev->status, 0);
}

static bool features_are_fine(const struct mb_virtio *vdev)
{
	uint64_t wanted = vdev->driver_features;

	return !(wanted & ~vdev->offered) && !vdev->unknown_features &&
	       wanted & 1ull << VIRTIO_F_VERSION_1;
}

void mb_virtio_write_status(struct mb_virtio *vdev, uint8_t value)
{
	uint8_t old = atomic_load(&vdev->status);
	uint8_t fresh = value & ~old & DRIVER_STATUS;

	if (!value) {
		mb_virtio_clear(vdev);
		return;
	}
	/*
	 * 2.2.2: refused by the bit staying 0. A driver may not take bits back (2.1.1), so none go.
	 */
	if (fresh & VIRTIO_CONFIG_S_FEATURES_OK) {
		if (features_are_fine(vdev))
			atomic_store(&vdev->accepted, vdev->driver_features);
		else
			fresh &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
	}
	if (fresh & VIRTIO_CONFIG_S_DRIVER_OK && !((old | fresh) & VIRTIO_CONFIG_S_FEATURES_OK)) {
		fresh &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
		mb_virtio_broken(vdev, "the driver started without agreed features");
	}
	/*
	 * One that is taken away after this look waits for our lock, and then stops what has begun.
	 */
	if (fresh & VIRTIO_CONFIG_S_DRIVER_OK && !mb_pci_dev_is_master(vdev->pdev)) {
		fresh &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
		mb_virtio_broken(vdev, "the driver started with the PCI bus master bit off");
	}
	if (old & VIRTIO_CONFIG_S_NEEDS_RESET)
		fresh &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
	atomic_fetch_or(&vdev->status, fresh);
	if (fresh & VIRTIO_CONFIG_S_DRIVER_OK)
		start(vdev);
}
