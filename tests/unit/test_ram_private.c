// SPDX-License-Identifier: Apache-2.0
#include "fake_kvm.h"
#include "run.h"
#include <errno.h>
#include <mirrorball/ram.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Memory of a snapshot: two machines on one file, which none of them changes. */
#define BYTES (4 * MB_RAM_ALIGN)
#define N     2

static struct fake_kvm fake[N];
static struct mb_host host[N];
static struct mb_vm *vm[N];
static struct mb_ram *ram[N];
static int fd;

static void setup(void)
{
	struct mb_vm_config config = {.n_views = 1};
	struct mb_error err;
	char byte = 'f';

	fd = memfd_create("snapshot", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(fd, BYTES), 0);
	for (off_t at = 0; at < (off_t)BYTES; at += 4096)
		ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
	for (unsigned i = 0; i < N; i++) {
		fake_kvm_init(&fake[i]);
		fake_kvm_host(&fake[i], &host[i]);
		ck_assert_int_eq(mb_vm_create(&host[i], &config, &vm[i], &err), 0);
		ck_assert_msg(
			!mb_ram_create_private(vm[i], BYTES, fd, &ram[i], &err), "%s", err.text);
	}
}

static void teardown(void)
{
	for (unsigned i = 0; i < N; i++) {
		mb_ram_destroy(ram[i]);
		mb_vm_destroy(vm[i]);
		mb_host_finish(&host[i]);
		fake_kvm_finish(&fake[i]);
	}
	close(fd);
}

static char read_at(unsigned i, uint64_t gpa)
{
	char byte;

	ck_assert_int_eq(mb_dma_read(mb_ram_dma(ram[i]), gpa, &byte, 1), 0);
	/* The guest sees the same. */
	ck_assert_int_eq(*((char *)mb_ram_view_base(ram[i], 0) + gpa), byte);
	return byte;
}

static void write_at(unsigned i, uint64_t gpa, char byte)
{
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram[i]), gpa, &byte, 1), 0);
}

static char in_file(uint64_t at)
{
	char byte;

	ck_assert_int_eq(pread(fd, &byte, 1, (off_t)at), 1);
	return byte;
}

START_TEST(test_own)
{
	ck_assert(mb_ram_is_private(ram[0]));
	ck_assert_uint_eq(fake_kvm_vm(&fake[0])->n_memslots, 1);
	ck_assert_int_eq(read_at(0, 4096), 'f');
	ck_assert_uint_eq(mb_ram_backed_bytes(ram[0]), 0);
	write_at(0, 4096, '0');
	write_at(1, 8192, '1');
	ck_assert_int_eq(read_at(0, 4096), '0');
	ck_assert_int_eq(read_at(1, 4096), 'f');
	ck_assert_int_eq(read_at(0, 8192), 'f');
	ck_assert_int_eq(in_file(4096), 'f');
	ck_assert_uint_eq(mb_ram_backed_bytes(ram[0]), 4096);
	ck_assert_int_eq(mb_ram_clear(ram[0]), 0);
	for (uint64_t at = 0; at < BYTES; at += 4096)
		ck_assert_int_eq(read_at(0, at), 0);
	ck_assert_int_eq(read_at(1, 8192), '1');
	ck_assert_int_eq(in_file(8192), 'f');
}
END_TEST

START_TEST(test_discard)
{
	struct mb_dma *dma = mb_ram_dma(ram[0]);
	uint64_t done;

	/* A part of a block would be a mapping of its own. */
	ck_assert_int_eq(mb_dma_discard(dma, 4096, 4096, &done), -ENOTSUP);
	ck_assert_uint_eq(done, 0);
	ck_assert_int_eq(read_at(0, 4096), 'f');
	ck_assert_int_eq(mb_dma_discard(dma, MB_RAM_ALIGN, 2 * MB_RAM_ALIGN, &done), 0);
	ck_assert_uint_eq(done, 2 * MB_RAM_ALIGN);
	ck_assert_int_eq(read_at(0, MB_RAM_ALIGN - 4096), 'f');
	ck_assert_int_eq(read_at(0, MB_RAM_ALIGN), 0);
	ck_assert_int_eq(read_at(0, 3 * MB_RAM_ALIGN - 4096), 0);
	ck_assert_int_eq(read_at(0, 3 * MB_RAM_ALIGN), 'f');
	/* What is its own already costs nothing more. */
	write_at(0, MB_RAM_ALIGN + 4096, 'a');
	write_at(0, MB_RAM_ALIGN + 8192, 'b');
	ck_assert_int_eq(mb_dma_discard(dma, MB_RAM_ALIGN + 4096, 4096, &done), 0);
	ck_assert_uint_eq(done, 4096);
	ck_assert_int_eq(read_at(0, MB_RAM_ALIGN + 4096), 0);
	ck_assert_int_eq(read_at(0, MB_RAM_ALIGN + 8192), 'b');
	ck_assert_int_eq(read_at(1, MB_RAM_ALIGN + 4096), 'f');
	ck_assert_int_eq(in_file(MB_RAM_ALIGN + 4096), 'f');
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ram-private");
	TCase *tcase = tcase_create("ram-private");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, test_own);
	tcase_add_test(tcase, test_discard);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
