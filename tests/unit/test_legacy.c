// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <mirrorball/legacy.h>
#include <mirrorball/pvpanic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECOND_NS 1000000000ll

static struct mb_bus *bus;
static struct mb_error err;

static void outb(unsigned port, unsigned value)
{
	uint8_t byte = (uint8_t)value;

	ck_assert(mb_bus_write(bus, MB_PIO, port, &byte, 1));
}

static unsigned inb(unsigned port)
{
	uint8_t byte;

	ck_assert(mb_bus_read(bus, MB_PIO, port, &byte, 1));
	return byte;
}

/* ---- rtc ---- */

static struct mb_rtc *rtc;
static int64_t now_ns;

static int64_t test_clock(void *ctx)
{
	return *(int64_t *)ctx;
}

static void rtc_setup(void)
{
	/* 2026-11-22 21:05:09.25 UTC, a Sunday. */
	now_ns = 1795381509 * SECOND_NS + SECOND_NS / 4;
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_rtc_create_with_clock(bus, test_clock, &now_ns, &rtc, &err), 0);
}

static void rtc_teardown(void)
{
	mb_rtc_destroy(rtc);
	mb_bus_destroy(bus);
}

static void cmos_write(unsigned reg, unsigned value)
{
	outb(0x70, reg);
	outb(0x71, value);
}

