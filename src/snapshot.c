// SPDX-License-Identifier: Apache-2.0
#include "snapshot_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mirrorball/clock.h>
#include <mirrorball/file_io.h>
#include <mirrorball/range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE	  4096u
#define MAX_TRIES 100u

static const char magic[8] = "mbsnap\r\n";

struct header {
	char magic[8];
	uint32_t version;
	uint32_t crc;
	uint64_t bytes;
	uint64_t ram_bytes;
	int64_t ram_mtime_ns;
	uint32_t ram_crc;
	uint32_t reserved[5];
};

_Static_assert(sizeof(struct header) == MB_SNAPSHOT_HEADER, "as in snapshot.h");

/* Of pages that are not zero, each with its number. */
static uint32_t page_crc(uint32_t crc, uint64_t page, const void *data)
{
	crc = mb_crc32c(crc, &page, sizeof(page));
	return mb_crc32c(crc, data, PAGE);
}

/* ---- reading ---- */

/* -EINVAL where it is no regular file: another one could make us wait. */
static int open_file(int dir_fd, const char *name, struct stat *st)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW), rc;

	if (fd < 0)
		return -errno;
	rc = fstat(fd, st) ? -errno : S_ISREG(st->st_mode) ? 0 : -EINVAL;
	if (rc)
		close(fd);
	return rc ? rc : fd;
}

static int read_state(struct mb_snapshot *s, int dir_fd, struct header *h, struct mb_error *err)
{
	struct stat st;
	uint32_t crc;
	int fd = open_file(dir_fd, "state", &st), rc;

	if (fd < 0)
		return mb_error_set(err, -fd, "file state: %s", strerror(-fd));
	rc = st.st_size > MB_STATE_MAX_BYTES ? -EFBIG : 0;
	if (!rc && st.st_size < (off_t)sizeof(*h))
		rc = -ENODATA;
	s->bytes = rc ? NULL : malloc((size_t)st.st_size);
	if (!rc && !s->bytes)
		rc = -ENOMEM;
	if (!rc)
		rc = mb_file_read(fd, s->bytes, (size_t)st.st_size, 0);
	close(fd);
	if (rc)
		return mb_error_set(err, rc == -ENODATA ? EINVAL : -rc, "file state: %s",
			rc == -ENODATA ? "is cut off" : strerror(-rc));
	memcpy(h, s->bytes, sizeof(*h));
	if (memcmp(h->magic, magic, sizeof(magic)))
		return mb_error_set(err, EINVAL, "file state: is not one of a snapshot");
	if (h->version != MB_SNAPSHOT_VERSION)
		return mb_error_set(err, EINVAL,
			"file state: has version %u, and this Mirrorball reads %u: it was made by "
			"another one",
			h->version, MB_SNAPSHOT_VERSION);
	if (h->bytes != (uint64_t)st.st_size)
		return mb_error_set(err, EINVAL,
			"file state: has %lld bytes instead of %llu: it is cut off",
			(long long)st.st_size, (unsigned long long)h->bytes);
	memset(s->bytes + offsetof(struct header, crc), 0, sizeof(h->crc));
	crc = mb_crc32c(0, s->bytes, (size_t)st.st_size);
	if (crc != h->crc)
		return mb_error_set(err, EINVAL,
			"file state: is damaged (checksum %08x instead of %08x)", crc, h->crc);
	s->rest = (struct mb_state_in){
		.at = s->bytes + sizeof(*h), .left = (size_t)st.st_size - sizeof(*h)};
	return 0;
}

static int open_known(int dir_fd, const char *name, uint64_t bytes, int64_t time_ns, int *fd,
	struct mb_error *err)
{
	struct stat st;

	*fd = open_file(dir_fd, name, &st);
	if (*fd < 0)
		return mb_error_set(err, -*fd, "file %s: %s", name, strerror(-*fd));
	if ((uint64_t)st.st_size != bytes)
		return mb_error_set(err, EINVAL, "file %s: has %lld bytes instead of %llu", name,
			(long long)st.st_size, (unsigned long long)bytes);
	if (mb_timespec_ns(&st.st_mtim) != time_ns)
		return mb_error_set(err, EINVAL,
			"file %s: was changed since the snapshot was made; if it is a copy, make "
			"it with cp -a",
			name);
	return 0;
}

