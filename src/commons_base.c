// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <mirrorball/clock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Which file a descriptor is of, and what it was when. */

#define COARSE_NS                                                                                  \
	20000000ll /* as in devices/cow_file.c: changes closer than that may have one time */

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

static int64_t nanoseconds(const struct timespec *ts)
{
	return ts->tv_sec * 1000000000ll + ts->tv_nsec;
}

int mb_commons_identify(int fd, struct mb_commons_identity *identity)
{
	struct stat st;

	memset(identity, 0, sizeof(*identity));
	if (fstat(fd, &st))
		return -errno;
	if (S_ISBLK(st.st_mode)) {
		identity->is_device = 1;
		identity->dev = st.st_rdev;
		if (ioctl(fd, BLKGETSIZE64, &identity->bytes))
			return -errno;
		/* Before Linux 5.15 nobody tells: a client compares anyway. */
		if (ioctl(fd, BLKGETDISKSEQ, &identity->sequence))
			identity->sequence = 0;
	} else if (S_ISREG(st.st_mode)) {
		identity->dev = st.st_dev;
		identity->ino = st.st_ino;
		identity->bytes = (uint64_t)st.st_size;
		identity->mtime_ns = nanoseconds(&st.st_mtim);
		identity->ctime_ns = nanoseconds(&st.st_ctim);
	} else {
		return -EINVAL;
	}
	return identity->bytes && identity->bytes <= MB_COMMONS_MAX_BASE_BYTES ? 0 : -EINVAL;
}

uint64_t mb_commons_hash(const struct mb_commons_identity *identity)
{
	const uint64_t *word = (const uint64_t *)identity;
	uint64_t hash = 0;

	for (unsigned i = 0; i < sizeof(*identity) / sizeof(*word); i++)
		hash = ((hash ^ word[i]) * 0x9e3779b97f4a7c15ull) ^ (hash >> 29);
	return hash;
}

/* Changed just now: what comes next could look as if it had been before. */
bool mb_commons_is_settled(const struct mb_commons_identity *identity)
{
	int64_t now_ns = (int64_t)mb_clock_ns(CLOCK_REALTIME);

	return identity->is_device || (llabs(now_ns - identity->ctime_ns) >= COARSE_NS &&
					      llabs(now_ns - identity->mtime_ns) >= COARSE_NS);
}

/* ---- opening ---- */

/*
 * An opening of our own. The client's has flags and an offset that the client can change at any
 * time, and locks that would live as long as we have it: nobody could write the base then. Who may
 * not open it by himself gets nothing from us either.
 */
static int open_again(int fd)
{
	char path[64];
	int own;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	return own < 0 ? -errno : own;
}

void mb_commons_open_run(struct job *job)
{
	int flags = fcntl(job->fd, F_GETFL);

	job->opened_fd = -1;
	if (flags < 0)
		job->status = -errno;
	else if ((flags & O_PATH) || (flags & O_ACCMODE) == O_WRONLY)
		job->status = -EBADF;
	else
		job->status = mb_commons_identify(job->fd, &job->identity);
	if (!job->status) {
		job->opened_fd = open_again(job->fd);
		if (job->opened_fd < 0)
			job->status = job->opened_fd;
	}
	/* What is read beyond what was wanted would stay in the page cache. */
	if (!job->status)
		posix_fadvise(job->opened_fd, 0, 0, POSIX_FADV_RANDOM);
	/* Of what will be read, which is the same file. */
	if (!job->status)
		job->status = mb_commons_identify(job->opened_fd, &job->identity);
	if (job->status && job->opened_fd >= 0) {
		close(job->opened_fd);
		job->opened_fd = -1;
	}
	close(job->fd);
	job->fd = -1;
}

static char *path_of(int fd)
{
	char link[64], path[PATH_MAX];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n <= 0)
		return NULL;
	path[n] = '\0';
	mb_error_make_printable(path);
	return strdup(path);
}

static struct base *find(
	struct mb_commons_server *server, const struct mb_commons_identity *identity)
{
	struct base *base, *next;

	for (base = TAILQ_FIRST(&server->bases); base; base = next) {
		next = TAILQ_NEXT(base, all);
		if (base->stale || base->group || base->identity.is_device != identity->is_device ||
			base->identity.dev != identity->dev || base->identity.ino != identity->ino)
			continue;
		if (!memcmp(&base->identity, identity, sizeof(*identity)))
			return base;
		/* The same file, of another time. */
		mb_commons_base_make_stale(base);
	}
	return NULL;
}

int mb_commons_base_get(struct mb_commons_server *server, struct job *job, struct base **out)
{
	struct base *base = find(server, &job->identity);

	if (base) {
		mb_commons_close_on(job->lane, job->opened_fd);
		job->opened_fd = -1;
		base->n_clients++;
		*out = base;
		return 0;
	}
	if (server->n_bases == MB_COMMONS_MAX_BASES)
		mb_commons_bases_expire(server, UINT64_MAX);
	if (server->n_bases == MB_COMMONS_MAX_BASES)
		return -ENOSPC;
	base = calloc(1, sizeof(*base));
	if (!base)
		return -ENOMEM;
	base->lane = mb_commons_lane_create(server);
	if (!base->lane) {
		free(base);
		return -ENOMEM;
	}
	base->server = server;
	base->identity = job->identity;
	base->fd = job->opened_fd;
	job->opened_fd = -1;
	base->path = path_of(base->fd);
	base->n_clients = 1;
	TAILQ_INIT(&base->pieces);
	TAILQ_INSERT_TAIL(&server->bases, base, all);
	server->n_bases++;
	*out = base;
	return 0;
}

/* ---- the end ---- */

void mb_commons_base_check(struct base *base)
{
	struct mb_commons_server *server = base->server;

	if (base->n_clients || base->n_jobs || base->n_pieces)
		return;
	TAILQ_REMOVE(&server->bases, base, all);
	server->n_bases--;
	mb_commons_group_free(server, base->group);
	mb_commons_close_on(base->lane, base->fd);
	mb_commons_lane_put(base->lane);
	free(base->path);
	free(base);
}

void mb_commons_base_put(struct base *base)
{
	if (!--base->n_clients)
		base->unused_ns = mb_now_ns();
	mb_commons_base_check(base);
}

static void drop_unused_pieces(struct base *base)
{
	struct piece *piece, *next;

	for (piece = TAILQ_FIRST(&base->pieces); piece; piece = next) {
		next = TAILQ_NEXT(piece, of_base);
		if (!piece->n_refs && !piece->n_pins)
			mb_commons_piece_drop(piece);
	}
}

/* The base may be gone afterwards. */
void mb_commons_base_make_stale(struct base *base)
{
	struct piece *piece;

	base->stale = true;
	TAILQ_FOREACH(piece, &base->pieces, of_base)
	__atomic_store_n(&piece->state->stale, 1, __ATOMIC_RELEASE);
	drop_unused_pieces(base);
	mb_commons_base_check(base);
}

void mb_commons_bases_expire(struct mb_commons_server *server, uint64_t before_ns)
{
	struct base *base, *next;

	for (base = TAILQ_FIRST(&server->bases); base; base = next) {
		next = TAILQ_NEXT(base, all);
		if (base->n_clients || base->unused_ns > before_ns)
			continue;
		drop_unused_pieces(base);
		mb_commons_base_check(base);
	}
}