static unsigned cmos_read(unsigned reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

enum {
	SEC = 0,
	MIN = 2,
	HOUR = 4,
	WDAY = 6,
	DAY = 7,
	MON = 8,
	YEAR = 9,
	A = 10,
	B = 11,
	C = 12,
	D = 13,
	CENTURY = 0x32,
};

/* As BCD text, most significant first: "20 26 11 22 07 21 05 09" without the spaces. */
#define check_time(text)                                                                           \
	do {                                                                                       \
		char buf_[17];                                                                     \
		snprintf(buf_, sizeof(buf_), "%02x%02x%02x%02x%02x%02x%02x%02x",                   \
			cmos_read(CENTURY), cmos_read(YEAR), cmos_read(MON), cmos_read(DAY),       \
			cmos_read(WDAY), cmos_read(HOUR), cmos_read(MIN), cmos_read(SEC));         \
		ck_assert_str_eq(buf_, text);                                                      \
	} while (0)

START_TEST(rtc_reads)
{
	ck_assert_uint_eq(cmos_read(A), 0x26);
	ck_assert_uint_eq(cmos_read(B), 0x02);
	ck_assert_uint_eq(cmos_read(C), 0x00);
	ck_assert_uint_eq(cmos_read(D), 0x80);
	check_time("2026112201210509");
	cmos_write(B, 0x06); /* binary */
	check_time("141a0b160115"
		   "0509");
	cmos_write(B, 0x00); /* BCD, 12 hours: 9 in the afternoon */
	check_time("2026112201890509");
	cmos_write(B, 0x04);
	ck_assert_uint_eq(cmos_read(HOUR), 0x89);
	cmos_write(B, 0x00);
	now_ns += 3 * 3600 * SECOND_NS; /* midnight is 12 in the morning */
	check_time("2026112302120509");
	now_ns += 12 * 3600 * SECOND_NS;
	ck_assert_uint_eq(cmos_read(HOUR), 0x92);
	cmos_write(B, 0x02);
	ck_assert_uint_eq(cmos_read(HOUR), 0x12);
	now_ns = 951782400 * SECOND_NS; /* 2000-02-29 */
	check_time("2000022903000000");
	now_ns = -SECOND_NS; /* the second before 1970 */
	check_time("1969123104235959");
	ck_assert_uint_eq(inb(0x70), 0xff);
}
END_TEST

START_TEST(rtc_ram)
{
	for (unsigned reg = 0x0e; reg < 0x80; reg++) {
		if (reg != CENTURY)
			cmos_write(reg, reg ^ 0x5a);
	}
	for (unsigned reg = 0x0e; reg < 0x80; reg++) {
		if (reg != CENTURY)
			ck_assert_uint_eq(cmos_read(reg), reg ^ 0x5a);
	}
	ck_assert_uint_eq(cmos_read(0x80 | 0x0e), 0x0e ^ 0x5a); /* bit 7 is the NMI mask */
	for (unsigned reg = 1; reg < 6; reg += 2) {		/* alarm */
		cmos_write(reg, 0xc0);
		ck_assert_uint_eq(cmos_read(reg), 0xc0);
	}
	cmos_write(C, 0xff);
	cmos_write(D, 0);
	ck_assert_uint_eq(cmos_read(C), 0);
	ck_assert_uint_eq(cmos_read(D), 0x80);
	cmos_write(B, 0x72); /* interrupts enabled: kept, but there are none */
	ck_assert_uint_eq(cmos_read(B), 0x72);
	ck_assert_uint_eq(cmos_read(C), 0);
	check_time("2026112201210509");
}
END_TEST

START_TEST(rtc_update_in_progress)
{
	now_ns += SECOND_NS / 2;
	ck_assert_uint_eq(cmos_read(A), 0x26);
	now_ns += SECOND_NS / 4 - 2229000;
	ck_assert_uint_eq(cmos_read(A), 0x26);
	now_ns += 1001;
	ck_assert_uint_eq(cmos_read(A), 0xa6);
	check_time("2026112201210509");
	cmos_write(A, 0xff); /* UIP cannot be written; with the divider held there are no updates */
	ck_assert_uint_eq(cmos_read(A), 0x7f);
	cmos_write(A, 0x26);
	ck_assert_uint_eq(cmos_read(A), 0x26); /* the next update is half a second away */
	now_ns += SECOND_NS / 2 - 1;
	ck_assert_uint_eq(cmos_read(A), 0xa6);
	check_time("2026112201210509");
	now_ns += 1;
	ck_assert_uint_eq(cmos_read(A), 0x26);
	check_time("2026112201210510");
	cmos_write(B, 0x82);
	now_ns += SECOND_NS - 1;
	ck_assert_uint_eq(cmos_read(A), 0x26);
	check_time("2026112201210510"); /* stopped */
	cmos_write(B, 0x02);
	check_time("2026112201210510"); /* and went on from there */
}
END_TEST

START_TEST(rtc_set)
{
	cmos_write(B, 0x82);
	cmos_write(SEC, 0x30);
	cmos_write(MIN, 0x59);
	cmos_write(HOUR, 0x23);
	cmos_write(DAY, 0x31);
	cmos_write(MON, 0x12);
	cmos_write(YEAR, 0x99);
	cmos_write(CENTURY, 0x19);
	cmos_write(WDAY, 0x01); /* wrong; the date says which */
	check_time("1999123101235930");
	cmos_write(B, 0x02);
	check_time("1999123106235930");
	now_ns += 30 * SECOND_NS;
	check_time("2000010107000000");
	/* 12 hours, binary. */
	cmos_write(B, 0x84);
	cmos_write(HOUR, 0x80 | 11);
	cmos_write(MIN, 45);
	cmos_write(SEC, 15);
	cmos_write(DAY, 2);
	cmos_write(MON, 3);
	cmos_write(YEAR, 50);
	cmos_write(CENTURY, 20);
	cmos_write(B, 0x04);
	cmos_write(B, 0x02);
	check_time("2050030204234515");
	cmos_write(B, 0x80);
	cmos_write(HOUR, 0x12); /* midnight */
	cmos_write(YEAR, 0x50);
	cmos_write(CENTURY, 0x20);
	cmos_write(DAY, 0x02);
	cmos_write(MON, 0x03);
	cmos_write(B, 0x00);
	cmos_write(B, 0x02);
	ck_assert_uint_eq(cmos_read(HOUR), 0x00);
	/* Without stopping the clock. */
	cmos_write(HOUR, 0x17);
	check_time("2050030204174515");
}
END_TEST

/* What is no date leaves the clock as it is. */
START_TEST(rtc_nonsense)
{
	static const struct {
		unsigned reg, value;
	} bad[] = {{SEC, 0x60}, {SEC, 0x0a}, {MIN, 0x99}, {HOUR, 0x24}, {DAY, 0}, {DAY, 0x32},
		{MON, 0}, {MON, 0x13}, {MON, 0xff}, {YEAR, 0xa0}, {CENTURY, 0xff}, {CENTURY, 0x99},
		{CENTURY, 0x00}};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cmos_write(B, 0x82);
		cmos_write(bad[i].reg, bad[i].value);
		ck_assert_uint_eq(cmos_read(bad[i].reg), bad[i].value);
		cmos_write(B, 0x02);
		check_time("2026112201210509");
	}
	cmos_write(B, 0x80);
	cmos_write(HOUR, 0x00); /* with 12 hours there is no hour 0 */
	cmos_write(B, 0x00);
	cmos_write(B, 0x02);
	check_time("2026112201210509");
}
END_TEST

