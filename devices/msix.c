// SPDX-License-Identifier: Apache-2.0
#include "msix.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { WORD_ADDR_LO, WORD_ADDR_HI, WORD_DATA, WORD_CTRL, N_WORDS };

#define CTRL_MASKED 1u

struct vector {
	uint32_t word[N_WORDS]; /* the table entry as the guest sees it */
	bool pending;
	/*
	 * Bound: gsi and fd are this vector's own and stay so until the end, whatever the guest
	 * does; only the route follows the table.
	 */
	bool bound, unbindable;
	unsigned gsi;
	int fd;
	/*
	 * fd while a write to it delivers what the table says, otherwise -1. Read without the lock.
	 */
	atomic_int live_fd;
};

struct mb_msix {
	struct mb_vm *vm;
	unsigned n;
	pthread_mutex_t lock; /* protects what follows */
	bool enabled, masked;
	struct vector vec[];
};

static void reset_entry(struct vector *v)
{
	memset(v->word, 0, sizeof(v->word));
	v->word[WORD_CTRL] = CTRL_MASKED;
	v->pending = false;
}

int mb_msix_create(struct mb_vm *vm, unsigned n_vectors, struct mb_msix **out)
{
	struct mb_msix *msix = calloc(1, sizeof(*msix) + n_vectors * sizeof(msix->vec[0]));

	if (!msix)
		return -ENOMEM;
	msix->vm = vm;
	msix->n = n_vectors;
	pthread_mutex_init(&msix->lock, NULL);
	for (unsigned i = 0; i < n_vectors; i++) {
		reset_entry(&msix->vec[i]);
		atomic_init(&msix->vec[i].live_fd, -1);
	}
	*out = msix;
	return 0;
}

void mb_msix_destroy(struct mb_msix *msix)
{
	if (!msix)
		return;
	for (unsigned i = 0; i < msix->n; i++) {
		struct vector *v = &msix->vec[i];

		if (!v->bound)
			continue;
		mb_vm_gsi_irqfd(msix->vm, v->gsi, v->fd, false);
		mb_vm_gsi_free(msix->vm, v->gsi);
		close(v->fd);
	}
	pthread_mutex_destroy(&msix->lock);
	free(msix);
}

static uint64_t address(const struct vector *v)
{
	return v->word[WORD_ADDR_LO] | (uint64_t)v->word[WORD_ADDR_HI] << 32;
}

/*
 * A message is a write to memory; only the local APICs' window makes it an interrupt (SDM vol. 3,
 * 11.11.1). Anything else is the guest's mistake and is not delivered; it also must not reach KVM,
 * which refuses a whole routing table for one bad entry.
 */
static bool is_interrupt(const struct vector *v)
{
	return address(v) >> 20 == 0xfee;
}

static bool is_open(const struct mb_msix *msix, const struct vector *v)
{
	return msix->enabled && !msix->masked && !(v->word[WORD_CTRL] & CTRL_MASKED);
}

static int route(struct mb_msix *msix, struct vector *v)
{
	return mb_vm_gsi_route(msix->vm, v->gsi, address(v), v->word[WORD_DATA]);
}

/* Gives the vector its GSI and eventfd. Caller holds the lock. */
static int bind(struct mb_msix *msix, struct vector *v)
{
	int rc;

	v->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->fd < 0)
		return -errno;
	rc = mb_vm_gsi_alloc(msix->vm, &v->gsi);
	if (rc)
		goto err_fd;
	rc = route(msix, v);
	if (rc)
		goto err_gsi;
	rc = mb_vm_gsi_irqfd(msix->vm, v->gsi, v->fd, true);
	if (rc)
		goto err_gsi;
	v->bound = true;
	return 0;

err_gsi:
	mb_vm_gsi_free(msix->vm, v->gsi);
err_fd:
	close(v->fd);
	return rc;
}

static void ring_fd(int fd)
{
	uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof(one));

	(void)n; /* EAGAIN: 2^64 - 1 interrupts wait already */
}

/* Sends the message of an open vector. Caller holds the lock. */
static void send_locked(struct mb_msix *msix, struct vector *v)
{
	if (!is_interrupt(v))
		return;
	if (!v->bound && !v->unbindable) {
		/* Out of GSIs or descriptors: this vector does without, one system call each. */
		if (bind(msix, v))
			v->unbindable = true;
		else
			atomic_store_explicit(&v->live_fd, v->fd, memory_order_release);
	}
	if (atomic_load_explicit(&v->live_fd, memory_order_relaxed) >= 0)
		ring_fd(v->fd);
	else
		mb_vm_msi_send(msix->vm, address(v), v->word[WORD_DATA]);
}

