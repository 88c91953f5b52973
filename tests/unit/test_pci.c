// SPDX-License-Identifier: Apache-2.0
#include "fake_kvm.h"
#include "run.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <mirrorball/pci.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BAR_BYTES 0x10000u
#define TABLE	  0x8000u
#define PBA	  0xf000u
#define N_VECTORS 5u
#define MSI_ADDR  0xfee01000u

struct toy {
	struct mb_pci_dev *pdev;
	uint8_t reg[TABLE];
	uint64_t gpa;
	bool enabled;
	unsigned n_moves, n_lost_master, n_cap_writes;
	uint8_t window[12];
};

static struct fake_kvm kvm;
static struct mb_host host;
static struct mb_vm *vm;
static struct mb_bus *bus;
static struct mb_pci_bus *pci;
static struct toy toy[2];

static void toy_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct toy *t = dev;

	if (offset + len <= sizeof(t->reg))
		memcpy(data, t->reg + offset, len);
}

static void toy_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct toy *t = dev;

	if (offset + len <= sizeof(t->reg))
		memcpy(t->reg + offset, data, len);
}

static void toy_moved(void *dev, uint64_t gpa, bool enabled)
{
	struct toy *t = dev;

	ck_assert(enabled != t->enabled);
	if (!enabled)
		ck_assert_uint_eq(gpa, t->gpa);
	t->gpa = gpa;
	t->enabled = enabled;
	t->n_moves++;
}

static void toy_lost_master(void *dev)
{
	((struct toy *)dev)->n_lost_master++;
}

static const struct mb_pci_dev_ops toy_ops = {
	.bar = {.read = toy_read, .write = toy_write},
	.bar_moved = toy_moved,
	.bus_master_lost = toy_lost_master,
};

static void add_toy(struct toy *t)
{
	struct mb_pci_config config = {
		.vendor_id = 0x1234,
		.device_id = 0x5678,
		.subsystem_vendor_id = 0x9abc,
		.subsystem_id = 0xdef0,
		.class_code = 0x010203,
		.revision = 4,
		.bar_bytes = BAR_BYTES,
		.n_msix = N_VECTORS,
		.msix_table_offset = TABLE,
		.msix_pba_offset = PBA,
		.ops = &toy_ops,
		.dev = t,
	};

	memset(t, 0, sizeof(*t));
	ck_assert_int_eq(mb_pci_dev_create(pci, &config, &t->pdev, NULL), 0);
}

static void setup(void)
{
	struct mb_vm_config config = {.n_views = 1};

	fake_kvm_init(&kvm);
	fake_kvm_host(&kvm, &host);
	ck_assert_int_eq(mb_vm_create(&host, &config, &vm, NULL), 0);
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_pci_bus_create(bus, vm, &pci, NULL), 0);
	ck_assert_ptr_eq(mb_pci_bus_vm(pci), vm);
	add_toy(&toy[0]);
	add_toy(&toy[1]);
}

static void teardown(void)
{
	struct fake_vm *fvm = fake_kvm_vm(&kvm);

	mb_pci_dev_destroy(toy[0].pdev);
	mb_pci_dev_destroy(toy[1].pdev);
	ck_assert(!toy[0].enabled && !toy[1].enabled);
	ck_assert_uint_eq(fvm->n_irqfds, 0);
	ck_assert_uint_eq(fvm->n_routes, 0);
	ck_assert_uint_eq(kvm.n_errors, 0);
	mb_pci_bus_destroy(pci);
	mb_bus_destroy(bus);
	mb_vm_destroy(vm);
	fake_kvm_finish(&kvm);
}

/* ---- the guest's accesses ---- */

static uint64_t rd(uint64_t gpa, unsigned len)
{
	uint8_t data[8];

	mb_bus_read(bus, MB_MMIO, gpa, data, len);
	return mb_bus_value(data, len);
}

static bool wr(uint64_t gpa, unsigned len, uint64_t value)
{
	uint8_t data[8];

	mb_bus_set_value(data, 8, value);
	return mb_bus_write(bus, MB_MMIO, gpa, data, len);
}

static uint64_t cfg(unsigned slot, unsigned reg)
{
	return MB_PCI_ECAM_BASE + ((uint64_t)slot << 15) + reg;
}

