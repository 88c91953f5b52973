// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/legacy.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PORT_INDEX 0x70u
#define N_PORTS	   2u

/* Registers (MC146818A datasheet; the century is the PC's addition). */
#define REG_SECONDS	0x00u
#define REG_MINUTES	0x02u
#define REG_HOURS	0x04u
#define REG_WEEKDAY	0x06u /* 1: Sunday */
#define REG_DAY		0x07u
#define REG_MONTH	0x08u
#define REG_YEAR	0x09u
#define REG_A		0x0au
#define REG_B		0x0bu
#define REG_C		0x0cu
#define REG_D		0x0du
#define REG_CENTURY	0x32u
#define N_REGS		128u

#define A_UPDATING	0x80u /* UIP */
#define A_DIVIDER	0x70u
#define A_DIVIDER_HELD	0x60u /* 110 and 111: the divider is held in reset */
#define A_DEFAULT	0x26u
#define B_SET		0x80u
#define B_BINARY	0x04u
#define B_24_HOURS	0x02u
#define D_VALID		0x80u
#define HOURS_AFTERNOON 0x80u

#define SECOND_NS	1000000000ll
/* UIP goes up 244 us before the update, which takes 1,984 us (datasheet, tBUC and tUC). */
#define UPDATE_NS 2228000ll

struct mb_rtc {
	struct mb_bus *bus;
	struct mb_region region;
	int64_t (*now_ns)(void *ctx);
	void *ctx;
	pthread_mutex_t lock; /* protects what follows */
	int64_t offset_ns;    /* of the guest's clock to ours */
	uint8_t index;
	/*
	 * Register file. The clock's registers are valid while B_SET stops the clock; otherwise
	 * they are filled in when they are used.
	 */
	uint8_t reg[N_REGS];
};

static const uint8_t time_regs[] = {REG_SECONDS, REG_MINUTES, REG_HOURS, REG_WEEKDAY, REG_DAY,
	REG_MONTH, REG_YEAR, REG_CENTURY};

static bool is_time_reg(uint8_t index)
{
	return memchr(time_regs, index, sizeof(time_regs)) != NULL;
}

static int64_t guest_ns(const struct mb_rtc *rtc)
{
	int64_t ns;

	/*
	 * A guest may set the clock as far ahead as it likes; ours is ours. Wrapping is harmless.
	 */
	__builtin_add_overflow(rtc->now_ns(rtc->ctx), rtc->offset_ns, &ns);
	return ns;
}

/* The part of ns that is less than a second, and the whole seconds below it. */
static int64_t split_ns(int64_t ns, int64_t *seconds)
{
	int64_t rest = ns % SECOND_NS;

	*seconds = ns / SECOND_NS;
	if (rest < 0) {
		rest += SECOND_NS;
		--*seconds;
	}
	return rest;
}

