// SPDX-License-Identifier: Apache-2.0
#include "virtio_dev.h"

#include <errno.h>
#include <linux/virtio_pci.h>
#include <mirrorball/clock.h>
#include <time.h>

/*
 * Snapshots of a virtio device. What the guest has written into its registers is written into those
 * of a new one, in the order of a driver (virtio 1.2, 3.1.1), so that everything is judged as if a
 * guest had done it; what a driver could not write is where in its ring a queue goes on.
 */
#define STATE_VERSION 1u
#define POLL_NS	      200000

/* ---- pause ---- */

static void pause_on_loop(void *arg)
{
	struct mb_virtio_queue *q = arg;
	const struct mb_virtio_config *config = &q->vdev->config;

	mb_loop_remove(q->loop, &q->watch);
	q->paused = true;
	if (!config->ops->queue_pause)
		return;
	config->ops->queue_pause(config->dev, &q->vq);
	mb_virtq_rewind(&q->vq);
}

struct count {
	struct mb_virtio_queue *q;
	unsigned n_out;
};

static void count_on_loop(void *arg)
{
	struct count *count = arg;

	count->n_out = mb_virtq_n_out(&count->q->vq);
}

static void resume_on_loop(void *arg)
{
	struct mb_virtio_queue *q = arg;

	q->paused = false;
	if (mb_loop_add(q->loop, &q->watch)) {
		mb_virtio_broken(q->vdev, "a queue could not be watched");
		return;
	}
	mb_virtio_kick(q);
}

void mb_virtio_resume(struct mb_virtio *vdev)
{
	pthread_mutex_lock(&vdev->lock);
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		struct mb_virtio_queue *q = &vdev->queue[i];

		if (q->started && q->paused)
			mb_loop_call(q->loop, resume_on_loop, q);
	}
	pthread_mutex_unlock(&vdev->lock);
}

/* First no queue takes anything more: one may wait for what another one has, on the same loop. */
int mb_virtio_pause(struct mb_virtio *vdev, uint64_t timeout_ns, struct mb_error *err)
{
	const struct timespec moment = {.tv_nsec = POLL_NS};
	const uint64_t limit_ns = mb_now_ns() + timeout_ns;
	bool in_time = true;

	pthread_mutex_lock(&vdev->lock);
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		struct mb_virtio_queue *q = &vdev->queue[i];

		if (q->started)
			mb_loop_call(q->loop, pause_on_loop, q);
	}
	for (unsigned i = 0; i < vdev->config.n_queues && in_time; i++) {
		struct count count = {.q = &vdev->queue[i]};

		while (count.q->started) {
			mb_loop_call(count.q->loop, count_on_loop, &count);
			in_time = mb_now_ns() < limit_ns;
			if (!count.n_out || !in_time)
				break;
			nanosleep(&moment, NULL);
		}
		in_time |= !count.n_out;
	}
	pthread_mutex_unlock(&vdev->lock);
	if (in_time)
		return 0;
	mb_virtio_resume(vdev);
	return mb_error_set(err, ETIMEDOUT, "%s: what is in flight has not ended for %u s",
		vdev->name, (unsigned)(timeout_ns / 1000000000u));
}

/* ---- save ---- */

void mb_virtio_save(struct mb_virtio *vdev, struct mb_state_out *out)
{
	mb_state_begin(out, "virtio", STATE_VERSION);
	pthread_mutex_lock(&vdev->lock);
	mb_state_put_u16(out, vdev->config.type);
	mb_state_put_u32(out, vdev->config.n_queues);
	mb_state_put_u8(out, atomic_load(&vdev->status));
	mb_state_put_u8(out, atomic_load(&vdev->isr));
	mb_state_put_u8(out, atomic_load(&vdev->generation));
	mb_state_put_u16(out, atomic_load(&vdev->config_vector));
	mb_state_put_u32(out, vdev->device_feature_select);
	mb_state_put_u32(out, vdev->driver_feature_select);
	mb_state_put_u64(out, vdev->driver_features);
	mb_state_put_u8(out, vdev->unknown_features);
	mb_state_put_u16(out, vdev->queue_select);
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		const struct mb_virtio_queue *q = &vdev->queue[i];
		struct mb_virtq_place place = {0};

		if (q->ready)
			place = mb_virtq_get_place(&q->vq);
		mb_state_put_u16(out, q->size);
		mb_state_put_u8(out, q->enabled);
		mb_state_put_u64(out, q->desc_gpa);
		mb_state_put_u64(out, q->driver_gpa);
		mb_state_put_u64(out, q->device_gpa);
		mb_state_put_u16(out, atomic_load(&q->vector));
		mb_state_put_u8(out, q->ready);
		mb_state_put_u16(out, place.used_idx);
		mb_state_put_u8(out, place.used_wrap);
	}
	pthread_mutex_unlock(&vdev->lock);
	pthread_mutex_lock(&vdev->window_lock);
	mb_state_put_u8(out, vdev->window.bar);
	mb_state_put_u32(out, vdev->window.offset);
	mb_state_put_u32(out, vdev->window.length);
	pthread_mutex_unlock(&vdev->window_lock);
	mb_state_end(out);
}

