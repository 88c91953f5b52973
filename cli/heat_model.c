// SPDX-License-Identifier: Apache-2.0
#include "heat_model.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_CELL_BYTES 4096
#define MAX_INLINE_GAP 2 /* cells: a gap of that many is shown as untouched cells */

static bool is_user(double touches, double all)
{
	return touches >= HEAT_MIN_PER_S && touches >= all * HEAT_MIN_SHARE;
}

/* Four decades: 0.05 to 500 touches a second. */
static unsigned level_of(double per_s)
{
	double level = 1 + floor(log10(per_s / HEAT_MIN_PER_S) * HEAT_LEVELS / 4);

	if (per_s < HEAT_MIN_PER_S)
		return 0;
	return level > HEAT_LEVELS ? HEAT_LEVELS : (unsigned)level;
}

struct heat_use heat_use(
	const struct heat *heat, const struct heat_extent *extent, enum heat_what what)
{
	struct heat_use use = {0};
	double touches[HEAT_MAX_VIEWS], read = 0, write = 0;

	for (unsigned v = 0; v < heat->n_views; v++) {
		double r = what == HEAT_WRITE ? 0 : (double)extent->read[v];
		double w = what == HEAT_READ ? 0 : (double)extent->write[v];

		touches[v] = r + w;
		read += r;
		write += w;
		if (touches[v] > touches[use.top])
			use.top = v;
	}
	use.per_s = read + write;
	for (unsigned v = 0; v < heat->n_views; v++)
		if (is_user(touches[v], use.per_s))
			use.users |= 1u << v;
	use.reads = is_user(read, use.per_s);
	use.writes = is_user(write, use.per_s);
	use.level = use.users ? level_of(use.per_s) : 0;
	return use;
}

enum heat_class heat_classify(const struct heat *heat, const struct heat_extent *extent)
{
	struct heat_use use;

	if (!extent->looked_bytes)
		return HEAT_UNKNOWN;
	use = heat_use(heat, extent, HEAT_ALL);
	if (!use.users)
		return HEAT_IDLE;
	if (use.users & (use.users - 1)) {
		if (use.writes)
			return HEAT_WRITE_SHARED;
		return extent->written_bytes ? HEAT_READ_SHARED : HEAT_SHARED;
	}
	if (heat->n_views == 1 && heat->n_nodes > 1)
		return HEAT_USED;
	if (extent->copied[use.top] >= (float)HEAT_MOST)
		return HEAT_OWN;
	if (!extent->has_node)
		return HEAT_UNKNOWN;
	return heat->view_nodes[use.top] >> extent->node & 1 ? HEAT_OWN : HEAT_REMOTE;
}

float heat_copied(const struct heat_extent *extent)
{
	float most = 0;

	for (unsigned v = 0; v < HEAT_MAX_VIEWS; v++)
		most = extent->copied[v] > most ? extent->copied[v] : most;
	return most;
}

const char *heat_class_name(enum heat_class class)
{
	static const char *const names[HEAT_CLASSES] = {
		[HEAT_OWN] = "own node",
		[HEAT_REMOTE] = "remote",
		[HEAT_READ_SHARED] = "read-shared",
		[HEAT_WRITE_SHARED] = "write-shared",
		[HEAT_SHARED] = "shared",
		[HEAT_USED] = "in use",
		[HEAT_IDLE] = "idle",
		[HEAT_UNKNOWN] = "not known yet",
	};

	return names[class];
}

uint64_t heat_sum(const struct heat *heat, uint64_t bytes[HEAT_CLASSES])
{
	uint64_t sum = 0;

	memset(bytes, 0, HEAT_CLASSES * sizeof(*bytes));
	for (size_t i = 0; i < heat->n_extents; i++) {
		const struct heat_extent *extent = &heat->extent[i];
		enum heat_class class = heat_classify(heat, extent);

		/* What was not looked at is not known, whatever the rest of the extent is. */
		bytes[class] += class == HEAT_UNKNOWN ? extent->used_bytes : extent->looked_bytes;
		if (class != HEAT_UNKNOWN)
			bytes[HEAT_UNKNOWN] += extent->used_bytes - extent->looked_bytes;
		sum += extent->used_bytes;
	}
	return sum;
}

uint64_t heat_sum_copied(const struct heat *heat)
{
	double sum = 0;

	for (size_t i = 0; i < heat->n_extents; i++)
		sum += (double)heat_copied(&heat->extent[i]) * (double)heat->extent[i].used_bytes;
	return (uint64_t)sum;
}

/* Slots that cells of this size need; stores them if slot is there. More than max: max + 1. */
static unsigned lay_out(const struct heat_extent *extents, size_t n, unsigned shift, unsigned max,
	struct heat_slot *slot)
{
	uint64_t next = 0, count = 0; /* next: the first cell that has no slot yet */

