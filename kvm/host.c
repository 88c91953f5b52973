// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <mirrorball/host.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* clang-format off */
const struct mb_cap_info mb_cap_infos[MB_N_CAPS] = {
	[MB_CAP_USER_MEMORY] = {"KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY, "2.6.25",
		MB_CAP_REQUIRED, "guest RAM is memory of the monitor",
		"no machine can run; use a current kernel"},
	[MB_CAP_IMMEDIATE_EXIT] = {"KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT, "4.11",
		MB_CAP_REQUIRED, "pause and stop vCPUs without a race",
		"no machine can run; use kernel 4.11 or later"},
	[MB_CAP_SPLIT_IRQCHIP] = {"KVM_CAP_SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP, "4.5",
		MB_CAP_REQUIRED, "local APICs in the kernel, I/O APIC in the monitor",
		"no machine can run; use kernel 4.5 or later"},
	[MB_CAP_IRQFD] = {"KVM_CAP_IRQFD", KVM_CAP_IRQFD, "2.6.32",
		MB_CAP_REQUIRED, "interrupts of virtio devices",
		"no machine can run; use a current kernel"},
	[MB_CAP_IOEVENTFD] = {"KVM_CAP_IOEVENTFD", KVM_CAP_IOEVENTFD, "2.6.32",
		MB_CAP_REQUIRED, "notifications of virtio devices",
		"no machine can run; use a current kernel"},
	[MB_CAP_SIGNAL_MSI] = {"KVM_CAP_SIGNAL_MSI", KVM_CAP_SIGNAL_MSI, "3.5",
		MB_CAP_REQUIRED, "interrupts of the I/O APIC",
		"no machine can run; use a current kernel"},
	[MB_CAP_MP_STATE] = {"KVM_CAP_MP_STATE", KVM_CAP_MP_STATE, "2.6.27",
		MB_CAP_REQUIRED, "start and reset of vCPUs",
		"no machine can run; use a current kernel"},
	[MB_CAP_VCPU_EVENTS] = {"KVM_CAP_VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, "2.6.33",
		MB_CAP_REQUIRED, "reset of vCPUs, and moving one to its view",
		"no machine can run; use a current kernel"},
	[MB_CAP_ADJUST_CLOCK] = {"KVM_CAP_ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK, "2.6.33",
		MB_CAP_WANTED, "paravirtual clock",
		"guests fall back to slower clocks; use a current kernel"},
	[MB_CAP_TSC_DEADLINE_TIMER] = {"KVM_CAP_TSC_DEADLINE_TIMER", KVM_CAP_TSC_DEADLINE_TIMER, "3.3",
		MB_CAP_WANTED, "the guest's timer",
		"the machine has no PIT to calibrate another timer with: Linux guests may not boot"},
	[MB_CAP_X2APIC_API] = {"KVM_CAP_X2APIC_API", KVM_CAP_X2APIC_API, "4.8",
		MB_CAP_WANTED, "machines with more than 254 vCPUs",
		"machines have at most 254 vCPUs; use kernel 4.8 or later"},
	[MB_CAP_GET_TSC_KHZ] = {"KVM_CAP_GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ, "3.0",
		MB_CAP_WANTED, "times in the reports of the embedded guest",
		"the embedded guest reports cycles instead of seconds"},
	[MB_CAP_MULTI_ADDRESS_SPACE] = {"KVM_CAP_MULTI_ADDRESS_SPACE", KVM_CAP_MULTI_ADDRESS_SPACE, "4.2",
		MB_CAP_WANTED, "a second view of guest memory",
		"one view: no access counts per node and no page replicas inside a VM;"
		" needs a host kernel with CONFIG_KVM_SMM and hardware nested paging"},
	[MB_CAP_X86_SMM] = {"KVM_CAP_X86_SMM", KVM_CAP_X86_SMM, "4.2",
		MB_CAP_WANTED, "moving a vCPU to the second view",
		"one view: no access counts per node and no page replicas inside a VM;"
		" needs a host kernel with CONFIG_KVM_SMM"},
	[MB_CAP_SYNC_MMU] = {"KVM_CAP_SYNC_MMU", KVM_CAP_SYNC_MMU, "2.6.28",
		MB_CAP_REQUIRED, "guest mappings follow the monitor's",
		"no machine can run; use a current kernel"},
	[MB_CAP_READONLY_MEM] = {"KVM_CAP_READONLY_MEM", KVM_CAP_READONLY_MEM, "3.7",
		MB_CAP_WANTED, "images as memory of guests (--pmem)",
		"no --pmem; use a current kernel"},
	[MB_CAP_XSAVE2] = {"KVM_CAP_XSAVE2", KVM_CAP_XSAVE2, "5.17",
		MB_CAP_WANTED, "reset of vCPUs with large register state (AMX)",
		"large registers keep their content over a guest reboot; use kernel 5.17 or later"},
	[MB_CAP_X86_MSR_FILTER] = {"KVM_CAP_X86_MSR_FILTER", KVM_CAP_X86_MSR_FILTER, "5.10",
		MB_CAP_WANTED, "seeing that a guest takes a vCPU offline",
		"a vCPU of the second view that its guest takes offline does not come back; use kernel 5.10"
		" or later"},
	[MB_CAP_BINARY_STATS_FD] = {"KVM_CAP_BINARY_STATS_FD", KVM_CAP_BINARY_STATS_FD, "5.14",
		MB_CAP_WANTED, "counting the faults that the tracker costs a guest",
		"the tracker counts page table entries instead, which may be fewer; use kernel 5.19 or later"},
};
/* clang-format on */

