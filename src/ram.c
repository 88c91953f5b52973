// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <mirrorball/file_io.h>
#include <mirrorball/pmem_map.h>
#include <mirrorball/ram.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/range.h>
#include <mirrorball/topology.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_ZEROED 8192u /* blocks of 2 MiB */

struct mb_ram {
	struct mb_dma dma; /* first: dma_ram() */
	struct mb_vm *vm;
	int fd;
	bool private; /* of a file that stays as it is: own and the one view are one mapping */
	bool *zeroed; /* [2 MiB]: then, where it is not the file's any more */
	uint64_t n_zeroed;
	uint64_t bytes;
	uint64_t low_bytes;
	/*
	 * The monitor's own accesses go through a mapping that no memslot points at, and that always
	 * shows home: what a view maps may change under it.
	 */
	struct mb_ram_mapping own;
	struct mb_replicas *replicas; /* NULL: every page is HOME */
	struct mb_pmem_map *pmem;     /* NULL: no file is guest memory */
	bool *small; /* [2 MiB]: where no huge pages are wanted: the mover's, atomic */
	unsigned n_views;
	struct mb_ram_mapping view[];
};

static struct mb_ram *dma_ram(struct mb_dma *dma)
{
	return (struct mb_ram *)dma;
}

/* Offset in the file of [gpa, gpa + len), all in one of the two ranges. */
static int ram_offset(const struct mb_ram *ram, uint64_t gpa, uint64_t len, uint64_t *offset)
{
	if (mb_range_inside(gpa, len, 0, ram->low_bytes)) {
		*offset = gpa;
		return 0;
	}
	if (mb_range_inside(gpa, len, MB_RAM_HIGH_BASE, ram->bytes - ram->low_bytes)) {
		*offset = ram->low_bytes + (gpa - MB_RAM_HIGH_BASE);
		return 0;
	}
	return -EFAULT;
}

static int ram_map(struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir, void **hva)
{
	struct mb_ram *ram = dma_ram(dma);
	uint64_t offset;
	int rc = ram_offset(ram, gpa, len, &offset);

	if (rc)
		return dir == MB_DMA_READ && mb_pmem_map_has(ram->pmem, gpa, len) ? -EXDEV : rc;
	if (dir == MB_DMA_WRITE)
		rc = mb_replicas_hold(ram->replicas, offset, len);
	else
		mb_replicas_pin(ram->replicas, offset, len);
	if (!rc)
		*hva = ram->own.base + offset;
	return rc;
}

static void ram_unmap(struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir)
{
	struct mb_ram *ram = dma_ram(dma);
	uint64_t offset;

	if (ram_offset(ram, gpa, len, &offset))
		return;
	if (dir == MB_DMA_WRITE)
		mb_replicas_release(ram->replicas, offset, len);
	else
		mb_replicas_unpin(ram->replicas, offset, len);
}

static int ram_read(struct mb_dma *dma, uint64_t gpa, void *buf, uint64_t len)
{
	return mb_pmem_map_read(dma_ram(dma)->pmem, gpa, buf, len);
}

/*
 * Memory of a snapshot: zeroes are mapped in its place. Each such place may be a mapping of its own, of which the
 * process has 65530 by default, and a guest may free what it likes: only whole blocks, and not too many. -ENOTSUP: it
 * stays as it is. The balloon's thread, or nobody else.
 */
static int punch_private(struct mb_ram *ram, uint64_t offset, uint64_t len)
{
	const uint64_t first = offset / MB_RAM_ALIGN, n = (len + MB_RAM_ALIGN - 1) / MB_RAM_ALIGN;
	int rc;

	if (n == 1 && ram->zeroed[first])
		return madvise((char *)ram->own.base + offset, len, MADV_DONTNEED) ? -errno : 0;
	if (offset % MB_RAM_ALIGN || len % MB_RAM_ALIGN ||
		(len < ram->bytes && ram->n_zeroed >= MAX_ZEROED))
		return -ENOTSUP;
	rc = mb_ram_file_map_zeroes(&ram->own, offset, len);
	for (uint64_t i = first; i < first + n && !rc; i++) {
		ram->n_zeroed += !ram->zeroed[i];
		ram->zeroed[i] = true;
	}
	return rc;
}

/* Out of the file, and so out of every mapping of it. Whoever has copies of it holds it. */
static int punch(struct mb_ram *ram, uint64_t offset, uint64_t len)
{
	int rc;

	if (ram->private)
		return punch_private(ram, offset, len);
	do {
		rc = fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			(off_t)len);
	} while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

/*
 * As a device that writes zeroes: copies are given up first, so that no view goes on to read one.
 * The file's NUMA policy is of ranges, not of pages, and stays. By huge pages: a call stops whoever
 * touches what it takes away, and the vCPUs to flush their translations.
 */
