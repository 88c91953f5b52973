/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TESTS_FAKE_KVM_H
#define MIRRORBALL_TESTS_FAKE_KVM_H

#include <linux/kvm.h>
#include <mirrorball/host.h>
#include <mirrorball/vm.h>
#include <pthread.h>

/*
 * A KVM at the level of its ioctls, without a device: enough for a host, VMs with interrupt routes,
 * irqfds, ioeventfds and memslots, and vCPUs whose registers are remembered and whose KVM_RUN is
 * the test's own function. VM and vCPU descriptors are memfds, a vCPU's can be mapped. Any thread.
 */
#define FAKE_MAX_VMS	  4
#define FAKE_MAX_VCPUS	  64
#define FAKE_MAX_FDS	  4096
#define FAKE_MAX_MEMSLOTS 64
#define FAKE_N_CAPS	  512
#define FAKE_RUN_BYTES	  4096
#define FAKE_N_PF	  6
#define FAKE_PF_OFFSET	  64 /* in stats_fd, of the first counter */

struct fake_vcpu {
	int fd;
	unsigned id;
	struct kvm_run *run;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	struct kvm_lapic_state lapic;
	uint8_t xsave[4096]; /* struct kvm_xsave without its tail */
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	uint64_t smbase;     /* MSR_IA32_SMBASE, set by the host */
	uint64_t smm_smbase; /* what it was when the vCPU was put into System Management Mode */
	uint64_t clock;	     /* MSR_KVM_SYSTEM_TIME_NEW, set by the host */
	bool completing; /* an exit that the next KVM_RUN completes: the mode must not change before
			  */
	unsigned n_cpuid; /* entries of the last KVM_SET_CPUID2 */
	int stats_fd; /* of the last KVM_GET_STATS_FD, the caller's: a test may write counters there
		       */
	unsigned n_runs;
};

struct fake_vm {
	int fd;
	unsigned n_routes;
	struct kvm_irq_routing_entry route[FAKE_MAX_FDS];
	/* The descriptors here are the fake's own duplicates; of_fd is the caller's number. */
	unsigned n_irqfds;
	struct {
		int fd, of_fd;
		unsigned gsi;
	} irqfd[FAKE_MAX_FDS];
	unsigned n_ioeventfds;
	struct {
		int fd, of_fd;
		uint64_t addr;
		unsigned len;
		bool pio;
	} ioeventfd[FAKE_MAX_FDS];
	unsigned n_msis;
	struct kvm_msi msi[FAKE_MAX_FDS]; /* KVM_SIGNAL_MSI, those not taken yet */
	uint32_t
		watched_msr; /* whose writes leave the kernel, by KVM_X86_SET_MSR_FILTER; 0: none */
	unsigned n_memslots;
	struct kvm_userspace_memory_region memslot[FAKE_MAX_MEMSLOTS];
	unsigned n_vcpus;
	struct fake_vcpu *vcpu[FAKE_MAX_VCPUS];
};

struct fake_kvm {
	struct mb_kvm_ops ops;
	int kvm_fd;
	int cap[FAKE_N_CAPS]; /* answers of KVM_CHECK_EXTENSION; a test may change them */
	/*
	 * KVM_RUN of a vCPU: fills in run and returns 0 or -errno. NULL: -EINTR. No lock of the
	 * fake is held.
	 */
	int (*run)(void *ctx, struct fake_vcpu *vcpu);
	void *run_ctx;

	pthread_mutex_t lock;	  /* protects what follows */
	unsigned n_calls[256];	  /* by ioctl number */
	int fail_rc[256];	  /* not 0: what that ioctl returns ... */
	unsigned fail_after[256]; /* ... after so many good calls */
	bool no_smbase;		  /* KVM_SET_MSRS refuses MSR_IA32_SMBASE */
	bool no_pf;		  /* statistics have other names */
	unsigned n_errors; /* requests that KVM itself would refuse, or that the fake does not know
			    */
	unsigned n_vms;
	struct fake_vm *vm[FAKE_MAX_VMS];
};

/* Names of the counters in a vCPU's statistics, in their order. */
extern const char *const fake_kvm_pf[FAKE_N_PF];

void fake_kvm_init(struct fake_kvm *fake);
/* VMs must be destroyed before. */
void fake_kvm_finish(struct fake_kvm *fake);
/* mb_host_init on top of the fake; must succeed. */
void fake_kvm_host(struct fake_kvm *fake, struct mb_host *host);

unsigned fake_kvm_n_calls(struct fake_kvm *fake, unsigned long request);
/* request returns rc (a negative errno) after `after` more good calls; rc 0 ends that. */
void fake_kvm_fail(struct fake_kvm *fake, unsigned long request, int rc, unsigned after);

/* The only VM, or the newest. */
struct fake_vm *fake_kvm_vm(struct fake_kvm *fake);

/*
 * How often the guest got this message since the last call: through routed irqfds and
 * KVM_SIGNAL_MSI.
 */
uint64_t fake_kvm_take_msis(struct fake_kvm *fake, uint64_t addr, uint32_t data);

/*
 * The guest writes len bytes at addr: true if an ioeventfd took it, as KVM does; otherwise the
 * caller hands it to its bus.
 */
bool fake_kvm_guest_write(struct fake_kvm *fake, bool pio, uint64_t addr, unsigned len);

#endif
