// SPDX-License-Identifier: Apache-2.0
#include "virtio_dev.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_pci.h>
#include <mirrorball/range.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * The PCI face of a virtio device (virtio 1.2, 4.1); the layout of BAR 0 is in mirrorball/virtio.h.
 */

#define BAR_BYTES      0x10000u
#define COMMON_OFFSET  0x0000u
#define COMMON_BYTES   ((unsigned)sizeof(struct virtio_pci_common_cfg))
#define ISR_OFFSET     0x1000u
#define DEVICE_OFFSET  0x2000u
#define REGION_BYTES   0x1000u
#define MSIX_OFFSET    0x8000u
#define PBA_OFFSET     0xf000u

#define VENDOR_ID      0x1af4u
#define DEVICE_ID_BASE 0x1040u /* 4.1.2.1: plus the device type */
#define SUBSYSTEM_BASE 0x40u   /* 4.1.2.2.1: 0x40 or more */

#define TRANSPORT_FEATURES                                                                         \
	(1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX |                            \
		1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_F_RING_PACKED)

/* ---- common configuration (4.1.4.3) ---- */

/* Fields are accessed whole (4.1.3.1); 64-bit ones also in halves. Anything else does nothing. */
static bool is_field(unsigned offset, unsigned len)
{
	if (offset < VIRTIO_PCI_COMMON_MSIX)
		return len == 4 && !(offset % 4);
	if (offset == VIRTIO_PCI_COMMON_STATUS || offset == VIRTIO_PCI_COMMON_CFGGENERATION)
		return len == 1;
	if (offset < VIRTIO_PCI_COMMON_Q_DESCLO)
		return len == 2 && !(offset % 2);
	return offset < COMMON_BYTES &&
	       ((len == 4 && !(offset % 4)) || (len == 8 && !(offset % 8)));
}

static uint64_t *queue_address(struct mb_virtio_queue *q, unsigned offset)
{
	if (offset < VIRTIO_PCI_COMMON_Q_AVAILLO)
		return &q->desc_gpa;
	return offset < VIRTIO_PCI_COMMON_Q_USEDLO ? &q->driver_gpa : &q->device_gpa;
}

static struct mb_virtio_queue *selected(struct mb_virtio *vdev)
{
	/* 4.1.4.3.1: a queue that does not exist has size 0. */
	return vdev->queue_select < vdev->config.n_queues ? &vdev->queue[vdev->queue_select] : NULL;
}

static uint64_t queue_field(struct mb_virtio *vdev, unsigned offset)
{
	struct mb_virtio_queue *q = selected(vdev);

	if (!q)
		return offset == VIRTIO_PCI_COMMON_Q_MSIX ? VIRTIO_MSI_NO_VECTOR : 0;
	switch (offset) {
	case VIRTIO_PCI_COMMON_Q_SIZE:
		return q->size;
	case VIRTIO_PCI_COMMON_Q_MSIX:
		return atomic_load(&q->vector);
	case VIRTIO_PCI_COMMON_Q_ENABLE:
		return q->enabled;
	case VIRTIO_PCI_COMMON_Q_NOFF:
		return q->index;
	default:
		return *queue_address(q, offset) >> (offset % 8 ? 32 : 0);
	}
}

static uint64_t common_field(struct mb_virtio *vdev, unsigned offset)
{
	switch (offset) {
	case VIRTIO_PCI_COMMON_DFSELECT:
		return vdev->device_feature_select;
	case VIRTIO_PCI_COMMON_DF:
		return vdev->device_feature_select < 2
			       ? vdev->offered >> 32 * vdev->device_feature_select
			       : 0;
	case VIRTIO_PCI_COMMON_GFSELECT:
		return vdev->driver_feature_select;
	case VIRTIO_PCI_COMMON_GF:
		return vdev->driver_feature_select < 2
			       ? vdev->driver_features >> 32 * vdev->driver_feature_select
			       : 0;
	case VIRTIO_PCI_COMMON_MSIX:
		return atomic_load(&vdev->config_vector);
	case VIRTIO_PCI_COMMON_NUMQ:
		return vdev->config.n_queues;
	case VIRTIO_PCI_COMMON_Q_SELECT:
		return vdev->queue_select;
	default:
		return queue_field(vdev, offset);
	}
}

