// SPDX-License-Identifier: Apache-2.0
/* Views and routes on a fake KVM: what the monitor asks of it with 1, 2 and 8 address spaces. */
#include "fake_kvm.h"
#include "run.h"

#include <errno.h>
#include <mirrorball/ram.h>
#include <mirrorball/vcpu.h>
#include <numaif.h>
#include <string.h>
#include <unistd.h>

#define N_VCPUS	  8u
#define RAM_BYTES (4ull << 30) /* 3 GiB below the PCI hole, 1 GiB above 4 GiB */

static struct fake_kvm fake;
static struct mb_host host;
static struct mb_vm *vm;
static struct mb_ram *ram;
static struct mb_vcpus *vcpus;
static bool one_a_group; /* a group for each vCPU, all in view 0 at first */
static int lacks_stats; /* 1: by what KVM says, 2: by what it does, 3: counters of other names */

/*
 * A guest whose vCPU 0 has sent INIT to those below n_init; the others wait for theirs. As KVM does it
 * (kvm_arch_vcpu_ioctl_run), INIT ends KVM_RUN, and the SIPI after it does not.
 */
static unsigned n_init;

/* What the guest does next, once: a vCPU writes its clock's MSR, or has what KVM calls a triple fault. */
#define NOTHING UINT64_MAX
static uint64_t clock_written[N_VCPUS];
static bool triple_fault[N_VCPUS];
static unsigned n_fatal; /* triple faults that the monitor was told of */

/* A vCPU's state is under the fake's lock, as KVM has it under the vCPU's. */
static uint32_t state_of(const struct fake_vcpu *vcpu)
{
	uint32_t state;

	pthread_mutex_lock(&fake.lock);
	state = vcpu->mp_state.mp_state;
	pthread_mutex_unlock(&fake.lock);
	return state;
}

static bool changes(struct fake_vcpu *vcpu, uint32_t from, uint32_t to)
{
	bool did;

	pthread_mutex_lock(&fake.lock);
	did = vcpu->mp_state.mp_state == from;
	if (did)
		vcpu->mp_state.mp_state = to;
	pthread_mutex_unlock(&fake.lock);
	return did;
}

static int run_guest(void *ctx, struct fake_vcpu *vcpu)
{
	for (;;) {
		uint64_t clock;

		if (__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST))
			return -EINTR;
		clock = __atomic_exchange_n(&clock_written[vcpu->id], NOTHING, __ATOMIC_SEQ_CST);
		if (clock != NOTHING) {
			vcpu->run->exit_reason = KVM_EXIT_X86_WRMSR;
			vcpu->run->msr.index = 0x4b564d01;
			vcpu->run->msr.data = clock;
			vcpu->run->msr.error = 1;
			vcpu->completing = true;
			return 0;
		}
		if (__atomic_exchange_n(&triple_fault[vcpu->id], false, __ATOMIC_SEQ_CST)) {
			vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
			return 0;
		}
		if (vcpu->id < __atomic_load_n(&n_init, __ATOMIC_SEQ_CST) &&
			changes(vcpu, KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED))
			return -EAGAIN;
		usleep(100);
	}
}

/* INIT and, some time later, SIPI for all below n. */
static void wake_below(unsigned n, useconds_t pause_us)
{
	struct fake_vm *fvm = fake_kvm_vm(&fake);

	__atomic_store_n(&n_init, n, __ATOMIC_SEQ_CST);
	for (unsigned j = 0; j < fvm->n_vcpus; j++) {
		struct fake_vcpu *vcpu = fvm->vcpu[j];

		if (vcpu->id >= n || state_of(vcpu) == KVM_MP_STATE_RUNNABLE)
			continue;
		while (state_of(vcpu) != KVM_MP_STATE_INIT_RECEIVED)
			usleep(100);
		usleep(pause_us);
		changes(vcpu, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE);
	}
}

static void on_pio(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
	unsigned size, unsigned count)
{
}

static void on_mmio(void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data, unsigned len)
{
}

static void on_eoi(void *ctx, uint8_t vector)
{
}

