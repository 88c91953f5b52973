// SPDX-License-Identifier: Apache-2.0
/*
 * Everything that writes guest memory, on the real KVM: a vCPU's instructions, the walker of its
 * page tables, instructions that KVM emulates, and KVM itself. Each writes a page once, so that KVM
 * has it at hand, and then again and again a page that has just got a copy in each view. What it
 * wrote must show in both views, and the page must be one. Where KVM has two address spaces, the
 * vCPU is in the first one and then in the other. (What devices write holds the page:
 * tests/unit/test_replica.c, and in flight: tests/lab/test-torture.sh.)
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB	8ull
#define BYTES	(MIB << 20)
#define PAGE	MB_HEAT_PAGE_BYTES
#define TIMES	20u
#define CODE	0x8000u
#define HANDLER 0x8100u /* of vector 0x40 */
#define READY	0x8200u /* of vector 0x41: an asynchronous page fault is over */
#define FAULT	0x8300u /* of vector 14 */
#define IDT	0x9000u
#define GDT	0xa000u
#define TABLES	0xb000u	  /* page tables, where it has paging */
#define COUNT	0x7f00u	  /* FAULT counts here */
#define TARGET	0x200000u /* what is written; code below is of another block */
#define OTHER	0x400000u

/* The guest writes to these ports: it has done what it is for; it waits for something. */
#define DONE 0xf0
#define IDLE 0xf2

static int n_spaces = 1; /* address spaces; where there are two, each test is once with each */
static int kvm, vm, vcpu, fd;
static struct kvm_run *run;
static struct mb_ram_mapping view[2];
static struct mb_replicas *replicas;
static uint8_t next_input;

static uint32_t *word(unsigned v, uint64_t gpa)
{
	return (uint32_t *)(view[v].base + gpa);
}

/* ---- a machine of one vCPU, in 32-bit mode ---- */

static void set_slot(unsigned slot, void *hva)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .memory_size = BYTES, .userspace_addr = (uintptr_t)hva};

	ck_assert_int_eq(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
}

static void set_gate(unsigned vector, uint32_t handler)
{
	uint32_t gate[2] = {8u << 16 | (handler & 0xffff), (handler & 0xffff0000) | 0x8e00};

	memcpy(word(0, IDT + 8 * vector), gate, sizeof(gate));
}

static void start_vcpu(void)
{
	static const uint64_t gdt[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
	struct kvm_segment code = {.selector = 8,
				   .type = 11,
				   .present = 1,
				   .s = 1,
				   .db = 1,
				   .g = 1,
				   .limit = UINT32_MAX},
			   data = code;
	struct kvm_regs regs = {.rip = CODE, .rsp = 0x7000, .rflags = 2};
	struct kvm_sregs sregs;

	data.selector = 16;
	data.type = 3;
	memcpy(word(0, GDT), gdt, sizeof(gdt));
	set_gate(14, FAULT);
	set_gate(0x40, HANDLER);
	set_gate(0x41, READY);
	ck_assert_int_eq(ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.gdt.base = GDT;
	sregs.gdt.limit = sizeof(gdt) - 1;
	sregs.idt.base = IDT;
	sregs.idt.limit = 0x7ff;
	sregs.cr0 |= 1;
	ck_assert_int_eq(ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
	ck_assert_int_eq(ioctl(vcpu, KVM_SET_REGS, &regs), 0);
}

static bool make_vm(unsigned space)
{
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
	struct kvm_vcpu_events events;

	if (kvm < 0) {
		skip("/dev/kvm");
		return false;
	}
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ck_assert_int_ge(vm, 0);
	ck_assert_int_eq(ioctl(vm, KVM_ENABLE_CAP, &split), 0);
	set_slot(0, view[0].base);
	if (n_spaces > 1)
		set_slot(1u << 16, view[1].base);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	ck_assert_int_ge(vcpu, 0);
	run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		MAP_SHARED, vcpu, 0);
	ck_assert_ptr_ne(run, MAP_FAILED);
	start_vcpu();
	if (!space)
		return true;
	ck_assert_int_eq(ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	ck_assert_int_eq(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
	return true;
}

static bool make(unsigned space)
{
	struct mb_replicas_config config = {.name = "test",
		.ram_bytes = BYTES,
		.n_views = 2,
		.max_bytes = UINT64_MAX,
		.backoff_ns = 1 /* none */,
		.view_node = {-1, -1}};
	struct mb_error err;

	config.uffd = mb_replicas_open_uffd(false);
	if (config.uffd < 0) {
		skip("a userfaultfd for writes within KVM");
		return false;
	}
	fd = config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	for (unsigned v = 0; v < 2; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[v]), 0);
		config.view_base[v] = view[v].base;
	}
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, &err), 0);
	return make_vm(space);
}

