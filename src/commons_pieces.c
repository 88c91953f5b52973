// SPDX-License-Identifier: Apache-2.0
#include "commons_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* A monitor's bases and the pieces that it has of them. */

#define MORE_PIECES 16u /* than guest memory would fill, that a machine keeps */
#define FILES_SHARE 4u /* of those that the process may have open: a piece is one on each node */

struct mb_commons_request mb_commons_request_of(enum mb_commons_type type)
{
	return (struct mb_commons_request){
		.magic = MB_COMMONS_MAGIC, .version = MB_COMMONS_VERSION, .type = type};
}

/* ---- pieces ---- */

static struct held **bucket(struct mb_commons_base *base, unsigned node, uint64_t index)
{
	return &base->bucket[(index + node * 337u) % MB_COMMONS_BUCKETS];
}

static struct held *find(struct mb_commons_base *base, unsigned node, uint64_t offset)
{
	uint64_t index = offset / MB_COMMONS_PIECE_BYTES;
	struct held *held = *bucket(base, node, index);

	while (held && (held->index != index || held->node != node))
		held = held->next;
	return held;
}

static void free_held(struct held *held)
{
	munmap((void *)held->data, MB_COMMONS_FILE_BYTES);
	close(held->fd);
	free(held);
}

/* Takes it out; caller holds the lock. */
static void unlink_held(struct mb_commons_base *base, struct held *held)
{
	struct held **at = bucket(base, held->node, held->index);

	while (*at != held)
		at = &(*at)->next;
	*at = held->next;
}

/*
 * A descriptor is believed in only as far as the kernel vouches for it: a file in memory that
 * nobody can cut (reading it then raises no SIGBUS) or get to write to.
 */
static int check_file(int fd, uint64_t *inode)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || (seals & MB_COMMONS_SEALS) != MB_COMMONS_SEALS || fstat(fd, &st) ||
		st.st_size != MB_COMMONS_FILE_BYTES)
		return -EBADMSG;
	*inode = st.st_ino;
	return 0;
}

/* Takes fd over. -EBADMSG: no daemon of ours gave that. -ENOMEM. */
static int take_piece(struct mb_commons_base *base, unsigned node, uint64_t index, int fd)
{
	struct mb_commons *commons = base->commons;
	struct held *old = find(base, node, index * MB_COMMONS_PIECE_BYTES), *held, **at;
	void *data;
	uint64_t inode;
	int rc = check_file(fd, &inode);

	/* Two wants of one piece were under way. */
	if (!rc && old && old->live && old->inode == inode) {
		close(fd);
		return 0;
	}
	data = rc ? MAP_FAILED : mmap(NULL, MB_COMMONS_FILE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	held = data == MAP_FAILED ? NULL : calloc(1, sizeof(*held));
	if (!held) {
		if (data != MAP_FAILED)
			munmap(data, MB_COMMONS_FILE_BYTES);
		close(fd);
		return rc ? rc : -ENOMEM;
	}
	madvise(data, MB_COMMONS_FILE_BYTES, MADV_DONTDUMP);
	*held = (struct held){.index = index,
		.node = node,
		.fd = fd,
		.data = data,
		.state = (const void *)((const char *)data + MB_COMMONS_PIECE_BYTES),
		.inode = inode,
		.generation = ++commons->last_generation,
		.live = true};
	pthread_rwlock_wrlock(&commons->lock);
	if (old)
		unlink_held(base, old);
	at = bucket(base, node, index);
	held->next = *at;
	*at = held;
	pthread_rwlock_unlock(&commons->lock);
	if (old)
		free_held(old);
	return 0;
}

static void send_release(struct mb_commons_base *base, unsigned node, uint64_t index)
{
	struct mb_commons_request msg = mb_commons_request_of(MB_COMMONS_RELEASE);

	if (!base->number_is_known)
		return;
	msg.base = base->number;
	msg.node = node;
	msg.offset = index * MB_COMMONS_PIECE_BYTES;
	mb_commons_send(base->commons, &msg, NULL);
}

void mb_commons_release(struct mb_commons_base *base, unsigned node, uint64_t offset)
{
	struct held *held = find(base, node, offset);

	if (!held)
		return;
	pthread_rwlock_wrlock(&base->commons->lock);
	unlink_held(base, held);
	pthread_rwlock_unlock(&base->commons->lock);
	if (held->live)
		send_release(base, node, held->index);
	free_held(held);
}

int mb_commons_piece(struct mb_commons_base *base, unsigned node, uint64_t offset,
	struct mb_commons_piece *piece)
{
	struct held *held = find(base, node, offset);
	uint64_t end = mb_align_up(base->bytes, MB_COMMONS_PAGE_BYTES);

	if (!held)
		return -ENOENT;
	*piece = (struct mb_commons_piece){
		.fd = held->fd,
		.base_offset = held->index * MB_COMMONS_PIECE_BYTES,
		.len = MB_COMMONS_PIECE_BYTES,
		.generation = held->generation,
		.data = held->data,
		.stale = __atomic_load_n(&held->state->stale, __ATOMIC_ACQUIRE) ||
			 base->status == -ESTALE,
	};
	if (piece->len > end - piece->base_offset)
		piece->len = end - piece->base_offset;
	return 0;
}

/* Acquire: what a bit stands for is there for whoever has seen it. */
static bool is_present(const struct held *held, uint64_t offset, uint64_t len)
{
	uint64_t first = offset % MB_COMMONS_PIECE_BYTES / MB_COMMONS_PAGE_BYTES;
	uint64_t last = (offset % MB_COMMONS_PIECE_BYTES + len - 1) / MB_COMMONS_PAGE_BYTES;

	for (uint64_t i = first; i <= last; i++)
		if (!(__atomic_load_n(&held->state->present[i / 64], __ATOMIC_ACQUIRE) >> i % 64 &
			    1))
			return false;
	return !__atomic_load_n(&held->state->stale, __ATOMIC_ACQUIRE);
}

const void *mb_commons_lookup(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len)
{
	struct held *held = find(base, node, offset);

	if (!held || base->status == -ESTALE ||
		!mb_range_inside(offset, len, 0, mb_align_up(base->bytes, MB_COMMONS_PAGE_BYTES)) ||
		len > MB_COMMONS_PIECE_BYTES - offset % MB_COMMONS_PIECE_BYTES ||
		!is_present(held, offset, len))
		return NULL;
	return held->data + offset % MB_COMMONS_PIECE_BYTES;
}

bool mb_commons_find(struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len,
	int *fd, uint64_t *fd_offset)
{
	struct mb_commons_piece piece;

	if (!mb_commons_lookup(base, node, offset, len) ||
		mb_commons_piece(base, node, offset, &piece))
		return false;
	*fd = piece.fd;
	*fd_offset = piece.fd_offset + offset - piece.base_offset;
	return true;
}

unsigned mb_commons_most_pieces(uint64_t ram_bytes, unsigned n_views, unsigned max)
{
	uint64_t most = ram_bytes / MB_COMMONS_PIECE_BYTES + MORE_PIECES, files = max;
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit))
		files = limit.rlim_cur / FILES_SHARE / n_views;
	most = most < files ? most : files;
	most = most < max ? most : max;
	return most ? (unsigned)most : 1;
}

