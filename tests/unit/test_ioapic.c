// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <mirrorball/irq.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* The VM underneath: remembers routes and messages. Linked instead of kvm/vm.c's functions. */
struct mb_vm {
	uint64_t addr[MB_IOAPIC_PINS];
	uint32_t data[MB_IOAPIC_PINS];
	unsigned n_routes; /* calls */
	int route_rc, send_rc;
	unsigned n_sent;
	uint64_t sent_addr;
	uint32_t sent_data;
};

int mb_vm_gsi_route(struct mb_vm *vm, unsigned gsi, uint64_t msi_addr, uint32_t msi_data)
{
	ck_assert_uint_lt(gsi, MB_IOAPIC_PINS);
	vm->n_routes++;
	if (vm->route_rc)
		return vm->route_rc;
	vm->addr[gsi] = msi_addr;
	vm->data[gsi] = msi_data;
	return 0;
}

int mb_vm_msi_send(struct mb_vm *vm, uint64_t msi_addr, uint32_t msi_data)
{
	vm->n_sent++;
	vm->sent_addr = msi_addr;
	vm->sent_data = msi_data;
	return vm->send_rc;
}

static struct mb_bus *bus;
static struct mb_vm vm;
static struct mb_ioapic *ioapic;

static void setup(void)
{
	struct mb_error err;

	vm = (struct mb_vm){0};
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_ioapic_create(bus, &vm, &ioapic, &err), 0);
}

static void teardown(void)
{
	mb_ioapic_destroy(ioapic);
	mb_bus_destroy(bus);
}

static void store(unsigned offset, uint32_t value)
{
	ck_assert(mb_bus_write(bus, MB_MMIO, MB_IOAPIC_BASE + offset, &value, 4));
}

static uint32_t load(unsigned offset)
{
	uint32_t value;

	ck_assert(mb_bus_read(bus, MB_MMIO, MB_IOAPIC_BASE + offset, &value, 4));
	return value;
}

static void write_index(uint8_t index, uint32_t value)
{
	store(0x00, index);
	store(0x10, value);
}

static uint32_t read_index(uint8_t index)
{
	store(0x00, index);
	return load(0x10);
}

#define LEVEL	       (1u << 15)
#define MASKED	       (1u << 16)
#define REMOTE	       (1u << 14)
#define LOGICAL	       (1u << 11)
#define LOW	       (1u << 13)
#define LOW_HALF(pin)  ((uint8_t)(0x10 + 2 * (pin)))
#define HIGH_HALF(pin) ((uint8_t)(0x11 + 2 * (pin)))

START_TEST(registers)
{
	ck_assert_uint_eq(read_index(0), 0);
	ck_assert_uint_eq(read_index(1), 0x00170020);
	write_index(0, 0xffffffff);
	ck_assert_uint_eq(read_index(0), 0x0f000000);
	ck_assert_uint_eq(read_index(2), 0x0f000000);
	ck_assert_uint_eq(read_index(3), 1);
	ck_assert_uint_eq(load(0x00), 3);
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++) {
		ck_assert_uint_eq(read_index(LOW_HALF(pin)), MASKED);
		ck_assert_uint_eq(read_index(HIGH_HALF(pin)), 0);
	}
	/* Reserved bits and those that are ours stay 0; bit 48 (remapping) does too. */
	write_index(LOW_HALF(5), 0xffffffff);
	write_index(HIGH_HALF(5), 0xffffffff);
	ck_assert_uint_eq(read_index(LOW_HALF(5)), 0x0001afff);
	ck_assert_uint_eq(read_index(HIGH_HALF(5)), 0xfffe0000);
	/* Beyond the table. */
	write_index(0x40, 0xffffffff);
	ck_assert_uint_eq(read_index(0x40), 0);
	write_index(0xff, 1);
	ck_assert_uint_eq(read_index(0xff), 0);
	ck_assert_uint_eq(vm.n_routes, 0);
}
END_TEST

START_TEST(partial_accesses)
{
	uint8_t byte = 0x10;
	uint64_t quad = 0x30;

	mb_bus_write(bus, MB_MMIO, MB_IOAPIC_BASE, &byte, 1);
	ck_assert_uint_eq(load(0), 0x10);
	mb_bus_write(bus, MB_MMIO, MB_IOAPIC_BASE + 0x10, &byte, 1); /* ignored */
	ck_assert_uint_eq(load(0x10), MASKED);
	mb_bus_write(bus, MB_MMIO, MB_IOAPIC_BASE + 0x10, &quad, 8);
	ck_assert_uint_eq(load(0x10), 0x30);
	mb_bus_read(bus, MB_MMIO, MB_IOAPIC_BASE + 0x10, &quad, 8);
	ck_assert_uint_eq(quad, 0x30);
	ck_assert_uint_eq(load(0x20), 0);
}
END_TEST