static uint8_t encode(const struct mb_rtc *rtc, unsigned value)
{
	return (uint8_t)(rtc->reg[REG_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

/* False if raw is not a number in the present format. */
static bool decode(const struct mb_rtc *rtc, uint8_t raw, int *value)
{
	if (rtc->reg[REG_B] & B_BINARY) {
		*value = raw;
		return true;
	}
	*value = (raw >> 4) * 10 + (raw & 15);
	return raw >> 4 < 10 && (raw & 15) < 10;
}

/* Fills the clock's registers in from the guest's time. Caller holds the lock. */
static void load_time(struct mb_rtc *rtc)
{
	int64_t seconds;
	time_t t;
	struct tm tm;
	unsigned hour, year;

	split_ns(guest_ns(rtc), &seconds);
	t = (time_t)seconds;
	if (!gmtime_r(&t, &tm))
		memset(&tm, 0, sizeof(tm));
	hour = (unsigned)tm.tm_hour;
	year = (unsigned)tm.tm_year + 1900;
	if (!(rtc->reg[REG_B] & B_24_HOURS))
		hour = (hour + 11) % 12 + 1;
	rtc->reg[REG_SECONDS] = encode(rtc, (unsigned)tm.tm_sec);
	rtc->reg[REG_MINUTES] = encode(rtc, (unsigned)tm.tm_min);
	rtc->reg[REG_HOURS] = encode(rtc, hour);
	if (!(rtc->reg[REG_B] & B_24_HOURS) && tm.tm_hour >= 12)
		rtc->reg[REG_HOURS] |= HOURS_AFTERNOON;
	rtc->reg[REG_WEEKDAY] = encode(rtc, (unsigned)tm.tm_wday + 1);
	rtc->reg[REG_DAY] = encode(rtc, (unsigned)tm.tm_mday);
	rtc->reg[REG_MONTH] = encode(rtc, (unsigned)tm.tm_mon + 1);
	rtc->reg[REG_YEAR] = encode(rtc, year % 100);
	rtc->reg[REG_CENTURY] = encode(rtc, year / 100 % 100);
}

static bool decode_hour(const struct mb_rtc *rtc, int *hour)
{
	uint8_t raw = rtc->reg[REG_HOURS];

	if (rtc->reg[REG_B] & B_24_HOURS)
		return decode(rtc, raw, hour) && *hour <= 23;
	if (!decode(rtc, raw & (uint8_t)~HOURS_AFTERNOON, hour) || *hour < 1 || *hour > 12)
		return false;
	*hour = *hour % 12 + (raw & HOURS_AFTERNOON ? 12 : 0);
	return true;
}

/*
 * Makes the clock's registers the guest's time. What is not a date changes nothing; the day of the
 * week is the date's. Caller holds the lock.
 */
static void store_time(struct mb_rtc *rtc)
{
	struct tm tm = {0};
	int year, century;
	int64_t seconds, phase_ns, wanted_ns;

	if (!decode(rtc, rtc->reg[REG_SECONDS], &tm.tm_sec) || tm.tm_sec > 59 ||
		!decode(rtc, rtc->reg[REG_MINUTES], &tm.tm_min) || tm.tm_min > 59 ||
		!decode_hour(rtc, &tm.tm_hour) || !decode(rtc, rtc->reg[REG_DAY], &tm.tm_mday) ||
		tm.tm_mday < 1 || tm.tm_mday > 31 ||
		!decode(rtc, rtc->reg[REG_MONTH], &tm.tm_mon) || tm.tm_mon < 1 || tm.tm_mon > 12 ||
		!decode(rtc, rtc->reg[REG_YEAR], &year) || year > 99 ||
		!decode(rtc, rtc->reg[REG_CENTURY], &century) || century > 99)
		return;
	tm.tm_mon -= 1;
	tm.tm_year = century * 100 + year - 1900;
	phase_ns = split_ns(guest_ns(rtc), &seconds);
	/* The years 0 to 9999 are more than 64 bits of nanoseconds have room for. */
	if (__builtin_mul_overflow((int64_t)timegm(&tm), SECOND_NS, &wanted_ns) ||
		__builtin_add_overflow(wanted_ns, phase_ns, &wanted_ns) ||
		__builtin_sub_overflow(wanted_ns, rtc->now_ns(rtc->ctx), &wanted_ns))
		return;
	rtc->offset_ns = wanted_ns;
}

/* The first update comes half a second after the divider is let go (datasheet, register A). */
static void restart_divider(struct mb_rtc *rtc)
{
	int64_t seconds;
	int64_t phase_ns = split_ns(guest_ns(rtc), &seconds);

	__builtin_add_overflow(rtc->offset_ns, SECOND_NS / 2 - phase_ns, &rtc->offset_ns);
}

static bool divider_held(uint8_t a)
{
	return (a & A_DIVIDER_HELD) == A_DIVIDER_HELD;
}

static uint8_t read_reg(struct mb_rtc *rtc)
{
	int64_t seconds;

	switch (rtc->index) {
	case REG_A:
		if ((rtc->reg[REG_B] & B_SET) || divider_held(rtc->reg[REG_A]))
			return rtc->reg[REG_A];
		return rtc->reg[REG_A] |
		       (split_ns(guest_ns(rtc), &seconds) >= SECOND_NS - UPDATE_NS ? A_UPDATING
										   : 0);
	case REG_C:
		return 0;
	case REG_D:
		return D_VALID;
	}
	if (is_time_reg(rtc->index) && !(rtc->reg[REG_B] & B_SET))
		load_time(rtc);
	return rtc->reg[rtc->index];
}

static void write_reg(struct mb_rtc *rtc, uint8_t value)
{
	bool stopped = rtc->reg[REG_B] & B_SET;
	uint8_t before;

	switch (rtc->index) {
	case REG_A:
		before = rtc->reg[REG_A];
		rtc->reg[REG_A] = value & (uint8_t)~A_UPDATING;
		if (divider_held(before) && !divider_held(value))
			restart_divider(rtc);
		return;
	case REG_B:
		/*
		 * Stopping keeps the time of this moment in the registers, in the format that was
		 * valid.
		 */
		if (!stopped && (value & B_SET))
			load_time(rtc);
		rtc->reg[REG_B] = value;
		if (stopped && !(value & B_SET))
			store_time(rtc);
		return;
	case REG_C:
	case REG_D:
		return;
	}
	if (!is_time_reg(rtc->index) || stopped) {
		rtc->reg[rtc->index] = value;
		return;
	}
	load_time(rtc);
	rtc->reg[rtc->index] = value;
	store_time(rtc);
}

static void port_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_rtc *rtc = dev;
	uint8_t *bytes = data;

	pthread_mutex_lock(&rtc->lock);
	/* The index cannot be read back on a PC: it floats. */
	for (unsigned i = 0; i < len; i++)
		bytes[i] = offset + i == 1 ? read_reg(rtc) : 0xff;
	pthread_mutex_unlock(&rtc->lock);
}

static void port_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_rtc *rtc = dev;
	const uint8_t *bytes = data;

	pthread_mutex_lock(&rtc->lock);
	for (unsigned i = 0; i < len; i++) {
		if (offset + i == 0)
			rtc->index = bytes[i] & (N_REGS - 1); /* bit 7 masks NMIs */
		else
			write_reg(rtc, bytes[i]);
	}
	pthread_mutex_unlock(&rtc->lock);
}

static const struct mb_region_ops region_ops = {
	.read = port_read,
	.write = port_write,
};

static int64_t host_ns(void *ctx)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * SECOND_NS + ts.tv_nsec;
}

