// SPDX-License-Identifier: Apache-2.0
#include "msix.h"

#include <assert.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <mirrorball/pci.h>
#include <mirrorball/range.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define N_SLOTS	   32u
#define CFG_BYTES  256u /* the extended space behind it has no capabilities and reads 0 */
#define FIRST_CAP  0x40u
#define VENDOR_HDR 2u /* bytes of a capability that the guest never writes: id, next */

/* PCI ID of a generic PCI Express host bridge, which no guest has a quirk for. */
#define BRIDGE_VENDOR 0x1b36u
#define BRIDGE_DEVICE 0x0008u

/* Configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2). */
#define PORT_ADDRESS   0xcf8u
#define PORT_LEN       8u
#define ADDRESS_ENABLE (1u << 31)

struct config {
	uint8_t value[CFG_BYTES];
	uint8_t writable[CFG_BYTES]; /* bits that the guest may change */
};

struct hook {
	unsigned offset, len; /* len 0: none */
	void (*read)(void *dev, unsigned offset, void *data, unsigned len);
	void (*write)(void *dev, unsigned offset, const void *data, unsigned len);
};

struct mb_pci_dev {
	struct mb_pci_bus *pci;
	struct mb_pci_config config;
	unsigned slot;
	struct mb_msix *msix; /* NULL: no vectors */
	struct hook hook;

	/* Below: protected by the bus's configuration lock. */
	struct config cfg;
	uint8_t power_on[CFG_BYTES];
	unsigned last_cap, next_cap; /* offset of the last capability, 0: none; of the next */
	unsigned msix_cap;
	struct mb_region bar;
	bool mapped; /* bar is on the bus */
};

struct mb_pci_bus {
	struct mb_bus *bus;
	struct mb_vm *vm;
	struct mb_region ecam, ports;
	uint32_t address; /* last write to 0xcf8; atomic */

	pthread_mutex_t
		lock; /* configuration: protects what follows and all functions' registers */
	struct mb_pci_dev *dev[N_SLOTS];
	struct config bridge;
};

static void put16(struct config *cfg, unsigned at, uint16_t value)
{
	memcpy(&cfg->value[at], &value, sizeof(value));
}

static void put32(struct config *cfg, unsigned at, uint32_t value)
{
	memcpy(&cfg->value[at], &value, sizeof(value));
}

static uint16_t get16(const struct config *cfg, unsigned at)
{
	return (uint16_t)mb_bus_value(&cfg->value[at], 2);
}

static uint32_t get32(const struct config *cfg, unsigned at)
{
	return (uint32_t)mb_bus_value(&cfg->value[at], 4);
}

/* ---- BAR ---- */

static bool wants_memory(const struct mb_pci_dev *pdev)
{
	return get16(&pdev->cfg, PCI_COMMAND) & PCI_COMMAND_MEMORY;
}

static bool is_master(const struct mb_pci_dev *pdev)
{
	return get16(&pdev->cfg, PCI_COMMAND) & PCI_COMMAND_MASTER;
}

static uint64_t bar_base(const struct mb_pci_dev *pdev)
{
	return get32(&pdev->cfg, PCI_BASE_ADDRESS_0) & ~(pdev->config.bar_bytes - 1u);
}

static void moved(struct mb_pci_dev *pdev, bool enabled)
{
	if (pdev->config.ops->bar_moved)
		pdev->config.ops->bar_moved(pdev->config.dev, pdev->bar.base, enabled);
}

static void unmap_bar(struct mb_pci_dev *pdev)
{
	if (!pdev->mapped)
		return;
	moved(pdev, false);
	mb_bus_remove(pdev->pci->bus, &pdev->bar);
	pdev->mapped = false;
}

/*
 * Puts the BAR where its registers say. The guest may say anything: while something else answers
 * there this BAR does not, and it is tried again whenever another BAR goes away.
 */
