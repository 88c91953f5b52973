// SPDX-License-Identifier: Apache-2.0
/* Files as guest memory: where they are in each view, who may read and write them, and what becomes
 * of a file that somebody cuts off. */
#include "fake_kvm.h"
#include "run.h"
#include <errno.h>
#include <mirrorball/pmem_map.h>
#include <mirrorball/ram.h>
#include <mirrorball/range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define MIB	  (1ull << 20)
#define PAGE	  4096u
#define RAM_BYTES (8 * MIB)
#define RAM_END	  MB_RAM_HIGH_BASE
#define N	  (MB_MAX_PMEMS + 1)

static struct fake_kvm fake;
static struct mb_host host;
static struct mb_vm *vm;
static struct mb_bus *bus;
static struct mb_pci_bus *pci;
static struct mb_loop *loop;
static struct mb_ram *ram;
static struct mb_pmem_map *map;
static struct mb_pmem *pmem[N];
static char path[N][64];
static unsigned n_lost;

static void on_lost(void *ctx)
{
	__atomic_add_fetch((unsigned *)ctx, 1, __ATOMIC_RELAXED);
}

static void make_map(uint64_t ram_end)
{
	struct mb_error err;

	ck_assert_int_eq(mb_pmem_map_create(vm, bus, ram_end, on_lost, &n_lost, &map, &err), 0);
	mb_ram_set_pmem(ram, map);
}

static void setup(void)
{
	struct mb_vm_config config = {.n_views = 2};
	struct mb_error err;

	fake_kvm_init(&fake);
	fake_kvm_host(&fake, &host);
	ck_assert_int_eq(mb_vm_create(&host, &config, &vm, &err), 0);
	ck_assert_int_eq(mb_ram_create(vm, RAM_BYTES, &ram, &err), 0);
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_pci_bus_create(bus, vm, &pci, &err), 0);
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "io", NULL, &err), 0);
	n_lost = 0;
	make_map(RAM_END);
}

static void teardown(void)
{
	mb_ram_set_pmem(ram, NULL);
	mb_pmem_map_destroy(map);
	for (unsigned i = 0; i < N; i++) {
		mb_pmem_destroy(pmem[i]);
		if (path[i][0])
			unlink(path[i]);
	}
	/* RAM's slots only: one in each view. */
	ck_assert_uint_eq(fake_kvm_vm(&fake)->n_memslots, 2);
	mb_pci_bus_destroy(pci);
	mb_bus_destroy(bus);
	mb_loop_destroy(loop);
	mb_ram_destroy(ram);
	mb_vm_destroy(vm);
	mb_host_finish(&host);
	fake_kvm_finish(&fake);
}

static uint8_t byte_of(unsigned i, uint64_t at)
{
	return (uint8_t)(1 + i + at / 512 % 199);
}

/* A file with `written` bytes in its beginning; opened for the map's next place. */
static void make(unsigned i, uint64_t bytes, uint64_t written)
{
	struct mb_pmem_config config = {.path = path[i], .gpa = mb_pmem_map_next(map)};
	uint8_t block[512];
	struct mb_error err;
	int fd;

	snprintf(path[i], sizeof(path[i]), "/tmp/test_pmem_map.XXXXXX");
	fd = mkstemp(path[i]);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	for (uint64_t at = 0; at < written; at += sizeof(block)) {
		memset(block, byte_of(i, at), sizeof(block));
		ck_assert_int_eq(pwrite(fd, block, sizeof(block), (off_t)at), sizeof(block));
	}
	close(fd);
	ck_assert_msg(!mb_pmem_create(pci, mb_ram_dma(ram), loop, &config, &pmem[i], &err), "%s",
		err.text);
}

static void add(unsigned i, uint64_t bytes, uint64_t written)
{
	struct mb_error err;

	make(i, bytes, written);
	ck_assert_msg(!mb_pmem_map_add(map, pmem[i], &err), "%s", err.text);
}

/* A byte as a vCPU of that view has it: -1 where KVM would have to ask us. */
static int seen(unsigned view, uint64_t gpa)
{
	void *at = mb_vm_translate(vm, view, gpa, 1);
	uint8_t byte;
	struct iovec local = {&byte, 1}, remote = {at, 1};

	ck_assert_ptr_nonnull(at);
	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1 ? byte : -1;
}