/* Check has a process for each test: what is open goes with it. */
static void put(uint32_t gpa, const void *code, size_t len)
{
	memcpy(word(0, gpa), code, len);
}

/* Until the guest writes to a port, which is returned. */
static uint16_t enter(void)
{
	for (;;) {
		int rc = ioctl(vcpu, KVM_RUN, 0);

		ck_assert_msg(
			!rc || errno == EINTR || errno == EAGAIN, "KVM_RUN: %s", strerror(errno));
		if (rc)
			continue;
		if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT)
			return run->io.port;
		if (run->exit_reason == KVM_EXIT_IO)
			*((uint8_t *)run + run->io.data_offset) = ++next_input;
		else if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write)
			memset(run->mmio.data, ++next_input, sizeof(run->mmio.data));
		else
			ck_assert_msg(run->exit_reason == KVM_EXIT_MMIO ||
					      run->exit_reason == KVM_EXIT_IRQ_WINDOW_OPEN,
				"exit %u, %u", run->exit_reason, run->internal.suberror);
	}
}

static void enter_until(uint16_t port)
{
	ck_assert_uint_eq(enter(), port);
}

/* False: this KVM does not have it. */
static bool set_msr(uint32_t index, uint64_t value)
{
	union {
		struct kvm_msrs msrs;
		uint8_t room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
	} one = {.msrs.nmsrs = 1};

	one.msrs.entries[0] = (struct kvm_msr_entry){.index = index, .data = value};
	return ioctl(vcpu, KVM_SET_MSRS, &one) == 1;
}

/* ---- what writes ---- */

static void replicate(uint64_t gpa)
{
	struct mb_replicated done = {0};

	/* A hole would get no copies. */
	*(volatile char *)(view[0].base + gpa);
	ck_assert_int_eq(mb_replicas_replicate(replicas, gpa, PAGE, 3, &done), 0);
	ck_assert_uint_eq(done.copied_bytes, PAGE);
	for (unsigned v = 0; v < 2; v++)
		ck_assert(mb_replicas_share(replicas, gpa, PAGE, v) > 0.9f);
}

/* It has been written: there is one page, and both views have it. */
static void check_one(uint64_t gpa, const char *who)
{
	for (unsigned v = 0; v < 2; v++) {
		/* A writer goes on before that is known. */
		for (unsigned i = 0; mb_replicas_share(replicas, gpa, PAGE, v) > 0; i++) {
			ck_assert_msg(i < 10000, "%s: a copy is left", who);
			usleep(1000);
		}
	}
	ck_assert_msg(!memcmp(word(0, gpa), word(1, gpa), PAGE), "%s: views differ", who);
}

static void write_by_vcpu(void)
{
	enter_until(DONE);
}

static void write_by_wall_clock(void)
{
	ck_assert(set_msr(MSR_KVM_WALL_CLOCK_NEW, TARGET));
}

static void write_by_clock(void)
{
	ck_assert_int_eq(ioctl(vcpu, KVM_KVMCLOCK_CTRL, 0), 0);
	enter_until(DONE);
}

struct writer {
	const char *name;
	uint8_t code[24];
	uint32_t msr; /* is set to TARGET and bits */
	uint32_t bits;
	void (*write)(void);
};

#define JUST_OUT                                                                                   \
	{                                                                                          \
		0xe6, DONE, 0xeb, 0xfc                                                             \
	}

static const struct writer writers[] = {
	/* incl TARGET; out; again */
	{"a store", {0xff, 0x05, 0, 0, 0x20, 0, 0xe6, DONE, 0xeb, 0xf6}, 0, 0, write_by_vcpu},
	{"a locked addition", {0xf0, 0xff, 0x05, 0, 0, 0x20, 0, 0xe6, DONE, 0xeb, 0xf5}, 0, 0,
		write_by_vcpu},
	/* mov TARGET, %edi; mov $0xf1, %edx; insb; out; again */
	{"insb, emulated", {0xbf, 0, 0, 0x20, 0, 0xba, 0xf1, 0, 0, 0, 0x6c, 0xe6, DONE, 0xeb, 0xf1},
		0, 0, write_by_vcpu},
	/* mov $0xd0000000, %esi; mov $TARGET, %edi; movsb; out; again */
	{"movsb from MMIO, emulated",
		{0xbe, 0, 0, 0, 0xd0, 0xbf, 0, 0, 0x20, 0, 0xa4, 0xe6, DONE, 0xeb, 0xf1}, 0, 0,
		write_by_vcpu},
	{"kvmclock", JUST_OUT, MSR_KVM_SYSTEM_TIME_NEW, 1, write_by_clock},
	{"wall clock", JUST_OUT, MSR_KVM_WALL_CLOCK_NEW, 0, write_by_wall_clock},
	{"steal time", JUST_OUT, MSR_KVM_STEAL_TIME, KVM_MSR_ENABLED, write_by_vcpu},
};
#define N_WRITERS (sizeof(writers) / sizeof(writers[0]))

