// SPDX-License-Identifier: Apache-2.0
#include "virtio_driver.h"
#include <check.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#define COMMON 0x0000u
#define CONFIG 0x2000u
#define NOTIFY 0x3000u

void drv_machine_init(struct drv_machine *m, uint64_t ram_bytes)
{
	struct mb_vm_config config = {.n_views = 1};
	struct mb_error err;

	memset(m, 0, sizeof(*m));
	fake_kvm_init(&m->kvm);
	fake_kvm_host(&m->kvm, &m->host);
	ck_assert_msg(!mb_vm_create(&m->host, &config, &m->vm, &err), "%s", err.text);
	ck_assert_int_eq(mb_bus_create(&m->bus), 0);
	ck_assert_msg(!mb_pci_bus_create(m->bus, m->vm, &m->pci, &err), "%s", err.text);
	fake_dma_init(&m->ram, DRV_RAM_BASE, ram_bytes);
	m->brk = DRV_RAM_BASE;
}

void drv_machine_finish(struct drv_machine *m)
{
	ck_assert_int_eq(fake_dma_n_mapped(&m->ram), 0);
	mb_pci_bus_destroy(m->pci);
	mb_bus_destroy(m->bus);
	mb_vm_destroy(m->vm);
	mb_host_finish(&m->host);
	fake_kvm_finish(&m->kvm);
	fake_dma_finish(&m->ram);
}

uint64_t drv_alloc(struct drv_machine *m, uint64_t len, uint64_t align)
{
	uint64_t gpa = mb_align_up(m->brk, align);

	m->brk = gpa + len;
	ck_assert(m->brk <= m->ram.base + m->ram.len);
	return gpa;
}

void *drv_at(struct drv_machine *m, uint64_t gpa)
{
	return fake_dma_at(&m->ram, gpa);
}

/* ---- registers ---- */

static uint64_t rd(struct drv_machine *m, uint64_t gpa, unsigned len)
{
	uint64_t value = 0;

	ck_assert(mb_bus_read(m->bus, MB_MMIO, gpa, &value, len));
	return value;
}

static void wr(struct drv_machine *m, uint64_t gpa, uint64_t value, unsigned len)
{
	if (!fake_kvm_guest_write(&m->kvm, false, gpa, len))
		ck_assert(mb_bus_write(m->bus, MB_MMIO, gpa, &value, len));
}

static uint64_t common_rd(struct drv_device *dev, unsigned offset, unsigned len)
{
	return rd(dev->m, dev->bar + COMMON + offset, len);
}

static void common_wr(struct drv_device *dev, unsigned offset, uint64_t value, unsigned len)
{
	wr(dev->m, dev->bar + COMMON + offset, value, len);
}

