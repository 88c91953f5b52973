// SPDX-License-Identifier: Apache-2.0
#include <assert.h>
#include <errno.h>
#include <mirrorball/irq.h>
#include <mirrorball/log.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Registers in memory (82093AA, 3.1) and the EOI register of parts with version 0x20. */
#define REG_SELECT 0x00u
#define REG_WINDOW 0x10u
#define REG_EOI	   0x40u
#define REGION_LEN 0x1000u

/* Registers behind the window (82093AA, 3.2; index 3 came with the EOI register). */
#define INDEX_ID	  0x00u
#define INDEX_VERSION	  0x01u
#define INDEX_ARBITRATION 0x02u
#define INDEX_BOOT_CONFIG 0x03u
#define INDEX_REDIRECTION 0x10u

#define VERSION		  (0x20u | (MB_IOAPIC_PINS - 1) << 16)
#define ID_MASK		  0x0f000000u
#define BOOT_OVER_BUS	  1u  /* interrupts travel as messages on the system bus */
#define LOWEST_VECTOR	  16u /* 0..15 are exceptions: SDM vol. 3, 11.5.2 */

/* Redirection table entry (82093AA, 3.2.4). */
#define RTE_VECTOR	   0xffull
#define RTE_DELIVERY_SHIFT 8
#define RTE_LOGICAL	   (1ull << 11)
#define RTE_POLARITY_LOW   (1ull << 13)
#define RTE_REMOTE_IRR	   (1ull << 14)
#define RTE_LEVEL	   (1ull << 15)
#define RTE_MASKED	   (1ull << 16)
#define RTE_EXT_DEST_SHIFT 49 /* destination bits 14:8, with KVM_FEATURE_MSI_EXT_DEST_ID */
#define RTE_DEST_SHIFT	   56
/*
 * Delivery status reads as 0 (messages leave at once); remote IRR is ours; bit 48 asks for
 * interrupt remapping.
 */
#define RTE_WRITABLE                                                                               \
	(RTE_VECTOR | 7ull << RTE_DELIVERY_SHIFT | RTE_LOGICAL | RTE_POLARITY_LOW | RTE_LEVEL |    \
		RTE_MASKED | 0x7full << RTE_EXT_DEST_SHIFT | 0xffull << RTE_DEST_SHIFT)

enum delivery {
	DELIVERY_FIXED = 0,
	DELIVERY_LOWEST = 1,
	DELIVERY_NMI = 4,
	DELIVERY_INIT = 5,
};

/* An MSI (SDM vol. 3, 11.11); addr 0: none. */
struct msi {
	uint64_t addr;
	uint32_t data;
};

#define MSI_ADDR	  0xfee00000ull
#define MSI_ADDR_DEST	  12
#define MSI_ADDR_EXT_DEST 5
#define MSI_ADDR_LOGICAL  (1ull << 2)
#define MSI_DATA_DELIVERY 8
#define MSI_DATA_ASSERT	  (1u << 14)
#define MSI_DATA_LEVEL	  (1u << 15)

/*
 * A device's line says "asserted" or not, whatever the voltage: the polarity that a guest writes is
 * kept and read back, but does not turn an idle line into an interrupt that never ends.
 *
 * Lock: everything below it but the constants. Order: a device's lock, then this, then the VM's
 * routing.
 */
struct mb_ioapic {
	struct mb_bus *bus;
	struct mb_vm *vm;
	struct mb_region region;
	pthread_mutex_t lock;
	uint32_t id;
	uint8_t select;
	uint32_t asserted; /* a bit a pin */
	uint64_t rte[MB_IOAPIC_PINS];
	struct msi route[MB_IOAPIC_PINS]; /* what the VM was told */
	struct mb_ratelimit route_failed;
};

static unsigned rte_delivery(uint64_t rte)
{
	return rte >> RTE_DELIVERY_SHIFT & 7;
}

