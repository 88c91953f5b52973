// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/fs.h>
#include <mirrorball/blk.h>
#include <mirrorball/content.h>
#include <mirrorball/json.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const console_names[] = {
	[MB_CONSOLE_SERIAL] = "serial",
	[MB_CONSOLE_VIRTIO] = "virtio",
	[MB_CONSOLE_OFF] = "off",
};

static const char *const track_names[] = {
	[MB_TRACK_AUTO] = "auto",
	[MB_TRACK_ON] = "on",
	[MB_TRACK_OFF] = "off",
};
static const char *const track_texts[] = {
	[MB_TRACK_AUTO] = "where memory migrates, and while somebody watches",
	[MB_TRACK_ON] = "always",
	[MB_TRACK_OFF] = "never",
};

static const char *const migrate_texts[] = {
	[MB_MIGRATE_AUTO] = "between NUMA nodes, if vCPUs are on several",
	[MB_MIGRATE_ON] = "between NUMA nodes, if there are several",
	[MB_MIGRATE_OFF] = "never",
	[MB_MIGRATE_STORM] = "between NUMA nodes, at random",
};

static const char *const migrate_names[] = {
	[MB_MIGRATE_AUTO] = "auto",
	[MB_MIGRATE_ON] = "on",
	[MB_MIGRATE_OFF] = "off",
	[MB_MIGRATE_STORM] = "storm",
};

/* As it would be written on the command line. */
static void placement_text(const struct mb_machine_config *c, char *text, size_t size)
{
	char ids[128];

	if (c->placement != MB_PLACE_NODES) {
		snprintf(text, size, "%s", mb_place_kind_name(c->placement));
		return;
	}
	mb_node_ids_format(&c->placement_nodes, ids, sizeof(ids));
	snprintf(text, size, "nodes=%s", ids);
}

static uint64_t file_bytes(const char *path)
{
	struct stat st;
	uint64_t bytes = 0;

	if (stat(path, &st))
		return 0;
	if (S_ISBLK(st.st_mode)) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd >= 0) {
			if (ioctl(fd, BLKGETSIZE64, &bytes))
				bytes = 0;
			close(fd);
		}
		return bytes;
	}
	return (uint64_t)st.st_size;
}

static bool has_mac(const struct mb_nic_config *nic)
{
	static const uint8_t zero[6];

	return memcmp(nic->mac, zero, 6);
}