static void common_read(struct mb_virtio *vdev, unsigned offset, void *data, unsigned len)
{
	uint64_t value;

	if (!is_field(offset, len))
		return;
	/* A driver polls these two while another vCPU may hold the lock for a reset. */
	if (offset == VIRTIO_PCI_COMMON_STATUS) {
		value = atomic_load(&vdev->status);
	} else if (offset == VIRTIO_PCI_COMMON_CFGGENERATION) {
		value = atomic_load(&vdev->generation);
	} else {
		pthread_mutex_lock(&vdev->lock);
		value = common_field(vdev, offset);
		pthread_mutex_unlock(&vdev->lock);
	}
	mb_bus_set_value(data, len, value);
}

/* 4.1.5.1.2.1: a vector that does not exist reads back as none. */
static uint16_t checked_vector(const struct mb_virtio *vdev, uint64_t value)
{
	return value <= vdev->config.n_queues ? (uint16_t)value : VIRTIO_MSI_NO_VECTOR;
}

static void set_driver_features(struct mb_virtio *vdev, uint32_t value)
{
	unsigned shift = 32 * vdev->driver_feature_select;

	/* 3.1.1: not after FEATURES_OK. */
	if (atomic_load(&vdev->status) & VIRTIO_CONFIG_S_FEATURES_OK)
		return;
	if (vdev->driver_feature_select >= 2) {
		vdev->unknown_features |= value != 0;
		return;
	}
	vdev->driver_features &= ~((uint64_t)UINT32_MAX << shift);
	vdev->driver_features |= (uint64_t)value << shift;
}

static void set_queue_field(struct mb_virtio *vdev, unsigned offset, uint64_t value, unsigned len)
{
	struct mb_virtio_queue *q = selected(vdev);
	bool running = atomic_load(&vdev->status) & VIRTIO_CONFIG_S_DRIVER_OK;
	uint64_t *gpa, mask;

	if (!q)
		return;
	if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
		atomic_store(&q->vector, checked_vector(vdev, value));
		return;
	}
	/*
	 * 4.1.4.3.2: not while it is enabled, and only a reset disables it. Values are judged at
	 * start.
	 */
	if (q->enabled || running)
		return;
	switch (offset) {
	case VIRTIO_PCI_COMMON_Q_SIZE:
		q->size = (uint16_t)value;
		break;
	case VIRTIO_PCI_COMMON_Q_ENABLE:
		q->enabled = value == 1;
		break;
	case VIRTIO_PCI_COMMON_Q_NOFF:
		break;
	default:
		gpa = queue_address(q, offset);
		mask = len == 8 ? UINT64_MAX : (uint64_t)UINT32_MAX << (offset % 8 ? 32 : 0);
		*gpa = (*gpa & ~mask) | (offset % 8 ? value << 32 : value);
	}
}

static void common_write(struct mb_virtio *vdev, unsigned offset, const void *data, unsigned len)
{
	uint64_t value = mb_bus_value(data, len);

	if (!is_field(offset, len))
		return;
	pthread_mutex_lock(&vdev->lock);
	switch (offset) {
	case VIRTIO_PCI_COMMON_DFSELECT:
		vdev->device_feature_select = (uint32_t)value;
		break;
	case VIRTIO_PCI_COMMON_GFSELECT:
		vdev->driver_feature_select = (uint32_t)value;
		break;
	case VIRTIO_PCI_COMMON_GF:
		set_driver_features(vdev, (uint32_t)value);
		break;
	case VIRTIO_PCI_COMMON_MSIX:
		atomic_store(&vdev->config_vector, checked_vector(vdev, value));
		break;
	case VIRTIO_PCI_COMMON_STATUS:
		mb_virtio_write_status(vdev, (uint8_t)value);
		break;
	case VIRTIO_PCI_COMMON_Q_SELECT:
		vdev->queue_select = (uint16_t)value;
		break;
	case VIRTIO_PCI_COMMON_DF:
	case VIRTIO_PCI_COMMON_NUMQ:
	case VIRTIO_PCI_COMMON_CFGGENERATION:
		break;
	default:
		set_queue_field(vdev, offset, value, len);
	}
	pthread_mutex_unlock(&vdev->lock);
}

/* ---- BAR 0 ---- */