/*
 * Only fixed and lowest-priority interrupts can be level-triggered (82093AA, 3.2.4, delivery mode).
 */
static bool rte_is_level(uint64_t rte)
{
	return (rte & RTE_LEVEL) && rte_delivery(rte) <= DELIVERY_LOWEST;
}

/*
 * The message of an entry; addr 0 if it sends none: masked, an illegal vector, ExtINT (there is no
 * 8259) or SMI (there is no firmware for it, and KVM's SMM flag is what tells our views apart).
 */
static struct msi rte_to_msi(uint64_t rte)
{
	unsigned delivery = rte_delivery(rte);
	unsigned vector = rte & RTE_VECTOR;
	struct msi msi = {0};

	if (rte & RTE_MASKED)
		return msi;
	if (delivery <= DELIVERY_LOWEST ? vector < LOWEST_VECTOR
					: delivery != DELIVERY_NMI && delivery != DELIVERY_INIT)
		return msi;
	msi.addr = MSI_ADDR | (rte >> RTE_DEST_SHIFT & 0xff) << MSI_ADDR_DEST |
		   (rte >> RTE_EXT_DEST_SHIFT & 0x7f) << MSI_ADDR_EXT_DEST;
	if (rte & RTE_LOGICAL)
		msi.addr |= MSI_ADDR_LOGICAL;
	msi.data = vector | delivery << MSI_DATA_DELIVERY | MSI_DATA_ASSERT;
	if (rte_is_level(rte))
		msi.data |= MSI_DATA_LEVEL;
	return msi;
}

/*
 * Tells the VM where a pin goes: with a split interrupt controller KVM looks through the routes of
 * our pins for level-triggered vectors, and only their EOIs leave the kernel (api.rst, 7.5). Caller
 * holds the lock.
 */
static void update_route(struct mb_ioapic *ioapic, unsigned pin)
{
	uint64_t rte = ioapic->rte[pin];
	struct msi *route = &ioapic->route[pin];
	struct msi msi = rte_to_msi(rte);
	int rc;

	/*
	 * A guest may mask a pin, then end its interrupt (Linux does, for threaded handlers).
	 * Without the route that EOI would not reach us, and remote IRR would stay set for ever.
	 */
	if ((rte & RTE_MASKED) && (rte & RTE_REMOTE_IRR))
		return;
	if (msi.addr == route->addr && msi.data == route->data)
		return;
	rc = mb_vm_gsi_route(ioapic->vm, pin, msi.addr, msi.data);
	if (rc < 0) {
		mb_log_guest(
			&ioapic->route_failed, "I/O APIC: route pin %u: %s", pin, strerror(-rc));
		return;
	}
	*route = msi;
}

/* Sends an edge's interrupt, or a level's that is due. Caller holds the lock. */
static void deliver(struct mb_ioapic *ioapic, unsigned pin)
{
	uint64_t *rte = &ioapic->rte[pin];
	struct msi msi = rte_to_msi(*rte);
	bool level = rte_is_level(*rte);

	if (!msi.addr)
		return;
	if (level && (!(ioapic->asserted >> pin & 1) || (*rte & RTE_REMOTE_IRR)))
		return;
	/* Nobody accepted it: a level stays due until the entry or the line changes. */
	if (mb_vm_msi_send(ioapic->vm, msi.addr, msi.data) >= 0 && level)
		*rte |= RTE_REMOTE_IRR;
}

/* Caller holds the lock. */
static void end_of_interrupt(struct mb_ioapic *ioapic, uint8_t vector)
{
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++) {
		uint64_t *rte = &ioapic->rte[pin];

		if (!(*rte & RTE_REMOTE_IRR) || (*rte & RTE_VECTOR) != vector)
			continue;
		*rte &= ~RTE_REMOTE_IRR;
		update_route(ioapic, pin);
		deliver(ioapic, pin);
	}
}