static void on_event(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text)
{
	if (event != MB_VCPU_TRIPLE_FAULT)
		ck_abort_msg("vCPU %u: %s", mb_vcpu_index(vcpu), text);
	__atomic_add_fetch(&n_fatal, 1, __ATOMIC_SEQ_CST);
}

static const struct mb_vcpu_ops ops = {
	.pio = on_pio, .mmio = on_mmio, .ioapic_eoi = on_eoi, .event = on_event};

static void make(unsigned n_views, bool x2apic_ids)
{
	struct mb_vm_config vc = {.n_views = n_views, .x2apic_ids = x2apic_ids};
	uint8_t group[N_VCPUS], view[N_VCPUS] = {0};
	struct mb_vcpus_config config = {.n_vcpus = N_VCPUS, .group = group, .ops = &ops};
	struct mb_error err;

	for (unsigned i = 0; i < N_VCPUS; i++)
		group[i] = (uint8_t)(one_a_group ? i : i * n_views / N_VCPUS);
	if (one_a_group)
		config.view_of_group = view;
	fake_kvm_init(&fake);
	fake.cap[KVM_CAP_MULTI_ADDRESS_SPACE] = (int)n_views;
	fake.run = run_guest;
	if (lacks_stats == 1)
		fake.cap[KVM_CAP_BINARY_STATS_FD] = 0;
	if (lacks_stats == 2) {
		fake.fail_rc[_IOC_NR(KVM_GET_STATS_FD)] = -EMFILE;
		fake.fail_after[_IOC_NR(KVM_GET_STATS_FD)] = 2;
	}
	fake.no_pf = lacks_stats == 3;
	n_init = n_fatal = 0;
	for (unsigned i = 0; i < N_VCPUS; i++)
		clock_written[i] = NOTHING;
	fake_kvm_host(&fake, &host);
	ck_assert_uint_eq(host.n_views, n_views);
	ck_assert_msg(!mb_vm_create(&host, &vc, &vm, &err), "%s", err.text);
	ck_assert_msg(!mb_ram_create(vm, RAM_BYTES, &ram, &err), "%s", err.text);
	ck_assert_msg(!mb_vcpus_create(vm, &config, &vcpus, &err), "%s", err.text);
}

static void finish(void)
{
	mb_vcpus_destroy(vcpus);
	mb_ram_destroy(ram);
	mb_vm_destroy(vm);
	ck_assert_uint_eq(fake.n_errors, 0);
	fake_kvm_finish(&fake);
}

static struct fake_vcpu *fake_vcpu(unsigned i)
{
	struct fake_vm *fvm = fake_kvm_vm(&fake);

	for (unsigned j = 0; j < fvm->n_vcpus; j++) {
		if (fvm->vcpu[j]->id == i)
			return fvm->vcpu[j];
	}
	ck_abort_msg("no vCPU %u", i);
	return NULL;
}

static bool in_smm(unsigned i)
{
	const struct fake_vcpu *vcpu = fake_vcpu(i);
	bool smm;

	pthread_mutex_lock(&fake.lock);
	smm = vcpu->events.smi.smm;
	pthread_mutex_unlock(&fake.lock);
	return smm;
}

static void write_clock(unsigned i, uint64_t value)
{
	__atomic_store_n(&clock_written[i], value, __ATOMIC_SEQ_CST);
}

static void wait_for_view(unsigned i, unsigned view)
{
	for (unsigned n = 0; n < 5000; n++) {
		if (mb_vcpu_current_view(mb_vcpus_at(vcpus, i)) == view)
			return;
		usleep(1000);
	}
	ck_abort_msg("vCPU %u did not enter view %u", i, view);
}

static const unsigned view_counts[] = {1, 2, 8};