START_TEST(rtc_random)
{
	unsigned seed = (unsigned)time(NULL);

	printf("rtc: seed %u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 200000; i++) {
		outb(0x70, (unsigned)rand() % 3 ? (unsigned)rand() % 14 : CENTURY);
		if (rand() & 1) {
			outb(0x71, (unsigned)rand());
		} else {
			uint16_t word;

			mb_bus_read(bus, MB_PIO, 0x70, &word, 2);
		}
		if (!(rand() % 100))
			now_ns = (int64_t)((uint64_t)rand() << 33 ^ (uint64_t)rand());
	}
}
END_TEST

START_TEST(rtc_host_time)
{
	struct mb_rtc *second;
	struct tm tm = {0};
	time_t t;

	ck_assert_int_lt(mb_rtc_create(bus, &second, &err), 0);
	ck_assert_str_eq(err.text, "real-time clock: claim I/O port 0x70: File exists");
	mb_rtc_destroy(rtc);
	ck_assert_int_eq(mb_rtc_create(bus, &rtc, &err), 0);
	cmos_write(B, 0x06);
	cmos_write(B, 0x86);
	tm.tm_sec = (int)cmos_read(SEC);
	tm.tm_min = (int)cmos_read(MIN);
	tm.tm_hour = (int)cmos_read(HOUR);
	tm.tm_mday = (int)cmos_read(DAY);
	tm.tm_mon = (int)cmos_read(MON) - 1;
	tm.tm_year = (int)(cmos_read(CENTURY) * 100 + cmos_read(YEAR)) - 1900;
	t = timegm(&tm);
	ck_assert_int_le(labs(time(NULL) - t), 2);
	mb_rtc_destroy(NULL);
}
END_TEST

/* ---- i8042, power, pvpanic ---- */

static unsigned n_reset, n_off, n_panicked, n_crash_loaded;
static bool line;

static void count_reset(void *ctx)
{
	ck_assert_ptr_eq(ctx, &n_reset);
	n_reset++;
}

static void count_off(void *ctx)
{
	n_off++;
}

static void count_panicked(void *ctx)
{
	n_panicked++;
}

static void count_crash_loaded(void *ctx)
{
	n_crash_loaded++;
}

static void irq_set(void *ctx, unsigned pin, bool level)
{
	ck_assert_uint_eq(pin, MB_POWER_PIN);
	line = level;
}

static void bus_setup(void)
{
	ck_assert_int_eq(mb_bus_create(&bus), 0);
}

static void bus_teardown(void)
{
	mb_bus_destroy(bus);
}