static int ram_discard(struct mb_dma *dma, uint64_t gpa, uint64_t len, uint64_t *done_bytes)
{
	struct mb_ram *ram = dma_ram(dma);
	uint64_t at, end;
	int rc = ram_offset(ram, gpa, len, &at);

	if (rc)
		return rc;
	end = (at + len) & ~(MB_HEAT_PAGE_BYTES - 1);
	at = mb_align_up(at, MB_HEAT_PAGE_BYTES);
	while (at < end && !rc) {
		uint64_t next = (at / MB_RAM_ALIGN + 1) * MB_RAM_ALIGN;

		if (next > end)
			next = end;
		rc = mb_replicas_hold(ram->replicas, at, next - at);
		if (rc)
			break;
		rc = punch(ram, at, next - at);
		mb_replicas_release(ram->replicas, at, next - at);
		if (!rc)
			*done_bytes += next - at;
		at = next;
	}
	return rc;
}

static const struct mb_dma_ops ram_dma_ops = {
	.map = ram_map,
	.unmap = ram_unmap,
	.read = ram_read,
	.discard = ram_discard,
};

static int set_slots(struct mb_ram *ram, unsigned view)
{
	struct mb_memslot low = {.gpa = 0, .len_bytes = ram->low_bytes, .hva = ram->view[view].base};
	struct mb_memslot high = {
		.gpa = MB_RAM_HIGH_BASE,
		.len_bytes = ram->bytes - ram->low_bytes,
		.hva = ram->view[view].base + ram->low_bytes,
	};
	int rc = mb_vm_set_memslot(ram->vm, view, 0, &low);

	if (!rc && high.len_bytes)
		rc = mb_vm_set_memslot(ram->vm, view, 1, &high);
	return rc;
}

/* fd: of a snapshot, or -1. */
static int map_all(struct mb_ram *ram, int fd, struct mb_error *err)
{
	const unsigned long long mib = ram->bytes >> 20;
	unsigned n = ram->n_views + !ram->private;
	int rc;

	if (ram->private) {
		ram->zeroed = calloc(ram->bytes / MB_RAM_ALIGN, sizeof(*ram->zeroed));
		if (!ram->zeroed)
			return mb_error_set(err, ENOMEM, "guest memory: out of memory");
		ram->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (ram->fd < 0)
			return mb_error_set(err, errno, "guest memory: %s", strerror(errno));
		rc = mb_ram_file_map_private(ram->fd, ram->bytes, &ram->own);
		ram->view[0] = (struct mb_ram_mapping){.base = ram->own.base};
	} else {
		ram->fd = mb_ram_file_open(ram->bytes);
		if (ram->fd < 0)
			return mb_error_set(err, -ram->fd, "guest memory of %llu MiB: %s", mib,
				strerror(-ram->fd));
		rc = mb_ram_file_map(ram->fd, ram->bytes, &ram->own);
		for (unsigned k = 0; k < ram->n_views && !rc; k++)
			rc = mb_ram_file_map(ram->fd, ram->bytes, &ram->view[k]);
	}
	return rc ? mb_error_set(err, -rc,
			    "guest memory of %llu MiB: cannot be mapped %u times: %s; give the machine less, or"
			    " raise the limit on address space (ulimit -v)",
			    mib, n, strerror(-rc))
		  : 0;
}

static int create(
	struct mb_vm *vm, uint64_t bytes, int fd, struct mb_ram **out, struct mb_error *err)
{
	unsigned n_views = mb_vm_n_views(vm);
	unsigned long long mib = bytes >> 20;
	struct mb_ram *ram;
	int rc;

	if (!bytes || bytes % MB_RAM_ALIGN || bytes > INT64_MAX - MB_RAM_HIGH_BASE)
		return mb_error_set(err, EINVAL, "guest memory of %llu bytes: not a multiple of 2 MiB",
			(unsigned long long)bytes);
	ram = calloc(1, sizeof(*ram) + n_views * sizeof(ram->view[0]));
	if (!ram)
		return mb_error_set(err, ENOMEM, "guest memory: out of memory");
	ram->dma.ops = &ram_dma_ops;
	ram->vm = vm;
	ram->bytes = bytes;
	ram->low_bytes = bytes < MB_RAM_LOW_MAX ? bytes : MB_RAM_LOW_MAX;
	ram->n_views = n_views;
	ram->fd = -1;
	ram->small = calloc(bytes / MB_RAM_ALIGN, sizeof(*ram->small));
	if (!ram->small) {
		rc = mb_error_set(err, ENOMEM, "guest memory: out of memory");
		goto err;
	}
	ram->private = fd >= 0;
	rc = map_all(ram, fd, err);
	if (rc)
		goto err;
	/* Before the first touch; the file keeps it for all mappings. A kernel without NUMA says no. */
	rc = mb_numa_first_touch(ram->own.base, bytes);
	if (rc && rc != -ENOSYS) {
		mb_error_set(err, -rc, "guest memory: cannot set its NUMA policy: %s", strerror(-rc));
		goto err;
	}
	for (unsigned k = 0; k < n_views; k++) {
		rc = set_slots(ram, k);
		if (rc) {
			mb_error_set(err, -rc,
				"KVM: cannot give %llu MiB of memory to the guest: %s%s", mib,
				strerror(-rc),
				rc == -EINVAL ? "; more than this host's processors address?"
						" (lscpu: Address sizes)"
					      : "");
			goto err;
		}
	}
	*out = ram;
	return 0;

err:
	mb_ram_destroy(ram);
	return rc;
}