static void map_bar(struct mb_pci_dev *pdev)
{
	if (pdev->mapped || !wants_memory(pdev))
		return;
	pdev->bar.base = bar_base(pdev);
	if (mb_bus_add(pdev->pci->bus, &pdev->bar))
		return;
	pdev->mapped = true;
	moved(pdev, true);
}

/* Command or BAR was written. Caller holds the configuration lock. */
static void update_bar(struct mb_pci_dev *pdev)
{
	if (pdev->mapped && (!wants_memory(pdev) || pdev->bar.base != bar_base(pdev))) {
		unmap_bar(pdev);
		map_bar(pdev);
		for (unsigned i = 0; i < N_SLOTS; i++) {
			if (pdev->pci->dev[i])
				map_bar(pdev->pci->dev[i]);
		}
	}
	map_bar(pdev);
}

static uint64_t table_bytes(const struct mb_pci_dev *pdev)
{
	return (uint64_t)pdev->config.n_msix * MB_MSIX_ENTRY_BYTES;
}

static uint64_t pba_bytes(const struct mb_pci_dev *pdev)
{
	return mb_align_up(pdev->config.n_msix, 64) / 8;
}

void mb_pci_bar_read(struct mb_pci_dev *pdev, uint64_t offset, void *data, unsigned len)
{
	const struct mb_pci_config *c = &pdev->config;

	memset(data, 0, len);
	if (!mb_range_inside(offset, len, 0, c->bar_bytes))
		return;
	if (pdev->msix && mb_range_inside(offset, 1, c->msix_table_offset, table_bytes(pdev)))
		mb_msix_table_read(pdev->msix, offset - c->msix_table_offset, data, len);
	else if (pdev->msix && mb_range_inside(offset, 1, c->msix_pba_offset, pba_bytes(pdev)))
		mb_msix_pba_read(pdev->msix, offset - c->msix_pba_offset, data, len);
	else if (c->ops->bar.read)
		c->ops->bar.read(c->dev, offset, data, len);
}

void mb_pci_bar_write(struct mb_pci_dev *pdev, uint64_t offset, const void *data, unsigned len)
{
	const struct mb_pci_config *c = &pdev->config;

	if (!mb_range_inside(offset, len, 0, c->bar_bytes))
		return;
	if (pdev->msix && mb_range_inside(offset, 1, c->msix_table_offset, table_bytes(pdev)))
		mb_msix_table_write(pdev->msix, offset - c->msix_table_offset, data, len);
	else if (pdev->msix && mb_range_inside(offset, 1, c->msix_pba_offset, pba_bytes(pdev)))
		return; /* 6.8.2: read-only */
	else if (c->ops->bar.write)
		c->ops->bar.write(c->dev, offset, data, len);
}

static void bar_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	mb_pci_bar_read(dev, offset, data, len);
}

static void bar_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	mb_pci_bar_write(dev, offset, data, len);
}

static const struct mb_region_ops bar_ops = {.read = bar_read, .write = bar_write};

/* ---- configuration space ---- */

/* The part of [at, at + len) that the hook sees starts at *from; false if there is none. */
static bool hooked(const struct mb_pci_dev *pdev, unsigned at, unsigned len, unsigned *from)
{
	const struct hook *hook = &pdev->hook;

	if (!mb_range_overlap(at, len, hook->offset + VENDOR_HDR, hook->len - VENDOR_HDR))
		return false;
	*from = at > hook->offset + VENDOR_HDR ? at : hook->offset + VENDOR_HDR;
	return true;
}

static void config_read(
	struct mb_pci_bus *pci, unsigned slot, unsigned at, uint8_t *data, unsigned len)
{
	struct mb_pci_dev *pdev;
	unsigned from;

	pthread_mutex_lock(&pci->lock);
	pdev = pci->dev[slot];
	if (slot && !pdev)
		memset(data, 0xff, len);
	else if (at >= CFG_BYTES)
		memset(data, 0, len);
	else
		memcpy(data, &(slot ? &pdev->cfg : &pci->bridge)->value[at], len);
	pthread_mutex_unlock(&pci->lock);
	if (pdev && pdev->hook.read && hooked(pdev, at, len, &from))
		pdev->hook.read(pdev->config.dev, from - pdev->hook.offset, data + (from - at),
			at + len - from);
}

