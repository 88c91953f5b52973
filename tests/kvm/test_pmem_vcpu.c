// SPDX-License-Identifier: Apache-2.0
/* A file as guest memory on the real KVM: what a vCPU reads, writes and executes there, and what
 * becomes of it when somebody cuts the file off. */
#include "run.h"

#include <errno.h>
#include <mirrorball/pmem_map.h>
#include <mirrorball/ram.h>
#include <mirrorball/vcpu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RAM_BYTES  (4ull << 20)
#define FILE_BYTES (4u << 20)
#define CODE_GPA   0x8000ull
#define PMEM_GPA   MB_RAM_HIGH_BASE
#define FAR	   0x200000u /* in the file: behind where it is cut off */

/* Page tables that map the first GiB, and the first one above 4 GiB, in pages of 2 MiB. */
#define PML4 0x1000ull
#define PDPT 0x2000ull
#define PD   0x3000ull
#define PD4  0x4000ull

static struct mb_host host;
static struct mb_vm *vm;
static struct mb_bus *bus;
static struct mb_pci_bus *pci;
static struct mb_loop *loop;
static struct mb_ram *ram;
static struct mb_vcpus *vcpus;
static struct mb_pmem *pmem;
static struct mb_pmem_map *map;
static char path[] = "/tmp/test_pmem_vcpu.XXXXXX";

static uint32_t said[8];
static unsigned n_said, n_writes, n_events, n_lost; /* atomic */
static bool cuts;				    /* the file, at the next exit */
static enum mb_vcpu_event last_event;
static char last_text[256], *dump;

static void on_pio(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
	unsigned size, unsigned count)
{
	if (n_said < 8)
		memcpy(&said[n_said], data, size < 4 ? size : 4);
	if (cuts)
		(void)!truncate(path, 4096);
	__atomic_add_fetch(&n_said, 1, __ATOMIC_SEQ_CST);
}

static void on_mmio(
	void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data, unsigned len)
{
	if (!write) {
		mb_bus_read(bus, MB_MMIO, gpa, data, len);
		return;
	}
	if (mb_bus_write(bus, MB_MMIO, gpa, data, len))
		__atomic_add_fetch(&n_writes, 1, __ATOMIC_SEQ_CST);
}

static void on_eoi(void *ctx, uint8_t vector)
{
}

static void on_event(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text)
{
	size_t len;
	FILE *f = open_memstream(&dump, &len);

	last_event = event;
	snprintf(last_text, sizeof(last_text), "%s", text);
	mb_pmem_map_check(map);
	mb_vcpu_dump(vcpu, f);
	fclose(f);
	__atomic_add_fetch(&n_events, 1, __ATOMIC_SEQ_CST);
}

static const struct mb_vcpu_ops ops = {
	.pio = on_pio, .mmio = on_mmio, .ioapic_eoi = on_eoi, .event = on_event};

static void on_lost(void *ctx)
{
	__atomic_add_fetch(&n_lost, 1, __ATOMIC_SEQ_CST);
}

static void put(uint64_t gpa, uint64_t value)
{
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), gpa, &value, sizeof(value)), 0);
}

static void make_tables(void)
{
	put(PML4, PDPT | 3);
	put(PDPT, PD | 3);
	put(PDPT + 8 * 4, PD4 | 3);
	for (uint64_t i = 0; i < 512; i++) {
		put(PD + 8 * i, i << 21 | 0x83);
		put(PD4 + 8 * i, (PMEM_GPA + (i << 21)) | 0x83);
	}
}

static void make(const void *far_code, size_t far_len)
{
	struct mb_vm_config vc = {.n_views = 1};
	struct mb_vcpus_config config = {.n_vcpus = 1, .ops = &ops};
	struct mb_pmem_config pc = {.path = path, .gpa = PMEM_GPA};
	uint32_t word = 0xcafe0001;
	struct mb_error err;
	int fd;

	strcpy(strrchr(path, '.'), ".XXXXXX");
	fd = mkstemp(path);
	ck_assert_int_eq(ftruncate(fd, FILE_BYTES), 0);
	ck_assert_int_eq(pwrite(fd, &word, 4, 0), 4);
	ck_assert_int_eq(pwrite(fd, far_code, far_len, FAR), (ssize_t)far_len);
	close(fd);
	n_said = n_writes = n_events = n_lost = 0;
	cuts = false;
	dump = NULL;
	ck_assert_msg(!mb_host_open(&host, NULL, &err), "%s", err.text);
	ck_assert_msg(!mb_vm_create(&host, &vc, &vm, &err), "%s", err.text);
	ck_assert_msg(!mb_ram_create(vm, RAM_BYTES, &ram, &err), "%s", err.text);
	ck_assert_int_eq(mb_bus_create(&bus), 0);
	ck_assert_int_eq(mb_pci_bus_create(bus, vm, &pci, &err), 0);
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "io", NULL, &err), 0);
	ck_assert_int_eq(mb_pmem_map_create(vm, bus, 0, on_lost, NULL, &map, &err), 0);
	ck_assert_msg(
		!mb_pmem_create(pci, mb_ram_dma(ram), loop, &pc, &pmem, &err), "%s", err.text);
	ck_assert_msg(!mb_pmem_map_add(map, pmem, &err), "%s", err.text);
	ck_assert_msg(!mb_vcpus_create(vm, &config, &vcpus, &err), "%s", err.text);
	make_tables();
}

