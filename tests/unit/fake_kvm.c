// SPDX-License-Identifier: Apache-2.0
#include "fake_kvm.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned number(unsigned long request)
{
	return _IOC_NR(request);
}

/* ---- VM ---- */

static int set_routes(
	struct fake_kvm *fake, struct fake_vm *vm, const struct kvm_irq_routing *table)
{
	if (table->nr > FAKE_MAX_FDS)
		return -EINVAL;
	for (unsigned i = 0; i < table->nr; i++) {
		/* KVM takes other addresses as well, but nothing good comes of it. */
		if (table->entries[i].type == KVM_IRQ_ROUTING_MSI &&
			table->entries[i].u.msi.address_lo >> 20 != 0xfee)
			fake->n_errors++;
		vm->route[i] = table->entries[i];
	}
	vm->n_routes = table->nr;
	return 0;
}

static int set_irqfd(struct fake_kvm *fake, struct fake_vm *vm, const struct kvm_irqfd *arg)
{
	for (unsigned i = 0; i < vm->n_irqfds; i++) {
		if (vm->irqfd[i].of_fd != (int)arg->fd)
			continue;
		if (!(arg->flags & KVM_IRQFD_FLAG_DEASSIGN)) {
			fake->n_errors++;
			return -EBUSY;
		}
		close(vm->irqfd[i].fd);
		vm->irqfd[i] = vm->irqfd[--vm->n_irqfds];
		return 0;
	}
	if (arg->flags & KVM_IRQFD_FLAG_DEASSIGN) {
		fake->n_errors++; /* KVM itself is silent about it */
		return 0;
	}
	if (vm->n_irqfds == FAKE_MAX_FDS)
		return -ENOMEM;
	vm->irqfd[vm->n_irqfds].of_fd = (int)arg->fd;
	vm->irqfd[vm->n_irqfds].fd = dup((int)arg->fd);
	vm->irqfd[vm->n_irqfds++].gsi = arg->gsi;
	return 0;
}

static int set_ioeventfd(struct fake_kvm *fake, struct fake_vm *vm, const struct kvm_ioeventfd *arg)
{
	bool pio = arg->flags & KVM_IOEVENTFD_FLAG_PIO;

	for (unsigned i = 0; i < vm->n_ioeventfds; i++) {
		if (vm->ioeventfd[i].addr != arg->addr || vm->ioeventfd[i].pio != pio)
			continue;
		if (!(arg->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)) {
			fake->n_errors++;
			return -EEXIST;
		}
		if (vm->ioeventfd[i].of_fd != arg->fd || vm->ioeventfd[i].len != arg->len)
			continue;
		close(vm->ioeventfd[i].fd);
		vm->ioeventfd[i] = vm->ioeventfd[--vm->n_ioeventfds];
		return 0;
	}
	if (arg->flags & KVM_IOEVENTFD_FLAG_DEASSIGN) {
		fake->n_errors++;
		return -ENOENT;
	}
	if (vm->n_ioeventfds == FAKE_MAX_FDS)
		return -ENOSPC;
	vm->ioeventfd[vm->n_ioeventfds].fd = dup(arg->fd);
	vm->ioeventfd[vm->n_ioeventfds].of_fd = arg->fd;
	vm->ioeventfd[vm->n_ioeventfds].addr = arg->addr;
	vm->ioeventfd[vm->n_ioeventfds].len = arg->len;
	vm->ioeventfd[vm->n_ioeventfds++].pio = pio;
	return 0;
}

static int set_memslot(struct fake_vm *vm, const struct kvm_userspace_memory_region *arg)
{
	for (unsigned i = 0; i < vm->n_memslots; i++) {
		if (vm->memslot[i].slot != arg->slot)
			continue;
		if (arg->memory_size)
			vm->memslot[i] = *arg;
		else
			vm->memslot[i] = vm->memslot[--vm->n_memslots];
		return 0;
	}
	if (!arg->memory_size)
		return 0;
	if (vm->n_memslots == FAKE_MAX_MEMSLOTS)
		return -ENOMEM;
	vm->memslot[vm->n_memslots++] = *arg;
	return 0;
}

