// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vcpu_internal.h"

/*
 * By KVM's names: faults on guest memory, and how they ended. Device registers end in emulation,
 * and with shadow paging the guest's own faults are among them; what ended in nothing was tried
 * again.
 */
enum { TAKEN, FIXED, SPURIOUS, EMULATED, OF_GUEST };

static const char *const names[MB_PF_COUNTERS] = {
	"pf_taken", "pf_fixed", "pf_spurious", "pf_emulate", "pf_guest"};

static void close_stats(struct mb_vcpus *set)
{
	for (unsigned i = 0; i < set->n; i++) {
		if (set->vcpu[i].stats_fd >= 0)
			close(set->vcpu[i].stats_fd);
		set->vcpu[i].stats_fd = -1;
	}
}

/* api.rst 4.133: a header, descriptors that tell each counter's name and where it is, the counters.
 */
static int find_counters(int fd, struct vcpu_stats_map *map)
{
	struct vcpu_stats_map it = {.first = UINT64_MAX};
	struct kvm_stats_header header;
	unsigned found = 0;
	uint64_t last = 0;
	size_t size;
	char *all;

	if (pread(fd, &header, sizeof(header), 0) != sizeof(header))
		return -ENOTSUP;
	size = sizeof(struct kvm_stats_desc) + header.name_size;
	all = calloc(header.num_desc, size);
	if (!all)
		return -ENOMEM;
	if (pread(fd, all, header.num_desc * size, header.desc_offset) !=
		(ssize_t)(header.num_desc * size))
		header.num_desc = 0;
	for (unsigned i = 0; i < header.num_desc; i++) {
		const struct kvm_stats_desc *desc = (const void *)(all + i * size);

		for (unsigned c = 0; c < MB_PF_COUNTERS; c++) {
			uint64_t at = (uint64_t)header.data_offset + desc->offset;

			if (strncmp(desc->name, names[c], header.name_size))
				continue;
			it.at[c] = at;
			it.first = at < it.first ? at : it.first;
			last = at > last ? at : last;
			found |= 1u << c;
		}
	}
	free(all);
	if (found != (1u << MB_PF_COUNTERS) - 1 || last - it.first >= sizeof(uint64_t[MB_PF_SPAN]))
		return -ENOTSUP;
	*map = it;
	return 0;
}

int mb_vcpus_open_stats(struct mb_vcpus *set)
{
	int rc = 0;

	if (!mb_vm_host(set->vm)->cap[MB_CAP_BINARY_STATS_FD])
		return -ENOTSUP;
	for (unsigned i = 0; i < set->n && rc >= 0; i++)
		rc = set->vcpu[i].stats_fd = mb_vcpu_ioctl(&set->vcpu[i], KVM_GET_STATS_FD, NULL);
	if (rc >= 0)
		rc = find_counters(set->vcpu[0].stats_fd, &set->stats);
	if (rc < 0)
		close_stats(set);
	return rc;
}

/* With one system call, at one moment: or a fault would seem to have ended that has not begun. */
static int add_faults(const struct mb_vcpu *vcpu, struct mb_vcpu_faults *faults)
{
	const struct vcpu_stats_map *map = &vcpu->set->stats;
	uint64_t span[MB_PF_SPAN], n[MB_PF_COUNTERS], ended;
	ssize_t got = pread(vcpu->stats_fd, span, sizeof(span), (off_t)map->first);

	for (unsigned c = 0; c < MB_PF_COUNTERS; c++) {
		size_t at = map->at[c] - map->first;

		if (got < (ssize_t)(at + sizeof(uint64_t)))
			return -ENOTSUP;
		memcpy(&n[c], (char *)span + at, sizeof(n[c]));
	}
	ended = n[FIXED] + n[SPURIOUS] + n[EMULATED] + n[OF_GUEST];
	faults->fixed += n[FIXED] + n[SPURIOUS];
	faults->repeated += n[TAKEN] > ended ? n[TAKEN] - ended : 0;
	return 0;
}

int mb_vcpus_faults(struct mb_vcpus *set, struct mb_vcpu_faults *faults)
{
	int rc = set->vcpu[0].stats_fd < 0 ? -ENOTSUP : 0;

	*faults = (struct mb_vcpu_faults){0};
	for (unsigned i = 0; i < set->n && !rc; i++)
		rc = add_faults(&set->vcpu[i], faults);
	return rc;
}