START_TEST(test_places)
{
	const struct fake_vm *fv = fake_kvm_vm(&fake);
	void *hva[2];
	unsigned n = 0;

	add(0, 3 * MIB + 512, 3 * MIB + 512);
	add(1, 200 * MIB, PAGE);
	ck_assert_uint_eq(mb_pmem_gpa(pmem[0]), RAM_END);
	ck_assert_uint_eq(mb_pmem_bytes(pmem[0]), 4 * MIB);
	ck_assert_uint_eq(mb_pmem_gpa(pmem[1]), RAM_END + MB_PMEM_SECTION);
	ck_assert_uint_eq(mb_pmem_map_next(map), RAM_END + 3 * MB_PMEM_SECTION);
	for (unsigned i = 0; i < fv->n_memslots; i++) {
		const struct kvm_userspace_memory_region *s = &fv->memslot[i];

		ck_assert_int_eq(s->guest_phys_addr >= RAM_END, s->flags == KVM_MEM_READONLY);
		n += s->flags == KVM_MEM_READONLY;
	}
	ck_assert_uint_eq(n, 4);
	/* Both views have the same mapping, and behind the file's end there are zeroes. */
	for (unsigned k = 0; k < 2; k++) {
		hva[k] = mb_vm_translate(vm, k, RAM_END, 4 * MIB);
		ck_assert_ptr_nonnull(hva[k]);
		ck_assert_ptr_null(mb_vm_translate(vm, k, RAM_END + 4 * MIB, 1));
		ck_assert_int_eq(seen(k, RAM_END + 3 * MIB), byte_of(0, 3 * MIB));
		ck_assert_int_eq(seen(k, RAM_END + 3 * MIB + 512), 0);
		ck_assert_int_eq(seen(k, RAM_END + 4 * MIB - 1), 0);
		ck_assert_int_eq(seen(k, RAM_END + MB_PMEM_SECTION), byte_of(1, 0));
	}
	ck_assert_ptr_eq(hva[0], hva[1]);
	ck_assert_uint_eq((uintptr_t)hva[0] % MB_PMEM_ALIGN, 0);
}
END_TEST

START_TEST(test_refused)
{
	struct mb_error err;

	/* 36 address bits, as KVM has it by default. */
	mb_pmem_map_destroy(map);
	make_map((64ull << 30) - MB_PMEM_SECTION - 5);
	ck_assert_uint_eq(mb_pmem_map_next(map), (64ull << 30) - MB_PMEM_SECTION);
	make(0, MB_PMEM_SECTION + MIB, 0);
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[0], &err), -ERANGE);
	ck_assert_msg(
		strstr(err.text, path[0]) && strstr(err.text, "36 address bits"), "%s", err.text);
	make(1, MB_PMEM_SECTION, 0);
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[1], &err), 0);
	make(2, 512, 0);
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[2], &err), -ERANGE);
	host.cap[MB_CAP_READONLY_MEM] = 0;
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[2], &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "KVM_CAP_READONLY_MEM"), "%s", err.text);
}
END_TEST

START_TEST(test_fails)
{
	struct mb_error err;

	make(0, 2 * MIB, 0);
	/* The second view's. */
	fake_kvm_fail(&fake, KVM_SET_USER_MEMORY_REGION, -ENOMEM, 1);
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[0], &err), -ENOMEM);
	ck_assert_msg(strstr(err.text, path[0]), "%s", err.text);
	fake_kvm_fail(&fake, KVM_SET_USER_MEMORY_REGION, 0, 0);
	/* The slot of the first may be there still: nobody runs, and it is taken away with the
	 * next. */
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[0], &err), 0);
	for (unsigned i = 1; i < MB_MAX_PMEMS; i++)
		add(i, 512, 512);
	make(MB_MAX_PMEMS, 512, 0);
	ck_assert_int_eq(mb_pmem_map_add(map, pmem[MB_MAX_PMEMS], &err), -ENOSPC);
}
END_TEST