/* The entry or a mask has changed. Caller holds the lock. */
static void update(struct mb_msix *msix, struct vector *v)
{
	bool live = v->bound && is_open(msix, v) && is_interrupt(v);

	if (!live)
		atomic_store_explicit(&v->live_fd, -1, memory_order_relaxed);
	/* KVM is told when the vector opens, and mb_vm_gsi_route tells it only what is new. */
	else if (!route(msix, v))
		atomic_store_explicit(&v->live_fd, v->fd, memory_order_release);
	else
		atomic_store_explicit(&v->live_fd, -1, memory_order_relaxed);
	if (v->pending && is_open(msix, v)) {
		v->pending = false;
		send_locked(msix, v);
	}
}

void mb_msix_control(struct mb_msix *msix, bool enabled, bool masked)
{
	pthread_mutex_lock(&msix->lock);
	if (enabled != msix->enabled || masked != msix->masked) {
		msix->enabled = enabled;
		msix->masked = masked;
		for (unsigned i = 0; i < msix->n; i++)
			update(msix, &msix->vec[i]);
	}
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_table_read(struct mb_msix *msix, uint64_t offset, void *data, unsigned len)
{
	uint8_t *to = data;

	memset(data, 0, len);
	pthread_mutex_lock(&msix->lock);
	for (; len && offset / MB_MSIX_ENTRY_BYTES < msix->n; len--, offset++) {
		const struct vector *v = &msix->vec[offset / MB_MSIX_ENTRY_BYTES];

		*to++ = ((const uint8_t *)v->word)[offset % MB_MSIX_ENTRY_BYTES];
	}
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_table_write(struct mb_msix *msix, uint64_t offset, const void *data, unsigned len)
{
	struct vector *v;

	/* 6.8.2: whole, aligned words or pairs of words; the rest is undefined and here ignored. */
	if ((len != 4 && len != 8) || offset % len || offset / MB_MSIX_ENTRY_BYTES >= msix->n)
		return;
	v = &msix->vec[offset / MB_MSIX_ENTRY_BYTES];
	pthread_mutex_lock(&msix->lock);
	memcpy((uint8_t *)v->word + offset % MB_MSIX_ENTRY_BYTES, data, len);
	v->word[WORD_ADDR_LO] &= ~3u;
	v->word[WORD_CTRL] &= CTRL_MASKED;
	update(msix, v);
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_pba_read(struct mb_msix *msix, uint64_t offset, void *data, unsigned len)
{
	uint8_t *to = data;

	memset(data, 0, len);
	pthread_mutex_lock(&msix->lock);
	for (unsigned i = 0; i < 8 * len; i++) {
		uint64_t vector = 8 * offset + i;

		if (vector < msix->n && msix->vec[vector].pending)
			to[i / 8] |= (uint8_t)(1u << i % 8);
	}
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_raise(struct mb_msix *msix, unsigned vector)
{
	struct vector *v;
	int fd;

	if (vector >= msix->n)
		return;
	v = &msix->vec[vector];
	/*
	 * A mask that is set at this moment may come too late for this message, as on a real bus;
	 * the descriptor itself stays open.
	 */
	fd = atomic_load_explicit(&v->live_fd, memory_order_acquire);
	if (fd >= 0) {
		ring_fd(fd);
		return;
	}
	pthread_mutex_lock(&msix->lock);
	if (is_open(msix, v))
		send_locked(msix, v);
	else if (msix->enabled)
		v->pending = true;
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_reset(struct mb_msix *msix)
{
	pthread_mutex_lock(&msix->lock);
	msix->enabled = msix->masked = false;
	for (unsigned i = 0; i < msix->n; i++) {
		struct vector *v = &msix->vec[i];

		reset_entry(v);
		atomic_store_explicit(&v->live_fd, -1, memory_order_relaxed);
		if (v->bound)
			mb_vm_gsi_route(msix->vm, v->gsi, 0, 0);
	}
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_save(struct mb_msix *msix, struct mb_state_out *out)
{
	pthread_mutex_lock(&msix->lock);
	for (unsigned i = 0; i < msix->n; i++) {
		mb_state_put(out, msix->vec[i].word, sizeof(msix->vec[i].word));
		mb_state_put_u8(out, msix->vec[i].pending);
	}
	pthread_mutex_unlock(&msix->lock);
}

void mb_msix_load(struct mb_msix *msix, struct mb_state_in *part)
{
	pthread_mutex_lock(&msix->lock);
	for (unsigned i = 0; i < msix->n; i++) {
		struct vector *v = &msix->vec[i];

		mb_state_get(part, v->word, sizeof(v->word));
		v->word[WORD_ADDR_LO] &= ~3u;
		v->word[WORD_CTRL] &= CTRL_MASKED;
		v->pending = mb_state_get_bool(part);
		update(msix, v);
	}
	pthread_mutex_unlock(&msix->lock);
}
