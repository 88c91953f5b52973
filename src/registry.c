// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/control.h>
#include <mirrorball/registry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SUBDIR	    "placement"
#define LOCK_FILE   "lock"
#define POLL_NS	    1000000l
#define FRESH_S	    10 /* a record that is not locked yet may be about to be */
#define MEASURED_NS 30000000000ull
#define MAX_OTHERS  4
#define MAX_BYTES   (1ull << 50) /* of a node, in a record that makes sense */
#define MAX_VCPUS   65536u
#define MAX_PPM	    1000000000u
#define MOVED_BYTES 64

struct mb_registry {
	int dir_fd, lock_fd;
	bool locked;
	char file[64]; /* "": not published */
	int fd;	       /* of it; locked as long as it is open */
	int other_fd[MAX_OTHERS];
	unsigned n_others;
};

/* ---- directories ---- */

/* Whoever may write there could tell us what he likes; -EPERM then. */
static int check_owner(int fd, uid_t uid)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	return st.st_uid == uid && !(st.st_mode & (S_IWGRP | S_IWOTH)) ? 0 : -EPERM;
}

/* The subdirectory; -errno. */
static int open_subdir(int parent_fd, bool create, uid_t uid)
{
	int fd, rc;

	/* Who may read it is up to the directory around it. */
	if (create && mkdirat(parent_fd, SUBDIR, 0755) && errno != EEXIST)
		return -errno;
	fd = openat(parent_fd, SUBDIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = check_owner(fd, uid);
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

static int open_own(struct mb_registry *r, const char *path, struct mb_error *err)
{
	int fd, rc = mb_control_open_dir(path, true, &fd, err);

	if (rc)
		return rc;
	r->dir_fd = open_subdir(fd, true, geteuid());
	close(fd);
	if (r->dir_fd < 0)
		return mb_error_set(
			err, -r->dir_fd, "%s/" SUBDIR ": %s", path, strerror(-r->dir_fd));
	r->lock_fd = openat(r->dir_fd, LOCK_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (r->lock_fd < 0)
		return mb_error_set(
			err, errno, "%s/" SUBDIR "/" LOCK_FILE ": %s", path, strerror(errno));
	return 0;
}

/* What cannot be read is nobody's. */
static void open_other(struct mb_registry *r, const char *path)
{
	/* Not for reading: sockets may be nobody's business where records are. */
	int fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), sub;
	struct stat st;

	if (fd < 0)
		return;
	/* Root's, or our own. */
	if (fstat(fd, &st) || (st.st_uid && st.st_uid != geteuid()) || check_owner(fd, st.st_uid)) {
		close(fd);
		return;
	}
	sub = open_subdir(fd, false, st.st_uid);
	close(fd);
	if (sub >= 0 && r->n_others < MAX_OTHERS)
		r->other_fd[r->n_others++] = sub;
	else if (sub >= 0)
		close(sub);
}

static struct mb_registry *new_registry(void)
{
	struct mb_registry *r = calloc(1, sizeof(*r));

	if (r)
		r->dir_fd = r->lock_fd = r->fd = -1;
	return r;
}

int mb_registry_open_at(
	const char *own, const char *const *others, struct mb_registry **out, struct mb_error *err)
{
	struct mb_registry *r = new_registry();
	int rc;

	if (!r)
		return mb_error_set(err, ENOMEM, "out of memory");
	rc = open_own(r, own, err);
	if (rc) {
		mb_registry_close(r);
		return rc;
	}
	while (others && *others)
		open_other(r, *others++);
	*out = r;
	return 0;
}

int mb_registry_open(struct mb_registry **out, struct mb_error *err)
{
	char path[MB_CONTROL_MAX_DIRS][PATH_MAX];
	unsigned n = mb_control_dirs(path);
	int rc = -ENOENT;

	/* As for the control socket: the next one is for a place that is not there. */
	for (unsigned i = 0; i < n && rc && rc != -EPERM; i++) {
		const char *others[MB_CONTROL_MAX_DIRS + 1];
		unsigned n_others = 0;

		for (unsigned k = 0; k < n; k++)
			if (k != i)
				others[n_others++] = path[k];
		if (geteuid())
			others[n_others++] = "/run/mirrorball";
		others[n_others] = NULL;
		rc = mb_registry_open_at(path[i], others, out, err);
	}
	return rc;
}

void mb_registry_close(struct mb_registry *r)
{
	if (!r)
		return;
	if (*r->file)
		unlinkat(r->dir_fd, r->file, 0);
	if (r->fd >= 0)
		close(r->fd);
	if (r->lock_fd >= 0)
		close(r->lock_fd);
	if (r->dir_fd >= 0)
		close(r->dir_fd);
	for (unsigned i = 0; i < r->n_others; i++)
		close(r->other_fd[i]);
	free(r);
}

/* ---- the lock ---- */

int mb_registry_lock(struct mb_registry *r, unsigned wait_ms)
{
	const uint64_t end_ns = mb_now_ns() + wait_ms * 1000000ull;
	const struct timespec poll = {.tv_nsec = POLL_NS};

	/* Not flock's own wait, which has no end. */
	while (flock(r->lock_fd, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (mb_now_ns() >= end_ns)
			return -EBUSY;
		nanosleep(&poll, NULL);
	}
	r->locked = true;
	return 0;
}

void mb_registry_unlock(struct mb_registry *r)
{
	if (r->locked)
		flock(r->lock_fd, LOCK_UN);
	r->locked = false;
}

/* Whether the process that made it lives. */
static bool is_held(int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	/* A read lock is somebody else's joke. */
	return !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type == F_WRLCK;
}

static int hold(int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return fcntl(fd, F_OFD_SETLK, &lock) ? -errno : 0;
}

/* ---- records ---- */

int mb_registry_format(const struct mb_registry_record *record, char text[MB_REGISTRY_RECORD_BYTES])
{
	const size_t size = MB_REGISTRY_RECORD_BYTES;
	size_t n = (size_t)snprintf(text, size, "mirrorball-placement 1\ntime %020llu\n",
		(unsigned long long)record->time_ns);

	for (unsigned i = 0; i < record->n_nodes && n < size; i++) {
		const struct mb_registry_node *node = &record->node[i];

		n += (size_t)snprintf(text + n, size - n,
			"node %05u %05u %016llu %016llu %010u %07u %d\n", node->id, node->vcpus,
			(unsigned long long)node->promised_bytes,
			(unsigned long long)node->resident_bytes, node->busy_ppm,
			node->host_busy_ppm, node->measured);
	}
	if (n < size)
		n += (size_t)snprintf(text + n, size - n, "end\n");
	return n < size ? (int)n : -E2BIG;
}

/* A decimal number up to max, and the character after it. */
static bool take_number(const char **at, char after, uint64_t max, uint64_t *value)
{
	char *end;

	if (**at < '0' || **at > '9')
		return false;
	errno = 0;
	*value = strtoull(*at, &end, 10);
	if (errno || *value > max || *end != after)
		return false;
	*at = end + 1;
	return true;
}

static bool take_word(const char **at, const char *word)
{
	size_t n = strlen(word);

	if (strncmp(*at, word, n))
		return false;
	*at += n;
	return true;
}

int mb_registry_parse(const char *text, size_t len, struct mb_registry_record *record)
{
	const char *at = text;

	memset(record, 0, sizeof(*record));
	/* Then every step below ends at a NUL at the latest. */
	if (!len || len >= MB_REGISTRY_RECORD_BYTES || text[len] || memchr(text, '\0', len))
		return -EINVAL;
	if (!take_word(&at, "mirrorball-placement 1\ntime ") ||
		!take_number(&at, '\n', UINT64_MAX, &record->time_ns))
		return -EINVAL;
	while (take_word(&at, "node ")) {
		struct mb_registry_node *node = &record->node[record->n_nodes];
		uint64_t id, vcpus, busy, host_busy, measured;

		if (record->n_nodes == MB_MAX_NODES || !take_number(&at, ' ', UINT16_MAX, &id) ||
			!take_number(&at, ' ', MAX_VCPUS, &vcpus) ||
			!take_number(&at, ' ', MAX_BYTES, &node->promised_bytes) ||
			!take_number(&at, ' ', MAX_BYTES, &node->resident_bytes) ||
			!take_number(&at, ' ', MAX_PPM, &busy) ||
			!take_number(&at, ' ', 1000000, &host_busy) ||
			!take_number(&at, '\n', 1, &measured))
			return -EINVAL;
		node->id = (unsigned)id;
		node->vcpus = (unsigned)vcpus;
		node->busy_ppm = (unsigned)busy;
		node->host_busy_ppm = (unsigned)host_busy;
		node->measured = measured;
		record->n_nodes++;
	}
	return take_word(&at, "end\n") && !at[strspn(at, "\n")] ? 0 : -EINVAL;
}

/* 1: somebody's; 0: nobody's; -errno: no record that makes sense. */
static int read_record(int dir_fd, const char *file, uid_t uid, struct mb_registry_record *record)
{
	/* Not waiting for the other end of a FIFO; no link to somewhere else. */
	int fd = openat(dir_fd, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	char text[MB_REGISTRY_RECORD_BYTES + 1];
	struct stat st;
	ssize_t n = 0;
	int rc;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != uid) {
		rc = -EINVAL;
	} else if (!is_held(fd)) {
		rc = time(NULL) - st.st_mtime > FRESH_S || st.st_mtime > time(NULL) ? 0 : -EAGAIN;
	} else {
		n = pread(fd, text, sizeof(text) - 1, 0);
		text[n > 0 ? n : 0] = '\0';
		rc = n > 0 ? mb_registry_parse(text, (size_t)n, record) : -EINVAL;
		rc = rc ? rc : 1;
	}
	close(fd);
	return rc;
}

struct sum {
	struct mb_registry_record *record;
	uint64_t now_ns;
	uint64_t measured_ns[MB_MAX_NODES];
};

static struct mb_registry_node *node_of(struct sum *sum, unsigned id, uint64_t **measured_ns)
{
	struct mb_registry_record *all = sum->record;
	unsigned i = 0;

	while (i < all->n_nodes && all->node[i].id != id)
		i++;
	if (i == MB_MAX_NODES)
		return NULL;
	if (i == all->n_nodes) {
		all->n_nodes++;
		all->node[i].id = id;
	}
	*measured_ns = &sum->measured_ns[i];
	return &all->node[i];
}

static void add_record(struct sum *sum, const struct mb_registry_record *record)
{
	/* Time of another boot, or an invented one. */
	bool recent =
		record->time_ns <= sum->now_ns && sum->now_ns - record->time_ns <= MEASURED_NS;

	for (unsigned i = 0; i < record->n_nodes; i++) {
		const struct mb_registry_node *from = &record->node[i];
		uint64_t *measured_ns;
		struct mb_registry_node *to = node_of(sum, from->id, &measured_ns);

		if (!to)
			continue;
		to->vcpus += from->vcpus;
		to->promised_bytes += from->promised_bytes;
		to->resident_bytes += from->resident_bytes;
		to->busy_ppm += from->busy_ppm;
		if (from->measured && recent && (!to->measured || record->time_ns > *measured_ns)) {
			to->measured = true;
			to->host_busy_ppm = from->host_busy_ppm;
			*measured_ns = record->time_ns;
		}
	}
}

static void read_dir(struct mb_registry *r, int dir_fd, struct sum *sum)
{
	/* The stream's own descriptor: closing the stream closes it. */
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	struct stat st;
	unsigned n = 0;

	if (!dir || fstat(dir_fd, &st)) {
		if (dir)
			closedir(dir);
		else if (fd >= 0)
			close(fd);
		return;
	}
	while (n < MB_REGISTRY_MAX_RECORDS && (entry = readdir(dir))) {
		const char *file = entry->d_name;
		struct mb_registry_record record;
		int rc;

		if (*file == '.' || !strcmp(file, LOCK_FILE) ||
			(dir_fd == r->dir_fd && !strcmp(file, r->file)))
			continue;
		n++;
		rc = read_record(dir_fd, file, st.st_uid, &record);
		if (rc == 1)
			add_record(sum, &record);
		else if (!rc && dir_fd == r->dir_fd && r->locked)
			unlinkat(dir_fd, file, 0);
	}
	closedir(dir);
}

void mb_registry_read(struct mb_registry *r, uint64_t now_ns, struct mb_registry_record *sum)
{
	struct sum all = {.record = sum, .now_ns = now_ns};

	memset(sum, 0, sizeof(*sum));
	sum->time_ns = now_ns;
	read_dir(r, r->dir_fd, &all);
	for (unsigned i = 0; i < r->n_others; i++)
		read_dir(r, r->other_fd[i], &all);
}

/* ---- our own ---- */

static int make_record(struct mb_registry *r)
{
	char file[sizeof(r->file)];
	int fd, rc;

	snprintf(file, sizeof(file), "%d-%llx", (int)getpid(), (unsigned long long)mb_now_ns());
	fd = openat(r->dir_fd, file, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0)
		return -errno;
	rc = hold(fd);
	if (rc) {
		unlinkat(r->dir_fd, file, 0);
		close(fd);
		return rc;
	}
	memcpy(r->file, file, sizeof(file));
	r->fd = fd;
	return 0;
}

int mb_registry_publish(struct mb_registry *r, const struct mb_registry_record *record)
{
	char text[MB_REGISTRY_RECORD_BYTES];
	int n = mb_registry_format(record, text), rc = n < 0 ? n : 0;
	ssize_t written;

	if (!rc && r->fd < 0)
		rc = make_record(r);
	if (rc)
		return rc;
	written = pwrite(r->fd, text, (size_t)n, 0);
	if (written == n && !ftruncate(r->fd, n))
		return 0;
	rc = written < 0 || written == n ? -errno : -ENOSPC;
	/* Half a record tells nobody anything. */
	unlinkat(r->dir_fd, r->file, 0);
	close(r->fd);
	r->fd = -1;
	r->file[0] = '\0';
	return rc;
}

bool mb_registry_is_published(const struct mb_registry *r)
{
	return r && r->fd >= 0;
}

/* ---- the last rebalance ---- */

bool mb_registry_last_move(struct mb_registry *r, uint64_t now_ns, uint64_t *time_ns)
{
	char text[MOVED_BYTES];
	const char *at = text;
	ssize_t n = pread(r->lock_fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	/* In the future: of another boot. */
	return take_word(&at, "moved ") && take_number(&at, '\n', now_ns, time_ns);
}

int mb_registry_note_move(struct mb_registry *r, uint64_t now_ns)
{
	char text[MOVED_BYTES];
	int n = snprintf(text, sizeof(text), "moved %llu\n", (unsigned long long)now_ns);

	if (pwrite(r->lock_fd, text, (size_t)n, 0) != n)
		return errno ? -errno : -ENOSPC;
	return ftruncate(r->lock_fd, n) ? -errno : 0;
}
