// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <linux/kvm.h>
#include <mirrorball/range.h>
#include <mirrorball/vm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "msr.h"

#define N_GSIS 4096u /* KVM_MAX_IRQ_ROUTES */

/* Three pages for Intel's real-mode TSS and one for its identity map: above all RAM below 4 GiB. */
#define KVM_TSS_GPA	 0xfffbd000ul
#define KVM_IDENTITY_GPA 0xfffbc000ull

struct slot {
	unsigned view, index;
	struct mb_memslot ms;
};

struct route {
	uint64_t addr; /* 0: none */
	uint32_t data;
	bool allocated;
};

struct mb_vm {
	const struct mb_host *host;
	int fd;
	unsigned n_views;
	bool x2apic_ids;

	/* Protects what follows. Leaf: nothing is locked under it. */
	pthread_mutex_t lock;
	struct slot *slot;
	unsigned n_slots;
	struct route route[N_GSIS];
	unsigned n_gsis_used; /* no route at or above */
};

static int vm_ioctl(const struct mb_vm *vm, unsigned long request, void *arg)
{
	return mb_host_ioctl(vm->host, vm->fd, request, arg);
}

static int enable_cap(struct mb_vm *vm, uint32_t cap, uint64_t arg0)
{
	struct kvm_enable_cap enable = {.cap = cap, .args = {arg0}};

	return vm_ioctl(vm, KVM_ENABLE_CAP, &enable);
}

/*
 * A guest's write to this MSR leaves the kernel: it tells that a vCPU is about to go offline, or is back
 * (kvm/vcpu_view.c). Without a second view nobody needs to know.
 */
static int watch_clocks(struct mb_vm *vm)
{
	uint64_t none = 0; /* a bit for each MSR of the range that is allowed */
	struct kvm_msr_filter filter = {
		.flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
		.ranges = {{.flags = KVM_MSR_FILTER_WRITE, .nmsrs = 1, .base = MB_MSR_KVM_SYSTEM_TIME_NEW,
			.bitmap = (uint8_t *)&none}},
	};
	int rc;

	if (vm->n_views == 1 || !vm->host->cap[MB_CAP_X86_MSR_FILTER])
		return 0;
	rc = enable_cap(vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER);
	return rc ? rc : vm_ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter);
}

int mb_vm_create(const struct mb_host *host, const struct mb_vm_config *config, struct mb_vm **out,
	struct mb_error *err)
{
	uint64_t identity_gpa = KVM_IDENTITY_GPA;
	struct mb_vm *vm;
	int rc;

	if (!config->n_views || config->n_views > host->n_views)
		return mb_error_set(err, EINVAL, "%u views of memory: this host's KVM offers %u",
			config->n_views, host->n_views);
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return mb_error_set(err, ENOMEM, "virtual machine: out of memory");
	vm->host = host;
	vm->n_views = config->n_views;
	vm->x2apic_ids = config->x2apic_ids;
	pthread_mutex_init(&vm->lock, NULL);

	do {
		vm->fd = mb_host_ioctl(host, host->kvm_fd, KVM_CREATE_VM, NULL);
	} while (vm->fd == -EINTR);
	if (vm->fd < 0) {
		rc = mb_error_set(err, -vm->fd, "KVM: cannot create a virtual machine: %s%s",
			strerror(-vm->fd),
			vm->fd == -EBUSY ? "; another hypervisor has the processor: end its machines, or"
					   " unload it"
					 : "");
		goto err_vm;
	}
	/* Intel only, harmless elsewhere (api.rst 4.49, 4.40): before the first vCPU. */
	rc = vm_ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_gpa);
	if (!rc)
		rc = vm_ioctl(vm, KVM_SET_TSS_ADDR, (void *)KVM_TSS_GPA);
	if (rc) {
		rc = mb_error_set(err, -rc, "KVM: cannot place its own pages: %s", strerror(-rc));
		goto err_fd;
	}
	rc = enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, MB_IOAPIC_PINS);
	if (rc) {
		rc = mb_error_set(err, -rc, "KVM: no split interrupt controller: %s", strerror(-rc));
		goto err_fd;
	}
	if (config->x2apic_ids) {
		rc = enable_cap(vm, KVM_CAP_X2APIC_API,
			KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
		if (rc) {
			rc = mb_error_set(err, -rc, "KVM: no 32-bit APIC ids: %s", strerror(-rc));
			goto err_fd;
		}
	}
	rc = watch_clocks(vm);
	if (rc) {
		rc = mb_error_set(err, -rc, "KVM: cannot watch an MSR: %s", strerror(-rc));
		goto err_fd;
	}
	*out = vm;
	return 0;

err_fd:
	close(vm->fd);
err_vm:
	pthread_mutex_destroy(&vm->lock);
	free(vm);
	return rc;
}