/* ---- load ---- */

/* 4.1.5.1.2.1, as for a driver. */
static uint16_t get_vector(const struct mb_virtio *vdev, struct mb_state_in *part)
{
	uint16_t vector = mb_state_get_u16(part);

	return vector <= vdev->config.n_queues ? vector : VIRTIO_MSI_NO_VECTOR;
}

static void load_queue(struct mb_virtio_queue *q, struct mb_state_in *part)
{
	q->size = mb_state_get_u16(part);
	q->enabled = mb_state_get_bool(part);
	q->desc_gpa = mb_state_get_u64(part);
	q->driver_gpa = mb_state_get_u64(part);
	q->device_gpa = mb_state_get_u64(part);
	atomic_store(&q->vector, get_vector(q->vdev, part));
	q->resumes = mb_state_get_bool(part);
	q->place.used_idx = mb_state_get_u16(part);
	q->place.used_wrap = mb_state_get_bool(part);
}

/* Caller holds the lock. */
static int start_again(
	struct mb_virtio *vdev, struct mb_state_in *part, uint8_t status, struct mb_error *err)
{
	const uint8_t running = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;

	/* To write 0 is to reset it. */
	if (status & (uint8_t)~running)
		mb_virtio_write_status(vdev, status & (uint8_t)~running);
	if ((atomic_load(&vdev->status) ^ status) & VIRTIO_CONFIG_S_FEATURES_OK)
		return mb_error_set(err, ENOTSUP,
			"%s: offers less here than where the snapshot was made: features %#llx are "
			"missing",
			vdev->name, (unsigned long long)(vdev->driver_features & ~vdev->offered));
	if (status & VIRTIO_CONFIG_S_NEEDS_RESET) {
		/* Its queues have stopped for good. */
		atomic_store(&vdev->stopped, true);
		atomic_fetch_or(&vdev->status, status & running);
		return 0;
	}
	/* A queue that a driver enables later is none that goes on. */
	for (unsigned i = 0; i < vdev->config.n_queues; i++)
		if (vdev->queue[i].resumes && !(status & VIRTIO_CONFIG_S_DRIVER_OK))
			return mb_state_refuse(
				part, err, "has a queue that runs without its device");
	if (status & VIRTIO_CONFIG_S_DRIVER_OK)
		mb_virtio_write_status(vdev, status);
	/* One that starts may find at once that its driver is broken, as it would have before. */
	for (unsigned i = 0; i < vdev->config.n_queues; i++)
		if (vdev->queue[i].resumes && !vdev->queue[i].started)
			return mb_error_set(err, EINVAL, "%s: cannot go on as it was", vdev->name);
	/* From here on a queue that starts is a new one: after a device's being stopped without a
	 * reset, and one that the driver has enabled since. */
	for (unsigned i = 0; i < vdev->config.n_queues; i++)
		vdev->queue[i].resumes = false;
	return 0;
}

int mb_virtio_load(struct mb_virtio *vdev, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	uint8_t status;
	int rc = mb_state_enter(in, "virtio", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	if (mb_state_get_u16(&part) != vdev->config.type ||
		mb_state_get_u32(&part) != vdev->config.n_queues)
		return mb_error_set(err, EINVAL,
			"%s: was another device, or had more or fewer queues, in the snapshot",
			vdev->name);
	pthread_mutex_lock(&vdev->lock);
	mb_virtio_clear(vdev);
	status = mb_state_get_u8(&part);
	atomic_store(&vdev->isr, mb_state_get_u8(&part));
	atomic_store(&vdev->generation, mb_state_get_u8(&part));
	atomic_store(&vdev->config_vector, get_vector(vdev, &part));
	vdev->device_feature_select = mb_state_get_u32(&part);
	vdev->driver_feature_select = mb_state_get_u32(&part);
	vdev->driver_features = mb_state_get_u64(&part);
	vdev->unknown_features = mb_state_get_bool(&part);
	vdev->queue_select = mb_state_get_u16(&part);
	for (unsigned i = 0; i < vdev->config.n_queues; i++)
		load_queue(&vdev->queue[i], &part);
	pthread_mutex_lock(&vdev->window_lock);
	vdev->window.bar = mb_state_get_u8(&part);
	vdev->window.offset = mb_state_get_u32(&part);
	vdev->window.length = mb_state_get_u32(&part);
	pthread_mutex_unlock(&vdev->window_lock);
	rc = mb_state_leave(&part, err);
	if (!rc)
		rc = start_again(vdev, &part, status, err);
	pthread_mutex_unlock(&vdev->lock);
	if (!rc)
		mb_virtio_interrupt_all(vdev);
	return rc;
}
