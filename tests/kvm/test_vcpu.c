// SPDX-License-Identifier: Apache-2.0
/* vCPUs on the real KVM: tiny guests in real mode, the pause barrier, every way to stop, reset. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <mirrorball/ram.h>
#include <mirrorball/vcpu.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define CODE_GPA  0x8000ull
#define N_MAX	  4u
#define RAM_BYTES (4ull << 20)

static struct mb_host host;
static struct mb_vm *vm;
static struct mb_ram *ram;
static struct mb_vcpus *vcpus;

/* What the exits said. */
static unsigned n_pio, n_mmio, n_events;
static unsigned in_handler, n_stuck, n_first; /* exits of the first vCPU */
static bool stuck; /* the first vCPU, in its handler */
static uint16_t last_port;
static uint32_t last_data;
static uint64_t last_gpa;
static enum mb_vcpu_event last_event;
static char last_text[256];

static void on_pio(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
	unsigned size, unsigned count)
{
	__atomic_add_fetch(&in_handler, 1, __ATOMIC_SEQ_CST);
	while (!mb_vcpu_index(vcpu) && __atomic_load_n(&stuck, __ATOMIC_SEQ_CST)) {
		__atomic_add_fetch(&n_stuck, 1, __ATOMIC_SEQ_CST);
		usleep(1000);
	}
	if (!mb_vcpu_index(vcpu))
		__atomic_add_fetch(&n_first, 1, __ATOMIC_SEQ_CST);
	last_port = port;
	if (write)
		memcpy(&last_data, data, size);
	else
		memset(data, 0x5a, (size_t)size * count);
	__atomic_add_fetch(&n_pio, 1, __ATOMIC_SEQ_CST);
	__atomic_sub_fetch(&in_handler, 1, __ATOMIC_SEQ_CST);
}

static void on_mmio(void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data, unsigned len)
{
	last_gpa = gpa;
	__atomic_add_fetch(&n_mmio, 1, __ATOMIC_SEQ_CST);
}

static void on_eoi(void *ctx, uint8_t vector)
{
}

static void on_event(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text)
{
	last_event = event;
	snprintf(last_text, sizeof(last_text), "%s", text);
	__atomic_add_fetch(&n_events, 1, __ATOMIC_SEQ_CST);
}

static const struct mb_vcpu_ops ops = {
	.pio = on_pio, .mmio = on_mmio, .ioapic_eoi = on_eoi, .event = on_event};

static void make(unsigned n)
{
	struct mb_vm_config vc = {.n_views = 1};
	struct mb_vcpus_config config = {.n_vcpus = n, .ops = &ops};
	struct mb_error err;

	ck_assert_msg(!mb_host_open(&host, NULL, &err), "%s", err.text);
	ck_assert_msg(!mb_host_check(&host, &err), "%s", err.text);
	ck_assert_msg(!mb_vm_create(&host, &vc, &vm, &err), "%s", err.text);
	ck_assert_msg(!mb_ram_create(vm, RAM_BYTES, &ram, &err), "%s", err.text);
	ck_assert_msg(!mb_vcpus_create(vm, &config, &vcpus, &err), "%s", err.text);
	n_pio = n_mmio = n_events = 0;
}

static void teardown(void)
{
	mb_vcpus_destroy(vcpus);
	mb_ram_destroy(ram);
	mb_vm_destroy(vm);
	mb_host_finish(&host);
	vcpus = NULL;
}

/* Every vCPU starts at `code`, in 32-bit mode without paging. */
static void start(const void *code, size_t len)
{
	struct mb_vcpu_start s = {.rip = CODE_GPA, .rsp = 0x7000};

	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), CODE_GPA, code, len), 0);
	for (unsigned i = 0; i < mb_vcpus_count(vcpus); i++)
		ck_assert_int_eq(mb_vcpu_set_start(mb_vcpus_at(vcpus, i), &s), 0);
}

static void wait_for(const unsigned *counter, unsigned at_least)
{
	for (unsigned i = 0; i < 5000 && __atomic_load_n(counter, __ATOMIC_SEQ_CST) < at_least; i++)
		usleep(1000);
	ck_assert_uint_ge(__atomic_load_n(counter, __ATOMIC_SEQ_CST), at_least);
}