/* Caller holds the lock. */
static void write_rte(struct mb_ioapic *ioapic, unsigned pin, uint64_t value)
{
	uint64_t *rte = &ioapic->rte[pin];

	*rte = (value & RTE_WRITABLE) | (*rte & RTE_REMOTE_IRR);
	/*
	 * Drivers for parts without an EOI register switch to edge and back to end a level
	 * interrupt.
	 */
	if (!rte_is_level(*rte))
		*rte &= ~RTE_REMOTE_IRR;
	update_route(ioapic, pin);
	/* An edge that came while the pin was masked is lost (82093AA, 3.2.4, interrupt mask). */
	if (rte_is_level(*rte))
		deliver(ioapic, pin);
}

/* Caller holds the lock. */
static uint32_t read_window(struct mb_ioapic *ioapic)
{
	unsigned entry = ioapic->select - INDEX_REDIRECTION;

	switch (ioapic->select) {
	case INDEX_ID:
	case INDEX_ARBITRATION:
		return ioapic->id;
	case INDEX_VERSION:
		return VERSION;
	case INDEX_BOOT_CONFIG:
		return BOOT_OVER_BUS;
	}
	if (ioapic->select < INDEX_REDIRECTION || entry / 2 >= MB_IOAPIC_PINS)
		return 0;
	return (uint32_t)(ioapic->rte[entry / 2] >> (entry & 1 ? 32 : 0));
}

/* Caller holds the lock. */
static void write_window(struct mb_ioapic *ioapic, uint32_t value)
{
	unsigned entry = ioapic->select - INDEX_REDIRECTION;
	uint64_t rte;

	if (ioapic->select == INDEX_ID)
		ioapic->id = value & ID_MASK;
	if (ioapic->select < INDEX_REDIRECTION || entry / 2 >= MB_IOAPIC_PINS)
		return;
	rte = ioapic->rte[entry / 2];
	if (entry & 1)
		rte = (uint32_t)rte | (uint64_t)value << 32;
	else
		rte = (rte & 0xffffffff00000000ull) | value;
	write_rte(ioapic, entry / 2, rte);
}

static void region_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_ioapic *ioapic = dev;
	uint32_t value = 0;

	pthread_mutex_lock(&ioapic->lock);
	if (offset == REG_SELECT)
		value = ioapic->select;
	else if (offset == REG_WINDOW)
		value = read_window(ioapic);
	pthread_mutex_unlock(&ioapic->lock);
	mb_bus_set_value(data, len, value);
}

static void region_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_ioapic *ioapic = dev;
	uint64_t value = mb_bus_value(data, len);

	pthread_mutex_lock(&ioapic->lock);
	if (offset == REG_SELECT)
		ioapic->select = (uint8_t)value;
	else if (offset == REG_WINDOW && len >= 4) /* only whole registers: 82093AA, 3.1 */
		write_window(ioapic, (uint32_t)value);
	else if (offset == REG_EOI)
		end_of_interrupt(ioapic, (uint8_t)value);
	pthread_mutex_unlock(&ioapic->lock);
}

static const struct mb_region_ops region_ops = {
	.read = region_read,
	.write = region_write,
};

int mb_ioapic_create(
	struct mb_bus *bus, struct mb_vm *vm, struct mb_ioapic **out, struct mb_error *err)
{
	struct mb_ioapic *ioapic = calloc(1, sizeof(*ioapic));
	int rc;

	if (!ioapic)
		return mb_error_set(err, ENOMEM, "I/O APIC: out of memory");
	ioapic->bus = bus;
	ioapic->vm = vm;
	ioapic->region = (struct mb_region){
		.space = MB_MMIO,
		.base = MB_IOAPIC_BASE,
		.len = REGION_LEN,
		.ops = &region_ops,
		.dev = ioapic,
	};
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++)
		ioapic->rte[pin] = RTE_MASKED;
	pthread_mutex_init(&ioapic->lock, NULL);
	rc = mb_bus_add(bus, &ioapic->region);
	if (rc) {
		mb_error_set(err, -rc, "I/O APIC: claim address %#llx: %s", MB_IOAPIC_BASE,
			strerror(-rc));
		goto err_lock;
	}
	*out = ioapic;
	return 0;

