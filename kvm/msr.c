// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "msr.h"

#define MSR_IA32_TSC	      0x010u
#define MSR_IA32_TSC_ADJUST   0x03bu
#define MSR_IA32_MISC_ENABLE  0x1a0u
#define MSR_IA32_TSC_DEADLINE 0x6e0u
#define MSR_IA32_SMBASE	      0x09eu /* in KVM: readable and writable by the host, and by nobody else */
#define MSR_MTRR_DEF_TYPE     0x2ffu
#define MSR_KVM_WALL	      0x011u	  /* MSR_KVM_WALL_CLOCK */
#define MSR_KVM_WALL_NEW      0x4b564d00u /* MSR_KVM_WALL_CLOCK_NEW */
#define MISC_ENABLE_FAST_STR  1ull
#define MTRR_ENABLE	      (1ull << 11)
#define MTRR_TYPE_WRITE_BACK  6ull

int mb_msr_set(const struct mb_host *host, int vcpu_fd, uint32_t index, uint64_t value)
{
	struct kvm_msr_entry entry = {.index = index, .data = value};
	_Alignas(struct kvm_msrs) char batch[sizeof(struct kvm_msrs) + sizeof(entry)] = {0};
	const uint32_t one = 1;
	int rc;

	memcpy(batch + offsetof(struct kvm_msrs, nmsrs), &one, sizeof(one));
	memcpy(batch + offsetof(struct kvm_msrs, entries), &entry, sizeof(entry));
	rc = mb_host_ioctl(host, vcpu_fd, KVM_SET_MSRS, batch);
	if (rc < 0)
		return rc;
	return rc == 1 ? 0 : -EINVAL; /* how many were taken */
}

int mb_msrs_init_vcpu(const struct mb_host *host, int vcpu_fd)
{
	int rc = mb_msr_set(host, vcpu_fd, MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_TYPE_WRITE_BACK);

	/* Not there on AMD, and not needed there. */
	if (!rc)
		mb_msr_set(host, vcpu_fd, MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STR);
	return rc;
}

/* The state is at 0xfe00 behind it: above all RAM below 4 GiB, below what kvm/vm.c gives to KVM. */
#define SMBASE_NOWHERE 0xfffa0000u

void mb_msrs_hide_smram(const struct mb_host *host, int vcpu_fd)
{
	mb_msr_set(host, vcpu_fd, MSR_IA32_SMBASE, SMBASE_NOWHERE);
}

static int get_list(const struct mb_host *host, struct kvm_msr_list **out)
{
	struct kvm_msr_list probe = {.nmsrs = 0}, *list;
	int rc = mb_host_ioctl(host, host->kvm_fd, KVM_GET_MSR_INDEX_LIST, &probe);

	if (rc && rc != -E2BIG)
		return rc;
	list = calloc(1, sizeof(*list) + probe.nmsrs * sizeof(list->indices[0]));
	if (!list)
		return -ENOMEM;
	list->nmsrs = probe.nmsrs;
	rc = mb_host_ioctl(host, host->kvm_fd, KVM_GET_MSR_INDEX_LIST, list);
	if (rc) {
		free(list);
		return rc;
	}
	*out = list;
	return 0;
}

/* KVM_GET_MSRS and KVM_SET_MSRS stop at the first MSR that they refuse: go on behind it. */
static int transfer(const struct mb_host *host, int vcpu_fd, unsigned long request,
	struct mb_msrs *msrs, struct kvm_msr_entry *entry, unsigned n)
{
	unsigned at = 0, kept = 0;
	struct kvm_msrs *batch = malloc(sizeof(*batch) + n * sizeof(*entry));

	if (!batch)
		return -ENOMEM;
	while (at < n) {
		int rc;

		batch->nmsrs = n - at;
		batch->pad = 0;
		memcpy(batch->entries, entry + at, (n - at) * sizeof(*entry));
		rc = mb_host_ioctl(host, vcpu_fd, request, batch);
		if (rc < 0) {
			free(batch);
			return rc;
		}
		if (msrs) {
			memcpy(msrs->entry + kept, batch->entries, (size_t)rc * sizeof(*entry));
			kept += (unsigned)rc;
		}
		at += (unsigned)rc + 1;
	}
	if (msrs)
		msrs->n = kept;
	free(batch);
	return 0;
}

int mb_msrs_get(const struct mb_host *host, int vcpu_fd, bool clock, struct mb_msrs *msrs)
{
	struct kvm_msr_list *list;
	struct kvm_msr_entry *wanted = NULL;
	unsigned n = 0;
	int rc = get_list(host, &list);

	if (rc)
		return rc;
	wanted = calloc(list->nmsrs + 1, sizeof(*wanted));
	msrs->entry = calloc(list->nmsrs + 1, sizeof(*wanted));
	if (!wanted || !msrs->entry) {
		rc = -ENOMEM;
	} else {
		for (unsigned i = 0; i < list->nmsrs; i++) {
			if (clock || (list->indices[i] != MSR_IA32_TSC &&
					     list->indices[i] != MSR_IA32_TSC_ADJUST))
				wanted[n++].index = list->indices[i];
		}
		rc = transfer(host, vcpu_fd, KVM_GET_MSRS, msrs, wanted, n);
	}
	if (rc) {
		free(msrs->entry);
		msrs->entry = NULL;
	}
	free(wanted);
	free(list);
	return rc;
}

int mb_msrs_set(const struct mb_host *host, int vcpu_fd, const struct mb_msrs *msrs)
{
	return transfer(host, vcpu_fd, KVM_SET_MSRS, NULL, msrs->entry, msrs->n);
}

static int get_one(const struct mb_host *host, int vcpu_fd, uint32_t index, uint64_t *value)
{
	struct kvm_msr_entry wanted = {.index = index}, got = {0};
	struct mb_msrs one = {.entry = &got};
	int rc = transfer(host, vcpu_fd, KVM_GET_MSRS, &one, &wanted, 1);

	*value = got.data;
	return rc ? rc : one.n ? 0 : -ENOENT;
}

/*
 * Writing where the wall clock is to be makes KVM write it there, once (msr.rst): into what may be
 * something else by now, and from a clock that is not set yet. A guest writes it whenever it wants
 * to know.
 */
static bool is_a_request(uint32_t index)
{
	return index == MSR_KVM_WALL || index == MSR_KVM_WALL_NEW;
}

int mb_msrs_restore(
	const struct mb_host *host, int vcpu_fd, const struct mb_msrs *msrs, uint32_t *refused)
{
	/* The deadline is one of the TSC, which therefore has to be right before. */
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < msrs->n; i++) {
			const struct kvm_msr_entry *e = &msrs->entry[i];
			uint64_t now;
			int rc;

			if ((e->index == MSR_IA32_TSC_DEADLINE) != (pass == 1) ||
				is_a_request(e->index))
				continue;
			rc = mb_msr_set(host, vcpu_fd, e->index, e->data);
			if (!rc)
				continue;
			/* Some are there to be read only. */
			if (rc == -EINVAL && !get_one(host, vcpu_fd, e->index, &now) &&
				now == e->data)
				continue;
			*refused = e->index;
			return rc;
		}
	}
	return 0;
}
