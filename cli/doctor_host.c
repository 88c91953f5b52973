// SPDX-License-Identifier: Apache-2.0
#include "doctor.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/host.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define REFERENCE_MAJOR	 6u /* the kernel that the design was verified on */
#define REFERENCE_MINOR	 12u
#define MAX_MAP_COUNT	 262144ull
#define CAP_SYS_NICE_BIT 23

/* The word in brackets of "always [madvise] never", or the whole line. */
static const char *chosen_word(char *line)
{
	char *open_bracket = strchr(line, '['), *close_bracket = strchr(line, ']');

	if (!open_bracket || !close_bracket || close_bracket < open_bracket)
		return line;
	*close_bracket = '\0';
	return open_bracket + 1;
}

/* A number in a file; -errno or -EINVAL. */
static int read_number(int root_fd, const char *path, uint64_t *value)
{
	char line[64], *end;
	int rc = doctor_read(root_fd, path, line, sizeof(line));

	if (rc < 0)
		return rc;
	errno = 0;
	*value = strtoull(line, &end, 10);
	return end == line || errno ? -EINVAL : 0;
}

static void look_device(struct doctor_report *report, int rc, const struct mb_error *err)
{
	struct doctor_check *check =
		doctor_add(report, "kvm", "device", "/dev/kvm", DOCTOR_MISSING, "%s", err->text);

	check->use = "runs the guest";
	check->cost = "no machine runs";
	if (rc == -EACCES || rc == -EPERM)
		check->fix = "usermod -aG kvm USER, and log in again";
	else if (rc == -ENOENT || rc == -ENODEV || rc == -ENXIO)
		check->fix = "modprobe kvm_intel or kvm_amd; switch virtualisation on in the "
			     "firmware; inside a virtual machine, have its host allow nested "
			     "virtualisation";
	else
		check->fix = "see the message";
}

static void look_caps(struct doctor_report *report, const struct mb_host *host)
{
	for (unsigned i = 0; i < MB_N_CAPS; i++) {
		const struct mb_cap_info *info = &mb_cap_infos[i];
		enum doctor_mark bad = info->need == MB_CAP_REQUIRED ? DOCTOR_MISSING : DOCTOR_WARN;
		char id[40], *p;
		struct doctor_check *check;

		snprintf(id, sizeof(id), "%s",
			strncmp(info->name, "KVM_CAP_", 8) ? info->name : info->name + 8);
		for (p = id; *p; p++)
			*p = (char)(*p >= 'A' && *p <= 'Z' ? *p - 'A' + 'a' : *p);
		if (host->cap[i])
			check = doctor_add(
				report, "kvm", id, info->name, DOCTOR_OK, "%d", host->cap[i]);
		else
			check = doctor_add(report, "kvm", id, info->name, bad, "absent");
		check->since = info->since;
		check->use = info->use;
		check->cost = host->cap[i] ? NULL : info->cost;
	}
}

/*
 * With EPT (Intel) or NPT (AMD) the hardware walks the guest's page tables; without, KVM shadows
 * them and takes an exit for each of the guest's page table changes.
 */
static void look_paging(struct doctor_report *report, int root_fd)
{
	static const struct {
		const char *path, *name;
	} modules[] = {
		{"sys/module/kvm_intel/parameters/ept", "EPT"},
		{"sys/module/kvm_amd/parameters/npt", "NPT"},
	};
	struct doctor_check *check;
	char line[16];

	for (unsigned i = 0; i < 2; i++) {
		if (doctor_read(root_fd, modules[i].path, line, sizeof(line)) < 1)
			continue;
		if (*line == 'Y' || *line == '1') {
			check = doctor_add(report, "kvm", "paging", "second-level paging",
				DOCTOR_OK, "%s", modules[i].name);
		} else {
			check = doctor_add(report, "kvm", "paging", "second-level paging",
				DOCTOR_WARN, "%s is off: shadow paging", modules[i].name);
			check->cost = "guests that change their page tables often are several "
				      "times slower";
			check->fix = "load kvm_intel with ept=1 or kvm_amd with npt=1";
		}
		check->use = "guest memory without an exit for each page table change";
		return;
	}
	check = doctor_add(report, "kvm", "paging", "second-level paging", DOCTOR_WARN,
		"no EPT or NPT: an emulated KVM?");
	check->use = "guest memory without an exit for each page table change";
	check->cost =
		"guests that change their page tables often are slow; an emulated KVM may not boot "
		"stock kernels at all ('mirrorball run splash' works)";
	check->fix = "run on hardware, or in a virtual machine with nested EPT or NPT";
}

