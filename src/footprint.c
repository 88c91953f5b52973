// SPDX-License-Identifier: Apache-2.0
#include <ctype.h>
#include <errno.h>
#include <mirrorball/footprint.h>
#include <mirrorball/ram.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

/* What files in memory are called, by those who make them: ram_file.c, replica_create.c,
 * commons_piece.c. */
#define RAM	"/mirrorball-ram"
#define RAM_FD	"/memfd:mirrorball-ram"
#define COPIES	"/memfd:mirrorball-copies"
#define COMMONS "/memfd:mirrorball-commons"
#define DELETED " (deleted)"

enum kind { PRIVATE, COPIES_OF, MONITOR, SHARED, N_KINDS = SHARED + MB_FOOTPRINT_MAX_ORIGINS };

/* Pages of one kind. */
struct sum {
	uint64_t pss_kib;
	uint64_t n_cut; /* mappings whose PSS need not be whole KiB */
};

struct mapping {
	uint64_t bytes;
	bool is_private; /* MAP_PRIVATE */
	bool is_image;
	uint64_t device, inode;
	unsigned kind;
	uint64_t rss_kib, pss_kib, anonymous_kib, shared_kib;
};

struct reader {
	struct mb_footprint *footprint;
	unsigned n_views;
	struct sum sum[N_KINDS];
	struct mapping at; /* that lines are of */
	bool any;
};

static bool begins(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

static bool is_file(const char *path, const char *name)
{
	return begins(path, name) && (!path[strlen(name)] || !strcmp(path + strlen(name), DELETED));
}

/* A new origin, or the last one, of which nobody knows what it is, where there are too many. */
static unsigned add_origin(struct mb_footprint *f)
{
	if (f->n_origins < MB_FOOTPRINT_MAX_ORIGINS)
		return f->n_origins++;
	f->origin[MB_FOOTPRINT_MAX_ORIGINS - 1].tag[0] = '\0';
	f->origin[MB_FOOTPRINT_MAX_ORIGINS - 1].path[0] = '\0';
	return MB_FOOTPRINT_MAX_ORIGINS - 1;
}

/* The origin of a piece, made if need be: behind the name "-TAG". */
static unsigned origin_of(struct mb_footprint *f, const char *path)
{
	const char *tag = path + strlen(COMMONS);
	size_t len = strlen(tag), cut = strlen(DELETED);
	unsigned i;

	if (len >= cut && !strcmp(tag + len - cut, DELETED))
		len -= cut;
	if (len && *tag == '-') {
		tag++;
		len--;
	}
	len = len < MB_FOOTPRINT_TAG_LEN ? len : MB_FOOTPRINT_TAG_LEN - 1;
	for (i = 0; i < f->n_origins; i++)
		if (!f->origin[i].path[0] && strlen(f->origin[i].tag) == len &&
			!memcmp(f->origin[i].tag, tag, len))
			return SHARED + i;
	if (i < MB_FOOTPRINT_MAX_ORIGINS)
		memcpy(f->origin[i].tag, tag, len);
	return SHARED + add_origin(f);
}

static unsigned image_of(struct mb_footprint *f, const struct mapping *m, const char *path)
{
	size_t len = strlen(path);
	unsigned i;

	for (i = 0; i < f->n_origins; i++)
		if (f->origin[i].path[0] && f->origin[i].device == m->device &&
			f->origin[i].inode == m->inode)
			return SHARED + i;
	if (f->n_origins == MB_FOOTPRINT_MAX_ORIGINS)
		return SHARED + add_origin(f);
	i = add_origin(f);
	path += len < MB_FOOTPRINT_PATH_LEN ? 0 : len - (MB_FOOTPRINT_PATH_LEN - 1);
	snprintf(f->origin[i].path, sizeof(f->origin[i].path), "%s", path);
	f->origin[i].device = m->device;
	f->origin[i].inode = m->inode;
	return SHARED + i;
}

static unsigned kind_of(struct mb_footprint *f, const struct mapping *m, const char *path)
{
	if (m->is_image)
		return image_of(f, m, path);
	if (is_file(path, RAM_FD) || is_file(path, RAM))
		return PRIVATE;
	if (is_file(path, COPIES))
		return COPIES_OF;
	return begins(path, COMMONS) ? origin_of(f, path) : MONITOR;
}

/* The page table's entries of a page are ours and others', so many that its part is no whole KiB.
 */
static bool may_be_cut(const struct mapping *m)
{
	if (!m->shared_kib)
		return false;
	/* What only we have is mapped in one view, or two, or read by devices as well. */
	return m->kind >= SHARED || m->kind == MONITOR ||
	       (m->rss_kib != 2 * m->pss_kib && m->rss_kib != 4 * m->pss_kib);
}

/* Adds what is known of the mapping that lines were of. */
static void finish_mapping(struct reader *r)
{
	struct mapping *m = &r->at;
	uint64_t own_kib = m->kind < SHARED ? 0 : m->anonymous_kib;

	/* Written before that was trapped: it is a page of its own until it is that of the machine.
	 */
	own_kib = own_kib < m->pss_kib ? own_kib : m->pss_kib;
	r->sum[PRIVATE].pss_kib += own_kib;
	r->sum[m->kind].pss_kib += m->pss_kib - own_kib;
	r->sum[m->kind].n_cut += may_be_cut(m);
	/* Views map the commons privately; others, who only read, do not. Both map the same of an
	 * image. */
	if (m->is_image)
		r->footprint->origin[m->kind - SHARED].shared_bytes +=
			m->rss_kib * 1024 * r->n_views;
	else if (m->kind >= SHARED && m->is_private)
		r->footprint->origin[m->kind - SHARED].shared_bytes += m->bytes;
}

/* "7f00-7f10 rw-p 00000000 00:01 1042   /path with blanks" */
static bool is_head(const char *line, struct mapping *m, const char **path)
{
	unsigned long long start, end, offset, inode;
	unsigned major, minor;
	char flags[8];
	int n = -1;

	if (sscanf(line, "%llx-%llx %7s %llx %x:%x %llu %n", &start, &end, flags, &offset, &major,
		    &minor, &inode, &n) != 7 ||
		n < 0 || end <= start || strlen(flags) != 4)
		return false;
	*m = (struct mapping){
		.bytes = end - start,
		.is_private = flags[3] == 'p',
		.device = makedev(major, minor),
		.inode = inode,
	};
	*path = line + n;
	/* Nobody else maps a file so: its places are those of huge pages (ram_file.c). */
	m->is_image = !strcmp(flags, "r--s") && inode && !(start % MB_RAM_ALIGN) &&
		      !begins(*path, "/memfd:");
	return true;
}

/* "Pss:   12 kB" */
static void take_field(struct mapping *m, const char *line)
{
	static const struct {
		const char *name;
		size_t at;
	} fields[] = {
		{"Rss:", offsetof(struct mapping, rss_kib)},
		{"Pss:", offsetof(struct mapping, pss_kib)},
		{"Anonymous:", offsetof(struct mapping, anonymous_kib)},
		{"Shared_Clean:", offsetof(struct mapping, shared_kib)},
		{"Shared_Dirty:", offsetof(struct mapping, shared_kib)},
	};

	for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (begins(line, fields[i].name))
			*(uint64_t *)((char *)m + fields[i].at) +=
				strtoull(line + strlen(fields[i].name), NULL, 10);
}

static void read_lines(struct reader *r, FILE *smaps)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t n;

	while ((n = getline(&line, &room, smaps)) > 0) {
		struct mapping next;
		const char *path;

		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		if (!isxdigit((unsigned char)*line) || !is_head(line, &next, &path)) {
			take_field(&r->at, line);
			continue;
		}
		if (r->any)
			finish_mapping(r);
		next.kind = kind_of(r->footprint, &next, path);
		r->at = next;
		r->any = true;
	}
	if (r->any)
		finish_mapping(r);
	free(line);
}