static void set_bytes(struct config *cfg, unsigned at, const uint8_t *data, unsigned len)
{
	for (unsigned i = 0; i < len; i++) {
		uint8_t mask = cfg->writable[at + i];

		cfg->value[at + i] = (uint8_t)((cfg->value[at + i] & ~mask) | (data[i] & mask));
	}
}

static void config_write(
	struct mb_pci_bus *pci, unsigned slot, unsigned at, const uint8_t *data, unsigned len)
{
	struct mb_pci_dev *pdev;
	bool was_master, lost_master = false;
	unsigned from;

	if (at >= CFG_BYTES)
		return;
	pthread_mutex_lock(&pci->lock);
	pdev = pci->dev[slot];
	if (!slot)
		set_bytes(&pci->bridge, at, data, len);
	if (pdev) {
		was_master = is_master(pdev);
		set_bytes(&pdev->cfg, at, data, len);
		lost_master = was_master && !is_master(pdev);
		update_bar(pdev);
		if (pdev->msix) {
			uint16_t control = get16(&pdev->cfg, pdev->msix_cap + PCI_MSIX_FLAGS);

			mb_msix_control(pdev->msix, control & PCI_MSIX_FLAGS_ENABLE,
				control & PCI_MSIX_FLAGS_MASKALL);
		}
	}
	pthread_mutex_unlock(&pci->lock);
	if (!pdev)
		return;
	if (lost_master && pdev->config.ops->bus_master_lost)
		pdev->config.ops->bus_master_lost(pdev->config.dev);
	if (pdev->hook.write && hooked(pdev, at, len, &from))
		pdev->hook.write(pdev->config.dev, from - pdev->hook.offset, data + (from - at),
			at + len - from);
}

/*
 * An access of any size and alignment, in pieces that stay inside one register; function numbers
 * other than 0 do not exist.
 */
static void ecam_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	for (unsigned done = 0, n; done < len; done += n, offset += n) {
		unsigned at = offset & 0xfff, slot = offset >> 15 & (N_SLOTS - 1);

		n = 4 - (at & 3);
		if (n > len - done)
			n = len - done;
		if (offset >> 12 & 7)
			memset((uint8_t *)data + done, 0xff, n);
		else
			config_read(dev, slot, at, (uint8_t *)data + done, n);
	}
}

static void ecam_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	for (unsigned done = 0, n; done < len; done += n, offset += n) {
		n = 4 - (offset & 3);
		if (n > len - done)
			n = len - done;
		if (!(offset >> 12 & 7))
			config_write(dev, offset >> 15 & (N_SLOTS - 1), offset & 0xfff,
				(const uint8_t *)data + done, n);
	}
}

static const struct mb_region_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* The offset into ECAM that an access to 0xcfc..0xcff means; false if it means nothing here. */
static bool port_target(struct mb_pci_bus *pci, uint64_t offset, unsigned len, uint64_t *target)
{
	uint32_t address = __atomic_load_n(&pci->address, __ATOMIC_RELAXED);

	if (!(address & ADDRESS_ENABLE) || address >> 16 & 0xff || offset < 4 || offset + len > 8)
		return false;
	/* Slot, function and register of the address are 12 bits lower than in ECAM. */
	*target = (uint64_t)(address >> 8 & 0xff) << 12 | (address & 0xfc) | (offset - 4);
	return true;
}

static void ports_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_pci_bus *pci = dev;
	uint64_t target;

	memset(data, 0xff, len);
	if (!offset && len == 4)
		mb_bus_set_value(data, 4, __atomic_load_n(&pci->address, __ATOMIC_RELAXED));
	else if (port_target(pci, offset, len, &target))
		ecam_read(dev, target, data, len);
}

