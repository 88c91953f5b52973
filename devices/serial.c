// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/serial.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Registers (PC16550D datasheet). Offsets 0 and 1 are the divisor while LCR_DLAB is set. */
#define REG_DATA	  0u
#define REG_IER		  1u
#define REG_IIR_FCR	  2u
#define REG_LCR		  3u
#define REG_MCR		  4u
#define REG_LSR		  5u
#define REG_MSR		  6u
#define REG_SCR		  7u
#define N_REGS		  8u

#define IER_RX		  0x01u
#define IER_TX		  0x02u
#define IER_LINE	  0x04u
#define IER_MODEM	  0x08u
#define IER_MASK	  0x0fu

#define IIR_MODEM	  0x00u
#define IIR_NONE	  0x01u
#define IIR_TX		  0x02u
#define IIR_RX		  0x04u
#define IIR_LINE	  0x06u
#define IIR_TIMEOUT	  0x0cu
#define IIR_FIFO	  0xc0u

#define FCR_ENABLE	  0x01u
#define FCR_CLEAR_RX	  0x02u
#define FCR_TRIGGER_SHIFT 6

#define LCR_DLAB	  0x80u

#define MCR_DTR		  0x01u
#define MCR_RTS		  0x02u
#define MCR_OUT1	  0x04u
#define MCR_OUT2	  0x08u
#define MCR_LOOPBACK	  0x10u
#define MCR_MASK	  0x1fu

#define LSR_DATA_READY	  0x01u
#define LSR_OVERRUN	  0x02u
#define LSR_THR_EMPTY	  0x20u
#define LSR_TX_EMPTY	  0x40u

#define MSR_DELTA_CTS	  0x01u
#define MSR_DELTA_DSR	  0x02u
#define MSR_END_RING	  0x04u
#define MSR_DELTA_DCD	  0x08u
#define MSR_CTS		  0x10u
#define MSR_DSR		  0x20u
#define MSR_RING	  0x40u
#define MSR_DCD		  0x80u

#define RX_FIFO_BYTES	  16u
/*
 * What the back refused. The guest's FIFO has 16 bytes, but one "rep outsb" exit brings up to a
 * page, and a driver that does not wait for THRE for ever (Linux's console gives up after 10 ms)
 * should not lose text.
 */
#define HELD_BYTES 4096u

/*
 * A character takes no time: it is sent when it is written, and "four character times without a
 * character" (the receive timeout) have passed as soon as the driver has read one. Speed, parity
 * and word length are kept and read back, and change nothing. The modem at the other end is always
 * ready.
 *
 * While the back refuses output, THRE and TEMT stay clear: the driver waits for the THRE interrupt
 * as it would for a slow line. While the receive FIFO is full, input waits in the back.
 *
 * Lock: everything below it. Order: this, then the back's (chr->ops->write) and the interrupt
 * controller's.
 */
struct mb_serial {
	struct mb_bus *bus;
	struct mb_irq_line irq;
	struct mb_chardev *chr;
	struct mb_region region;
	pthread_mutex_t lock;
	uint8_t ier, fcr, lcr, mcr, scr;
	uint8_t divisor[2];
	uint8_t msr_delta; /* MSR_DELTA_*, MSR_END_RING: since the last read of MSR */
	bool overrun;	   /* since the last read of LSR */
	bool tx_interrupt; /* THR has become empty, and the driver has not seen IIR_TX */
	bool line_high;
	bool refused; /* receive took less than it was offered */
	unsigned rx_head, n_rx;
	uint8_t rx[RX_FIFO_BYTES];
	unsigned n_held;
	uint8_t held[HELD_BYTES]; /* oldest first */
};

static unsigned rx_capacity(const struct mb_serial *serial)
{
	return serial->fcr & FCR_ENABLE ? RX_FIFO_BYTES : 1;
}

static unsigned rx_trigger(const struct mb_serial *serial)
{
	static const uint8_t trigger[] = {1, 4, 8, 14};

	return serial->fcr & FCR_ENABLE ? trigger[serial->fcr >> FCR_TRIGGER_SHIFT] : 1;
}