START_TEST(keyboard)
{
	struct mb_i8042 *i8042, *second;
	unsigned n_flushed = 0, before;

	ck_assert_int_eq(mb_i8042_create(bus, count_reset, &n_reset, &i8042, &err), 0);
	/* A driver that gives up after 16 bytes does; one that flushes for ever comes to an end. */
	while (inb(0x64) & 1) {
		ck_assert_uint_eq(inb(0x64) & 2, 0);
		ck_assert_uint_eq(inb(0x60), 0xff);
		n_flushed++;
	}
	ck_assert_uint_gt(n_flushed, 16);
	ck_assert_uint_lt(n_flushed, 100);
	/* The self test is not answered with 0x55, at once. */
	outb(0x64, 0xaa);
	ck_assert_uint_eq(inb(0x64), 1);
	ck_assert_uint_eq(inb(0x60), 0xff);
	outb(0x60, 0xff);
	ck_assert_uint_eq(n_reset, 0);
	outb(0x64, 0xfe);
	ck_assert_uint_eq(n_reset, 1);
	/* Port 0x61: the gate and speaker bits are kept, the others change. */
	outb(0x61, 0xff);
	before = inb(0x61);
	ck_assert_uint_eq(before & 0xcf, 0x0f);
	ck_assert_uint_eq(before ^ inb(0x61), 0x30);
	outb(0x61, 0x01);
	ck_assert_uint_eq(inb(0x61) & 0xcf, 0x01);
	/* A port taken: nothing is left behind. */
	ck_assert_int_lt(mb_i8042_create(bus, count_reset, NULL, &second, &err), 0);
	ck_assert_str_eq(err.text, "i8042: claim I/O port 0x60: File exists");
	mb_i8042_destroy(i8042);
	ck_assert_int_eq(mb_i8042_create(bus, count_reset, NULL, &i8042, &err), 0);
	mb_i8042_destroy(i8042);
	mb_i8042_destroy(NULL);
}
END_TEST

static uint32_t inl(unsigned port)
{
	uint32_t value;

	ck_assert(mb_bus_read(bus, MB_PIO, port, &value, 4));
	return value;
}

START_TEST(power_registers)
{
	static const struct mb_power_ops ops = {.poweroff = count_off, .reset = count_reset};
	struct mb_irq_line irq = {.set = irq_set, .pin = MB_POWER_PIN};
	struct mb_power *power;

	ck_assert_int_eq(mb_power_create(bus, irq, &ops, &n_reset, &power, &err), 0);
	for (unsigned i = 0; i < 8; i++)
		ck_assert_uint_eq(inb(MB_POWER_PORT + i), 0);
	/* The button. */
	mb_power_button(power);
	mb_power_button(power);
	ck_assert(line);
	ck_assert_uint_eq(inl(MB_POWER_PORT + 4), 1);
	ck_assert(!line);
	ck_assert_uint_eq(inl(MB_POWER_PORT + 4), 0);
	mb_power_button(power);
	ck_assert_uint_eq(inb(MB_POWER_PORT + 5), 0); /* only the register itself clears */
	ck_assert(line);
	mb_power_reset(power);
	ck_assert(!line);
	ck_assert_uint_eq(inl(MB_POWER_PORT + 4), 0);
	/* Sleep: only with the enable bit, only type 5. */
	outb(MB_POWER_PORT, 5 << 2);
	outb(MB_POWER_PORT, 3 << 2 | 0x20);
	ck_assert_uint_eq(n_off, 0);
	outb(MB_POWER_PORT, 5 << 2 | 0x20);
	ck_assert_uint_eq(n_off, 1);
	ck_assert_uint_eq(inb(MB_POWER_PORT), 0);
	outb(MB_POWER_PORT + 1, 0x80);
	outb(MB_POWER_PORT + 2, 0);
	outb(MB_POWER_PORT + 2, 6);
	ck_assert_uint_eq(n_reset, 0);
	outb(MB_POWER_PORT + 2, 1);
	ck_assert_uint_eq(n_reset, 1);
	mb_power_destroy(power);
	mb_power_destroy(NULL);
}
END_TEST

START_TEST(panic_port)
{
	static const struct mb_pvpanic_ops ops = {
		.panicked = count_panicked, .crash_loaded = count_crash_loaded};
	struct mb_pvpanic *pvpanic, *second;

	ck_assert_int_eq(mb_pvpanic_create(bus, &ops, NULL, &pvpanic, &err), 0);
	ck_assert_int_lt(mb_pvpanic_create(bus, &ops, NULL, &second, &err), 0);
	ck_assert_str_eq(err.text, "panic port: claim I/O port 0x505: File exists");
	ck_assert_uint_eq(inb(0x505), 3);
	outb(0x505, 0);
	outb(0x505, 0xfc);
	ck_assert_uint_eq(n_panicked + n_crash_loaded, 0);
	outb(0x505, 1);
	ck_assert_uint_eq(n_panicked, 1);
	outb(0x505, 2);
	ck_assert_uint_eq(n_panicked, 1);
	ck_assert_uint_eq(n_crash_loaded, 1);
	mb_pvpanic_destroy(pvpanic);
	mb_pvpanic_destroy(NULL);
}
END_TEST