static unsigned slot_of(const struct toy *t)
{
	return mb_pci_dev_slot(t->pdev);
}

static void enable(const struct toy *t, unsigned command)
{
	wr(cfg(slot_of(t), PCI_COMMAND), 2, command);
}

static unsigned find_cap(unsigned slot, uint8_t id)
{
	unsigned at = (unsigned)rd(cfg(slot, PCI_CAPABILITY_LIST), 1);

	for (unsigned n = 0; at; n++) {
		ck_assert_uint_lt(n, 48);
		ck_assert_uint_ge(at, 0x40);
		ck_assert_uint_eq(at % 4, 0);
		if (rd(cfg(slot, at), 1) == id)
			return at;
		at = (unsigned)rd(cfg(slot, at + 1), 1);
	}
	return 0;
}

START_TEST(test_header)
{
	unsigned slot = slot_of(&toy[0]);
	unsigned msix, exp;

	ck_assert_uint_eq(slot, 1);
	ck_assert_uint_eq(slot_of(&toy[1]), 2);
	ck_assert_uint_eq(rd(cfg(0, PCI_CLASS_DEVICE), 2), 0x0600);
	ck_assert_uint_eq(rd(cfg(0, PCI_HEADER_TYPE), 1), 0);
	ck_assert_uint_eq(rd(cfg(slot, 0), 4), 0x56781234);
	ck_assert_uint_eq(rd(cfg(slot, PCI_CLASS_REVISION), 4), 0x01020304);
	ck_assert_uint_eq(rd(cfg(slot, PCI_SUBSYSTEM_VENDOR_ID), 4), 0xdef09abc);
	ck_assert_uint_eq(rd(cfg(slot, PCI_INTERRUPT_PIN), 1), 0);
	ck_assert_uint_eq(rd(cfg(slot, PCI_STATUS), 2), PCI_STATUS_CAP_LIST);
	/* Other functions, empty slots, extended space. */
	ck_assert_uint_eq(rd(cfg(slot, 0) + 0x1000, 4), 0xffffffff);
	ck_assert_uint_eq(rd(cfg(9, 0), 4), 0xffffffff);
	ck_assert_uint_eq(rd(cfg(slot, 0x100), 4), 0);
	/* Read-only bits stay. */
	wr(cfg(slot, 0), 8, 0);
	wr(cfg(0, 0), 8, 0);
	ck_assert_uint_eq(rd(cfg(slot, 0), 4), 0x56781234);
	ck_assert_uint_ne(rd(cfg(0, 0), 4), 0);
	/* Any size and alignment. */
	ck_assert_uint_eq(rd(cfg(slot, 1), 4), 0x00567812);
	ck_assert_uint_eq(rd(cfg(slot, 0x2c - 3), 8) >> 24 & 0xffffffff, 0xdef09abc);
	/* Out of the extended space into function 1, which is not there. */
	ck_assert_uint_eq(rd(cfg(slot, 0xffe), 8), 0xffffffffffff0000);

	msix = find_cap(slot, PCI_CAP_ID_MSIX);
	ck_assert_uint_ne(msix, 0);
	ck_assert_uint_eq(rd(cfg(slot, msix + PCI_MSIX_FLAGS), 2), N_VECTORS - 1);
	ck_assert_uint_eq(rd(cfg(slot, msix + PCI_MSIX_TABLE), 4), TABLE);
	ck_assert_uint_eq(rd(cfg(slot, msix + PCI_MSIX_PBA), 4), PBA);
	exp = find_cap(slot, PCI_CAP_ID_EXP);
	ck_assert_uint_ne(exp, 0);
	ck_assert_uint_eq(rd(cfg(slot, exp + PCI_EXP_FLAGS), 2), 0x92);
}
END_TEST

