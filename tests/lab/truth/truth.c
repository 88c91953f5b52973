// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The lab's instrument: a plugin of the emulator (QEMU's TCG) that counts, between marks (mark.h), which
 * NUMA node's processors load from and store to which node's memory, and how often a model of a cache
 * would have missed. README.md says what it sees, what it does not see, and what the model leaves out.
 *
 * It is loaded into a program under the GPL, hence its licence. No Debian package has the header of
 * this interface: what is used of it is declared below, for its version 4 (QEMU 9.2 to 10.x).
 *
 * Arguments, all needed: out=FILE, cpus=NODE:NODE:… (of each CPU), map=START-END-NODE:… (machine-physical
 * memory, hexadecimal), cache=BYTES (0: no model, no misses), ways=N, host=on|off, pages=on|off, slice=MS
 * (0: none).
 */
#include "mark.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
enum { CB_NO_REGS = 0 };
enum { MEM_READ_WRITE = 3 };

typedef void (*simple_cb)(qemu_plugin_id_t id);
typedef void (*exec_cb)(unsigned cpu, void *data);
typedef void (*mem_cb)(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *data);

void qemu_plugin_reset(qemu_plugin_id_t id, simple_cb cb);
void qemu_plugin_register_vcpu_tb_trans_cb(
	qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_atexit_cb(
	qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t len);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(
	struct qemu_plugin_insn *insn, exec_cb cb, int flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(
	struct qemu_plugin_insn *insn, mem_cb cb, int flags, int rw, void *data);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t info, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *at);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *at);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);

EXPORT int qemu_plugin_version = 4;

#define MAX_CPUS    512u
#define MAX_NODES   8u
#define MAX_RANGES  16u
#define MAX_VMRUNS  16u
#define LINE_SHIFT  6
#define PAGE_SHIFT  12
#define BLOCK_SHIFT 21
#define POLL_NS	    10000000 /* a slice is so much too long at most */

enum level { HOST, GUEST, N_LEVELS };
enum what { LOADS, STORES, LOAD_MISSES, STORE_MISSES, N_WHATS };
static const char *const level_names[] = {"host", "guest"};
static const char *const what_names[] = {"loads", "stores", "load_misses", "store_misses"};

/*
 * A line that a CPU's cache holds, and the version of it: each store makes a new one, so a line that
 * another CPU has written since is not a hit.
 */
struct line {
	uint64_t number; /* physical address >> LINE_SHIFT, plus 1; 0: none */
	uint32_t version;
};

enum page_what { PAGE_LOADS, PAGE_STORES, PAGE_MISSES, N_PAGE_WHATS };

/* Of one CPU, and touched by its thread alone (the emulator runs each CPU on a thread). */
struct cpu {
	uint64_t n[TRUTH_N_SECTIONS][N_LEVELS][MAX_NODES][N_WHATS];
	struct line *cache; /* n_sets of n_ways, the one used last first */
	unsigned run;	    /* that it is of */
} __attribute__((aligned(128)));

static struct {
	char *out;
	unsigned n_cpus, n_nodes, n_ranges, n_ways;
	uint64_t cache_bytes, n_sets, end; /* no sets: no model */
	bool host, pages;
	unsigned node_of[MAX_CPUS];
	struct {
		uint64_t start, end;
		unsigned node;
	} range[MAX_RANGES];
	struct cpu *cpu;
	uint32_t *version;    /* of each line of memory */
	uint64_t *page_count; /* [page][node of the CPU][enum page_what] */
	unsigned section;     /* 0: nothing is counted. Any thread, atomic */
	unsigned run;	      /* how many times counting has begun. Atomic */
	bool seen[TRUTH_N_SECTIONS];
	/* Code that follows a VMRUN, by the address at which the emulator has it. Any thread, atomic. */
	const char *after_vmrun[MAX_VMRUNS];
	uint64_t n_unmapped; /* accesses to memory of no node: an error of the map */
	uint8_t *block_used; /* of each 2 MiB: whether pages in it count. Any thread, atomic */
	uint64_t slice_ns;   /* 0: no slices */
} truth;