static uint64_t pss_of(FILE *rollup)
{
	struct mapping all = {0};
	char line[256];

	while (fgets(line, sizeof(line), rollup))
		take_field(&all, line);
	return all.pss_kib;
}

/* What was cut off, in proportion to where it may have been; the rest is a change meanwhile. */
static void add_what_was_cut(struct reader *r, uint64_t pss_kib)
{
	uint64_t have = 0, n_cut = 0, lost;

	for (unsigned i = 0; i < N_KINDS; i++) {
		have += r->sum[i].pss_kib;
		n_cut += r->sum[i].n_cut;
	}
	lost = pss_kib > have ? pss_kib - have : 0;
	lost = lost < n_cut ? lost : n_cut;
	for (unsigned i = 0; i < N_KINDS && n_cut; i++) {
		uint64_t part = lost * r->sum[i].n_cut / n_cut;

		n_cut -= r->sum[i].n_cut;
		lost -= part;
		r->sum[i].pss_kib += part;
	}
}

int mb_footprint_parse(FILE *smaps, FILE *rollup, unsigned n_views, struct mb_footprint *footprint)
{
	struct reader r = {.footprint = footprint, .n_views = n_views ? n_views : 1};

	*footprint = (struct mb_footprint){0};
	read_lines(&r, smaps);
	if (!r.any)
		return -EBADMSG;
	if (rollup)
		add_what_was_cut(&r, pss_of(rollup));
	footprint->private_bytes = r.sum[PRIVATE].pss_kib * 1024;
	footprint->copies_bytes = r.sum[COPIES_OF].pss_kib * 1024;
	footprint->monitor_bytes = r.sum[MONITOR].pss_kib * 1024;
	for (unsigned i = 0; i < footprint->n_origins; i++) {
		struct mb_footprint_origin *o = &footprint->origin[i];

		o->pss_bytes = r.sum[SHARED + i].pss_kib * 1024;
		o->shared_bytes /= r.n_views;
		footprint->shared_pss_bytes += o->pss_bytes;
		footprint->shared_bytes += o->shared_bytes;
	}
	footprint->pss_bytes = footprint->private_bytes + footprint->copies_bytes +
			       footprint->monitor_bytes + footprint->shared_pss_bytes;
	return 0;
}

static FILE *open_of(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	return fopen(path, "re");
}

int mb_footprint_read(
	pid_t pid, unsigned n_views, struct mb_footprint *footprint, struct mb_error *err)
{
	FILE *smaps = open_of(pid, "smaps"), *rollup;
	int rc = smaps ? 0 : errno == ENOENT ? ESRCH : errno;

	if (rc)
		return mb_error_set(err, rc, "/proc/%d/smaps cannot be read: %s", (int)pid,
			rc == EACCES || rc == EPERM
				? "the machine is another user's, or its program has capabilities "
				  "that this one has not"
				: strerror(rc));
	rollup = open_of(pid, "smaps_rollup");
	rc = mb_footprint_parse(smaps, rollup, n_views, footprint);
	fclose(smaps);
	if (rollup)
		fclose(rollup);
	return rc ? mb_error_set(err, -rc, "/proc/%d/smaps tells of no mapping", (int)pid) : 0;
}