START_TEST(edge)
{
	struct mb_irq_line line = mb_ioapic_line(ioapic, 4);

	/* While masked it is lost. */
	mb_irq_line_set(&line, true);
	write_index(HIGH_HALF(4), 3u << 24);
	write_index(LOW_HALF(4), 0x31);
	ck_assert_uint_eq(vm.n_sent, 0);
	ck_assert_uint_eq(vm.addr[4], 0xfee03000);
	ck_assert_uint_eq(vm.data[4], 0x4031);
	/* Only a change sends. */
	mb_irq_line_set(&line, true);
	ck_assert_uint_eq(vm.n_sent, 0);
	mb_irq_line_set(&line, false);
	mb_irq_line_set(&line, true);
	ck_assert_uint_eq(vm.n_sent, 1);
	ck_assert_uint_eq(vm.sent_addr, 0xfee03000);
	ck_assert_uint_eq(vm.sent_data, 0x4031);
	ck_assert_uint_eq(read_index(LOW_HALF(4)), 0x31);
	mb_irq_line_set(&line, false);
	mb_irq_line_set(&line, true);
	ck_assert_uint_eq(vm.n_sent, 2);
	/* Masking takes the route away. */
	write_index(LOW_HALF(4), MASKED | 0x31);
	ck_assert_uint_eq(vm.addr[4], 0);
}
END_TEST

START_TEST(level)
{
	mb_ioapic_set(ioapic, 9, true);
	write_index(LOW_HALF(9), MASKED | LEVEL | 0x42);
	ck_assert_uint_eq(vm.n_sent, 0);
	write_index(LOW_HALF(9), LEVEL | LOW | 0x42); /* high: due as soon as it is unmasked */
	ck_assert_uint_eq(vm.n_sent, 1);
	ck_assert_uint_eq(vm.sent_data, 0xc042);
	ck_assert_uint_eq(vm.data[9], 0xc042);
	ck_assert_uint_eq(read_index(LOW_HALF(9)), LEVEL | LOW | REMOTE | 0x42);
	/* Not again before its EOI. */
	mb_ioapic_set(ioapic, 9, false);
	mb_ioapic_set(ioapic, 9, true);
	ck_assert_uint_eq(vm.n_sent, 1);
	mb_ioapic_eoi(ioapic, 0x41); /* another's */
	ck_assert_uint_eq(vm.n_sent, 1);
	mb_ioapic_eoi(ioapic, 0x42); /* still high */
	ck_assert_uint_eq(vm.n_sent, 2);
	mb_ioapic_set(ioapic, 9, false);
	mb_ioapic_eoi(ioapic, 0x42);
	ck_assert_uint_eq(vm.n_sent, 2);
	ck_assert_uint_eq(read_index(LOW_HALF(9)), LEVEL | LOW | 0x42);
	mb_ioapic_eoi(ioapic, 0x42);
	ck_assert_uint_eq(vm.n_sent, 2);
}
END_TEST

/* Linux masks, ends and unmasks the interrupt of a threaded handler in this order. */
START_TEST(masked_in_service)
{
	write_index(LOW_HALF(9), LEVEL | 0x42);
	mb_ioapic_set(ioapic, 9, true);
	ck_assert_uint_eq(vm.n_sent, 1);
	write_index(LOW_HALF(9), MASKED | LEVEL | 0x42);
	ck_assert_uint_eq(vm.data[9], 0xc042); /* or KVM would keep the EOI to itself */
	mb_ioapic_eoi(ioapic, 0x42);
	ck_assert_uint_eq(vm.addr[9], 0);
	ck_assert_uint_eq(vm.n_sent, 1);
	mb_ioapic_set(ioapic, 9, false);
	write_index(LOW_HALF(9), LEVEL | 0x42);
	ck_assert_uint_eq(vm.n_sent, 1);
	ck_assert_uint_eq(vm.data[9], 0xc042);
	mb_ioapic_set(ioapic, 9, true);
	ck_assert_uint_eq(vm.n_sent, 2);
}
END_TEST