err_lock:
	pthread_mutex_destroy(&ioapic->lock);
	free(ioapic);
	return rc;
}

void mb_ioapic_destroy(struct mb_ioapic *ioapic)
{
	if (!ioapic)
		return;
	mb_bus_remove(ioapic->bus, &ioapic->region);
	pthread_mutex_destroy(&ioapic->lock);
	free(ioapic);
}

void mb_ioapic_set(struct mb_ioapic *ioapic, unsigned pin, bool level)
{
	uint32_t bit = 1u << pin;

	assert(pin < MB_IOAPIC_PINS);
	pthread_mutex_lock(&ioapic->lock);
	if (!level) {
		ioapic->asserted &= ~bit;
	} else if (!(ioapic->asserted & bit)) {
		ioapic->asserted |= bit;
		deliver(ioapic, pin);
	}
	pthread_mutex_unlock(&ioapic->lock);
}

void mb_ioapic_eoi(struct mb_ioapic *ioapic, uint8_t vector)
{
	pthread_mutex_lock(&ioapic->lock);
	end_of_interrupt(ioapic, vector);
	pthread_mutex_unlock(&ioapic->lock);
}

void mb_ioapic_reset(struct mb_ioapic *ioapic)
{
	pthread_mutex_lock(&ioapic->lock);
	ioapic->id = 0;
	ioapic->select = 0;
	ioapic->asserted = 0;
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++) {
		ioapic->rte[pin] = RTE_MASKED;
		update_route(ioapic, pin);
	}
	pthread_mutex_unlock(&ioapic->lock);
}

static void line_set(void *ctx, unsigned pin, bool level)
{
	mb_ioapic_set(ctx, pin, level);
}

struct mb_irq_line mb_ioapic_line(struct mb_ioapic *ioapic, unsigned pin)
{
	return (struct mb_irq_line){.set = line_set, .ctx = ioapic, .pin = pin};
}

#define STATE_VERSION 1u

void mb_ioapic_save(struct mb_ioapic *ioapic, struct mb_state_out *out)
{
	mb_state_begin(out, "ioapic", STATE_VERSION);
	pthread_mutex_lock(&ioapic->lock);
	mb_state_put_u32(out, ioapic->id);
	mb_state_put_u8(out, ioapic->select);
	mb_state_put_u32(out, ioapic->asserted);
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++)
		mb_state_put_u64(out, ioapic->rte[pin]);
	pthread_mutex_unlock(&ioapic->lock);
	mb_state_end(out);
}

int mb_ioapic_load(struct mb_ioapic *ioapic, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "ioapic", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&ioapic->lock);
	ioapic->id = mb_state_get_u32(&part) & ID_MASK;
	ioapic->select = mb_state_get_u8(&part);
	ioapic->asserted = mb_state_get_u32(&part) & ((1u << MB_IOAPIC_PINS) - 1);
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++) {
		uint64_t *rte = &ioapic->rte[pin];

		*rte = mb_state_get_u64(&part) & (RTE_WRITABLE | RTE_REMOTE_IRR);
		if (!rte_is_level(*rte))
			*rte &= ~RTE_REMOTE_IRR;
		/* A masked one whose interrupt has not ended has a route, too (update_route): by way of the
		 * state in which it was unmasked. */
		if (*rte & RTE_MASKED && *rte & RTE_REMOTE_IRR) {
			*rte &= ~RTE_MASKED;
			update_route(ioapic, pin);
			*rte |= RTE_MASKED;
		}
		update_route(ioapic, pin);
	}
	pthread_mutex_unlock(&ioapic->lock);
	return mb_state_leave(&part, err);
}
