// SPDX-License-Identifier: Apache-2.0
#include "fake_driver.h"
#include "fake_kvm.h"
#include "run.h"

#include <dirent.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>
#include <mirrorball/rng.h>
#include <mirrorball/virtio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define RAM_BASE  0x100000u
#define RAM_BYTES (1u << 20)
#define RING_GPA  RAM_BASE
#define DATA_GPA  (RAM_BASE + 0x80000u)
#define MSI_ADDR  0xfee00000u
#define N_QUEUES  3u
#define QSIZE	  64u
#define CFG_BYTES 10u
#define F_TOY	  (1ull << 5)
#define F_NEEDED  (1ull << VIRTIO_F_VERSION_1)

/*
 * A device that gives back what it reads, inverted. Queue 1 holds its chains until `release` or
 * queue_stop.
 */
struct toy {
	struct mb_virtio *vdev;
	uint8_t config[CFG_BYTES];
	unsigned n_starts[N_QUEUES], n_stops[N_QUEUES], n_kicks[N_QUEUES]; /* atomic */
	uint64_t features;
	int start_rc;
	struct mb_chain *held[QSIZE];
	unsigned n_held;
	bool running[N_QUEUES];
};

static struct fake_kvm kvm;
static struct mb_host host;
static struct mb_vm *vm;
static struct mb_bus *bus;
static struct mb_pci_bus *pci;
static struct mb_loop *loop;
static struct fake_dma ram;
static struct toy toy;
static struct fake_ring ring[N_QUEUES];

static void bump(unsigned *n)
{
	__atomic_add_fetch(n, 1, __ATOMIC_RELAXED);
}

static unsigned get(unsigned *n)
{
	return __atomic_load_n(n, __ATOMIC_RELAXED);
}

static void toy_config_read(void *dev, unsigned offset, void *data, unsigned len)
{
	struct toy *t = dev;

	ck_assert_uint_le(offset + len, CFG_BYTES);
	memcpy(data, t->config + offset, len);
}

static void toy_config_write(void *dev, unsigned offset, const void *data, unsigned len)
{
	struct toy *t = dev;

	ck_assert_uint_le(offset + len, CFG_BYTES);
	memcpy(t->config + offset, data, len);
}

static int toy_start(void *dev, struct mb_virtq *vq, uint64_t features)
{
	struct toy *t = dev;
	unsigned i = mb_virtq_index(vq);

	ck_assert(!t->running[i]);
	ck_assert_ptr_eq(mb_virtq_device(vq), t->vdev);
	bump(&t->n_starts[i]);
	t->features = features;
	if (t->start_rc)
		return t->start_rc;
	t->running[i] = true;
	return 0;
}

static void echo(struct mb_virtq *vq, struct mb_chain *chain)
{
	uint8_t buf[4096];
	size_t n = mb_chain_read(chain, 0, buf, sizeof(buf));

	for (size_t i = 0; i < n; i++)
		buf[i] = (uint8_t)~buf[i];
	n = mb_chain_write(chain, 0, buf, n);
	mb_virtq_push(vq, chain, (uint32_t)n);
}

static void toy_kick(void *dev, struct mb_virtq *vq)
{
	struct toy *t = dev;
	unsigned i = mb_virtq_index(vq);
	struct mb_chain *chain;

	ck_assert(t->running[i]);
	while (mb_virtq_pop(vq, &chain) == 1) {
		if (i == 1)
			t->held[t->n_held++] = chain;
		else
			echo(vq, chain);
	}
	mb_virtq_signal(vq);
	bump(&t->n_kicks[i]);
}

static void toy_stop(void *dev, struct mb_virtq *vq)
{
	struct toy *t = dev;
	unsigned i = mb_virtq_index(vq);

	ck_assert(t->running[i]);
	t->running[i] = false;
	if (i == 1)
		t->n_held = 0; /* never pushed: the transport takes them back */
	bump(&t->n_stops[i]);
}

static const struct mb_virtio_ops toy_ops = {
	.config_read = toy_config_read,
	.config_write = toy_config_write,
	.queue_start = toy_start,
	.queue_kick = toy_kick,
	.queue_stop = toy_stop,
};

static void setup(void)
{
	struct mb_vm_config vm_config = {.n_views = 1};
	struct mb_loop *loops[N_QUEUES];
	struct mb_virtio_config config = {
		.type = 42,
		.class_code = 0x0880ff,
		.features = F_TOY,
		.n_queues = N_QUEUES,
		.queue_size = QSIZE,
		.config_bytes = CFG_BYTES,
		.loops = loops,
		.ops = &toy_ops,
		.dev = &toy,
		.name = "toy",
	};

	fake_kvm_init(&kvm);
	fake_kvm_host(&kvm, &host);
	ck_assert_int_eq(mb_vm_create(&host, &vm_config, &vm, NULL), 0);
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_pci_bus_create(bus, vm, &pci, NULL), 0);
	ck_assert_int_eq(mb_loop_create(&loop, NULL), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "test-loop", NULL, NULL), 0);
	fake_dma_init(&ram, RAM_BASE, RAM_BYTES);
	memset(&toy, 0, sizeof(toy));
	for (unsigned i = 0; i < N_QUEUES; i++)
		loops[i] = loop;
	ck_assert_int_eq(mb_virtio_create(pci, &ram.dma, &config, &toy.vdev, NULL), 0);
	memset(loops, 0, sizeof(loops));
}