/* Each of them writes another value each time. */
START_TEST(test_writer)
{
	const struct writer *w = &writers[(unsigned)_i % N_WRITERS];
	struct mb_replicas_stats stats;

	if (!make((unsigned)_i / N_WRITERS))
		return;
	put(CODE, w->code, sizeof(w->code));
	if (w->msr && !set_msr(w->msr, TARGET | w->bits)) {
		skip(w->name);
		return;
	}
	w->write();
	for (unsigned i = 0; i < TIMES; i++) {
		uint8_t before[64];

		memcpy(before, word(0, TARGET), sizeof(before));
		replicate(TARGET);
		w->write();
		check_one(TARGET, w->name);
		ck_assert_msg(memcmp(before, word(0, TARGET), sizeof(before)),
			"%s: nothing was written", w->name);
		if (!w->msr && w->write == write_by_vcpu && i)
			ck_assert_uint_eq((before[0] + 1u) & 0xff, *word(0, TARGET) & 0xff);
	}
	/* A writer goes on before it is counted. */
	for (unsigned i = 0; i < 10000; i++) {
		mb_replicas_stats(replicas, &stats);
		if (stats.n_faults >= TIMES)
			break;
		usleep(1000);
	}
	ck_assert_uint_ge(stats.n_faults, TIMES);
}
END_TEST