static int real_ioctl(void *ctx, int fd, unsigned long request, void *arg)
{
	int rc = ioctl(fd, request, arg);

	return rc < 0 ? -errno : rc;
}

static const struct mb_kvm_ops real_ops = {.ioctl = real_ioctl};

static int check_extension(const struct mb_host *host, int kvm_cap)
{
	int rc = mb_host_ioctl(host, host->kvm_fd, KVM_CHECK_EXTENSION, (void *)(long)kvm_cap);

	return rc < 0 ? 0 : rc;
}

int mb_host_init(struct mb_host *host, const struct mb_kvm_ops *ops, void *ctx, int kvm_fd,
	struct mb_error *err)
{
	int rc;

	memset(host, 0, sizeof(*host));
	host->ops = ops;
	host->ops_ctx = ctx;
	host->kvm_fd = kvm_fd;

	rc = mb_host_ioctl(host, kvm_fd, KVM_GET_API_VERSION, NULL);
	if (rc != KVM_API_VERSION) {
		if (rc < 0)
			return mb_error_set(err, -rc,
				"KVM: the device does not answer as KVM does (%s); is it /dev/kvm?",
				strerror(-rc));
		return mb_error_set(err, ENOTSUP,
			"KVM: API version %d, but %d is needed; use a current kernel", rc,
			KVM_API_VERSION);
	}
	for (int i = 0; i < MB_N_CAPS; i++)
		host->cap[i] = check_extension(host, mb_cap_infos[i].kvm_cap);

	/*
	 * api.rst 4.5 and 4.35: the recommended number of vCPUs is not a limit; KVM_CAP_MAX_VCPUS is,
	 * and KVM_CAP_MAX_VCPU_ID may be absent.
	 */
	host->max_vcpus = (unsigned)check_extension(host, KVM_CAP_MAX_VCPUS);
	if (!host->max_vcpus)
		host->max_vcpus = (unsigned)check_extension(host, KVM_CAP_NR_VCPUS);
	if (!host->max_vcpus)
		host->max_vcpus = 4;
	host->max_vcpu_id = (unsigned)check_extension(host, KVM_CAP_MAX_VCPU_ID);
	if (!host->max_vcpu_id)
		host->max_vcpu_id = host->max_vcpus;
	host->max_memslots = (unsigned)check_extension(host, KVM_CAP_NR_MEMSLOTS);
	if (!host->max_memslots)
		host->max_memslots = 32;

	host->n_views = 1;
	if (host->cap[MB_CAP_X86_SMM] && host->cap[MB_CAP_MULTI_ADDRESS_SPACE] > 1)
		host->n_views = (unsigned)host->cap[MB_CAP_MULTI_ADDRESS_SPACE];

	rc = mb_host_ioctl(host, kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (rc < (int)sizeof(struct kvm_run))
		return mb_error_set(err, ENOTSUP, "KVM: the vCPU mapping has %d bytes, too few for %zu",
			rc, sizeof(struct kvm_run));
	host->vcpu_mmap_bytes = (size_t)rc;
	return 0;
}

int mb_host_open(struct mb_host *host, const char *path, struct mb_error *err)
{
	int fd, rc;

	if (!path)
		path = "/dev/kvm";
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		rc = errno;
		if (rc == ENOENT || rc == ENODEV || rc == ENXIO)
			return mb_error_set(err, rc,
				"%s: %s; load the module kvm_intel or kvm_amd, and switch on"
				" virtualisation in the firmware",
				path, strerror(rc));
		if (rc == EACCES || rc == EPERM)
			return mb_error_set(err, rc,
				"%s: %s; add yourself to its group (usermod -aG kvm USER) and log in"
				" again",
				path, strerror(rc));
		return mb_error_set(err, rc, "%s: %s", path, strerror(rc));
	}
	rc = mb_host_init(host, &real_ops, NULL, fd, err);
	if (rc)
		close(fd);
	return rc;
}

int mb_host_check(const struct mb_host *host, struct mb_error *err)
{
	for (int i = 0; i < MB_N_CAPS; i++) {
		const struct mb_cap_info *info = &mb_cap_infos[i];

		if (info->need == MB_CAP_REQUIRED && !host->cap[i])
			return mb_error_set(err, ENOTSUP,
				"KVM: %s (%s, since Linux %s) is missing: %s", info->name, info->use,
				info->since, info->cost);
	}
	return 0;
}

void mb_host_finish(struct mb_host *host)
{
	if (host->ops == &real_ops)
		close(host->kvm_fd);
	host->kvm_fd = -1;
}