static void teardown(void)
{
	struct fake_vm *fvm = fake_kvm_vm(&kvm);

	mb_virtio_destroy(toy.vdev);
	for (unsigned i = 0; i < N_QUEUES; i++) {
		ck_assert(!toy.running[i]);
		fake_ring_finish(&ring[i]);
	}
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	ck_assert_uint_eq(fvm->n_ioeventfds, 0);
	ck_assert_uint_eq(fvm->n_irqfds, 0);
	ck_assert_uint_eq(kvm.n_errors, 0);
	mb_loop_destroy(loop);
	mb_pci_bus_destroy(pci);
	mb_bus_destroy(bus);
	mb_vm_destroy(vm);
	fake_kvm_finish(&kvm);
	fake_dma_finish(&ram);
}

/* ---- the guest ---- */

static uint64_t rd(uint64_t gpa, unsigned len)
{
	uint8_t data[8];

	mb_bus_read(bus, MB_MMIO, gpa, data, len);
	return mb_bus_value(data, len);
}

static void wr(uint64_t gpa, unsigned len, uint64_t value)
{
	uint8_t data[8];

	mb_bus_set_value(data, 8, value);
	/* ioeventfds come before user space. */
	if (!fake_kvm_guest_write(&kvm, false, gpa, len))
		mb_bus_write(bus, MB_MMIO, gpa, data, len);
}

static uint64_t cfg(unsigned reg)
{
	return MB_PCI_ECAM_BASE + (1u << 15) + reg;
}

static uint64_t bar(void)
{
	return rd(cfg(PCI_BASE_ADDRESS_0), 4);
}

/* Offset in configuration space of the capability of this type; 0 if there is none. */
static unsigned find_cap(uint8_t id, uint8_t type)
{
	for (unsigned at = (unsigned)rd(cfg(PCI_CAPABILITY_LIST), 1); at;
		at = (unsigned)rd(cfg(at + 1), 1)) {
		if (rd(cfg(at), 1) == id && (id != PCI_CAP_ID_VNDR || rd(cfg(at + 3), 1) == type))
			return at;
	}
	return 0;
}

static uint64_t region(uint8_t type)
{
	unsigned at = find_cap(PCI_CAP_ID_VNDR, type);

	ck_assert_uint_ne(at, 0);
	ck_assert_uint_eq(rd(cfg(at + VIRTIO_PCI_CAP_BAR), 1), 0);
	return bar() + rd(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4);
}

static uint64_t common(unsigned field)
{
	return bar() + field; /* looked up once in test_discovery */
}

static uint8_t status(void)
{
	return (uint8_t)rd(common(VIRTIO_PCI_COMMON_STATUS), 1);
}

static void set_status(uint8_t bits)
{
	wr(common(VIRTIO_PCI_COMMON_STATUS), 1, status() | bits);
}

static void reset(void)
{
	wr(common(VIRTIO_PCI_COMMON_STATUS), 1, 0);
	ck_assert_uint_eq(status(), 0);
}

static uint64_t offered(void)
{
	uint64_t features = 0;

	for (unsigned i = 0; i < 2; i++) {
		wr(common(VIRTIO_PCI_COMMON_DFSELECT), 4, i);
		features |= rd(common(VIRTIO_PCI_COMMON_DF), 4) << 32 * i;
	}
	return features;
}

/* Up to FEATURES_OK; whether the device agreed. */
static bool negotiate(uint64_t features)
{
	set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
	set_status(VIRTIO_CONFIG_S_DRIVER);
	for (unsigned i = 0; i < 2; i++) {
		wr(common(VIRTIO_PCI_COMMON_GFSELECT), 4, i);
		wr(common(VIRTIO_PCI_COMMON_GF), 4, features >> 32 * i);
	}
	set_status(VIRTIO_CONFIG_S_FEATURES_OK);
	return status() & VIRTIO_CONFIG_S_FEATURES_OK;
}

static void msix_entry(unsigned vector, uint32_t data)
{
	uint64_t at = bar() + 0x8000 + 16 * vector;

	wr(at, 8, MSI_ADDR);
	wr(at + 8, 4, data);
	wr(at + 12, 4, 0);
}

static void set_up_pci(void)
{
	unsigned msix = find_cap(PCI_CAP_ID_MSIX, 0);

	wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	wr(cfg(msix + PCI_MSIX_FLAGS), 2, PCI_MSIX_FLAGS_ENABLE);
	for (unsigned i = 0; i <= N_QUEUES; i++)
		msix_entry(i, 40 + i);
}