START_TEST(test_every_view_has_all_of_ram)
{
	unsigned n_views = view_counts[_i];
	struct fake_vm *fvm;
	void *seen[8];

	make(n_views, false);
	fvm = fake_kvm_vm(&fake);
	ck_assert_uint_eq(fvm->n_memslots, 2 * n_views);
	for (unsigned k = 0; k < n_views; k++) {
		uint32_t *low = mb_vm_translate(vm, k, 0x1000, 4), value = 0xc0ffee00 + k;

		ck_assert_ptr_nonnull(low);
		ck_assert_ptr_nonnull(mb_vm_translate(vm, k, MB_RAM_HIGH_BASE, 1u << 30));
		ck_assert_ptr_null(mb_vm_translate(vm, k, MB_RAM_LOW_MAX - 1, 2));
		ck_assert_uint_eq((uintptr_t)low % MB_RAM_ALIGN, 0x1000);
		seen[k] = low;
		/* Different mappings of the same memory. */
		for (unsigned j = 0; j < k; j++)
			ck_assert_ptr_ne(seen[j], low);
		mb_dma_write(mb_ram_dma(ram), 0x1000, &value, 4);
		for (unsigned j = 0; j <= k; j++)
			ck_assert_uint_eq(*(uint32_t *)seen[j], value);
	}
	for (unsigned i = 0; i < fvm->n_memslots; i++)
		ck_assert_uint_lt(fvm->memslot[i].slot >> 16, n_views);
	ck_assert_ptr_null(mb_vm_translate(vm, n_views, 0, 1));
	finish();
}
END_TEST

/* Guest memory has a policy of its own, or the host's NUMA balancing takes its pages out of our hands. */
START_TEST(test_memory_is_local)
{
	static const uint64_t gpas[] = {0, MB_RAM_LOW_MAX - 4096, MB_RAM_HIGH_BASE, (5ull << 30) - 4096};
	unsigned n_views = view_counts[_i];

	make(n_views, false);
	for (unsigned k = 0; k < n_views; k++) {
		for (unsigned i = 0; i < sizeof(gpas) / sizeof(gpas[0]); i++) {
			void *hva = mb_vm_translate(vm, k, gpas[i], 4096);
			int mode = -1;

			ck_assert_ptr_nonnull(hva);
			if (get_mempolicy(&mode, NULL, 0, hva, MPOL_F_ADDR)) {
				ck_assert_int_eq(errno, ENOSYS);
				skip("the policy of guest memory: this kernel is built without NUMA");
				finish();
				return;
			}
			/* Linux before 5.14 says it as "preferred" without a node (set_mempolicy(2)). */
			if (mode == MPOL_PREFERRED)
				mode = MPOL_LOCAL;
			ck_assert_int_eq(mode, MPOL_LOCAL);
		}
	}
	finish();
}
END_TEST

START_TEST(test_enters_its_view_after_sipi)
{
	unsigned n_views = view_counts[_i];

	make(n_views, false);
	mb_vcpus_resume(vcpus);
	usleep(5000);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		/* INIT is ignored in that mode: not before the SIPI. */
		ck_assert(!in_smm(i));
		ck_assert_uint_eq(mb_vcpu_current_view(mb_vcpus_at(vcpus, i)), 0);
	}
	for (unsigned woken = 2; woken <= N_VCPUS; woken++) {
		wake_below(woken, woken % 2 ? 0 : 3000);
		wait_for_view(woken - 1, (woken - 1) * n_views / N_VCPUS);
	}
	mb_vcpus_pause(vcpus);
	for (unsigned i = 0; i < N_VCPUS; i++)
		ck_assert_int_eq(in_smm(i), i * n_views / N_VCPUS > 0);

	/* A reset brings everyone back to view 0, waiting for its SIPI; and then it goes again. */
	__atomic_store_n(&n_init, 0, __ATOMIC_SEQ_CST);
	ck_assert_int_eq(mb_vcpus_reset(vcpus), 0);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		ck_assert(!in_smm(i));
		ck_assert_uint_eq(mb_vcpu_current_view(mb_vcpus_at(vcpus, i)), 0);
	}
	mb_vcpus_resume(vcpus);
	wake_below(N_VCPUS, 1000);
	wait_for_view(N_VCPUS - 1, (N_VCPUS - 1) * n_views / N_VCPUS);
	finish();
}
END_TEST

START_TEST(test_enters_its_view_at_a_direct_start)
{
	struct mb_vcpu_start start = {.rip = 0x100000, .long_mode = true};

	make(2, false);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		ck_assert_int_eq(mb_vcpu_set_start(mb_vcpus_at(vcpus, i), &start), 0);
		ck_assert_int_eq(in_smm(i), i >= N_VCPUS / 2);
		ck_assert_uint_eq(mb_vcpu_current_view(mb_vcpus_at(vcpus, i)), i >= N_VCPUS / 2);
	}
	finish();
}
END_TEST