static void look_kernel(struct doctor_report *report)
{
	unsigned major = 0, minor = 0;
	bool known = sscanf(report->kernel, "%u.%u", &major, &minor) == 2;
	bool old = !known || major < REFERENCE_MAJOR ||
		   (major == REFERENCE_MAJOR && minor < REFERENCE_MINOR);
	struct doctor_check *check = doctor_add(report, "kvm", "kernel", "Linux",
		old ? DOCTOR_WARN : DOCTOR_OK, "%s", known ? report->kernel : "unknown version");

	check->use = "6.12 is the version that everything was verified on";
	if (old) {
		check->cost = "older kernels are not tested; before 6.7 counting accesses is "
			      "slower and coarser";
		check->fix = "install Linux 6.12 or later (Debian 12: linux-image-amd64 from "
			     "bookworm-backports)";
	}
}

void doctor_look_kvm(struct doctor_report *report, int root_fd)
{
	struct mb_error err = {0};
	struct doctor_check *check;
	struct mb_host host;
	int rc;

	look_kernel(report);
	rc = mb_host_open(&host, NULL, &err);
	if (rc) {
		look_device(report, rc, &err);
		return;
	}
	check = doctor_add(report, "kvm", "device", "/dev/kvm", DOCTOR_OK, "opens, KVM API 12");
	check->use = "runs the guest";
	look_paging(report, root_fd);
	report->n_views = host.n_views;
	check = doctor_add(report, "kvm", "views", "views of guest memory",
		host.n_views > 1 ? DOCTOR_OK : DOCTOR_WARN, "%u", host.n_views);
	check->use = "one mapping of guest memory for each group of NUMA nodes";
	if (host.n_views < 2) {
		check->cost = "no replication inside one machine and no access counts per node "
			      "group; migration, placement and sharing work";
		check->fix = "a kernel with CONFIG_KVM_SMM=y on hardware KVM (Debian's have it)";
	}
	check = doctor_add(
		report, "kvm", "max_vcpus", "vCPUs a machine", DOCTOR_OK, "%u", host.max_vcpus);
	check->use = "limit of --cpus";
	look_caps(report, &host);
	mb_host_finish(&host);
}

