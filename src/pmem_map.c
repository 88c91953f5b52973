// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/cpuid.h>
#include <mirrorball/file_io.h>
#include <mirrorball/log.h>
#include <mirrorball/pmem_map.h>
#include <mirrorball/ram.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_SLOT 2u /* those of RAM are before (ram.c) */
#define PAGE	   4096u
#define END_S	   10		 /* within which a machine ends that was asked to */
#define MAX_PAGES  0x7fffffffull /* of a memslot (KVM_MEM_MAX_NR_PAGES) */

struct range {
	struct mb_pmem_map *map;
	struct mb_pmem *pmem;
	uint64_t gpa, bytes;
	struct mb_ram_mapping mapping;
	struct mb_region
		region;	 /* what KVM leaves to us: writes, and reads where the mapping fails */
	bool said_write; /* atomic */
};

struct mb_pmem_map {
	struct mb_vm *vm;
	struct mb_bus *bus;
	unsigned address_bits; /* of guests */
	uint64_t next;
	void (*lost)(void *ctx);
	void *ctx;
	unsigned n;
	struct range range[MB_MAX_PMEMS];
};

/* ---- reading ---- */

/* offset, len: inside. Behind the file's end there are zeroes. */
static int read_range(const struct range *r, uint64_t offset, void *buf, uint64_t len)
{
	const uint64_t file_bytes = mb_pmem_file_bytes(r->pmem);
	uint64_t n = offset < file_bytes ? file_bytes - offset : 0;
	bool holds;
	int rc = 0;

	n = n < len ? n : len;
	memset((uint8_t *)buf + n, 0, len - n);
	if (n)
		rc = mb_file_read(mb_pmem_fd(r->pmem), buf, n, offset);
	/* A change alone is the guest's, who sees it, too: it is said. */
	holds = mb_pmem_holds(r->pmem);
	if (!rc)
		return 0;
	if (holds)
		mb_log("pmem %s: cannot be read at %llu: %s", mb_pmem_path(r->pmem),
			(unsigned long long)offset, strerror(-rc));
	r->map->lost(r->map->ctx);
	return -EFAULT;
}

static const struct range *find(const struct mb_pmem_map *map, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; map && i < map->n; i++)
		if (mb_range_inside(gpa, len, map->range[i].gpa, map->range[i].bytes))
			return &map->range[i];
	return NULL;
}

bool mb_pmem_map_has(const struct mb_pmem_map *map, uint64_t gpa, uint64_t len)
{
	return find(map, gpa, len);
}

int mb_pmem_map_read(struct mb_pmem_map *map, uint64_t gpa, void *buf, uint64_t len)
{
	const struct range *r = find(map, gpa, len);

	return r ? read_range(r, gpa - r->gpa, buf, len) : -EFAULT;
}

void mb_pmem_map_check(struct mb_pmem_map *map)
{
	for (unsigned i = 0; map && i < map->n; i++)
		mb_pmem_holds(map->range[i].pmem);
}

/* ---- what vCPUs leave to us ---- */

/* KVM emulates an instruction, and the mapping has failed. All ones are no answer: the machine ends
 * while we wait. */
static void on_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	const struct timespec wait = {.tv_sec = END_S};

	if (!read_range(dev, offset, data, len))
		return;
	memset(data, 0xff, len);
	nanosleep(&wait, NULL);
}

static void on_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct range *r = dev;

	if (!__atomic_exchange_n(&r->said_write, true, __ATOMIC_RELAXED))
		mb_log("pmem %s: the guest wrote to it, at %llu; it is read-only, and this and "
		       "what follows is dropped",
			mb_pmem_path(r->pmem), (unsigned long long)offset);
}

static const struct mb_region_ops region_ops = {.read = on_read, .write = on_write};

/* ---- making ---- */

int mb_pmem_map_create(struct mb_vm *vm, struct mb_bus *bus, uint64_t ram_end,
	void (*lost)(void *ctx), void *ctx, struct mb_pmem_map **out, struct mb_error *err)
{
	struct mb_pmem_map *map = calloc(1, sizeof(*map));
	struct kvm_cpuid2 *supported;
	int rc;

	if (!map)
		return mb_error_set(err, ENOMEM, "pmem: out of memory");
	rc = mb_cpuid_supported(mb_vm_host(vm), &supported);
	if (rc) {
		free(map);
		return mb_error_set(
			err, -rc, "KVM: cannot read the CPUID it supports: %s", strerror(-rc));
	}
	map->address_bits = mb_cpuid_address_bits(supported);
	free(supported);
	map->vm = vm;
	map->bus = bus;
	map->lost = lost;
	map->ctx = ctx;
	/* Above all windows, too, which are below 4 GiB. */
	map->next = mb_align_up(
		ram_end > MB_RAM_HIGH_BASE ? ram_end : MB_RAM_HIGH_BASE, MB_PMEM_SECTION);
	*out = map;
	return 0;
}