/* Queue i has vector i + 1, configuration changes vector 0. */
static void set_up_queue(unsigned i, uint64_t features)
{
	struct fake_ring *r = &ring[i];

	fake_ring_finish(r);
	fake_ring_init(r, &ram, RING_GPA + 0x10000u * i, QSIZE, features);
	fake_ring_want_irq(r, true);
	wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, i);
	wr(common(VIRTIO_PCI_COMMON_Q_SIZE), 2, QSIZE);
	wr(common(VIRTIO_PCI_COMMON_Q_DESCLO), 4, (uint32_t)r->desc_gpa);
	wr(common(VIRTIO_PCI_COMMON_Q_DESCHI), 4, 0);
	wr(common(VIRTIO_PCI_COMMON_Q_AVAILLO), 8, r->driver_gpa);
	wr(common(VIRTIO_PCI_COMMON_Q_USEDLO), 4, (uint32_t)r->device_gpa);
	wr(common(VIRTIO_PCI_COMMON_Q_MSIX), 2, i + 1);
	wr(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2, 1);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2), 1);
}

static void set_up(uint64_t features)
{
	set_up_pci();
	ck_assert(negotiate(features | F_NEEDED));
	wr(common(VIRTIO_PCI_COMMON_MSIX), 2, 0);
	for (unsigned i = 0; i < N_QUEUES; i++)
		set_up_queue(i, features);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
}

static void notify(unsigned queue)
{
	wr(bar() + 0x3000 + 4 * queue, 2, queue);
}

/* Waits until what the loop was told before is done. */
static void nothing(void *arg)
{
}

static void settle(void)
{
	/* The watch is level-triggered: the second call comes after a round of it. */
	for (int i = 0; i < 3; i++) {
		mb_loop_call(loop, nothing, NULL);
		usleep(1000);
	}
}

static uint64_t interrupts(unsigned vector)
{
	return fake_kvm_take_msis(&kvm, MSI_ADDR, 40 + vector);
}

static void send(unsigned queue, unsigned value)
{
	uint64_t gpa = DATA_GPA + 256 * queue;
	struct fake_seg seg[] = {{gpa, 4, false}, {gpa + 8, 4, true}};

	memcpy(fake_dma_at(&ram, gpa), &value, 4);
	ck_assert_int_ge(fake_ring_add(&ring[queue], seg, 2, -1, &toy), 0);
}

static void expect_echo(unsigned queue, unsigned value)
{
	uint32_t len = 0, got;
	void *cookie;

	for (int ms = 0; !fake_ring_get_used(&ring[queue], &cookie, &len); ms++) {
		ck_assert_int_lt(ms, 5000);
		usleep(1000);
	}
	memcpy(&got, fake_dma_at(&ram, DATA_GPA + 256 * queue + 8), 4);
	ck_assert_uint_eq(len, 4);
	ck_assert_uint_eq(got, ~value);
}

static void round_trip(unsigned queue)
{
	send(queue, 0x1234u + queue);
	notify(queue);
	expect_echo(queue, 0x1234u + queue);
	settle();
	fake_ring_want_irq(&ring[queue], true);
}

/* ---- discovery and negotiation ---- */

START_TEST(test_discovery)
{
	unsigned at;

	ck_assert_uint_eq(rd(cfg(0), 4), 0x106a1af4);
	ck_assert_uint_eq(rd(cfg(PCI_REVISION_ID), 1), 1);
	ck_assert_uint_ge(rd(cfg(PCI_SUBSYSTEM_ID), 2), 0x40);
	ck_assert_uint_eq(region(VIRTIO_PCI_CAP_COMMON_CFG), bar());
	ck_assert_uint_eq(region(VIRTIO_PCI_CAP_ISR_CFG), bar() + 0x1000);
	ck_assert_uint_eq(region(VIRTIO_PCI_CAP_DEVICE_CFG), bar() + 0x2000);
	ck_assert_uint_eq(region(VIRTIO_PCI_CAP_NOTIFY_CFG), bar() + 0x3000);
	at = find_cap(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_COMMON_CFG);
	ck_assert_uint_eq(rd(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4), 56);
	at = find_cap(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_DEVICE_CFG);
	ck_assert_uint_eq(rd(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4), CFG_BYTES);
	at = find_cap(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_NOTIFY_CFG);
	ck_assert_uint_eq(rd(cfg(at + VIRTIO_PCI_NOTIFY_CAP_MULT), 4), 4);
	ck_assert_uint_ne(find_cap(PCI_CAP_ID_MSIX, 0), 0);

	set_up_pci();
	ck_assert_uint_eq(status(), 0);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_NUMQ), 2), N_QUEUES);
	ck_assert_uint_eq(offered(), F_TOY | F_NEEDED | 1ull << VIRTIO_RING_F_EVENT_IDX |
					     1ull << VIRTIO_RING_F_INDIRECT_DESC |
					     1ull << VIRTIO_F_RING_PACKED);
	wr(common(VIRTIO_PCI_COMMON_DFSELECT), 4, 2);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_DF), 4), 0);
	for (unsigned i = 0; i < N_QUEUES; i++) {
		wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, i);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_SIZE), 2), QSIZE);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_NOFF), 2), i);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_MSIX), 2), VIRTIO_MSI_NO_VECTOR);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2), 0);
	}
	wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, N_QUEUES);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_SIZE), 2), 0);
	wr(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2, 1);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2), 0);
}
END_TEST