/* Slices of time. The lock protects all of it. */
static struct {
	pthread_mutex_t lock;
	FILE *file; /* to text: what will stand in the result */
	char *text;
	size_t n_text;
	bool counts;			      /* now */
	uint64_t run_ns, begin_ns;	      /* when the run and the slice began */
	uint64_t *page_noted; /* [page][node of the CPU, or stores]: misses in slices before */
	uint64_t noted[MAX_NODES][MAX_NODES]; /* the same, of the guest, by node */
} slices = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What this thread's CPU executes. */
static __thread enum level my_level;

/* ---- counting ---- */

static int node_of_address(uint64_t address)
{
	for (unsigned i = 0; i < truth.n_ranges; i++)
		if (address >= truth.range[i].start && address < truth.range[i].end)
			return (int)truth.range[i].node;
	return -1;
}

/* Whether the cache has it; afterwards it does. */
static bool touch_line(struct cpu *cpu, uint64_t number, bool store)
{
	struct line *set = cpu->cache + number % truth.n_sets * truth.n_ways;
	uint32_t version = __atomic_load_n(&truth.version[number], __ATOMIC_RELAXED);
	unsigned way = 0;
	bool hit;

	while (way < truth.n_ways - 1 && set[way].number != number + 1)
		way++;
	hit = set[way].number == number + 1 && set[way].version == version;
	memmove(set + 1, set, way * sizeof(*set));
	set[0].number = number + 1;
	set[0].version = store ? __atomic_add_fetch(&truth.version[number], 1, __ATOMIC_RELAXED) : version;
	return hit;
}

/* What happened since the last run was not seen. */
static void start_cold(struct cpu *cpu)
{
	cpu->run = __atomic_load_n(&truth.run, __ATOMIC_RELAXED);
	if (truth.n_sets)
		memset(cpu->cache, 0, truth.n_sets * truth.n_ways * sizeof(*cpu->cache));
}

static void on_access(unsigned index, qemu_plugin_meminfo_t info, uint64_t vaddr, void *data)
{
	unsigned section = __atomic_load_n(&truth.section, __ATOMIC_RELAXED);
	struct qemu_plugin_hwaddr *at;
	uint64_t address, last;
	struct cpu *cpu;
	bool store, hit;
	int node;

	if (!section || index >= truth.n_cpus)
		return;
	at = qemu_plugin_get_hwaddr(info, vaddr);
	if (!at || qemu_plugin_hwaddr_is_io(at))
		return;
	address = qemu_plugin_hwaddr_phys_addr(at);
	node = node_of_address(address);
	if (node < 0) {
		__atomic_add_fetch(&truth.n_unmapped, 1, __ATOMIC_RELAXED);
		return;
	}
	cpu = &truth.cpu[index];
	if (cpu->run != __atomic_load_n(&truth.run, __ATOMIC_RELAXED))
		start_cold(cpu);
	store = qemu_plugin_mem_is_store(info);
	last = address + (1ull << qemu_plugin_mem_size_shift(info)) - 1;
	hit = !truth.n_sets || touch_line(cpu, address >> LINE_SHIFT, store);
	/* Over the end of a page it goes on elsewhere, which is not told. */
	if (truth.n_sets && last >> LINE_SHIFT != address >> LINE_SHIFT &&
		last >> PAGE_SHIFT == address >> PAGE_SHIFT)
		hit &= touch_line(cpu, last >> LINE_SHIFT, store);
	cpu->n[section][(uintptr_t)data][node][store ? STORES : LOADS]++;
	if (!hit)
		cpu->n[section][(uintptr_t)data][node][store ? STORE_MISSES : LOAD_MISSES]++;
	if (truth.pages) {
		uint64_t *n = truth.page_count + ((address >> PAGE_SHIFT) * truth.n_nodes +
							 truth.node_of[index]) * N_PAGE_WHATS;

		__atomic_store_n(&truth.block_used[address >> BLOCK_SHIFT], 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&n[store ? PAGE_STORES : PAGE_LOADS], 1, __ATOMIC_RELAXED);
		if (!hit)
			__atomic_add_fetch(&n[PAGE_MISSES], 1, __ATOMIC_RELAXED);
	}
}