/* RSM restores all registers from SMBASE + 0xfe00, so that must not be memory of the guest. */
START_TEST(test_nothing_for_rsm)
{
	struct mb_vcpu_start start = {.rip = 0x100000, .long_mode = true};

	make(2, false);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		uint64_t *smbase = &fake_vcpu(i)->smm_smbase;

		fake.no_smbase = i == N_VCPUS - 1;
		ck_assert_int_eq(mb_vcpu_set_start(mb_vcpus_at(vcpus, i), &start), 0);
		ck_assert_int_eq(in_smm(i), i >= N_VCPUS / 2);
		if (!in_smm(i) || fake.no_smbase) {
			ck_assert_uint_eq(*smbase, 0);
			continue;
		}
		ck_assert_uint_gt(*smbase + 0xfe00, MB_RAM_LOW_MAX);
		ck_assert_ptr_null(mb_vm_translate(vm, 1, *smbase + 0xfe00, 1));
		ck_assert_ptr_null(mb_vm_translate(vm, 1, *smbase + 0xffff, 1));
	}
	finish();
}
END_TEST

/* A vCPU that its guest takes offline is in view 0 until it is back: with INIT and SIPI, or without (kexec). */
START_TEST(test_leaves_its_view_to_go_offline)
{
	unsigned n_views = view_counts[_i], last = N_VCPUS - 1, view = last * n_views / N_VCPUS;
	struct mb_vcpu *vcpu;

	make(n_views, false);
	vcpu = mb_vcpus_at(vcpus, last);
	ck_assert_uint_eq(fake_kvm_vm(&fake)->watched_msr, n_views > 1 ? 0x4b564d01 : 0);
	mb_vcpus_resume(vcpus);
	wake_below(N_VCPUS, 0);
	wait_for_view(last, view);
	for (unsigned round = 0; round < 20 && view; round++) {
		bool pause = round % 3 == 2;

		write_clock(last, 0x1235);
		while (__atomic_load_n(&clock_written[last], __ATOMIC_SEQ_CST) != NOTHING)
			usleep(100);
		wait_for_view(last, view);
		write_clock(last, 0);
		wait_for_view(last, 0);
		ck_assert(!in_smm(last));
		if (pause) {
			/* What the write was is completed, and KVM has the value that the guest wrote. */
			mb_vcpus_pause(vcpus);
			ck_assert_uint_eq(fake_vcpu(last)->clock, 0);
			ck_assert_uint_eq(fake_vcpu(last)->run->msr.error, 0);
			mb_vcpus_resume(vcpus);
			usleep(1000);
			ck_assert_uint_eq(mb_vcpu_current_view(vcpu), 0);
		}
		if (round & 1) {
			changes(fake_vcpu(last), KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_INIT_RECEIVED);
			usleep(1000);
			changes(fake_vcpu(last), KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE);
		}
		write_clock(last, 0x2001);
		wait_for_view(last, view);
		ck_assert(in_smm(last));
	}
	/* A reset in between forgets that it was away. */
	write_clock(last, 0);
	wait_for_view(last, 0);
	mb_vcpus_pause(vcpus);
	__atomic_store_n(&n_init, 0, __ATOMIC_SEQ_CST);
	ck_assert_int_eq(mb_vcpus_reset(vcpus), 0);
	mb_vcpus_resume(vcpus);
	wake_below(N_VCPUS, 1000);
	wait_for_view(last, view);
	finish();
}
END_TEST