/* One range of one MSR whose writes are denied is all that is understood. */
static int set_msr_filter(struct fake_vm *vm, const struct kvm_msr_filter *filter)
{
	const struct kvm_msr_filter_range *range = &filter->ranges[0];

	if (filter->flags != KVM_MSR_FILTER_DEFAULT_ALLOW || range->flags != KVM_MSR_FILTER_WRITE ||
		range->nmsrs != 1 || range->bitmap[0] & 1)
		return -EINVAL;
	vm->watched_msr = range->base;
	return 0;
}

static int create_vcpu(struct fake_vm *vm, unsigned id)
{
	struct fake_vcpu *vcpu;
	int fd;

	if (vm->n_vcpus == FAKE_MAX_VCPUS)
		return -EINVAL;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		if (vm->vcpu[i]->id == id)
			return -EEXIST;
	}
	vcpu = calloc(1, sizeof(*vcpu));
	ck_assert_ptr_nonnull(vcpu);
	fd = memfd_create("fake-vcpu", MFD_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, FAKE_RUN_BYTES), 0);
	vcpu->run = mmap(NULL, FAKE_RUN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ck_assert(vcpu->run != MAP_FAILED);
	vcpu->fd = fd;
	vcpu->id = id;
	vcpu->mp_state.mp_state = id ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE;
	vm->vcpu[vm->n_vcpus++] = vcpu;
	return fd;
}

static int vm_ioctl(struct fake_kvm *fake, struct fake_vm *vm, unsigned long request, void *arg)
{
	switch (request) {
	case KVM_SET_GSI_ROUTING:
		return set_routes(fake, vm, arg);
	case KVM_IRQFD:
		return set_irqfd(fake, vm, arg);
	case KVM_IOEVENTFD:
		return set_ioeventfd(fake, vm, arg);
	case KVM_SIGNAL_MSI:
		if (vm->n_msis < FAKE_MAX_FDS)
			vm->msi[vm->n_msis++] = *(const struct kvm_msi *)arg;
		return 1;
	case KVM_SET_USER_MEMORY_REGION:
		return set_memslot(vm, arg);
	case KVM_X86_SET_MSR_FILTER:
		return set_msr_filter(vm, arg);
	case KVM_CREATE_VCPU:
		return create_vcpu(vm, (unsigned)(unsigned long)arg);
	case KVM_ENABLE_CAP:
	case KVM_SET_TSS_ADDR:
	case KVM_SET_IDENTITY_MAP_ADDR:
	case KVM_SET_CLOCK:
	case KVM_GET_CLOCK:
		return 0;
	default:
		fake->n_errors++;
		return -ENOTTY;
	}
}

/* ---- vCPU ---- */

struct state {
	unsigned long get, set;
	void *at;
	size_t bytes;
};

static int vcpu_state(struct fake_kvm *fake, struct fake_vcpu *vcpu, unsigned long request,
	void *arg, bool *found)
{
	const struct state states[] = {
		{KVM_GET_REGS, KVM_SET_REGS, &vcpu->regs, sizeof(vcpu->regs)},
		{KVM_GET_SREGS, KVM_SET_SREGS, &vcpu->sregs, sizeof(vcpu->sregs)},
		{KVM_GET_MP_STATE, KVM_SET_MP_STATE, &vcpu->mp_state, sizeof(vcpu->mp_state)},
		{KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, &vcpu->events, sizeof(vcpu->events)},
		{KVM_GET_LAPIC, KVM_SET_LAPIC, &vcpu->lapic, sizeof(vcpu->lapic)},
		{KVM_GET_XSAVE, KVM_SET_XSAVE, vcpu->xsave, sizeof(vcpu->xsave)},
#ifdef KVM_GET_XSAVE2
		{KVM_GET_XSAVE2, KVM_SET_XSAVE, vcpu->xsave, sizeof(vcpu->xsave)},
#endif
		{KVM_GET_XCRS, KVM_SET_XCRS, &vcpu->xcrs, sizeof(vcpu->xcrs)},
		{KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, &vcpu->debugregs, sizeof(vcpu->debugregs)},
	};

	for (unsigned i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
		*found = true;
		if (request == states[i].get) {
			memcpy(arg, states[i].at, states[i].bytes);
			return 0;
		}
		if (request == states[i].set) {
			if (request == KVM_SET_VCPU_EVENTS && !vcpu->events.smi.smm)
				vcpu->smm_smbase = vcpu->smbase;
			if (request == KVM_SET_VCPU_EVENTS && vcpu->completing &&
				((const struct kvm_vcpu_events *)arg)->smi.smm !=
					vcpu->events.smi.smm)
				fake->n_errors++;
			memcpy(states[i].at, arg, states[i].bytes);
			return 0;
		}
	}
	*found = false;
	return -ENOTTY;
}

