// SPDX-License-Identifier: Apache-2.0
#include "cow_impl.h"
#include <errno.h>
#include <mirrorball/log.h>

/*
 * Writing: who may change what, and where a cluster gets its place.
 *
 * Places are given in groups of 64 KiB, so that what is written bit by bit is in one piece at the
 * end: a cluster whose neighbour in the group has a place gets the one beside it, and the first one
 * of a group keeps room for the others, behind all that there is. What nobody needs stays a hole.
 *
 * While a cluster is claimed its entry has its place, but not MB_QCOW2_ALLOCATED: readers get what
 * was.
 */
#define GROUP_BYTES (64u << 10)

/* The first change: before it nothing is written to the overlay, which one that only looks can
 * count on. */
static int begin(struct mb_cow *cow)
{
	struct mb_error err;
	int rc;

	if (cow->begun || !cow->qcow2)
		return 0;
	/* Tables must not be named that may not be there. */
	if (cow->failed)
		return -EIO;
	rc = 0;
	/* Made by others: from now on it is known how its base was. */
	if (!mb_qcow2_info(cow->qcow2)->base.known)
		rc = mb_qcow2_set_base(cow->qcow2, NULL, &cow->base.was, &err);
	if (!rc)
		rc = mb_qcow2_begin(cow->qcow2, &err);
	cow->failed |= mb_qcow2_info(cow->qcow2)->sync_failed;
	if (rc) {
		mb_log("%s", err.text);
		return rc;
	}
	cow->begun = true;
	return 0;
}

/* The entries of these clusters can be written whatever becomes of the file system: or the write to
 * them fails now. */
static int reserve_entries(struct mb_cow *cow, uint64_t first, uint64_t n)
{
	uint64_t last = (first + n - 1) / MB_QCOW2_CHUNK_ENTRIES;

	if (!cow->qcow2)
		return 0;
	for (uint64_t chunk = first / MB_QCOW2_CHUNK_ENTRIES; chunk <= last; chunk++) {
		uint64_t bit = 1ull << chunk % 64;
		int rc;

		if (cow->room_bits[chunk / 64] & bit)
			continue;
		rc = mb_qcow2_reserve_chunk(cow->qcow2, chunk);
		if (rc)
			return rc;
		cow->room_bits[chunk / 64] |= bit;
	}
	return 0;
}

/* Of the disk: the last cluster may be cut. */
static uint64_t cluster_len(const struct mb_cow *cow, uint64_t i)
{
	uint64_t at = i << cow->bits, cluster = 1ull << cow->bits;

	return cow->bytes - at < cluster ? cow->bytes - at : cluster;
}

/* Whether it has to be written as a whole: it has no place, or what is there does not count. */
static bool is_fresh(uint64_t entry)
{
	return !(entry & MB_QCOW2_ALLOCATED) || entry & MB_QCOW2_ZERO;
}

/*
 * Of cluster i, which is fresh: *at, its own place, the one where its neighbours are, or a new one.
 * It is taken from now on. want: only if that is it, or else -EAGAIN; 0: whichever.
 */
static int give_place(struct mb_cow *cow, uint64_t i, uint64_t want, uint64_t *at)
{
	uint64_t n = GROUP_BYTES >> cow->bits, first, last;

	if (cow->map[i] & MB_QCOW2_ALLOCATED || !cow->qcow2) {
		*at = cow->qcow2 ? cow->map[i] & MB_QCOW2_OFFSET : i << cow->bits;
		return want && *at != want ? -EAGAIN : 0;
	}
	first = i & ~(n - 1);
	last = first + n < cow->n_clusters ? first + n : cow->n_clusters;
	for (uint64_t k = first; k < last; k++) {
		uint64_t other = cow->map[k] & MB_QCOW2_OFFSET;

		if (!other)
			continue;
		/* What wraps below the beginning of the file is nobody's place. */
		*at = other + ((i - k) << cow->bits);
		if (want && *at != want)
			return -EAGAIN;
		if (mb_qcow2_take_place(cow->qcow2, *at))
			return 0;
		if (want)
			return -EAGAIN;
		return mb_qcow2_allocate(cow->qcow2, 1, at) ? 0 : -ENOSPC;
	}
	if (want && mb_qcow2_frontier(cow->qcow2) + ((i - first) << cow->bits) != want)
		return -EAGAIN;
	if (mb_qcow2_reserve(cow->qcow2, last - first, at)) {
		*at += (i - first) << cow->bits;
		if (mb_qcow2_take_place(cow->qcow2, *at))
			return 0;
	}
	if (want)
		return -EAGAIN;
	return mb_qcow2_allocate(cow->qcow2, 1, at) ? 0 : -ENOSPC;
}

