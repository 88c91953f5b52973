// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/bus.h>
#include <mirrorball/range.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Regions of one space, ordered by base; they never overlap, so they are ordered by end as well. */
struct space {
	struct mb_region **region;
	unsigned n;
	unsigned cap;
};

struct mb_bus {
	pthread_rwlock_t lock; /* protects both spaces; never held during a device's call */
	struct space space[2];
};

int mb_bus_create(struct mb_bus **out)
{
	struct mb_bus *bus = calloc(1, sizeof(*bus));

	if (!bus)
		return -ENOMEM;
	pthread_rwlock_init(&bus->lock, NULL);
	*out = bus;
	return 0;
}

void mb_bus_destroy(struct mb_bus *bus)
{
	if (!bus)
		return;
	pthread_rwlock_destroy(&bus->lock);
	free(bus->space[MB_PIO].region);
	free(bus->space[MB_MMIO].region);
	free(bus);
}

/* Index of the first region that ends above addr; s->n if none. Caller holds the lock. */
static unsigned first_ending_above(const struct space *s, uint64_t addr)
{
	unsigned lo = 0, hi = s->n;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;
		const struct mb_region *r = s->region[mid];

		if (r->base + (r->len - 1) < addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int add_locked(struct space *s, struct mb_region *region)
{
	unsigned at = first_ending_above(s, region->base);

	if (at < s->n && s->region[at]->base <= region->base + (region->len - 1))
		return -EEXIST;
	if (s->n == s->cap) {
		unsigned cap = s->cap ? 2 * s->cap : 16;
		struct mb_region **grown = realloc(s->region, cap * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		s->region = grown;
		s->cap = cap;
	}
	memmove(&s->region[at + 1], &s->region[at], (s->n - at) * sizeof(*s->region));
	s->region[at] = region;
	s->n++;
	return 0;
}

int mb_bus_add(struct mb_bus *bus, struct mb_region *region)
{
	uint64_t size = region->space == MB_PIO ? 0x10000 : UINT64_MAX;
	int rc;

	if (!mb_range_inside(region->base, region->len, 0, size))
		return -EINVAL;
	pthread_rwlock_wrlock(&bus->lock);
	rc = add_locked(&bus->space[region->space], region);
	pthread_rwlock_unlock(&bus->lock);
	return rc;
}

void mb_bus_remove(struct mb_bus *bus, struct mb_region *region)
{
	struct space *s = &bus->space[region->space];

	pthread_rwlock_wrlock(&bus->lock);
	for (unsigned i = 0; i < s->n; i++) {
		if (s->region[i] != region)
			continue;
		s->n--;
		memmove(&s->region[i], &s->region[i + 1], (s->n - i) * sizeof(*s->region));
		break;
	}
	pthread_rwlock_unlock(&bus->lock);
}

/* The region that holds all of [addr, addr + len), and where in it; NULL if none. */
static struct mb_region *find(
	struct mb_bus *bus, enum mb_space space, uint64_t addr, unsigned len, uint64_t *offset)
{
	struct space *s = &bus->space[space];
	struct mb_region *found = NULL;
	unsigned at;

	pthread_rwlock_rdlock(&bus->lock);
	at = first_ending_above(s, addr);
	if (at < s->n && mb_range_inside(addr, len, s->region[at]->base, s->region[at]->len)) {
		found = s->region[at];
		*offset = addr - found->base;
	}
	pthread_rwlock_unlock(&bus->lock);
	return found;
}

bool mb_bus_read(struct mb_bus *bus, enum mb_space space, uint64_t addr, void *data, unsigned len)
{
	uint64_t offset;
	struct mb_region *region = find(bus, space, addr, len, &offset);

	memset(data, 0xff, len);
	if (!region || !region->ops->read)
		return false;
	region->ops->read(region->dev, offset, data, len);
	return true;
}

bool mb_bus_write(
	struct mb_bus *bus, enum mb_space space, uint64_t addr, const void *data, unsigned len)
{
	uint64_t offset;
	struct mb_region *region = find(bus, space, addr, len, &offset);

	if (!region || !region->ops->write)
		return false;
	region->ops->write(region->dev, offset, data, len);
	return true;
}

bool mb_bus_write_string(
	struct mb_bus *bus, uint16_t port, const void *data, unsigned len, unsigned count)
{
	uint64_t offset;
	struct mb_region *region = find(bus, MB_PIO, port, len, &offset);

	if (!region)
		return false;
	if (region->ops->write_string) {
		region->ops->write_string(region->dev, offset, data, len, count);
		return true;
	}
	if (!region->ops->write)
		return false;
	for (unsigned i = 0; i < count; i++)
		region->ops->write(region->dev, offset, (const char *)data + (size_t)i * len, len);
	return true;
}

uint64_t mb_bus_value(const void *data, unsigned len)
{
	uint64_t value = 0;

	memcpy(&value, data, len < sizeof(value) ? len : sizeof(value));
	return value;
}

void mb_bus_set_value(void *data, unsigned len, uint64_t value)
{
	memcpy(data, &value, len < sizeof(value) ? len : sizeof(value));
}
