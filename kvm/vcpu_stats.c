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

static int add_faults(const struct mb_vcpu *vcpu, struct mb_vcpu_faults *faults)
{
	const struct vcpu_stats_map *map = &vcpu->set->stats;
	uint64_t n[MB_PF_COUNTERS], ended;

	for (unsigned c = 0; c < MB_PF_COUNTERS; c++)
		if (pread(vcpu->stats_fd, &n[c], sizeof(n[c]), map->offset[c]) != sizeof(n[c]))
			return -ENOTSUP;
	ended = n[FIXED] + n[SPURIOUS] + n[EMULATED] + n[OF_GUEST];
	faults->fixed += n[FIXED] + n[SPURIOUS];
	faults->repeated += n[TAKEN] > ended ? n[TAKEN] - ended : 0;
	return 0;
}

int mb_vcpus_faults(struct mb_vcpus *set, struct mb_vcpu_faults *faults)
{
	int rc = 0;

	*faults = (struct mb_vcpu_faults){0};
	if (set->vcpu[0].stats_fd < 0)
		return -ENOTSUP;
	if (!set->stats.offset[0])
		rc = find_counters(set->vcpu[0].stats_fd, &set->stats);
	for (unsigned i = 0; i < set->n && !rc; i++)
		rc = add_faults(&set->vcpu[i], faults);
	return rc;
}