/* Modem status lines: the far end's, or in loopback the modem control outputs (MCR, bit 4). */
static uint8_t modem_lines(const struct mb_serial *serial)
{
	uint8_t lines = 0;

	if (!(serial->mcr & MCR_LOOPBACK))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	if (serial->mcr & MCR_RTS)
		lines |= MSR_CTS;
	if (serial->mcr & MCR_DTR)
		lines |= MSR_DSR;
	if (serial->mcr & MCR_OUT1)
		lines |= MSR_RING;
	if (serial->mcr & MCR_OUT2)
		lines |= MSR_DCD;
	return lines;
}

/* The pending interrupt of the highest priority (datasheet, interrupt control functions). */
static uint8_t pending_interrupt(const struct mb_serial *serial)
{
	if ((serial->ier & IER_LINE) && serial->overrun)
		return IIR_LINE;
	if ((serial->ier & IER_RX) && serial->n_rx)
		return serial->n_rx >= rx_trigger(serial) ? IIR_RX : IIR_TIMEOUT;
	if ((serial->ier & IER_TX) && serial->tx_interrupt)
		return IIR_TX;
	if ((serial->ier & IER_MODEM) && serial->msr_delta)
		return IIR_MODEM;
	return IIR_NONE;
}

/* On a PC, OUT2 gates the UART's interrupt; in loopback the output pin is inactive. */
static void update_line(struct mb_serial *serial)
{
	bool high = pending_interrupt(serial) != IIR_NONE &&
		    (serial->mcr & (MCR_OUT2 | MCR_LOOPBACK)) == MCR_OUT2;

	if (high == serial->line_high)
		return;
	serial->line_high = high;
	mb_irq_line_set(&serial->irq, high);
}

/*
 * An interrupt was cleared and set again at once: the controller is edge-triggered and must see
 * both.
 */
static void pulse_line(struct mb_serial *serial)
{
	if (serial->line_high) {
		serial->line_high = false;
		mb_irq_line_set(&serial->irq, false);
	}
	update_line(serial);
}

static void rx_push(struct mb_serial *serial, uint8_t byte)
{
	serial->rx[(serial->rx_head + serial->n_rx++) % RX_FIFO_BYTES] = byte;
}

/* Sends n bytes or holds what the back does not take. */
static void transmit(struct mb_serial *serial, const uint8_t *bytes, unsigned n)
{
	unsigned room = HELD_BYTES - serial->n_held;

	if (!serial->chr) {
		n = 0;
	} else if (!serial->n_held) {
		unsigned taken = (unsigned)serial->chr->ops->write(serial->chr, bytes, n);

		bytes += taken;
		n -= taken;
	}
	if (n > room)
		n = room; /* the driver did not wait for THRE: lost, as on a real line */
	memcpy(serial->held + serial->n_held, bytes, n);
	serial->n_held += n;
	serial->tx_interrupt = !serial->n_held;
	pulse_line(serial);
}

/* Loopback: what is sent is received; a full FIFO loses it (LSR, bit 1). */
static void loop_back(struct mb_serial *serial, uint8_t byte)
{
	if (serial->n_rx < rx_capacity(serial))
		rx_push(serial, byte);
	else
		serial->overrun = true;
	serial->tx_interrupt = true;
	pulse_line(serial);
}

static uint8_t read_data(struct mb_serial *serial)
{
	uint8_t byte = 0;

	if (serial->n_rx) {
		byte = serial->rx[serial->rx_head];
		serial->rx_head = (serial->rx_head + 1) % RX_FIFO_BYTES;
		serial->n_rx--;
	}
	/* Reading clears the timeout, and it comes again if there is more (FIFO interrupt mode). */
	pulse_line(serial);
	return byte;
}

