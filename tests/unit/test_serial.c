// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <mirrorball/serial.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A back with a limited appetite. */
struct back {
	struct mb_chardev chr;
	char text[1 << 17];
	size_t n, room;
	unsigned n_writes, n_readable, n_refused;
	size_t last_write;
	bool eager; /* offers `more` from inside readable */
	const char *more;
};

static struct mb_bus *bus;
static struct mb_serial *serial;
static struct back back;
static bool line, edge; /* edge: the line went up since it was last asked for */
static unsigned n_edges;

static size_t back_write(struct mb_chardev *chr, const void *buf, size_t n)
{
	struct back *b = (struct back *)chr;
	size_t taken = n < b->room ? n : b->room;

	b->n_writes++;
	b->last_write = n;
	ck_assert_uint_le(b->n + taken, sizeof(b->text));
	memcpy(b->text + b->n, buf, taken);
	b->n += taken;
	b->room -= taken;
	if (taken < n)
		b->n_refused++;
	return taken;
}

static void back_readable(struct mb_chardev *chr)
{
	struct back *b = (struct back *)chr;

	b->n_readable++;
	if (b->eager)
		b->more += chr->front->receive(chr->front_dev, b->more, strlen(b->more));
}

static const struct mb_chardev_ops back_ops = {.write = back_write, .readable = back_readable};

static void irq_set(void *ctx, unsigned pin, bool level)
{
	ck_assert_uint_eq(pin, MB_COM1_PIN);
	ck_assert(level != line); /* only changes */
	line = level;
	if (level) {
		edge = true;
		n_edges++;
	}
}

static void setup(void)
{
	struct mb_irq_line irq = {.set = irq_set, .pin = MB_COM1_PIN};
	struct mb_error err;

	back = (struct back){.chr.ops = &back_ops, .room = SIZE_MAX};
	line = edge = false;
	n_edges = 0;
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_serial_create(bus, MB_COM1_PORT, irq, &back.chr, &serial, &err), 0);
}

static void teardown(void)
{
	mb_serial_destroy(serial);
	ck_assert_ptr_null(back.chr.front);
	mb_bus_destroy(bus);
}

enum {
	THR = 0,
	RBR = 0,
	DLL = 0,
	IER = 1,
	DLM = 1,
	IIR = 2,
	FCR = 2,
	LCR = 3,
	MCR = 4,
	LSR = 5,
	MSR = 6,
	SCR = 7,
};

static void out(unsigned reg, unsigned value)
{
	uint8_t byte = (uint8_t)value;

	ck_assert(mb_bus_write(bus, MB_PIO, MB_COM1_PORT + reg, &byte, 1));
}

static unsigned in(unsigned reg)
{
	uint8_t byte;

	ck_assert(mb_bus_read(bus, MB_PIO, MB_COM1_PORT + reg, &byte, 1));
	return byte;
}

static size_t receive(const char *text)
{
	return back.chr.front->receive(back.chr.front_dev, text, strlen(text));
}

static void give_room(size_t n)
{
	back.room = n;
	back.chr.front->writable(back.chr.front_dev);
}

static bool take_edge(void)
{
	bool was = edge;

	edge = false;
	return was;
}

static void check_power_on(void)
{
	static const unsigned value[] = {0x00, 0x00, 0x01, 0x00, 0x00, 0x60, 0xb0, 0x00};

	for (unsigned reg = 0; reg < 8; reg++)
		ck_assert_uint_eq(in(reg), value[reg]);
	ck_assert(!line);
}

START_TEST(power_on)
{
	check_power_on();
}
END_TEST