static void look_thp(struct doctor_report *report, int root_fd)
{
	struct doctor_check *check;
	char line[128];
	int rc = doctor_read(
		root_fd, "sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line));

	check = doctor_add(report, "memory", "thp", "huge pages, private memory", DOCTOR_INFO, "%s",
		rc > 0 ? chosen_word(line) : "not offered");
	check->since = "2.6.38";
	check->use = "the monitor's own memory; guest memory does not follow it";
}

static void look_map_count(struct doctor_report *report, int root_fd)
{
	struct doctor_check *check;
	uint64_t value;

	if (read_number(root_fd, "proc/sys/vm/max_map_count", &value)) {
		doctor_add(report, "memory", "max_map_count", "vm.max_map_count", DOCTOR_INFO,
			"unreadable")
			->use = "each replicated or shared run of pages is a mapping";
		return;
	}
	check = doctor_add(report, "memory", "max_map_count", "vm.max_map_count",
		value >= MAX_MAP_COUNT ? DOCTOR_OK : DOCTOR_WARN, "%llu",
		(unsigned long long)value);
	check->use = "each replicated or shared run of pages is a mapping";
	if (value < MAX_MAP_COUNT) {
		check->cost = "fewer replicated and shared pages in one machine";
		check->fix = "sysctl -w vm.max_map_count=262144";
	}
}

static void look_memlock(struct doctor_report *report)
{
	struct doctor_check *check;
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return;
	if (limit.rlim_cur == RLIM_INFINITY)
		check = doctor_add(
			report, "memory", "memlock", "locked memory limit", DOCTOR_OK, "unlimited");
	else
		check = doctor_add(report, "memory", "memlock", "locked memory limit", DOCTOR_INFO,
			"%llu KiB", (unsigned long long)limit.rlim_cur >> 10);
	check->use = "buffers registered with io_uring";
}

void doctor_look_memory(struct doctor_report *report, int root_fd)
{
	struct doctor_check *check;
	char line[64];
	uint64_t value;

	look_thp(report, root_fd);
	look_map_count(report, root_fd);
	look_memlock(report);
	if (doctor_read(root_fd, "proc/sys/vm/nr_hugepages", line, sizeof(line)) > 0) {
		check = doctor_add(report, "memory", "hugetlb", "reserved huge pages", DOCTOR_INFO,
			"%s", line);
		check->use = "none: guest memory uses transparent huge pages";
	}
	if (!read_number(root_fd, "sys/kernel/mm/ksm/run", &value)) {
		check = doctor_add(report, "memory", "ksm", "KSM",
			value == 1 ? DOCTOR_WARN : DOCTOR_INFO,
			value == 1 ? "running" : "not running");
		check->use = "none: guest memory is shared memory, which KSM does not merge";
		if (value == 1) {
			check->cost = "CPU time that brings Mirrorball's guests nothing";
			check->fix =
				"echo 0 > /sys/kernel/mm/ksm/run, unless other programs need it";
		}
	}
	if (!read_number(root_fd, "proc/sys/vm/unprivileged_userfaultfd", &value)) {
		check = doctor_add(report, "memory", "userfaultfd_sysctl",
			"vm.unprivileged_userfaultfd", DOCTOR_INFO, "%llu",
			(unsigned long long)value);
		check->since = "5.2";
		check->use =
			"1 lets everybody handle faults taken in the kernel; a descriptor from "
			"/dev/userfaultfd does not need it";
	}
}

static void look_nodes(struct doctor_report *report, int root_fd)
{
	struct mb_topology *topo = &report->topo;
	int sys_fd = openat(root_fd, "sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct doctor_check *check;
	struct mb_error err = {0};
	int rc;

	rc = sys_fd < 0 ? mb_error_set(&err, errno, "/sys: %s", strerror(errno))
			: mb_topology_read(topo, sys_fd, &err);
	if (sys_fd >= 0)
		close(sys_fd);
	if (rc) {
		topo->n_nodes = 0;
		check = doctor_add(
			report, "numa", "nodes", "NUMA nodes", DOCTOR_WARN, "%s", err.text);
		check->cost = "machines are placed as on a host with one node";
		check->fix = "mount sysfs: mount -t sysfs sysfs /sys";
	} else if (topo->n_nodes < 2) {
		check = doctor_add(report, "numa", "nodes", "NUMA nodes", DOCTOR_INFO,
			"one: all memory is local");
	} else {
		check = doctor_add(
			report, "numa", "nodes", "NUMA nodes", DOCTOR_OK, "%u", topo->n_nodes);
	}
	check->use = "placement, migration and replication";
	if (!rc && topo->n_nodes < 2)
		check->cost = "nothing: there is no remote memory here to avoid; tests/lab/lab "
			      "emulates a host with more";
}

void doctor_look_numa(struct doctor_report *report, int root_fd)
{
	struct doctor_check *check;
	unsigned long long effective = 0;
	uint64_t value;
	char line[256];
	FILE *status;
	int fd;

	look_nodes(report, root_fd);
	if (!read_number(root_fd, "proc/sys/kernel/numa_balancing", &value)) {
		check = doctor_add(report, "numa", "balancing", "kernel.numa_balancing",
			DOCTOR_INFO, "%llu", (unsigned long long)value);
		check->since = "3.8";
		check->use = "none: guest memory has a policy of its own, which keeps it away";
	}
	fd = openat(root_fd, "proc/self/status", O_RDONLY | O_CLOEXEC);
	status = fd < 0 ? NULL : fdopen(fd, "r");
	if (!status && fd >= 0)
		close(fd);
	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "CapEff: %llx", &effective) == 1)
			break;
	if (status)
		fclose(status);
	check = doctor_add(report, "numa", "cap_sys_nice", "CAP_SYS_NICE",
		effective >> CAP_SYS_NICE_BIT & 1 ? DOCTOR_OK : DOCTOR_WARN, "%s",
		effective >> CAP_SYS_NICE_BIT & 1 ? "held" : "not held");
	check->use = "moves pages that two views map in one step (MPOL_MF_MOVE_ALL)";
	if (!(effective >> CAP_SYS_NICE_BIT & 1)) {
		check->cost = "a page is unmapped from the other view first, then moved: more "
			      "guest faults";
		check->fix = "run as root, or setcap cap_sys_nice+ep on the binary";
	}
}

static bool in_path(const char *program)
{
	const char *path = getenv("PATH");
	char file[4096];

	for (const char *p = path; p && *p;) {
		size_t n = strcspn(p, ":");

		if (snprintf(file, sizeof(file), "%.*s/%s", (int)n, n ? p : ".", program) <
				(int)sizeof(file) &&
			!access(file, X_OK))
			return true;
		p += n + (p[n] == ':');
	}
	return false;
}

void doctor_look_io(struct doctor_report *report, int root_fd)
{
	int fd = openat(root_fd, "dev/net/tun", O_RDWR | O_CLOEXEC);
	struct doctor_check *check = doctor_add(report, "io", "tun", "/dev/net/tun",
		fd >= 0 ? DOCTOR_OK : DOCTOR_WARN, "%s", fd >= 0 ? "opens" : strerror(errno));
	bool passt = in_path("passt");

	check->use = "--net tap=NAME";
	if (fd >= 0)
		close(fd);
	if (check->mark != DOCTOR_OK) {
		check->cost = "no network through a tap interface; passt and tap-fd work";
		check->fix = "modprobe tun, or run as a user who may open it";
	}
	check = doctor_add(report, "io", "passt", "passt", passt ? DOCTOR_OK : DOCTOR_WARN, "%s",
		passt ? "installed" : "not in PATH");
	check->use = "--net passt: a network without privilege";
	if (!passt) {
		check->cost = "no --net passt; tap works";
		check->fix = "apt-get install passt";
	}
}