static uint8_t read_register(struct mb_serial *serial, unsigned reg)
{
	bool dlab = serial->lcr & LCR_DLAB;
	uint8_t value = 0;

	switch (reg) {
	case REG_DATA:
		return dlab ? serial->divisor[0] : read_data(serial);
	case REG_IER:
		return dlab ? serial->divisor[1] : serial->ier;
	case REG_IIR_FCR:
		value = pending_interrupt(serial);
		if (value == IIR_TX)
			serial->tx_interrupt = false;
		if (serial->fcr & FCR_ENABLE)
			value |= IIR_FIFO;
		break;
	case REG_LCR:
		return serial->lcr;
	case REG_MCR:
		return serial->mcr;
	case REG_LSR:
		if (serial->n_rx)
			value |= LSR_DATA_READY;
		if (serial->overrun)
			value |= LSR_OVERRUN;
		if (!serial->n_held)
			value |= LSR_THR_EMPTY | LSR_TX_EMPTY;
		serial->overrun = false;
		break;
	case REG_MSR:
		value = modem_lines(serial) | serial->msr_delta;
		serial->msr_delta = 0;
		break;
	case REG_SCR:
		return serial->scr;
	}
	update_line(serial);
	return value;
}

static void write_fcr(struct mb_serial *serial, uint8_t value)
{
	/* The other bits count only together with bit 0; changing bit 0 empties the FIFOs (FCR). */
	if (((serial->fcr ^ value) & FCR_ENABLE) ||
		((value & FCR_ENABLE) && (value & FCR_CLEAR_RX)))
		serial->n_rx = 0;
	/*
	 * Held output has left the guest's FIFO for the line: a driver that opens the port keeps
	 * it.
	 */
	serial->fcr = value & FCR_ENABLE ? value & (FCR_ENABLE | 3u << FCR_TRIGGER_SHIFT) : 0;
}

static void write_mcr(struct mb_serial *serial, uint8_t value)
{
	uint8_t before = modem_lines(serial), after, changed;

	serial->mcr = value & MCR_MASK;
	after = modem_lines(serial);
	changed = before ^ after;
	if (changed & MSR_CTS)
		serial->msr_delta |= MSR_DELTA_CTS;
	if (changed & MSR_DSR)
		serial->msr_delta |= MSR_DELTA_DSR;
	if (changed & MSR_DCD)
		serial->msr_delta |= MSR_DELTA_DCD;
	if (changed & before & MSR_RING)
		serial->msr_delta |= MSR_END_RING;
}

static void write_register(struct mb_serial *serial, unsigned reg, uint8_t value)
{
	bool dlab = serial->lcr & LCR_DLAB;

	switch (reg) {
	case REG_DATA:
		if (dlab)
			serial->divisor[0] = value;
		else if (serial->mcr & MCR_LOOPBACK)
			loop_back(serial, value);
		else
			transmit(serial, &value, 1);
		return;
	case REG_IER:
		if (dlab) {
			serial->divisor[1] = value;
			return;
		}
		/*
		 * Enabling it while THR is empty raises it, also if it was seen before: drivers
		 * count on that.
		 */
		if (!(serial->ier & IER_TX) && (value & IER_TX) && !serial->n_held)
			serial->tx_interrupt = true;
		serial->ier = value & IER_MASK;
		break;
	case REG_IIR_FCR:
		write_fcr(serial, value);
		break;
	case REG_LCR:
		serial->lcr = value;
		break;
	case REG_MCR:
		write_mcr(serial, value);
		break;
	case REG_SCR:
		serial->scr = value;
		break;
	}
	update_line(serial);
}

/*
 * Ends an access: unlocks, and tells the back if there is room again for what was refused. Without
 * the lock, because the back may offer it at once.
 */
static void unlock(struct mb_serial *serial)
{
	bool readable = serial->refused && !serial->n_rx && !(serial->mcr & MCR_LOOPBACK);

	if (readable)
		serial->refused = false;
	pthread_mutex_unlock(&serial->lock);
	if (readable && serial->chr->ops->readable)
		serial->chr->ops->readable(serial->chr);
}

