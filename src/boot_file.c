// SPDX-License-Identifier: Apache-2.0
#include "boot_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/range.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SHOWN 160

int mb_boot_file_error(
	const struct mb_boot_file *file, struct mb_error *err, int errnum, const char *fmt, ...)
{
	size_t path_len = strlen(file->path);
	char text[sizeof(err->text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (path_len > PATH_SHOWN)
		return mb_error_set(err, errnum, "%s ...%s: %s", file->what,
			file->path + path_len - PATH_SHOWN, text);
	return mb_error_set(err, errnum, "%s %s: %s", file->what, file->path, text);
}

int mb_boot_file_open(
	struct mb_boot_file *file, const char *what, const char *path, struct mb_error *err)
{
	struct stat st;
	int rc;

	*file = (struct mb_boot_file){.what = what, .path = path, .fd = -1};
	/* O_NONBLOCK: opening a FIFO must not wait for a writer. Regular files do not care. */
	file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (file->fd < 0) {
		rc = errno;
		if (rc == ENOENT || rc == ENOTDIR)
			return mb_boot_file_error(file, err, rc, "no such file: check the path");
		if (rc == EACCES || rc == EPERM)
			return mb_boot_file_error(file, err, rc,
				"no permission to read it: run as its owner or change its mode");
		return mb_boot_file_error(file, err, rc, "cannot be opened: %s", strerror(rc));
	}
	if (fstat(file->fd, &st) < 0)
		rc = mb_boot_file_error(
			file, err, errno, "cannot be examined: %s", strerror(errno));
	else if (S_ISDIR(st.st_mode))
		rc = mb_boot_file_error(file, err, EISDIR, "is a directory, a file is expected");
	else if (!S_ISREG(st.st_mode))
		rc = mb_boot_file_error(file, err, EINVAL,
			"is a device, pipe or socket, a regular file is expected");
	else if (!st.st_size)
		rc = mb_boot_file_error(file, err, EINVAL, "is empty");
	else
		rc = 0;
	if (rc) {
		mb_boot_file_close(file);
		return rc;
	}
	file->len = (uint64_t)st.st_size;
	return 0;
}

void mb_boot_file_close(struct mb_boot_file *file)
{
	if (file->fd >= 0)
		close(file->fd);
	file->fd = -1;
}

static int error_short(const struct mb_boot_file *file, struct mb_error *err)
{
	return mb_boot_file_error(file, err, EIO,
		"became shorter while it was read: start again when nothing writes it");
}

int mb_boot_file_check(const struct mb_boot_file *file, uint64_t offset, uint64_t len,
	const char *part, struct mb_error *err)
{
	if (mb_range_inside(offset, len, 0, file->len))
		return 0;
	if (offset + len < offset)
		return mb_boot_file_error(
			file, err, EINVAL, "is damaged: its %s has no valid size", part);
	return mb_boot_file_error(file, err, EINVAL,
		"is truncated: it has %llu bytes, its %s ends at byte %llu: copy the file again",
		(unsigned long long)file->len, part, (unsigned long long)(offset + len));
}

int mb_boot_file_read(const struct mb_boot_file *file, uint64_t offset, void *buf, size_t len,
	struct mb_error *err)
{
	uint8_t *to = buf;
	int rc = mb_boot_file_check(file, offset, len, "header", err);

	if (rc)
		return rc;
	if (file->fd < 0) {
		memcpy(buf, file->image + offset, len);
		return 0;
	}
	while (len) {
		ssize_t n = pread(file->fd, to, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return mb_boot_file_error(
				file, err, errno, "cannot be read: %s", strerror(errno));
		if (!n)
			return error_short(file, err);
		to += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int mb_boot_file_load(const struct mb_boot_file *file, struct mb_ram *ram, uint64_t gpa,
	uint64_t offset, uint64_t len, struct mb_error *err)
{
	int rc = mb_boot_file_check(file, offset, len, "contents", err);

	if (rc)
		return rc;
	if (file->fd < 0)
		rc = mb_dma_write(mb_ram_dma(ram), gpa, file->image + offset, len);
	else
		rc = mb_ram_load(ram, gpa, file->fd, offset, len);
	if (rc == -EIO)
		return error_short(file, err);
	if (rc)
		return mb_boot_file_error(
			file, err, -rc, "cannot be read into guest memory: %s", strerror(-rc));
	return 0;
}

struct signature {
	unsigned offset;
	unsigned len;
	const char *bytes;
	const char *is; /* completes "is ..." */
};

/* In the order of looking: a file that starts as an EFI program may be one of several things. */
static const struct signature signatures[] = {
	{0, 2, "\x1f\x8b",
		"gzip data, not a kernel: unpack it (gunzip), or use the bzImage as built"},
	{0, 6,
		"\xfd"
		"7zXZ",
		"xz data, not a kernel: unpack it (xz -d), or use the bzImage as built"},
	{0, 4, "\x28\xb5\x2f\xfd",
		"zstd data, not a kernel: unpack it (zstd -d), or use the bzImage as built"},
	{0, 3, "BZh", "bzip2 data, not a kernel: unpack it (bunzip2), or use the bzImage as built"},
	{0, 4, "\x02\x21\x4c\x18", "lz4 data, not a kernel: unpack it (lz4 -d)"},
	{0, 4, "\x04\x22\x4d\x18", "lz4 data, not a kernel: unpack it (lz4 -d)"},
	{0x38, 4, "ARM\x64", "a kernel for 64-bit Arm: use one for x86-64"},
	{0x38, 4, "RSC\x05", "a kernel for RISC-V: use one for x86-64"},
	{0x24, 4, "\x18\x28\x6f\x01", "a kernel for 32-bit Arm: use one for x86-64"},
	{0x38, 4, "\xcd\x23\x82\x81", "a kernel for LoongArch: use one for x86-64"},
	{4, 4, "zimg",
		"a compressed EFI image (zboot), which only UEFI firmware can start: use the "
		"bzImage or vmlinux of the same kernel"},
	{0, 2, "MZ",
		"an EFI or Windows program, which only UEFI firmware can start: use the bzImage or "
		"vmlinux of the same kernel"},
	{0, 6, "070701", "a cpio archive (an initrd?), not a kernel"},
	{0, 4, "QFI\xfb", "a disk image, not a kernel: give it to --disk"},
	{0x1fe, 2, "\x55\xaa",
		"a boot sector or disk image, not a Linux kernel: give disks to --disk"},
};

static bool is_text(const uint8_t *head, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (head[i] < 0x20 && head[i] != '\n' && head[i] != '\t' && head[i] != '\r')
			return false;
		if (head[i] == 0x7f)
			return false;
	}
	return n >= 4;
}

int mb_boot_not_a_kernel(
	const struct mb_boot_file *file, const uint8_t *head, size_t n, struct mb_error *err)
{
	/* The first sector of a bzImage is that of an EFI program too: the beginning alone says
	 * neither. */
	bool cut = n < MB_BOOT_HEAD_LEN && n >= 2 && !memcmp(head, "MZ", 2);

	for (size_t i = 0; i < sizeof(signatures) / sizeof(signatures[0]) && !cut; i++) {
		const struct signature *sig = &signatures[i];

		if (sig->offset + sig->len <= n &&
			!memcmp(head + sig->offset, sig->bytes, sig->len))
			return mb_boot_file_error(file, err, ENOEXEC, "is %s", sig->is);
	}
	if (is_text(head, n) && !cut)
		return mb_boot_file_error(file, err, ENOEXEC,
			"is a text file, not a kernel: a bzImage or an ELF vmlinux is expected");
	if (n < MB_BOOT_HEAD_LEN)
		return mb_boot_file_error(
			file, err, ENOEXEC, "has only %zu bytes: truncated, or not a kernel", n);
	return mb_boot_file_error(file, err, ENOEXEC,
		"is not a kernel: neither a bzImage nor an ELF vmlinux, which are expected");
}