/* Those that have one: the others were not written down. */
static int open_disks(struct mb_snapshot *s, int dir_fd, struct mb_error *err)
{
	struct mb_state_in part;
	uint32_t n;
	int rc = mb_state_enter(&s->rest, "files", 1, &part, err);

	if (rc)
		return rc;
	n = mb_state_get_u32(&part);
	if (n > MB_MAX_DISKS)
		return mb_state_refuse(&part, err, "has too many files");
	for (unsigned i = 0; i < n && !rc; i++) {
		const uint32_t disk = mb_state_get_u32(&part);
		const uint64_t bytes = mb_state_get_u64(&part);
		const int64_t time_ns = (int64_t)mb_state_get_u64(&part);
		char name[16];

		if (part.bad || disk >= s->config.n_disks || s->disk_fd[disk] >= 0)
			return mb_state_refuse(&part, err, "has a file of no disk");
		snprintf(name, sizeof(name), "disk-%u", disk);
		rc = open_known(dir_fd, name, bytes, time_ns, &s->disk_fd[disk], err);
	}
	return rc ? rc : mb_state_leave(&part, err);
}

static int open_all(struct mb_snapshot *s, struct mb_error *err)
{
	struct header h;
	int dir_fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;

	if (dir_fd < 0)
		return mb_error_set(err, errno, "%s", strerror(errno));
	rc = read_state(s, dir_fd, &h, err);
	if (!rc)
		rc = mb_snapshot_read_config(s, &s->rest, err);
	if (!rc && h.ram_bytes != s->config.memory_bytes)
		rc = mb_error_set(err, EINVAL, "file state: has two sizes of memory");
	if (!rc)
		rc = open_known(dir_fd, "ram", h.ram_bytes, h.ram_mtime_ns, &s->ram_fd, err);
	if (!rc)
		rc = open_disks(s, dir_fd, err);
	s->ram_crc = h.ram_crc;
	close(dir_fd);
	return rc;
}

int mb_snapshot_open(const char *dir, struct mb_snapshot **out, struct mb_error *err)
{
	struct mb_snapshot *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return mb_error_set(err, ENOMEM, "snapshot %s: out of memory", dir);
	s->ram_fd = -1;
	for (unsigned i = 0; i < MB_MAX_DISKS; i++)
		s->disk_fd[i] = -1;
	s->dir = strdup(dir);
	rc = s->dir ? open_all(s, err) : mb_error_set(err, ENOMEM, "out of memory");
	if (rc) {
		mb_error_prefix(err, rc, "snapshot %s", dir);
		mb_snapshot_close(s);
		return rc;
	}
	*out = s;
	return 0;
}

void mb_snapshot_close(struct mb_snapshot *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < s->n_texts; i++)
		free(s->text[i]);
	for (unsigned i = 0; i < MB_MAX_DISKS; i++)
		if (s->disk_fd[i] >= 0)
			close(s->disk_fd[i]);
	if (s->ram_fd >= 0)
		close(s->ram_fd);
	free(s->bytes);
	free(s->dir);
	free(s);
}

const struct mb_machine_config *mb_snapshot_config(const struct mb_snapshot *s)
{
	return &s->config;
}

int mb_snapshot_ram_fd(const struct mb_snapshot *s)
{
	return s->ram_fd;
}

int mb_snapshot_disk_fd(const struct mb_snapshot *s, unsigned i)
{
	return s->disk_fd[i];
}

struct mb_state_in mb_snapshot_state(const struct mb_snapshot *s)
{
	return s->rest;
}