START_TEST(plain_registers)
{
	out(LCR, 0x83);
	out(DLL, 0x01);
	out(DLM, 0x02);
	ck_assert_uint_eq(in(DLL), 0x01);
	ck_assert_uint_eq(in(DLM), 0x02);
	out(LCR, 0x1b);
	ck_assert_uint_eq(in(LCR), 0x1b);
	out(IER, 0xff);
	ck_assert_uint_eq(in(IER), 0x0f);
	out(MCR, 0xef);
	ck_assert_uint_eq(in(MCR), 0x0f);
	out(SCR, 0xa5);
	ck_assert_uint_eq(in(SCR), 0xa5);
	out(LSR, 0xff); /* factory test only */
	ck_assert_uint_eq(in(LSR), 0x60);
	out(MSR, 0xff);
	ck_assert_uint_eq(in(MSR), 0xb0);
	ck_assert_uint_eq(back.n, 0);
}
END_TEST

/*
 * What Linux's 8250 driver does to find out what it has: 16550A with a FIFO of 16, and nothing
 * else.
 */
START_TEST(linux_autoconfig)
{
	unsigned count;

	out(IER, 0);
	ck_assert_uint_eq(in(IER)&0x0f, 0);
	out(IER, 0x0f);
	ck_assert_uint_eq(in(IER)&0x0f, 0x0f);
	out(IER, 0);
	out(MCR, 0x10 | 0x0a);
	ck_assert_uint_eq(in(MSR)&0xf0, 0x90);
	out(MCR, 0);
	out(LCR, 0xbf);
	out(2, 0);
	out(LCR, 0);
	out(FCR, 1);
	ck_assert_uint_eq(in(IIR) >> 6, 3);
	out(LCR, 0x80); /* not a 16650: no EFR */
	ck_assert_uint_ne(in(2), 0);
	out(LCR, 0xbf);
	ck_assert_uint_ne(in(2), 0);
	out(LCR, 0xe0); /* not a National Super I/O: no MCR in bank 2 */
	ck_assert_uint_eq(in(2) & 0x10, 0);
	out(LCR, 0);
	out(FCR, 1 | 0x20); /* not a 16750: no 64-byte FIFO */
	ck_assert_uint_eq(in(IIR) >> 5, 6);
	out(FCR, 1);
	out(IER, 0x40); /* not an XScale: no unit enable */
	ck_assert_uint_eq(in(IER), 0);
	/* The size of the FIFO, in loopback. */
	out(FCR, 7);
	out(MCR, 0x10);
	for (unsigned i = 0; i < 256; i++)
		out(THR, i);
	for (count = 0; (in(LSR)&1) && count < 256; count++)
		ck_assert_uint_eq(in(RBR), count);
	ck_assert_uint_eq(count, 16);
	out(MCR, 0);
	ck_assert_uint_eq(back.n_writes, 0);
	ck_assert_uint_eq(n_edges, 0);
}
END_TEST

/*
 * THRE comes again when it is enabled again, though it was seen: Linux tests that when it opens the
 * port.
 */
START_TEST(thre_comes_again)
{
	out(MCR, 0x08);
	out(IER, 2);
	ck_assert(line);
	ck_assert_uint_eq(in(IIR), 0x02);
	ck_assert(!line);
	ck_assert_uint_eq(in(IIR), 0x01);
	out(IER, 0);
	out(IER, 2);
	ck_assert_uint_eq(in(IIR), 0x02);
	out(IER, 2); /* no change, no interrupt */
	ck_assert_uint_eq(in(IIR), 0x01);
	/* Writing clears it and sets it: an edge-triggered controller sees both. */
	take_edge();
	out(THR, 'a');
	ck_assert(take_edge());
	out(THR, 'b');
	ck_assert(line && take_edge());
	ck_assert_uint_eq(in(IIR), 0x02);
	ck_assert(!line);
}
END_TEST

