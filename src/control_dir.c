// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/control.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned mb_control_dirs(char path[MB_CONTROL_MAX_DIRS][PATH_MAX])
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	unsigned n = 0;

	if (!geteuid()) {
		snprintf(path[n++], PATH_MAX, "/run/mirrorball");
		return n;
	}
	/* A relative one is invalid and to be ignored (XDG Base Directory Specification). */
	if (runtime && *runtime == '/' &&
		snprintf(path[n], PATH_MAX, "%s/mirrorball", runtime) < PATH_MAX)
		n++;
	snprintf(path[n++], PATH_MAX, "/tmp/mirrorball-%u", (unsigned)geteuid());
	return n;
}

/* Whoever may write to it could put a socket of his own in the place of a machine's. */
static int check_dir(int fd, const char *path, struct mb_error *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return mb_error_set(err, errno, "%s: %s", path, strerror(errno));
	if (st.st_uid != geteuid())
		return mb_error_set(err, EPERM,
			"%s: belongs to user %u, not to %u; have it removed", path,
			(unsigned)st.st_uid, (unsigned)geteuid());
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return mb_error_set(err, EPERM,
			"%s: others may write to it (mode %03o); use chmod 700", path,
			(unsigned)st.st_mode & 0777);
	return 0;
}

int mb_control_open_dir(const char *path, bool create, int *dir_fd, struct mb_error *err)
{
	const char *base = strrchr(path, '/') + 1;
	char parent[PATH_MAX];
	int parent_fd, fd, rc;

	/* The parent's path may well lead through symbolic links; this is about the last part. */
	snprintf(parent, sizeof(parent), "%.*s", (int)(base - path), path);
	parent_fd = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (parent_fd < 0) {
		rc = errno == EPERM ? EACCES : errno;
		return mb_error_set(err, rc, "%s: %s", parent, strerror(errno));
	}
	if (create && mkdirat(parent_fd, base, 0700) && errno != EEXIST) {
		rc = errno == EPERM ? EACCES : errno;
		rc = mb_error_set(err, rc, "%s: cannot be made: %s", path, strerror(errno));
		close(parent_fd);
		return rc;
	}
	fd = openat(parent_fd, base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	rc = fd < 0 ? errno : 0;
	close(parent_fd);
	if (rc == ENOTDIR || rc == ELOOP)
		return mb_error_set(
			err, EPERM, "%s: is no directory or a symbolic link; remove it", path);
	if (rc)
		return mb_error_set(err, rc == EACCES ? EPERM : rc, "%s: %s", path, strerror(rc));
	rc = check_dir(fd, path, err);
	if (rc) {
		close(fd);
		return rc;
	}
	*dir_fd = fd;
	return 0;
}

bool mb_control_parse_file(const char *file, char *name, pid_t *pid)
{
	const char *dot = strrchr(file, '.');
	char *end;
	long value;

	/* A name may have dots; a PID is what strtol would write, and nothing else. */
	if (!dot || dot == file || dot - file > NAME_MAX || dot[1] < '1' || dot[1] > '9')
		return false;
	errno = 0;
	value = strtol(dot + 1, &end, 10);
	if (errno || *end || value > INT_MAX)
		return false;
	memcpy(name, file, (size_t)(dot - file));
	name[dot - file] = '\0';
	*pid = (pid_t)value;
	return true;
}

int mb_control_address(int dir_fd, const char *file, struct sockaddr_un *addr)
{
	int n;

	*addr = (struct sockaddr_un){.sun_family = AF_UNIX};
	n = snprintf(addr->sun_path, sizeof(addr->sun_path), "/proc/self/fd/%d/%s", dir_fd, file);
	return n < 0 || (size_t)n >= sizeof(addr->sun_path) ? -ENAMETOOLONG : 0;
}