int mb_rtc_create_with_clock(struct mb_bus *bus, int64_t (*now_ns)(void *ctx), void *ctx,
	struct mb_rtc **out, struct mb_error *err)
{
	struct mb_rtc *rtc = calloc(1, sizeof(*rtc));
	int rc;

	if (!rtc)
		return mb_error_set(err, ENOMEM, "real-time clock: out of memory");
	rtc->bus = bus;
	rtc->now_ns = now_ns;
	rtc->ctx = ctx;
	rtc->reg[REG_A] = A_DEFAULT;
	rtc->reg[REG_B] = B_24_HOURS;
	rtc->region = (struct mb_region){
		.space = MB_PIO,
		.base = PORT_INDEX,
		.len = N_PORTS,
		.ops = &region_ops,
		.dev = rtc,
	};
	pthread_mutex_init(&rtc->lock, NULL);
	rc = mb_bus_add(bus, &rtc->region);
	if (rc) {
		mb_error_set(err, -rc, "real-time clock: claim I/O port %#x: %s", PORT_INDEX,
			strerror(-rc));
		goto err_lock;
	}
	*out = rtc;
	return 0;

err_lock:
	pthread_mutex_destroy(&rtc->lock);
	free(rtc);
	return rc;
}

int mb_rtc_create(struct mb_bus *bus, struct mb_rtc **out, struct mb_error *err)
{
	return mb_rtc_create_with_clock(bus, host_ns, NULL, out, err);
}

void mb_rtc_destroy(struct mb_rtc *rtc)
{
	if (!rtc)
		return;
	mb_bus_remove(rtc->bus, &rtc->region);
	pthread_mutex_destroy(&rtc->lock);
	free(rtc);
}

#define STATE_VERSION 1u

void mb_rtc_save(struct mb_rtc *rtc, struct mb_state_out *out)
{
	mb_state_begin(out, "rtc", STATE_VERSION);
	pthread_mutex_lock(&rtc->lock);
	mb_state_put_u64(out, (uint64_t)rtc->offset_ns);
	mb_state_put_u8(out, rtc->index);
	mb_state_put(out, rtc->reg, sizeof(rtc->reg));
	pthread_mutex_unlock(&rtc->lock);
	mb_state_end(out);
}

int mb_rtc_load(struct mb_rtc *rtc, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "rtc", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&rtc->lock);
	rtc->offset_ns = (int64_t)mb_state_get_u64(&part);
	rtc->index = mb_state_get_u8(&part) & (N_REGS - 1);
	mb_state_get(&part, rtc->reg, sizeof(rtc->reg));
	rtc->reg[REG_A] &= (uint8_t)~A_UPDATING;
	pthread_mutex_unlock(&rtc->lock);
	return mb_state_leave(&part, err);
}
