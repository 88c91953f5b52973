// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/log.h>
#include <mirrorball/ram.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/range.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAME	    "mirrorball-ram" /* seen in /proc/PID/maps */
#define HOLE_TRIES  1000u	     /* 10 ms apart */
#define STACK_BYTES 16384u

/* ThreadSanitizer takes a child with our memory for the end of our threads. */
#ifdef __SANITIZE_THREAD__
#define CHILD_FLAGS CLONE_FILES
#else
#define CHILD_FLAGS (CLONE_FILES | CLONE_VM | CLONE_VFORK)
#endif

/* Makes fd a file in a new tmpfs; it stays what it was if that is not allowed. */
static int replace_by_tmpfs(int fd)
{
	int context = fsopen("tmpfs", FSOPEN_CLOEXEC), mount = -1, file, rc = 0;

	if (context < 0)
		return -errno;
	/* size=0: as large as memory allows, as a memfd. */
	if (fsconfig(context, FSCONFIG_SET_STRING, "huge", "advise", 0) ||
		fsconfig(context, FSCONFIG_SET_STRING, "size", "0", 0) ||
		fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) ||
		(mount = fsmount(context, FSMOUNT_CLOEXEC,
			 MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)) < 0) {
		rc = -errno;
		goto out;
	}
	file = openat(mount, NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file < 0 || unlinkat(mount, NAME, 0) || dup3(file, fd, O_CLOEXEC) < 0)
		rc = -errno;
	if (file >= 0)
		close(file);
	close(mount);
out:
	close(context);
	return rc;
}