/* ---- slices of time ---- */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t guest_misses(unsigned from, unsigned to)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < truth.n_cpus; i++)
		for (unsigned s = 1; s < TRUTH_N_SECTIONS && truth.node_of[i] == from; s++)
			sum += truth.cpu[i].n[s][GUEST][to][LOAD_MISSES] +
			       truth.cpu[i].n[s][GUEST][to][STORE_MISSES];
	return sum;
}

/* In the result each row is a page, how often it was written, and its misses from each node. */
static void note_page(uint64_t page, const char **comma)
{
	const unsigned n_nodes = truth.n_nodes;
	uint64_t *noted = slices.page_noted + page * (n_nodes + 1), now[MAX_NODES + 1], any = 0;

	now[n_nodes] = 0;
	for (unsigned node = 0; node < n_nodes; node++) {
		uint64_t *count = truth.page_count + (page * n_nodes + node) * N_PAGE_WHATS;

		now[node] = __atomic_load_n(&count[PAGE_MISSES], __ATOMIC_RELAXED);
		now[n_nodes] += __atomic_load_n(&count[PAGE_STORES], __ATOMIC_RELAXED);
	}
	for (unsigned i = 0; i <= n_nodes; i++)
		any |= now[i] - noted[i];
	if (!any)
		return;
	fprintf(slices.file, "%s[%" PRIu64 ",%" PRIu64, *comma, page, now[n_nodes] - noted[n_nodes]);
	for (unsigned node = 0; node < n_nodes; node++)
		fprintf(slices.file, ",%" PRIu64, now[node] - noted[node]);
	fprintf(slices.file, "]");
	memcpy(noted, now, (n_nodes + 1) * sizeof(*noted));
	*comma = ",";
}

/* What was missed since the last one. Caller holds the lock. */
static void note_slice(uint64_t now)
{
	const uint64_t per_block = 1u << (BLOCK_SHIFT - PAGE_SHIFT);
	const char *comma = "";

	fprintf(slices.file, "%s\n  {\"run\": %u, \"ms\": %" PRIu64 ", \"misses\": [",
		ftell(slices.file) ? "," : "", truth.run, (now - slices.run_ns) / 1000000);
	for (unsigned from = 0; from < truth.n_nodes; from++) {
		fprintf(slices.file, "%s[", from ? ", " : "");
		for (unsigned to = 0; to < truth.n_nodes; to++) {
			uint64_t all = guest_misses(from, to);

			fprintf(slices.file, "%s%" PRIu64, to ? ", " : "",
				all - slices.noted[from][to]);
			slices.noted[from][to] = all;
		}
		fprintf(slices.file, "]");
	}
	fprintf(slices.file, "]");
	if (truth.pages) {
		fprintf(slices.file, ", \"pages\": [");
		for (uint64_t page = 0; page < truth.end >> PAGE_SHIFT; page++)
			if (__atomic_load_n(&truth.block_used[page / per_block], __ATOMIC_RELAXED))
				note_page(page, &comma);
			else
				page |= per_block - 1;
		fprintf(slices.file, "]");
	}
	fprintf(slices.file, "}");
	slices.begin_ns = now;
}

static void *slice_thread(void *arg)
{
	const struct timespec poll = {.tv_nsec = POLL_NS};

	for (;;) {
		uint64_t now;

		nanosleep(&poll, NULL);
		pthread_mutex_lock(&slices.lock);
		now = now_ns();
		if (slices.counts && now - slices.begin_ns >= truth.slice_ns)
			note_slice(now);
		pthread_mutex_unlock(&slices.lock);
	}
	return NULL;
}

