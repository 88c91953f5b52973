// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/*
 * Filling a piece, on a worker's thread. The order is what everything rests on:
 *
 *   the base is what it was -> read -> the base is what it was -> present
 *
 * Until a page is present nobody looks at it, so half of one does no harm; afterwards it is never
 * written. The base is read, not mapped: who cuts it meanwhile makes a read short, and sends no
 * signal.
 */

#define SETTLE_NS   20000000l
#define CHUNK_PAGES 256u /* so often it is asked whether anybody still waits */

static int check_base(const struct base *base)
{
	struct mb_commons_identity now;
	int rc = mb_commons_identify(base->fd, &now);

	/* -EINVAL: it is empty now, say. */
	return rc == -EINVAL || (!rc && memcmp(&now, &base->identity, sizeof(now))) ? -ESTALE : rc;
}

static void tell(struct job *job, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		__atomic_fetch_or(
			&job->piece->state->present[i / 64], 1ull << i % 64, __ATOMIC_RELEASE);
}

/* Where the base ends within the pages, what is behind it stays zero, as it was made. */
static int read_pages(struct job *job, unsigned first, unsigned n)
{
	const struct base *base = job->base;
	uint64_t from = job->piece->index * MB_COMMONS_PIECE_BYTES +
			(uint64_t)first * MB_COMMONS_PAGE_BYTES;
	uint64_t left = (uint64_t)n * MB_COMMONS_PAGE_BYTES;
	char *to = job->piece->map + (uint64_t)first * MB_COMMONS_PAGE_BYTES;

	if (left > base->identity.bytes - from) {
		left = base->identity.bytes - from;
		/* An earlier try may have read another state of it. */
		memset(to + left, 0, (uint64_t)n * MB_COMMONS_PAGE_BYTES - left);
	}
	while (left) {
		ssize_t got = pread(base->fd, to, left, (off_t)from);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got)
			return -ESTALE; /* it was longer */
		to += got;
		from += (uint64_t)got;
		left -= (uint64_t)got;
	}
	job->n_read += n;
	return 0;
}

static bool donor_has(const struct job *job, unsigned page)
{
	return job->donor && mb_commons_has(job->donor->state, page);
}

/* A run of pages that are not there, all of them in the other node's piece or none. */
static unsigned find_run(const struct job *job, unsigned *first, unsigned end)
{
	unsigned i = *first, n = 0;

	while (i < end && mb_commons_has(job->piece->state, i))
		i++;
	*first = i;
	while (i + n < end && n < CHUNK_PAGES && !mb_commons_has(job->piece->state, i + n) &&
		donor_has(job, i + n) == donor_has(job, i))
		n++;
	return n;
}

static int fill_run(struct job *job, unsigned first, unsigned n)
{
	const size_t at = (size_t)first * MB_COMMONS_PAGE_BYTES,
		     len = (size_t)n * MB_COMMONS_PAGE_BYTES;

	/* Memory, of the node that the file prefers: here its lack is a status, in a fault it
	 * would be a signal. The seals forbid to write to a file, not to give it pages. */
	if (fallocate(job->piece->fd, 0, (off_t)at, (off_t)len))
		return errno == EINTR ? -EAGAIN : -errno;
	if (!donor_has(job, first))
		return read_pages(job, first, n);
	memcpy(job->piece->map + at, job->donor->map + at, len);
	job->n_copied += n;
	return 0;
}

/* The image's own pages of what is here now: memory would be taken twice. Clean pages that nobody
 * has mapped go, others stay. */
static void forget(const struct job *job)
{
	if (job->n_read)
		posix_fadvise(job->base->fd,
			(off_t)(job->piece->index * MB_COMMONS_PIECE_BYTES +
				(uint64_t)job->first * MB_COMMONS_PAGE_BYTES),
			(off_t)job->n * MB_COMMONS_PAGE_BYTES, POSIX_FADV_DONTNEED);
}

void mb_commons_fill_run(struct job *job)
{
	const struct timespec settle = {.tv_nsec = SETTLE_NS};
	unsigned end = job->first + job->n, first, n;
	uint64_t done[MB_COMMONS_PIECE_PAGES / 64] = {0};
	int rc, changed;

	if (!mb_commons_is_settled(&job->base->identity))
		nanosleep(&settle, NULL);
	rc = check_base(job->base);
	for (first = job->first; !rc && (n = find_run(job, &first, end)); first += n) {
		if (__atomic_load_n(&job->cancelled, __ATOMIC_RELAXED)) {
			rc = -ECANCELED;
			break;
		}
		if (MB_COMMONS_WRONG == WRONG_EARLY)
			tell(job, first, n);
		rc = fill_run(job, first, n);
		for (unsigned i = first; !rc && i < first + n; i++)
			done[i / 64] |= 1ull << i % 64;
	}
	/* What was read before an error counts, too, if the base is still what it was. */
	changed = MB_COMMONS_WRONG == WRONG_UNCHECKED ? 0 : check_base(job->base);
	for (unsigned i = 0; !changed && i < MB_COMMONS_PIECE_PAGES / 64; i++)
		if (done[i])
			__atomic_fetch_or(
				&job->piece->state->present[i], done[i], __ATOMIC_RELEASE);
	if (changed && (!rc || changed == -ESTALE))
		rc = changed;
	forget(job);
	job->status = rc;
}