static void claim_cluster(struct mb_cow *cow, struct mb_cow_claim *claim, uint64_t i, uint64_t at)
{
	if (!claim->n)
		claim->first = i;
	claim->n = i + 1 - claim->first;
	cow->map[i] |= MB_QCOW2_BUSY | at;
}

/* The cluster has to be written as a whole, and the guest writes a part of it. */
static int claim_fill(struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_claim *claim)
{
	uint64_t i = offset >> cow->bits, cluster = 1ull << cow->bits, skip = offset % cluster;
	int rc = give_place(cow, i, 0, &claim->at);

	if (rc)
		return rc;
	claim->step = MB_COW_FILL;
	claim->cluster_at = i << cow->bits;
	claim->cluster_bytes = cluster;
	claim->bytes = len < cluster - skip ? len : cluster - skip;
	if (!(cow->map[i] & MB_QCOW2_ZERO) && claim->cluster_at < cow->base.was.bytes)
		claim->base_bytes = cow->base.was.bytes - claim->cluster_at < cluster
					    ? cow->base.was.bytes - claim->cluster_at
					    : cluster;
	claim_cluster(cow, claim, i, claim->at);
	return 0;
}

/* Clusters whose places follow each other: such as have theirs, and such as are covered whole. */
static int claim_run(struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_claim *claim)
{
	uint64_t cluster = 1ull << cow->bits, i = offset >> cow->bits, skip = offset % cluster,
		 at = 0, next = 0;

	claim->step = MB_COW_WRITE;
	claim->cluster_at = i << cow->bits;
	claim->skip = skip;
	for (; claim->bytes < len; i++, next = at + cluster) {
		uint64_t entry = cow->map[i], left = len - claim->bytes;
		bool fresh = is_fresh(entry);

		if (entry & MB_QCOW2_BUSY || (fresh && left < cluster))
			break;
		if (fresh) {
			int rc = give_place(cow, i, next, &at);

			if (rc && !claim->bytes)
				return rc;
			if (rc)
				break;
		} else {
			at = entry & MB_QCOW2_OFFSET;
		}
		if (next && at != next)
			break;
		if (!claim->bytes)
			claim->at = at + skip;
		if (fresh)
			claim_cluster(cow, claim, i, at);
		claim->bytes += cluster - skip;
		skip = 0;
	}
	/* Where the run begins and ends with clusters that have their places, those stay
	 * everybody's; in between they do not. */
	for (uint64_t k = claim->first; k < claim->first + claim->n; k++)
		cow->map[k] |= MB_QCOW2_BUSY;
	if (claim->bytes > len)
		claim->bytes = len;
	return 0;
}

static int claim_write(
	struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_claim *claim)
{
	uint64_t cluster = 1ull << cow->bits, first = offset >> cow->bits;
	bool partial = offset % cluster || len < cluster;
	int rc = begin(cow);

	if (!rc)
		rc = reserve_entries(cow, first, ((offset + len - 1) >> cow->bits) + 1 - first);
	if (rc)
		return rc;
	return partial && is_fresh(cow->map[first]) ? claim_fill(cow, offset, len, claim)
						    : claim_run(cow, offset, len, claim);
}

int mb_cow_claim(struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_waiter *waiter,
	struct mb_cow_claim *claim)
{
	int rc = 0;

	*claim = (struct mb_cow_claim){0};
	pthread_mutex_lock(&cow->lock);
	if (cow->map[offset >> cow->bits] & MB_QCOW2_BUSY) {
		claim->step = MB_COW_WAIT;
		mb_cow_wait(cow, waiter);
	} else {
		rc = claim_write(cow, offset, len, claim);
	}
	pthread_mutex_unlock(&cow->lock);
	return rc;
}

/*
 * Whole clusters that become zeroes: those without a place at once, of the others as many as follow
 * each other. A discard gives back places; where there is none it changes nothing: a map of all
 * that a new file system does not need would be one of all the disk.
 */
static int claim_whole_zeroes(
	struct mb_cow *cow, uint64_t first, uint64_t n, bool discard, struct mb_cow_claim *claim)
{
	uint64_t k = 0, entry = cow->map[first];
	int rc = begin(cow);

