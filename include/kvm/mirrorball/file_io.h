/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_FILE_IO_H
#define MIRRORBALL_FILE_IO_H

#include <stddef.h>
#include <stdint.h>

/* All of it, or -errno; reading, -ENODATA: the file ends before. */
int mb_file_read(int fd, void *buf, size_t len, uint64_t at);
int mb_file_write(int fd, const void *buf, size_t len, uint64_t at);

#endif