static int put(const char *path, const char *text)
{
	size_t len = strlen(text);
	int fd = open(path, O_WRONLY | O_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	rc = write(fd, text, len) == (ssize_t)len ? 0 : -EIO;
	close(fd);
	return rc;
}

/* What the child needs; made before it, since it can only do system calls. */
struct own_ids {
	char uid_map[32], gid_map[32];
};

/* user_namespaces(7): without privilege one may map one's own IDs, once setgroups is given up. */
static int enter_user_namespace(const struct own_ids *ids)
{
	/*
	 * A program with capabilities of its file is not dumpable, and its /proc/self is root's.
	 * Only the child is made so, for the moment; whoever of the same user traces it gains no
	 * capability.
	 */
	int rc = prctl(PR_SET_DUMPABLE, 1) || unshare(CLONE_NEWUSER | CLONE_NEWNS) ? -errno : 0;

	if (!rc)
		rc = put("/proc/self/setgroups", "deny");
	if (!rc)
		rc = put("/proc/self/uid_map", ids->uid_map);
	if (!rc)
		rc = put("/proc/self/gid_map", ids->gid_map);
	return rc;
}

static int child_mounts(void *fd)
{
	return replace_by_tmpfs(*(int *)fd) != 0;
}

/* No signal tells of its end. */
static bool succeeded(pid_t child)
{
	int status = -1;

	while (child > 0 && waitpid(child, &status, __WCLONE) < 0 && errno == EINTR)
		;
	return status == 0;
}

/*
 * In a child: a system call that a sandbox kills for (seccomp(2)) ends nothing else there, and a
 * process with threads cannot change its user namespace. It has our table of descriptors, so that
 * what it opens is ours, and does nothing but system calls: another thread may have held any lock
 * when it was made.
 *
 * The first child has our memory, too, and we wait: without a fork and the faults after it a start
 * is 0.2 ms shorter. The second has its own, since to enter a user namespace changes whose
 * /proc/self is.
 */
static void replace_in_child(int fd)
{
	char stack[STACK_BYTES] __attribute__((aligned(16)));
	struct own_ids ids;
	long child;

	if (succeeded(clone(child_mounts, stack + sizeof(stack), CHILD_FLAGS, &fd)))
		return;
	snprintf(ids.uid_map, sizeof(ids.uid_map), "0 %u 1", geteuid());
	snprintf(ids.gid_map, sizeof(ids.gid_map), "0 %u 1", getegid());
	child = syscall(SYS_clone, CLONE_FILES, NULL, NULL, NULL, NULL);
	if (child == 0)
		_exit(enter_user_namespace(&ids) || replace_by_tmpfs(fd));
	succeeded((pid_t)child);
}

int mb_ram_file_open(uint64_t bytes)
{
	int fd = memfd_create(NAME, MFD_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	replace_in_child(fd);
	if (ftruncate(fd, (off_t)bytes)) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

/* Both are wishes: huge pages may be off, and a dump without guest memory is smaller. */
static void advise(void *at, uint64_t len)
{
	madvise(at, len, MADV_HUGEPAGE);
	madvise(at, len, MADV_DONTDUMP);
}

/* Nothing is mapped at base yet. */
static int reserve(uint64_t bytes, struct mb_ram_mapping *m)
{
	void *at = mmap(NULL, bytes + MB_RAM_ALIGN, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	*m = (struct mb_ram_mapping){0};
	if (at == MAP_FAILED)
		return -errno;
	m->reserved = at;
	m->base = (char *)mb_align_up((uintptr_t)at, MB_RAM_ALIGN);
	return 0;
}

/* kind: MAP_SHARED or MAP_PRIVATE */
static int map_aligned(int fd, uint64_t bytes, int kind, struct mb_ram_mapping *m)
{
	int rc = reserve(bytes, m);

	if (rc)
		return rc;
	return mmap(m->base, bytes, PROT_READ | PROT_WRITE, kind | MAP_FIXED | MAP_NORESERVE, fd,
		       0) == MAP_FAILED
		       ? -errno
		       : 0;
}

int mb_ram_file_map(int fd, uint64_t bytes, struct mb_ram_mapping *m)
{
	int rc = map_aligned(fd, bytes, MAP_SHARED, m);

	if (!rc)
		advise(m->base, bytes);
	return rc;
}

/*
 * Linux before 6.12 may unmap what is there before it fails for want of memory. What is mapped into
 * such a hole next, by whomever, would be the guest's.
 */
static bool is_hole(void *at, uint64_t len)
{
	return msync(at, len, MS_ASYNC);
}

static void end_with_hole(int rc)
{
	mb_log("a hole in guest memory cannot be closed: %s", strerror(-rc));
	abort();
}

int mb_ram_file_remap(int fd, const struct mb_ram_mapping *m, uint64_t offset, uint64_t len)
{
	char *at = (char *)m->base + offset;

	for (unsigned i = 0;
		mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
			(off_t)offset) == MAP_FAILED;
		i++) {
		struct timespec wait = {.tv_nsec = 10000000};
		int rc = -errno;

		if (!is_hole(at, len))
			return rc;
		if (i == HOLE_TRIES)
			end_with_hole(rc);
		nanosleep(&wait, NULL);
	}
	advise(at, len);
	return 0;
}

void mb_ram_file_unmap(struct mb_ram_mapping *m, uint64_t bytes)
{
	if (m->reserved)
		munmap(m->reserved, bytes + MB_RAM_ALIGN);
	*m = (struct mb_ram_mapping){0};
}

/* ---- of a snapshot ---- */

/* A child must not share pages that the kernel has been given for an I/O. */
static void advise_private(void *at, uint64_t len)
{
	madvise(at, len, MADV_DONTFORK);
	madvise(at, len, MADV_DONTDUMP);
}

int mb_ram_file_map_private(int fd, uint64_t bytes, struct mb_ram_mapping *m)
{
	int rc = map_aligned(fd, bytes, MAP_PRIVATE, m);

	if (!rc)
		advise_private(m->base, bytes);
	return rc;
}

int mb_ram_file_map_zeroes(const struct mb_ram_mapping *m, uint64_t offset, uint64_t len)
{
	char *at = (char *)m->base + offset;

	if (mmap(at, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
		int rc = -errno;

		if (is_hole(at, len))
			end_with_hole(rc);
		return rc;
	}
	advise_private(at, len);
	return 0;
}

#define PAGEMAP_IN_MEMORY (3ull << 62) /* or swapped out */
#define PAGEMAP_OF_FILE	  (1ull << 61)
#define PAGE_BYTES	  4096u

uint64_t mb_ram_file_private_bytes(const struct mb_ram_mapping *m, uint64_t bytes)
{
	uint64_t entry[512], n_own = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	for (uint64_t at = 0; fd >= 0 && at < bytes; at += sizeof(entry) / 8 * PAGE_BYTES) {
		uint64_t offset = ((uintptr_t)m->base + at) / PAGE_BYTES * 8;

		if (pread(fd, entry, sizeof(entry), (off_t)offset) != sizeof(entry))
			break;
		for (unsigned i = 0; i < sizeof(entry) / 8; i++)
			n_own += (entry[i] & PAGEMAP_IN_MEMORY) && !(entry[i] & PAGEMAP_OF_FILE);
	}
	if (fd >= 0)
		close(fd);
	return n_own * PAGE_BYTES;
}

/* ---- an image ---- */

int mb_ram_file_map_image(int fd, uint64_t file_bytes, uint64_t bytes, struct mb_ram_mapping *m)
{
	void *base;
	int rc = reserve(bytes, m);

	if (rc)
		return rc;
	base = mmap(m->base, bytes, PROT_READ,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	if (base != MAP_FAILED)
		base = mmap(m->base, file_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	madvise(m->base, bytes, MADV_DONTDUMP);
	return 0;
}