static void finish(void)
{
	mb_vcpus_destroy(vcpus);
	mb_pmem_map_destroy(map);
	mb_pmem_destroy(pmem);
	mb_pci_bus_destroy(pci);
	mb_bus_destroy(bus);
	mb_loop_destroy(loop);
	mb_ram_destroy(ram);
	mb_vm_destroy(vm);
	mb_host_finish(&host);
	unlink(path);
	free(dump);
}

static void run_at(uint64_t rip)
{
	struct mb_vcpu_start s = {
		.rip = rip, .rsp = 0x7000, .rsi = PMEM_GPA, .cr3 = PML4, .long_mode = true};

	ck_assert_int_eq(mb_vcpu_set_start(mb_vcpus_at(vcpus, 0), &s), 0);
	mb_vcpus_resume(vcpus);
}

static unsigned get(const unsigned *counter)
{
	return __atomic_load_n(counter, __ATOMIC_SEQ_CST);
}

START_TEST(test_reads_and_writes)
{
	/* mov (%rsi),%eax; out %eax,$0xf0; movl $0x12345678,(%rsi); mov (%rsi),%eax; out
	 * %eax,$0xf0; mov 0x200000(%rsi),%eax; out %eax,$0xf0; 1: in $0xf1,%al; jmp 1b */
	static const uint8_t code[] = {0x8b, 0x06, 0xe7, 0xf0, 0xc7, 0x06, 0x78, 0x56, 0x34, 0x12,
		0x8b, 0x06, 0xe7, 0xf0, 0x8b, 0x86, 0, 0, 0x20, 0, 0xe7, 0xf0, 0xe4, 0xf1, 0xeb,
		0xfc};
	uint32_t word = 0xcafe0002;

	make(&word, sizeof(word));
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), CODE_GPA, code, sizeof(code)), 0);
	run_at(CODE_GPA);
	for (unsigned i = 0; i < 10000 && get(&n_said) < 4 && !get(&n_events); i++)
		usleep(1000);
	mb_vcpus_pause(vcpus);
	ck_assert_uint_ge(n_said, 4);
	ck_assert_uint_eq(said[0], 0xcafe0001);
	ck_assert_uint_eq(said[1], 0xcafe0001);
	ck_assert_uint_eq(said[2], 0xcafe0002);
	ck_assert_uint_eq(n_writes, 1);
	ck_assert_uint_eq(n_events + n_lost, 0);
	ck_assert(mb_pmem_holds(pmem));
	finish();
}
END_TEST

/*
 * Read by an instruction in RAM, or fetched: KVM cannot have it, and ends, or asks us where it
 * emulates the instruction. We say what it was.
 */
START_TEST(test_cut_off)
{
	/* out %eax,$0xf0; mov 0x200000(%rsi),%eax; 1: in $0xf1,%al; jmp 1b */
	static const uint8_t reads[] = {
		0xe7, 0xf0, 0x8b, 0x86, 0, 0, 0x20, 0, 0xe4, 0xf1, 0xeb, 0xfc};
	/* 1: out %eax,$0xf0; jmp 1b */
	static const uint8_t runs[] = {0xe7, 0xf0, 0xeb, 0xfc};

	make(runs, sizeof(runs));
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), CODE_GPA, reads, sizeof(reads)), 0);
	usleep(30000);
	cuts = true;
	run_at(_i ? PMEM_GPA + FAR : CODE_GPA);
	for (unsigned i = 0; i < 10000 && !get(&n_events) && !get(&n_lost); i++)
		usleep(1000);
	mb_vcpus_pause(vcpus);
	ck_assert_uint_ge(n_events + n_lost, 1);
	if (n_events) {
		ck_assert_int_eq(last_event, MB_VCPU_FAILED);
		ck_assert_msg(strstr(dump, "code at "), "%s", dump);
	}
	ck_assert(!mb_pmem_holds(pmem));
	printf("%s: %s\n", _i ? "fetched" : "read", n_events ? last_text : "asked us");
	finish();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pmem_vcpu");
	TCase *tc = tcase_create("all");

	if (access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "skipped: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	tcase_add_test(tc, test_reads_and_writes);
	tcase_add_loop_test(tc, test_cut_off, 0, 2);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