int mb_snapshot_check_ram(const struct mb_snapshot *s, struct mb_error *err)
{
	const off_t end = (off_t)s->config.memory_bytes;
	uint8_t page[PAGE];
	uint32_t crc = 0;

	for (off_t at = 0; at < end;) {
		off_t data = lseek(s->ram_fd, at, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			break;
		hole = data < 0 ? -1 : lseek(s->ram_fd, data, SEEK_HOLE);
		if (hole < 0) /* a file system without holes */
			data = at, hole = end;
		for (at = data / PAGE * PAGE; at < hole && at < end; at += PAGE) {
			ssize_t n = pread(s->ram_fd, page, PAGE, at);

			if (n != PAGE)
				return mb_error_set(err, n < 0 ? errno : EINVAL,
					"snapshot %s: file ram: %s", s->dir,
					n < 0 ? strerror(errno) : "is cut off");
			if (!mb_is_zero(page, PAGE))
				crc = page_crc(crc, (uint64_t)at / PAGE, page);
		}
	}
	return crc == s->ram_crc ? 0
				 : mb_error_set(err, EINVAL,
					   "snapshot %s: file ram: is damaged (checksum %08x "
					   "instead of %08x)",
					   s->dir, crc, s->ram_crc);
}

/* ---- making one ---- */

struct mb_snapshot_maker {
	char path[PATH_MAX], temporary[PATH_MAX];
	int dir_fd;
	int ram_fd;
	uint64_t ram_bytes;
	uint32_t ram_crc;
	int disk_fd[MB_MAX_DISKS];
};

static int failed(
	struct mb_snapshot_maker *maker, const char *file, int errnum, struct mb_error *err)
{
	return mb_error_set(
		err, errnum, "snapshot %s: file %s: %s", maker->path, file, strerror(errnum));
}

static int make_file(struct mb_snapshot_maker *maker, const char *name, struct mb_error *err)
{
	/* Whoever wants to write it has to say so first; the machine's memory is nobody else's
	 * business. */
	int fd = openat(maker->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0400);

	return fd < 0 ? failed(maker, name, errno, err) : fd;
}

static void give_up(struct mb_snapshot_maker *maker)
{
	static const char *const name[] = {"state", "ram"};

	if (maker->ram_fd >= 0)
		close(maker->ram_fd);
	for (unsigned i = 0; i < MB_MAX_DISKS; i++) {
		char disk[16];

		if (maker->disk_fd[i] < 0)
			continue;
		close(maker->disk_fd[i]);
		snprintf(disk, sizeof(disk), "disk-%u", i);
		if (*maker->temporary)
			unlinkat(maker->dir_fd, disk, 0);
	}
	for (unsigned i = 0; i < 2 && maker->dir_fd >= 0 && *maker->temporary; i++)
		unlinkat(maker->dir_fd, name[i], 0);
	if (maker->dir_fd >= 0)
		close(maker->dir_fd);
	if (*maker->temporary)
		rmdir(maker->temporary);
	free(maker);
}

static int make_directory(struct mb_snapshot_maker *maker, const char *path, struct mb_error *err)
{
	struct stat st;
	int rc = EEXIST;

	if (*path != '/' || snprintf(maker->path, sizeof(maker->path), "%s", path) >= PATH_MAX - 32)
		return mb_error_set(
			err, EINVAL, "snapshot %s: is no absolute path, or too long", path);
	if (!lstat(path, &st))
		return mb_error_set(
			err, EEXIST, "snapshot %s: there is something of that name", path);
	for (unsigned i = 0; i < MAX_TRIES && rc == EEXIST; i++) {
		snprintf(maker->temporary, PATH_MAX, "%.*s.new-%d-%u", PATH_MAX - 32, path,
			(int)getpid(), i);
		rc = mkdir(maker->temporary, 0700) ? errno : 0;
	}
	if (rc) {
		maker->temporary[0] = 0;
		return mb_error_set(err, rc, "snapshot %s: cannot be made: %s", path, strerror(rc));
	}
	maker->dir_fd = open(maker->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return maker->dir_fd < 0
		       ? mb_error_set(err, errno, "snapshot %s: %s", path, strerror(errno))
		       : 0;
}

int mb_snapshot_begin(const char *path, struct mb_snapshot_maker **out, struct mb_error *err)
{
	struct mb_snapshot_maker *maker = calloc(1, sizeof(*maker));
	int rc;

	if (!maker)
		return mb_error_set(err, ENOMEM, "snapshot %s: out of memory", path);
	maker->dir_fd = maker->ram_fd = -1;
	for (unsigned i = 0; i < MB_MAX_DISKS; i++)
		maker->disk_fd[i] = -1;
	rc = make_directory(maker, path, err);
	if (!rc) {
		maker->ram_fd = make_file(maker, "ram", err);
		rc = maker->ram_fd < 0 ? maker->ram_fd : 0;
	}
	if (rc) {
		give_up(maker);
		return rc;
	}
	*out = maker;
	return 0;
}

int mb_snapshot_put_ram(
	struct mb_snapshot_maker *maker, const void *data, uint64_t len, struct mb_error *err)
{
	const uint64_t first = maker->ram_bytes;
	const uint8_t *from = data;
	int rc = 0;

	maker->ram_bytes += len;
	for (uint64_t at = 0, end; from && at < len && !rc; at = end) {
		end = at + PAGE;
		if (mb_is_zero(from + at, PAGE))
			continue;
		maker->ram_crc = page_crc(maker->ram_crc, (first + at) / PAGE, from + at);
		for (; end < len && !mb_is_zero(from + end, PAGE); end += PAGE)
			maker->ram_crc = page_crc(maker->ram_crc, (first + end) / PAGE, from + end);
		rc = mb_file_write(maker->ram_fd, from + at, end - at, first + at);
	}
	return rc ? failed(maker, "ram", -rc, err) : 0;
}

int mb_snapshot_disk(struct mb_snapshot_maker *maker, unsigned i, struct mb_error *err)
{
	char name[16];

	snprintf(name, sizeof(name), "disk-%u", i);
	maker->disk_fd[i] = make_file(maker, name, err);
	return maker->disk_fd[i];
}

const char *mb_snapshot_temporary(const struct mb_snapshot_maker *maker)
{
	return maker->temporary;
}

void mb_snapshot_remove_temporary(const char *temporary)
{
	static const char *const name[] = {"state", "ram"};
	char gone[PATH_MAX + 8];
	int fd;

	/* It is renamed by us or by who makes it: by one of both. */
	snprintf(gone, sizeof(gone), "%s.gone", temporary);
	if (rename(temporary, gone))
		return;
	fd = open(gone, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (unsigned i = 0; i < MB_MAX_DISKS && fd >= 0; i++) {
		char disk[16];

		snprintf(disk, sizeof(disk), "disk-%u", i);
		unlinkat(fd, disk, 0);
	}
	for (unsigned i = 0; i < 2 && fd >= 0; i++)
		unlinkat(fd, name[i], 0);
	if (fd >= 0)
		close(fd);
	rmdir(gone);
}

/* The files that are there, behind the config and in front of the rest. */
static int put_files(
	struct mb_snapshot_maker *maker, struct mb_state_out *out, struct mb_error *err)
{
	struct stat st;
	uint32_t n = 0;

	for (unsigned i = 0; i < MB_MAX_DISKS; i++)
		n += maker->disk_fd[i] >= 0;
	mb_state_begin(out, "files", 1);
	mb_state_put_u32(out, n);
	for (unsigned i = 0; i < MB_MAX_DISKS; i++) {
		if (maker->disk_fd[i] < 0)
			continue;
		if (fsync(maker->disk_fd[i]) || fstat(maker->disk_fd[i], &st))
			return failed(maker, "disk", errno, err);
		mb_state_put_u32(out, i);
		mb_state_put_u64(out, (uint64_t)st.st_size);
		mb_state_put_u64(out, (uint64_t)mb_timespec_ns(&st.st_mtim));
	}
	mb_state_end(out);
	return 0;
}

static int write_state(
	struct mb_snapshot_maker *maker, const struct mb_state_out *state, struct mb_error *err)
{
	struct header h = {.version = MB_SNAPSHOT_VERSION,
		.ram_bytes = maker->ram_bytes,
		.ram_crc = maker->ram_crc};
	struct mb_state_out out = {0};
	struct mb_state_in in = {.at = state->data, .left = state->len}, config;
	struct stat st;
	int fd = -1, rc;

	if (state->rc)
		return failed(maker, "state", -state->rc, err);
	if (ftruncate(maker->ram_fd, (off_t)maker->ram_bytes) || fsync(maker->ram_fd) ||
		fstat(maker->ram_fd, &st))
		return failed(maker, "ram", errno, err);
	memcpy(h.magic, magic, sizeof(magic));
	h.ram_mtime_ns = mb_timespec_ns(&st.st_mtim);
	/* The config comes first. */
	rc = mb_state_enter(&in, "machine", MB_SNAPSHOT_CONFIG_VERSION, &config, err);
	if (rc)
		return rc;
	mb_state_put(&out, &h, sizeof(h));
	mb_state_put(&out, state->data, (size_t)(in.at - state->data));
	rc = put_files(maker, &out, err);
	mb_state_put(&out, in.at, in.left);
	if (!rc && out.rc)
		rc = failed(maker, "state", -out.rc, err);
	if (!rc) {
		h.bytes = out.len;
		memcpy(out.data, &h, sizeof(h));
		h.crc = mb_crc32c(0, out.data, out.len);
		memcpy(out.data, &h, sizeof(h));
		fd = make_file(maker, "state", err);
		rc = fd < 0 ? fd : mb_file_write(fd, out.data, out.len, 0);
		if (fd >= 0 && !rc && fsync(fd))
			rc = -errno;
		if (fd >= 0 && rc)
			failed(maker, "state", -rc, err);
	}
	if (fd >= 0)
		close(fd);
	mb_state_out_finish(&out);
	return rc;
}

/* Its name is to be there after a power failure; where that cannot be had, the file system is no
 * better than that. */
static void sync_parent(const char *path)
{
	char parent[PATH_MAX];
	int fd;

	snprintf(parent, sizeof(parent), "%s", path);
	*(strrchr(parent, '/') + 1) = 0;
	fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	fsync(fd);
	close(fd);
}

int mb_snapshot_finish(
	struct mb_snapshot_maker *maker, const struct mb_state_out *state, struct mb_error *err)
{
	int rc = state ? write_state(maker, state, err) : 0;

	if (!rc && state) {
		fsync(maker->dir_fd);
		/* An empty directory may have taken the name meanwhile: rename replaces it, as
		 * nobody minds. */
		if (rename(maker->temporary, maker->path)) {
			rc = mb_error_set(err, errno, "snapshot %s: cannot have its name: %s",
				maker->path, strerror(errno));
		} else {
			maker->temporary[0] = 0; /* stays */
			sync_parent(maker->path);
		}
	}
	give_up(maker);
	return rc;
}
