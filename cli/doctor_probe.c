// SPDX-License-Identifier: Apache-2.0
#include "doctor.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/userfaultfd.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram.h>
#include <mirrorball/ram_file.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Debian 12's headers are Linux 6.1's; these numbers are ABI (uapi/linux/userfaultfd.h).
 */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

/* The features that a userfaultfd offers, or -errno. Closes fd. */
static int read_features(int fd, uint64_t *features)
{
	struct uffdio_api api = {.api = UFFD_API};
	int rc = ioctl(fd, UFFDIO_API, &api) ? -errno : 0;

	close(fd);
	*features = api.features;
	return rc;
}

static void probe_kernel_faults(struct doctor_report *report)
{
	struct doctor_check *check;
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int open_errno = errno;
	int fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	if (dev >= 0)
		close(dev);
	if (fd >= 0) {
		close(fd);
		check = doctor_add(
			report, "memory", "userfaultfd", "/dev/userfaultfd", DOCTOR_OK, "opens");
	} else if ((fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)) >= 0) {
		close(fd);
		check = doctor_add(report, "memory", "userfaultfd", "/dev/userfaultfd", DOCTOR_OK,
			"not usable (%s), but CAP_SYS_PTRACE or the sysctl stands in",
			strerror(open_errno));
	} else {
		check = doctor_add(report, "memory", "userfaultfd", "/dev/userfaultfd", DOCTOR_WARN,
			"%s", strerror(open_errno));
		check->cost = "no replication and no sharing of guest pages (a guest's write is a "
			      "fault inside KVM, which must be handled); migration works";
		check->fix = open_errno == ENOENT
				     ? "Linux 6.1 or later with CONFIG_USERFAULTFD=y"
				     : "chmod or an udev rule for /dev/userfaultfd, or run as root";
	}
	check->since = "6.1";
	check->use = "takes a guest's first write to a replicated or shared page";
}

static void probe_features(struct doctor_report *report)
{
	struct doctor_check *check;
	uint64_t features = 0;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	int rc = fd < 0 ? -errno : read_features(fd, &features);
	bool async = !rc && features & UFFD_FEATURE_WP_ASYNC;
	bool shmem = !rc && features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

	check = doctor_add(report, "memory", "uffd_wp_shmem", "write protection of guest RAM",
		shmem ? DOCTOR_OK : DOCTOR_WARN, "%s",
		rc	? strerror(-rc)
		: shmem ? "offered"
			: "not offered");
	check->since = "5.19";
	check->use = "keeps replicated and shared pages equal";
	if (!shmem) {
		check->cost = "no replication and no sharing of guest pages";
		check->fix = "Linux 5.19 or later with CONFIG_USERFAULTFD=y";
	}
	check = doctor_add(report, "memory", "uffd_wp_async", "write tracking without faults",
		async ? DOCTOR_OK : DOCTOR_WARN, "%s",
		rc	? strerror(-rc)
		: async ? "offered"
			: "not offered");
	check->since = "6.7";
	check->use = "tells written pages from read ones";
	if (!async) {
		check->cost = "it is not known who writes which memory ('mirrorball heat' shows reads and writes as one)";
		check->fix = "Linux 6.7 or later";
	}
}

static int try_pagemap_scan(void)
{
	struct mb_pagemap *pm;
	int rc = mb_pagemap_open(MB_PAGEMAP_SCAN, &pm, NULL);

	if (!rc) {
		rc = mb_pagemap_features(pm) & MB_PAGEMAP_SCAN ? 0 : -ENOTTY;
		mb_pagemap_close(pm);
	}
	return rc;
}

/* Touches one huge page of what would be guest memory: 1 if that made it one, 0 if not, -errno. */
static int try_huge_page(int fd)
{
	struct mb_ram_mapping map;
	struct stat st;
	int rc = mb_ram_file_map(fd, MB_RAM_ALIGN, &map);

	if (!rc) {
		*map.base = 1;
		rc = fstat(fd, &st) ? -errno : (uint64_t)st.st_blocks * 512 == MB_RAM_ALIGN;
	}
	mb_ram_file_unmap(&map, MB_RAM_ALIGN);
	return rc;
}