void mb_vm_destroy(struct mb_vm *vm)
{
	if (!vm)
		return;
	close(vm->fd);
	pthread_mutex_destroy(&vm->lock);
	free(vm->slot);
	free(vm);
}

int mb_vm_fd(const struct mb_vm *vm)
{
	return vm->fd;
}

bool mb_vm_x2apic_ids(const struct mb_vm *vm)
{
	return vm->x2apic_ids;
}

const struct mb_host *mb_vm_host(const struct mb_vm *vm)
{
	return vm->host;
}

unsigned mb_vm_n_views(const struct mb_vm *vm)
{
	return vm->n_views;
}

/* Remembers the slot; room has been made. Caller holds the lock. */
static void remember_slot(struct mb_vm *vm, unsigned view, unsigned index, const struct mb_memslot *ms)
{
	for (unsigned i = 0; i < vm->n_slots; i++) {
		if (vm->slot[i].view == view && vm->slot[i].index == index) {
			if (ms->len_bytes)
				vm->slot[i].ms = *ms;
			else
				vm->slot[i] = vm->slot[--vm->n_slots];
			return;
		}
	}
	if (ms->len_bytes)
		vm->slot[vm->n_slots++] = (struct slot){.view = view, .index = index, .ms = *ms};
}

int mb_vm_set_memslot(struct mb_vm *vm, unsigned view, unsigned slot, const struct mb_memslot *ms)
{
	struct kvm_userspace_memory_region region = {
		.slot = view << 16 | slot,
		.flags = ms->readonly ? KVM_MEM_READONLY : 0,
		.guest_phys_addr = ms->gpa,
		.memory_size = ms->len_bytes,
		.userspace_addr = (uintptr_t)ms->hva,
	};
	struct slot *grown;
	int rc;

	if (view >= vm->n_views || slot >= vm->host->max_memslots || slot > UINT16_MAX)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	grown = realloc(vm->slot, (vm->n_slots + 1) * sizeof(*grown));
	if (grown) {
		vm->slot = grown;
		rc = vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
		if (!rc)
			remember_slot(vm, view, slot, ms);
	} else {
		rc = -ENOMEM;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

void *mb_vm_translate(const struct mb_vm *vm, unsigned view, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < vm->n_slots; i++) {
		const struct slot *s = &vm->slot[i];

		if (s->view == view && mb_range_inside(gpa, len, s->ms.gpa, s->ms.len_bytes))
			return (char *)s->ms.hva + (gpa - s->ms.gpa);
	}
	return NULL;
}

int mb_vm_set_ioeventfd(struct mb_vm *vm, const struct mb_ioeventfd *ioe, bool assign)
{
	struct kvm_ioeventfd arg = {
		.addr = ioe->addr,
		.len = ioe->len,
		.fd = ioe->fd,
		.flags = (ioe->pio ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			(assign ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
	};

	return vm_ioctl(vm, KVM_IOEVENTFD, &arg);
}

int mb_vm_gsi_alloc(struct mb_vm *vm, unsigned *gsi)
{
	int rc = -ENOSPC;

	pthread_mutex_lock(&vm->lock);
	for (unsigned i = MB_IOAPIC_PINS; i < N_GSIS; i++) {
		if (vm->route[i].allocated)
			continue;
		vm->route[i] = (struct route){.allocated = true};
		*gsi = i;
		rc = 0;
		break;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

void mb_vm_gsi_free(struct mb_vm *vm, unsigned gsi)
{
	if (gsi < MB_IOAPIC_PINS || gsi >= N_GSIS)
		return;
	mb_vm_gsi_route(vm, gsi, 0, 0);
	pthread_mutex_lock(&vm->lock);
	vm->route[gsi].allocated = false;
	pthread_mutex_unlock(&vm->lock);
}

/*
 * The destination of an MSI as KVM takes it. With 32-bit APIC ids, address_hi bits 31:8 are the
 * destination's bits 31:8 (api.rst 4.52), and the guest has put bits 14:8 into address bits 11:5
 * (KVM_FEATURE_MSI_EXT_DEST_ID, cpuid.rst).
 */
static void split_address(const struct mb_vm *vm, uint64_t addr, uint32_t *lo, uint32_t *hi)
{
	*lo = (uint32_t)addr;
	*hi = (uint32_t)(addr >> 32);
	if (vm->x2apic_ids) {
		*hi = (*lo >> 5 & 0x7f) << 8;
		*lo &= ~(0x7fu << 5);
	}
}

/*
 * A system management interrupt would take a vCPU into System Management Mode, which is the second
 * view's and no guest's business.
 */
static bool is_smi(uint32_t msi_data)
{
	return (msi_data >> 8 & 7) == 2; /* delivery mode, SDM vol. 3 11.11.2 */
}

/* Hands the whole table to KVM. Caller holds the lock. */
static int commit_routes(struct mb_vm *vm)
{
	struct kvm_irq_routing *table;
	unsigned n = 0;
	int rc;

	table = calloc(1, sizeof(*table) + vm->n_gsis_used * sizeof(table->entries[0]));
	if (!table)
		return -ENOMEM;
	for (unsigned gsi = 0; gsi < vm->n_gsis_used; gsi++) {
		const struct route *r = &vm->route[gsi];
		struct kvm_irq_routing_entry *e = &table->entries[n];

		if (!r->addr)
			continue;
		e->gsi = gsi;
		e->type = KVM_IRQ_ROUTING_MSI;
		split_address(vm, r->addr, &e->u.msi.address_lo, &e->u.msi.address_hi);
		e->u.msi.data = r->data;
		n++;
	}
	table->nr = n;
	rc = vm_ioctl(vm, KVM_SET_GSI_ROUTING, table);
	free(table);
	return rc;
}

int mb_vm_gsi_route(struct mb_vm *vm, unsigned gsi, uint64_t msi_addr, uint32_t msi_data)
{
	int rc = 0;

	if (gsi >= N_GSIS)
		return -EINVAL;
	if (is_smi(msi_data))
		msi_addr = 0;
	pthread_mutex_lock(&vm->lock);
	/* Each commit makes KVM wait for a grace period: only when something changed. */
	if (vm->route[gsi].addr != msi_addr || (msi_addr && vm->route[gsi].data != msi_data)) {
		struct route old = vm->route[gsi];

		vm->route[gsi].addr = msi_addr;
		vm->route[gsi].data = msi_data;
		if (gsi >= vm->n_gsis_used)
			vm->n_gsis_used = gsi + 1;
		rc = commit_routes(vm);
		if (rc)
			vm->route[gsi] = old;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

int mb_vm_gsi_irqfd(struct mb_vm *vm, unsigned gsi, int fd, bool bind)
{
	struct kvm_irqfd irqfd = {
		.fd = (uint32_t)fd,
		.gsi = gsi,
		.flags = bind ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};

	return vm_ioctl(vm, KVM_IRQFD, &irqfd);
}

int mb_vm_msi_send(struct mb_vm *vm, uint64_t msi_addr, uint32_t msi_data)
{
	struct kvm_msi msi = {.data = msi_data};
	int rc;

	if (is_smi(msi_data))
		return 0;
	split_address(vm, msi_addr, &msi.address_lo, &msi.address_hi);
	rc = vm_ioctl(vm, KVM_SIGNAL_MSI, &msi);
	return rc < 0 ? rc : 0;
}