/* Longer accesses reach an 8-bit device as one cycle a byte. */
static void region_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_serial *serial = dev;
	uint8_t *bytes = data;

	pthread_mutex_lock(&serial->lock);
	for (unsigned i = 0; i < len; i++)
		bytes[i] = read_register(serial, (unsigned)offset + i);
	unlock(serial);
}

static void region_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_serial *serial = dev;
	const uint8_t *bytes = data;

	pthread_mutex_lock(&serial->lock);
	for (unsigned i = 0; i < len; i++)
		write_register(serial, (unsigned)offset + i, bytes[i]);
	unlock(serial);
}

static void region_write_string(
	void *dev, uint64_t offset, const void *data, unsigned len, unsigned count)
{
	struct mb_serial *serial = dev;
	const uint8_t *bytes = data;

	pthread_mutex_lock(&serial->lock);
	if (len == 1 && offset == REG_DATA && !(serial->lcr & LCR_DLAB) &&
		!(serial->mcr & MCR_LOOPBACK)) {
		transmit(serial, bytes, count);
	} else {
		for (unsigned i = 0; i < len * count; i++)
			write_register(serial, (unsigned)offset + i % len, bytes[i]);
	}
	unlock(serial);
}

static const struct mb_region_ops region_ops = {
	.read = region_read,
	.write = region_write,
	.write_string = region_write_string,
};

static size_t front_receive(void *dev, const void *buf, size_t n)
{
	struct mb_serial *serial = dev;
	const uint8_t *bytes = buf;
	size_t taken = 0;

	pthread_mutex_lock(&serial->lock);
	/* The receiver is cut off from the line in loopback; what comes waits. */
	if (!(serial->mcr & MCR_LOOPBACK)) {
		while (taken < n && serial->n_rx < rx_capacity(serial))
			rx_push(serial, bytes[taken++]);
	}
	if (taken < n)
		serial->refused = true;
	update_line(serial);
	pthread_mutex_unlock(&serial->lock);
	return taken;
}

static void front_writable(void *dev)
{
	struct mb_serial *serial = dev;

	pthread_mutex_lock(&serial->lock);
	if (serial->n_held) {
		unsigned taken = (unsigned)serial->chr->ops->write(
			serial->chr, serial->held, serial->n_held);

		serial->n_held -= taken;
		memmove(serial->held, serial->held + taken, serial->n_held);
		serial->tx_interrupt = !serial->n_held;
		update_line(serial);
	}
	pthread_mutex_unlock(&serial->lock);
}

static const struct mb_chardev_front front = {
	.receive = front_receive,
	.writable = front_writable,
};

int mb_serial_create(struct mb_bus *bus, uint16_t port, struct mb_irq_line irq,
	struct mb_chardev *chr, struct mb_serial **out, struct mb_error *err)
{
	struct mb_serial *serial = calloc(1, sizeof(*serial));
	int rc;

	if (!serial)
		return mb_error_set(err, ENOMEM, "serial port: out of memory");
	serial->bus = bus;
	serial->irq = irq;
	serial->chr = chr;
	serial->region = (struct mb_region){
		.space = MB_PIO,
		.base = port,
		.len = N_REGS,
		.ops = &region_ops,
		.dev = serial,
	};
	pthread_mutex_init(&serial->lock, NULL);
	rc = mb_bus_add(bus, &serial->region);
	if (rc) {
		mb_error_set(err, -rc, "serial port: claim I/O port %#x: %s", port, strerror(-rc));
		goto err_lock;
	}
	if (chr)
		mb_chardev_attach(chr, &front, serial);
	*out = serial;
	return 0;

err_lock:
	pthread_mutex_destroy(&serial->lock);
	free(serial);
	return rc;
}

