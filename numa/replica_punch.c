// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/range.h>
#include <string.h>
#include <unistd.h>

#include "replica_internal.h"

/*
 * Pages of zeroes are given back to the host: home is a hole there, which reads as zeroes.
 *
 *   protect home in every view, look whether it is zero, punch, open
 *
 * From protect on whoever wants to write waits: vCPUs for the reader of the userfaultfd, devices in
 * mb_replicas_hold. To punch takes the page out of every view, and its protection with it, so that
 * a vCPU may come back before the views are open: shmem has every fault in the range wait until the
 * hole is complete (mm/shmem.c, shmem_falloc), and then it finds a new page, the only one, as every
 * view does. A device that reads a page by its address would go on to read the old one: it pins.
 */

struct punch {
	struct mb_punched *done;
};

/* By the kernel's own copy of it in our mapping, which nobody reads or writes meanwhile. */
static bool is_zero(const struct mb_replicas *r, uint64_t page)
{
	return mb_is_zero((const char *)r->config.own_base + page * PAGE, PAGE);
}

/* How many pages from here on are all zero, or all not. */
static uint64_t alike(const struct mb_replicas *r, uint64_t first, uint64_t n, bool *zero)
{
	uint64_t i = 1;

	*zero = is_zero(r, first);
	while (i < n && is_zero(r, first + i) == *zero)
		i++;
	return i;
}

static int punch_hole(const struct mb_replicas *r, uint64_t first, uint64_t n)
{
	int rc;

	do {
		rc = fallocate(r->config.ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)(first * PAGE), (off_t)(n * PAGE));
	} while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

/* Pages [first, first + n) are HOME_OPEN, and were zero a moment ago. -ESTALE: they are not. */
static int punch_pages(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n)
{
	bool zero = true;
	int rc = mb_replica_protect_all(r, first, n, false, true), undo;

	if (!rc && MB_REPLICA_WRONG != WRONG_PUNCH_FIRST &&
		(alike(r, first, n, &zero) < n || !zero))
		rc = -ESTALE;
	if (MB_REPLICA_WRONG == WRONG_PUNCH_HELD)
		usleep(200);
	if (!rc)
		rc = punch_hole(r, first, n);
	/* What cannot be opened now is opened by the first write. */
	undo = mb_replica_collapse_pages(r, b, first, n, PATIENT);
	return rc ? rc : undo;
}

static void punch_zero(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, struct mb_punched *done)
{
	/* Who waits for the block waits for one run of pages, and not for all of them. */
	bool wanted = mb_replica_block_is_wanted(b) || __atomic_load_n(&b->pins, __ATOMIC_SEQ_CST);
	int rc;

	if (wanted && MB_REPLICA_WRONG != WRONG_PUNCH_HELD) {
		done->held_bytes += n * PAGE;
		return;
	}
	if (!mb_replica_has_mappings(r)) {
		done->failed_bytes += n * PAGE;
		return;
	}
	rc = punch_pages(r, b, first, n);
	if (!rc)
		done->punched_bytes += n * PAGE;
	else if (rc == -ECANCELED || rc == -ESTALE)
		done->held_bytes += n * PAGE;
	else
		done->failed_bytes += n * PAGE;
}

/* Pages [first, first + n) are HOME_OPEN, and memory is behind them. */
static void punch_home(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, struct mb_punched *done)
{
	bool zero;

	for (uint64_t run; n; first += run, n -= run) {
		run = alike(r, first, n, &zero);
		if (zero)
			punch_zero(r, b, first, run, done);
		else
			done->differs_bytes += run * PAGE;
	}
}

static void punch_runs(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, struct mb_punched *done)
{
	for (uint64_t i = 0, run; i < n; i += run) {
		const struct page *p = &r->page[first + i];
		bool wait = mb_replica_waits(r, p), hole = false;
		uint64_t same = mb_replica_alike(r, first + i, n - i, &hole);

		for (run = 1;
			run < same && p[run].map == p->map && mb_replica_waits(r, &p[run]) == wait;)
			run++;
		if (p->map)
			done->away_bytes += run * PAGE;
		else if (hole) /* to look at it would fill it */
			done->hole_bytes += run * PAGE;
		else if (wait)
			done->waiting_bytes += run * PAGE;
		else
			punch_home(r, b, first + i, run, done);
	}
}

static int punch_part(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	struct punch *punch = arg;
	struct mb_punched *done = punch->done;

	pthread_mutex_lock(&b->lock);
	/* Whoever holds or pins looks at these after he has counted himself: as for a merge. */
	__atomic_store_n(&b->active, true, __ATOMIC_SEQ_CST);
	__atomic_store_n(&b->merging, true, __ATOMIC_SEQ_CST);
	if ((__atomic_load_n(&b->holds, __ATOMIC_SEQ_CST) &&
		    MB_REPLICA_WRONG != WRONG_PUNCH_HELD) ||
		__atomic_load_n(&b->pins, __ATOMIC_SEQ_CST))
		done->held_bytes += n * PAGE;
	else if (mb_replica_waits(r, &b->whole))
		done->waiting_bytes += n * PAGE;
	else
		punch_runs(r, b, first, n, done);
	__atomic_store_n(&b->merging, false, __ATOMIC_SEQ_CST);
	mb_replica_unlock(b);
	return 0;
}

int mb_replicas_punch(struct mb_replicas *r, uint64_t offset, uint64_t len, struct mb_punched *done)
{
	struct punch punch = {.done = done};

	if ((offset | len) % PAGE || !r->config.own_base)
		return -EINVAL;
	return mb_replica_each_block(r, offset, len, punch_part, &punch);
}