static void mac_text(const struct mb_nic_config *nic, char text[18])
{
	const uint8_t *m = nic->mac;

	snprintf(text, 18, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
}

/* What others have chosen, on one line of the table. */
static void show_text(const char *before, const char *text)
{
	fputs(before, stdout);
	for (;;) {
		size_t n = mb_error_printable_bytes(text);

		fwrite(text, 1, n, stdout);
		text += n;
		if (!*text)
			return;
		putchar('?');
		text++;
	}
}

static void show_row(const char *label, const char *text)
{
	printf("%-10s", label);
	show_text("", text);
	putchar('\n');
}

static void show_file(const char *label, const char *path)
{
	printf("%-10s", label);
	show_text("", path);
	printf(", %llu KiB\n", (unsigned long long)(file_bytes(path) + 1023) >> 10);
}

/* What is left to the machine depends on the host, too. */
static bool may_migrate(const struct mb_machine_config *c)
{
	return mb_machine_decides_on_migration(c) ||
	       (c->track == MB_TRACK_ON && c->migrate != MB_MIGRATE_OFF);
}

static void show_migrated(const struct mb_machine_config *c)
{
	enum mb_migrate shown = may_migrate(c) ? c->migrate : MB_MIGRATE_OFF;

	if (shown == MB_MIGRATE_AUTO && c->track == MB_TRACK_ON)
		shown = MB_MIGRATE_ON;
	printf("%-10s%s\n", "migrated", migrate_texts[shown]);
}

/* Of a file its own, which is not its disk's where that is an overlay's. */
static uint64_t disk_bytes(const struct cli_run *run, unsigned i)
{
	const char *path = run->config.disk[i].path;

	return mb_blk_is_uri(path) ? run->disk[i].bytes : file_bytes(path);
}

static const char *disk_way(const struct mb_disk_config *d)
{
	if (mb_blk_is_uri(d->path))
		return "network";
	return d->buffered ? "buffered I/O" : "direct I/O";
}

/* What becomes of what the guest writes. */
static const char *disk_writes(const struct mb_disk_config *d)
{
	if (d->overlay)
		return "changes kept in";
	if (!d->cow)
		return d->readonly ? "read-only" : "writable";
	if (!d->cow_dir)
		return "changes gone at the end";
	return *d->cow_dir ? "changes gone at the end, until then in"
			   : "changes in memory, gone at the end";
}

static bool has_base(const struct mb_machine_config *c)
{
	bool has = false;

	for (unsigned i = 0; i < c->n_disks; i++)
		has |= c->disk[i].cow || c->disk[i].overlay;
	return has;
}

static void show_copied(const struct mb_machine_config *c)
{
	char size[32];

	cli_format_size(c->replica_bytes, size, sizeof(size));
	if (!c->replica_bytes || !may_migrate(c) || c->n_views == 1 ||
		(c->migrate == MB_MIGRATE_STORM && c->replica_bytes == MB_REPLICAS_AUTO))
		show_row("copied", "never");
	else if (c->replica_bytes != MB_REPLICAS_AUTO)
		show_row("copied", size);
	else
		show_row("copied", "up to a quarter of it, if each NUMA node has a view");
}

static void show_table(const struct cli_run *run, const struct mb_host *host)
{
	const struct mb_machine_config *c = &run->config;
	char size[32], place[160];

	show_row("name", c->name);
	if (c->kernel_path) {
		show_file("kernel", c->kernel_path);
		if (c->initrd_path)
			show_file("initrd", c->initrd_path);
		if (*c->cmdline)
			show_row("append", c->cmdline);
	} else {
		show_row("splash", c->splash);
	}
	cli_format_size(c->memory_bytes, size, sizeof(size));
	printf("%-10s%u\n%-10s%s%s\n", "vCPUs", c->n_vcpus, "memory", size,
		run->overcommit ? ", may be more than the host has" : "");
	if (c->n_views)
		printf("%-10s%u (the host has %u)\n", "views", c->n_views, host->n_views);
	else
		printf("%-10sauto (the host has %u)\n", "views", host->n_views);
	printf("%-10s%s\n", "tracked", track_texts[c->track]);
	show_migrated(c);
	placement_text(c, place, sizeof(place));
	show_row("placement", place);
	show_copied(c);
	if (has_base(c))
		show_row("shared", c->no_share ? "never" : "what it reads of the disks' bases");
	if (c->trust_group && !c->no_share)
		show_row("group", c->trust_group);
	for (unsigned i = 0; i < c->n_disks; i++) {
		const struct mb_disk_config *d = &c->disk[i];
		unsigned n_queues = run->disk[i].n_queues;

		cli_format_size(disk_bytes(run, i), size, sizeof(size));
		printf("disk %-5u", i);
		show_text("", d->path);
		printf(", %s, %s", size, disk_writes(d));
		if (d->overlay || (d->cow_dir && *d->cow_dir))
			show_text(" ", d->overlay ? d->overlay : d->cow_dir);
		printf(", %s, %u queue%s%s%s\n", disk_way(d), n_queues, n_queues == 1 ? "" : "s",
			d->serial ? ", serial " : "", d->serial ? d->serial : "");
	}
	for (unsigned i = 0; i < c->n_pmems; i++) {
		cli_format_size(run->pmem[i].bytes, size, sizeof(size));
		printf("pmem %-5u", i);
		show_text("", c->pmem[i]);
		printf(", %s at %#llx, read-only\n", size, (unsigned long long)run->pmem[i].gpa);
	}
	for (unsigned i = 0; i < c->n_nics; i++) {
		const struct mb_nic_config *n = &c->nic[i];
		char mac[18] = "from name";

		if (has_mac(n))
			mac_text(n, mac);
		printf("net %-6u", i);
		if (n->tap_name)
			show_text("tap ", n->tap_name);
		else if (n->passt)
			printf("passt");
		else
			printf("tap descriptor %d", n->tap_fd);
		for (const char *const *arg = n->passt_args; arg && *arg; arg++)
			show_text(" ", *arg);
		printf(", MAC %s, %u queue pair%s\n", mac, n->n_pairs, n->n_pairs == 1 ? "" : "s");
	}
	show_row("freed", c->no_reporting ? "stays the guest's" : "goes back to the host");
	printf("%-10s%s\n%-10s%s\n", "console", console_names[c->console], "reset",
		c->no_reboot ? "ends the machine" : "starts it again");
}

static json_t *text_or_null(const char *text)
{
	/* A path that is not UTF-8 cannot be a JSON string. */
	json_t *value = text ? json_string(text) : json_null();

	return value ? value : json_null();
}

static json_t *guest_json(const struct mb_machine_config *c, int *rc)
{
	json_t *guest = json_object();

	mb_json_put(guest, "kind", json_string(c->kernel_path ? "kernel" : "splash"), rc);
	if (c->kernel_path) {
		mb_json_put(guest, "kernel", text_or_null(c->kernel_path), rc);
		mb_json_put(guest, "initrd", text_or_null(c->initrd_path), rc);
		mb_json_put(guest, "append", text_or_null(c->cmdline), rc);
	} else {
		mb_json_put(guest, "command", text_or_null(c->splash), rc);
	}
	return guest;
}

static json_t *disk_json(const struct cli_run *run, unsigned i, int *rc)
{
	const struct mb_disk_config *d = &run->config.disk[i];
	json_t *disk = json_object();

	mb_json_put(disk, "path", text_or_null(d->path), rc);
	mb_json_put(disk, "size_bytes", json_integer((json_int_t)disk_bytes(run, i)), rc);
	mb_json_put(disk, "readonly", json_boolean(d->readonly), rc);
	mb_json_put(disk, "cow", json_boolean(d->cow), rc);
	mb_json_put(disk, "cow_dir", text_or_null(d->cow_dir), rc);
	mb_json_put(disk, "overlay", text_or_null(d->overlay), rc);
	mb_json_put(disk, "direct", json_boolean(!d->buffered), rc);
	mb_json_put(disk, "serial", text_or_null(d->serial), rc);
	mb_json_put(disk, "queues", json_integer(run->disk[i].n_queues), rc);
	return disk;
}

static json_t *pmem_json(const struct cli_run *run, unsigned i, int *rc)
{
	json_t *pmem = json_object();

	mb_json_put(pmem, "path", text_or_null(run->config.pmem[i]), rc);
	mb_json_put(pmem, "address", json_integer((json_int_t)run->pmem[i].gpa), rc);
	mb_json_put(pmem, "size_bytes", json_integer((json_int_t)run->pmem[i].bytes), rc);
	return pmem;
}

static json_t *net_json(const struct mb_nic_config *n, int *rc)
{
	json_t *net = json_object(), *args = json_array();
	char mac[18];

	mac_text(n, mac);
	for (const char *const *arg = n->passt_args; arg && *arg; arg++)
		if (json_array_append_new(args, text_or_null(*arg)))
			*rc = -ENOMEM;
	mb_json_put(net, "kind",
		json_string(n->passt	  ? "passt"
			    : n->tap_name ? "tap"
					  : "tap-fd"),
		rc);
	mb_json_put(net, "tap", text_or_null(n->tap_name), rc);
	mb_json_put(net, "tap_fd", n->tap_fd >= 0 ? json_integer(n->tap_fd) : json_null(), rc);
	mb_json_put(net, "passt_args", args, rc);
	mb_json_put(net, "mac", has_mac(n) ? json_string(mac) : json_null(), rc);
	mb_json_put(net, "queues", json_integer(n->n_pairs), rc);
	return net;
}

static int show_json(const struct cli_run *run, const struct mb_host *host)
{
	const struct mb_machine_config *c = &run->config;
	json_t *root = json_object(), *disks = json_array(), *nets = json_array();
	json_t *pmems = json_array();
	char place[160];
	int rc = 0;

	placement_text(c, place, sizeof(place));
	for (unsigned i = 0; i < c->n_disks; i++)
		if (json_array_append_new(disks, disk_json(run, i, &rc)))
			rc = -ENOMEM;
	for (unsigned i = 0; i < c->n_pmems; i++)
		if (json_array_append_new(pmems, pmem_json(run, i, &rc)))
			rc = -ENOMEM;
	for (unsigned i = 0; i < c->n_nics; i++)
		if (json_array_append_new(nets, net_json(&c->nic[i], &rc)))
			rc = -ENOMEM;
	mb_json_put(root, "format", json_integer(1), &rc);
	mb_json_put(root, "name", text_or_null(c->name), &rc);
	mb_json_put(root, "guest", guest_json(c, &rc), &rc);
	mb_json_put(root, "vcpus", json_integer(c->n_vcpus), &rc);
	mb_json_put(root, "memory_bytes", json_integer((json_int_t)c->memory_bytes), &rc);
	mb_json_put(root, "memory_overcommit", json_boolean(run->overcommit), &rc);
	mb_json_put(
		root, "views", c->n_views ? json_integer(c->n_views) : json_string("auto"), &rc);
	mb_json_put(root, "host_views", json_integer(host->n_views), &rc);
	mb_json_put(root, "track", json_string(track_names[c->track]), &rc);
	mb_json_put(root, "migrate", json_string(migrate_names[c->migrate]), &rc);
	mb_json_put(root, "placement", json_string(place), &rc);
	mb_json_put(root, "replica_bytes",
		c->replica_bytes == MB_REPLICAS_AUTO ? json_string("auto")
						     : json_integer((json_int_t)c->replica_bytes),
		&rc);
	mb_json_put(root, "share", json_boolean(!c->no_share), &rc);
	mb_json_put(root, "trust_group", c->trust_group ? json_string(c->trust_group) : json_null(),
		&rc);
	mb_json_put(root, "content_ppm",
		c->content_ppm == MB_CONTENT_OFF ? json_string("off")
		: c->content_ppm		 ? json_integer(c->content_ppm)
						 : json_string("auto"),
		&rc);
	mb_json_put(root, "disks", disks, &rc);
	mb_json_put(root, "pmems", pmems, &rc);
	mb_json_put(root, "nets", nets, &rc);
	mb_json_put(root, "console", json_string(console_names[c->console]), &rc);
	mb_json_put(root, "free_page_reporting", json_boolean(!c->no_reporting), &rc);
	mb_json_put(root, "reboot", json_boolean(!c->no_reboot), &rc);
	mb_json_put(root, "quiet", json_boolean(c->quiet), &rc);
	if (!rc)
		rc = cli_print_json(root);
	json_decref(root);
	return rc;
}

int cli_run_show(const struct cli_run *run, const struct mb_host *host, struct mb_error *err)
{
	if (run->json) {
		int rc = show_json(run, host);

		return rc ? mb_error_set(err, -rc, "--json: %s", strerror(-rc)) : 0;
	}
	show_table(run, host);
	return 0;
}