START_TEST(priorities)
{
	out(MCR, 0x08);
	out(FCR, 0x81); /* trigger at 8 */
	out(MCR, 0x1a);
	for (unsigned i = 0; i < 17; i++)
		out(THR, i);
	in(MSR);
	out(MCR, 0x18); /* RTS falls: CTS changed */
	out(IER, 0x0f);
	ck_assert_uint_eq(in(IIR), 0xc6);
	ck_assert(!line); /* loopback: the output that gates it is off */
	ck_assert_uint_eq(in(LSR), 0x63);
	ck_assert_uint_eq(in(IIR), 0xc4);
	for (unsigned i = 0; i < 9; i++)
		ck_assert_uint_eq(in(RBR), i);
	ck_assert_uint_eq(in(IIR), 0xcc); /* below the trigger: timeout */
	for (unsigned i = 9; i < 16; i++)
		ck_assert_uint_eq(in(RBR), i);
	ck_assert_uint_eq(in(IIR), 0xc2);
	ck_assert_uint_eq(in(IIR), 0xc0);
	ck_assert_uint_eq(in(MSR), 0x81);
	ck_assert_uint_eq(in(IIR), 0xc1);
	ck_assert_uint_eq(in(RBR), 0);
}
END_TEST

START_TEST(modem_deltas)
{
	out(MCR, 0x14);
	ck_assert_uint_eq(in(MSR), 0x40 | 0x0b); /* CTS, DSR, DCD fell; ring began */
	out(MCR, 0x10);
	ck_assert_uint_eq(in(MSR), 0x04); /* ring ended */
	out(MCR, 0x00);
	ck_assert_uint_eq(in(MSR), 0xbb);
	ck_assert_uint_eq(in(MSR), 0xb0);
}
END_TEST

START_TEST(receive_fifo)
{
	char buf[17] = {0};

	out(MCR, 0x08);
	out(FCR, 0xc1); /* trigger at 14 */
	out(IER, 1);
	ck_assert_uint_eq(receive("0123456789abcdefXYZ"), 16);
	ck_assert(take_edge());
	ck_assert_uint_eq(receive("X"), 0);
	for (unsigned i = 0; i < 16; i++) {
		ck_assert_uint_eq(in(IIR), i <= 2 ? 0xc4 : 0xcc);
		ck_assert_uint_eq(in(LSR), 0x61);
		ck_assert_uint_eq(back.n_readable, 0);
		buf[i] = (char)in(RBR);
	}
	ck_assert_str_eq(buf, "0123456789abcdef");
	ck_assert_uint_eq(back.n_readable, 1);
	ck_assert_uint_eq(in(IIR), 0xc1);
	ck_assert(!line);
	/* Timeout again after each read, for drivers that read one byte an interrupt. */
	take_edge();
	receive("ab");
	ck_assert(take_edge());
	in(RBR);
	ck_assert(take_edge());
	in(RBR);
	ck_assert(!take_edge());
	ck_assert_uint_eq(back.n_readable, 1);
}
END_TEST

START_TEST(receive_without_fifo)
{
	out(MCR, 0x08);
	out(IER, 1);
	back.eager = true;
	back.more = "hello";
	ck_assert_uint_eq(receive("hello"), 1);
	back.more++;
	for (const char *c = "hello"; *c; c++) {
		ck_assert(take_edge());
		ck_assert_uint_eq(in(IIR), 0x04);
		ck_assert_uint_eq(in(RBR), (unsigned)*c);
	}
	ck_assert(!take_edge());
	ck_assert_uint_eq(in(LSR), 0x60);
}
END_TEST

START_TEST(fifo_control)
{
	out(FCR, 1);
	receive("abc");
	out(FCR, 0xc0); /* without bit 0 the rest is ignored, and the change empties the FIFO */
	ck_assert_uint_eq(in(LSR), 0x60);
	ck_assert_uint_eq(in(IIR), 0x01);
	ck_assert_uint_eq(receive("abc"), 1);
	out(FCR, 1);
	ck_assert_uint_eq(back.n_readable, 1); /* what was refused has room now */
	ck_assert_uint_eq(in(LSR), 0x60);
	receive("abc");
	out(FCR, 3);
	ck_assert_uint_eq(in(LSR), 0x60);
	receive("abc");
	out(FCR, 0x41); /* the trigger level only */
	ck_assert_uint_eq(in(LSR), 0x61);
	/* Nothing comes in during loopback; it waits for the end of it. */
	out(FCR, 3);
	out(MCR, 0x10);
	ck_assert_uint_eq(receive("abc"), 0);
	ck_assert_uint_eq(back.n_readable, 1);
	out(MCR, 0);
	ck_assert_uint_eq(back.n_readable, 2);
}
END_TEST

