/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_KVM_VCPU_INTERNAL_H
#define MB_KVM_VCPU_INTERNAL_H

#include <mirrorball/vcpu.h>
#include <pthread.h>

#include "msr.h"

/* What a vCPU was like: right after it was created, for mb_vcpus_reset, or for a snapshot. */
struct vcpu_power_on {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_xsave *xsave; /* as long as KVM_CAP_XSAVE2 says */
	struct mb_msrs msrs;
};

#define MB_PF_COUNTERS 5
#define MB_PF_SPAN     64 /* of KVM's statistics: they are side by side */

/* Where KVM's statistics of a vCPU have these counters. */
struct vcpu_stats_map {
	uint64_t first; /* of all of them */
	uint64_t at[MB_PF_COUNTERS];
};

struct mb_vcpu {
	struct mb_vcpus *set;
	unsigned index;
	int fd;	      /* -1: not created */
	int stats_fd; /* -1: not open */
	struct kvm_run *run;
	pthread_t thread;
	pid_t tid; /* of the thread, from when it is ready on */
	bool has_thread;
	uint8_t group;
	uint8_t view;	      /* atomic: where it should be; written under the set's lock */
	uint8_t current_view; /* atomic; written by the thread, or while paused */
	bool away;	      /* the guest is taking it offline: in view 0 for now. Likewise */
	uint64_t n_exits;     /* atomic; written by the thread */
	char said[256];	      /* what KVM said when the vCPU stopped by itself; the thread's */

	/* Under the set's lock. */
	bool ready; /* created, or failed to be */
	int rc;
	bool inside; /* between leaving and entering the wait: in the guest or a handler */
	bool halted; /* stopped by itself, until reset */
};

struct mb_vcpus {
	struct mb_vm *vm;
	const struct mb_vcpu_ops *ops;
	void *ops_ctx;
	struct kvm_cpuid2 *supported;	    /* by KVM; to ask again takes it 0.3 ms */
	struct mb_cpuid_config *cpuid;	    /* while creating */
	struct vcpu_power_on power_on[2];   /* of vCPU 0, of the others */
	uint64_t first_run_ns;		    /* atomic */
	struct vcpu_stats_map stats;	    /* since mb_vcpus_open_stats */

	/*
	 * Atomic. Somebody wants the vCPUs out. Stored before immediate_exit of any vCPU; a thread
	 * that is kicked out of KVM_RUN loads it. Set and cleared under the lock.
	 */
	bool request;

	/* Protects what follows and the marked fields of each vCPU. Leaf. */
	pthread_mutex_t lock;
	pthread_cond_t go;  /* pause_count fell to 0, or stop */
	pthread_cond_t out; /* a vCPU came out, or is ready */
	unsigned pause_count;
	bool stop;
	struct mb_error *err; /* while creating: of the first vCPU that failed */

	unsigned n;
	struct mb_vcpu vcpu[];
};

static inline int mb_vcpu_ioctl(const struct mb_vcpu *vcpu, unsigned long request, void *arg)
{
	return mb_host_ioctl(mb_vm_host(vcpu->set->vm), vcpu->fd, request, arg);
}

/* kvm/vcpu_state.c; on the vCPU's thread or while paused. */
/* A new vCPU's APIC, as firmware leaves it where ids are above 254 (SDM vol. 3, "x2APIC"). */
int mb_vcpu_start_in_x2apic(struct mb_vcpu *vcpu);
/* All of it; clock: with the TSC. po: zero; to be finished whatever comes of it. */
int mb_vcpu_read_state(struct mb_vcpu *vcpu, bool clock, struct vcpu_power_on *po);
bool mb_vcpu_has_xsave2(const struct mb_vcpu *vcpu);
size_t mb_vcpu_xsave_bytes(const struct mb_vcpu *vcpu); /* of KVM's structure of it */
int mb_vcpu_load_power_on(struct mb_vcpu *vcpu, const struct vcpu_power_on *po);
void mb_vcpu_power_on_finish(struct vcpu_power_on *po);

/* kvm/vcpu_view.c; on the vCPU's thread or while paused. */
/* The vCPU translates through the memslots of its own view from now on. */
int mb_vcpu_enter_view(struct mb_vcpu *vcpu);
/* It is in view 0, as after power-on. */
void mb_vcpu_view_reset(struct mb_vcpu *vcpu);
/* Whether it is not in the view where it should be. */
bool mb_vcpu_is_astray(const struct mb_vcpu *vcpu);
/* On its thread, with no exit to be completed: gets it there. 0 where KVM_RUN may come next, -EINTR
 * on a request. */
int mb_vcpu_find_view(struct mb_vcpu *vcpu);
/* The guest has written where its clock is, or 0: on its way out, or in. */
void mb_vcpu_clock_written(struct mb_vcpu *vcpu, uint64_t value);
/*
 * What KVM calls a triple fault may be a process of the guest that executed RSM, as it can in
 * a second view. True: it has an invalid opcode now, as on a processor, and goes on.
 */
bool mb_vcpu_forgive_rsm(struct mb_vcpu *vcpu);

/* kvm/vcpu_exit.c; on the vCPU's thread. False: the vCPU stopped by itself. */
bool mb_vcpu_handle_exit(struct mb_vcpu *vcpu);
/* KVM_RUN itself failed with -rc. */
void mb_vcpu_run_failed(struct mb_vcpu *vcpu, int rc);

#endif