START_TEST(test_port_and_mmio)
{
	/* mov $0x12345678,%eax; out %eax,$0xf0; in $0xf1,%al; mov %al,0xd0000000; ud2 */
	static const uint8_t code[] = {0xb8, 0x78, 0x56, 0x34, 0x12, 0xe7, 0xf0, 0xe4, 0xf1, 0xa2, 0, 0,
		0, 0xd0, 0x0f, 0x0b};

	make(1);
	start(code, sizeof(code));
	mb_vcpus_resume(vcpus);
	wait_for(&n_events, 1); /* ud2 without an IDT */
	ck_assert_uint_eq(n_pio, 2);
	ck_assert_uint_eq(last_data, 0x12345678);
	ck_assert_uint_eq(last_port, 0xf1);
	ck_assert_uint_eq(n_mmio, 1);
	ck_assert_uint_eq(last_gpa, 0xd0000000);
	ck_assert_int_eq(last_event, MB_VCPU_TRIPLE_FAULT);
	ck_assert_uint_ge(mb_vcpu_n_exits(mb_vcpus_at(vcpus, 0)), 4);
	ck_assert_uint_ne(mb_vcpus_first_run_ns(vcpus), 0);
}
END_TEST

START_TEST(test_dump_shows_the_place)
{
	static const uint8_t code[] = {0xb8, 0xef, 0xbe, 0xad, 0xde, 0x0f, 0x0b};
	char *text;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	make(1);
	start(code, sizeof(code));
	mb_vcpus_resume(vcpus);
	wait_for(&n_events, 1);
	mb_vcpus_pause(vcpus);
	mb_vcpu_dump(mb_vcpus_at(vcpus, 0), f);
	fclose(f);
	ck_assert_msg(strstr(text, "triple fault") != NULL, "%s", text);
	ck_assert_msg(strstr(text, "rax 00000000deadbeef") != NULL, "%s", text);
	ck_assert_msg(strstr(text, "<0f> 0b") != NULL, "%s", text);
	free(text);
}
END_TEST

/* Each vCPU adds to its own word for ever: in a pause no word changes; and exits keep coming after. */
START_TEST(test_pause_is_a_barrier)
{
	/* 1: lock incl 0x9000; out %al,$0xf0; jmp 1b */
	static const uint8_t code[] = {
		0xf0, 0xff, 0x05, 0x00, 0x90, 0x00, 0x00, 0xe6, 0xf0, 0xeb, 0xf5};

	make(N_MAX);
	start(code, sizeof(code));
	mb_vcpus_resume(vcpus);
	for (unsigned round = 0; round < 200; round++) {
		uint32_t before, after;
		unsigned exits;

		usleep((useconds_t)(random() % 500));
		mb_vcpus_pause(vcpus);
		ck_assert_uint_eq(in_handler, 0);
		exits = n_pio;
		mb_dma_read(mb_ram_dma(ram), 0x9000, &before, 4);
		usleep(200);
		mb_dma_read(mb_ram_dma(ram), 0x9000, &after, 4);
		ck_assert_uint_eq(before, after);
		ck_assert_uint_eq(exits, n_pio);
		/* Each increment has had its exit, or is the one whose exit is still to come. */
		ck_assert_uint_le(before - exits, N_MAX);
		mb_vcpus_resume(vcpus);
	}
	wait_for(&n_pio, n_pio + 10);
}
END_TEST

/* The answer to an `in` that was under way when the pause came is not lost. */
START_TEST(test_pause_completes_the_exit)
{
	/* 1: in $0xf0,%eax; cmp $0x5a5a5a5a,%eax; je 1b; ud2 */
	static const uint8_t code[] = {
		0xe5, 0xf0, 0x3d, 0x5a, 0x5a, 0x5a, 0x5a, 0x74, 0xf7, 0x0f, 0x0b};

	make(2);
	start(code, sizeof(code));
	mb_vcpus_resume(vcpus);
	for (unsigned round = 0; round < 500; round++) {
		mb_vcpus_pause(vcpus);
		mb_vcpus_resume(vcpus);
	}
	ck_assert_uint_eq(n_events, 0);
	wait_for(&n_pio, n_pio + 10);
}
END_TEST

/* 1: out %al,$0xf0; jmp 1b */
static const uint8_t out_for_ever[] = {0xe6, 0xf0, 0xeb, 0xfc};

