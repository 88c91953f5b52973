// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/file_io.h>
#include <unistd.h>

int mb_file_read(int fd, void *buf, size_t len, uint64_t at)
{
	while (len) {
		ssize_t n = pread(fd, buf, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		buf = (uint8_t *)buf + n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int mb_file_write(int fd, const void *buf, size_t len, uint64_t at)
{
	while (len) {
		ssize_t n = pwrite(fd, buf, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		buf = (const uint8_t *)buf + n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}