START_TEST(test_features)
{
	set_up_pci();
	ck_assert(!negotiate(F_TOY)); /* no VERSION_1 */
	ck_assert_uint_eq(mb_virtio_features(toy.vdev), 0);
	ck_assert_uint_eq(status(), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	/* A driver may try again with others. */
	ck_assert(negotiate(F_NEEDED));
	ck_assert_uint_eq(mb_virtio_features(toy.vdev), F_NEEDED);
	/* Too late to change. */
	wr(common(VIRTIO_PCI_COMMON_GFSELECT), 4, 0);
	wr(common(VIRTIO_PCI_COMMON_GF), 4, F_TOY);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_GF), 4), 0);
	reset();
	ck_assert_uint_eq(mb_virtio_features(toy.vdev), 0);
	ck_assert(!negotiate(F_NEEDED | 1ull << 6));
	reset();
	ck_assert(!negotiate(F_NEEDED | 1ull << VIRTIO_F_RING_RESET));
	reset();
	wr(common(VIRTIO_PCI_COMMON_GFSELECT), 4, 2);
	wr(common(VIRTIO_PCI_COMMON_GF), 4, 1);
	ck_assert(!negotiate(F_NEEDED));
	reset();
	ck_assert(negotiate(F_NEEDED | F_TOY));
}
END_TEST

START_TEST(test_driver_ok_too_early)
{
	set_up_pci();
	set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	set_up_queue(0, 0);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	ck_assert_uint_eq(status(),
		VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_NEEDS_RESET);
	ck_assert_uint_eq(get(&toy.n_starts[0]), 0);
	/* It stays like that until the reset. */
	negotiate(F_NEEDED);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	ck_assert_uint_eq(get(&toy.n_starts[0]), 0);
	reset();
	set_up(0);
	round_trip(0);
}
END_TEST

/* ---- data ---- */

START_TEST(test_echo)
{
	uint64_t features = (_i & 1 ? 1ull << VIRTIO_F_RING_PACKED : 0) |
			    (_i & 2 ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0);

	set_up(features);
	settle();
	for (unsigned i = 0; i < N_QUEUES; i++)
		ck_assert_uint_eq(get(&toy.n_starts[i]), 1);
	ck_assert_uint_eq(toy.features, features | F_NEEDED);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, N_QUEUES);
	ck_assert_uint_eq(interrupts(1), 0);
	for (unsigned n = 0; n < 200; n++) {
		round_trip(n % 3 ? 0 : 2);
		ck_assert_uint_eq(interrupts(n % 3 ? 1 : 3), 1);
	}
	ck_assert_uint_eq(interrupts(0) + interrupts(2), 0);
	/* Only the vectors that were used have a GSI. */
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_irqfds, 2);
	/* No vector, no interrupt. */
	wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, 0);
	wr(common(VIRTIO_PCI_COMMON_Q_MSIX), 2, N_QUEUES + 1);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_MSIX), 2), VIRTIO_MSI_NO_VECTOR);
	round_trip(0);
	ck_assert_uint_eq(interrupts(1), 0);
	/* Another vector while it runs. */
	wr(common(VIRTIO_PCI_COMMON_Q_MSIX), 2, 0);
	round_trip(0);
	ck_assert_uint_eq(interrupts(0), 1);
}
END_TEST

/* Chains that were there before DRIVER_OK are found without a notification. */
START_TEST(test_before_driver_ok)
{
	set_up_pci();
	negotiate(F_NEEDED);
	set_up_queue(0, 0);
	send(0, 7);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	expect_echo(0, 7);
	ck_assert_uint_eq(get(&toy.n_starts[1]), 0);
	/* Queues that were not enabled take no notification, and nobody falls over it. */
	notify(1);
	notify(N_QUEUES);
	notify(255);
	settle();
	ck_assert_uint_eq(get(&toy.n_kicks[1]), 0);
}
END_TEST

START_TEST(test_bar_moves)
{
	set_up(0);
	round_trip(0);
	wr(cfg(PCI_BASE_ADDRESS_0), 4, 0xd0000000);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, N_QUEUES);
	round_trip(0);
	wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MASTER);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, 0);
	wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, N_QUEUES);
	round_trip(2);
	reset();
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, 0);
}
END_TEST

START_TEST(test_without_ioeventfd)
{
	fake_kvm_fail(&kvm, KVM_IOEVENTFD, -ENOSPC, 1);
	set_up(0);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, 1);
	for (unsigned n = 0; n < 10; n++) {
		round_trip(0);
		round_trip(2);
	}
	fake_kvm_fail(&kvm, KVM_IOEVENTFD, 0, 0);
}
END_TEST

/* ---- reset ---- */

