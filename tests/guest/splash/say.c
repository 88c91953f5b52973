/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* What the guest says: whole lines through the text port, one vCPU at a time. */
#define LINE_BYTES 240

struct out {
	char *buf;
	size_t size;
	size_t len;
};

static void put(struct out *o, char c)
{
	if (o->len + 1 < o->size)
		o->buf[o->len++] = c;
}

struct spec {
	bool left;
	bool zero;
	unsigned width;
};

static void put_field(struct out *o, const struct spec *s, const char *text, unsigned len)
{
	unsigned pad = s->width > len ? s->width - len : 0;

	while (!s->left && pad) {
		put(o, s->zero ? '0' : ' ');
		pad--;
	}
	while (len--)
		put(o, *text++);
	while (pad--)
		put(o, ' ');
}

static void put_number(struct out *o, const struct spec *s, uint64_t v, unsigned base)
{
	char digits[20];
	unsigned i = sizeof(digits);

	do {
		digits[--i] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	put_field(o, s, digits + i, sizeof(digits) - i);
}

unsigned vformat(char *buf, size_t size, const char *fmt, va_list ap)
{
	struct out o = {.buf = buf, .size = size};

	for (; *fmt; fmt++) {
		struct spec s = {0};
		bool is_long = false;
		const char *text;
		unsigned len = 0;

		if (*fmt != '%') {
			put(&o, *fmt);
			continue;
		}
		for (fmt++; *fmt == '-' || *fmt == '0'; fmt++)
			*(*fmt == '-' ? &s.left : &s.zero) = true;
		for (; *fmt >= '0' && *fmt <= '9'; fmt++)
			s.width = s.width * 10 + (unsigned)(*fmt - '0');
		for (; *fmt == 'l'; fmt++)
			is_long = true;
		switch (*fmt) {
		case 's':
			text = va_arg(ap, const char *);
			while (text[len])
				len++;
			put_field(&o, &s, text, len);
			break;
		case 'c':
			put(&o, (char)va_arg(ap, int));
			break;
		case 'u':
		case 'x':
			put_number(&o, &s, is_long ? va_arg(ap, uint64_t) : va_arg(ap, uint32_t),
				*fmt == 'x' ? 16 : 10);
			break;
		case '\0':
			fmt--;
			break;
		default:
			put(&o, *fmt);
		}
	}
	buf[o.len] = '\0';
	return (unsigned)o.len;
}

unsigned format(char *buf, size_t size, const char *fmt, ...)
{
	va_list ap;
	unsigned len;

	va_start(ap, fmt);
	len = vformat(buf, size, fmt, ap);
	va_end(ap);
	return len;
}

static void put_line(const char *text, size_t len)
{
	/* The monitor may be slow to take it; others that have something to say wait. */
	lock(&guest.line_lock);
	__asm__ volatile("rep outsb"
			 : "+S"(text), "+c"(len)
			 : "d"((uint16_t)MB_SPLASH_TEXT_PORT)
			 : "memory");
	unlock(&guest.line_lock);
}

void say(const char *fmt, ...)
{
	char text[LINE_BYTES];
	va_list ap;
	unsigned len;

	va_start(ap, fmt);
	len = vformat(text, sizeof(text) - 1, fmt, ap);
	va_end(ap);
	text[len++] = '\n';
	put_line(text, len);
}

void format_count(char *buf, size_t size, uint64_t v)
{
	static const char prefix[] = " kMGTP";
	uint64_t unit = 1;
	unsigned i = 0;

	if (guest.args.value[MB_SPLASH_ARG_RAW]) {
		format(buf, size, "%lu", v);
		return;
	}
	while (v / unit >= 1000 && prefix[i + 1]) {
		unit *= 1000;
		i++;
	}
	if (!i)
		format(buf, size, "%lu", v);
	else if (v / unit >= 100)
		format(buf, size, "%lu %c", v / unit, prefix[i]);
	else
		format(buf, size, "%lu.%lu %c", v / unit, v % unit / (unit / 10), prefix[i]);
}

void format_bytes(char *buf, size_t size, uint64_t bytes)
{
	static const char *const names[] = {"bytes", "KiB", "MiB", "GiB"};
	unsigned i = 0;

	while (i < 3 && bytes >= 1024 && !(bytes & 1023)) {
		bytes >>= 10;
		i++;
	}
	format(buf, size, "%lu %s", bytes, names[i]);
}

void end(unsigned status)
{
	out8(MB_SPLASH_EXIT_PORT, (uint8_t)status);
	park();
}

/* The first vCPU that has bad news is the only one that is heard. */
static void bad_news(unsigned status, const char *fmt, va_list ap)
{
	char why[LINE_BYTES - 40];

	if (__atomic_exchange_n(&guest.ended, 1, __ATOMIC_ACQ_REL))
		park();
	vformat(why, sizeof(why), fmt, ap);
	say("splash: %s: FAILED: %s", guest.title, why);
	end(status);
}

void fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	bad_news(MB_SPLASH_FAILED, fmt, ap);
	va_end(ap);
	park();
}

void usage_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	bad_news(MB_SPLASH_USAGE, fmt, ap);
	va_end(ap);
	park();
}
