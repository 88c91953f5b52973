/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz_virtio.h"

/*
 * A driver that goes through the motions of virtio 1.2, 3.1 and then lies: plausible and wild
 * rings, descriptors that loop, point nowhere or are far too long, available indices that jump, and
 * more notifications than anybody needs. Half of the time it is tame, makes requests that a device
 * can do, and lies only now and then, so that lies meet a device at work. Several vCPUs may do so
 * to one device at once.
 */

#define F_RING_PACKED	 (1ull << 34)

#define MAX_STATUS_READS 1000u

static void set(struct session *s, unsigned field, unsigned size, uint64_t v)
{
	fuzz_mmio_write(s->self, s->common + field, size, v);
}

static uint32_t get(struct session *s, unsigned field, unsigned size)
{
	return (uint32_t)fuzz_mmio_read(s->self, s->common + field, size);
}

/* As chance, for what a tame driver does not do. */
static bool mischief(struct session *s, unsigned one_in)
{
	return !s->tame && chance(s, one_in);
}

static void negotiate(struct session *s)
{
	uint64_t features;

	set(s, STATUS, 1, 0);
	for (unsigned n = 0; n < MAX_STATUS_READS && get(s, STATUS, 1); n++)
		;
	set(s, STATUS, 1, ACKNOWLEDGE);
	set(s, STATUS, 1, ACKNOWLEDGE | DRIVER);
	set(s, DEVICE_FEATURE_SELECT, 4, 0);
	features = get(s, DEVICE_FEATURE, 4);
	set(s, DEVICE_FEATURE_SELECT, 4, 1);
	features |= (uint64_t)get(s, DEVICE_FEATURE, 4) << 32;
	if (mischief(s, 8))
		features = fuzz_value(s->self);
	else if (chance(s, 2))
		features &= rnd(s->self) | F_VERSION_1;
	s->packed = features & F_RING_PACKED;
	set(s, DRIVER_FEATURE_SELECT, 4, 0);
	set(s, DRIVER_FEATURE, 4, (uint32_t)features);
	set(s, DRIVER_FEATURE_SELECT, 4, mischief(s, 16) ? 2 : 1);
	set(s, DRIVER_FEATURE, 4, features >> 32);
	if (!mischief(s, 8))
		set(s, STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	get(s, STATUS, 1);
}

/*
 * Written in halves, and another vCPU may start the device in between: a wild address is one of
 * which either half, with the other half of a good one, is still outside of RAM. So not through
 * fuzz.c's filter.
 */
static void set_address(struct session *s, unsigned field, uint64_t gpa)
{
	if (mischief(s, 8)) {
		gpa = fuzz_wild_gpa(s->self) | 0xc0000000;
		gpa |= gpa >> 32 ? 1ull << 62 : 0;
	}
	if (mischief(s, 16))
		gpa += rnd_below(s->self, 16);
	s->self->ops += 2;
	mmio_write(s->common + field, 4, gpa);
	mmio_write(s->common + field + 4, 4, gpa >> 32);
}

static void set_queue(struct session *s, unsigned i)
{
	uint64_t ring = fuzz_ring_gpa(s->self);
	unsigned max;

	s->queue[i] = (unsigned)rnd_below(s->self, MIN(s->n_queues + !s->tame, 256));
	set(s, QUEUE_SELECT, 2, s->queue[i]);
	max = get(s, QUEUE_SIZE, 2);
	s->size[i] = 1u << (s->tame ? 4 : rnd_below(s->self, 11));
	if (!mischief(s, 4))
		s->size[i] = MIN(s->size[i], MAX(max, 1));
	if (mischief(s, 8))
		s->size[i] = (unsigned)fuzz_value(s->self) & 0xffff;
	set(s, QUEUE_SIZE, 2, s->size[i]);
	s->size[i] = MIN(MAX(s->size[i], 1), MAX_RING_SIZE);
	set(s, QUEUE_VECTOR, 2, chance(s, 2) ? rnd_below(s->self, 4) : fuzz_value(s->self));
	set_address(s, QUEUE_DESC, ring);
	set_address(s, QUEUE_DRIVER, ring + RING_DRIVER);
	set_address(s, QUEUE_DEVICE, ring + RING_DEVICE);
	set(s, QUEUE_ENABLE, 2, 1);
}

/* Memory for a descriptor to point to; in it the header of a block request, or anything. */
static uint64_t data_gpa(struct session *s)
{
	uint64_t offset = rnd_below(s->self, fuzz.data_bytes - 64) & ~15ull;
	uint32_t *p = (uint32_t *)(fuzz.data + offset);

	if (s->dev->device_id == TYPE_BLOCK) {
		p[0] = (uint32_t)rnd_below(s->self, 16);
		p[1] = 0;
		p[2] = (uint32_t)(chance(s, 4) ? fuzz_value(s->self) : rnd_below(s->self, 4096));
		p[3] = chance(s, 8) ? (uint32_t)fuzz_value(s->self) : 0;
	} else if (chance(s, 2)) {
		p[0] = (uint32_t)fuzz_value(s->self);
		p[1] = (uint32_t)fuzz_value(s->self);
		p[2] = (uint32_t)fuzz_value(s->self);
	}
	return memory_gpa(p);
}

static uint32_t data_len(struct session *s)
{
	switch (rnd_below(s->self, 8)) {
	case 0:
		return (uint32_t)fuzz_value(s->self);
	case 1:
		return 0;
	case 2:
		return 16;
	case 3:
		return 1;
	case 4:
		return (uint32_t)rnd_below(s->self, 1 << 20);
	default:
		return (uint32_t)(1 + rnd_below(s->self, 8)) * 512;
	}
}

static void set_desc(struct session *s, struct desc *d, unsigned size)
{
	volatile struct desc *out = d;
	uint16_t flags = (uint16_t)(rnd(s->self) & (DESC_NEXT | DESC_WRITE));
	uint16_t next = (uint16_t)(chance(s, 16) ? fuzz_value(s->self) : rnd_below(s->self, size));
	uint64_t addr = chance(s, 8) ? fuzz_wild_gpa(s->self) : data_gpa(s);
	uint32_t len = data_len(s);
	unsigned forbidden;

	if (chance(s, 8)) {
		flags = DESC_INDIRECT;
		addr = fuzz_ring_gpa(s->self) + RING_INDIRECT + rnd_below(s->self, 64) * 16;
		len = (uint32_t)(chance(s, 4) ? fuzz_value(s->self) : rnd_below(s->self, 64) * 16);
	}
	if (chance(s, 32))
		flags = (uint16_t)fuzz_value(s->self);
	/*
	 * A table of descriptors is never where a device writes: what it wrote would be addresses,
	 * of our own memory perhaps. That holds for both kinds of ring, whichever the device thinks
	 * this is, so for both fields.
	 */
	forbidden = addr - fuzz_ring_gpa(s->self) < RING_BYTES ? DESC_WRITE : DESC_INDIRECT;
	flags &= (uint16_t)~forbidden;
	next &= (uint16_t)~forbidden;
	/* And never an old address with new flags. */
	out->flags = 0;
	out->next = 0;
	out->addr = addr;
	out->len = len;
	if (s->packed) {
		/* 2.8.6: id, then flags with the wrap counters. */
		out->flags = next;
		out->next = (uint16_t)(flags | (rnd(s->self) & 0x8080));
	} else {
		out->next = next;
		out->flags = flags;
	}
}

static void scribble(struct session *s, unsigned i)
{
	struct desc *ring = (struct desc *)s->ring,
		    *indirect = (struct desc *)(s->ring + RING_INDIRECT);
	volatile uint16_t *avail = (volatile uint16_t *)(s->ring + RING_DRIVER);
	unsigned n = 1 + (unsigned)rnd_below(s->self, 32);

	while (n--) {
		set_desc(s, &ring[rnd_below(s->self, s->size[i])], s->size[i]);
		set_desc(s, &indirect[rnd_below(s->self, 64)], 64);
		avail[2 + rnd_below(s->self, s->size[i])] =
			(uint16_t)(chance(s, 16) ? fuzz_value(s->self)
						 : rnd_below(s->self, s->size[i]));
	}
	avail[0] = (uint16_t)rnd_below(s->self, 4);
	/* used_event of the split ring. */
	avail[2 + s->size[i]] = (uint16_t)rnd(s->self);
	avail[1] =
		(uint16_t)(chance(s, 16) ? fuzz_value(s->self) : avail[1] + rnd_below(s->self, 8));
}

static void notify(struct session *s, unsigned i)
{
	uint64_t base = s->common - s->dev->common + s->dev->notify;
	unsigned n = 1u << rnd_below(s->self, chance(s, 16) ? 9 : 3);
	uint64_t at = base + (uint64_t)s->queue[i] * s->dev->notify_multiplier;

	while (n--)
		fuzz_mmio_write(s->self, at, chance(s, 4) ? 4 : 2, s->queue[i]);
}

static void meddle(struct session *s)
{
	uint64_t bar = s->common - s->dev->common;

	switch (rnd_below(s->self, 12)) {
	case 0:
		set(s, STATUS, 1, fuzz_value(s->self));
		break;
	case 1:
		set(s, STATUS, 1, 0);
		break;
	case 2:
		fuzz_mmio_read(s->self, bar + s->dev->isr, 1);
		break;
	case 3:
		fuzz_mmio_write(s->self, bar + s->dev->config + rnd_below(s->self, 128), 4,
			fuzz_value(s->self));
		break;
	case 4:
		fuzz_mmio_read(s->self, bar + s->dev->config + rnd_below(s->self, 128), 4);
		break;
	case 5:
		set(s, QUEUE_SELECT, 2, fuzz_value(s->self));
		break;
	case 6:
		set(s, QUEUE_SIZE, 2, fuzz_value(s->self));
		break;
	default:
		break;
	}
}

static void work(struct session *s, unsigned n_tried)
{
	unsigned n = 1u << rnd_below(s->self, 7);

	while (n--) {
		unsigned i = (unsigned)rnd_below(s->self, n_tried);

		if (s->tame && !chance(s, 32))
			fuzz_request(s, i);
		else
			scribble(s, i);
		notify(s, i);
		if (chance(s, s->tame ? 64 : 8))
			meddle(s);
	}
}

void fuzz_virtio(struct cpu *self, const struct fuzz_dev *dev)
{
	struct session s = {
		.self = self, .dev = dev, .ring = fuzz.rings + self->index * RING_BYTES};
	unsigned n_tried;

	s.tame = chance(&s, 2);
	s.wrap = true;
	s.common = (dev->bar & ~0xfull) + dev->common;
	if (s.common < MAX(guest.info.low_ram_bytes, PCI_WINDOW) || s.common >= PCI_WINDOW_END)
		return;
	if (!mischief(&s, 8))
		fuzz_restore(dev);
	negotiate(&s);
	s.n_queues = MAX(get(&s, NUM_QUEUES, 2), 1);
	set(&s, CONFIG_VECTOR, 2, rnd_below(self, 4));
	n_tried = s.tame ? 1 : 1 + (unsigned)rnd_below(self, MAX_TRIED_QUEUES);
	/* All queues of a session use the same rings, which is mischief too. */
	memset(s.ring, 0, RING_INDIRECT);
	for (unsigned i = 0; i < n_tried; i++)
		set_queue(&s, i);
	if (!s.tame)
		scribble(&s, 0);
	if (!mischief(&s, 16))
		set(&s, STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	work(&s, n_tried);
}

void fuzz_virtio_check(const struct fuzz_dev *dev)
{
	uint64_t common = (dev->bar & ~0xfull) + dev->common;
	struct timer t = timer_start(5000);
	uint32_t status;

	mmio_write(common + STATUS, 1, 0);
	while ((status = mmio_read(common + STATUS, 1))) {
		if (timer_over(&t))
			fail("virtio device 00:%02x.0 does not come back from a reset: status 0x%x",
				dev->slot, status);
		in8(MB_SPLASH_YIELD_PORT);
	}
	mmio_write(common + STATUS, 1, ACKNOWLEDGE);
	mmio_write(common + STATUS, 1, ACKNOWLEDGE | DRIVER);
	mmio_write(common + DRIVER_FEATURE_SELECT, 4, 0);
	mmio_write(common + DRIVER_FEATURE, 4, 0);
	mmio_write(common + DRIVER_FEATURE_SELECT, 4, 1);
	mmio_write(common + DRIVER_FEATURE, 4, F_VERSION_1 >> 32);
	mmio_write(common + STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	status = mmio_read(common + STATUS, 1);
	if (status != (ACKNOWLEDGE | DRIVER | FEATURES_OK))
		fail("virtio device 00:%02x.0 does not take a driver after a reset: status 0x%x",
			dev->slot, status);
	mmio_write(common + STATUS, 1, 0);
}