/* A slice begins with a run, and the last one ends with it. */
static void begin_or_end_run(bool begins)
{
	pthread_mutex_lock(&slices.lock);
	if (begins) {
		slices.run_ns = slices.begin_ns = now_ns();
	} else if (slices.counts) {
		note_slice(now_ns());
	}
	slices.counts = begins;
	pthread_mutex_unlock(&slices.lock);
}

/* The emulator's signals are not for this thread. */
static bool start_slices(void)
{
	sigset_t all, before;
	pthread_t thread;
	bool good;

	slices.file = open_memstream(&slices.text, &slices.n_text);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	good = slices.file && !pthread_create(&thread, NULL, slice_thread, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return good;
}

/* ---- where a CPU is ---- */

static bool is_after_vmrun(const char *code)
{
	for (unsigned i = 0; i < MAX_VMRUNS; i++)
		if (__atomic_load_n(&truth.after_vmrun[i], __ATOMIC_RELAXED) == code)
			return true;
	return false;
}

static void remember_vmrun(const char *after)
{
	for (unsigned i = 0; i < MAX_VMRUNS && !is_after_vmrun(after); i++) {
		const char *none = NULL;

		if (__atomic_compare_exchange_n(&truth.after_vmrun[i], &none, after, false, __ATOMIC_RELAXED,
			    __ATOMIC_RELAXED))
			return;
	}
}

static void on_vmrun(unsigned cpu, void *data)
{
	my_level = GUEST;
}

static void on_vmexit(unsigned cpu, void *data)
{
	my_level = HOST;
}

static qemu_plugin_id_t plugin_id;
static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);

static void on_exit_of_emulator(qemu_plugin_id_t id, void *data);

static void listen(qemu_plugin_id_t id)
{
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	qemu_plugin_register_atexit_cb(id, on_exit_of_emulator, NULL);
}

/*
 * A reset throws away all translations, and what we asked for with them: so the ones before a mark
 * need not know about counting, and cost nothing. No CPU runs while this is called.
 */

static void on_mark(unsigned cpu, void *data)
{
	unsigned section = (unsigned)(uintptr_t)data;
	unsigned before = __atomic_exchange_n(&truth.section, section, __ATOMIC_RELAXED);

	__atomic_store_n(&truth.seen[section], true, __ATOMIC_RELAXED);
	if (!before == !section)
		return;
	if (section)
		__atomic_add_fetch(&truth.run, 1, __ATOMIC_RELAXED);
	if (truth.slice_ns)
		begin_or_end_run(section);
	qemu_plugin_reset(plugin_id, listen);
}

/*
 * Code is translated on the thread of the CPU that needs it, and apart for guests and their host, so what
 * this CPU is now the code is for ever. But after a VMRUN's end the CPU's own word for it comes when the
 * code runs, not before.
 */
static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	static const uint8_t vmrun[] = {0x0f, 0x01, 0xd8}, mark[] = {TRUTH_MARK_OPCODE};
	bool counts = __atomic_load_n(&truth.section, __ATOMIC_RELAXED) != 0;
	size_t n = qemu_plugin_tb_n_insns(tb);
	enum level level = my_level;

	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const char *at = qemu_plugin_insn_haddr(insn);
		uint8_t code[7] = {0};
		uint32_t operand;

		qemu_plugin_insn_data(insn, code, sizeof(code));
		memcpy(&operand, code + 3, sizeof(operand));
		if (!i && is_after_vmrun(at)) {
			level = HOST;
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_vmexit, CB_NO_REGS, NULL);
		}
		if (!memcmp(code, vmrun, sizeof(vmrun))) {
			remember_vmrun(at + sizeof(vmrun));
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_vmrun, CB_NO_REGS, NULL);
		} else if (!memcmp(code, mark, sizeof(mark)) &&
			   (operand & ~(TRUTH_N_SECTIONS - 1)) == TRUTH_MARK_MAGIC) {
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark, CB_NO_REGS,
				(void *)(uintptr_t)(operand & (TRUTH_N_SECTIONS - 1)));
		}
		if (counts && (level == GUEST || truth.host))
			qemu_plugin_register_vcpu_mem_cb(
				insn, on_access, CB_NO_REGS, MEM_READ_WRITE, (void *)(uintptr_t)level);
	}
}

