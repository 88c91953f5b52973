// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include "cow_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The delta's file, and whether the base is the one that it is for. */

/* ---- volatile ---- */

static int open_in_dir(const char *dir, struct mb_error *err)
{
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	char path[PATH_MAX];

	if (fd >= 0)
		return fd;
	/* A file system without such files. */
	if (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL) {
		if (snprintf(path, sizeof(path), "%s/mirrorball-XXXXXX", dir) >= (int)sizeof(path))
			return mb_error_set(err, ENAMETOOLONG, "cow=%s: too long", dir);
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0) {
			unlink(path);
			return fd;
		}
	}
	return mb_error_set(err, errno,
		"%s: cannot make a file for a disk's changes there: %s; name another directory, or "
		"memory, with cow=DIR or cow=memory",
		dir, strerror(errno));
}

static int open_volatile(
	struct mb_cow *cow, const struct mb_cow_config *config, struct mb_error *err)
{
	const char *dir = config->dir, *tmpdir = getenv("TMPDIR");

	if (!dir)
		dir = tmpdir && *tmpdir == '/' ? tmpdir : "/var/tmp";
	if (!*dir) {
		cow->fd = memfd_create("mirrorball-cow", MFD_CLOEXEC);
		if (cow->fd < 0)
			return mb_error_set(err, errno, "disk %s: memfd_create: %s",
				config->base_path, strerror(errno));
	} else {
		cow->fd = open_in_dir(dir, err);
		if (cow->fd < 0)
			return cow->fd;
	}
	if (ftruncate(cow->fd, (off_t)cow->bytes))
		return mb_error_set(err, errno,
			"disk %s: a file of its size cannot be made in %s: %s", config->base_path,
			*dir ? dir : "memory", strerror(errno));
	return 0;
}

/* ---- an overlay ---- */

int mb_overlay_name_base(
	const char *overlay_path, const char *base_path, char *name, struct mb_error *err)
{
	char dir[PATH_MAX], base[PATH_MAX], overlay_dir[PATH_MAX];
	char *slash;

	if (!realpath(base_path, base))
		return mb_error_set(err, errno, "disk %s: %s", base_path, strerror(errno));
	if (snprintf(dir, sizeof(dir), "%s", overlay_path) >= (int)sizeof(dir))
		return mb_error_set(
			err, ENAMETOOLONG, "overlay %s: its name is too long", overlay_path);
	slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = 0;
	else
		strcpy(dir, ".");
	if (!realpath(dir, overlay_dir))
		return mb_error_set(err, errno, "overlay %s: %s", overlay_path, strerror(errno));
	slash = strrchr(base, '/');
	/* A relative name with a colon would be a protocol to QEMU. */
	if (!strchr(slash, ':') &&
		(slash == base ? !strcmp(overlay_dir, "/")
			       : strlen(overlay_dir) == (size_t)(slash - base) &&
					 !strncmp(overlay_dir, base, (size_t)(slash - base))))
		memmove(base, slash + 1, strlen(slash));
	if (strlen(base) > MB_QCOW2_NAME_MAX)
		return mb_error_set(err, ENAMETOOLONG, "disk %s: its name is longer than %u bytes",
			base_path, MB_QCOW2_NAME_MAX);
	strcpy(name, base);
	return 0;
}

/* Names, too, are to be there after a power failure; where that cannot be had, the file system is
 * no better than that. */
static void sync_directory(const char *path)
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX];
	int fd;

	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash + 1 - path) : 1, slash ? path : ".");
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	fsync(fd);
	close(fd);
}

/* A file beside path, of a name that nobody has. */
static int open_beside(const char *path, char *name, int *fd, struct mb_error *err)
{
	for (unsigned i = 0; i < 100; i++) {
		if (snprintf(name, PATH_MAX, "%s.new-%d-%u", path, getpid(), i) >= PATH_MAX)
			return mb_error_set(
				err, ENAMETOOLONG, "overlay %s: its name is too long", path);
		*fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		if (*fd >= 0)
			return 0;
		if (errno != EEXIST)
			break;
	}
	return mb_error_set(err, errno, "overlay %s: cannot be made: %s", path, strerror(errno));
}