START_TEST(rtc_snapshot)
{
	struct mb_state_out state = {0};
	struct mb_state_in from;

	cmos_write(0x40, 0x99);
	cmos_write(B, 0x82);
	cmos_write(HOUR, 0x23);
	cmos_write(B, 0x02);
	outb(0x70, 0x40);
	mb_rtc_save(rtc, &state);
	mb_rtc_destroy(rtc);
	ck_assert_int_eq(mb_rtc_create_with_clock(bus, test_clock, &now_ns, &rtc, &err), 0);
	from = (struct mb_state_in){.at = state.data, .left = state.len - 1};
	ck_assert_int_lt(mb_rtc_load(rtc, &from, &err), 0);
	from = (struct mb_state_in){.at = state.data, .left = state.len};
	ck_assert_int_eq(mb_rtc_load(rtc, &from, &err), 0);
	ck_assert_uint_eq(inb(0x71), 0x99);
	/* It has gone on. */
	now_ns += 2 * SECOND_NS;
	check_time("2026112201230511");
	mb_state_out_finish(&state);
}
END_TEST

START_TEST(ports_snapshot)
{
	static const struct mb_power_ops ops = {.poweroff = count_off, .reset = count_reset};
	struct mb_irq_line irq = {.set = irq_set, .pin = MB_POWER_PIN};
	struct mb_state_out state = {0};
	struct mb_state_in from;
	struct mb_power *power;
	struct mb_i8042 *i8042;

	ck_assert_int_eq(mb_power_create(bus, irq, &ops, &n_reset, &power, &err), 0);
	ck_assert_int_eq(mb_i8042_create(bus, count_reset, NULL, &i8042, &err), 0);
	mb_power_button(power);
	mb_power_new_generation(power);
	outb(0x61, 0x03);
	mb_power_save(power, &state);
	mb_i8042_save(i8042, &state);
	ck_assert_int_eq(state.rc, 0);
	/* The line stays, as in the interrupt controller's state. */
	mb_power_destroy(power);
	mb_i8042_destroy(i8042);
	ck_assert_int_eq(mb_power_create(bus, irq, &ops, &n_reset, &power, &err), 0);
	ck_assert_int_eq(mb_i8042_create(bus, count_reset, NULL, &i8042, &err), 0);
	from = (struct mb_state_in){.at = state.data, .left = state.len};
	ck_assert_int_eq(mb_power_load(power, &from, &err), 0);
	ck_assert_int_eq(mb_i8042_load(i8042, &from, &err), 0);
	ck_assert_uint_eq(from.left, 0);
	ck_assert(line);
	ck_assert_uint_eq(inl(MB_POWER_PORT + 4), 3);
	ck_assert(!line);
	ck_assert_uint_eq(inb(0x61) & 0xcf, 0x03);
	mb_power_destroy(power);
	mb_i8042_destroy(i8042);
	mb_state_out_finish(&state);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("legacy");
	TCase *clock_case = tcase_create("rtc"), *port_case = tcase_create("ports");

	tcase_add_checked_fixture(clock_case, rtc_setup, rtc_teardown);
	tcase_add_test(clock_case, rtc_reads);
	tcase_add_test(clock_case, rtc_ram);
	tcase_add_test(clock_case, rtc_update_in_progress);
	tcase_add_test(clock_case, rtc_set);
	tcase_add_test(clock_case, rtc_nonsense);
	tcase_add_test(clock_case, rtc_random);
	tcase_add_test(clock_case, rtc_host_time);
	tcase_add_test(clock_case, rtc_snapshot);
	suite_add_tcase(suite, clock_case);
	tcase_add_checked_fixture(port_case, bus_setup, bus_teardown);
	tcase_add_test(port_case, keyboard);
	tcase_add_test(port_case, power_registers);
	tcase_add_test(port_case, panic_port);
	tcase_add_test(port_case, ports_snapshot);
	suite_add_tcase(suite, port_case);
	return run_suite(suite);
}