	if (!rc && !discard)
		rc = reserve_entries(cow, first, n);
	if (rc)
		return rc;
	if (entry & MB_QCOW2_ALLOCATED && !(entry & MB_QCOW2_ZERO)) {
		uint64_t at = entry & MB_QCOW2_OFFSET;

		while (k < n && !is_fresh(cow->map[first + k]) &&
			!(cow->map[first + k] & MB_QCOW2_BUSY) &&
			(cow->map[first + k] & MB_QCOW2_OFFSET) == at + (k << cow->bits))
			k++;
		claim->step = MB_COW_PUNCH;
		claim->at = at;
		claim->first = first;
		claim->n = k;
		for (uint64_t i = first; i < first + k; i++)
			cow->map[i] |= MB_QCOW2_BUSY;
	} else {
		for (; k < n && is_fresh(cow->map[first + k]) &&
			!(cow->map[first + k] & MB_QCOW2_BUSY);
			k++) {
			uint64_t *to = &cow->map[first + k];

			if (discard || *to & MB_QCOW2_ZERO ||
				(first + k) << cow->bits >= cow->base.was.bytes)
				continue;
			*to |= MB_QCOW2_ZERO;
			mb_cow_mark_dirty(cow, first + k);
		}
		claim->step = MB_COW_NOTHING;
	}
	claim->bytes = (k - 1) << cow->bits;
	claim->bytes += cluster_len(cow, first + k - 1);
	return 0;
}

int mb_cow_claim_zeroes(struct mb_cow *cow, uint64_t offset, uint64_t len, bool discard,
	struct mb_cow_waiter *waiter, struct mb_cow_claim *claim)
{
	uint64_t i = offset >> cow->bits, cluster = 1ull << cow->bits, whole, n;
	int rc = 0;

	*claim = (struct mb_cow_claim){0};
	pthread_mutex_lock(&cow->lock);
	whole = cluster_len(cow, i);
	n = offset + len == cow->bytes ? cow->n_clusters - i : len >> cow->bits;
	if (offset % cluster || len < whole) {
		/* A part of a cluster. */
		whole -= offset % cluster;
		whole = len < whole ? len : whole;
		claim->step = MB_COW_NOTHING;
		claim->bytes = whole;
	} else if (cow->map[i] & MB_QCOW2_BUSY) {
		claim->step = MB_COW_WAIT;
		mb_cow_wait(cow, waiter);
	} else {
		rc = claim_whole_zeroes(cow, i, n, discard, claim);
		whole = 0;
	}
	pthread_mutex_unlock(&cow->lock);
	if (claim->step == MB_COW_NOTHING && whole && !discard)
		return mb_cow_claim(cow, offset, whole, waiter, claim);
	return rc;
}

/* ---- after it ---- */

/* The claimed cluster i, whose entry has its place, is written, or not. */
static void settle_cluster(
	struct mb_cow *cow, const struct mb_cow_claim *claim, uint64_t i, bool written)
{
	uint64_t *entry = &cow->map[i], at = *entry & MB_QCOW2_OFFSET;
	bool fresh = is_fresh(*entry);

	*entry &= ~MB_QCOW2_BUSY;
	if (written && (fresh || claim->step == MB_COW_PUNCH)) {
		*entry = MB_QCOW2_ALLOCATED | at | (fresh ? 0 : MB_QCOW2_ZERO);
		mb_cow_mark_dirty(cow, i);
	} else if (!(*entry & MB_QCOW2_ALLOCATED)) {
		/* The place was for this. */
		*entry &= ~MB_QCOW2_OFFSET;
		if (cow->qcow2)
			mb_qcow2_give_back(cow->qcow2, at, 1);
	}
}

/* How many bytes of the claim's are there: up to the first cluster that had to be written whole and
 * was not. */
static uint64_t settle_clusters(
	struct mb_cow *cow, const struct mb_cow_claim *claim, uint64_t written)
{
	uint64_t bytes = written;

	for (uint64_t i = claim->first; i < claim->first + claim->n; i++) {
		uint64_t begins = (i << cow->bits) - claim->cluster_at;
		uint64_t ends = begins + (1ull << cow->bits);
		bool fresh = is_fresh(cow->map[i]), all = written + claim->skip >= ends;

		begins -= begins > claim->skip ? claim->skip : begins;
		if (fresh && !all && begins < bytes)
			bytes = begins;
		settle_cluster(cow, claim, i, all);
	}
	return bytes < claim->bytes ? bytes : claim->bytes;
}

uint64_t mb_cow_settle(struct mb_cow *cow, struct mb_cow_claim *claim, uint64_t written)
{
	uint64_t bytes;

	if (!claim->n) {
		bytes = written < claim->bytes ? written : claim->bytes;
		*claim = (struct mb_cow_claim){0};
		return bytes;
	}
	pthread_mutex_lock(&cow->lock);
	if (claim->step == MB_COW_WRITE) {
		bytes = settle_clusters(cow, claim, written);
	} else {
		bool all = claim->step == MB_COW_PUNCH ? written : written >= claim->cluster_bytes;

		for (uint64_t i = claim->first; i < claim->first + claim->n; i++)
			settle_cluster(cow, claim, i, all);
		bytes = all ? claim->bytes : 0;
	}
	mb_cow_wake(cow);
	pthread_mutex_unlock(&cow->lock);
	*claim = (struct mb_cow_claim){0};
	return bytes;
}