static int give_name(const char *name, const char *path, bool replace)
{
	if (replace)
		return rename(name, path);
	if (!renameat2(AT_FDCWD, name, AT_FDCWD, path, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
	/* A file system that cannot do it in one step. */
	return link(name, path) || unlink(name);
}

int mb_overlay_create(const char *path, const char *base_path, uint64_t bytes,
	const struct mb_qcow2_base *base, bool replace, int *fd, struct mb_error *err)
{
	char base_name[PATH_MAX], name[PATH_MAX];
	int rc = mb_overlay_name_base(path, base_path, base_name, err);

	if (!rc && !replace && !access(path, F_OK))
		rc = mb_error_set(
			err, EEXIST, "overlay %s: cannot be made: %s", path, strerror(EEXIST));
	/* It has its name when it is whole: who finds it finds an overlay, whatever happens before.
	 */
	if (!rc)
		rc = open_beside(path, name, fd, err);
	if (rc)
		return rc;
	rc = mb_blk_lock(*fd, path, false, err);
	if (!rc)
		rc = mb_qcow2_create(*fd, path, bytes, base_name, base, err);
	if (!rc && give_name(name, path, replace))
		rc = mb_error_set(
			err, errno, "overlay %s: cannot be made: %s", path, strerror(errno));
	if (rc) {
		unlink(name);
		close(*fd);
		*fd = -1;
		return rc;
	}
	sync_directory(path);
	return 0;
}

static int open_once(const char *path, bool readonly, int *fd, bool *stale, struct mb_error *err)
{
	struct stat st, now;
	int rc;

	*fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
	if (*fd < 0 && errno == ENOENT)
		return mb_error_set(err, ENOENT,
			"overlay %s: no such file; make one with: mirrorball image create --base "
			"BASE %s",
			path, path);
	if (*fd < 0)
		return mb_blk_explain_open(path, readonly, errno, err);
	if (fstat(*fd, &st) || !S_ISREG(st.st_mode))
		rc = mb_error_set(err, EINVAL, "overlay %s: is no regular file", path);
	else
		rc = mb_blk_lock(*fd, path, readonly, err);
	/* O_NONBLOCK was for pipes; io_uring must not see it. */
	if (!rc && fcntl(*fd, F_SETFL, readonly ? O_RDONLY : O_RDWR))
		rc = mb_error_set(err, errno, "overlay %s: %s", path, strerror(errno));
	/* A commit may have put another one in its place before we had the lock. */
	*stale = !rc && (stat(path, &now) || now.st_dev != st.st_dev || now.st_ino != st.st_ino);
	if (rc || *stale) {
		close(*fd);
		*fd = -1;
	}
	return rc;
}

int mb_overlay_open(const char *path, bool readonly, int *fd, struct mb_error *err)
{
	bool stale = true;

	for (unsigned i = 0; i < 10 && stale; i++) {
		int rc = open_once(path, readonly, fd, &stale, err);

		if (rc)
			return rc;
	}
	return stale ? mb_error_set(
			       err, EBUSY, "overlay %s: is replaced all the time; try again", path)
		     : 0;
}

static void join(const char *overlay_path, const char *name, char *base)
{
	const char *slash = strrchr(overlay_path, '/');

	if (*name == '/' || !*name || !slash)
		snprintf(base, PATH_MAX, "%s", name);
	else
		snprintf(base, PATH_MAX, "%.*s%s", (int)(slash + 1 - overlay_path), overlay_path,
			name);
}

void mb_overlay_find_base(const char *path, const char *name, char *base)
{
	char real[PATH_MAX];

	join(path, name, base);
	/* Through a link: from where the file is. */
	if (*name && access(base, F_OK) && realpath(path, real))
		join(real, name, base);
}

int mb_overlay_check_raw(const char *path, const char *base_path, int base_fd, struct mb_error *err)
{
	if (!mb_qcow2_is(base_fd))
		return 0;
	return mb_error_set(err, EINVAL,
		"overlay %s: its base %s is a qcow2 file; only raw ones are possible here, as "
		"qemu-img convert -O raw makes them",
		path, base_path);
}

int mb_overlay_check_kind(const char *path, const char *base_path, int base_fd,
	const struct mb_qcow2_info *info, struct mb_error *err)
{
	if (*info->base_format && strcmp(info->base_format, "raw"))
		return mb_error_set(err, EINVAL,
			"overlay %s: its base is of the format %s; only raw ones are possible here",
			path, info->base_format);
	if (!*info->base_name)
		return mb_error_set(
			err, EINVAL, "overlay %s: is a disk of its own, without a base", path);
	return mb_overlay_check_raw(path, base_path, base_fd, err);
}

/* Of one that does not say how its base was: at least the name has to be right. */
static bool is_named(const char *path, int base_fd, const struct mb_qcow2_info *info)
{
	char named[PATH_MAX];
	struct stat st, other;

	mb_overlay_find_base(path, info->base_name, named);
	return !stat(named, &st) && !fstat(base_fd, &other) && st.st_dev == other.st_dev &&
	       st.st_ino == other.st_ino;
}

int mb_overlay_check_base(const char *path, const char *base_path, int base_fd,
	const struct mb_qcow2_info *info, const struct mb_qcow2_base *base, struct mb_error *err)
{
	int rc = mb_overlay_check_kind(path, base_path, base_fd, info, err);

	if (rc)
		return rc;
	if (info->base.committing)
		return mb_error_set(err, EINVAL,
			"overlay %s: a commit into its base was interrupted; finish it with: "
			"mirrorball image commit %s",
			path, path);
	if (info->bytes < base->bytes)
		return mb_error_set(err, EINVAL,
			"overlay %s: is for a base of %" PRIu64 " bytes, and %s has %" PRIu64
			"; give it the base that it was made for",
			path, info->bytes, base_path, base->bytes);
	if (!info->base.known && !is_named(path, base_fd, info))
		return mb_error_set(err, EINVAL,
			"overlay %s: names %s as its base, and not %s. If that is the same: "
			"mirrorball image rebase %s %s",
			path, info->base_name, base_path, path, base_path);
	if (info->base.known &&
		(info->base.bytes != base->bytes || info->base.mtime_ns != base->mtime_ns))
		return mb_error_set(err, ESTALE,
			"overlay %s: its base %s was changed since it was made, and does not fit "
			"what is in it any more. If only its time is another (a copy, say): "
			"mirrorball image rebase %s %s",
			path, base_path, path, base_path);
	return 0;
}

static int open_overlay(struct mb_cow *cow, const struct mb_cow_config *config,
	const struct mb_qcow2_base *base, struct mb_error *err)
{
	const char *path = config->overlay_path;
	const struct mb_qcow2_info *info;
	int rc;

	cow->path = strdup(path);
	if (!cow->path)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", path);
	if (access(path, F_OK) && errno == ENOENT) {
		if (config->dry)
			return open_volatile(cow, config, err);
		rc = mb_overlay_check_raw(path, cow->base_path, cow->base.fd, err);
		if (!rc)
			rc = mb_overlay_create(
				path, cow->base_path, base->bytes, base, false, &cow->fd, err);
	} else {
		rc = mb_overlay_open(path, false, &cow->fd, err);
	}
	if (!rc)
		rc = mb_qcow2_open(&cow->qcow2, cow->fd, cow->path, err);
	if (rc)
		return rc;
	info = mb_qcow2_info(cow->qcow2);
	cow->bytes = info->bytes;
	cow->bits = (unsigned)__builtin_ctz(info->cluster_bytes);
	return mb_overlay_check_base(path, cow->base_path, cow->base.fd, info, base, err);
}

int mb_cow_open_delta(struct mb_cow *cow, const struct mb_cow_config *config, struct mb_error *err)
{
	int rc;

	/* Not a file: nothing to know it by. */
	if (!config->overlay_path && cow->base.fd < 0) {
		cow->base.was.bytes = config->base_bytes;
		return open_volatile(cow, config, err);
	}
	rc = mb_base_read(cow->base.fd, cow->base_path, config->base_bytes, cow->base.is_device,
		&cow->base.was, err);
	if (rc)
		return rc;
	return config->overlay_path ? open_overlay(cow, config, &cow->base.was, err)
				    : open_volatile(cow, config, err);
}