bool mb_commons_read(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len, void *buffer)
{
	char *to = buffer;
	bool there = len > 0;

	/* Copied with the lock: the owner's thread may release the piece at any other time. */
	pthread_rwlock_rdlock(&base->commons->lock);
	while (there && len) {
		uint64_t part = MB_COMMONS_PIECE_BYTES - offset % MB_COMMONS_PIECE_BYTES;
		const void *from;

		part = part < len ? part : len;
		from = mb_commons_lookup(base, node, offset, part);
		there = from != NULL;
		if (!there)
			break;
		memcpy(to, from, part);
		to += part;
		offset += part;
		len -= part;
	}
	pthread_rwlock_unlock(&base->commons->lock);
	return there;
}

/* ---- bases ---- */

void mb_commons_set_status(struct mb_commons_base *base, int status)
{
	/* mb_commons_read looks at it. */
	pthread_rwlock_wrlock(&base->commons->lock);
	base->status = status;
	pthread_rwlock_unlock(&base->commons->lock);
}

void mb_commons_announce(struct mb_commons_base *base)
{
	struct mb_commons_request msg =
		mb_commons_request_of(base->group ? MB_COMMONS_JOIN : MB_COMMONS_OPEN);

	if (base->status == -ESTALE)
		return;
	msg.tag = base->open_tag = mb_commons_new_tag(base->commons);
	if (mb_commons_send(base->commons, &msg, base))
		base->open_tag = 0; /* with the next connection */
}

int mb_commons_add_base(
	struct mb_commons *commons, int fd, const char *group, struct mb_commons_base **out)
{
	struct mb_commons_base *base = NULL;
	unsigned i = 0;

	while (i < MB_COMMONS_MAX_OPEN && commons->base[i])
		i++;
	if (i < MB_COMMONS_MAX_OPEN)
		base = calloc(1, sizeof(*base));
	if (base && group && !(base->group = strdup(group))) {
		free(base);
		base = NULL;
	}
	if (!base) {
		if (fd >= 0)
			close(fd);
		return i == MB_COMMONS_MAX_OPEN ? -EMFILE : -ENOMEM;
	}
	base->commons = commons;
	base->status = -EINPROGRESS;
	base->fd = fd;
	commons->base[i] = base;
	if (commons->status == MB_COMMONS_READY)
		mb_commons_announce(base);
	*out = base;
	return 0;
}

