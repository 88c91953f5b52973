/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_VCPU_H
#define MIRRORBALL_VCPU_H

#include <linux/kvm.h>
#include <mirrorball/error.h>
#include <mirrorball/state.h>
#include <mirrorball/vm.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/*
 * The vCPUs of a VM and their threads. A set is created stopped; run lets them in; pause is a barrier.
 *
 * States of a vCPU thread:   waiting <-> running (in KVM_RUN or an exit handler) -> ended
 */
struct mb_vcpus; /* all vCPUs of a VM */
struct mb_vcpu;	 /* one of them */

enum mb_vcpu_event {
	MB_VCPU_TRIPLE_FAULT, /* KVM_EXIT_SHUTDOWN */
	MB_VCPU_SYSTEM_RESET, /* KVM_EXIT_SYSTEM_EVENT */
	MB_VCPU_SYSTEM_SHUTDOWN,
	MB_VCPU_SYSTEM_CRASH,
	MB_VCPU_FAILED, /* KVM cannot go on: an internal error, an unknown exit, or KVM_RUN failed */
};

/*
 * What a vCPU's thread calls when it leaves the guest. All are called on that thread, with no lock
 * held; all must return soon and never pause, resume or destroy the set.
 */
struct mb_vcpu_ops {
	/* `count` accesses of `size` bytes to `port`, data packed at `data` (string I/O has count > 1). */
	void (*pio)(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
		unsigned size, unsigned count);
	void (*mmio)(void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data,
		unsigned len);
	/* End of interrupt for a level-triggered vector of the I/O APIC (split irqchip). */
	void (*ioapic_eoi)(void *ctx, uint8_t vector);
	/*
	 * The vCPU stopped by itself and stays out of the guest until mb_vcpus_reset or the end; text
	 * says what KVM said (never NULL). mb_vcpu_dump may be called from here.
	 */
	void (*event)(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text);
};

struct mb_vcpus_config {
	unsigned n_vcpus;
	/* Group of each vCPU (array of n_vcpus, copied); NULL: all in group 0. */
	const uint8_t *group;
	/* View of each group to begin with; NULL: that of its number. */
	const uint8_t *view_of_group;
	/* Host CPUs for the threads of each group; NULL: inherit. */
	const cpu_set_t *group_cpus;
	const struct mb_vcpu_ops *ops;
	void *ops_ctx;
};

/*
 * Creates vCPUs with APIC id = index, CPUID (mirrorball/cpuid.h) and MSRs set, each on its own
 * thread, so that what KVM allocates for it comes from that thread's node. The threads wait.
 * SIGRTMIN becomes the process's kick signal.
 */
int mb_vcpus_create(struct mb_vm *vm, const struct mb_vcpus_config *config, struct mb_vcpus **out,
	struct mb_error *err);

/* Stops and joins every thread. Takes NULL. Not from a vCPU thread. */
void mb_vcpus_destroy(struct mb_vcpus *vcpus);

/*
 * When mb_vcpus_pause returns, no vCPU is in the guest or in an exit handler, and every exit that was
 * under way has been completed (the vCPU's registers may be read and written by any thread). Counted:
 * as many resumes as pauses. A new set counts as paused once. Not from a vCPU thread.
 */
void mb_vcpus_pause(struct mb_vcpus *vcpus);
void mb_vcpus_resume(struct mb_vcpus *vcpus);

/*
 * As mb_vcpus_pause, where that takes no longer than this: a vCPU's exit may wait, for a terminal that
 * nobody reads for one. false: it took longer, and nothing is paused by this call.
 */
bool mb_vcpus_pause_within(struct mb_vcpus *vcpus, uint64_t timeout_ns);

unsigned mb_vcpus_count(const struct mb_vcpus *vcpus);
struct mb_vcpu *mb_vcpus_at(struct mb_vcpus *vcpus, unsigned index);

unsigned mb_vcpu_index(const struct mb_vcpu *vcpu);
unsigned mb_vcpu_group(const struct mb_vcpu *vcpu);
unsigned mb_vcpu_current_view(const struct mb_vcpu *vcpu); /* the one it is in: 0 until its SIPI */
uint64_t mb_vcpu_n_exits(const struct mb_vcpu *vcpu);	   /* exits to user space so far, any thread */
/* Monotonic time of the first KVM_RUN of any vCPU of the set, in ns; 0 before. */
uint64_t mb_vcpus_first_run_ns(const struct mb_vcpus *vcpus);