/* vCPUs change views while they run, exit, wait for their SIPI, are away or paused. */
START_TEST(test_changes_views)
{
	uint8_t view[N_VCPUS];

	one_a_group = true;
	make(2, false);
	mb_vcpus_resume(vcpus);
	wake_below(N_VCPUS - 1, 0); /* one waits */
	for (unsigned round = 0; round < 40; round++) {
		unsigned away = round % 5;
		bool paused = round % 4 == 3;

		if (paused)
			mb_vcpus_pause(vcpus);
		write_clock(away, 0);
		write_clock(5, 0x1001); /* an exit that has to be completed */
		for (unsigned i = 0; i < N_VCPUS; i++)
			view[i] = (uint8_t)(((i + 1) * (round + 1) >> 1) % 2);
		mb_vcpus_set_views(vcpus, view);
		if (paused)
			mb_vcpus_resume(vcpus);
		wait_for_view(away, 0);
		for (unsigned i = 0; i < N_VCPUS - 1; i++)
			wait_for_view(i, i == away ? 0 : view[i]);
		ck_assert(!in_smm(N_VCPUS - 1));
		while (__atomic_load_n(&clock_written[away], __ATOMIC_SEQ_CST) != NOTHING)
			usleep(100);
		write_clock(away, 0x2001);
		wait_for_view(away, view[away]);
		for (unsigned i = 0; i < N_VCPUS - 1; i++)
			ck_assert_int_eq(in_smm(i), view[i]);
	}
	wake_below(N_VCPUS, 1000);
	wait_for_view(N_VCPUS - 1, view[N_VCPUS - 1]);
	mb_vcpus_pause(vcpus);
	/* What was written is completed before the mode changed (the fake sees to that). */
	ck_assert_uint_eq(fake_vcpu(5)->clock, 0x1001);
	finish();
}
END_TEST

/*
 * A process that executes RSM in a second view has an invalid opcode, as elsewhere; other triple faults stay what
 * they are: those of a kernel, those in view 0, those that took the vCPU out of the mode (AMD).
 */
START_TEST(test_rsm_is_no_triple_fault)
{
	enum { VIEW_0 = 0, KERNEL = 4, AMD, PROCESS };
	struct mb_vcpu_start start = {.rip = 0x3000, .long_mode = true};

	make(2, false);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		ck_assert_int_eq(mb_vcpu_set_start(mb_vcpus_at(vcpus, i), &start), 0);
		fake_vcpu(i)->sregs.ss.dpl = i == KERNEL ? 0 : 3;
		fake_vcpu(i)->regs.rip = 0x3004;
	}
	fake_vcpu(AMD)->events.smi.smm = 0;
	triple_fault[VIEW_0] = triple_fault[KERNEL] = triple_fault[AMD] = true;
	/* Again at once, from where the last one put it: RSM at A, then at A - 2. */
	for (unsigned again = 0; again < 3; again++) {
		triple_fault[PROCESS] = true;
		mb_vcpus_resume(vcpus);
		while (__atomic_load_n(&triple_fault[PROCESS], __ATOMIC_SEQ_CST) ||
			__atomic_load_n(&n_fatal, __ATOMIC_SEQ_CST) < 3)
			usleep(1000);
		mb_vcpus_pause(vcpus);
		ck_assert_uint_eq(n_fatal, 3);
		for (unsigned i = 0; i < N_VCPUS; i++) {
			ck_assert_uint_eq(fake_vcpu(i)->events.exception.injected, i == PROCESS);
			ck_assert_uint_eq(fake_vcpu(i)->regs.rip, i == PROCESS ? 0x3002 - 2 * again : 0x3004);
			ck_assert_int_eq(in_smm(i), i >= N_VCPUS / 2 && i != AMD);
		}
		ck_assert_uint_eq(fake_vcpu(PROCESS)->events.exception.nr, 6);
	}
	finish();
}
END_TEST

START_TEST(test_no_second_view)
{
	struct mb_vm_config vc = {.n_views = 2};
	struct mb_error err;

	fake_kvm_init(&fake);
	fake.cap[KVM_CAP_X86_SMM] = 0; /* an address space that no vCPU can be moved to */
	fake_kvm_host(&fake, &host);
	ck_assert_uint_eq(host.n_views, 1);
	ck_assert_int_eq(mb_vm_create(&host, &vc, &vm, &err), -EINVAL);
	fake_kvm_finish(&fake);
}
END_TEST