static void probe_huge_pages(struct doctor_report *report, int fd)
{
	char setting[128] = "";
	struct doctor_check *check;
	int rc = try_huge_page(fd);
	bool denied;

	doctor_read(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", setting,
		sizeof(setting));
	denied = strstr(setting, "[deny]");
	check = doctor_add(report, "memory", "thp_shmem", "huge pages for a guest",
		rc > 0 ? DOCTOR_OK : DOCTOR_WARN, "%s",
		rc < 0	 ? strerror(-rc)
		: rc	 ? "given"
		: denied ? "denied by shmem_enabled"
			 : "not given");
	check->since = "5.2";
	check->use = "2 MiB pages behind guest memory";
	if (rc > 0)
		return;
	check->cost = "guest memory is in 4 KiB pages: slower, most of all at the start";
	check->fix = rc == -ENOMEM ? "raise the limit on address space (ulimit -v), or free memory"
		     : denied	   ? "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
			   : "root, or a place where user namespaces may be made, or echo advise >"
			     " /sys/kernel/mm/transparent_hugepage/shmem_enabled; and free memory";
}

static void probe_ram(struct doctor_report *report)
{
	struct doctor_check *check;
	int fd = mb_ram_file_open(MB_RAM_ALIGN);

	check = doctor_add(report, "memory", "memfd", "memory for a guest",
		fd < 0 ? DOCTOR_MISSING : DOCTOR_OK, "%s", fd < 0 ? strerror(-fd) : "works");
	check->since = "3.17";
	check->use = "is the guest's memory";
	if (fd >= 0) {
		probe_huge_pages(report, fd);
		close(fd);
		return;
	}
	check->cost = "no machine runs";
	check->fix = fd == -EFBIG    ? "raise the limit on the size of files (ulimit -f)"
		     : fd == -EMFILE ? "raise the limit of open files (ulimit -n)"
				     : "a kernel with CONFIG_MEMFD_CREATE=y, and a container that allows the call";
}

void doctor_probe_memory(struct doctor_report *report)
{
	struct doctor_check *check;
	int rc;

	probe_kernel_faults(report);
	probe_features(report);
	rc = try_pagemap_scan();
	check = doctor_add(report, "memory", "pagemap_scan", "PAGEMAP_SCAN",
		rc ? DOCTOR_WARN : DOCTOR_OK, "%s",
		rc == -ENOTTY ? "this kernel does not have it"
		: rc	      ? strerror(-rc)
			      : "works");
	check->since = "6.7";
	check->use = "reads which pages each view touched";
	if (rc) {
		check->cost = "/proc/self/pagemap is read instead: the same facts, slower";
		check->fix = "Linux 6.7 or later with CONFIG_PROC_PAGE_MONITOR=y";
	}
	probe_ram(report);
}

void doctor_probe_io(struct doctor_report *report)
{
	struct doctor_check *check;
	struct io_uring ring;
	int rc = io_uring_queue_init(8, &ring, 0);

	if (!rc)
		io_uring_queue_exit(&ring);
	check = doctor_add(report, "io", "io_uring", "io_uring", rc ? DOCTOR_WARN : DOCTOR_OK, "%s",
		rc ? strerror(-rc) : "works");
	check->since = "5.1";
	check->use = "disk requests";
	if (rc) {
		check->cost = "no --disk";
		check->fix = rc == -EPERM ? "sysctl -w kernel.io_uring_disabled=0, and a container "
					    "that allows it"
			     : rc == -ENOMEM ? "raise the limit of locked memory (ulimit -l)"
					     : "Linux 5.10 or later with CONFIG_IO_URING=y";
	}
}
