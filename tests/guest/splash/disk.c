/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"
#include "fuzz_virtio.h"

/* Virtio 1.2: 2.7 for the queue, 3.1 for how a device begins, 5.2 for the disk. */

#define BLK_F_FLUSH    (1ull << 9)
#define BLK_F_MQ       (1ull << 12)
#define NO_INTERRUPT   1u /* flags of the available ring, 2.7.6 */
#define STATUS_PENDING 0xffu
#define STATUS_OK      0u
#define STATUS_IOERR   1u

/* A page of a queue. */
#define QUEUE_AT_AVAIL 0x400u
#define QUEUE_AT_USED  0x800u
#define QUEUE_AT_HEAD  0xc00u
#define QUEUE_AT_DONE  0xc40u
#define RING_SIZE      32u
_Static_assert(DISK_MAX_PARTS + 2 <= RING_SIZE, "a request fits");

struct head {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

struct disk {
	uint64_t common, sectors;
	uint64_t *notify; /* [queue] address */
	uint8_t *queue;	  /* a page each */
};

static struct disk disks[MAX_DISKS];

static void set(const struct disk *d, unsigned field, unsigned size, uint64_t v)
{
	mmio_write(d->common + field, size, v);
}

static uint32_t get(const struct disk *d, unsigned field, unsigned size)
{
	return mmio_read(d->common + field, size);
}

static void negotiate(const struct disk *d)
{
	uint64_t features;

	set(d, STATUS, 1, 0);
	while (get(d, STATUS, 1))
		in8(MB_SPLASH_YIELD_PORT);
	set(d, STATUS, 1, ACKNOWLEDGE);
	set(d, STATUS, 1, ACKNOWLEDGE | DRIVER);
	set(d, DEVICE_FEATURE_SELECT, 4, 0);
	features = get(d, DEVICE_FEATURE, 4) & (BLK_F_FLUSH | BLK_F_MQ);
	set(d, DRIVER_FEATURE_SELECT, 4, 0);
	set(d, DRIVER_FEATURE, 4, features);
	set(d, DRIVER_FEATURE_SELECT, 4, 1);
	set(d, DRIVER_FEATURE, 4, F_VERSION_1 >> 32);
	set(d, STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (get(d, STATUS, 1) != (ACKNOWLEDGE | DRIVER | FEATURES_OK))
		fail("a disk does not take this driver");
}

static void set_address(const struct disk *d, unsigned field, const uint8_t *at)
{
	uint64_t gpa = memory_gpa(at);

	set(d, field, 4, gpa & 0xffffffff);
	set(d, field + 4, 4, gpa >> 32);
}

static void set_queue(struct disk *d, const struct fuzz_dev *dev, unsigned i)
{
	uint64_t notify = (dev->bar & ~0xfull) + dev->notify;
	uint8_t *queue = d->queue + i * PAGE_BYTES;

	set(d, QUEUE_SELECT, 2, i);
	if (get(d, QUEUE_SIZE, 2) < RING_SIZE)
		fail("queue %u of a disk is too short", i);
	set(d, QUEUE_SIZE, 2, RING_SIZE);
	set_address(d, QUEUE_DESC, queue);
	set_address(d, QUEUE_DRIVER, queue + QUEUE_AT_AVAIL);
	set_address(d, QUEUE_DEVICE, queue + QUEUE_AT_USED);
	d->notify[i] = notify + (uint64_t)get(d, QUEUE_NOTIFY_OFF, 2) * dev->notify_multiplier;
	set(d, QUEUE_ENABLE, 2, 1);
}

static void open_disk(struct disk *d, const struct fuzz_dev *dev)
{
	uint64_t bar = dev->bar & ~0xfull;

	fuzz_restore(dev);
	d->common = bar + dev->common;
	negotiate(d);
	if (get(d, NUM_QUEUES, 2) < guest.n)
		usage_error("needs disks with a queue for each vCPU: queues=%u", guest.n);
	d->notify = memory_take(guest.n * sizeof(*d->notify), CACHE_LINE);
	d->queue = memory_take(guest.n * PAGE_BYTES, PAGE_BYTES);
	memset(d->queue, 0, guest.n * PAGE_BYTES);
	for (unsigned i = 0; i < guest.n; i++)
		set_queue(d, dev, i);
	set(d, STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	d->sectors = mmio_read(bar + dev->config, 4);
	d->sectors |= (uint64_t)mmio_read(bar + dev->config + 4, 4) << 32;
}

unsigned disks_open(void)
{
	unsigned n = 0;

	fuzz_find_devices();
	for (unsigned i = 0; i < fuzz.n_devs && n < MAX_DISKS; i++)
		if (fuzz.dev[i].is_virtio && fuzz.dev[i].device_id == TYPE_BLOCK)
			open_disk(&disks[n++], &fuzz.dev[i]);
	return n;
}

uint64_t disk_sectors(unsigned disk)
{
	return disks[disk].sectors;
}

static void put(struct desc *ring, unsigned i, const void *at, uint32_t bytes, unsigned flags)
{
	ring[i] = (struct desc){.addr = memory_gpa(at),
		.len = bytes,
		.flags = (uint16_t)flags,
		.next = (uint16_t)(i + 1)};
}

void disk_start(struct cpu *self, unsigned disk, enum disk_type type, uint64_t sector,
	const struct disk_part *part, unsigned n_parts)
{
	uint8_t *queue = disks[disk].queue + self->index * PAGE_BYTES;
	volatile uint16_t *avail = (volatile uint16_t *)(queue + QUEUE_AT_AVAIL);
	struct desc *ring = (struct desc *)queue;
	unsigned n = 0;

	*(struct head *)(queue + QUEUE_AT_HEAD) = (struct head){.type = type, .sector = sector};
	queue[QUEUE_AT_DONE] = STATUS_PENDING;
	put(ring, n++, queue + QUEUE_AT_HEAD, sizeof(struct head), DESC_NEXT);
	for (unsigned i = 0; i < n_parts; i++)
		put(ring, n++, part[i].at, part[i].bytes,
			DESC_NEXT | (type == DISK_READ ? DESC_WRITE : 0));
	put(ring, n, queue + QUEUE_AT_DONE, 1, DESC_WRITE);
	avail[0] = NO_INTERRUPT;
	avail[2 + avail[1] % RING_SIZE] = 0;
	/* Everything is there before the index says so. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	avail[1]++;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	mmio_write(disks[disk].notify[self->index], 2, self->index);
}

bool disk_done(struct cpu *self, unsigned disk, bool *failed)
{
	uint8_t *queue = disks[disk].queue + self->index * PAGE_BYTES;
	const volatile uint16_t *avail = (volatile uint16_t *)(queue + QUEUE_AT_AVAIL);
	uint16_t *used = (uint16_t *)(queue + QUEUE_AT_USED);
	uint8_t status;

	if (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) != avail[1])
		return false;
	status = *(volatile uint8_t *)(queue + QUEUE_AT_DONE);
	if (status != STATUS_OK && status != STATUS_IOERR)
		fail("vCPU %u: a request ended with status %u", self->index, status);
	*failed = status;
	return true;
}
