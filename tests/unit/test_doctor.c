// SPDX-License-Identifier: Apache-2.0
#include "doctor.h"
#include "run.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* A made-up host: a directory that stands for /. */
static char root[] = "/tmp/mb-test-doctor-XXXXXX";
static int root_fd = -1;
static struct doctor_report *report;

static void put(const char *path, const char *text)
{
	char part[256];
	int fd;

	for (const char *p = strchr(path, '/'); p; p = strchr(p + 1, '/')) {
		snprintf(part, sizeof(part), "%.*s", (int)(p - path), path);
		mkdirat(root_fd, part, 0755);
	}
	fd = openat(root_fd, path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

static void set_up(void)
{
	strcpy(root + strlen(root) - 6, "XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(root));
	root_fd = open(root, O_PATH | O_DIRECTORY);
	ck_assert_int_ge(root_fd, 0);
	report = calloc(1, sizeof(*report));
	ck_assert_ptr_nonnull(report);
}

static void tear_down(void)
{
	char command[64];

	close(root_fd);
	free(report);
	snprintf(command, sizeof(command), "rm -rf %s", root);
	ck_assert_int_eq(system(command), 0);
}

static const struct doctor_check *find(const char *id)
{
	for (unsigned i = 0; i < report->n_checks; i++)
		if (!strcmp(report->check[i].id, id))
			return &report->check[i];
	ck_abort_msg("no check %s", id);
	return NULL;
}

static void look(void)
{
	doctor_look_memory(report, root_fd);
	doctor_look_numa(report, root_fd);
	doctor_look_io(report, root_fd);
}

/* Nothing is there: every line exists, and a warning says what to do. */
START_TEST(empty_host)
{
	look();
	ck_assert_int_eq(find("memory.max_map_count")->mark, DOCTOR_INFO);
	ck_assert_int_eq(find("numa.nodes")->mark, DOCTOR_WARN);
	ck_assert_int_eq(find("numa.cap_sys_nice")->mark, DOCTOR_WARN);
	ck_assert_int_eq(find("io.tun")->mark, DOCTOR_WARN);
	ck_assert(doctor_can_run(report));
	for (unsigned i = 0; i < report->n_checks; i++) {
		const struct doctor_check *check = &report->check[i];

		ck_assert_msg(check->use && check->value[0] && check->what[0], "%s", check->id);
		if (check->mark >= DOCTOR_WARN)
			ck_assert_msg(check->cost && check->fix, "%s", check->id);
	}
}
END_TEST

START_TEST(good_host)
{
	put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
	put("sys/kernel/mm/ksm/run", "1\n");
	put("proc/sys/vm/max_map_count", "1048576\n");
	put("proc/sys/vm/nr_hugepages", "0\n");
	put("proc/sys/vm/unprivileged_userfaultfd", "0\n");
	put("proc/sys/kernel/numa_balancing", "1\n");
	put("proc/self/status", "Name:\tx\nCapInh:\t0\nCapEff:\t0000000000800000\n");
	put("sys/devices/system/node/online", "0-1\n");
	put("sys/devices/system/node/node0/cpulist", "0-1\n");
	put("sys/devices/system/node/node0/distance", "10 21\n");
	put("sys/devices/system/node/node0/meminfo",
		"Node 0 MemTotal: 1024 kB\nNode 0 MemFree: 512 kB\n");
	put("sys/devices/system/node/node1/cpulist", "2-3\n");
	put("sys/devices/system/node/node1/distance", "21 10\n");
	put("sys/devices/system/node/node1/meminfo",
		"Node 1 MemTotal: 1024 kB\nNode 1 MemFree: 512 kB\n");
	look();
	ck_assert_str_eq(find("memory.thp")->value, "madvise");
	ck_assert_int_eq(find("memory.max_map_count")->mark, DOCTOR_OK);
	ck_assert_int_eq(find("memory.ksm")->mark, DOCTOR_WARN);
	ck_assert_str_eq(find("numa.balancing")->value, "1");
	ck_assert_int_eq(find("numa.nodes")->mark, DOCTOR_OK);
	ck_assert_str_eq(find("numa.nodes")->value, "2");
	ck_assert_int_eq(find("numa.cap_sys_nice")->mark, DOCTOR_OK);
}
END_TEST

/* Files with other contents than any kernel writes. */
START_TEST(odd_host)
{
	char big[5000];

	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	put("sys/kernel/mm/transparent_hugepage/enabled", "]advise[");
	put("sys/kernel/mm/ksm/run", big);
	put("proc/sys/vm/max_map_count", "-\n");
	put("proc/sys/vm/nr_hugepages", big);
	put("proc/sys/kernel/numa_balancing", "99999999999999999999999999\n");
	put("proc/self/status", big);
	put("sys/devices/system/node/online", big);
	look();
	ck_assert_int_eq(find("memory.max_map_count")->mark, DOCTOR_INFO);
	ck_assert_int_eq(find("numa.cap_sys_nice")->mark, DOCTOR_WARN);
}
END_TEST

START_TEST(paging)
{
	put("sys/module/kvm_amd/parameters/npt", "Y\n");
	doctor_look_kvm(report, root_fd);
	find("kvm.kernel");
	find("kvm.device");
}
END_TEST

/* What is tried on this host: it has memory for a guest, whatever its kernel and our rights. */
START_TEST(probes)
{
	doctor_probe_memory(report);
	ck_assert_int_eq(find("memory.memfd")->mark, DOCTOR_OK);
	ck_assert_int_eq(find("memory.thp_shmem")->mark == DOCTOR_OK,
		!strcmp(find("memory.thp_shmem")->value, "given"));
}
END_TEST

START_TEST(no_memory_for_a_guest)
{
	const struct rlimit small = {1 << 20, 1 << 20};

	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	doctor_probe_memory(report);
	ck_assert_int_eq(find("memory.memfd")->mark, DOCTOR_MISSING);
	ck_assert_msg(strstr(find("memory.memfd")->fix, "ulimit -f") != NULL, "the limit");
	ck_assert(!doctor_can_run(report));
}
END_TEST

START_TEST(marks)
{
	ck_assert(doctor_can_run(report));
	doctor_add(report, "kvm", "x", "x", DOCTOR_WARN, "x");
	ck_assert(doctor_can_run(report));
	doctor_add(report, "kvm", "y", "y", DOCTOR_MISSING, "y");
	ck_assert(!doctor_can_run(report));
	for (unsigned i = 0; i < 2 * DOCTOR_MAX_CHECKS; i++)
		ck_assert_ptr_nonnull(doctor_add(report, "kvm", "z", "z", DOCTOR_OK, "%u", i));
	ck_assert_uint_eq(report->n_checks, DOCTOR_MAX_CHECKS);
	ck_assert(!doctor_can_run(report));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("doctor");
	TCase *tc = tcase_create("doctor");

	tcase_add_checked_fixture(tc, set_up, tear_down);
	tcase_add_test(tc, empty_host);
	tcase_add_test(tc, good_host);
	tcase_add_test(tc, odd_host);
	tcase_add_test(tc, paging);
	tcase_add_test(tc, probes);
	tcase_add_test(tc, no_memory_for_a_guest);
	tcase_add_test(tc, marks);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
