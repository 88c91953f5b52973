// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/node_load.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* proc_stat(5) */
enum { USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STEAL, N_TIMES };

static void add_cpu(const struct mb_topology *topo, unsigned cpu,
	const unsigned long long time[N_TIMES], struct mb_node_load *load)
{
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		if (!CPU_ISSET(cpu, &topo->node[i].cpus))
			continue;
		for (unsigned k = 0; k < N_TIMES; k++) {
			load->all[i] += time[k];
			if (k != IDLE && k != IOWAIT)
				load->busy[i] += time[k];
		}
	}
}

int mb_node_load_read(const struct mb_topology *topo, int proc_fd, struct mb_node_load *load)
{
	int fd = openat(proc_fd, "stat", O_RDONLY | O_CLOEXEC);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
	char *line = NULL;
	size_t size = 0;

	memset(load, 0, sizeof(*load));
	if (!f) {
		int rc = -errno;

		if (fd >= 0)
			close(fd);
		return rc;
	}
	/* CPUs come first, and a line of all of them before. */
	while (getline(&line, &size, f) > 0 && !strncmp(line, "cpu", 3)) {
		unsigned long long time[N_TIMES] = {0};
		unsigned cpu;

		if (sscanf(line, "cpu%u %llu %llu %llu %llu %llu %llu %llu %llu", &cpu, &time[USER],
			    &time[NICE], &time[SYSTEM], &time[IDLE], &time[IOWAIT], &time[IRQ],
			    &time[SOFTIRQ], &time[STEAL]) >= 5 &&
			cpu < CPU_SETSIZE)
			add_cpu(topo, cpu, time, load);
	}
	free(line);
	fclose(f);
	return 0;
}

double mb_node_load_share(
	const struct mb_node_load *before, const struct mb_node_load *now, unsigned node)
{
	uint64_t all = now->all[node] - before->all[node];
	uint64_t busy = now->busy[node] - before->busy[node];

	/* Idle time can go back by a tick (proc_stat(5)). */
	if (now->all[node] <= before->all[node] || now->busy[node] < before->busy[node])
		return 0;
	return busy < all ? (double)busy / (double)all : 1;
}