int mb_ram_create(struct mb_vm *vm, uint64_t bytes, struct mb_ram **out, struct mb_error *err)
{
	return create(vm, bytes, -1, out, err);
}

int mb_ram_create_private(
	struct mb_vm *vm, uint64_t bytes, int fd, struct mb_ram **out, struct mb_error *err)
{
	if (mb_vm_n_views(vm) != 1)
		return mb_error_set(err, EINVAL, "guest memory of a snapshot has one view");
	return create(vm, bytes, fd, out, err);
}

bool mb_ram_is_private(const struct mb_ram *ram)
{
	return ram->private;
}

void mb_ram_destroy(struct mb_ram *ram)
{
	if (!ram)
		return;
	for (unsigned k = 0; k < ram->n_views; k++) {
		struct mb_memslot none = {0};

		mb_vm_set_memslot(ram->vm, k, 0, &none);
		mb_vm_set_memslot(ram->vm, k, 1, &none);
		mb_ram_file_unmap(&ram->view[k], ram->bytes);
	}
	mb_ram_file_unmap(&ram->own, ram->bytes);
	if (ram->fd >= 0)
		close(ram->fd);
	free(ram->small);
	free(ram->zeroed);
	free(ram);
}

uint64_t mb_ram_low_bytes(const struct mb_ram *ram)
{
	return ram->low_bytes;
}

uint64_t mb_ram_high_bytes(const struct mb_ram *ram)
{
	return ram->bytes - ram->low_bytes;
}

struct mb_dma *mb_ram_dma(struct mb_ram *ram)
{
	return &ram->dma;
}

void mb_ram_set_replicas(struct mb_ram *ram, struct mb_replicas *replicas)
{
	ram->replicas = replicas;
}

void mb_ram_set_pmem(struct mb_ram *ram, struct mb_pmem_map *pmem)
{
	ram->pmem = pmem;
}

int mb_ram_fd(const struct mb_ram *ram)
{
	return ram->fd;
}

void *mb_ram_view_base(const struct mb_ram *ram, unsigned view)
{
	return ram->view[view].base;
}

void *mb_ram_own_base(const struct mb_ram *ram)
{
	return ram->own.base;
}

uint64_t mb_ram_backed_bytes(const struct mb_ram *ram)
{
	struct stat st;

	if (ram->private)
		return mb_ram_file_private_bytes(&ram->own, ram->bytes);
	return fstat(ram->fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

uint64_t mb_ram_gpa(const struct mb_ram *ram, uint64_t offset)
{
	return offset < ram->low_bytes ? offset : MB_RAM_HIGH_BASE + (offset - ram->low_bytes);
}

uint64_t mb_ram_run_end(const struct mb_ram *ram, uint64_t offset, uint64_t end)
{
	return offset < ram->low_bytes && end > ram->low_bytes ? ram->low_bytes : end;
}

bool *mb_ram_small(struct mb_ram *ram)
{
	return ram->small;
}

int mb_ram_remap(struct mb_ram *ram, unsigned view, uint64_t offset, uint64_t len)
{
	int rc;

	if (ram->replicas) {
		rc = mb_replicas_remap(ram->replicas, view, offset, len);
		return rc ? rc : 1;
	}
	rc = mb_ram_file_remap(ram->fd, &ram->view[view], offset, len);
	for (uint64_t at = offset; at < offset + len; at += MB_RAM_ALIGN)
		if (__atomic_load_n(&ram->small[at / MB_RAM_ALIGN], __ATOMIC_SEQ_CST))
			madvise((char *)ram->view[view].base + at, MB_RAM_ALIGN, MADV_NOHUGEPAGE);
	return rc;
}

int mb_ram_load(struct mb_ram *ram, uint64_t gpa, int fd, uint64_t offset, uint64_t len)
{
	void *hva;
	int rc = mb_dma_map(&ram->dma, gpa, len, MB_DMA_WRITE, &hva);

	if (rc)
		return rc;
	rc = mb_file_read(fd, hva, len, offset);
	mb_dma_unmap(&ram->dma, gpa, len, MB_DMA_WRITE);
	return rc == -ENODATA ? -EIO : rc;
}

int mb_ram_clear(struct mb_ram *ram)
{
	int rc;

	mb_replicas_discard(ram->replicas, true);
	/* The manager may be in the middle of making copies. */
	rc = mb_replicas_hold(ram->replicas, 0, ram->bytes);
	if (!rc) {
		rc = punch(ram, 0, ram->bytes);
		mb_replicas_release(ram->replicas, 0, ram->bytes);
	}
	mb_replicas_discard(ram->replicas, false);
	return rc;
}