static void bar_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_virtio *vdev = dev;
	const struct mb_virtio_config *config = &vdev->config;

	memset(data, 0, len);
	if (offset < COMMON_BYTES) {
		common_read(vdev, (unsigned)offset, data, len);
	} else if (offset == ISR_OFFSET) {
		*(uint8_t *)data = atomic_exchange(&vdev->isr, 0); /* 4.1.4.5.1 */
	} else if (mb_range_inside(offset, len, DEVICE_OFFSET, config->config_bytes) &&
		   config->ops->config_read) {
		pthread_mutex_lock(&vdev->lock);
		config->ops->config_read(
			config->dev, (unsigned)(offset - DEVICE_OFFSET), data, len);
		pthread_mutex_unlock(&vdev->lock);
	}
}

static void bar_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_virtio *vdev = dev;
	const struct mb_virtio_config *config = &vdev->config;
	uint64_t notify = (offset - MB_VIRTIO_NOTIFY_OFFSET) / MB_VIRTIO_NOTIFY_STRIDE;

	if (offset < COMMON_BYTES) {
		common_write(vdev, (unsigned)offset, data, len);
	} else if (mb_range_inside(offset, len, DEVICE_OFFSET, config->config_bytes) &&
		   config->ops->config_write) {
		pthread_mutex_lock(&vdev->lock);
		config->ops->config_write(
			config->dev, (unsigned)(offset - DEVICE_OFFSET), data, len);
		pthread_mutex_unlock(&vdev->lock);
	} else if (offset >= MB_VIRTIO_NOTIFY_OFFSET && notify < config->n_queues) {
		/* Where there is no ioeventfd. The place says which queue, whatever is written. */
		mb_virtio_kick(&vdev->queue[notify]);
	}
}

/* ---- ioeventfds ---- */

/* Caller holds notify_lock. Without an ioeventfd notifications come through bar_write. */
static void sync_ioeventfd(struct mb_virtio_queue *q)
{
	struct mb_virtio *vdev = q->vdev;
	uint64_t gpa = vdev->bar_gpa + MB_VIRTIO_NOTIFY_OFFSET + q->index * MB_VIRTIO_NOTIFY_STRIDE;
	bool want = q->wants_ioeventfd && vdev->bar_enabled;

	/* A BAR that moves is first said to be gone. */
	if (q->has_ioeventfd && !want) {
		mb_vm_set_ioeventfd(vdev->vm, &q->ioeventfd, false);
		q->has_ioeventfd = false;
	}
	if (want && !q->has_ioeventfd) {
		/*
		 * Length 0 lets KVM skip decoding the instruction (KVM_CAP_IOEVENTFD_ANY_LENGTH).
		 */
		q->ioeventfd = (struct mb_ioeventfd){
			.addr = gpa, .len = 0, .pio = false, .fd = atomic_load(&q->kick_fd)};
		q->has_ioeventfd = !mb_vm_set_ioeventfd(vdev->vm, &q->ioeventfd, true);
	}
}

void mb_virtio_want_ioeventfd(struct mb_virtio_queue *q, bool want)
{
	pthread_mutex_lock(&q->vdev->notify_lock);
	q->wants_ioeventfd = want;
	sync_ioeventfd(q);
	pthread_mutex_unlock(&q->vdev->notify_lock);
}

static void bar_moved(void *dev, uint64_t gpa, bool enabled)
{
	struct mb_virtio *vdev = dev;

	pthread_mutex_lock(&vdev->notify_lock);
	vdev->bar_gpa = gpa;
	vdev->bar_enabled = enabled;
	for (unsigned i = 0; i < vdev->config.n_queues; i++)
		sync_ioeventfd(&vdev->queue[i]);
	pthread_mutex_unlock(&vdev->notify_lock);
}

/*
 * A kernel that starts another one (kexec) may stop devices by this alone; memory that is the next
 * kernel's must then stay as it is. The device waits for its reset.
 */
static void bus_master_lost(void *dev)
{
	struct mb_virtio *vdev = dev;

	pthread_mutex_lock(&vdev->lock);
	mb_virtio_stop(vdev);
	pthread_mutex_unlock(&vdev->lock);
}

static const struct mb_pci_dev_ops pci_ops = {
	.bar = {.read = bar_read, .write = bar_write},
	.bar_moved = bar_moved,
	.bus_master_lost = bus_master_lost,
};

/* ---- capabilities (4.1.4) ---- */