uint64_t mb_pmem_map_next(const struct mb_pmem_map *map)
{
	return map->next;
}

static int check(const struct mb_pmem_map *map, const struct range *r, struct mb_error *err)
{
	const char *path = mb_pmem_path(r->pmem);
	const unsigned bits = map->address_bits;

	if (!mb_vm_host(map->vm)->cap[MB_CAP_READONLY_MEM])
		return mb_error_set(err, ENOTSUP,
			"pmem %s: this host's KVM lacks KVM_CAP_READONLY_MEM; give it to the guest "
			"as --disk %s,cow",
			path, path);
	if (r->bytes / PAGE > MAX_PAGES || (bits < 64 && (r->gpa + r->bytes - 1) >> bits))
		return mb_error_set(err, ERANGE,
			"pmem %s: its %llu MiB from address %#llx on are more than a guest's %u "
			"address bits reach on this host; give the machine less memory, or give "
			"the file as --disk %s,cow",
			path, (unsigned long long)(r->bytes >> 20), (unsigned long long)r->gpa,
			bits, path);
	return 0;
}

static int map_file(struct range *r, struct mb_error *err)
{
	int rc = mb_ram_file_map_image(mb_pmem_fd(r->pmem),
		mb_align_up(mb_pmem_file_bytes(r->pmem), PAGE), r->bytes, &r->mapping);

	return rc ? mb_error_set(err, -rc, "pmem %s: cannot be mapped: %s", mb_pmem_path(r->pmem),
			    strerror(-rc))
		  : 0;
}

static int set_slots(struct range *r, uint64_t len)
{
	const struct mb_pmem_map *map = r->map;
	const struct mb_memslot slot = {
		.gpa = r->gpa,
		.len_bytes = len,
		.hva = r->mapping.base,
		.readonly = true,
	};
	int rc = 0;

	for (unsigned k = 0; k < mb_vm_n_views(map->vm) && !rc; k++)
		rc = mb_vm_set_memslot(map->vm, k, FIRST_SLOT + (unsigned)(r - map->range), &slot);
	return rc;
}

static void remove_range(struct range *r)
{
	mb_bus_remove(r->map->bus, &r->region);
	set_slots(r, 0);
	mb_ram_file_unmap(&r->mapping, r->bytes);
}

int mb_pmem_map_add(struct mb_pmem_map *map, struct mb_pmem *pmem, struct mb_error *err)
{
	struct range *r = &map->range[map->n];
	int rc;

	if (map->n == MB_MAX_PMEMS)
		return mb_error_set(err, ENOSPC, "more than %u pmem devices", MB_MAX_PMEMS);
	*r = (struct range){
		.map = map, .pmem = pmem, .gpa = map->next, .bytes = mb_pmem_bytes(pmem)};
	r->region = (struct mb_region){
		.space = MB_MMIO, .base = r->gpa, .len = r->bytes, .ops = &region_ops, .dev = r};
	rc = check(map, r, err);
	if (!rc)
		rc = map_file(r, err);
	if (rc) {
		mb_ram_file_unmap(&r->mapping, r->bytes);
		return rc;
	}
	rc = set_slots(r, r->bytes);
	if (!rc)
		rc = mb_bus_add(map->bus, &r->region);
	if (rc) {
		remove_range(r);
		return mb_error_set(err, -rc, "KVM: cannot give pmem %s to the guest: %s",
			mb_pmem_path(pmem), strerror(-rc));
	}
	map->next = mb_align_up(r->gpa + r->bytes, MB_PMEM_SECTION);
	map->n++;
	return 0;
}

void mb_pmem_map_destroy(struct mb_pmem_map *map)
{
	if (!map)
		return;
	for (unsigned i = 0; i < map->n; i++)
		remove_range(&map->range[i]);
	free(map);
}