START_TEST(test_pause_counts)
{
	unsigned n;

	make(1);
	start(out_for_ever, sizeof(out_for_ever));
	mb_vcpus_pause(vcpus);
	mb_vcpus_resume(vcpus);
	usleep(20000);
	ck_assert_uint_eq(n_pio, 0); /* a new set is paused once */
	mb_vcpus_resume(vcpus);
	wait_for(&n_pio, 1);
	mb_vcpus_pause(vcpus);
	mb_vcpus_pause(vcpus);
	mb_vcpus_resume(vcpus);
	n = n_pio;
	usleep(20000);
	ck_assert_uint_eq(n_pio, n);
	mb_vcpus_resume(vcpus);
	wait_for(&n_pio, n + 1);
}
END_TEST

/* A vCPU whose exit waits for somebody: the others go on, and so does it later. */
START_TEST(test_pause_within)
{
	unsigned n;

	make(2);
	start(out_for_ever, sizeof(out_for_ever));
	mb_vcpus_resume(vcpus);
	wait_for(&n_pio, 10);
	__atomic_store_n(&stuck, true, __ATOMIC_SEQ_CST);
	wait_for(&n_stuck, 1);
	for (unsigned i = 0; i < 5; i++) {
		ck_assert(!mb_vcpus_pause_within(vcpus, 20000000));
		n = __atomic_load_n(&n_pio, __ATOMIC_SEQ_CST);
		wait_for(&n_pio, n + 10);
	}
	__atomic_store_n(&stuck, false, __ATOMIC_SEQ_CST);
	wait_for(&n_first, __atomic_load_n(&n_first, __ATOMIC_SEQ_CST) + 10);
	ck_assert(mb_vcpus_pause_within(vcpus, 5000000000));
	ck_assert_uint_eq(in_handler, 0);
	n = n_pio;
	usleep(20000);
	ck_assert_uint_eq(n_pio, n);
	ck_assert(mb_vcpus_pause_within(vcpus, 0)); /* they are outside already */
	mb_vcpus_resume(vcpus);
	usleep(20000);
	ck_assert_uint_eq(n_pio, n);
	mb_vcpus_resume(vcpus);
	wait_for(&n_pio, n + 10);
}
END_TEST

/* Linux' watchdogs look for PVCLOCK_GUEST_STOPPED in the clock's flags (Documentation/virt/kvm/x86/msr.rst). */
START_TEST(test_tell_stopped)
{
	/* mov $0x4b564d01,%ecx; mov $0x9001,%eax; xor %edx,%edx; wrmsr; 1: out %al,$0xf0; jmp 1b */
	static const uint8_t code[] = {0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8, 0x01, 0x90, 0x00, 0x00,
		0x31, 0xd2, 0x0f, 0x30, 0xe6, 0xf0, 0xeb, 0xfc};
	const uint64_t flags_gpa = 0x9000 + 29;
	uint8_t before, after;

	make(1);
	mb_vcpus_tell_stopped(vcpus); /* no clock yet: nothing happens */
	start(code, sizeof(code));
	mb_vcpus_resume(vcpus);
	wait_for(&n_pio, 10);
	mb_vcpus_pause(vcpus);
	ck_assert_int_eq(mb_dma_read(mb_ram_dma(ram), flags_gpa, &before, 1), 0);
	mb_vcpus_tell_stopped(vcpus);
	mb_vcpus_resume(vcpus);
	wait_for(&n_pio, n_pio + 10);
	mb_vcpus_pause(vcpus);
	ck_assert_int_eq(mb_dma_read(mb_ram_dma(ram), flags_gpa, &after, 1), 0);
	ck_assert_uint_eq(before & 2, 0);
	ck_assert_uint_eq(after & 2, 2);
	mb_vcpus_resume(vcpus);
}
END_TEST

/* A vCPU that waits for a SIPI which never comes can be paused and ended. */
START_TEST(test_waiting_for_sipi)
{
	make(3);
	mb_vcpus_resume(vcpus);
	usleep(10000);
	mb_vcpus_pause(vcpus);
	mb_vcpus_resume(vcpus);
}
END_TEST