#define WINDOW_DATA offsetof(struct virtio_pci_cfg_cap, pci_cfg_data)

static struct virtio_pci_cap capability(
	uint8_t type, unsigned len, uint32_t offset, uint32_t length)
{
	return (struct virtio_pci_cap){
		.cap_len = (uint8_t)len,
		.cfg_type = type,
		.bar = 0,
		.offset = offset,
		.length = length,
	};
}

/* The window as the guest left it; false if it points nowhere (4.1.4.9.1). */
static bool window_target(struct mb_virtio *vdev, struct virtio_pci_cfg_cap *cap)
{
	uint32_t length;

	*cap = (struct virtio_pci_cfg_cap){
		.cap = capability(VIRTIO_PCI_CAP_PCI_CFG, sizeof(*cap), 0, 0)};
	pthread_mutex_lock(&vdev->window_lock);
	cap->cap.bar = vdev->window.bar;
	cap->cap.offset = vdev->window.offset;
	cap->cap.length = vdev->window.length;
	pthread_mutex_unlock(&vdev->window_lock);
	length = cap->cap.length;
	return !cap->cap.bar && (length == 1 || length == 2 || length == 4) &&
	       !(cap->cap.offset % length);
}

static void window_read(void *dev, unsigned offset, void *data, unsigned len)
{
	struct mb_virtio *vdev = dev;
	struct virtio_pci_cfg_cap cap;

	if (window_target(vdev, &cap) && offset + len > WINDOW_DATA)
		mb_pci_bar_read(vdev->pdev, cap.cap.offset, cap.pci_cfg_data, cap.cap.length);
	memcpy(data, (const uint8_t *)&cap + offset, len);
}

static void window_write(void *dev, unsigned offset, const void *data, unsigned len)
{
	struct mb_virtio *vdev = dev;
	struct virtio_pci_cfg_cap cap;
	bool target = window_target(vdev, &cap);

	memcpy((uint8_t *)&cap + offset, data, len);
	if (offset >= WINDOW_DATA) {
		if (target)
			mb_pci_bar_write(
				vdev->pdev, cap.cap.offset, cap.pci_cfg_data, cap.cap.length);
		return;
	}
	pthread_mutex_lock(&vdev->window_lock);
	vdev->window.bar = cap.cap.bar;
	vdev->window.offset = cap.cap.offset;
	vdev->window.length = cap.cap.length;
	pthread_mutex_unlock(&vdev->window_lock);
}

static int add_capabilities(struct mb_virtio *vdev)
{
	struct virtio_pci_cap common =
		capability(VIRTIO_PCI_CAP_COMMON_CFG, sizeof(common), COMMON_OFFSET, COMMON_BYTES);
	struct virtio_pci_cap isr = capability(VIRTIO_PCI_CAP_ISR_CFG, sizeof(isr), ISR_OFFSET, 1);
	struct virtio_pci_cap device = capability(VIRTIO_PCI_CAP_DEVICE_CFG, sizeof(device),
		DEVICE_OFFSET, vdev->config.config_bytes);
	struct virtio_pci_notify_cap notify = {
		.cap = capability(VIRTIO_PCI_CAP_NOTIFY_CFG, sizeof(notify),
			MB_VIRTIO_NOTIFY_OFFSET, vdev->config.n_queues * MB_VIRTIO_NOTIFY_STRIDE),
		.notify_off_multiplier = MB_VIRTIO_NOTIFY_STRIDE,
	};
	struct virtio_pci_cfg_cap window = {
		.cap = capability(VIRTIO_PCI_CAP_PCI_CFG, sizeof(window), 0, 0)};
	unsigned at;
	int rc;

	rc = mb_pci_add_capability(vdev->pdev, &common, sizeof(common), &at);
	if (!rc)
		rc = mb_pci_add_capability(vdev->pdev, &notify, sizeof(notify), &at);
	if (!rc)
		rc = mb_pci_add_capability(vdev->pdev, &isr, sizeof(isr), &at);
	if (!rc && vdev->config.config_bytes)
		rc = mb_pci_add_capability(vdev->pdev, &device, sizeof(device), &at);
	if (!rc)
		rc = mb_pci_add_capability(vdev->pdev, &window, sizeof(window), &at);
	if (!rc)
		mb_pci_set_capability_hook(vdev->pdev, at, window_read, window_write);
	return rc;
}

