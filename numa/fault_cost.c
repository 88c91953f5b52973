// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/tracker.h>
#include <mirrorball/vcpu.h>
#include <mirrorball/vm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <time.h>

/*
 * A machine of one vCPU that, as a process of a guest does, in ring 3 with 4 KiB pages, touches
 * N_PAGES pages and writes a port, again and again. The handler of the port takes the pages out
 * before every other round: the difference is what the faults cost the guest, exits and the host's
 * part included. (In ring 0 a KVM without nested paging may emulate it all, and a guest without
 * paging has cheaper faults there.)
 */
#define RAM_BYTES  0x200000ull
#define CODE_GPA   0x1000ull
#define GDT_GPA	   0x2000ull
#define TABLES_GPA 0x3000ull /* four levels, a page each */
#define STACK_GPA  0x8000ull
#define PAGES_GPA  0x100000ull
#define N_PAGES	   64u
#define N_ROUNDS   16u
#define PORT	   0x10
#define TIMEOUT_NS 3000000000ull /* an emulated host takes its time */

static const uint8_t code[] = {
	0x6a, 0x2b,			 /* push $0x2b: stack segment of ring 3 */
	0x68, 0x00, 0x80, 0x00, 0x00,	 /* push $STACK_GPA */
	0x68, 0x02, 0x30, 0x00, 0x00,	 /* push $0x3002: flags, ports for all */
	0x6a, 0x23,			 /* push $0x23: code segment of ring 3 */
	0x68, 0x15, 0x10, 0x00, 0x00,	 /* push $again */
	0x48, 0xcf,			 /* iretq */
	0xbe, 0x00, 0x00, 0x10, 0x00,	 /* again: mov $PAGES_GPA, %esi */
	0xb9, N_PAGES, 0x00, 0x00, 0x00, /* mov $N_PAGES, %ecx */
	0x89, 0x06, /* next: mov %eax, (%rsi): a read might map neighbours, too */
	0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, /* add $4096, %rsi */
	0xff, 0xc9,				  /* dec %ecx */
	0x75, 0xf3,				  /* jnz next */
	0xe6, PORT,				  /* out %al, $PORT */
	0xeb, 0xe5,				  /* jmp again */
};

static const uint64_t gdt[] = {
	0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff};

/* All of RAM where it is, for ring 3: present, writable, user, accessed, dirty. */
static void make_tables(uint64_t *table)
{
	const unsigned per_page = 512;

	for (unsigned level = 0; level < 3; level++)
		table[level * per_page] = (TABLES_GPA + (level + 1) * 4096) | 0x67;
	for (unsigned i = 0; i < per_page; i++)
		table[3 * per_page + i] = i * 4096ull | 0x67;
}

struct measure {
	char *ram;
	unsigned n_rounds;		   /* atomic: how many are over */
	uint64_t begin_ns;		   /* by the vCPU thread's clock, as what follows */
	uint64_t took_ns[2][N_ROUNDS / 2]; /* rounds with their pages there, and taken out */
};

static void on_pio(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
	unsigned size, unsigned count)
{
	struct measure *m = ctx;
	uint64_t took_ns = mb_clock_ns(CLOCK_THREAD_CPUTIME_ID) - m->begin_ns;
	unsigned n = m->n_rounds;

	if (n < N_ROUNDS)
		m->took_ns[n & 1][n / 2] = took_ns;
	if (!(n & 1))
		madvise(m->ram + PAGES_GPA, N_PAGES * 4096, MADV_DONTNEED);
	__atomic_store_n(&m->n_rounds, n + 1, __ATOMIC_RELEASE);
	m->begin_ns = mb_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void on_mmio(
	void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data, unsigned len)
{
}

static void on_eoi(void *ctx, uint8_t vector)
{
}

static void on_event(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text)
{
}

static const struct mb_vcpu_ops ops = {
	.pio = on_pio, .mmio = on_mmio, .ioapic_eoi = on_eoi, .event = on_event};

static int run(struct mb_vm *vm, struct measure *m)
{
	struct mb_vcpus_config config = {.n_vcpus = 1, .ops = &ops, .ops_ctx = m};
	struct mb_vcpu_start start = {.rip = CODE_GPA,
		.rsp = STACK_GPA,
		.cr3 = TABLES_GPA,
		.long_mode = true,
		.gdt_gpa = GDT_GPA,
		.gdt_limit = sizeof(gdt) - 1};
	struct timespec wait = {.tv_nsec = 200000};
	uint64_t begin_ns = mb_now_ns();
	struct mb_vcpus *vcpus;
	int rc = mb_vcpus_create(vm, &config, &vcpus, NULL);

	if (rc)
		return rc;
	rc = mb_vcpu_set_start(mb_vcpus_at(vcpus, 0), &start);
	if (!rc)
		mb_vcpus_resume(vcpus);
	while (!rc && __atomic_load_n(&m->n_rounds, __ATOMIC_ACQUIRE) < N_ROUNDS) {
		nanosleep(&wait, NULL);
		if (mb_now_ns() - begin_ns > TIMEOUT_NS)
			rc = -ETIMEDOUT;
	}
	mb_vcpus_destroy(vcpus);
	return rc;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* What a fault usually costs: not the least, and not the mean, where one round may have been
 * disturbed. Of two the lower one: the way there is in the first. */
static uint64_t median(uint64_t *took_ns, unsigned n)
{
	qsort(took_ns, n, sizeof(*took_ns), compare);
	return took_ns[(n - 1) / 2];
}

int mb_fault_cost_ns(const struct mb_host *host, uint64_t *ns)
{
	struct measure m = {0};
	uint64_t there_ns, out_ns;
	unsigned n; /* rounds of each kind */
	struct mb_vm_config config = {.n_views = 1};
	struct mb_memslot slot = {.len_bytes = RAM_BYTES};
	struct mb_vm *vm;
	int rc = mb_vm_create(host, &config, &vm, NULL);

	if (rc)
		return rc;
	/* Shared, as a guest's memory, but in small pages. */
	m.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (m.ram == MAP_FAILED) {
		rc = -errno;
		goto out;
	}
	madvise(m.ram, RAM_BYTES, MADV_NOHUGEPAGE);
	memset(m.ram + PAGES_GPA, 1, N_PAGES * 4096);
	memcpy(m.ram + CODE_GPA, code, sizeof(code));
	memcpy(m.ram + GDT_GPA, gdt, sizeof(gdt));
	make_tables((uint64_t *)(m.ram + TABLES_GPA));
	slot.hva = m.ram;
	rc = mb_vm_set_memslot(vm, 0, 0, &slot);
	if (!rc)
		rc = run(vm, &m);
	/* Where time is up, faults are dear, and some rounds tell how dear. */
	n = MIN(m.n_rounds, N_ROUNDS) / 2;
	if (rc == -ETIMEDOUT && n >= 2)
		rc = 0;
	if (!rc) {
		there_ns = median(m.took_ns[0], n);
		out_ns = median(m.took_ns[1], n);
		*ns = out_ns > there_ns ? (out_ns - there_ns) / N_PAGES + 1 : 1;
	}
out:
	mb_vm_destroy(vm);
	if (m.ram != MAP_FAILED)
		munmap(m.ram, RAM_BYTES);
	return rc;
}