static void ports_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_pci_bus *pci = dev;
	uint64_t target;

	/* Only whole words reach the address register (3.2.2.3.2). */
	if (!offset && len == 4)
		__atomic_store_n(&pci->address, (uint32_t)mb_bus_value(data, 4), __ATOMIC_RELAXED);
	else if (port_target(pci, offset, len, &target))
		ecam_write(dev, target, data, len);
}

static const struct mb_region_ops ports_ops = {.read = ports_read, .write = ports_write};

/* ---- bus ---- */

int mb_pci_bus_create(
	struct mb_bus *bus, struct mb_vm *vm, struct mb_pci_bus **out, struct mb_error *err)
{
	struct mb_pci_bus *pci = calloc(1, sizeof(*pci));
	int rc;

	if (!pci)
		return mb_error_set(err, ENOMEM, "PCI bus: out of memory");
	pci->bus = bus;
	pci->vm = vm;
	pthread_mutex_init(&pci->lock, NULL);
	put16(&pci->bridge, PCI_VENDOR_ID, BRIDGE_VENDOR);
	put16(&pci->bridge, PCI_DEVICE_ID, BRIDGE_DEVICE);
	pci->bridge.value[PCI_CLASS_DEVICE + 1] = 6; /* bridge, host */

	pci->ecam = (struct mb_region){
		.space = MB_MMIO,
		.base = MB_PCI_ECAM_BASE,
		.len = MB_PCI_ECAM_LEN,
		.ops = &ecam_ops,
		.dev = pci,
	};
	rc = mb_bus_add(bus, &pci->ecam);
	if (rc) {
		rc = mb_error_set(err, -rc, "PCI bus: memory at %#llx is taken", MB_PCI_ECAM_BASE);
		goto err_pci;
	}
	pci->ports = (struct mb_region){
		.space = MB_PIO,
		.base = PORT_ADDRESS,
		.len = PORT_LEN,
		.ops = &ports_ops,
		.dev = pci,
	};
	rc = mb_bus_add(bus, &pci->ports);
	if (rc) {
		rc = mb_error_set(err, -rc, "PCI bus: port %#x is taken", PORT_ADDRESS);
		goto err_ecam;
	}
	*out = pci;
	return 0;

err_ecam:
	mb_bus_remove(bus, &pci->ecam);
err_pci:
	pthread_mutex_destroy(&pci->lock);
	free(pci);
	return rc;
}

void mb_pci_bus_destroy(struct mb_pci_bus *pci)
{
	if (!pci)
		return;
	for (unsigned i = 0; i < N_SLOTS; i++)
		assert(!pci->dev[i]);
	mb_bus_remove(pci->bus, &pci->ecam);
	mb_bus_remove(pci->bus, &pci->ports);
	pthread_mutex_destroy(&pci->lock);
	free(pci);
}

struct mb_vm *mb_pci_bus_vm(struct mb_pci_bus *pci)
{
	return pci->vm;
}

/* ---- function ---- */