/* ---- life ---- */

static void free_device(struct mb_virtio *vdev)
{
	pthread_mutex_destroy(&vdev->lock);
	pthread_mutex_destroy(&vdev->notify_lock);
	pthread_mutex_destroy(&vdev->window_lock);
	free(vdev->name);
	free(vdev);
}

static struct mb_virtio *new_device(const struct mb_virtio_config *config)
{
	struct mb_virtio *vdev =
		calloc(1, sizeof(*vdev) + config->n_queues * sizeof(vdev->queue[0]));

	if (!vdev)
		return NULL;
	vdev->config = *config;
	vdev->config.loops = NULL; /* each queue has its own */
	vdev->offered = config->features | TRANSPORT_FEATURES;
	pthread_mutex_init(&vdev->lock, NULL);
	pthread_mutex_init(&vdev->notify_lock, NULL);
	pthread_mutex_init(&vdev->window_lock, NULL);
	for (unsigned i = 0; i < config->n_queues; i++) {
		vdev->queue[i].vdev = vdev;
		vdev->queue[i].index = i;
		vdev->queue[i].loop = config->loops[i];
		atomic_init(&vdev->queue[i].kick_fd, -1);
	}
	vdev->name = strdup(config->name);
	if (!vdev->name) {
		free_device(vdev);
		return NULL;
	}
	mb_virtio_clear(vdev);
	return vdev;
}

int mb_virtio_create(struct mb_pci_bus *pci, struct mb_dma *dma,
	const struct mb_virtio_config *config, struct mb_virtio **out, struct mb_error *err)
{
	struct mb_pci_config pci_config = {
		.vendor_id = VENDOR_ID,
		.device_id = (uint16_t)(DEVICE_ID_BASE + config->type),
		.subsystem_vendor_id = VENDOR_ID,
		.subsystem_id = (uint16_t)(SUBSYSTEM_BASE + config->type),
		.class_code = config->class_code,
		.revision = 1, /* 4.1.2.1: not transitional */
		.bar_bytes = BAR_BYTES,
		.n_msix = config->n_queues + 1,
		.msix_table_offset = MSIX_OFFSET,
		.msix_pba_offset = PBA_OFFSET,
		.ops = &pci_ops,
	};
	struct mb_virtio *vdev;
	int rc;

	assert(config->n_queues && config->n_queues <= MB_VIRTIO_MAX_QUEUES);
	assert(config->queue_size && config->queue_size <= MB_VIRTQ_MAX_SIZE);
	assert(!(config->queue_size & (config->queue_size - 1)));
	assert(config->config_bytes <= REGION_BYTES);
	vdev = new_device(config);
	if (!vdev)
		return mb_error_set(err, ENOMEM, "%s: out of memory", config->name);
	vdev->dma = dma;
	vdev->vm = mb_pci_bus_vm(pci);
	pci_config.dev = vdev;
	rc = mb_pci_dev_create(pci, &pci_config, &vdev->pdev, err);
	if (rc) {
		mb_error_prefix(err, rc, "%s", config->name);
		goto err_device;
	}
	rc = add_capabilities(vdev);
	assert(!rc); /* five of them fit */
	*out = vdev;
	return 0;

err_device:
	free_device(vdev);
	return rc;
}

void mb_virtio_destroy(struct mb_virtio *vdev)
{
	if (!vdev)
		return;
	pthread_mutex_lock(&vdev->lock);
	mb_virtio_stop(vdev);
	pthread_mutex_unlock(&vdev->lock);
	mb_pci_dev_destroy(vdev->pdev);
	for (unsigned i = 0; i < vdev->config.n_queues; i++) {
		int fd = atomic_load(&vdev->queue[i].kick_fd);

		if (fd >= 0)
			close(fd);
	}
	free_device(vdev);
}

void mb_virtio_reset(struct mb_virtio *vdev)
{
	pthread_mutex_lock(&vdev->lock);
	mb_virtio_clear(vdev);
	pthread_mutex_unlock(&vdev->lock);
	pthread_mutex_lock(&vdev->window_lock);
	memset(&vdev->window, 0, sizeof(vdev->window));
	pthread_mutex_unlock(&vdev->window_lock);
	mb_pci_dev_reset(vdev->pdev);
}