/* Faults on memory are counted, of all vCPUs, and those that had another reason are not. */
START_TEST(test_faults)
{
	struct mb_vcpu_faults n;
	uint64_t few = 3, taken = 100;

	make(2, false);
	ck_assert_int_eq(mb_vcpus_faults(vcpus, &n), -ENOTSUP);
	ck_assert_int_eq(mb_vcpus_open_stats(vcpus), 0);
	ck_assert_int_eq(mb_vcpus_faults(vcpus, &n), 0);
	ck_assert_uint_eq(n.fixed + n.repeated, 0);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		for (unsigned k = 0; k < FAKE_N_PF; k++)
			ck_assert_int_eq(pwrite(fake_vcpu(i)->stats_fd,
				strcmp(fake_kvm_pf[k], "pf_taken") ? &few : &taken, 8,
				FAKE_PF_OFFSET + 8 * (off_t)k), 8);
	}
	ck_assert_int_eq(mb_vcpus_faults(vcpus, &n), 0);
	ck_assert_uint_eq(n.fixed, N_VCPUS * 6);
	ck_assert_uint_eq(n.repeated, N_VCPUS * 88);
	finish();
}
END_TEST

START_TEST(test_no_statistics)
{
	struct mb_vcpu_faults n;

	lacks_stats = _i + 1;
	make(1, false);
	ck_assert_int_lt(mb_vcpus_open_stats(vcpus), 0);
	ck_assert_int_eq(mb_vcpus_faults(vcpus, &n), -ENOTSUP);
	lacks_stats = 0;
	finish();
}
END_TEST

START_TEST(test_missing_capability)
{
	struct mb_error err;

	for (unsigned i = 0; i < MB_N_CAPS; i++) {
		int rc;

		fake_kvm_init(&fake);
		fake.cap[mb_cap_infos[i].kvm_cap] = 0;
		fake_kvm_host(&fake, &host);
		rc = mb_host_check(&host, &err);
		if (mb_cap_infos[i].need == MB_CAP_REQUIRED) {
			ck_assert_int_eq(rc, -ENOTSUP);
			ck_assert_msg(strstr(err.text, mb_cap_infos[i].name) != NULL, "%s", err.text);
		} else {
			ck_assert_int_eq(rc, 0);
		}
		fake_kvm_finish(&fake);
	}
}
END_TEST

START_TEST(test_routes)
{
	struct fake_vm *fvm;
	unsigned gsi, n;

	make(1, false);
	fvm = fake_kvm_vm(&fake);
	ck_assert_int_eq(mb_vm_gsi_alloc(vm, &gsi), 0);
	ck_assert_uint_eq(gsi, MB_IOAPIC_PINS);
	ck_assert_int_eq(mb_vm_gsi_route(vm, gsi, 0xfee01000, 0x41), 0);
	ck_assert_int_eq(mb_vm_gsi_route(vm, 4, 0xfee02000, 0x42), 0);
	n = fake_kvm_n_calls(&fake, KVM_SET_GSI_ROUTING);
	ck_assert_int_eq(mb_vm_gsi_route(vm, 4, 0xfee02000, 0x42), 0); /* the same again costs nothing */
	ck_assert_uint_eq(fake_kvm_n_calls(&fake, KVM_SET_GSI_ROUTING), n);
	ck_assert_uint_eq(fvm->n_routes, 2);
	ck_assert_uint_eq(fvm->route[1].u.msi.address_lo, 0xfee01000);
	ck_assert_uint_eq(fvm->route[1].u.msi.address_hi, 0);
	mb_vm_gsi_free(vm, gsi);
	ck_assert_uint_eq(fvm->n_routes, 1);
	/* No guest reaches System Management Mode by an MSI. */
	ck_assert_int_eq(mb_vm_gsi_route(vm, 30, 0xfee03000, 0x200), 0);
	ck_assert_int_eq(mb_vm_msi_send(vm, 0xfee03000, 0x200), 0);
	ck_assert_uint_eq(fvm->n_routes, 1);
	ck_assert_uint_eq(fvm->n_msis, 0);
	ck_assert_int_eq(mb_vm_gsi_route(vm, 4096, 0xfee01000, 0x41), -EINVAL);
	for (n = 0; !mb_vm_gsi_alloc(vm, &gsi); n++)
		;
	ck_assert_uint_eq(n, 4096 - MB_IOAPIC_PINS);
	finish();
}
END_TEST

