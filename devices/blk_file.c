// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include "qcow2.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/*
 * The file under a disk: opened, locked and measured, all before the guest runs.
 *
 * O_DIRECT is used only where the file takes I/O in units of the guest's own block: a regular file
 * is a disk of 512-byte sectors, whatever it lies on (its partition table counts in them), so a
 * file system that wants 4096 is used through the page cache; a block device passes its block size
 * on. Direct and buffered I/O are never mixed on one file: the page cache would give back stale
 * neighbours.
 *
 * All of this leaves the file as it was, its times included: --dry-run does it, too, and a backup
 * goes by them.
 */

static int refuse_type(const char *path, mode_t mode, struct mb_error *err)
{
	if (S_ISDIR(mode))
		return mb_error_set(err, EISDIR,
			"disk %s: is a directory; give a disk image or a block device", path);
	return mb_error_set(err, EINVAL,
		"disk %s: is a %s; give a disk image (a regular file) or a block device", path,
		S_ISCHR(mode)	 ? "character device"
		: S_ISFIFO(mode) ? "pipe"
		: S_ISSOCK(mode) ? "socket"
				 : "special file");
}

/* The mount point of device dev in this process's namespace, for the message; false if there is
 * none. */
static bool mounted_on(dev_t dev, char *where, size_t len)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t cap = 0;
	bool found = false;

	if (!f)
		return false;
	while (!found && getline(&line, &cap, f) > 0) {
		unsigned maj, min;
		char point[256];

		if (sscanf(line, "%*u %*u %u:%u %*s %255s", &maj, &min, point) == 3 &&
			makedev(maj, min) == dev) {
			snprintf(where, len, "%s", point);
			found = true;
		}
	}
	free(line);
	fclose(f);
	return found;
}

int mb_blk_explain_open(const char *path, bool readonly, int errnum, struct mb_error *err)
{
	struct stat st = {0};
	char where[256];

	(void)!stat(path, &st);
	switch (errnum) {
	case EACCES:
	case EPERM:
		return mb_error_set(err, errnum,
			"disk %s: no permission to %s it (owner %u, mode %03o); change that with "
			"chown or chmod%s",
			path, readonly ? "read" : "read and write", st.st_uid, st.st_mode & 07777,
			readonly ? "" : ", or open it read-only (,ro)");
	case EROFS:
		return mb_error_set(err, errnum,
			"disk %s: lies on a read-only file system; open it read-only (,ro)", path);
	case ETXTBSY:
		return mb_error_set(err, errnum,
			"disk %s: in use as swap or as a running program; give another file", path);
	case EBUSY:
		if (mounted_on(st.st_rdev, where, sizeof(where)))
			return mb_error_set(err, errnum,
				"disk %s: mounted on %s; unmount it first: a disk has one writer",
				path, where);
		return mb_error_set(err, errnum,
			"disk %s: in use by another machine, or it or a partition of it is "
			"mounted, swap or part of a RAID or LVM; see lsblk, and free it first",
			path);
	case ENXIO:
	case ENOMEDIUM:
		return mb_error_set(
			err, errnum, "disk %s: no such device, or no medium in it", path);
	default:
		return mb_error_set(
			err, errnum, "disk %s: cannot open: %s", path, strerror(errnum));
	}
}

/* Whether process pid has the file of *st open with a lock on it. */
static bool holds_lock(const char *pid, const struct stat *st)
{
	char dir[64], path[400], line[128];
	bool found = false;
	struct dirent *de;
	DIR *d;

	snprintf(dir, sizeof(dir), "/proc/%.20s/fd", pid);
	d = opendir(dir);
	if (!d)
		return false;
	while (!found && (de = readdir(d))) {
		struct stat other;
		FILE *f;

		if (fstatat(dirfd(d), de->d_name, &other, 0) || other.st_dev != st->st_dev ||
			other.st_ino != st->st_ino)
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%.255s", pid, de->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		while (!found && fgets(line, sizeof(line), f))
			found = !strncmp(line, "lock:", 5);
		fclose(f);
	}
	closedir(d);
	return found;
}

/*
 * Who holds the lock, as " (process 123, mirrorball)". F_OFD_GETLK names no process for such locks
 * (its l_pid is -1, fcntl(2)), so look for it; nothing is said when the process is not ours to see.
 */
static void find_holder(const struct stat *st, char *text, size_t len)
{
	DIR *d = opendir("/proc");
	struct dirent *de;

	*text = 0;
	if (!d)
		return;
	while ((de = readdir(d))) {
		char path[64], comm[32] = "";
		FILE *f;

		if (!isdigit((unsigned char)de->d_name[0]) || !holds_lock(de->d_name, st))
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", de->d_name);
		f = fopen(path, "re");
		if (f) {
			if (fgets(comm, sizeof(comm), f))
				comm[strcspn(comm, "\n")] = 0;
			fclose(f);
		}
		snprintf(text, len, " (process %.20s%s%s)", de->d_name, *comm ? ", " : "", comm);
		break;
	}
	closedir(d);
}