START_TEST(eoi_register)
{
	write_index(LOW_HALF(2), LEVEL | 0x50);
	write_index(LOW_HALF(3), LEVEL | 0x50); /* a shared vector ends both */
	mb_ioapic_set(ioapic, 2, true);
	mb_ioapic_set(ioapic, 3, true);
	ck_assert_uint_eq(vm.n_sent, 2);
	mb_ioapic_set(ioapic, 2, false);
	store(0x40, 0x50);
	ck_assert_uint_eq(vm.n_sent, 3);
	ck_assert_uint_eq(read_index(LOW_HALF(2)), LEVEL | 0x50);
	ck_assert_uint_eq(read_index(LOW_HALF(3)), LEVEL | REMOTE | 0x50);
	/* The other way to end one: to edge and back. */
	write_index(LOW_HALF(3), MASKED | 0x50);
	ck_assert_uint_eq(read_index(LOW_HALF(3)), MASKED | 0x50);
	write_index(LOW_HALF(3), LEVEL | 0x50);
	ck_assert_uint_eq(vm.n_sent, 4);
}
END_TEST

START_TEST(destinations)
{
	/* Bits 55:49 are destination bits 14:8: id 0x1234, logical. */
	write_index(HIGH_HALF(1), 0x34u << 24 | 0x12u << 17 | 1u << 16);
	write_index(LOW_HALF(1), LOGICAL | 0x60);
	ck_assert_uint_eq(vm.addr[1], 0xfee34000 | 0x12 << 5 | 4);
	ck_assert_uint_eq(vm.data[1], 0x4060);
}
END_TEST

START_TEST(delivery_modes)
{
	/*
	 * Fixed, lowest, SMI, reserved, NMI, INIT, reserved, ExtINT; NMI and INIT are always edges.
	 */
	static const bool sends[] = {true, true, false, false, true, true, false, false};

	for (uint32_t mode = 0; mode < 8; mode++) {
		unsigned before = vm.n_sent;

		mb_ioapic_set(ioapic, 7, false);
		write_index(LOW_HALF(7), MASKED);
		write_index(LOW_HALF(7), LEVEL | mode << 8 | 0x70);
		mb_ioapic_set(ioapic, 7, true);
		ck_assert_uint_eq(vm.n_sent - before, sends[mode]);
		if (sends[mode])
			ck_assert_uint_eq(
				vm.sent_data, 0x4070 | mode << 8 | (mode < 2 ? LEVEL : 0));
		ck_assert_uint_eq(vm.addr[7] != 0, sends[mode]);
		mb_ioapic_eoi(ioapic, 0x70);
	}
	/* Vectors of exceptions. */
	vm.n_sent = 0;
	mb_ioapic_set(ioapic, 7, false);
	write_index(LOW_HALF(7), 0x0f);
	mb_ioapic_set(ioapic, 7, true);
	ck_assert_uint_eq(vm.n_sent, 0);
	ck_assert_uint_eq(vm.addr[7], 0);
}
END_TEST

START_TEST(reset)
{
	write_index(0, 0x05000000);
	write_index(LOW_HALF(9), LEVEL | 0x42);
	mb_ioapic_set(ioapic, 9, true);
	mb_ioapic_reset(ioapic);
	ck_assert_uint_eq(read_index(0), 0);
	ck_assert_uint_eq(read_index(LOW_HALF(9)), MASKED);
	ck_assert_uint_eq(vm.addr[9], 0);
	write_index(LOW_HALF(9), LEVEL | 0x42);
	ck_assert_uint_eq(vm.n_sent, 1);
}
END_TEST

START_TEST(failures)
{
	/* Nobody took it: due again with the next change. */
	vm.send_rc = -1;
	write_index(LOW_HALF(9), LEVEL | 0x42);
	mb_ioapic_set(ioapic, 9, true);
	ck_assert_uint_eq(read_index(LOW_HALF(9)), LEVEL | 0x42);
	vm.send_rc = 0;
	write_index(HIGH_HALF(9), 1u << 24);
	ck_assert_uint_eq(read_index(LOW_HALF(9)), LEVEL | REMOTE | 0x42);
	/* A route that KVM refused is tried again at the next write. */
	vm.route_rc = -12;
	write_index(LOW_HALF(3), 0x33);
	ck_assert_uint_eq(vm.addr[3], 0);
	vm.route_rc = 0;
	write_index(LOW_HALF(3), 0x33);
	ck_assert_uint_eq(vm.addr[3], 0xfee00000);
}
END_TEST