START_TEST(back_pressure)
{
	out(MCR, 0x08);
	out(FCR, 1);
	out(IER, 2);
	in(IIR);
	take_edge();
	back.room = 1;
	out(THR, 'a');
	ck_assert_uint_eq(in(IIR), 0xc2);
	out(THR, 'b');
	ck_assert_uint_eq(in(LSR), 0); /* neither THRE nor TEMT */
	ck_assert_uint_eq(in(IIR), 0xc1);
	for (unsigned i = 0; i < 10000; i++) /* a driver that does not care: bounded */
		out(THR, 'c');
	ck_assert_uint_eq(back.n, 1);
	take_edge();
	give_room(3);
	ck_assert_uint_eq(back.n, 4);
	ck_assert(!take_edge());
	out(IER, 0);
	out(IER, 2); /* enabling does not raise what is not there */
	ck_assert_uint_eq(in(IIR), 0xc1);
	give_room(SIZE_MAX);
	ck_assert_uint_eq(back.n, 1 + 4096);
	ck_assert(take_edge());
	ck_assert_uint_eq(in(LSR), 0x60);
	ck_assert_uint_eq(in(IIR), 0xc2);
	ck_assert_int_eq(memcmp(back.text, "abcc", 4), 0);
}
END_TEST

START_TEST(strings)
{
	static char text[4096];

	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)('a' + i % 26);
	ck_assert(mb_bus_write_string(bus, MB_COM1_PORT, text, 1, sizeof(text)));
	ck_assert_uint_eq(back.n_writes, 1);
	ck_assert_uint_eq(back.n, sizeof(text));
	/* A whole string is held. */
	back.room = 10;
	mb_bus_write_string(bus, MB_COM1_PORT, text, 1, sizeof(text));
	ck_assert_uint_eq(back.n, sizeof(text) + 10);
	ck_assert_uint_eq(in(LSR), 0);
	give_room(SIZE_MAX);
	ck_assert_uint_eq(back.n, 2 * sizeof(text));
	ck_assert_int_eq(memcmp(back.text + sizeof(text), text, sizeof(text)), 0);
	ck_assert_uint_eq(in(LSR), 0x60);
	/* Other registers and widths: byte by byte. */
	mb_bus_write_string(bus, MB_COM1_PORT + SCR, text, 1, 3);
	ck_assert_uint_eq(in(SCR), 'c');
	out(FCR, 1);
	out(MCR, 0x10);
	mb_bus_write_string(bus, MB_COM1_PORT, text, 1, 5);
	for (unsigned i = 0; i < 5; i++)
		ck_assert_uint_eq(in(RBR), (unsigned)text[i]);
	out(LCR, 0x80);
	mb_bus_write_string(bus, MB_COM1_PORT, text, 2, 4); /* outsw: both halves of the divisor */
	ck_assert_uint_eq(in(DLL), 'g');
	ck_assert_uint_eq(in(DLM), 'h');
}
END_TEST

/*
 * A driver as Linux's: enables THRE, and at each interrupt loops while one is pending, reading
 * while there is data, then filling a FIFO of 16. All of a long text comes through a back that
 * takes a little at a time and input comes through between it, with edges alone to go by.
 */
static const char *tx_left, *tx_end;
static char got[1 << 16];
static size_t n_got;