	for (size_t i = 0; i < n; i++) {
		uint64_t first = extents[i].gpa >> shift;
		uint64_t last = (extents[i].gpa + extents[i].bytes - 1) >> shift;

		if (first < next)
			first = next;
		if (last < first)
			continue;
		if (first - next > MAX_INLINE_GAP) {
			if (slot)
				slot[count] = (struct heat_slot){next << shift, true};
			count++;
		} else {
			first = next;
		}
		if (count + (last - first) + 1 > max)
			return max + 1;
		for (uint64_t cell = first; slot && cell <= last; cell++)
			slot[count + (cell - first)] = (struct heat_slot){cell << shift, false};
		count += last - first + 1;
		next = last + 1;
	}
	return (unsigned)count;
}

int heat_axis_fit(
	struct heat_axis *axis, const struct heat_extent *extents, size_t n, unsigned max_slots)
{
	unsigned shift = (unsigned)__builtin_ctz(MIN_CELL_BYTES);
	unsigned slots;

	while ((slots = lay_out(extents, n, shift, max_slots, NULL)) > max_slots)
		shift++;
	*axis = (struct heat_axis){.cell_bytes = 1ull << shift, .n = slots};
	axis->slot = calloc(slots + 1u, sizeof(*axis->slot));
	if (!axis->slot)
		return -ENOMEM;
	lay_out(extents, n, shift, max_slots, axis->slot);
	return 0;
}

/* What is being merged into one cell. */
struct sums {
	double used, looked, written, confidence;
	double read[HEAT_MAX_VIEWS], write[HEAT_MAX_VIEWS];
	double home[HEAT_MAX_NODES], copied[HEAT_MAX_VIEWS];
};

static void add(struct sums *sums, const struct heat_extent *extent, uint64_t overlap_bytes)
{
	double part = (double)overlap_bytes / (double)extent->bytes;
	double used = part * (double)extent->used_bytes;
	double looked = part * (double)extent->looked_bytes;
	double written = part * (double)extent->written_bytes;

	sums->used += used;
	sums->looked += looked;
	sums->written += written;
	sums->confidence += used * (double)extent->confidence;
	for (unsigned v = 0; v < HEAT_MAX_VIEWS; v++) {
		sums->read[v] += looked * (double)extent->read[v];
		sums->write[v] += written * (double)extent->write[v];
		sums->copied[v] += used * (double)extent->copied[v];
	}
	if (extent->has_node)
		sums->home[extent->node] += used * (double)extent->node_share;
}

static void conclude(const struct sums *sums, struct heat_extent *cell)
{
	unsigned home = 0;

	if (sums->used <= 0)
		return;
	/* Never more than there is, whatever rounding does. */
	cell->used_bytes = (uint64_t)fmin(ceil(sums->used), (double)cell->bytes);
	cell->looked_bytes = (uint64_t)fmin(ceil(sums->looked), (double)cell->used_bytes);
	cell->written_bytes = (uint64_t)fmin(ceil(sums->written), (double)cell->looked_bytes);
	cell->confidence = (float)(sums->confidence / sums->used);
	for (unsigned v = 0; v < HEAT_MAX_VIEWS; v++) {
		if (sums->looked > 0)
			cell->read[v] = (float)(sums->read[v] / sums->looked);
		if (sums->written > 0)
			cell->write[v] = (float)(sums->write[v] / sums->written);
		cell->copied[v] = (float)fmin(sums->copied[v] / sums->used, 1);
	}
	for (unsigned i = 1; i < HEAT_MAX_NODES; i++)
		if (sums->home[i] > sums->home[home])
			home = i;
	if (sums->home[home] > 0) {
		cell->has_node = true;
		cell->node = (uint8_t)home;
		cell->node_share = (float)fmin(sums->home[home] / sums->used, 1);
	}
}

void heat_merge(const struct heat_axis *axis, const struct heat_extent *extents, size_t n,
	struct heat_extent *cells)
{
	size_t i = 0;

	for (unsigned s = 0; s < axis->n; s++) {
		uint64_t begin = axis->slot[s].gpa, end = begin + axis->cell_bytes;
		struct sums sums = {0};

		cells[s] = (struct heat_extent){.gpa = begin, .bytes = axis->cell_bytes};
		if (axis->slot[s].gap)
			continue;
		while (i < n && extents[i].gpa < end) {
			uint64_t from = extents[i].gpa, to = from + extents[i].bytes;

			if (from < begin)
				from = begin;
			if (to > from)
				add(&sums, &extents[i], (to < end ? to : end) - from);
			if (to > end)
				break; /* the rest of it is the next cell's */
			i++;
		}
		conclude(&sums, &cells[s]);
	}
}

void heat_format_size(uint64_t bytes, char *text, size_t len)
{
	static const char units[][4] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	unsigned unit = 0;
	double value = (double)bytes;
	char number[16];

	if (!bytes) {
		snprintf(text, len, "0");
		return;
	}
	while (value >= 1000 && unit < 6) {
		value /= 1024;
		unit++;
	}
	snprintf(number, sizeof(number), "%.*f", value < 10 ? 2 : value < 100 ? 1 : 0, value);
	if (strchr(number, '.')) {
		char *end = number + strlen(number);

		while (end[-1] == '0')
			*--end = '\0';
		if (end[-1] == '.')
			end[-1] = '\0';
	}
	snprintf(text, len, "%s %s", number, units[unit]);
}