/* ---- the result ---- */

static void write_matrix(FILE *file, unsigned section, enum level level, enum what what)
{
	fprintf(file, "\"%s\": [", what_names[what]);
	for (unsigned from = 0; from < truth.n_nodes; from++) {
		fprintf(file, "%s[", from ? ", " : "");
		for (unsigned to = 0; to < truth.n_nodes; to++) {
			uint64_t sum = 0;

			for (unsigned i = 0; i < truth.n_cpus; i++)
				if (truth.node_of[i] == from)
					sum += truth.cpu[i].n[section][level][to][what];
			fprintf(file, "%s%" PRIu64, to ? ", " : "", sum);
		}
		fprintf(file, "]");
	}
	fprintf(file, "]");
}

static void write_pages(FILE *file)
{
	unsigned per_page = truth.n_nodes * N_PAGE_WHATS;
	const char *comma = "";

	fprintf(file, ",\n \"page_bytes\": %u,\n \"pages\": [", 1u << PAGE_SHIFT);
	for (uint64_t page = 0; page < truth.end >> PAGE_SHIFT; page++) {
		const uint64_t *n = truth.page_count + page * per_page;
		uint64_t any = 0;

		for (unsigned i = 0; i < per_page; i++)
			any |= n[i];
		if (!any)
			continue;
		fprintf(file, "%s\n  [%" PRIu64 ", %d", comma, page, node_of_address(page << PAGE_SHIFT));
		for (unsigned i = 0; i < per_page; i++)
			fprintf(file, ", %" PRIu64, n[i]);
		fprintf(file, "]");
		comma = ",";
	}
	fprintf(file, "]");
}

static void on_exit_of_emulator(qemu_plugin_id_t id, void *data)
{
	FILE *file = fopen(truth.out, "w");
	const char *comma = "";

	if (!file) {
		perror(truth.out);
		return;
	}
	fprintf(file, "{\"format\": 1,\n \"cache\": {\"bytes\": %" PRIu64 ", \"ways\": %u, \"line\": %u},\n",
		truth.cache_bytes, truth.n_ways, 1u << LINE_SHIFT);
	fprintf(file, " \"host\": %s,\n \"unmapped\": %" PRIu64 ",\n \"cpu_node\": [",
		truth.host ? "true" : "false", truth.n_unmapped);
	for (unsigned i = 0; i < truth.n_cpus; i++)
		fprintf(file, "%s%u", i ? ", " : "", truth.node_of[i]);
	fprintf(file, "],\n \"sections\": {");
	for (unsigned s = 1; s < TRUTH_N_SECTIONS; s++) {
		if (!truth.seen[s])
			continue;
		fprintf(file, "%s\n  \"%u\": {", comma, s);
		for (unsigned level = 0; level < N_LEVELS; level++) {
			fprintf(file, "%s\"%s\": {", level ? ",\n        " : "", level_names[level]);
			for (unsigned what = 0; what < N_WHATS; what++) {
				fprintf(file, "%s", what ? ", " : "");
				write_matrix(file, s, level, what);
			}
			fprintf(file, "}");
		}
		fprintf(file, "}");
		comma = ",";
	}
	fprintf(file, "}");
	if (truth.slice_ns) {
		begin_or_end_run(false);
		fflush(slices.file);
		fprintf(file, ",\n \"slices\": [%s]", slices.text);
	}
	if (truth.pages)
		write_pages(file);
	fprintf(file, "}\n");
	if (fclose(file))
		perror(truth.out);
}

/* ---- the beginning ---- */