/*
 * The vCPUs of each group translate through that view's memslots from now on: each as soon as it
 * has left the guest, which it is made to, and after its SIPI. Any thread; takes the set's lock.
 */
void mb_vcpus_set_views(struct mb_vcpus *vcpus, const uint8_t *view_of_group);

/* The threads of a group's vCPUs run on these CPUs from now on. -errno of sched_setaffinity(2), of
 * the first that failed. Any thread. */
int mb_vcpus_bind(struct mb_vcpus *vcpus, unsigned group, const cpu_set_t *cpus);

/* Time of the threads of a group's vCPUs since they were created. */
struct mb_vcpu_usage {
	unsigned n_vcpus;
	uint64_t run_ns;  /* on a CPU, guest and exits */
	uint64_t wait_ns; /* able to run, and waiting for a CPU; 0 where the kernel does not tell */
};
/* From /proc/self/task/TID/schedstat. -errno where that cannot be read. Any thread. */
int mb_vcpus_usage(const struct mb_vcpus *vcpus, unsigned group, struct mb_vcpu_usage *usage);

/*
 * Opens KVM's statistics, a descriptor for each vCPU; before mb_vcpus_resume, since KVM answers nothing about a vCPU that
 * is in the guest. -ENOTSUP before Linux 5.19 (the counters came then), -errno; the vCPUs run without, too.
 */
int mb_vcpus_open_stats(struct mb_vcpus *vcpus);

/* Faults on guest memory that KVM has taken, of all vCPUs since they were created. */
struct mb_vcpu_faults {
	uint64_t fixed; /* a page was not in its tables, or not writable there */
	/* It was just being taken out: the vCPU had to try again. A fault under way counts as one, so that a later
	 * answer may be less. */
	uint64_t repeated;
};
/* -ENOTSUP unless opened. One thread at a time, whether they run or not. */
int mb_vcpus_faults(struct mb_vcpus *vcpus, struct mb_vcpu_faults *faults);

/* ---- state; only while paused ---- */

/*
 * Tells the guest that it was stopped for a while, where it has a clock of KVM's (api.rst,
 * KVM_KVMCLOCK_CTRL): its watchdogs then take no offence at the time that is missing.
 */
void mb_vcpus_tell_stopped(struct mb_vcpus *vcpus);

/*
 * Back to the state after power-on, in view 0: vCPU 0 runnable (at the reset vector, until
 * mb_vcpu_set_start), the others waiting for INIT and SIPI. The TSC goes on.
 */
int mb_vcpus_reset(struct mb_vcpus *vcpus);

/*
 * All of their state, and the clock of the VM, for a snapshot. save: -EBUSY where a vCPU has stopped by itself. load:
 * into as many new vCPUs, in one view; -ENOTSUP where this host's KVM is not like the one that it was saved on, -EINVAL:
 * it is no such state. The guest's clocks go on where they stood.
 */
int mb_vcpus_save(struct mb_vcpus *vcpus, struct mb_state_out *out, struct mb_error *err);
int mb_vcpus_load(struct mb_vcpus *vcpus, struct mb_state_in *in, struct mb_error *err);
/* A bit for each vector that waits at a vCPU's APIC or has not ended there (IRR, ISR). */
#define MB_VECTOR_WORDS 4
int mb_vcpus_get_vectors(
	struct mb_vcpus *vcpus, uint64_t vectors[MB_VECTOR_WORDS], struct mb_error *err);

/* Long mode, flat segments, paging on: what the 64-bit boot protocols ask for. */
struct mb_vcpu_start {
	uint64_t rip;
	uint64_t rsp;
	uint64_t rsi; /* boot_params for bzImage */
	uint64_t rdi;
	uint64_t rbx; /* PVH start info */
	uint64_t cr3;
	uint64_t gdt_gpa; /* with code at selector 0x10 and data at 0x18 */
	uint16_t gdt_limit;
	bool long_mode; /* false: 32-bit protected mode without paging (PVH) */
};
/* The vCPU starts there and is runnable (no SIPI needed); it enters its view at once. */
int mb_vcpu_set_start(struct mb_vcpu *vcpu, const struct mb_vcpu_start *start);

/*
 * Registers, the code bytes at RIP and what KVM said last, for a person. Only while paused, or on
 * the vCPU's own thread.
 */
void mb_vcpu_dump(struct mb_vcpu *vcpu, FILE *out);

/* KVM_GET_TSC_KHZ of the vCPU; 0 where KVM cannot say. */
uint32_t mb_vcpu_tsc_khz(struct mb_vcpu *vcpu);

#endif
