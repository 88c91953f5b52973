/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_HOST_H
#define MIRRORBALL_HOST_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The host's KVM: an open /dev/kvm and what it can do. Every ioctl of the kvm layer goes through
 * `ops`, so that a unit test can put a fake KVM underneath.
 */
struct mb_kvm_ops {
	/* As ioctl(2), but returns -errno instead of setting errno. */
	int (*ioctl)(void *ctx, int fd, unsigned long request, void *arg);
};

enum mb_cap_need {
	MB_CAP_REQUIRED, /* no machine without it */
	MB_CAP_WANTED,	 /* a feature is lost without it: cap_info.cost says which */
};

/* Capabilities that the design uses. Order is that of `mirrorball doctor`. */
enum mb_cap {
	MB_CAP_USER_MEMORY,
	MB_CAP_IMMEDIATE_EXIT,
	MB_CAP_SPLIT_IRQCHIP,
	MB_CAP_IRQFD,
	MB_CAP_IOEVENTFD,
	MB_CAP_SIGNAL_MSI,
	MB_CAP_MP_STATE,
	MB_CAP_VCPU_EVENTS,
	MB_CAP_ADJUST_CLOCK,
	MB_CAP_TSC_DEADLINE_TIMER,
	MB_CAP_X2APIC_API,
	MB_CAP_GET_TSC_KHZ,
	MB_CAP_MULTI_ADDRESS_SPACE,
	MB_CAP_X86_SMM,
	MB_CAP_SYNC_MMU,
	MB_CAP_READONLY_MEM,
	MB_CAP_XSAVE2,
	MB_CAP_X86_MSR_FILTER,
	MB_CAP_BINARY_STATS_FD,
	MB_N_CAPS,
};

struct mb_cap_info {
	const char *name;  /* "KVM_CAP_IRQFD" */
	int kvm_cap;	   /* number for KVM_CHECK_EXTENSION */
	const char *since; /* first kernel version that has it, "2.6.32" */
	enum mb_cap_need need;
	const char *use;  /* what the monitor does with it */
	const char *cost; /* what is lost without it and what to do */
};

/* Table indexed by enum mb_cap. */
extern const struct mb_cap_info mb_cap_infos[MB_N_CAPS];

struct mb_host {
	const struct mb_kvm_ops *ops;
	void *ops_ctx;
	int kvm_fd;
	int cap[MB_N_CAPS]; /* what KVM_CHECK_EXTENSION answered; 0 is absent */
	unsigned n_views;   /* address spaces that a machine may have: 1 or more */
	unsigned max_vcpus;
	unsigned max_vcpu_id; /* exclusive */
	unsigned max_memslots; /* per address space */
	size_t vcpu_mmap_bytes;
};

/*
 * Opens `path` ("/dev/kvm" when NULL) and reads every capability; does not judge them. Fails with a
 * message that says what to do when the device is missing, not permitted, or not KVM's API 12.
 */
int mb_host_open(struct mb_host *host, const char *path, struct mb_error *err);

/* The same on top of `ops` and an open descriptor, which stays the caller's. */
int mb_host_init(struct mb_host *host, const struct mb_kvm_ops *ops, void *ctx, int kvm_fd,
	struct mb_error *err);

/* 0, or -ENOTSUP with the first required capability that is missing in err. */
int mb_host_check(const struct mb_host *host, struct mb_error *err);

/* Closes what mb_host_open opened. */
void mb_host_finish(struct mb_host *host);

static inline int mb_host_ioctl(const struct mb_host *host, int fd, unsigned long req, void *arg)
{
	return host->ops->ioctl(host->ops_ctx, fd, req, arg);
}

#endif