/* Room for a capability of len bytes in front of the guest's eyes; 0 if there is none left. */
static unsigned add_capability(struct mb_pci_dev *pdev, uint8_t id, unsigned len)
{
	struct config *cfg = &pdev->cfg;
	unsigned at = pdev->next_cap;

	if (len < VENDOR_HDR || len > CFG_BYTES - at)
		return 0;
	cfg->value[at] = id;
	cfg->value[pdev->last_cap ? pdev->last_cap + 1 : PCI_CAPABILITY_LIST] = (uint8_t)at;
	cfg->value[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
	pdev->last_cap = at;
	pdev->next_cap = (unsigned)mb_align_up(at + len, 4);
	return at;
}

static void fill_header(struct mb_pci_dev *pdev)
{
	const struct mb_pci_config *c = &pdev->config;
	struct config *cfg = &pdev->cfg;
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
			   PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE;
	uint32_t bar = ~(c->bar_bytes - 1u);

	put16(cfg, PCI_VENDOR_ID, c->vendor_id);
	put16(cfg, PCI_DEVICE_ID, c->device_id);
	put32(cfg, PCI_CLASS_REVISION, c->class_code << 8 | c->revision);
	put16(cfg, PCI_SUBSYSTEM_VENDOR_ID, c->subsystem_vendor_id);
	put16(cfg, PCI_SUBSYSTEM_ID, c->subsystem_id);
	memcpy(&cfg->writable[PCI_COMMAND], &command, sizeof(command));
	memcpy(&cfg->writable[PCI_BASE_ADDRESS_0], &bar, sizeof(bar));
	cfg->writable[PCI_CACHE_LINE_SIZE] = 0xff;
	cfg->writable[PCI_INTERRUPT_LINE] = 0xff; /* no pin: a note of the firmware's */
	pdev->next_cap = FIRST_CAP;
}

/* PCI Express 5.0, 7.5.3: an integrated endpoint without links, errors or function-level reset. */
static void add_express(struct mb_pci_dev *pdev)
{
	unsigned at = add_capability(pdev, PCI_CAP_ID_EXP, PCI_CAP_EXP_ENDPOINT_SIZEOF_V2);
	uint16_t control = PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE | PCI_EXP_DEVCTL_FERE |
			   PCI_EXP_DEVCTL_URRE | PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_PAYLOAD |
			   PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ;

	put16(&pdev->cfg, at + PCI_EXP_FLAGS, 2 | PCI_EXP_TYPE_RC_END << 4);
	put32(&pdev->cfg, at + PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_RBER);
	memcpy(&pdev->cfg.writable[at + PCI_EXP_DEVCTL], &control, sizeof(control));
}

static void add_msix(struct mb_pci_dev *pdev)
{
	unsigned at = add_capability(pdev, PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);
	uint16_t control = PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL;

	put16(&pdev->cfg, at + PCI_MSIX_FLAGS, (uint16_t)(pdev->config.n_msix - 1));
	put32(&pdev->cfg, at + PCI_MSIX_TABLE, pdev->config.msix_table_offset); /* BAR 0 */
	put32(&pdev->cfg, at + PCI_MSIX_PBA, pdev->config.msix_pba_offset);
	memcpy(&pdev->cfg.writable[at + PCI_MSIX_FLAGS], &control, sizeof(control));
	pdev->msix_cap = at;
}

static bool config_is_sane(const struct mb_pci_dev *pdev)
{
	const struct mb_pci_config *c = &pdev->config;

	if (c->bar_bytes < 16 || c->bar_bytes & (c->bar_bytes - 1) || c->n_msix > 2048 || !c->ops)
		return false;
	return !c->n_msix ||
	       (mb_range_inside(c->msix_table_offset, table_bytes(pdev), 0, c->bar_bytes) &&
		       mb_range_inside(c->msix_pba_offset, pba_bytes(pdev), 0, c->bar_bytes) &&
		       !mb_range_overlap(c->msix_table_offset, table_bytes(pdev),
			       c->msix_pba_offset, pba_bytes(pdev)));
}

/* The free slot with the lowest number; the BAR goes behind those of lower slots. */
static int place(struct mb_pci_dev *pdev, uint64_t *gpa)
{
	struct mb_pci_bus *pci = pdev->pci;
	uint64_t next = MB_PCI_MMIO_BASE;

	for (unsigned i = 1; i < N_SLOTS; i++) {
		const struct mb_pci_dev *other = pci->dev[i];
		uint32_t base;

		if (!other)
			continue;
		memcpy(&base, &other->power_on[PCI_BASE_ADDRESS_0], sizeof(base));
		if (base + (uint64_t)other->config.bar_bytes > next)
			next = base + (uint64_t)other->config.bar_bytes;
	}
	*gpa = mb_align_up(next, pdev->config.bar_bytes);
	if (!mb_range_inside(*gpa, pdev->config.bar_bytes, MB_PCI_MMIO_BASE, MB_PCI_MMIO_LEN))
		return -ENOSPC;
	for (pdev->slot = 1; pdev->slot < N_SLOTS; pdev->slot++) {
		if (!pci->dev[pdev->slot])
			return 0;
	}
	return -ENOSPC;
}

int mb_pci_dev_create(struct mb_pci_bus *pci, const struct mb_pci_config *config,
	struct mb_pci_dev **out, struct mb_error *err)
{
	struct mb_pci_dev *pdev = calloc(1, sizeof(*pdev));
	uint64_t gpa;
	int rc;

	if (!pdev)
		return mb_error_set(err, ENOMEM, "PCI device: out of memory");
	pdev->pci = pci;
	pdev->config = *config;
	assert(config_is_sane(pdev));
	if (config->n_msix) {
		rc = mb_msix_create(pci->vm, config->n_msix, &pdev->msix);
		if (rc) {
			rc = mb_error_set(err, -rc, "PCI device: out of memory");
			goto err_dev;
		}
	}
	fill_header(pdev);
	if (config->n_msix)
		add_msix(pdev);
	add_express(pdev);
	pdev->bar = (struct mb_region){
		.space = MB_MMIO, .len = config->bar_bytes, .ops = &bar_ops, .dev = pdev};

	pthread_mutex_lock(&pci->lock);
	rc = place(pdev, &gpa);
	if (!rc) {
		put32(&pdev->cfg, PCI_BASE_ADDRESS_0, (uint32_t)gpa);
		memcpy(pdev->power_on, pdev->cfg.value, CFG_BYTES);
		pci->dev[pdev->slot] = pdev;
	}
	pthread_mutex_unlock(&pci->lock);
	if (rc) {
		rc = mb_error_set(err, -rc,
			"PCI bus: no place for another device; a machine has at most %u",
			N_SLOTS - 1);
		goto err_msix;
	}
	*out = pdev;
	return 0;

err_msix:
	mb_msix_destroy(pdev->msix);
err_dev:
	free(pdev);
	return rc;
}

void mb_pci_dev_destroy(struct mb_pci_dev *pdev)
{
	if (!pdev)
		return;
	pthread_mutex_lock(&pdev->pci->lock);
	unmap_bar(pdev);
	pdev->pci->dev[pdev->slot] = NULL;
	pthread_mutex_unlock(&pdev->pci->lock);
	mb_msix_destroy(pdev->msix);
	free(pdev);
}

int mb_pci_add_capability(struct mb_pci_dev *pdev, const void *body, unsigned len, unsigned *offset)
{
	unsigned at;

	pthread_mutex_lock(&pdev->pci->lock);
	at = add_capability(pdev, PCI_CAP_ID_VNDR, len);
	if (at) {
		memcpy(&pdev->cfg.value[at + VENDOR_HDR], (const uint8_t *)body + VENDOR_HDR,
			len - VENDOR_HDR);
		memcpy(pdev->power_on, pdev->cfg.value, CFG_BYTES);
		*offset = at;
	}
	pthread_mutex_unlock(&pdev->pci->lock);
	return at ? 0 : -ENOSPC;
}

void mb_pci_set_capability_hook(struct mb_pci_dev *pdev, unsigned offset,
	void (*read)(void *dev, unsigned offset_in_cap, void *data, unsigned len),
	void (*write)(void *dev, unsigned offset_in_cap, const void *data, unsigned len))
{
	/*
	 * Vendor-specific capabilities have their length in the third byte (PCI Local Bus 3.0,
	 * 6.8).
	 */
	pdev->hook = (struct hook){
		.offset = offset,
		.len = pdev->cfg.value[offset + 2],
		.read = read,
		.write = write,
	};
	assert(pdev->hook.len > VENDOR_HDR && offset + pdev->hook.len <= CFG_BYTES);
}

unsigned mb_pci_dev_slot(const struct mb_pci_dev *pdev)
{
	return pdev->slot;
}

uint64_t mb_pci_dev_bar(const struct mb_pci_dev *pdev)
{
	uint64_t base;

	pthread_mutex_lock(&pdev->pci->lock);
	base = bar_base(pdev);
	pthread_mutex_unlock(&pdev->pci->lock);
	return base;
}

bool mb_pci_dev_is_master(const struct mb_pci_dev *pdev)
{
	bool master;

	pthread_mutex_lock(&pdev->pci->lock);
	master = is_master(pdev);
	pthread_mutex_unlock(&pdev->pci->lock);
	return master;
}

void mb_pci_msix_raise(struct mb_pci_dev *pdev, unsigned vector)
{
	if (pdev->msix)
		mb_msix_raise(pdev->msix, vector);
}

void mb_pci_dev_reset(struct mb_pci_dev *pdev)
{
	pthread_mutex_lock(&pdev->pci->lock);
	memcpy(pdev->cfg.value, pdev->power_on, CFG_BYTES);
	update_bar(pdev);
	if (pdev->msix)
		mb_msix_reset(pdev->msix);
	pthread_mutex_unlock(&pdev->pci->lock);
}

/* ---- snapshots ---- */

#define STATE_VERSION 1u

void mb_pci_bus_save(struct mb_pci_bus *pci, struct mb_state_out *out)
{
	mb_state_begin(out, "pci", STATE_VERSION);
	pthread_mutex_lock(&pci->lock);
	mb_state_put_u32(out, __atomic_load_n(&pci->address, __ATOMIC_RELAXED));
	for (unsigned i = 1; i < N_SLOTS; i++) {
		struct mb_pci_dev *pdev = pci->dev[i];

		mb_state_put_u8(out, pdev != NULL);
		if (!pdev)
			continue;
		mb_state_put(out, pdev->cfg.value, CFG_BYTES);
		mb_state_put_u32(out, pdev->config.n_msix);
		if (pdev->msix)
			mb_msix_save(pdev->msix, out);
	}
	pthread_mutex_unlock(&pci->lock);
	mb_state_end(out);
}

/* What the guest cannot write says what the function is. Caller holds the configuration lock. */
static int load_function(struct mb_pci_dev *pdev, struct mb_state_in *part, struct mb_error *err)
{
	uint8_t value[CFG_BYTES];
	uint16_t control;

	mb_state_get(part, value, sizeof(value));
	for (unsigned i = 0; i < CFG_BYTES && !part->bad; i++)
		if ((value[i] ^ pdev->cfg.value[i]) & ~pdev->cfg.writable[i])
			return mb_state_refuse(part, err, "has a device that is another one here");
	if (mb_state_get_u32(part) != pdev->config.n_msix || part->bad)
		return mb_state_refuse(part, err, "has a device with other interrupts than here");
	set_bytes(&pdev->cfg, 0, value, CFG_BYTES);
	if (pdev->msix) {
		control = get16(&pdev->cfg, pdev->msix_cap + PCI_MSIX_FLAGS);
		mb_msix_load(pdev->msix, part);
		mb_msix_control(pdev->msix, control & PCI_MSIX_FLAGS_ENABLE,
			control & PCI_MSIX_FLAGS_MASKALL);
	}
	return 0;
}

int mb_pci_bus_load(struct mb_pci_bus *pci, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "pci", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	__atomic_store_n(&pci->address, mb_state_get_u32(&part), __ATOMIC_RELAXED);
	pthread_mutex_lock(&pci->lock);
	for (unsigned i = 1; i < N_SLOTS && !rc; i++) {
		if (mb_state_get_bool(&part) != (pci->dev[i] != NULL))
			rc = mb_state_refuse(&part, err, "has other devices than there are here");
		else if (pci->dev[i])
			rc = load_function(pci->dev[i], &part, err);
	}
	/* Only now: one's place may have been another's. */
	for (unsigned i = 1; i < N_SLOTS && !rc; i++)
		if (pci->dev[i])
			update_bar(pci->dev[i]);
	pthread_mutex_unlock(&pci->lock);
	return rc ? rc : mb_state_leave(&part, err);
}