START_TEST(test_ports)
{
	uint32_t address = 0x80000000u | slot_of(&toy[0]) << 11, value = 0;
	uint16_t half;

	mb_bus_write(bus, MB_PIO, 0xcf8, &address, 4);
	mb_bus_read(bus, MB_PIO, 0xcf8, &value, 4);
	ck_assert_uint_eq(value, address);
	mb_bus_read(bus, MB_PIO, 0xcfc, &value, 4);
	ck_assert_uint_eq(value, 0x56781234);
	mb_bus_read(bus, MB_PIO, 0xcfe, &half, 2);
	ck_assert_uint_eq(half, 0x5678);
	mb_bus_read(bus, MB_PIO, 0xcfa, &value, 4); /* half address, half data */
	ck_assert_uint_eq(value, 0xffffffff);
	/* Bytes of the address register are somebody else's. */
	mb_bus_write(bus, MB_PIO, 0xcf9, "\x06", 1);
	mb_bus_read(bus, MB_PIO, 0xcf8, &value, 4);
	ck_assert_uint_eq(value, address);
	/* Another bus, and the enable bit off. */
	address |= 1u << 16;
	mb_bus_write(bus, MB_PIO, 0xcf8, &address, 4);
	mb_bus_read(bus, MB_PIO, 0xcfc, &value, 4);
	ck_assert_uint_eq(value, 0xffffffff);
	address = slot_of(&toy[0]) << 11;
	mb_bus_write(bus, MB_PIO, 0xcf8, &address, 4);
	mb_bus_read(bus, MB_PIO, 0xcfc, &value, 4);
	ck_assert_uint_eq(value, 0xffffffff);
	/* A write: the command register. */
	address = 0x80000000u | slot_of(&toy[0]) << 11 | PCI_COMMAND;
	mb_bus_write(bus, MB_PIO, 0xcf8, &address, 4);
	half = PCI_COMMAND_MEMORY;
	mb_bus_write(bus, MB_PIO, 0xcfc, &half, 2);
	ck_assert(toy[0].enabled);
}
END_TEST

START_TEST(test_bar)
{
	unsigned slot = slot_of(&toy[0]);
	uint64_t home = mb_pci_dev_bar(toy[0].pdev);

	ck_assert_uint_ge(home, MB_PCI_MMIO_BASE);
	ck_assert_uint_eq(home % BAR_BYTES, 0);
	ck_assert_uint_ne(home, mb_pci_dev_bar(toy[1].pdev));
	ck_assert(!wr(home, 4, 1));
	/* Size. */
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, 0xffffffff);
	ck_assert_uint_eq(rd(cfg(slot, PCI_BASE_ADDRESS_0), 4), ~(BAR_BYTES - 1));
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, home);
	ck_assert_uint_eq(toy[0].n_moves, 0);
	wr(cfg(slot, PCI_BASE_ADDRESS_1), 4, 0xffffffff);
	ck_assert_uint_eq(rd(cfg(slot, PCI_BASE_ADDRESS_1), 4), 0);
	wr(cfg(slot, PCI_ROM_ADDRESS), 4, 0xffffffff);
	ck_assert_uint_eq(rd(cfg(slot, PCI_ROM_ADDRESS), 4), 0);

	enable(&toy[0], PCI_COMMAND_MEMORY);
	ck_assert(toy[0].enabled);
	ck_assert_uint_eq(toy[0].gpa, home);
	ck_assert(wr(home + 0x10, 4, 0x11223344));
	ck_assert_uint_eq(rd(home + 0x10, 4), 0x11223344);
	/* Moved while it answers. */
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, 0xd0000000);
	ck_assert_uint_eq(toy[0].gpa, 0xd0000000);
	ck_assert_uint_eq(mb_pci_dev_bar(toy[0].pdev), 0xd0000000);
	ck_assert_uint_eq(rd(0xd0000010, 4), 0x11223344);
	ck_assert(!wr(home, 4, 1));
	/* Moved by one byte of the register. */
	wr(cfg(slot, PCI_BASE_ADDRESS_0 + 3), 1, 0xd1);
	ck_assert_uint_eq(toy[0].gpa, 0xd1000000);
	enable(&toy[0], 0);
	ck_assert(!toy[0].enabled);
	ck_assert(!wr(0xd1000000, 4, 1));
	/* As Linux sizes a BAR with decoding on. */
	enable(&toy[0], PCI_COMMAND_MEMORY);
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, 0xffffffff);
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, home);
	ck_assert_uint_eq(rd(home + 0x10, 4), 0x11223344);
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, 0xd0000000);
	mb_pci_dev_reset(toy[0].pdev);
	ck_assert(!toy[0].enabled);
	ck_assert_uint_eq(mb_pci_dev_bar(toy[0].pdev), home);
}
END_TEST