static void set_paging(uint32_t cr3)
{
	struct kvm_sregs sregs;

	ck_assert_int_eq(ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cr3 = cr3;
	sregs.cr4 |= 0x10; /* pages of 4 MiB */
	sregs.cr0 |= 0x80000000;
	ck_assert_int_eq(ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
}

/* Accessed and dirty bits, by the processor or by KVM for it. */
START_TEST(test_walker)
{
	/* mov %cr3, %ebx; mov %ebx, %cr3; mov 0x400100, %eax; out; mov %cr3, %ebx; mov %ebx, %cr3;
	 * mov %eax, 0x400100; out; again */
	static const uint8_t code[] = {0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xa1, 0, 1, 0x40, 0,
		0xe6, DONE, 0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xa3, 0, 1, 0x40, 0, 0xe6, DONE,
		0xeb, 0xe4};
	const uint32_t present = 0x83, accessed = 0x20,
		       dirty = 0x40; /* a page of 4 MiB that may be written */

	if (!make((unsigned)_i))
		return;
	put(CODE, code, sizeof(code));
	word(0, TARGET)[0] = present | accessed | dirty;
	word(0, TARGET)[1] = present;
	set_paging(TARGET);
	for (unsigned i = 0; i < TIMES; i++) {
		word(0, TARGET)[1] = present;
		replicate(TARGET);
		enter_until(DONE);
		check_one(TARGET, "accessed");
		ck_assert_uint_eq(word(1, TARGET)[1], present | accessed);
		replicate(TARGET);
		enter_until(DONE);
		check_one(TARGET, "dirty");
		ck_assert_uint_eq(word(1, TARGET)[1], present | accessed | dirty);
	}
}
END_TEST

/* The local APIC is on, and the guest waits with interrupts on: sti; out; again. */
static void wait_for_interrupts(void)
{
	static const uint8_t code[] = {0xfb, 0xe6, IDLE, 0xeb, 0xfc};
	struct kvm_lapic_state lapic;
	uint32_t spurious;

	ck_assert_int_eq(ioctl(vcpu, KVM_GET_LAPIC, &lapic), 0);
	memcpy(&spurious, lapic.regs + 0xf0, 4);
	spurious |= 0x1ff;
	memcpy(lapic.regs + 0xf0, &spurious, 4);
	ck_assert_int_eq(ioctl(vcpu, KVM_SET_LAPIC, &lapic), 0);
	put(CODE, code, sizeof(code));
}

/*
 * As it enters a guest with an interrupt, KVM says in the guest's memory that it need not say EOI,
 * and takes that back at the next exit. The guest itself does not come near.
 */
START_TEST(test_pv_eoi)
{
	/* out; movl $0, 0xfee000b0; iret */
	static const uint8_t handler[] = {
		0xe6, DONE, 0xc7, 0x05, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0xcf};
	struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x40};

	if (!make((unsigned)_i))
		return;
	put(HANDLER, handler, sizeof(handler));
	wait_for_interrupts();
	if (!set_msr(MSR_KVM_PV_EOI_EN, TARGET | KVM_MSR_ENABLED)) {
		skip("PV EOI");
		return;
	}
	for (unsigned i = 0; i < TIMES; i++) {
		enter_until(IDLE);
		replicate(TARGET);
		ck_assert_int_eq(ioctl(vm, KVM_SIGNAL_MSI, &msi), 1);
		for (unsigned n = 0; enter() != DONE; n++)
			ck_assert_uint_lt(n, 1000);
		check_one(TARGET, "PV EOI");
		ck_assert_uint_eq(*word(1, TARGET), 0);
	}
}
END_TEST

/*
 * A write that waits is asynchronous to a guest that wants it so: KVM tells it that the page is not
 * there, and when it is, in a page that has copies itself.
 */
START_TEST(test_async_page_faults)
{
	/* sti; nop; incl OTHER; out; again: the instruction after sti cannot be interrupted */
	static const uint8_t code[] = {
		0xfb, 0x90, 0xff, 0x05, 0, 0, 0x40, 0, 0xe6, IDLE, 0xeb, 0xf4};
	/* add $4, %esp; incl COUNT; movl $0, TARGET; iret */
	static const uint8_t fault[] = {0x83, 0xc4, 4, 0xff, 0x05, 0, 0x7f, 0, 0, 0xc7, 0x05, 0, 0,
		0x20, 0, 0, 0, 0, 0, 0xcf};
	/* out; pusha; movl $0, TARGET + 4; mov $1, %eax; xor %edx, %edx; mov $MSR_KVM_ASYNC_PF_ACK,
	 * %ecx; wrmsr; movl $0, 0xfee000b0; popa; iret */
	static const uint8_t ready[] = {0xe6, DONE, 0x60, 0xc7, 0x05, 4, 0, 0x20, 0, 0, 0, 0, 0,
		0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0xb9, 0x07, 0x4d, 0x56, 0x4b, 0x0f, 0x30, 0xc7, 0x05,
		0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x61, 0xcf};
	unsigned n_ready = 0;

	if (!make((unsigned)_i))
		return;
	wait_for_interrupts();
	/* Without paging nobody is told. Memory, and where the local APIC is. */
	word(0, TABLES)[0] = 0x000000e3;
	word(0, TABLES)[1] = 0x004000e3;
	word(0, TABLES)[0x3fb] = 0xfec000e3;
	set_paging(TABLES);
	put(CODE, code, sizeof(code));
	put(FAULT, fault, sizeof(fault));
	put(READY, ready, sizeof(ready));
	if (!set_msr(MSR_KVM_ASYNC_PF_INT, 0x41) ||
		!set_msr(MSR_KVM_ASYNC_PF_EN, TARGET | KVM_ASYNC_PF_ENABLED |
						      KVM_ASYNC_PF_SEND_ALWAYS |
						      KVM_ASYNC_PF_DELIVERY_AS_INT)) {
		skip("asynchronous page faults");
		return;
	}
	for (unsigned i = 0; i < TIMES; i++) {
		uint32_t before = *word(0, OTHER);

		replicate(OTHER);
		replicate(TARGET);
		while (enter() == DONE) {
			n_ready++;
			check_one(TARGET, "page ready");
			ck_assert_uint_ne(word(1, TARGET)[1], 0);
			replicate(TARGET);
		}
		check_one(OTHER, "a write");
		ck_assert_uint_eq(*word(1, OTHER), before + 1);
		mb_replicas_reclaim(replicas, BYTES, ~0u);
	}
	printf("asynchronous page faults: %u told, %u over\n", *word(0, COUNT), n_ready);
	if (!*word(0, COUNT))
		skip("asynchronous page faults that the guest is told");
	else
		ck_assert_uint_ge(n_ready + 1, *word(0, COUNT));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("writers");
	TCase *all = tcase_create("all");

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm >= 0 && ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE) > 1)
		n_spaces = 2;
	printf("address spaces of KVM: %d\n", n_spaces);
	tcase_set_timeout(all, 60);
	tcase_add_loop_test(all, test_writer, 0, n_spaces * (int)N_WRITERS);
	/* A KVM that emulates the guest's kernel knows no iret in 32-bit mode, nor its page tables.
	 */
	if (access("/sys/module/kvm_pvm", F_OK)) {
		tcase_add_loop_test(all, test_walker, 0, n_spaces);
		tcase_add_loop_test(all, test_pv_eoi, 0, n_spaces);
		tcase_add_loop_test(all, test_async_page_faults, 0, n_spaces);
	}
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