int mb_commons_open_base(struct mb_commons *commons, int fd, struct mb_commons_base **out)
{
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	return own < 0 ? -errno : mb_commons_add_base(commons, own, NULL, out);
}

static void free_pieces(struct mb_commons_base *base)
{
	for (unsigned i = 0; i < MB_COMMONS_BUCKETS; i++) {
		struct held *held = base->bucket[i];

		while (held) {
			struct held *next = held->next;

			free_held(held);
			held = next;
		}
	}
}

void mb_commons_send_close(struct mb_commons *commons, uint32_t number)
{
	struct mb_commons_request msg = mb_commons_request_of(MB_COMMONS_CLOSE);

	msg.base = number;
	mb_commons_send(commons, &msg, NULL);
}

void mb_commons_close_base(struct mb_commons_base *base)
{
	struct mb_commons *commons;
	struct unsent *u, *next;

	if (!base)
		return;
	commons = base->commons;
	for (u = STAILQ_FIRST(&commons->unsent); u; u = next) {
		next = STAILQ_NEXT(u, next);
		if (u->base != base)
			continue;
		STAILQ_REMOVE(&commons->unsent, u, unsent, next);
		free(u);
	}
	for (unsigned i = 0; i < MB_COMMONS_CLIENT_PENDING; i++)
		if (commons->want[i].used && commons->want[i].done.base == base)
			commons->want[i].used = false;
	for (unsigned i = 0; i < MB_COMMONS_MAX_OPEN; i++)
		if (commons->base[i] == base)
			commons->base[i] = NULL;
	/* An OPEN that is under way is closed when its answer finds nobody. */
	if (commons->status == MB_COMMONS_READY && base->number_is_known)
		mb_commons_send_close(commons, base->number);
	free_pieces(base);
	if (base->fd >= 0)
		close(base->fd);
	free(base->group);
	free(base);
}

int mb_commons_base_status(const struct mb_commons_base *base)
{
	return base->status;
}

/* ---- wants ---- */

struct want *mb_commons_new_want(struct mb_commons *commons)
{
	struct want *want = commons->want;

	while (want < commons->want + MB_COMMONS_CLIENT_PENDING && want->used)
		want++;
	return want == commons->want + MB_COMMONS_CLIENT_PENDING || !STAILQ_EMPTY(&commons->unsent)
		       ? NULL
		       : want;
}

static int ask(struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len,
	unsigned flags, void *ctx)
{
	struct mb_commons *commons = base->commons;
	struct mb_commons_request msg = mb_commons_request_of(MB_COMMONS_WANT);
	struct held *held = find(base, node, offset);
	struct want *want;
	int rc;

	if (commons->status != MB_COMMONS_READY)
		return -ENOTCONN;
	if (base->status)
		return base->status;
	if (base->group ||
		!mb_range_inside(offset, len, 0, mb_align_up(base->bytes, MB_COMMONS_PAGE_BYTES)) ||
		(offset | len) % MB_COMMONS_PAGE_BYTES ||
		len > MB_COMMONS_PIECE_BYTES - offset % MB_COMMONS_PIECE_BYTES)
		return -EINVAL;
	want = mb_commons_new_want(commons);
	if (!want)
		return -EAGAIN;
	msg.tag = mb_commons_new_tag(commons);
	msg.base = base->number;
	msg.node = node;
	msg.offset = offset;
	msg.len = len;
	msg.flags = flags | (held && held->live ? 0 : MB_COMMONS_NEED_FD);
	rc = mb_commons_send(commons, &msg, NULL);
	if (rc)
		return rc;
	*want = (struct want){.used = true,
		.tag = msg.tag,
		.type = MB_COMMONS_WANT,
		.done = {.base = base, .node = node, .offset = offset, .len = len, .ctx = ctx}};
	return 0;
}

int mb_commons_want(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len, void *ctx)
{
	return ask(base, node, offset, len, 0, ctx);
}

int mb_commons_have(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len, void *ctx)
{
	return ask(base, node, offset, len, MB_COMMONS_ONLY_HAVE, ctx);
}

void mb_commons_finish(struct mb_commons *commons, struct want *want, int status)
{
	struct mb_commons_done done = want->done;

	want->used = false;
	done.status = status;
	commons->config.done(commons->config.ctx, &done);
}