START_TEST(test_bar_overlap)
{
	unsigned slot = slot_of(&toy[0]);
	uint64_t home = mb_pci_dev_bar(toy[0].pdev), other = mb_pci_dev_bar(toy[1].pdev);

	enable(&toy[0], PCI_COMMAND_MEMORY);
	enable(&toy[1], PCI_COMMAND_MEMORY);
	/* Onto the other one: that one goes on answering, and this one does when it has gone. */
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, other);
	ck_assert(!toy[0].enabled && toy[1].enabled);
	wr(other, 1, 0x55);
	ck_assert_uint_eq(toy[1].reg[0], 0x55);
	enable(&toy[1], 0);
	ck_assert(toy[0].enabled && !toy[1].enabled);
	wr(other, 1, 0x66);
	ck_assert_uint_eq(toy[0].reg[0], 0x66);
	enable(&toy[1], PCI_COMMAND_MEMORY);
	ck_assert(!toy[1].enabled);
	/* Swapped. */
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, home);
	ck_assert(toy[0].enabled && toy[1].enabled);
	/* Onto ECAM: configuration space stays reachable, so the guest can take it back. */
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, MB_PCI_ECAM_BASE);
	ck_assert(!toy[0].enabled);
	ck_assert_uint_eq(rd(cfg(slot, 0), 4), 0x56781234);
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, 0); /* RAM, for the guest: harmless */
	ck_assert(toy[0].enabled);
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, 0xffff0000);
	ck_assert(toy[0].enabled);
	ck_assert_uint_eq(rd(0xffffffff, 1), 0);
	wr(cfg(slot, PCI_BASE_ADDRESS_0), 4, home);
	ck_assert(toy[0].enabled);
}
END_TEST