void mb_serial_destroy(struct mb_serial *serial)
{
	if (!serial)
		return;
	mb_bus_remove(serial->bus, &serial->region);
	if (serial->chr) {
		mb_chardev_detach(serial->chr);
		/* The last chance of what is left; nobody waits for it. */
		if (serial->n_held)
			serial->chr->ops->write(serial->chr, serial->held, serial->n_held);
	}
	pthread_mutex_destroy(&serial->lock);
	free(serial);
}

void mb_serial_reset(struct mb_serial *serial)
{
	pthread_mutex_lock(&serial->lock);
	serial->ier = serial->fcr = serial->lcr = serial->mcr = serial->scr = 0;
	memset(serial->divisor, 0, sizeof(serial->divisor));
	serial->msr_delta = 0;
	serial->overrun = false;
	serial->tx_interrupt = false;
	serial->n_rx = 0;
	/*
	 * Held output stays: the last lines before a reboot are the ones that somebody wants to
	 * read.
	 */
	update_line(serial);
	unlock(serial);
}

#define STATE_VERSION 1u

void mb_serial_save(struct mb_serial *serial, struct mb_state_out *out)
{
	mb_state_begin(out, "serial", STATE_VERSION);
	pthread_mutex_lock(&serial->lock);
	mb_state_put_u8(out, serial->ier);
	mb_state_put_u8(out, serial->fcr);
	mb_state_put_u8(out, serial->lcr);
	mb_state_put_u8(out, serial->mcr);
	mb_state_put_u8(out, serial->scr);
	mb_state_put(out, serial->divisor, sizeof(serial->divisor));
	mb_state_put_u8(out, serial->msr_delta);
	mb_state_put_u8(out, serial->overrun);
	mb_state_put_u8(out, serial->tx_interrupt);
	mb_state_put_u8(out, serial->line_high);
	mb_state_put_u32(out, serial->n_rx);
	for (unsigned i = 0; i < serial->n_rx; i++)
		mb_state_put_u8(out, serial->rx[(serial->rx_head + i) % RX_FIFO_BYTES]);
	mb_state_put_u32(out, serial->n_held);
	mb_state_put(out, serial->held, serial->n_held);
	pthread_mutex_unlock(&serial->lock);
	mb_state_end(out);
}

/* The line is as the interrupt controller has it. */
static int load_registers(struct mb_serial *serial, struct mb_state_in *part, struct mb_error *err)
{
	serial->ier = mb_state_get_u8(part) & IER_MASK;
	write_fcr(serial, mb_state_get_u8(part));
	serial->lcr = mb_state_get_u8(part);
	serial->mcr = mb_state_get_u8(part) & MCR_MASK;
	serial->scr = mb_state_get_u8(part);
	mb_state_get(part, serial->divisor, sizeof(serial->divisor));
	serial->msr_delta = mb_state_get_u8(part) &
			    (MSR_DELTA_CTS | MSR_DELTA_DSR | MSR_END_RING | MSR_DELTA_DCD);
	serial->overrun = mb_state_get_bool(part);
	serial->tx_interrupt = mb_state_get_bool(part);
	serial->line_high = mb_state_get_bool(part);
	serial->rx_head = 0;
	serial->n_rx = mb_state_get_u32(part);
	if (serial->n_rx > rx_capacity(serial)) {
		serial->n_rx = 0;
		return mb_state_refuse(part, err, "has more input than its FIFO");
	}
	mb_state_get(part, serial->rx, serial->n_rx);
	serial->n_held = mb_state_get_u32(part);
	if (serial->n_held > HELD_BYTES) {
		serial->n_held = 0;
		return mb_state_refuse(part, err, "has too much output");
	}
	mb_state_get(part, serial->held, serial->n_held);
	return mb_state_leave(part, err);
}

int mb_serial_load(struct mb_serial *serial, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "serial", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&serial->lock);
	rc = load_registers(serial, &part, err);
	if (!serial->chr)
		serial->n_held = 0;
	pthread_mutex_unlock(&serial->lock);
	/* Nobody says that there is room where there has been all the time. */
	if (!rc && serial->chr)
		front_writable(serial);
	return rc;
}