START_TEST(test_reset_with_chains_held)
{
	for (unsigned n = 0; n < 50; n++) {
		set_up(_i ? 1ull << VIRTIO_F_RING_PACKED : 0);
		for (unsigned i = 0; i < 20; i++)
			send(1, i);
		notify(1);
		if (n & 1)
			settle();
		reset();
		ck_assert_uint_eq(get(&toy.n_starts[1]), n + 1);
		ck_assert_uint_eq(get(&toy.n_stops[1]), n + 1);
		ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
		ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_ioeventfds, 0);
		/* Everything is as it was. */
		wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, 1);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2), 0);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_DESCLO), 8), 0);
		ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_MSIX), 2), VIRTIO_MSI_NO_VECTOR);
	}
	/* The machine's own reset does the same and takes the BAR home. */
	set_up(0);
	wr(cfg(PCI_BASE_ADDRESS_0), 4, 0xd0000000);
	mb_virtio_reset(toy.vdev);
	ck_assert_uint_eq(bar(), MB_PCI_MMIO_BASE);
	ck_assert_uint_eq(rd(cfg(PCI_COMMAND), 2), 0);
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	set_up(0);
	round_trip(0);
}
END_TEST

START_TEST(test_bus_master_lost)
{
	set_up(0);
	for (unsigned i = 0; i < 5; i++)
		send(1, i);
	notify(1);
	settle();
	wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(get(&toy.n_stops[1]), 1);
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	ck_assert(!(status() & VIRTIO_CONFIG_S_DRIVER_OK));
	reset();
	set_up(0);
	round_trip(0);
}
END_TEST

/* A device that may not reach memory does not start. */
START_TEST(test_bus_master_off)
{
	set_up_pci();
	wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MEMORY);
	negotiate(F_NEEDED);
	set_up_queue(0, 0);
	send(0, 1);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	settle();
	ck_assert_uint_eq(get(&toy.n_starts[0]), 0);
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	ck_assert(!(status() & VIRTIO_CONFIG_S_DRIVER_OK));
	ck_assert(status() & VIRTIO_CONFIG_S_NEEDS_RESET);
	/* Given late, it changes nothing until the reset. */
	wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	settle();
	ck_assert_uint_eq(get(&toy.n_starts[0]), 0);
	reset();
	set_up(0);
	round_trip(0);
}
END_TEST

/* What is set while it runs has no effect. */
START_TEST(test_reconfigured_while_running)
{
	set_up(0);
	wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, 0);
	wr(common(VIRTIO_PCI_COMMON_Q_SIZE), 2, 8);
	wr(common(VIRTIO_PCI_COMMON_Q_DESCLO), 8, 0);
	wr(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2, 0);
	wr(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2, 1);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	wr(common(VIRTIO_PCI_COMMON_STATUS), 1, 1); /* bits cannot be taken back */
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_SIZE), 2), QSIZE);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2), 1);
	ck_assert_uint_eq(status(), 15);
	ck_assert_uint_eq(get(&toy.n_starts[0]), 1);
	round_trip(0);
}
END_TEST

/* ---- errors ---- */

enum bad {
	SIZE_0,
	SIZE_ODD,
	SIZE_LARGE,
	DESC_ODD,
	DESC_FAR,
	USED_FAR,
	AVAIL_WRAPS,
	START_FAILS,
	N_BAD
};