void drv_open(struct drv_device *dev, struct drv_machine *m, unsigned slot)
{
	uint64_t cfg = MB_PCI_ECAM_BASE + ((uint64_t)slot << 15);

	memset(dev, 0, sizeof(*dev));
	dev->m = m;
	ck_assert_uint_eq(rd(m, cfg + PCI_VENDOR_ID, 2), 0x1af4);
	wr(m, cfg + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	dev->bar = rd(m, cfg + PCI_BASE_ADDRESS_0, 4) & ~0xfull;
}

void drv_close(struct drv_device *dev)
{
	for (unsigned i = 0; i < DRV_MAX_QUEUES; i++)
		fake_ring_finish(&dev->queue[i].ring);
}

uint64_t drv_offered(struct drv_device *dev)
{
	uint64_t low;

	common_wr(dev, VIRTIO_PCI_COMMON_DFSELECT, 0, 4);
	low = common_rd(dev, VIRTIO_PCI_COMMON_DF, 4);
	common_wr(dev, VIRTIO_PCI_COMMON_DFSELECT, 1, 4);
	return low | common_rd(dev, VIRTIO_PCI_COMMON_DF, 4) << 32;
}

uint8_t drv_status(struct drv_device *dev)
{
	return (uint8_t)common_rd(dev, VIRTIO_PCI_COMMON_STATUS, 1);
}

static void add_status(struct drv_device *dev, uint8_t bits)
{
	common_wr(dev, VIRTIO_PCI_COMMON_STATUS, drv_status(dev) | bits, 1);
}

void drv_reset(struct drv_device *dev)
{
	common_wr(dev, VIRTIO_PCI_COMMON_STATUS, 0, 1);
	ck_assert_uint_eq(drv_status(dev), 0);
}

void drv_config_read(struct drv_device *dev, unsigned offset, void *data, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		((uint8_t *)data)[i] = (uint8_t)rd(dev->m, dev->bar + CONFIG + offset + i, 1);
}

void drv_config_write(struct drv_device *dev, unsigned offset, const void *data, unsigned len)
{
	uint64_t value = 0;

	memcpy(&value, data, len);
	wr(dev->m, dev->bar + CONFIG + offset, value, len);
}

static void init_queue(struct drv_device *dev, unsigned index, uint16_t size)
{
	struct drv_queue *q = &dev->queue[index];

	if (!q->gpa) {
		q->gpa = drv_alloc(dev->m, 16 * DRV_MAX_SIZE + 3 * 4096, 4096);
		q->tables = drv_alloc(dev->m, 16 * DRV_MAX_SIZE * DRV_TABLE, 4096);
	}
	q->dev = dev;
	q->index = index;
	q->n_kicks = 0;
	fake_ring_finish(&q->ring);
	fake_ring_init(&q->ring, &dev->m->ram, q->gpa, size, dev->features);
	common_wr(dev, VIRTIO_PCI_COMMON_Q_SELECT, index, 2);
	ck_assert_uint_ge(common_rd(dev, VIRTIO_PCI_COMMON_Q_SIZE, 2), size);
	common_wr(dev, VIRTIO_PCI_COMMON_Q_SIZE, size, 2);
	common_wr(dev, VIRTIO_PCI_COMMON_Q_DESCLO, q->ring.desc_gpa, 8);
	common_wr(dev, VIRTIO_PCI_COMMON_Q_AVAILLO, q->ring.driver_gpa, 8);
	common_wr(dev, VIRTIO_PCI_COMMON_Q_USEDLO, q->ring.device_gpa, 8);
	common_wr(dev, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

bool drv_start(struct drv_device *dev, uint64_t features, unsigned n_queues, uint16_t size)
{
	drv_reset(dev);
	add_status(dev, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	dev->features = features | 1ull << VIRTIO_F_VERSION_1;
	for (unsigned i = 0; i < 2; i++) {
		common_wr(dev, VIRTIO_PCI_COMMON_GFSELECT, i, 4);
		common_wr(dev, VIRTIO_PCI_COMMON_GF, dev->features >> (32 * i) & 0xffffffff, 4);
	}
	add_status(dev, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(drv_status(dev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return false;
	for (unsigned i = 0; i < n_queues; i++)
		init_queue(dev, i, size);
	add_status(dev, VIRTIO_CONFIG_S_DRIVER_OK);
	return true;
}

/* ---- rings ---- */

bool drv_add(
	struct drv_queue *q, const struct fake_seg *segs, unsigned n, bool indirect, void *cookie)
{
	struct fake_seg table;

	if (!indirect)
		return fake_ring_add(&q->ring, segs, n, -1, cookie) >= 0;
	ck_assert_uint_le(n, DRV_TABLE);
	if (!q->ring.n_free)
		return false;
	/* As many tables as there can be chains; they come back in any order, but none too early.
	 */
	table.gpa = q->tables + 16 * DRV_TABLE * (uint64_t)(q->next_table++ % DRV_MAX_SIZE);
	table.len = 16 * n;
	table.in = false;
	fake_ring_table(&q->ring, table.gpa, segs, n);
	return fake_ring_add(&q->ring, &table, 1, 0, cookie) >= 0;
}

void drv_kick(struct drv_queue *q)
{
	if (!fake_ring_must_kick(&q->ring))
		return;
	q->n_kicks++;
	wr(q->dev->m, q->dev->bar + NOTIFY + 4 * q->index, q->index, 2);
}

bool drv_wait(struct drv_queue *q, void **cookie, uint32_t *written, int timeout_ms)
{
	struct timespec tick = {.tv_nsec = 20000}, now;
	uint64_t end_ms;

	clock_gettime(CLOCK_MONOTONIC, &now);
	end_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000 +
		 (uint64_t)timeout_ms;
	while (!fake_ring_get_used(&q->ring, cookie, written)) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000 > end_ms)
			return false;
		nanosleep(&tick, NULL);
	}
	return true;
}