/* Any writes in any order: remote IRR only on level entries, routes only where an entry says so. */
START_TEST(random_writes)
{
	unsigned seed = (unsigned)time(NULL);

	printf("ioapic: seed %u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 200000; i++) {
		unsigned offset = (unsigned)rand() % 0x44, len = 1u << (unsigned)rand() % 4;
		uint64_t value = (uint64_t)rand() << 33 ^ (uint64_t)rand();

		switch (rand() % 4) {
		case 0:
			mb_ioapic_set(ioapic, (unsigned)rand() % MB_IOAPIC_PINS, rand() & 1);
			break;
		case 1:
			mb_ioapic_eoi(ioapic, (uint8_t)rand());
			break;
		case 2:
			store(0, (unsigned)rand() % 0x42);
			store(0x10, (uint32_t)value);
			break;
		default:
			mb_bus_write(bus, MB_MMIO, MB_IOAPIC_BASE + offset, &value, len);
			mb_bus_read(bus, MB_MMIO, MB_IOAPIC_BASE + offset, &value, len);
		}
	}
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++) {
		uint32_t low = read_index(LOW_HALF(pin));

		if (low & REMOTE)
			ck_assert(low & LEVEL);
		if (!(low & MASKED) && vm.addr[pin])
			ck_assert_uint_eq(vm.data[pin] & 0xff, low & 0xff);
		if ((low & MASKED) && !(low & REMOTE))
			ck_assert_uint_eq(vm.addr[pin], 0);
	}
}
END_TEST

START_TEST(address_taken)
{
	struct mb_ioapic *second = NULL;
	struct mb_error err;

	ck_assert_int_lt(mb_ioapic_create(bus, &vm, &second, &err), 0);
	ck_assert_ptr_null(second);
	ck_assert_str_eq(err.text, "I/O APIC: claim address 0xfec00000: File exists");
	mb_ioapic_destroy(NULL);
}
END_TEST

/* An interrupt in service, masked meanwhile: its end reaches the one that goes on. */
START_TEST(snapshot)
{
	struct mb_state_out state = {0};
	struct mb_state_in from;
	struct mb_ioapic *other;
	struct mb_bus *other_bus;
	struct mb_vm other_vm = {0};
	struct mb_error err;

	write_index(HIGH_HALF(9), 3u << 24);
	write_index(LOW_HALF(9), 0x51 | LEVEL);
	write_index(LOW_HALF(4), 0x44);
	mb_ioapic_set(ioapic, 9, true);
	ck_assert_uint_eq(vm.n_sent, 1);
	write_index(LOW_HALF(9), 0x51 | LEVEL | MASKED);
	mb_ioapic_save(ioapic, &state);
	ck_assert_int_eq(state.rc, 0);
	ck_assert_int_eq(mb_bus_create(&other_bus), 0);
	ck_assert_int_eq(mb_ioapic_create(other_bus, &other_vm, &other, &err), 0);
	for (size_t n = 0; n < state.len; n++) {
		from = (struct mb_state_in){.at = state.data, .left = n};
		ck_assert_int_eq(mb_ioapic_load(other, &from, &err), -EINVAL);
	}
	from = (struct mb_state_in){.at = state.data, .left = state.len};
	ck_assert_int_eq(mb_ioapic_load(other, &from, &err), 0);
	for (unsigned pin = 0; pin < MB_IOAPIC_PINS; pin++) {
		ck_assert_uint_eq(other_vm.addr[pin], vm.addr[pin]);
		ck_assert_uint_eq(other_vm.data[pin], vm.data[pin]);
	}
	ck_assert_uint_ne(other_vm.addr[9], 0);
	/* Nothing comes twice; the line is still up when it has been unmasked and ended. */
	ck_assert_uint_eq(other_vm.n_sent, 0);
	mb_ioapic_eoi(other, 0x51);
	ck_assert_uint_eq(other_vm.n_sent, 0);
	ck_assert_uint_eq(other_vm.addr[9], 0);
	{
		struct mb_bus *first = bus;

		bus = other_bus;
		write_index(LOW_HALF(9), 0x51 | LEVEL);
		bus = first;
	}
	ck_assert_uint_eq(other_vm.n_sent, 1);
	ck_assert_uint_eq(other_vm.sent_addr, 0xfee03000);
	mb_ioapic_destroy(other);
	mb_bus_destroy(other_bus);
	mb_state_out_finish(&state);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ioapic");
	TCase *tcase = tcase_create("ioapic");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, registers);
	tcase_add_test(tcase, partial_accesses);
	tcase_add_test(tcase, edge);
	tcase_add_test(tcase, level);
	tcase_add_test(tcase, masked_in_service);
	tcase_add_test(tcase, eoi_register);
	tcase_add_test(tcase, destinations);
	tcase_add_test(tcase, delivery_modes);
	tcase_add_test(tcase, reset);
	tcase_add_test(tcase, failures);
	tcase_add_test(tcase, random_writes);
	tcase_add_test(tcase, address_taken);
	tcase_add_test(tcase, snapshot);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