START_TEST(test_bus_master)
{
	enable(&toy[0], PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(toy[0].n_lost_master, 0);
	enable(&toy[0], PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(toy[0].n_lost_master, 1);
	enable(&toy[0], 0);
	ck_assert_uint_eq(toy[0].n_lost_master, 1);
}
END_TEST

START_TEST(test_no_room)
{
	struct toy many[40];
	struct mb_pci_config config = {.bar_bytes = BAR_BYTES, .ops = &toy_ops};
	struct mb_error err;
	unsigned n = 0;

	while (!mb_pci_dev_create(pci, &config, &many[n].pdev, &err))
		n++;
	ck_assert_uint_eq(n, 29);
	ck_assert_ptr_nonnull(strstr(err.text, "at most 31"));
	while (n)
		mb_pci_dev_destroy(many[--n].pdev);
	config.bar_bytes = 0x20000000;
	ck_assert_int_eq(mb_pci_dev_create(pci, &config, &many[0].pdev, &err), -ENOSPC);
}
END_TEST

/* ---- capability hook ---- */

static void hook_read(void *dev, unsigned offset, void *data, unsigned len)
{
	struct toy *t = dev;

	ck_assert_uint_ge(offset, 2);
	ck_assert_uint_le(offset + len, sizeof(t->window));
	memcpy(data, t->window + offset, len);
}

static void hook_write(void *dev, unsigned offset, const void *data, unsigned len)
{
	struct toy *t = dev;

	ck_assert_uint_ge(offset, 2);
	ck_assert_uint_le(offset + len, sizeof(t->window));
	memcpy(t->window + offset, data, len);
	t->n_cap_writes++;
}

START_TEST(test_capability_hook)
{
	uint8_t body[12] = {0, 0, 12, 5, 1, 2, 3, 4, 5, 6, 7, 8};
	unsigned slot = slot_of(&toy[0]), at, last;

	ck_assert_int_eq(mb_pci_add_capability(toy[0].pdev, body, sizeof(body), &at), 0);
	ck_assert_uint_eq(find_cap(slot, PCI_CAP_ID_VNDR), at);
	ck_assert_uint_eq(rd(cfg(slot, at + 2), 4), 0x02010500 | 12);
	wr(cfg(slot, at), 8, 0);
	ck_assert_uint_eq(rd(cfg(slot, at + 4), 4), 0x04030201);
	mb_pci_set_capability_hook(toy[0].pdev, at, hook_read, hook_write);
	memcpy(toy[0].window, body, sizeof(body));
	for (unsigned len = 1; len <= 8; len *= 2) {
		for (unsigned from = at - 8; from < at + 16; from++) {
			uint64_t before = rd(cfg(slot, from), len);

			wr(cfg(slot, from), len, before);
			ck_assert_uint_eq(rd(cfg(slot, from), len), before);
		}
	}
	ck_assert_uint_gt(toy[0].n_cap_writes, 20);
	ck_assert_mem_eq(toy[0].window, body, sizeof(body));
	ck_assert_uint_eq(rd(cfg(slot, at), 1), PCI_CAP_ID_VNDR);
	/* Until there is no room. */
	while (!mb_pci_add_capability(toy[0].pdev, body, sizeof(body), &last))
		ck_assert_uint_le(last + sizeof(body), 256);
	ck_assert_uint_eq(find_cap(slot, 0xee), 0);
}
END_TEST

/* ---- MSI-X ---- */

static uint64_t entry(const struct toy *t, unsigned vector)
{
	return t->gpa + TABLE + 16 * vector;
}

static void msix_control(const struct toy *t, unsigned flags)
{
	wr(cfg(slot_of(t), find_cap(slot_of(t), PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS), 2, flags);
}

static void program(const struct toy *t, unsigned vector, uint64_t addr, uint32_t data, bool masked)
{
	wr(entry(t, vector) + 12, 4, 1);
	wr(entry(t, vector), 8, addr);
	wr(entry(t, vector) + 8, 4, data);
	wr(entry(t, vector) + 12, 4, masked);
}

static uint64_t took(uint32_t data)
{
	return fake_kvm_take_msis(&kvm, MSI_ADDR, data);
}

static unsigned n_commits(void)
{
	return fake_kvm_n_calls(&kvm, KVM_SET_GSI_ROUTING);
}

START_TEST(test_msix)
{
	struct toy *t = &toy[0];
	unsigned commits;

	enable(t, PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(rd(entry(t, 0) + 12, 4), 1);
	/* Disabled: raised for nobody, not remembered. */
	mb_pci_msix_raise(t->pdev, 0);
	ck_assert_uint_eq(rd(t->gpa + PBA, 8), 0);
	msix_control(t, PCI_MSIX_FLAGS_ENABLE);
	for (unsigned i = 0; i < N_VECTORS; i++)
		program(t, i, MSI_ADDR, 100 + i, false);
	/* Nothing is bound before it is used. */
	ck_assert_uint_eq(fake_kvm_n_calls(&kvm, KVM_IRQFD), 0);
	ck_assert_uint_eq(n_commits(), 0);
	mb_pci_msix_raise(t->pdev, 2);
	mb_pci_msix_raise(t->pdev, 2);
	ck_assert_uint_eq(took(102), 2);
	ck_assert_uint_eq(fake_kvm_n_calls(&kvm, KVM_IRQFD), 1);
	ck_assert_uint_eq(n_commits(), 1);
	/* Mask and unmask of the same message: nothing for KVM to do. */
	wr(entry(t, 2) + 12, 4, 1);
	mb_pci_msix_raise(t->pdev, 2);
	ck_assert_uint_eq(took(102), 0);
	ck_assert_uint_eq(rd(t->gpa + PBA, 8), 1u << 2);
	ck_assert_uint_eq(rd(t->gpa + PBA, 1), 1u << 2);
	wr(t->gpa + PBA, 4, 0); /* read-only */
	wr(entry(t, 2) + 12, 4, 0);
	ck_assert_uint_eq(rd(t->gpa + PBA, 8), 0);
	ck_assert_uint_eq(took(102), 1);
	ck_assert_uint_eq(n_commits(), 1);
	/* Another message: one commit, at the unmask. */
	wr(entry(t, 2) + 12, 4, 1);
	wr(entry(t, 2) + 8, 4, 55);
	mb_pci_msix_raise(t->pdev, 2);
	ck_assert_uint_eq(n_commits(), 1);
	wr(entry(t, 2) + 12, 4, 0);
	ck_assert_uint_eq(n_commits(), 2);
	ck_assert_uint_eq(took(55), 1);
	/* Function mask. */
	msix_control(t, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	mb_pci_msix_raise(t->pdev, 2);
	mb_pci_msix_raise(t->pdev, 4);
	ck_assert_uint_eq(rd(t->gpa + PBA, 4), 1u << 2 | 1u << 4);
	ck_assert_uint_eq(took(55) + took(104), 0);
	commits = n_commits();
	msix_control(t, PCI_MSIX_FLAGS_ENABLE);
	ck_assert_uint_eq(took(55), 1);
	ck_assert_uint_eq(took(104), 1);
	ck_assert_uint_eq(n_commits(), commits + 1);
	/* Power-on: quiet, and the table is masked again. */
	mb_pci_dev_reset(t->pdev);
	mb_pci_msix_raise(t->pdev, 2);
	ck_assert_uint_eq(took(55), 0);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_routes, 0);
	enable(t, PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(rd(entry(t, 2), 8), 0);
	ck_assert_uint_eq(rd(entry(t, 2) + 12, 4), 1);
	/* And again. */
	msix_control(t, PCI_MSIX_FLAGS_ENABLE);
	program(t, 2, MSI_ADDR, 77, false);
	mb_pci_msix_raise(t->pdev, 2);
	ck_assert_uint_eq(took(77), 1);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_irqfds, 2);
}
END_TEST

START_TEST(test_msix_hostile)
{
	struct toy *t = &toy[0];

	enable(t, PCI_COMMAND_MEMORY);
	msix_control(t, PCI_MSIX_FLAGS_ENABLE);
	/* Messages that are no interrupts never reach KVM. */
	program(t, 0, 0, 1, false);
	program(t, 1, 0x1000, 1, false);
	program(t, 2, 0x1fee00000, 1, false);
	program(t, 3, UINT64_MAX, 1, false);
	for (unsigned i = 0; i < 4; i++)
		mb_pci_msix_raise(t->pdev, i);
	ck_assert_uint_eq(n_commits(), 0);
	ck_assert_uint_eq(fake_kvm_n_calls(&kvm, KVM_SIGNAL_MSI), 0);
	/* From a good message to a bad one and back, unmasked all the time. */
	program(t, 0, MSI_ADDR, 9, false);
	mb_pci_msix_raise(t->pdev, 0);
	wr(entry(t, 0), 4, 0x1000);
	mb_pci_msix_raise(t->pdev, 0);
	wr(entry(t, 0), 4, MSI_ADDR);
	mb_pci_msix_raise(t->pdev, 0);
	ck_assert_uint_eq(took(9), 2);
	/* Vectors that there are not, odd accesses, the end of the table. */
	mb_pci_msix_raise(t->pdev, N_VECTORS);
	mb_pci_msix_raise(t->pdev, UINT32_MAX);
	wr(entry(t, 0), 2, 0xffff);
	wr(entry(t, 0) + 2, 4, 0xffffffff);
	wr(entry(t, 0) + 4, 8, UINT64_MAX);
	wr(entry(t, 0), 1, 0xff);
	ck_assert_uint_eq(rd(entry(t, 0), 8), MSI_ADDR);
	ck_assert_uint_eq(rd(entry(t, 0) + 1, 2), MSI_ADDR >> 8 & 0xffff);
	ck_assert_uint_eq(rd(entry(t, N_VECTORS) - 4, 8), 1);
	wr(entry(t, N_VECTORS) - 4, 8, UINT64_MAX);
	ck_assert_uint_eq(rd(entry(t, N_VECTORS) - 4, 4), 1);
	ck_assert_uint_eq(rd(t->gpa + PBA + 7, 8), 0);
	ck_assert_uint_eq(rd(t->gpa + BAR_BYTES - 1, 1), 0);
	mb_pci_bar_write(t->pdev, UINT64_MAX, "x", 1);
	mb_pci_bar_write(t->pdev, BAR_BYTES - 1, "xy", 2);
}
END_TEST

START_TEST(test_msix_without_kvms_help)
{
	struct toy *t = &toy[0];
	const unsigned long calls[] = {KVM_IRQFD, KVM_SET_GSI_ROUTING};

	enable(t, PCI_COMMAND_MEMORY);
	msix_control(t, PCI_MSIX_FLAGS_ENABLE);
	fake_kvm_fail(&kvm, calls[_i], -ENOSPC, 0);
	program(t, 1, MSI_ADDR, 7, false);
	mb_pci_msix_raise(t->pdev, 1);
	mb_pci_msix_raise(t->pdev, 1);
	ck_assert_uint_eq(fake_kvm_n_calls(&kvm, KVM_SIGNAL_MSI), 2);
	ck_assert_uint_eq(took(7), 2);
	fake_kvm_fail(&kvm, calls[_i], 0, 0);
	/* A route that fails later. */
	program(t, 2, MSI_ADDR, 8, false);
	mb_pci_msix_raise(t->pdev, 2);
	fake_kvm_fail(&kvm, KVM_SET_GSI_ROUTING, -ENOMEM, 0);
	program(t, 2, MSI_ADDR, 18, false);
	mb_pci_msix_raise(t->pdev, 2);
	ck_assert_uint_eq(took(8), 1);
	ck_assert_uint_eq(took(18), 1);
	fake_kvm_fail(&kvm, KVM_SET_GSI_ROUTING, 0, 0);
}
END_TEST

/* ---- two vCPUs and a loop against each other, with a random guest ---- */

static void *raiser(void *arg)
{
	bool *stop = arg;

	for (unsigned i = 0; !__atomic_load_n(stop, __ATOMIC_RELAXED); i++)
		mb_pci_msix_raise(toy[i & 1].pdev, i % (N_VECTORS + 1));
	return NULL;
}

static void *garbage(void *arg)
{
	unsigned seed = *(unsigned *)arg;

	for (unsigned i = 0; i < 20000; i++) {
		unsigned len = 1u << rand_r(&seed) % 4;
		struct toy *t = &toy[rand_r(&seed) & 1];
		uint64_t value = (uint64_t)rand_r(&seed) << 32 | (unsigned)rand_r(&seed);
		uint64_t at = cfg(slot_of(t), (unsigned)rand_r(&seed) % 0x110);

		switch (rand_r(&seed) % 6) {
		case 0:
			wr(cfg(slot_of(t), PCI_BASE_ADDRESS_0), 4,
				MB_PCI_MMIO_BASE + BAR_BYTES * (unsigned)(rand_r(&seed) % 4));
			break;
		case 1:
			enable(t, PCI_COMMAND_MEMORY);
			break;
		case 2:
			at = MB_PCI_MMIO_BASE + (unsigned)rand_r(&seed) % (4 * BAR_BYTES);
			break;
		case 3:
			at = MB_PCI_MMIO_BASE + BAR_BYTES * (unsigned)(rand_r(&seed) % 4) + TABLE +
			     4 * (unsigned)(rand_r(&seed) % 20);
			value = rand_r(&seed) & 1 ? MSI_ADDR : 0;
			len = 4;
			break;
		default:
			break;
		}
		if (rand_r(&seed) & 1)
			rd(at, len);
		else
			wr(at, len, value);
	}
	return NULL;
}

START_TEST(test_garbage)
{
	const char *given = getenv("MB_TEST_SEED");
	unsigned seeds[2] = {(unsigned)time(NULL) * 2654435761u};
	pthread_t vcpu, loop;
	bool stop = false;

	if (given)
		seeds[0] = (unsigned)strtoul(given, NULL, 0);
	seeds[1] = seeds[0] + 1;
	printf("pci: MB_TEST_SEED=%u\n", seeds[0]);
	/* toy_moved's own assertions are part of the test. */
	pthread_create(&loop, NULL, raiser, &stop);
	pthread_create(&vcpu, NULL, garbage, &seeds[0]);
	garbage(&seeds[1]);
	pthread_join(vcpu, NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(loop, NULL);
	mb_pci_dev_reset(toy[0].pdev);
	mb_pci_dev_reset(toy[1].pdev);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("pci");
	TCase *tc = tcase_create("pci");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, test_header);
	tcase_add_test(tc, test_ports);
	tcase_add_test(tc, test_bar);
	tcase_add_test(tc, test_bar_overlap);
	tcase_add_test(tc, test_bus_master);
	tcase_add_test(tc, test_no_room);
	tcase_add_test(tc, test_capability_hook);
	tcase_add_test(tc, test_msix);
	tcase_add_test(tc, test_msix_hostile);
	tcase_add_loop_test(tc, test_msix_without_kvms_help, 0, 2);
	tcase_add_test(tc, test_garbage);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