static void driver_interrupt(void)
{
	for (unsigned pass = 0; pass < 512; pass++) {
		unsigned lsr;

		if (in(IIR)&1)
			return;
		lsr = in(LSR);
		for (unsigned i = 0; (lsr & 1) && i < 256; i++) {
			got[n_got++] = (char)in(RBR);
			lsr = in(LSR);
		}
		in(MSR);
		if (!(lsr & 0x20) || !(in(IER)&2))
			continue;
		for (unsigned i = 0; i < 16 && tx_left < tx_end; i++)
			out(THR, (unsigned char)*tx_left++);
		if (tx_left == tx_end)
			out(IER, 0x05);
	}
	edge = true; /* handled enough; the controller would interrupt again */
}

START_TEST(linux_driver)
{
	static char text[60000], input[20000];
	size_t offered = 0;
	unsigned seed = (unsigned)time(NULL), n_idle = 0;

	printf("serial: seed %u\n", seed);
	srand(seed);
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)rand();
	for (size_t i = 0; i < sizeof(input); i++)
		input[i] = (char)rand();
	tx_left = text;
	tx_end = text + sizeof(text);
	n_got = 0;
	back.room = 0;
	out(LCR, 0x03);
	out(FCR, 0x81);
	out(MCR, 0x0b);
	out(IER, 0x07);
	while (back.n < sizeof(text) || n_got < sizeof(input)) {
		size_t n = (size_t)rand() % 40;

		ck_assert_uint_lt(n_idle++, 100000);
		if (rand() & 1) {
			give_room((size_t)rand() % 100);
		} else {
			if (n > sizeof(input) - offered)
				n = sizeof(input) - offered;
			offered += back.chr.front->receive(back.chr.front_dev, input + offered, n);
		}
		if (take_edge())
			driver_interrupt();
	}
	ck_assert_uint_eq(back.n, sizeof(text));
	ck_assert_int_eq(memcmp(back.text, text, sizeof(text)), 0);
	ck_assert_int_eq(memcmp(got, input, sizeof(input)), 0);
}
END_TEST

START_TEST(reset)
{
	out(LCR, 0x80);
	out(DLL, 12);
	out(LCR, 3);
	out(FCR, 1);
	out(MCR, 8);
	out(SCR, 7);
	ck_assert_uint_eq(receive("0123456789abcdefg"), 16);
	out(IER, 1);
	ck_assert(line);
	back.room = 0;
	out(THR, 'x');
	mb_serial_reset(serial);
	ck_assert(!line);
	ck_assert_uint_eq(back.n_readable, 1);
	ck_assert_uint_eq(in(LSR), 0); /* what was written before is still on its way */
	give_room(10);
	ck_assert_uint_eq(back.n, 1);
	check_power_on();
	out(LCR, 0x80);
	ck_assert_uint_eq(in(DLL), 0);
}
END_TEST

START_TEST(no_back)
{
	struct mb_irq_line irq = {.set = irq_set, .pin = MB_COM1_PIN};
	struct mb_serial *second;
	struct mb_error err;

	ck_assert_int_lt(mb_serial_create(bus, MB_COM1_PORT + 7, irq, NULL, &second, &err), 0);
	ck_assert_str_eq(err.text, "serial port: claim I/O port 0x3ff: File exists");
	mb_serial_destroy(serial);
	ck_assert_int_eq(mb_serial_create(bus, MB_COM1_PORT, irq, NULL, &serial, &err), 0);
	out(MCR, 8);
	out(IER, 2);
	in(IIR);
	mb_bus_write_string(bus, MB_COM1_PORT, "hello", 1, 5);
	ck_assert_uint_eq(in(LSR), 0x60);
	ck_assert_uint_eq(in(IIR), 0x02);
	ck_assert_uint_eq(back.n, 0);
	mb_serial_destroy(NULL);
}
END_TEST