/* APIC id 0x1234: bits 7:0 where they always are, bits 14:8 in address bits 11:5. */
START_TEST(test_extended_destination)
{
	struct fake_vm *fvm;

	make(1, true);
	fvm = fake_kvm_vm(&fake);
	ck_assert_int_eq(mb_vm_msi_send(vm, 0xfee00000 | 0x34 << 12 | 0x12 << 5, 0x51), 0);
	ck_assert_uint_eq(fvm->n_msis, 1);
	ck_assert_uint_eq(fvm->msi[0].address_lo, 0xfee34000);
	ck_assert_uint_eq(fvm->msi[0].address_hi, 0x1200);
	finish();
}
END_TEST

/* Where ids are above 254 an APIC is in x2APIC mode from the start, or a guest takes none of them. */
START_TEST(test_apic_mode)
{
	const uint64_t extd = 1u << 10;
	bool x2apic = _i;

	make(1, x2apic);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		ck_assert_uint_eq(fake_vcpu(i)->sregs.apic_base & extd, x2apic ? extd : 0);
		fake_vcpu(i)->sregs.apic_base ^= extd;
	}
	ck_assert_int_eq(mb_vcpus_reset(vcpus), 0);
	for (unsigned i = 0; i < N_VCPUS; i++) {
		uint32_t id;

		memcpy(&id, fake_vcpu(i)->lapic.regs + 0x20, sizeof(id));
		ck_assert_uint_eq(id, x2apic ? i : i << 24);
		ck_assert_uint_eq(fake_vcpu(i)->sregs.apic_base & extd, x2apic ? extd : 0);
	}
	finish();
}
END_TEST

START_TEST(test_failures_leave_nothing)
{
	static const unsigned long requests[] = {KVM_CREATE_VCPU, KVM_SET_CPUID2, KVM_SET_MSRS,
		KVM_GET_LAPIC, KVM_GET_MSR_INDEX_LIST};
	struct mb_vm_config vc = {.n_views = 1};
	struct mb_vcpus_config config = {.n_vcpus = N_VCPUS, .ops = &ops};
	struct mb_error err;
	struct mb_vcpus *none;

	fake_kvm_init(&fake);
	fake_kvm_host(&fake, &host);
	fake_kvm_fail(&fake, KVM_CREATE_VM, -ENOMEM, 0);
	ck_assert_int_eq(mb_vm_create(&host, &vc, &vm, &err), -ENOMEM);
	fake_kvm_fail(&fake, KVM_CREATE_VM, 0, 0);
	fake_kvm_finish(&fake);

	fake_kvm_init(&fake);
	fake_kvm_host(&fake, &host);
	fake_kvm_fail(&fake, requests[_i], -ENOMEM, _i == 0 ? 3 : 0);
	ck_assert_int_eq(mb_vm_create(&host, &vc, &vm, &err), 0);
	ck_assert_int_eq(mb_vcpus_create(vm, &config, &none, &err), -ENOMEM);
	ck_assert_msg(strstr(err.text, "vCPU") != NULL, "%s", err.text);
	mb_vm_destroy(vm);
	fake_kvm_finish(&fake);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("views");
	TCase *tc = tcase_create("views");

	tcase_add_loop_test(tc, test_every_view_has_all_of_ram, 0, 3);
	tcase_add_loop_test(tc, test_memory_is_local, 0, 3);
	tcase_add_loop_test(tc, test_enters_its_view_after_sipi, 0, 3);
	tcase_add_test(tc, test_enters_its_view_at_a_direct_start);
	tcase_add_test(tc, test_nothing_for_rsm);
	tcase_add_loop_test(tc, test_leaves_its_view_to_go_offline, 0, 3);
	tcase_add_test(tc, test_changes_views);
	tcase_add_test(tc, test_rsm_is_no_triple_fault);
	tcase_add_test(tc, test_no_second_view);
	tcase_add_test(tc, test_faults);
	tcase_add_loop_test(tc, test_no_statistics, 0, 3);
	tcase_add_test(tc, test_missing_capability);
	tcase_add_test(tc, test_routes);
	tcase_add_test(tc, test_extended_destination);
	tcase_add_loop_test(tc, test_apic_mode, 0, 2);
	tcase_add_loop_test(tc, test_failures_leave_nothing, 0, 5);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
