// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vcpu_internal.h"

/*
 * By KVM's names: faults on guest memory, and those among them that were not because of what is in
 * the monitor's page tables: device registers, and with shadow paging the guest's own.
 */
static const char *const names[MB_PF_COUNTERS] = {"pf_taken", "pf_emulate", "pf_guest"};

void mb_vcpu_open_stats(struct mb_vcpu *vcpu)
{
	int fd = -1;

	/* Now: KVM answers no ioctl of a vCPU that is in the guest. */
	if (mb_vm_host(vcpu->set->vm)->cap[MB_CAP_BINARY_STATS_FD])
		fd = mb_vcpu_ioctl(vcpu, KVM_GET_STATS_FD, NULL);
	vcpu->stats_fd = fd < 0 ? -1 : fd;
}

/* api.rst 4.133: a header, descriptors that tell each counter's name and where it is, the counters.
 */
static int find_counters(int fd, struct vcpu_stats_map *map)
{
	struct kvm_stats_header header;
	size_t size;
	unsigned found = 0;
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

		for (unsigned c = 0; c < MB_PF_COUNTERS; c++)
			if (!strncmp(desc->name, names[c], header.name_size)) {
				map->offset[c] = header.data_offset + desc->offset;
				found |= 1u << c;
			}
	}
	free(all);
	return found == (1u << MB_PF_COUNTERS) - 1 ? 0 : -ENOTSUP;
}

static int add_faults(const struct mb_vcpu *vcpu, uint64_t *n)
{
	const struct vcpu_stats_map *map = &vcpu->set->stats;
	uint64_t faults = 0;

	for (unsigned c = 0; c < MB_PF_COUNTERS; c++) {
		uint64_t value;

		if (pread(vcpu->stats_fd, &value, sizeof(value), map->offset[c]) != sizeof(value))
			return -ENOTSUP;
		if (!c)
			faults = value;
		else
			faults -= faults < value ? faults : value;
	}
	*n += faults;
	return 0;
}

int mb_vcpus_n_faults(struct mb_vcpus *set, uint64_t *n)
{
	int rc = 0;

	*n = 0;
	if (set->vcpu[0].stats_fd < 0)
		return -ENOTSUP;
	if (!set->stats.offset[0])
		rc = find_counters(set->vcpu[0].stats_fd, &set->stats);
	for (unsigned i = 0; i < set->n && !rc; i++)
		rc = add_faults(&set->vcpu[i], n);
	return rc;
}