void mb_commons_forget(struct mb_commons *commons)
{
	pthread_rwlock_wrlock(&commons->lock);
	for (unsigned i = 0; i < MB_COMMONS_MAX_OPEN; i++) {
		struct mb_commons_base *base = commons->base[i];

		if (!base)
			continue;
		if (base->status != -ESTALE)
			base->status = -EINPROGRESS;
		base->number_is_known = false;
		base->open_tag = 0;
		for (unsigned k = 0; k < MB_COMMONS_BUCKETS; k++)
			for (struct held *held = base->bucket[k]; held; held = held->next)
				held->live = false;
	}
	pthread_rwlock_unlock(&commons->lock);
	/* A callback may close bases, which ends their wants. */
	for (unsigned i = 0; i < MB_COMMONS_CLIENT_PENDING; i++)
		if (commons->want[i].used)
			mb_commons_finish(commons, &commons->want[i], -EPIPE);
}

/* ---- replies ---- */

static int take_open(struct mb_commons *commons, const struct mb_commons_reply *msg)
{
	struct mb_commons_base *base = NULL;

	for (unsigned i = 0; i < MB_COMMONS_MAX_OPEN && !base; i++)
		if (commons->base[i] && commons->base[i]->open_tag == msg->tag)
			base = commons->base[i];
	if (!msg->status && (msg->base >= MB_COMMONS_CLIENT_BASES || !msg->value ||
				    msg->value > MB_COMMONS_MAX_BASE_BYTES))
		return -EBADMSG;
	if (!base || !msg->tag) {
		if (!msg->status)
			mb_commons_send_close(commons, msg->base);
		return 0;
	}
	base->open_tag = 0;
	if (msg->status) {
		mb_commons_set_status(base, msg->status < 0 ? msg->status : -EBADMSG);
		return 0;
	}
	base->number = msg->base;
	base->number_is_known = true;
	/* What we hold is of the first daemon that knew it: it must be the same for this one. */
	if (base->bytes && (base->bytes != msg->value || base->hash != msg->offset)) {
		mb_commons_set_status(base, -ESTALE);
		return 0;
	}
	pthread_rwlock_wrlock(&commons->lock);
	base->bytes = msg->value;
	base->hash = msg->offset;
	base->status = 0;
	pthread_rwlock_unlock(&commons->lock);
	return 0;
}

struct want *mb_commons_find_want(struct mb_commons *commons, uint64_t tag)
{
	for (unsigned i = 0; i < MB_COMMONS_CLIENT_PENDING; i++)
		if (commons->want[i].used && commons->want[i].tag == tag)
			return &commons->want[i];
	return NULL;
}

int mb_commons_take_file(
	struct mb_commons_base *base, const struct mb_commons_done *done, int fd, int *status)
{
	const uint64_t index = done->offset / MB_COMMONS_PIECE_BYTES;
	int rc = fd >= 0 ? take_piece(base, done->node, index, fd) : 0;
	struct held *held;

	if (rc == -EBADMSG)
		return rc;
	*status = rc ? rc : *status;
	held = find(base, done->node, done->offset);
	/* Released while this was under way, or no memory for it: the daemon thinks that we have
	 * it. */
	if ((!*status && !(held && held->live)) || rc) {
		send_release(base, done->node, index);
		*status = *status ? *status : -EAGAIN;
	}
	return 0;
}

static int take_want(struct mb_commons *commons, const struct mb_commons_reply *msg, int fd)
{
	struct want *want = mb_commons_find_want(commons, msg->tag);
	struct mb_commons_base *base;
	int status = msg->status, rc;

	if (!want || want->type != MB_COMMONS_WANT) { /* its base was closed */
		if (fd >= 0)
			close(fd);
		return want ? -EBADMSG : 0;
	}
	base = want->done.base;
	rc = mb_commons_take_file(base, &want->done, fd, &status);
	if (rc)
		return rc;
	if (status == -ESTALE)
		mb_commons_set_status(base, -ESTALE);
	mb_commons_finish(commons, want, status > 0 ? -EBADMSG : status);
	return 0;
}

int mb_commons_take(struct mb_commons *commons, const struct mb_commons_reply *msg, int fd)
{
	bool ready = commons->status == MB_COMMONS_READY;

	if (ready && msg->type == MB_COMMONS_WANT)
		return take_want(commons, msg, fd);
	if (ready && msg->type >= MB_COMMONS_OFFER && msg->type <= MB_COMMONS_GIVE)
		return mb_commons_take_content(commons, msg, fd);
	if (fd >= 0)
		close(fd);
	if (ready && msg->type == MB_COMMONS_JOIN)
		return mb_commons_take_join(commons, msg);
	return ready && msg->type == MB_COMMONS_OPEN ? take_open(commons, msg) : -EBADMSG;
}
