// SPDX-License-Identifier: Apache-2.0
#include "parse.h"
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <mirrorball/blk.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISK_SERIAL_MAX 20 /* virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID */
#define MAX_QUEUES	64

static const struct {
	char letter;
	unsigned shift;
} units[] = {{'T', 40}, {'G', 30}, {'M', 20}, {'K', 10}};
#define N_UNITS (sizeof(units) / sizeof(units[0]))

/* Decimal digits only: strtoull would take spaces, signs and hexadecimal. */
static int parse_digits(const char **text, uint64_t *value)
{
	const char *p = *text;
	uint64_t v = 0;

	if (*p < '0' || *p > '9')
		return -EINVAL;
	for (; *p >= '0' && *p <= '9'; p++) {
		if (__builtin_mul_overflow(v, 10u, &v) ||
			__builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return -ERANGE;
	}
	*text = p;
	*value = v;
	return 0;
}

int cli_parse_size(const char *text, uint64_t *bytes, struct mb_error *err)
{
	const char *p = text, *unit;
	uint64_t value;
	unsigned shift = 0;
	int rc = parse_digits(&p, &value);

	if (rc == -ERANGE)
		return mb_error_set(err, ERANGE, "size %s: too large", text);
	if (*text == '-')
		return mb_error_set(err, EINVAL, "size %s: negative", text);
	if (rc)
		return mb_error_set(err, EINVAL,
			"size '%s': not a number; write a whole number and K, M, G or T, as in "
			"512M",
			text);
	unit = p;
	if (*p) {
		for (size_t i = 0; i < N_UNITS; i++)
			if (toupper((unsigned char)*p) == units[i].letter)
				shift = units[i].shift;
		if (shift) {
			p++;
			if (!strcmp(p, "iB"))
				p += 2;
		}
	}
	if (*p == '.')
		return mb_error_set(err, EINVAL,
			"size %s: not a whole number; use a smaller unit, as in 1536M for 1.5G",
			text);
	if (*p)
		return mb_error_set(err, EINVAL,
			"size %s: '%s' is not a unit; write K, M, G or T (powers of 1024)", text,
			unit);
	if (value > UINT64_MAX >> shift)
		return mb_error_set(err, ERANGE, "size %s: too large", text);
	*bytes = value << shift;
	return 0;
}

void cli_format_size(uint64_t bytes, char *text, size_t len)
{
	for (size_t i = 0; i < N_UNITS; i++) {
		if (bytes && !(bytes & ((1ull << units[i].shift) - 1))) {
			snprintf(text, len, "%" PRIu64 "%c", bytes >> units[i].shift,
				units[i].letter);
			return;
		}
	}
	snprintf(text, len, "%" PRIu64, bytes);
}

int cli_parse_unsigned(
	const char *text, unsigned min, unsigned max, unsigned *value, struct mb_error *err)
{
	const char *p = text;
	uint64_t v;
	int rc = parse_digits(&p, &v);

	if (rc == -EINVAL || (!rc && *p))
		return mb_error_set(
			err, EINVAL, "'%s' is not a whole number from %u to %u", text, min, max);
	if (rc || v < min || v > max)
		return mb_error_set(
			err, ERANGE, "%s is out of range; %u to %u are possible", text, min, max);
	*value = (unsigned)v;
	return 0;
}

int cli_parse_seconds(
	const char *text, unsigned min_ms, unsigned max_ms, unsigned *ms, struct mb_error *err)
{
	const char *p = text;
	uint64_t whole, part = 0;
	int rc = parse_digits(&p, &whole);

	if (!rc && *p == '.') {
		unsigned n = 0;

		for (p++; n < 3; n++)
			part = part * 10 + (*p >= '0' && *p <= '9' ? (unsigned)(*p++ - '0') : 0);
		if (p[-1] == '.')
			rc = -EINVAL;
	}
	if (rc == -EINVAL || (!rc && *p))
		return mb_error_set(err, EINVAL,
			"'%s' is not a number of seconds with at most three decimals, as in 0.25",
			text);
	if (rc || whole > max_ms / 1000 || whole * 1000 + part < min_ms ||
		whole * 1000 + part > max_ms)
		return mb_error_set(err, ERANGE, "%s s is out of range; %g to %g are possible",
			text, min_ms / 1e3, max_ms / 1e3);
	*ms = (unsigned)(whole * 1000 + part);
	return 0;
}

int cli_parse_mac(const char *text, uint8_t mac[6], struct mb_error *err)
{
	static const uint8_t zero[6];
	const char *p = text;
	uint8_t m[6];

	for (unsigned i = 0; i < 6; i++) {
		char two[3] = {0};

		if (!isxdigit((unsigned char)p[0]) || !isxdigit((unsigned char)p[1]) ||
			p[2] != (i < 5 ? ':' : '\0'))
			return mb_error_set(err, EINVAL,
				"MAC address '%s': write six pairs of hexadecimal digits, as in "
				"52:54:00:12:34:56",
				text);
		memcpy(two, p, 2);
		m[i] = (uint8_t)strtoul(two, NULL, 16);
		p += 3;
	}
	if (m[0] & 1)
		return mb_error_set(err, EINVAL,
			"MAC address %s: this is a group address; the first byte must be even",
			text);
	if (!memcmp(m, zero, 6))
		return mb_error_set(err, EINVAL,
			"MAC address %s: not an address; leave mac= out to have one derived from "
			"--name",
			text);
	memcpy(mac, m, 6);
	return 0;
}

int cli_parse_name(const char *text, struct mb_error *err)
{
	size_t len = strlen(text);
	bool good = len >= 1 && len <= 63 && text[0] != '.' && text[0] != '-';

	for (const char *p = text; *p; p++)
		good = good && (isalnum((unsigned char)*p) || strchr("._-", *p));
	if (!good)
		return mb_error_set(err, EINVAL,
			"name '%s': 1 to 63 letters, digits, dots, dashes and underscores, "
			"starting with none of . -",
			text);
	return 0;
}

int cli_split_fields(char *text, char *field[CLI_MAX_FIELDS], unsigned *n, struct mb_error *err)
{
	char *in = text, *out = text, *start = text;
	unsigned count = 0;
	bool last = false;

	while (!last) {
		if (in[0] == ',' && in[1] == ',') {
			*out++ = ',';
			in += 2;
			continue;
		}
		if (*in && *in != ',') {
			*out++ = *in++;
			continue;
		}
		last = !*in++;
		*out++ = '\0';
		if (!*start)
			return mb_error_set(err, EINVAL,
				"empty part; write two commas (,,) for a comma that is meant "
				"literally");
		if (count == CLI_MAX_FIELDS)
			return mb_error_set(err, EINVAL, "more than %d parts", CLI_MAX_FIELDS);
		field[count++] = start;
		start = out;
	}
	*n = count;
	return 0;
}

/* The value when field is "key=value", else NULL. */
static const char *field_value(const char *field, const char *key)
{
	size_t n = strlen(key);

	return !strncmp(field, key, n) && field[n] == '=' ? field + n + 1 : NULL;
}

static int unknown_field(
	const char *field, const char *const *known, const char *list, struct mb_error *err)
{
	char word[64];
	const char *near;

	snprintf(word, sizeof(word), "%.*s", (int)strcspn(field, "="), field);
	near = cli_nearest(word, known);
	if (near)
		return mb_error_set(err, EINVAL, "unknown part '%s'; did you mean '%s'? (%s)",
			field, near, list);
	return mb_error_set(err, EINVAL, "unknown part '%s'; possible: %s", field, list);
}

static int twice(const char *key, struct mb_error *err)
{
	return mb_error_set(err, EINVAL, "%s is given twice", key);
}

static int parse_serial(const char *value, struct mb_error *err)
{
	size_t len = strlen(value);

	for (const char *p = value; *p; p++)
		if (!isgraph((unsigned char)*p))
			len = 0;
	if (!len || len > DISK_SERIAL_MAX)
		return mb_error_set(err, EINVAL,
			"serial '%s': 1 to %d printable ASCII characters without spaces", value,
			DISK_SERIAL_MAX);
	return 0;
}

static int parse_cow(const char *field, struct mb_disk_config *disk, struct mb_error *err)
{
	const char *dir = field_value(field, "cow");

	if (disk->cow)
		return twice("cow", err);
	disk->cow = true;
	if (!dir)
		return 0;
	if (!*dir)
		return mb_error_set(err, EINVAL, "cow=: a directory, or memory");
	disk->cow_dir = strcmp(dir, "memory") ? dir : "";
	return 0;
}

static int parse_disk_field(
	const char *field, struct mb_disk_config *disk, const char **direct, struct mb_error *err)
{
	static const char *const known[] = {
		"ro", "cow", "overlay", "direct", "serial", "queues", NULL};
	static const char list[] =
		"ro, cow, cow=DIR|memory, overlay=FILE, direct=on|off, serial=S, queues=N";
	const char *value;
	int rc;

	if (!strcmp(field, "ro")) {
		if (disk->readonly)
			return twice("ro", err);
		disk->readonly = true;
		return 0;
	}
	if (!strcmp(field, "cow") || field_value(field, "cow"))
		return parse_cow(field, disk, err);
	if ((value = field_value(field, "overlay"))) {
		if (disk->overlay)
			return twice("overlay=", err);
		disk->overlay = value;
		return *value ? 0 : mb_error_set(err, EINVAL, "overlay=: the file has no name");
	}
	if ((value = field_value(field, "direct"))) {
		if (*direct)
			return twice("direct=", err);
		*direct = value;
		if (strcmp(value, "on") && strcmp(value, "off"))
			return mb_error_set(err, EINVAL, "direct=%s: on or off", value);
		disk->buffered = !strcmp(value, "off");
		return 0;
	}
	if ((value = field_value(field, "serial"))) {
		if (disk->serial)
			return twice("serial=", err);
		disk->serial = value;
		return parse_serial(value, err);
	}
	if ((value = field_value(field, "queues"))) {
		if (disk->n_queues)
			return twice("queues=", err);
		rc = cli_parse_unsigned(value, 1, MAX_QUEUES, &disk->n_queues, err);
		return rc ? mb_error_prefix(err, rc, "queues") : 0;
	}
	return unknown_field(field, known, list, err);
}

int cli_parse_disk(char *text, struct mb_disk_config *disk, struct mb_error *err)
{
	char *field[CLI_MAX_FIELDS];
	const char *direct = NULL;
	unsigned n;
	int rc = cli_split_fields(text, field, &n, err);

	if (rc)
		return rc;
	*disk = (struct mb_disk_config){.path = field[0]};
	for (unsigned i = 1; i < n; i++) {
		rc = parse_disk_field(field[i], disk, &direct, err);
		if (rc)
			return rc;
	}
	if (mb_blk_is_uri(disk->path)) {
		if (direct)
			return mb_error_set(err, EINVAL,
				"direct= is for files and block devices, not for a network disk");
		if (disk->overlay)
			return mb_error_set(err, EINVAL,
				"overlay= needs a file or block device beneath; with a network "
				"disk, cow is possible");
		disk->buffered = true;
	}
	if (disk->readonly + disk->cow + !!disk->overlay > 1)
		return mb_error_set(err, EINVAL, "ro, cow and overlay= exclude each other");
	if (!disk->cow && !disk->overlay)
		return 0;
	if (direct && !disk->buffered)
		return mb_error_set(err, EINVAL,
			"direct=on does not go with cow or overlay=: the disk beneath is read "
			"through the page cache, of "
			"which all machines share one copy");
	if (disk->overlay && !strcmp(disk->overlay, disk->path))
		return mb_error_set(err, EINVAL, "overlay=: is the disk itself; name another file");
	disk->buffered = true;
	return 0;
}

static int parse_net_back(const char *first, struct mb_nic_config *nic, struct mb_error *err)
{
	static const char *const known[] = {"tap", "tap-fd", "passt", NULL};
	const char *value;

	if (!strcmp(first, "passt")) {
		nic->passt = true;
		return 0;
	}
	if ((value = field_value(first, "tap"))) {
		if (!*value || strlen(value) >= IFNAMSIZ || strpbrk(value, "/ %"))
			return mb_error_set(err, EINVAL,
				"tap '%s': not an interface name (1 to %d characters)", value,
				IFNAMSIZ - 1);
		nic->tap_name = value;
		return 0;
	}
	if ((value = field_value(first, "tap-fd"))) {
		unsigned fd;
		int rc = cli_parse_unsigned(value, 3, 1u << 20, &fd, err);

		if (rc)
			return mb_error_prefix(err, rc, "tap-fd");
		nic->tap_fd = (int)fd;
		return 0;
	}
	return unknown_field(first, known, "tap=NAME, tap-fd=N, passt", err);
}

int cli_parse_net(
	char *text, const char **passt_args, struct mb_nic_config *nic, struct mb_error *err)
{
	static const char *const known[] = {"mac", "queues", "arg", NULL};
	char *field[CLI_MAX_FIELDS];
	unsigned n, n_args = 0;
	bool have_mac = false;
	int rc = cli_split_fields(text, field, &n, err);

	if (rc)
		return rc;
	*nic = (struct mb_nic_config){.tap_fd = -1};
	rc = parse_net_back(field[0], nic, err);
	for (unsigned i = 1; !rc && i < n; i++) {
		const char *value;

		if ((value = field_value(field[i], "mac"))) {
			if (have_mac)
				return twice("mac=", err);
			have_mac = true;
			rc = cli_parse_mac(value, nic->mac, err);
		} else if ((value = field_value(field[i], "queues"))) {
			if (nic->n_pairs)
				return twice("queues=", err);
			if (!nic->tap_name)
				return mb_error_set(err, EINVAL,
					"queues=%s: only tap=NAME can have several queues", value);
			rc = cli_parse_unsigned(value, 1, MAX_QUEUES, &nic->n_pairs, err);
			if (rc)
				mb_error_prefix(err, rc, "queues");
		} else if ((value = field_value(field[i], "arg"))) {
			if (!nic->passt)
				return mb_error_set(
					err, EINVAL, "arg=%s: only passt takes arguments", value);
			passt_args[n_args++] = value;
		} else {
			rc = unknown_field(field[i], known,
				nic->passt ? "mac=M, arg=A" : "mac=M, queues=N", err);
		}
	}
	passt_args[n_args] = NULL;
	if (n_args)
		nic->passt_args = passt_args;
	return rc;
}

/*
 * Letters to insert, drop, replace or swap with their neighbour (optimal string alignment); a
 * candidate longer than the table counts as far away.
 */
static unsigned edit_distance(const char *a, const char *b)
{
	unsigned rows[3][64]; /* row i is rows[i % 3] */
	size_t len_a = strlen(a), len_b = strlen(b);

	if (len_b >= 64)
		return 64;
	for (unsigned j = 0; j <= len_b; j++)
		rows[0][j] = j;
	for (unsigned i = 1; i <= len_a; i++) {
		const unsigned *above = rows[(i - 1) % 3], *above2 = rows[(i + 1) % 3];
		unsigned *row = rows[i % 3];

		row[0] = i;
		for (unsigned j = 1; j <= len_b; j++) {
			unsigned best = above[j - 1] + (a[i - 1] != b[j - 1]);

			if (above[j] + 1 < best)
				best = above[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
				above2[j - 2] + 1 < best)
				best = above2[j - 2] + 1;
			row[j] = best;
		}
	}
	return rows[len_a % 3][len_b];
}

int cli_parse_track(char *text, struct mb_machine_config *config, struct mb_error *err)
{
	static const char *const known[] = {"budget", NULL};
	char *field[CLI_MAX_FIELDS], *end;
	const char *value;
	double percent;
	unsigned n;
	int rc = cli_split_fields(text, field, &n, err);

	if (rc)
		return rc;
	if (!strcmp(field[0], "auto"))
		config->track = MB_TRACK_AUTO;
	else if (!strcmp(field[0], "on"))
		config->track = MB_TRACK_ON;
	else if (!strcmp(field[0], "off"))
		config->track = MB_TRACK_OFF;
	else
		return mb_error_set(err, EINVAL, "'%s': auto, on or off", field[0]);
	for (unsigned i = 1; i < n; i++) {
		value = field_value(field[i], "budget");
		if (!value)
			return unknown_field(field[i], known, "budget=PERCENT", err);
		if (config->track_guest_ppm)
			return twice("budget=", err);
		if (config->track == MB_TRACK_OFF)
			return mb_error_set(err, EINVAL, "budget=: what is off costs nothing");
		percent = isdigit((unsigned char)*value) ? strtod(value, &end) : -1;
		if (percent < 0 || *end || strpbrk(value, "xXeE"))
			return mb_error_set(
				err, EINVAL, "budget=%s: not a number of percent, as 0.5", value);
		if (percent < 0.1 || percent > 50)
			return mb_error_set(
				err, ERANGE, "budget=%s: 0.1 to 50 percent are possible", value);
		config->track_guest_ppm = (uint32_t)(percent * 10000 + 0.5);
		config->track_cpu_ppm = 2 * config->track_guest_ppm;
	}
	return 0;
}

const char *cli_nearest(const char *word, const char *const *candidates)
{
	const char *best = NULL;
	unsigned best_distance = 0;

	for (; *candidates; candidates++) {
		size_t len = strlen(*candidates);
		unsigned d = edit_distance(word, *candidates);

		/* A beginning of it is as good as one wrong letter. */
		if (strlen(word) >= 2 && !strncmp(word, *candidates, strlen(word)))
			d = 1;
		if (d > 1 && d > len / 3)
			continue;
		if (!best || d < best_distance) {
			best = *candidates;
			best_distance = d;
		}
	}
	return best;
}