/* As KVM: how many it took before the first that it refuses. */
static int set_msrs(struct fake_kvm *fake, struct fake_vcpu *vcpu, const struct kvm_msrs *msrs)
{
	for (unsigned i = 0; i < msrs->nmsrs; i++) {
		if (msrs->entries[i].index == 0x4b564d01)
			vcpu->clock = msrs->entries[i].data;
		if (msrs->entries[i].index != 0x9e)
			continue;
		if (fake->no_smbase)
			return (int)i;
		vcpu->smbase = msrs->entries[i].data;
	}
	return (int)msrs->nmsrs;
}

const char *const fake_kvm_pf[FAKE_N_PF] = {
	"pf_guest", "exits", "pf_taken", "pf_fixed", "pf_emulate", "pf_spurious"};

/* api.rst 4.133: here with the counters before their descriptors, which may be. */
static int stats_fd(const struct fake_kvm *fake, struct fake_vcpu *vcpu)
{
	enum { NAME = 16, DATA = FAKE_PF_OFFSET, DESC = DATA + FAKE_N_PF * 8 };
	const uint64_t none[FAKE_N_PF] = {0};
	struct kvm_stats_header header = {
		.name_size = NAME, .num_desc = FAKE_N_PF, .desc_offset = DESC, .data_offset = DATA};
	int fd = memfd_create("fake-stats", MFD_CLOEXEC);

	ck_assert_int_eq(pwrite(fd, &header, sizeof(header), 0), sizeof(header));
	ck_assert_int_eq(pwrite(fd, none, sizeof(none), DATA), sizeof(none));
	for (unsigned i = 0; i < FAKE_N_PF; i++) {
		const struct kvm_stats_desc desc = {.size = 1, .offset = 8 * i};
		char one[sizeof(desc) + NAME] = {0};

		memcpy(one, &desc, sizeof(desc));
		snprintf(one + sizeof(desc), NAME, "%s", fake->no_pf ? "other" : fake_kvm_pf[i]);
		ck_assert_int_eq(
			pwrite(fd, one, sizeof(one), DESC + (off_t)(i * sizeof(one))), sizeof(one));
	}
	vcpu->stats_fd = fd;
	return fd;
}

static int vcpu_ioctl(
	struct fake_kvm *fake, struct fake_vcpu *vcpu, unsigned long request, void *arg)
{
	bool found;
	int rc = vcpu_state(fake, vcpu, request, arg, &found);

	if (found)
		return rc;
	switch (request) {
	case KVM_SET_CPUID2:
		vcpu->n_cpuid = ((const struct kvm_cpuid2 *)arg)->nent;
		return 0;
	case KVM_SET_MSRS:
		return set_msrs(fake, vcpu, arg);
	case KVM_GET_MSRS:
		return (int)((const struct kvm_msrs *)arg)->nmsrs;
	case KVM_GET_TSC_KHZ:
		return 2000000;
	case KVM_GET_STATS_FD:
		return stats_fd(fake, vcpu);
	case KVM_TRANSLATE:
		((struct kvm_translation *)arg)->valid = 0;
		return 0;
	case KVM_SET_SIGNAL_MASK:
	case KVM_KVMCLOCK_CTRL:
	case KVM_ENABLE_CAP:
	case KVM_SMI:
	case KVM_NMI:
		return 0;
	default:
		fake->n_errors++;
		return -ENOTTY;
	}
}

/* ---- system ---- */

static int create_vm(struct fake_kvm *fake)
{
	struct fake_vm *vm;

	if (fake->n_vms == FAKE_MAX_VMS)
		return -EMFILE;
	vm = calloc(1, sizeof(*vm));
	ck_assert_ptr_nonnull(vm);
	vm->fd = memfd_create("fake-vm", MFD_CLOEXEC);
	ck_assert_int_ge(vm->fd, 0);
	fake->vm[fake->n_vms++] = vm;
	return vm->fd;
}