START_TEST(test_reset_starts_again)
{
	/* incl 0x9000; out %al,$0xf0; ud2 */
	static const uint8_t code[] = {0xff, 0x05, 0x00, 0x90, 0x00, 0x00, 0xe6, 0xf0, 0x0f, 0x0b};
	uint32_t count = 0;

	make(2);
	for (unsigned round = 1; round <= 5; round++) {
		start(code, sizeof(code));
		mb_vcpus_resume(vcpus);
		wait_for(&n_events, 2 * round);
		mb_vcpus_pause(vcpus);
		ck_assert_int_eq(mb_vcpus_reset(vcpus), 0);
	}
	mb_dma_read(mb_ram_dma(ram), 0x9000, &count, 4);
	ck_assert_uint_ge(count, 6); /* two vCPUs may have added at the same time */
	ck_assert_int_eq(mb_ram_clear(ram), 0);
	mb_dma_read(mb_ram_dma(ram), 0x9000, &count, 4);
	ck_assert_uint_eq(count, 0);
}
END_TEST

START_TEST(test_ram_layout)
{
	struct mb_error err;
	struct mb_ram *big;
	uint32_t v = 0xfeedface, w;
	void *hva;

	make(1);
	ck_assert_int_eq(mb_ram_create(vm, 3 << 19, &big, &err), -EINVAL);
	mb_ram_destroy(ram);
	ck_assert_int_eq(mb_ram_create(vm, 5ull << 30, &ram, &err), 0);
	ck_assert_uint_eq(mb_ram_low_bytes(ram), MB_RAM_LOW_MAX);
	ck_assert_uint_eq(mb_ram_high_bytes(ram), 2ull << 30);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), MB_RAM_LOW_MAX - 4, &v, 4), 0);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), MB_RAM_LOW_MAX - 3, &v, 4), -EFAULT);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), MB_RAM_LOW_MAX, &v, 4), -EFAULT);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), MB_RAM_HIGH_BASE - 1, &v, 4), -EFAULT);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), MB_RAM_HIGH_BASE, &v, 4), 0);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), (6ull << 30) - 4, &v, 4), 0);
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), (6ull << 30) - 3, &v, 4), -EFAULT);
	ck_assert_int_eq(mb_dma_read(mb_ram_dma(ram), MB_RAM_HIGH_BASE, &w, 4), 0);
	ck_assert_uint_eq(w, v);
	ck_assert_int_eq(mb_dma_map(mb_ram_dma(ram), 0, 0, MB_DMA_READ, &hva), -EFAULT);
	ck_assert_int_eq(mb_dma_map(mb_ram_dma(ram), UINT64_MAX, 2, MB_DMA_READ, &hva), -EFAULT);
	ck_assert_int_eq(mb_dma_map(mb_ram_dma(ram), 4096, UINT64_MAX, MB_DMA_READ, &hva), -EFAULT);
	/* What KVM's memslot shows is the same memory as the monitor's own mapping. */
	hva = mb_vm_translate(vm, 0, MB_RAM_HIGH_BASE, 4);
	ck_assert_ptr_nonnull(hva);
	ck_assert_int_eq(memcmp(hva, &v, 4), 0);
}
END_TEST

START_TEST(test_too_many)
{
	struct mb_vcpus_config config = {.n_vcpus = 100000, .ops = &ops};
	struct mb_vm_config two = {.n_views = host.n_views + 1};
	struct mb_vcpus *none;
	struct mb_vm *no_vm;
	struct mb_error err;

	make(1);
	ck_assert_int_eq(mb_vcpus_create(vm, &config, &none, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.text, "100000 vCPUs"));
	two.n_views = host.n_views + 1;
	ck_assert_int_eq(mb_vm_create(&host, &two, &no_vm, &err), -EINVAL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vcpu");
	TCase *tc = tcase_create("vcpu");

	if (access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "skipped: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	tcase_add_checked_fixture(tc, NULL, teardown);
	tcase_add_test(tc, test_port_and_mmio);
	tcase_add_test(tc, test_dump_shows_the_place);
	tcase_add_test(tc, test_pause_is_a_barrier);
	tcase_add_test(tc, test_pause_completes_the_exit);
	tcase_add_test(tc, test_pause_counts);
	tcase_add_test(tc, test_pause_within);
	tcase_add_test(tc, test_tell_stopped);
	tcase_add_test(tc, test_waiting_for_sipi);
	tcase_add_test(tc, test_reset_starts_again);
	tcase_add_test(tc, test_ram_layout);
	tcase_add_test(tc, test_too_many);
	tcase_set_timeout(tc, 120);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