START_TEST(test_bad_queue)
{
	set_up_pci();
	negotiate(F_NEEDED);
	wr(common(VIRTIO_PCI_COMMON_MSIX), 2, 0);
	for (unsigned i = 0; i < 2; i++)
		set_up_queue(i, 0);
	wr(common(VIRTIO_PCI_COMMON_Q_SELECT), 2, 2);
	wr(common(VIRTIO_PCI_COMMON_Q_DESCLO), 8, RING_GPA + 0x20000);
	wr(common(VIRTIO_PCI_COMMON_Q_AVAILLO), 8, RING_GPA + 0x21000);
	wr(common(VIRTIO_PCI_COMMON_Q_USEDLO), 8, RING_GPA + 0x22000);
	switch (_i) {
	case SIZE_0:
		wr(common(VIRTIO_PCI_COMMON_Q_SIZE), 2, 0);
		break;
	case SIZE_ODD:
		wr(common(VIRTIO_PCI_COMMON_Q_SIZE), 2, 24);
		break;
	case SIZE_LARGE:
		wr(common(VIRTIO_PCI_COMMON_Q_SIZE), 2, 2 * QSIZE);
		break;
	case DESC_ODD:
		wr(common(VIRTIO_PCI_COMMON_Q_DESCLO), 4, RING_GPA + 0x20008);
		break;
	case DESC_FAR:
		wr(common(VIRTIO_PCI_COMMON_Q_DESCHI), 4, 1);
		break;
	case USED_FAR:
		wr(common(VIRTIO_PCI_COMMON_Q_USEDLO), 8, RAM_BASE + RAM_BYTES - 64);
		break;
	case AVAIL_WRAPS:
		wr(common(VIRTIO_PCI_COMMON_Q_AVAILLO), 8, UINT64_MAX - 1);
		break;
	default:
		toy.start_rc = -ENOMEM;
	}
	wr(common(VIRTIO_PCI_COMMON_Q_ENABLE), 2, 1);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	ck_assert_uint_eq(status(), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
	/* The driver is told: by the interrupt, and the ISR says why. */
	ck_assert_uint_eq(interrupts(0), 1);
	ck_assert_uint_eq(rd(bar() + 0x1000, 1), VIRTIO_PCI_ISR_CONFIG);
	ck_assert_uint_eq(rd(bar() + 0x1000, 1), 0);
	for (unsigned i = 0; i < N_QUEUES; i++)
		ck_assert(!toy.running[i]);
	send(0, 1);
	notify(0);
	settle();
	toy.start_rc = 0;
	reset();
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	set_up(0);
	round_trip(0);
}
END_TEST

START_TEST(test_bad_chain)
{
	struct fake_seg seg = {RAM_BASE + RAM_BYTES, 4, true};

	set_up(0);
	round_trip(0);
	fake_ring_add(&ring[0], &seg, 1, -1, &toy);
	notify(0);
	settle();
	ck_assert_uint_eq(status(), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
	ck_assert_uint_eq(interrupts(0), 1);
	/* Neither this nor the other queues give anything more, and nobody says so again. */
	for (unsigned i = 0; i < 20; i++) {
		send(2, 3);
		notify(2);
		notify(0);
	}
	settle();
	ck_assert_uint_eq(*fake_split_used(&ring[2], 2), 0);
	ck_assert_uint_eq(interrupts(0), 0);
	mb_virtio_broken(toy.vdev, "said before");
	ck_assert_uint_eq(interrupts(0), 0);
	reset();
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	set_up(0);
	round_trip(0);
	round_trip(2);
}
END_TEST

/* ---- device configuration ---- */

START_TEST(test_config)
{
	uint64_t at = bar() + 0x2000;
	unsigned generation;

	set_up(0);
	memcpy(toy.config, "0123456789", CFG_BYTES);
	ck_assert_uint_eq(rd(at, 4), 0x33323130);
	ck_assert_uint_eq(rd(at + 9, 1), '9');
	ck_assert_uint_eq(rd(at + 3, 4), 0x36353433);
	ck_assert_uint_eq(rd(at + 9, 2), 0);
	ck_assert_uint_eq(rd(at + 8, 8), 0);
	ck_assert_uint_eq(rd(at + 0xfff, 1), 0);
	wr(at + 8, 4, 0); /* beyond: nothing */
	wr(at + 1, 1, 'x');
	ck_assert_mem_eq(toy.config, "0x23456789", CFG_BYTES);
	generation = (unsigned)rd(common(VIRTIO_PCI_COMMON_CFGGENERATION), 1);
	mb_virtio_config_changed(toy.vdev);
	ck_assert_uint_ne(rd(common(VIRTIO_PCI_COMMON_CFGGENERATION), 1), generation);
	ck_assert_uint_eq(interrupts(0), 1);
	ck_assert_uint_eq(rd(bar() + 0x1000, 1), VIRTIO_PCI_ISR_CONFIG);
	/* Nobody is told before DRIVER_OK. */
	reset();
	mb_virtio_config_changed(toy.vdev);
	ck_assert_uint_eq(interrupts(0), 0);
	ck_assert_uint_eq(rd(bar() + 0x1000, 1), 0);
}
END_TEST

START_TEST(test_odd_accesses)
{
	set_up_pci();
	for (unsigned field = 0; field < 64; field++) {
		for (unsigned len = 1; len <= 8; len *= 2) {
			rd(common(field), len);
			if (field != VIRTIO_PCI_COMMON_STATUS)
				wr(common(field), len, 0x0101010101010101);
		}
	}
	wr(common(VIRTIO_PCI_COMMON_STATUS), 2, 0x0f0f);
	wr(common(VIRTIO_PCI_COMMON_STATUS), 4, 0x0f0f);
	wr(common(VIRTIO_PCI_COMMON_STATUS - 1), 2, 0x0f0f);
	ck_assert_uint_eq(status(), 0);
	ck_assert_uint_eq(rd(common(VIRTIO_PCI_COMMON_DFSELECT), 2), 0);
	ck_assert_uint_eq(rd(common(56), 8), 0);
	ck_assert_uint_eq(rd(bar() + 0x1001, 4), 0);
	reset();
	set_up(0);
	round_trip(0);
}
END_TEST

/* The window in configuration space (4.1.4.9), as firmware uses it before BARs are on. */
START_TEST(test_window)
{
	unsigned at = find_cap(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_PCI_CFG);

	ck_assert_uint_ne(at, 0);
	ck_assert_uint_eq(rd(cfg(at + 2), 2), VIRTIO_PCI_CAP_PCI_CFG << 8 | 20);
	wr(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4, VIRTIO_PCI_COMMON_NUMQ);
	wr(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4, 2);
	ck_assert_uint_eq(rd(cfg(at + 16), 2), N_QUEUES);
	ck_assert_uint_eq(rd(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4), VIRTIO_PCI_COMMON_NUMQ);
	wr(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4, VIRTIO_PCI_COMMON_STATUS);
	wr(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4, 1);
	wr(cfg(at + 16), 1, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	ck_assert_uint_eq(rd(cfg(at + 16), 1), VIRTIO_CONFIG_S_ACKNOWLEDGE);
	/* The MSI-X table is in the BAR too. */
	wr(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4, 0x8000 + 12);
	wr(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4, 4);
	ck_assert_uint_eq(rd(cfg(at + 16), 4), 1);
	/* Windows onto nothing. */
	wr(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4, 8);
	ck_assert_uint_eq(rd(cfg(at + 16), 4), 0);
	wr(cfg(at + VIRTIO_PCI_CAP_LENGTH), 4, 4);
	wr(cfg(at + VIRTIO_PCI_CAP_BAR), 1, 1);
	ck_assert_uint_eq(rd(cfg(at + 16), 4), 0);
	wr(cfg(at + VIRTIO_PCI_CAP_BAR), 1, 0);
	wr(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4, 0xfffffffc);
	ck_assert_uint_eq(rd(cfg(at + 16), 4), 0);
	wr(cfg(at + 16), 4, 0xffffffff);
	wr(cfg(at + VIRTIO_PCI_CAP_OFFSET), 4, 2);
	ck_assert_uint_eq(rd(cfg(at + 16), 4), 0);
}
END_TEST

/* ---- cost before use ---- */

static unsigned n_open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

START_TEST(test_many_queues)
{
	struct mb_loop *loops[MB_VIRTIO_MAX_QUEUES];
	struct mb_virtio_config config = {
		.type = 1,
		.n_queues = MB_VIRTIO_MAX_QUEUES,
		.queue_size = MB_VIRTQ_MAX_SIZE,
		.loops = loops,
		.ops = &toy_ops,
		.dev = &toy,
		.name = "wide",
	};
	unsigned before = n_open_files();
	struct mb_virtio *wide;

	for (unsigned i = 0; i < MB_VIRTIO_MAX_QUEUES; i++)
		loops[i] = loop;
	ck_assert_int_eq(mb_virtio_create(pci, &ram.dma, &config, &wide, NULL), 0);
	ck_assert_uint_eq(n_open_files(), before);
	mb_virtio_destroy(wide);
}
END_TEST

/* The monitor's own trouble is the device's, not the machine's. */
START_TEST(test_no_descriptors_left)
{
	struct rlimit old, none = {0};

	set_up_pci();
	negotiate(F_NEEDED);
	set_up_queue(0, 0);
	getrlimit(RLIMIT_NOFILE, &old);
	none.rlim_max = old.rlim_max;
	setrlimit(RLIMIT_NOFILE, &none);
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	setrlimit(RLIMIT_NOFILE, &old);
	ck_assert(status() & VIRTIO_CONFIG_S_NEEDS_RESET);
	reset();
	set_up(0);
	/* No descriptor for the interrupt either: it comes all the same. */
	setrlimit(RLIMIT_NOFILE, &none);
	round_trip(0);
	setrlimit(RLIMIT_NOFILE, &old);
	ck_assert_uint_eq(interrupts(1), 1);
	ck_assert_uint_eq(fake_kvm_vm(&kvm)->n_irqfds, 0);
}
END_TEST

/* ---- a hostile guest on two vCPUs ---- */

static void *hostile_vcpu(void *arg)
{
	unsigned seed = *(unsigned *)arg;

	for (unsigned i = 0; i < 15000; i++) {
		unsigned len = 1u << rand_r(&seed) % 4, what = (unsigned)rand_r(&seed) % 16;
		uint64_t at = MB_PCI_MMIO_BASE, value = (unsigned)rand_r(&seed);

		switch (what) {
		case 0:
			at += VIRTIO_PCI_COMMON_STATUS;
			len = 1;
			value = rand_r(&seed) & 3 ? 15 : 0;
			break;
		case 1:
			at += 0x3000 + 4 * (value % 4);
			break;
		case 2:
			at += 0x8000 + 4 * (value % 24);
			value = rand_r(&seed) & 1 ? MSI_ADDR : 0;
			len = 4;
			break;
		case 3:
			at += VIRTIO_PCI_COMMON_GFSELECT + (value & 4);
			value = rand_r(&seed) & 1;
			len = 4;
			break;
		case 4:
			at += VIRTIO_PCI_COMMON_Q_DESCLO + 8 * (value % 3);
			value = RAM_BASE + 0x1000 * (value % 0x110);
			len = 8;
			break;
		case 5:
			at += VIRTIO_PCI_COMMON_Q_SELECT + 2 * (value % 4);
			value = rand_r(&seed) % 4;
			len = 2;
			break;
		case 6:
			at = cfg(PCI_COMMAND);
			value |= rand_r(&seed) & 3 ? PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER : 0;
			break;
		case 7:
			at = cfg(PCI_CAPABILITY_LIST + (unsigned)rand_r(&seed) % 0xc0);
			break;
		case 8:
			memcpy(fake_dma_at(&ram, RAM_BASE + value % (RAM_BYTES - 8)), &value, 8);
			continue;
		default:
			at += value % 0x40;
		}
		if (rand_r(&seed) & 1)
			rd(at, len);
		else
			wr(at, len, value);
		if (i % 1000 == 0) {
			/* Now and then something sensible, to have it run at all. */
			wr(cfg(PCI_BASE_ADDRESS_0), 4, MB_PCI_MMIO_BASE);
			wr(cfg(PCI_COMMAND), 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
		}
	}
	return NULL;
}

START_TEST(test_hostile)
{
	const char *given = getenv("MB_TEST_SEED");
	unsigned seeds[2] = {(unsigned)time(NULL) * 2654435761u};
	pthread_t other;

	if (given)
		seeds[0] = (unsigned)strtoul(given, NULL, 0);
	seeds[1] = seeds[0] + 1;
	printf("virtio: MB_TEST_SEED=%u\n", seeds[0]);
	set_up(0);
	pthread_create(&other, NULL, hostile_vcpu, &seeds[1]);
	hostile_vcpu(&seeds[0]);
	pthread_join(other, NULL);
	wr(cfg(PCI_BASE_ADDRESS_0), 4, MB_PCI_MMIO_BASE);
	set_up_pci();
	reset();
	ck_assert_int_eq(fake_dma_n_mapped(&ram), 0);
	set_up(0);
	round_trip(0);
}
END_TEST

/* ---- rng ---- */

static struct mb_rng *rng;

START_TEST(test_rng)
{
	struct fake_seg seg[] = {{DATA_GPA, 16, false}, {DATA_GPA + 64, 100, true},
		{DATA_GPA + 0x1000, 0x20000, true}};
	unsigned n_zero = 0;
	uint64_t at;
	uint32_t len;
	void *cookie;

	ck_assert_int_eq(mb_rng_create(pci, &ram.dma, loop, &rng, NULL), 0);
	ck_assert_uint_eq(rd(cfg(0) + (1u << 15), 4), 0x10441af4);
	at = rd(cfg(PCI_BASE_ADDRESS_0) + (1u << 15), 4);
	wr(cfg(PCI_COMMAND) + (1u << 15), 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	fake_ring_init(&ring[0], &ram, RING_GPA, 16, 0);
	wr(at + VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
	wr(at + VIRTIO_PCI_COMMON_GF, 4, 1);
	wr(at + VIRTIO_PCI_COMMON_STATUS, 1, 11);
	ck_assert_uint_eq(rd(at + VIRTIO_PCI_COMMON_STATUS, 1), 11);
	wr(at + VIRTIO_PCI_COMMON_Q_SIZE, 2, 16);
	wr(at + VIRTIO_PCI_COMMON_Q_DESCLO, 8, ring[0].desc_gpa);
	wr(at + VIRTIO_PCI_COMMON_Q_AVAILLO, 8, ring[0].driver_gpa);
	wr(at + VIRTIO_PCI_COMMON_Q_USEDLO, 8, ring[0].device_gpa);
	wr(at + VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
	wr(at + VIRTIO_PCI_COMMON_STATUS, 1, 15);
	fake_ring_add(&ring[0], seg, 1, -1, &toy);     /* nothing to write to */
	fake_ring_add(&ring[0], seg + 1, 1, -1, &toy); /* all of it */
	fake_ring_add(&ring[0], seg, 3, -1, &toy);     /* too much at once */
	wr(at + 0x3000, 2, 0);
	for (unsigned n = 0; n < 3;) {
		static const uint32_t want[] = {0, 100, 4096};

		if (!fake_ring_get_used(&ring[0], &cookie, &len)) {
			usleep(1000);
			continue;
		}
		ck_assert_uint_eq(len, want[n++]);
	}
	for (unsigned i = 0; i < 3996; i++)
		n_zero += !*(uint8_t *)fake_dma_at(&ram, DATA_GPA + 0x1000 + i);
	ck_assert_uint_lt(n_zero, 100);
	mb_rng_reset(rng);
	mb_rng_destroy(rng);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio");
	TCase *tc = tcase_create("virtio");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, test_discovery);
	tcase_add_test(tc, test_features);
	tcase_add_test(tc, test_driver_ok_too_early);
	tcase_add_loop_test(tc, test_echo, 0, 4);
	tcase_add_test(tc, test_before_driver_ok);
	tcase_add_test(tc, test_bar_moves);
	tcase_add_test(tc, test_without_ioeventfd);
	tcase_add_loop_test(tc, test_reset_with_chains_held, 0, 2);
	tcase_add_test(tc, test_bus_master_lost);
	tcase_add_test(tc, test_bus_master_off);
	tcase_add_test(tc, test_reconfigured_while_running);
	tcase_add_loop_test(tc, test_bad_queue, 0, N_BAD);
	tcase_add_test(tc, test_bad_chain);
	tcase_add_test(tc, test_config);
	tcase_add_test(tc, test_odd_accesses);
	tcase_add_test(tc, test_window);
	tcase_add_test(tc, test_many_queues);
	tcase_add_test(tc, test_no_descriptors_left);
	tcase_add_test(tc, test_hostile);
	tcase_add_test(tc, test_rng);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
