// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vcpu_internal.h"

/* Where the threads of vCPUs run, and how much they do. */

int mb_vcpus_bind(struct mb_vcpus *set, unsigned group, const cpu_set_t *cpus)
{
	int rc = 0;

	for (unsigned i = 0; i < set->n; i++) {
		struct mb_vcpu *vcpu = &set->vcpu[i];
		int one = 0;

		if (vcpu->group == group && vcpu->has_thread)
			one = pthread_setaffinity_np(vcpu->thread, sizeof(*cpus), cpus);
		if (!rc)
			rc = -one;
	}
	return rc;
}

/* Documentation/scheduler/sched-stats.rst: run time and wait time in ns, and time slices. */
static int read_schedstat(pid_t tid, unsigned long long *run_ns, unsigned long long *wait_ns)
{
	char path[64], text[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/schedstat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -EIO;
	text[n] = '\0';
	return sscanf(text, "%llu %llu", run_ns, wait_ns) == 2 ? 0 : -EIO;
}

int mb_vcpus_usage(const struct mb_vcpus *set, unsigned group, struct mb_vcpu_usage *usage)
{
	memset(usage, 0, sizeof(*usage));
	for (unsigned i = 0; i < set->n; i++) {
		unsigned long long run_ns, wait_ns;
		int rc;

		if (set->vcpu[i].group != group)
			continue;
		rc = read_schedstat(set->vcpu[i].tid, &run_ns, &wait_ns);
		if (rc)
			return rc;
		usage->n_vcpus++;
		usage->run_ns += run_ns;
		usage->wait_ns += wait_ns;
	}
	return 0;
}