/*
 * Open-file-description locks: they belong to the open file, not the process, so that two machines
 * in one process exclude each other too and no unrelated close(2) drops them (fcntl(2)).
 */
int mb_blk_lock(int fd, const char *path, bool readonly, struct mb_error *err)
{
	struct flock fl = {
		.l_type = readonly ? F_RDLCK : F_WRLCK,
		.l_whence = SEEK_SET,
	};
	struct stat st;
	char who[80] = "";

	if (!fcntl(fd, F_OFD_SETLK, &fl))
		return 0;
	if (errno == EAGAIN || errno == EACCES) {
		if (!fstat(fd, &st))
			find_holder(&st, who, sizeof(who));
		return mb_error_set(err, EBUSY,
			"disk %s: in use by another machine%s; stop it, or open the disk read-only "
			"(,ro) in both",
			path, who);
	}
	/* Some network file systems have no locks: their user must take care, and is told. */
	mb_log("disk %s: cannot be locked (%s): make sure that no other machine uses it", path,
		strerror(errno));
	return 0;
}

/* A number from the device's directory in sysfs ("queue/..."; a partition's queue is its disk's).
 */
static uint64_t queue_attribute(dev_t dev, const char *name)
{
	const char *const up[] = {"", "../"};
	uint64_t value = 0;

	for (unsigned i = 0; i < 2; i++) {
		char path[160];
		FILE *f;
		bool ok;

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(dev),
			minor(dev), up[i], name);
		f = fopen(path, "re");
		if (!f)
			continue;
		ok = fscanf(f, "%" SCNu64, &value) == 1;
		fclose(f);
		return ok ? value : 0;
	}
	return 0;
}

static int measure_device(
	struct mb_blk_file *file, const char *path, const struct stat *st, struct mb_error *err)
{
	uint64_t bytes = 0;
	unsigned uval = 0;
	int ival = 0;

	if (ioctl(file->fd, BLKGETSIZE64, &bytes))
		return mb_error_set(
			err, errno, "disk %s: cannot read its size: %s", path, strerror(errno));
	if (bytes < MB_BLK_SECTOR)
		return mb_error_set(
			err, ENOMEDIUM, "disk %s: has no size; is there a medium in it?", path);
	file->n_sectors = bytes / MB_BLK_SECTOR;
	if (!ioctl(file->fd, BLKSSZGET, &ival) && ival >= (int)MB_BLK_SECTOR)
		file->block_bytes = (uint32_t)ival;
	file->phys_bytes = file->block_bytes;
	if (!ioctl(file->fd, BLKPBSZGET, &uval) && uval >= file->block_bytes)
		file->phys_bytes = uval;
	file->min_io_bytes = file->phys_bytes;
	if (!ioctl(file->fd, BLKIOMIN, &uval) && uval >= file->block_bytes)
		file->min_io_bytes = uval;
	if (!ioctl(file->fd, BLKIOOPT, &uval))
		file->opt_io_bytes = uval;
	if (!ioctl(file->fd, BLKALIGNOFF, &ival) && ival > 0)
		file->align_bytes = (uint32_t)ival;
	/* fallocate on a block device punches with "write zeroes" and has no fallback of its own.
	 */
	file->can_punch = queue_attribute(st->st_rdev, "write_zeroes_max_bytes") > 0;
	return 0;
}

static int measure_file(
	struct mb_blk_file *file, const char *path, const struct stat *st, struct mb_error *err)
{
	uint64_t bytes = (uint64_t)st->st_size;

	if (!bytes)
		return mb_error_set(err, EINVAL,
			"disk %s: the file is empty; give it a size with: truncate -s 8G %s", path,
			path);
	if (bytes % MB_BLK_SECTOR)
		return mb_error_set(err, EINVAL,
			"disk %s: size %" PRIu64
			" is not a multiple of 512 bytes; is it a whole raw disk image? It can be "
			"filled up with: truncate -s %" PRIu64 " %s",
			path, bytes, mb_align_up(bytes, MB_BLK_SECTOR), path);
	file->n_sectors = bytes / MB_BLK_SECTOR;
	if (st->st_blksize > (blksize_t)MB_BLK_SECTOR && st->st_blksize <= (64 << 10) &&
		!(st->st_blksize & (st->st_blksize - 1)))
		file->phys_bytes = (uint32_t)st->st_blksize;
	file->min_io_bytes = file->phys_bytes;
	/*
	 * The only way to know is to punch, and even a hole behind the end changes the file's
	 * times: the guest's first one tells.
	 */
	file->can_punch = !file->readonly;
	if (mb_qcow2_is(file->fd))
		mb_log("disk %s: looks like a qcow2 image, but the guest gets it as it is (raw); "
		       "convert it with: qemu-img convert -O raw %s disk.raw",
			path, path);
	return 0;
}

