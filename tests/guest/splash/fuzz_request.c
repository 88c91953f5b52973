/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz_virtio.h"

/* Requests that make sense, so that lies meet a device at work. */

struct part_of_request {
	uint64_t addr;
	uint32_t len;
	bool write; /* by the device */
};

#define MAX_PARTS 4u

/* 5.2.6: what a block device may be asked, anywhere in its first 64 MiB and sometimes beyond. */
enum {
	BLK_IN = 0,
	BLK_OUT = 1,
	BLK_FLUSH = 4,
	BLK_GET_ID = 8,
	BLK_DISCARD = 11,
	BLK_WRITE_ZEROES = 13,
};

static unsigned block_request(struct session *s, struct part_of_request part[MAX_PARTS])
{
	static const uint8_t types[] = {BLK_IN, BLK_IN, BLK_OUT, BLK_OUT, BLK_FLUSH, BLK_GET_ID,
		BLK_DISCARD, BLK_WRITE_ZEROES};
	uint32_t *head = (uint32_t *)(fuzz.data +
				      (rnd_below(s->self, fuzz.data_bytes - 0x9000) & ~0xfffull));
	uint32_t *data = head + 1024, n_sectors = 1 + (uint32_t)rnd_below(s->self, 16);
	uint32_t sector = (uint32_t)rnd_below(s->self, chance(s, 64) ? 1u << 31 : 131072 - 16);
	uint32_t type = types[rnd_below(s->self, sizeof(types))];
	unsigned n = 0;

	head[0] = type;
	head[1] = 0;
	head[2] = sector;
	head[3] = 0;
	part[n++] = (struct part_of_request){memory_gpa(head), 16, false};
	if (type == BLK_DISCARD || type == BLK_WRITE_ZEROES) {
		data[0] = sector;
		data[1] = 0;
		data[2] = n_sectors;
		data[3] = type == BLK_WRITE_ZEROES && chance(s, 2);
		part[n++] = (struct part_of_request){memory_gpa(data), 16, false};
	} else if (type == BLK_GET_ID) {
		part[n++] = (struct part_of_request){memory_gpa(data), 20, true};
	} else if (type != BLK_FLUSH) {
		part[n++] =
			(struct part_of_request){memory_gpa(data), n_sectors * 512, type == BLK_IN};
	}
	part[n++] = (struct part_of_request){memory_gpa(head) + 64, 1, true};
	return n;
}

/* Anybody else gets a buffer: queues with odd numbers usually carry what the driver sends. */
static unsigned plain_request(struct session *s, unsigned queue, struct part_of_request part[])
{
	uint64_t offset = rnd_below(s->self, fuzz.data_bytes - 0x3000) & ~0xfffull;

	memset(fuzz.data + offset, 0, 12); /* a network header that asks for nothing, 5.1.6 */
	part[0] = (struct part_of_request){memory_gpa(fuzz.data + offset),
		(uint32_t)(64 + rnd_below(s->self, 1500)), !(queue & 1)};
	return 1;
}

/* A report of free memory, 5.5.6: some pages of the data, where nothing has to stay as it is. */
static unsigned balloon_request(struct session *s, struct part_of_request part[])
{
	uint64_t n_pages = fuzz.data_bytes / PAGE_BYTES, first = rnd_below(s->self, n_pages);
	uint64_t n = 1 + rnd_below(s->self, chance(s, 4) ? n_pages - first : 1);

	part[0] = (struct part_of_request){memory_gpa(fuzz.data + first * PAGE_BYTES),
		(uint32_t)(n * PAGE_BYTES - (chance(s, 8) ? rnd_below(s->self, 99) : 0)), true};
	return 1;
}

void fuzz_request(struct session *s, unsigned i)
{
	struct desc *ring = (struct desc *)s->ring;
	volatile uint16_t *avail = (volatile uint16_t *)(s->ring + RING_DRIVER);
	struct part_of_request part[MAX_PARTS];
	unsigned n, head = s->at, first_flags = 0;

	if (s->dev->device_id == TYPE_BLOCK)
		n = block_request(s, part);
	else if (s->dev->device_id == TYPE_BALLOON)
		n = balloon_request(s, part);
	else
		n = plain_request(s, s->queue[i], part);
	if (n > s->size[i])
		return;
	for (unsigned k = 0; k < n; k++) {
		volatile struct desc *d = &ring[s->at];
		unsigned flags = (k + 1 < n ? DESC_NEXT : 0) | (part[k].write ? DESC_WRITE : 0);

		d->addr = part[k].addr;
		d->len = part[k].len;
		s->at = (s->at + 1) % s->size[i];
		if (!s->packed) {
			d->next = (uint16_t)s->at;
			d->flags = (uint16_t)flags;
			continue;
		}
		/* 2.8.6 and 2.8.21: the first one's flags make the chain available, so they come
		 * last. */
		flags |= s->wrap ? PACKED_AVAIL : PACKED_USED;
		d->flags = (uint16_t)head;
		if (k)
			d->next = (uint16_t)flags;
		else
			first_flags = flags;
		if (!s->at)
			s->wrap = !s->wrap;
	}
	__atomic_thread_fence(__ATOMIC_RELEASE);
	if (s->packed) {
		((volatile struct desc *)ring)[head].next = (uint16_t)first_flags;
	} else {
		avail[2 + avail[1] % s->size[i]] = (uint16_t)head;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		avail[1]++;
	}
}