START_TEST(test_devices)
{
	struct mb_dma *dma = mb_ram_dma(ram);
	uint8_t *buf = malloc(4 * MIB);
	uint64_t done;
	void *hva;

	add(0, 3 * MIB + 512, 3 * MIB + 512);
	ck_assert_int_eq(mb_dma_map(dma, RAM_END, 4 * MIB, MB_DMA_READ, &hva), -EXDEV);
	mb_dma_unmap(dma, RAM_END, 4 * MIB, MB_DMA_READ);
	ck_assert_int_eq(mb_dma_map(dma, RAM_END, 4 * MIB, MB_DMA_WRITE, &hva), -EFAULT);
	ck_assert_int_eq(mb_dma_map(dma, RAM_END, 4 * MIB + 1, MB_DMA_READ, &hva), -EFAULT);
	ck_assert_int_eq(mb_dma_map(dma, RAM_END - 1, 2, MB_DMA_READ, &hva), -EFAULT);
	ck_assert_int_eq(mb_dma_map(dma, RAM_END, UINT64_MAX, MB_DMA_READ, &hva), -EFAULT);
	ck_assert_int_eq(mb_dma_write(dma, RAM_END, buf, 1), -EFAULT);
	ck_assert_int_eq(mb_dma_discard(dma, RAM_END, 2 * MIB, &done), -EFAULT);
	memset(buf, 0x5a, 4 * MIB);
	ck_assert_int_eq(mb_dma_read(dma, RAM_END, buf, 4 * MIB), 0);
	for (uint64_t at = 0; at < 4 * MIB; at += 256)
		ck_assert_uint_eq(buf[at], at < 3 * MIB + 512 ? byte_of(0, at) : 0);
	ck_assert_int_eq(mb_dma_read(dma, RAM_END + 511, buf, 2), 0);
	ck_assert(buf[0] == byte_of(0, 0) && buf[1] == byte_of(0, 512));
	ck_assert_int_eq(mb_dma_read(dma, RAM_END + 4 * MIB - 1, buf, 2), -EFAULT);
	ck_assert_uint_eq(n_lost, 0);
	free(buf);
}
END_TEST

/* What KVM leaves to us. */
START_TEST(test_vcpus)
{
	uint8_t data[8] = {0};

	add(0, 2 * MIB, 2 * MIB);
	for (unsigned i = 0; i < 3; i++)
		ck_assert(mb_bus_write(bus, MB_MMIO, RAM_END + 512 * i, "x", 1));
	ck_assert_int_eq(seen(0, RAM_END), byte_of(0, 0));
	ck_assert(mb_bus_read(bus, MB_MMIO, RAM_END + 508, data, 8));
	ck_assert(data[3] == byte_of(0, 0) && data[4] == byte_of(0, 512));
	ck_assert(!mb_bus_read(bus, MB_MMIO, RAM_END + 2 * MIB - 1, data, 2));
	ck_assert(mb_pmem_holds(pmem[0]));
}
END_TEST

/* It is the guest that has an error then, and nobody else. */
START_TEST(test_cut_off)
{
	struct mb_dma *dma = mb_ram_dma(ram);
	uint8_t buf[1024], data[8];

	add(0, 4 * MIB, 4 * MIB);
	add(1, 2 * MIB, 2 * MIB);
	usleep(30000);
	ck_assert_int_eq(truncate(path[0], MIB), 0);
	ck_assert_int_eq(seen(0, RAM_END + MIB - 1), byte_of(0, MIB - 1));
	ck_assert_int_eq(seen(1, RAM_END + MIB), -1);
	ck_assert_int_eq(mb_dma_read(dma, RAM_END + MIB - 512, buf, 512), 0);
	ck_assert_uint_eq(n_lost, 0);
	ck_assert_int_eq(mb_dma_read(dma, RAM_END + MIB - 512, buf, 1024), -EFAULT);
	ck_assert_uint_eq(n_lost, 1);
	ck_assert(mb_bus_read(bus, MB_MMIO, RAM_END + 2 * MIB, data, 8));
	ck_assert_uint_eq(n_lost, 2);
	ck_assert(!mb_pmem_holds(pmem[0]));
	mb_pmem_map_check(map);
	/* Others are as they were. */
	ck_assert(mb_pmem_holds(pmem[1]));
	ck_assert_int_eq(mb_dma_read(dma, RAM_END + MB_PMEM_SECTION, buf, 1024), 0);
	mb_pmem_map_check(NULL);
	ck_assert(!mb_pmem_map_has(NULL, 0, 1));
}
END_TEST

/* The guest sees what was changed: a device does, too, and it is said. */
START_TEST(test_changed)
{
	uint8_t byte = 0;
	FILE *f;

	add(0, 2 * MIB, 2 * MIB);
	usleep(30000);
	f = fopen(path[0], "r+");
	fputc('!', f);
	fclose(f);
	ck_assert_int_eq(seen(0, RAM_END), '!');
	ck_assert_int_eq(mb_dma_read(mb_ram_dma(ram), RAM_END, &byte, 1), 0);
	ck_assert_uint_eq(byte, '!');
	ck_assert_uint_eq(n_lost, 0);
	ck_assert(!mb_pmem_holds(pmem[0]));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("pmem_map");
	TCase *all = tcase_create("all");

	tcase_add_checked_fixture(all, setup, teardown);
	tcase_add_test(all, test_places);
	tcase_add_test(all, test_refused);
	tcase_add_test(all, test_fails);
	tcase_add_test(all, test_devices);
	tcase_add_test(all, test_vcpus);
	tcase_add_test(all, test_cut_off);
	tcase_add_test(all, test_changed);
	tcase_set_timeout(all, 60);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