/* Whether O_DIRECT, which is on, takes reads of `align` bytes at odd multiples of align. */
static bool try_direct(int fd, uint32_t align)
{
	uint8_t *page =
		mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool ok;

	if (page == MAP_FAILED)
		return false;
	ok = pread(fd, page + align, align, align) == (ssize_t)align;
	munmap(page, 8192);
	return ok;
}

/* Switches O_DIRECT on if the file can do it; buffered I/O otherwise, which is never an error. */
static void choose_direct(struct mb_blk_file *file, int flags)
{
	struct statx stx;
	uint32_t mem = 0, io = 0;

	if (fcntl(file->fd, F_SETFL, flags | O_DIRECT))
		return;
	memset(&stx, 0, sizeof(stx));
#ifdef STATX_DIOALIGN
	/* Linux 6.1. */
	if (!statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) &&
		(stx.stx_mask & STATX_DIOALIGN)) {
		mem = stx.stx_dio_mem_align;
		io = stx.stx_dio_offset_align;
	} else
#endif
		if (file->n_sectors * MB_BLK_SECTOR >= 2 * (uint64_t)file->block_bytes &&
			try_direct(file->fd, file->block_bytes))
		mem = io = file->block_bytes;
	if (!mem || !io || io > file->block_bytes || mem > 4096) {
		fcntl(file->fd, F_SETFL, flags);
		return;
	}
	file->direct = true;
	file->mem_align = mem;
	/* A segment's length must be whole blocks, also where offsets may be finer. */
	file->io_align = file->block_bytes;
}

int mb_blk_file_open(struct mb_blk_file *file, const char *path, bool readonly, bool direct,
	struct mb_error *err)
{
	int flags = readonly ? O_RDONLY : O_RDWR, quiet = flags | O_NOATIME, rc;
	struct stat st;

	*file = (struct mb_blk_file){
		.fd = -1,
		.readonly = readonly,
		.mem_align = 1,
		.io_align = 1,
		.block_bytes = MB_BLK_SECTOR,
		.phys_bytes = MB_BLK_SECTOR,
	};
	/* Before the open, which would wait for a pipe's other end and can rewind a tape. */
	if (stat(path, &st)) {
		if (errno == ENOENT)
			return mb_error_set(err, errno,
				"disk %s: no such file; make an empty disk with: truncate -s 8G %s",
				path, path);
		return mb_error_set(err, errno, "disk %s: %s", path, strerror(errno));
	}
	file->block_device = S_ISBLK(st.st_mode);
	if (!S_ISREG(st.st_mode) && !file->block_device)
		return refuse_type(path, st.st_mode, err);
	/* O_EXCL on a block device: not while it is mounted or otherwise claimed (open(2)). */
	file->fd = open(path,
		flags | O_CLOEXEC | (file->block_device ? (readonly ? 0 : O_EXCL) : O_NONBLOCK));
	if (file->fd < 0)
		return mb_blk_explain_open(path, readonly, errno, err);
	/* It may have been replaced meanwhile. O_NONBLOCK was for that; io_uring must not see it.
	 */
	if (fstat(file->fd, &st) || S_ISBLK(st.st_mode) != file->block_device ||
		(!file->block_device && !S_ISREG(st.st_mode))) {
		rc = mb_error_set(
			err, EINVAL, "disk %s: changed while it was opened; try again", path);
		goto err_close;
	}
	/* Only a file's owner may read it without a trace (open(2)). */
	if (fcntl(file->fd, F_SETFL, quiet)) {
		quiet = flags;
		fcntl(file->fd, F_SETFL, quiet);
	}

	rc = mb_blk_lock(file->fd, path, readonly, err);
	if (rc)
		goto err_close;
	rc = file->block_device ? measure_device(file, path, &st, err)
				: measure_file(file, path, &st, err);
	if (rc)
		goto err_close;
	if (direct)
		choose_direct(file, quiet);
	fcntl(file->fd, F_SETFL, flags | (file->direct ? O_DIRECT : 0));
	return 0;

err_close:
	mb_blk_file_close(file);
	return rc;
}

void mb_blk_unlock_and_close(int fd)
{
	struct flock unlock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	/* io_uring may hold the open file, and with it the lock, a moment longer than we do. */
	fcntl(fd, F_OFD_SETLK, &unlock);
	close(fd);
}

void mb_blk_file_close(struct mb_blk_file *file)
{
	if (file->fd >= 0)
		mb_blk_unlock_and_close(file->fd);
	file->fd = -1;
}