START_TEST(random_accesses)
{
	unsigned seed = (unsigned)time(NULL);

	printf("serial: seed %u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 300000; i++) {
		unsigned reg = (unsigned)rand() % 8, len = 1u << (unsigned)rand() % 4;
		uint64_t value[8] = {(uint64_t)rand() << 32 | (uint64_t)rand()};

		back.n = 0;
		switch (rand() % 6) {
		case 0:
			give_room((size_t)rand() % 64);
			break;
		case 1:
			receive("some input that is longer than the FIFO");
			break;
		case 2:
			mb_bus_write_string(bus, (uint16_t)(MB_COM1_PORT + reg), value, 1,
				(unsigned)rand() % 64);
			break;
		case 3:
			mb_bus_read(bus, MB_PIO, MB_COM1_PORT + reg, value, len);
			break;
		default:
			mb_bus_write(bus, MB_PIO, MB_COM1_PORT + reg, value, len);
		}
	}
}
END_TEST

/* Saved in the middle of everything, and gone on with by another one on the same line and back. */
START_TEST(snapshot)
{
	struct mb_irq_line irq = {.set = irq_set, .pin = MB_COM1_PIN};
	struct mb_state_out state = {0};
	struct mb_state_in from;
	struct mb_error err;

	out(MCR, 0x08);
	out(FCR, 0x41);
	out(LCR, 0x83);
	out(DLL, 0x12);
	out(DLM, 0x34);
	out(LCR, 0x03);
	out(SCR, 0x5a);
	out(IER, 1);
	back.room = 2;
	for (unsigned i = 0; i < 6; i++)
		out(THR, 'a' + i);
	ck_assert_uint_eq(receive("xyz"), 3);
	ck_assert_uint_eq(in(RBR), 'x');
	ck_assert(line);
	mb_serial_save(serial, &state);
	ck_assert_int_eq(state.rc, 0);
	back.room = 0;
	mb_serial_destroy(serial);
	ck_assert_int_eq(mb_serial_create(bus, MB_COM1_PORT, irq, &back.chr, &serial, &err), 0);
	for (size_t n = 0; n < state.len; n++) {
		from = (struct mb_state_in){.at = state.data, .left = n};
		ck_assert_int_eq(mb_serial_load(serial, &from, &err), -EINVAL);
	}
	back.room = SIZE_MAX;
	from = (struct mb_state_in){.at = state.data, .left = state.len};
	ck_assert_int_eq(mb_serial_load(serial, &from, &err), 0);
	ck_assert_uint_eq(from.left, 0);
	ck_assert_uint_eq(back.n, 6);
	ck_assert_int_eq(memcmp(back.text, "abcdef", 6), 0);
	ck_assert_uint_eq(in(SCR), 0x5a);
	ck_assert_uint_eq(in(IER), 1);
	ck_assert_uint_eq(in(RBR), 'y');
	ck_assert_uint_eq(in(RBR), 'z');
	ck_assert(!line);
	out(LCR, 0x83);
	ck_assert_uint_eq(in(DLL), 0x12);
	ck_assert_uint_eq(in(DLM), 0x34);
	/* More than there is room for. */
	state.data[MB_STATE_PART_BYTES + 11] = 17;
	from = (struct mb_state_in){.at = state.data, .left = state.len};
	ck_assert_int_eq(mb_serial_load(serial, &from, &err), -EINVAL);
	mb_state_out_finish(&state);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("serial");
	TCase *tcase = tcase_create("serial");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, power_on);
	tcase_add_test(tcase, plain_registers);
	tcase_add_test(tcase, linux_autoconfig);
	tcase_add_test(tcase, thre_comes_again);
	tcase_add_test(tcase, priorities);
	tcase_add_test(tcase, modem_deltas);
	tcase_add_test(tcase, receive_fifo);
	tcase_add_test(tcase, receive_without_fifo);
	tcase_add_test(tcase, fifo_control);
	tcase_add_test(tcase, back_pressure);
	tcase_add_test(tcase, strings);
	tcase_add_test(tcase, linux_driver);
	tcase_add_test(tcase, reset);
	tcase_add_test(tcase, no_back);
	tcase_add_test(tcase, snapshot);
	tcase_add_test(tcase, random_accesses);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