static int supported_cpuid(struct kvm_cpuid2 *list)
{
	static const struct kvm_cpuid_entry2 entries[] = {
		{.function = 0, .eax = 1},
		{.function = 1, .ecx = 1u << 31},
		{.function = 0x80000000u, .eax = 0x80000000u},
	};
	unsigned n = sizeof(entries) / sizeof(entries[0]);

	if (list->nent < n)
		return -E2BIG;
	list->nent = n;
	memcpy(list->entries, entries, sizeof(entries));
	return 0;
}

static int msr_list(struct kvm_msr_list *list)
{
	unsigned room = list->nmsrs;

	list->nmsrs = 1;
	if (!room)
		return -E2BIG;
	list->indices[0] = 0xc0000080u; /* EFER */
	return 0;
}

static int system_ioctl(struct fake_kvm *fake, unsigned long request, void *arg)
{
	unsigned long cap = (unsigned long)arg;

	switch (request) {
	case KVM_GET_API_VERSION:
		return KVM_API_VERSION;
	case KVM_CHECK_EXTENSION:
		return cap < FAKE_N_CAPS ? fake->cap[cap] : 0;
	case KVM_GET_VCPU_MMAP_SIZE:
		return FAKE_RUN_BYTES;
	case KVM_CREATE_VM:
		return create_vm(fake);
	case KVM_GET_SUPPORTED_CPUID:
		return supported_cpuid(arg);
	case KVM_GET_MSR_INDEX_LIST:
		return msr_list(arg);
	default:
		fake->n_errors++;
		return -ENOTTY;
	}
}

static int locked_ioctl(
	struct fake_kvm *fake, int fd, unsigned long request, void *arg, struct fake_vcpu **runs)
{
	unsigned nr = number(request);

	fake->n_calls[nr]++;
	if (fake->fail_rc[nr]) {
		if (!fake->fail_after[nr])
			return fake->fail_rc[nr];
		fake->fail_after[nr]--;
	}
	if (fd == fake->kvm_fd)
		return system_ioctl(fake, request, arg);
	/* Newest first: a number may have been used again after an older VM was closed. */
	for (unsigned i = fake->n_vms; i-- > 0;) {
		struct fake_vm *vm = fake->vm[i];

		if (fd == vm->fd)
			return vm_ioctl(fake, vm, request, arg);
		for (unsigned j = 0; j < vm->n_vcpus; j++) {
			if (fd != vm->vcpu[j]->fd)
				continue;
			if (request != KVM_RUN)
				return vcpu_ioctl(fake, vm->vcpu[j], request, arg);
			vm->vcpu[j]->n_runs++;
			vm->vcpu[j]->completing = false;
			*runs = vm->vcpu[j];
			return 0;
		}
	}
	fake->n_errors++;
	return -EBADF;
}

static int fake_ioctl(void *ctx, int fd, unsigned long request, void *arg)
{
	struct fake_kvm *fake = ctx;
	struct fake_vcpu *runs = NULL;
	int rc;

	pthread_mutex_lock(&fake->lock);
	rc = locked_ioctl(fake, fd, request, arg, &runs);
	pthread_mutex_unlock(&fake->lock);
	if (!runs)
		return rc;
	return fake->run ? fake->run(fake->run_ctx, runs) : -EINTR;
}

/* ---- for tests ---- */

void fake_kvm_init(struct fake_kvm *fake)
{
	memset(fake, 0, sizeof(*fake));
	fake->ops.ioctl = fake_ioctl;
	fake->kvm_fd = memfd_create("fake-kvm", MFD_CLOEXEC);
	ck_assert_int_ge(fake->kvm_fd, 0);
	pthread_mutex_init(&fake->lock, NULL);
	for (int i = 0; i < MB_N_CAPS; i++)
		fake->cap[mb_cap_infos[i].kvm_cap] = 1;
	fake->cap[KVM_CAP_MULTI_ADDRESS_SPACE] = 2;
	fake->cap[KVM_CAP_NR_VCPUS] = 64;
	fake->cap[KVM_CAP_MAX_VCPUS] = 1024;
	fake->cap[KVM_CAP_MAX_VCPU_ID] = 4096;
	fake->cap[KVM_CAP_NR_MEMSLOTS] = 32764;
	fake->cap[KVM_CAP_XSAVE2] = sizeof(((struct fake_vcpu *)0)->xsave);
}