/* Zero, and real only where it is touched. */
static void *reserve(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static bool take_cpus(char *text)
{
	for (char *word = strtok(text, ":"); word; word = strtok(NULL, ":")) {
		unsigned node = (unsigned)strtoul(word, NULL, 10);

		if (truth.n_cpus == MAX_CPUS || node >= MAX_NODES)
			return false;
		truth.node_of[truth.n_cpus++] = node;
		if (node >= truth.n_nodes)
			truth.n_nodes = node + 1;
	}
	return truth.n_cpus;
}

static bool take_map(char *text)
{
	for (char *word = strtok(text, ":"); word; word = strtok(NULL, ":")) {
		unsigned i = truth.n_ranges++;

		if (i == MAX_RANGES || sscanf(word, "%" SCNx64 "-%" SCNx64 "-%u", &truth.range[i].start,
					       &truth.range[i].end, &truth.range[i].node) != 3)
			return false;
		if (truth.range[i].node >= MAX_NODES)
			return false;
		if (truth.range[i].node >= truth.n_nodes)
			truth.n_nodes = truth.range[i].node + 1;
		if (truth.range[i].end > truth.end)
			truth.end = truth.range[i].end;
	}
	return truth.n_ranges;
}

static bool take(char *argument)
{
	char *value = strchr(argument, '=');

	if (!value)
		return false;
	*value++ = '\0';
	if (!strcmp(argument, "out"))
		return (truth.out = strdup(value)) != NULL;
	if (!strcmp(argument, "cpus"))
		return take_cpus(value);
	if (!strcmp(argument, "map"))
		return take_map(value);
	if (!strcmp(argument, "cache"))
		return (truth.cache_bytes = strtoull(value, NULL, 10)) != 0 || !strcmp(value, "0");
	if (!strcmp(argument, "ways"))
		return (truth.n_ways = (unsigned)strtoul(value, NULL, 10)) != 0;
	if (!strcmp(argument, "host"))
		return (truth.host = !strcmp(value, "on")) || !strcmp(value, "off");
	if (!strcmp(argument, "pages"))
		return (truth.pages = !strcmp(value, "on")) || !strcmp(value, "off");
	if (!strcmp(argument, "slice"))
		return (truth.slice_ns = strtoull(value, NULL, 10) * 1000000u) != 0 || !strcmp(value, "0");
	return false;
}

static bool make(void)
{
	uint64_t line_bytes = 1u << LINE_SHIFT;

	if (!truth.out || !truth.n_cpus || !truth.n_ranges || !truth.n_ways)
		return false;
	truth.n_sets = truth.cache_bytes / line_bytes / truth.n_ways;
	truth.cpu = reserve(truth.n_cpus * sizeof(*truth.cpu));
	truth.version = reserve((truth.end >> LINE_SHIFT) * sizeof(*truth.version));
	if (!truth.cpu || !truth.version || (truth.cache_bytes && !truth.n_sets))
		return false;
	for (unsigned i = 0; truth.n_sets && i < truth.n_cpus; i++) {
		truth.cpu[i].cache = reserve(truth.n_sets * truth.n_ways * sizeof(struct line));
		if (!truth.cpu[i].cache)
			return false;
	}
	if (truth.pages) {
		uint64_t n = (truth.end >> PAGE_SHIFT) * truth.n_nodes;

		truth.page_count = reserve(n * N_PAGE_WHATS * sizeof(*truth.page_count));
		slices.page_noted = reserve((n + (truth.end >> PAGE_SHIFT)) * sizeof(*slices.page_noted));
		truth.block_used = reserve((truth.end >> BLOCK_SHIFT) + 1);
		if (!truth.page_count || !slices.page_noted || !truth.block_used)
			return false;
	}
	return !truth.slice_ns || start_slices();
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		char *copy = strdup(argv[i]);
		bool good = copy && take(copy);

		free(copy);
		if (!good) {
			fprintf(stderr, "truth: not an argument: %s\n", argv[i]);
			return -1;
		}
	}
	if (!make()) {
		fprintf(stderr, "truth: an argument is missing, or no memory for tables\n");
		return -1;
	}
	plugin_id = id;
	listen(id);
	return 0;
}
