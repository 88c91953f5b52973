// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/topology.h>
#include <numaif.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "map_count.h"
#include "replica_internal.h"

/* The beginning and the end of what copies need: files, locks, threads; and their figures. */

#define BACKOFF_NS   1000000000ull
#define SHARE_OF_MAX 2u

static int prefer_node(struct mb_replicas *r, unsigned view, unsigned node)
{
	const uint64_t bytes = r->config.ram_bytes;
	void *all;
	int rc;

	/* The file keeps the policy, and the host's balancing leaves it alone. Preferred: nobody is
	 * to be killed for a copy. */
	all = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, r->copy_fd[view], 0);
	if (all == MAP_FAILED)
		return -errno;
	rc = mb_numa_prefer_node(all, bytes, node);
	munmap(all, bytes);
	return rc;
}

int mb_replicas_set_node(struct mb_replicas *r, unsigned view, unsigned node)
{
	int rc = view < r->config.n_views ? prefer_node(r, view, node) : -EINVAL;

	if (rc)
		return rc;
	__atomic_store_n(&r->only_node[view], (int)node, __ATOMIC_RELAXED);
	__atomic_store_n(&r->n_old, r->n_blocks, __ATOMIC_RELEASE);
	return 0;
}

int mb_replica_node(const struct mb_replicas *r, unsigned view)
{
	return __atomic_load_n(&r->only_node[view], __ATOMIC_RELAXED);
}

static int open_copies(struct mb_replicas *r, unsigned view)
{
	r->copy_fd[view] = memfd_create("mirrorball-copies", MFD_CLOEXEC);
	if (r->copy_fd[view] < 0 || ftruncate(r->copy_fd[view], (off_t)r->config.ram_bytes))
		return -errno;
	if (r->config.view_node[view] >= 0)
		prefer_node(r, view, (unsigned)r->config.view_node[view]);
	return 0;
}

static int kernel_control(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

static void *kernel_remap(void *at, size_t old_len, size_t len, int flags, void *to)
{
	return mremap(at, old_len, len, flags, to);
}

static const struct mb_replica_calls kernel_calls = {
	.map = mmap,
	.unmap = munmap,
	.remap = kernel_remap,
	.control = kernel_control,
	.read = pread,
	.write = pwrite,
	.move_pages = move_pages,
};

static int create(struct mb_replicas *r)
{
	uint64_t page_bytes = r->n_blocks * BLOCK_PAGES * sizeof(r->page[0]);
	int rc = 0;

	r->block = calloc(r->n_blocks, sizeof(*r->block));
	if (!r->block)
		return -ENOMEM;
	for (uint64_t i = 0; i < r->n_blocks; i++)
		pthread_mutex_init(&r->block[i].lock, NULL);
	r->page = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r->page == MAP_FAILED) {
		r->page = NULL;
		return -ENOMEM;
	}
	r->block_merged = calloc(r->n_blocks, sizeof(*r->block_merged));
	if (!r->block_merged)
		return -ENOMEM;
	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		r->block_pages[v] = calloc(r->n_blocks, sizeof(*r->block_pages[v]));
		rc = r->block_pages[v] ? open_copies(r, v) : -ENOMEM;
	}
	return rc ? rc : mb_replica_start_threads(r);
}

int mb_replicas_create(
	const struct mb_replicas_config *config, struct mb_replicas **out, struct mb_error *err)
{
	struct mb_replicas *r = calloc(1, sizeof(*r));
	int rc;

	if (!r) {
		close(config->uffd);
		return mb_error_set(err, ENOMEM, "replicas: out of memory");
	}
	r->config = *config;
	r->calls = config->calls ? config->calls : &kernel_calls;
	if (!r->config.max_mappings)
		r->config.max_mappings = mb_max_map_count() / SHARE_OF_MAX;
	if (!r->config.backoff_ns)
		r->config.backoff_ns = BACKOFF_NS;
	r->start_ns = mb_now_ns();
	r->n_blocks = config->ram_bytes / BLOCK;
	r->stop_fd = -1;
	for (unsigned v = 0; v < MB_HEAT_VIEWS; v++) {
		r->copy_fd[v] = -1;
		r->only_node[v] = config->view_has_more_nodes[v] ? -1 : config->view_node[v];
	}
	pthread_mutex_init(&r->count_lock, NULL);
	pthread_mutex_init(&r->queue_lock, NULL);
	pthread_cond_init(&r->queue_wake, NULL);
	rc = create(r);
	if (rc) {
		mb_replicas_destroy(r);
		return mb_error_set(err, -rc, "replicas: %s", strerror(-rc));
	}
	*out = r;
	return 0;
}

void mb_replicas_destroy(struct mb_replicas *r)
{
	if (!r)
		return;
	if (r->worker_runs)
		mb_replicas_collapse(r, 0, r->config.ram_bytes);
	mb_replica_stop_threads(r);
	for (unsigned v = 0; v < MB_HEAT_VIEWS; v++)
		if (r->copy_fd[v] >= 0)
			close(r->copy_fd[v]);
	for (uint64_t i = 0; r->block && i < r->n_blocks; i++)
		pthread_mutex_destroy(&r->block[i].lock);
	if (r->page)
		munmap(r->page, r->n_blocks * BLOCK_PAGES * sizeof(r->page[0]));
	mb_replica_use_store(r);
	pthread_cond_destroy(&r->queue_wake);
	pthread_mutex_destroy(&r->queue_lock);
	pthread_mutex_destroy(&r->count_lock);
	close(r->config.uffd);
	for (unsigned v = 0; v < MB_HEAT_VIEWS; v++)
		free(r->block_pages[v]);
	free(r->block_merged);
	free(r->block);
	free(r);
}

void mb_replicas_stats(struct mb_replicas *r, struct mb_replicas_stats *stats)
{
	const struct mb_replicas_stats *s = &r->stats;

	*stats = (struct mb_replicas_stats){
		.bytes = __atomic_load_n(&r->bytes, __ATOMIC_RELAXED),
		.max_bytes = __atomic_load_n(&r->config.max_bytes, __ATOMIC_RELAXED),
		.max_mappings = r->config.max_mappings,
		.copied_bytes = __atomic_load_n(&s->copied_bytes, __ATOMIC_RELAXED),
		.merged_bytes = __atomic_load_n(&s->merged_bytes, __ATOMIC_RELAXED),
		.n_faults = __atomic_load_n(&s->n_faults, __ATOMIC_RELAXED),
		.n_collapsed = __atomic_load_n(&s->n_collapsed, __ATOMIC_RELAXED),
		.n_failures = __atomic_load_n(&s->n_failures, __ATOMIC_RELAXED),
		.fault_ns = __atomic_load_n(&s->fault_ns, __ATOMIC_RELAXED),
		.longest_ns = __atomic_load_n(&s->longest_ns, __ATOMIC_RELAXED),
	};
	for (unsigned i = 0; i < MB_REPLICA_BUCKETS; i++)
		stats->faults_below_us[i] =
			__atomic_load_n(&s->faults_below_us[i], __ATOMIC_RELAXED);
	pthread_mutex_lock(&r->count_lock);
	stats->mappings = r->n_mappings;
	for (unsigned v = 0; v < r->config.n_views; v++)
		stats->view_bytes[v] = r->view_pages[v] * PAGE;
	pthread_mutex_unlock(&r->count_lock);
}