void fake_kvm_finish(struct fake_kvm *fake)
{
	for (unsigned i = 0; i < fake->n_vms; i++) {
		struct fake_vm *vm = fake->vm[i];

		for (unsigned j = 0; j < vm->n_irqfds; j++)
			close(vm->irqfd[j].fd);
		for (unsigned j = 0; j < vm->n_ioeventfds; j++)
			close(vm->ioeventfd[j].fd);
		for (unsigned j = 0; j < vm->n_vcpus; j++) {
			munmap(vm->vcpu[j]->run, FAKE_RUN_BYTES);
			free(vm->vcpu[j]);
		}
		free(vm);
	}
	close(fake->kvm_fd);
	pthread_mutex_destroy(&fake->lock);
}

void fake_kvm_host(struct fake_kvm *fake, struct mb_host *host)
{
	struct mb_error err;
	int rc = mb_host_init(host, &fake->ops, fake, fake->kvm_fd, &err);

	ck_assert_msg(!rc, "mb_host_init: %s", rc ? err.text : "");
}

unsigned fake_kvm_n_calls(struct fake_kvm *fake, unsigned long request)
{
	unsigned n;

	pthread_mutex_lock(&fake->lock);
	n = fake->n_calls[number(request)];
	pthread_mutex_unlock(&fake->lock);
	return n;
}

void fake_kvm_fail(struct fake_kvm *fake, unsigned long request, int rc, unsigned after)
{
	pthread_mutex_lock(&fake->lock);
	fake->fail_rc[number(request)] = rc;
	fake->fail_after[number(request)] = after;
	pthread_mutex_unlock(&fake->lock);
}

struct fake_vm *fake_kvm_vm(struct fake_kvm *fake)
{
	return fake->n_vms ? fake->vm[fake->n_vms - 1] : NULL;
}

static bool is_message(uint32_t lo, uint32_t hi, uint32_t d, uint64_t addr, uint32_t data)
{
	return (lo | (uint64_t)hi << 32) == addr && d == data;
}

static uint64_t take_eventfd(int fd)
{
	uint64_t n = 0;

	/* Non-blocking: nothing to read is no interrupt. */
	return read(fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

uint64_t fake_kvm_take_msis(struct fake_kvm *fake, uint64_t addr, uint32_t data)
{
	struct fake_vm *vm = fake_kvm_vm(fake);
	uint64_t n = 0;

	pthread_mutex_lock(&fake->lock);
	for (unsigned i = 0; i < vm->n_routes; i++) {
		const struct kvm_irq_routing_entry *e = &vm->route[i];

		if (e->type != KVM_IRQ_ROUTING_MSI ||
			!is_message(e->u.msi.address_lo, e->u.msi.address_hi, e->u.msi.data, addr,
				data))
			continue;
		for (unsigned j = 0; j < vm->n_irqfds; j++) {
			if (vm->irqfd[j].gsi == e->gsi)
				n += take_eventfd(vm->irqfd[j].fd);
		}
	}
	for (unsigned i = 0; i < vm->n_msis;) {
		const struct kvm_msi *m = &vm->msi[i];

		if (is_message(m->address_lo, m->address_hi, m->data, addr, data)) {
			n++;
			vm->msi[i] = vm->msi[--vm->n_msis];
		} else {
			i++;
		}
	}
	pthread_mutex_unlock(&fake->lock);
	return n;
}

bool fake_kvm_guest_write(struct fake_kvm *fake, bool pio, uint64_t addr, unsigned len)
{
	struct fake_vm *vm = fake_kvm_vm(fake);
	bool taken = false;

	pthread_mutex_lock(&fake->lock);
	for (unsigned i = 0; i < vm->n_ioeventfds; i++) {
		uint64_t one = 1;

		if (vm->ioeventfd[i].addr != addr || vm->ioeventfd[i].pio != pio ||
			(vm->ioeventfd[i].len && vm->ioeventfd[i].len != len))
			continue;
		taken = write(vm->ioeventfd[i].fd, &one, sizeof(one)) == sizeof(one);
		break;
	}
	pthread_mutex_unlock(&fake->lock);
	return taken;
}
