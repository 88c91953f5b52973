// SPDX-License-Identifier: Apache-2.0
#include "target.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int cli_target_open(struct cli_target *target, const char *path, struct mb_error *err)
{
	struct stat st;
	mode_t mask;

	*target = (struct cli_target){.name = path};
	if (!strcmp(path, "-")) {
		target->name = "standard output";
		target->fd = STDOUT_FILENO;
		return 0;
	}
	if (!stat(path, &st) && !S_ISREG(st.st_mode)) {
		target->fd = open(path, O_WRONLY | O_CLOEXEC);
		return target->fd >= 0 ? 0
				       : mb_error_set(err, errno, "%s: %s", path, strerror(errno));
	}
	/* A link stays one: what it points to is replaced. */
	if (!realpath(path, target->path)) {
		if (errno != ENOENT || strlen(path) >= sizeof(target->path))
			return mb_error_set(err, errno, "%s: %s", path, strerror(errno));
		strcpy(target->path, path);
	}
	snprintf(target->temporary, sizeof(target->temporary), "%s.XXXXXX", target->path);
	target->fd = mkostemp(target->temporary, O_CLOEXEC);
	if (target->fd < 0)
		return mb_error_set(err, errno, "%s: %s", path, strerror(errno));
	mask = umask(0);
	umask(mask);
	fchmod(target->fd, 0666 & ~mask);
	return 0;
}

int cli_target_write(struct cli_target *target, const char *text, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(target->fd, text + done, len - done);

		if (n > 0)
			done += (size_t)n;
		else if (n < 0 && errno != EINTR)
			return -errno;
	}
	return 0;
}

int cli_target_close(struct cli_target *target, bool keep)
{
	int rc = 0;

	if (target->fd != STDOUT_FILENO && close(target->fd))
		rc = -errno;
	if (keep && !rc && *target->temporary && rename(target->temporary, target->path))
		rc = -errno;
	if ((!keep || rc) && *target->temporary)
		unlink(target->temporary);
	return rc;
}
