// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "guard.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/blk.h>
#include <mirrorball/content.h>
#include <mirrorball/ram.h>
#include <mirrorball/splash.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define MEMORY_MIN     (16ull << 20)
#define MEMORY_DEFAULT (512ull << 20)
#define VCPUS_DEFAULT  4u
#define DISK_QUEUES    8u /* machine.h: one a vCPU, up to 8 */
/* A KVM memslot has at most 2^31 - 1 pages (KVM_MEM_MAX_NR_PAGES); RAM above 4 GiB is one. */
#define MEMORY_MAX (8ull << 40)

enum {
	HEAD_GUEST,
	OPT_KERNEL,
	OPT_INITRD,
	OPT_APPEND,
	OPT_NO_REBOOT,
	HEAD_SIZE,
	OPT_CPUS,
	OPT_MEMORY,
	OPT_OVERCOMMIT,
	OPT_VIEWS,
	OPT_TRACK,
	OPT_MIGRATE,
	OPT_REPLICAS,
	OPT_SHARE,
	OPT_TRUST_GROUP,
	OPT_CONTENT_BUDGET,
	OPT_PLACEMENT,
	OPT_NAME,
	HEAD_DEVICES,
	OPT_DISK,
	OPT_PMEM,
	OPT_NET,
	OPT_CONSOLE,
	OPT_REPORTING,
	HEAD_COMMAND,
	OPT_DRY_RUN,
	OPT_JSON,
	OPT_QUIET,
	OPT_HELP,
	OPT_VERSION,
	N_OPTIONS,
};

const struct cli_option cli_run_options[] = {
	[HEAD_GUEST] = {NULL, NULL, "Guest"},
	[OPT_KERNEL] = {"kernel", "FILE", "Linux bzImage, or ELF vmlinux with a PVH entry"},
	[OPT_INITRD] = {"initrd", "FILE", "initial RAM disk for --kernel"},
	[OPT_APPEND] = {"append", "TEXT",
		"kernel command line; a console= that fits --console is put in front"},
	[OPT_NO_REBOOT] = {"no-reboot", NULL,
		"a guest that resets itself ends with status 5 instead of starting again"},
	[HEAD_SIZE] = {NULL, NULL, "Size and place"},
	[OPT_CPUS] = {"cpus", "N", "vCPUs (default: one for each host CPU, at most 4)"},
	[OPT_MEMORY] = {"memory", "SIZE",
		"guest memory, a multiple of 2M, at least 16M, as 512M or 16G (default: 512M)"},
	[OPT_OVERCOMMIT] = {"memory-overcommit", NULL,
		"allow more than the host has; the guest must not touch it all"},
	[OPT_VIEWS] = {"views", "N|auto",
		"views of guest memory; auto: one for each NUMA node that it is on, as far as the "
		"host has them, where it is tracked, and otherwise 1 (default: auto)"},
	[OPT_TRACK] = {"track", "auto|on|off[,budget=PERCENT]",
		"count which view touches and writes which memory; auto: where memory migrates, "
		"and "
		"while 'mirrorball heat' watches. budget: of the guest's time (default: "
		"auto,budget=0.5)"},
	[OPT_MIGRATE] = {"migrate", "auto|on|off|storm",
		"move memory to the NUMA node that uses it; auto: where vCPUs are on several "
		"nodes; "
		"on: tracks, too; storm: anywhere, all the time, to test Mirrorball. Does nothing "
		"on "
		"a host with one node (default: auto)"},
	[OPT_REPLICAS] = {"replicas", "auto|off|SIZE|PERCENT%",
		"memory for copies of pages that several views read, one for each; so much, or "
		"percent of --memory: tracks and migrates, too. auto: 25% where memory migrates "
		"and "
		"each node has a view (default: auto)"},
	[OPT_SHARE] = {"share", "on|off",
		"what the guest has read of a disk's base (cow, overlay) is in memory once for all "
		"machines of this user (default: on)"},
	[OPT_TRUST_GROUP] = {"trust-group", "NAME",
		"pages that are equal are in memory once for all machines of this user in this "
		"group, "
		"wherever they came from: they can tell by time what the others have (default: "
		"none)"},
	[OPT_CONTENT_BUDGET] = {"content-budget", "PERCENT|off",
		"of one CPU, for looking through memory for pages of zeroes, which go back to the "
		"host, and for what a trust group shares (default: 2 with a trust group or a base "
		"of a "
		"disk, and otherwise off)"},
	[OPT_PLACEMENT] = {"placement", "auto|nodes=LIST|spread|none",
		"NUMA nodes of the host for vCPUs and memory. auto: the fewest that hold them, by "
		"free memory and load, and others when they are overloaded; nodes: these, as "
		"0,2-3; "
		"spread: all, memory by turns; none: wherever Linux puts them (default: auto)"},
	[OPT_NAME] = {"name", "NAME",
		"in messages and for MAC addresses (default: from the first writable disk's file)"},
	[HEAD_DEVICES] = {NULL, NULL, "Devices"},
	[OPT_DISK] = {"disk", "PATH[,ro|cow|overlay=FILE][,direct=on|off][,serial=S][,queues=N]",
		"raw disk image or block device, or nbd://HOST/EXPORT and other NBD URIs; up to 16 "
		"times. ro: read-only. cow: PATH stays as it is, what the guest changes is gone at "
		"the end (cow=DIR|memory: where it is kept "
		"until "
		"then). overlay: PATH stays as it is, changes are kept in FILE. direct: bypass the "
		"host's page cache where possible (default: on). serial: up to 20 characters "
		"(default: from PATH). queues: 1 to 64 (default: one a vCPU, at most 8). Write a "
		"comma in PATH twice"},
	[OPT_PMEM] = {"pmem", "FILE",
		"image that is memory of the guest (virtio-pmem), read-only, for file systems that "
		"are mounted with dax: all machines have one copy of it, and the guest none; up to "
		"4 times"},
	[OPT_NET] = {"net", "tap=NAME|tap-fd=N|passt[,mac=M][,queues=N][,arg=A]",
		"network interface; up to 8 times. tap: an interface of the host, with queues "
		"pairs of queues, 1 to 64 (default: 1). tap-fd: an open tap descriptor. passt: a "
		"network without privilege; arg, repeatable, is an argument for passt(1). mac: "
		"default derived from --name"},
	[OPT_CONSOLE] = {"console", "KIND", "serial, virtio or off (default: serial)"},
	[OPT_REPORTING] = {"free-page-reporting", "on|off",
		"memory that the guest frees goes back to the host until it is used again: a "
		"virtio "
		"balloon, through which Linux tells of it (default: on)"},
	[HEAD_COMMAND] = {NULL, NULL, "This command"},
	[OPT_DRY_RUN] = {"dry-run", NULL,
		"build the machine, open its files, print what it is, and do not start it"},
	[OPT_JSON] = {"json", NULL, "with --dry-run: print JSON"},
	[OPT_QUIET] = {"quiet", NULL, "no hint about the escape key, no closing line"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

static bool repeatable(int index)
{
	return index == OPT_DISK || index == OPT_NET || index == OPT_PMEM;
}

/* A copy that lives as long as run, for values that are parsed in place. */
static char *copy_value(struct cli_run *run, const char *value)
{
	char *copy = strdup(value);

	if (copy)
		run->copies[run->n_copies++] = copy;
	return copy;
}

static int set_memory(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	char low[32], high[32];
	uint64_t bytes, rest;
	int rc = cli_parse_size(value, &bytes, err);

	if (rc)
		return rc;
	if (bytes < MEMORY_MIN) {
		bool unit = value[strspn(value, "0123456789")];

		return mb_error_set(err, ERANGE, "%s%s is less than the minimum of 16M%s", value,
			unit || !bytes ? "" : " bytes",
			unit || !bytes ? "" : "; write K, M, G or T after the number");
	}
	if (bytes > MEMORY_MAX)
		return mb_error_set(
			err, ERANGE, "%s is more than the 8T that a machine can have", value);
	rest = bytes % MB_RAM_ALIGN;
	if (rest) {
		cli_format_size(bytes - rest, low, sizeof(low));
		cli_format_size(bytes - rest + MB_RAM_ALIGN, high, sizeof(high));
		return mb_error_set(err, EINVAL,
			"%s is not a multiple of 2M (the size of a huge page); use %s or %s", value,
			low, high);
	}
	config->memory_bytes = bytes;
	return 0;
}

static int set_disk(struct cli_run *run, const char *value, struct mb_error *err)
{
	struct mb_machine_config *config = &run->config;
	char *copy;
	int rc;

	if (config->n_disks == MB_MAX_DISKS)
		return mb_error_set(err, E2BIG, "more than %d disks", MB_MAX_DISKS);
	copy = copy_value(run, value);
	if (!copy)
		return mb_error_set(err, ENOMEM, "out of memory");
	rc = cli_parse_disk(copy, &config->disk[config->n_disks], err);
	if (rc)
		return mb_error_prefix(err, rc, "%s", value);
	config->n_disks++;
	return 0;
}

static int set_pmem(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	if (config->n_pmems == MB_MAX_PMEMS)
		return mb_error_set(err, E2BIG, "more than %d images", MB_MAX_PMEMS);
	if (!*value)
		return mb_error_set(err, EINVAL, "the file has no name");
	if (mb_blk_is_uri(value))
		return mb_error_set(err, EINVAL,
			"%s: is on the network; memory of a guest is a file or block device",
			value);
	config->pmem[config->n_pmems++] = value;
	return 0;
}

static int set_net(struct cli_run *run, const char *value, struct mb_error *err)
{
	struct mb_machine_config *config = &run->config;
	char *copy;
	int rc;

	if (config->n_nics == MB_MAX_NETS)
		return mb_error_set(err, E2BIG, "more than %d network interfaces", MB_MAX_NETS);
	copy = copy_value(run, value);
	if (!copy)
		return mb_error_set(err, ENOMEM, "out of memory");
	rc = cli_parse_net(
		copy, run->passt_args[config->n_nics], &config->nic[config->n_nics], err);
	if (rc)
		return mb_error_prefix(err, rc, "%s", value);
	config->n_nics++;
	return 0;
}

static int set_console(struct cli_run *run, const char *value, struct mb_error *err)
{
	if (!strcmp(value, "serial"))
		run->config.console = MB_CONSOLE_SERIAL;
	else if (!strcmp(value, "virtio"))
		run->config.console = MB_CONSOLE_VIRTIO;
	else if (!strcmp(value, "off"))
		run->config.console = MB_CONSOLE_OFF;
	else
		return mb_error_set(
			err, EINVAL, "'%s' is not a console; serial, virtio or off", value);
	return 0;
}

static int set_reporting(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	config->no_reporting = !strcmp(value, "off");
	if (config->no_reporting || !strcmp(value, "on"))
		return 0;
	return mb_error_set(err, EINVAL, "'%s': on or off", value);
}

static int set_track(struct cli_run *run, const char *value, struct mb_error *err)
{
	char copy[64];

	if (strlen(value) >= sizeof(copy))
		return mb_error_set(err, EINVAL, "'%.20s...': auto, on or off", value);
	snprintf(copy, sizeof(copy), "%s", value);
	return cli_parse_track(copy, &run->config, err);
}

static int set_migrate(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	if (!strcmp(value, "auto"))
		config->migrate = MB_MIGRATE_AUTO;
	else if (!strcmp(value, "on"))
		config->migrate = MB_MIGRATE_ON;
	else if (!strcmp(value, "off"))
		config->migrate = MB_MIGRATE_OFF;
	else if (!strcmp(value, "storm"))
		config->migrate = MB_MIGRATE_STORM;
	else
		return mb_error_set(err, EINVAL, "'%s': auto, on, off or storm", value);
	return 0;
}

/* Percent are of a size that may come later. */
static int set_replicas(struct cli_run *run, const char *value, struct mb_error *err)
{
	size_t len = strlen(value);
	char digits[8];

	run->replica_percent = 0;
	run->config.replica_bytes = 0;
	if (!strcmp(value, "off"))
		return 0;
	if (!strcmp(value, "auto")) {
		run->config.replica_bytes = MB_REPLICAS_AUTO;
		return 0;
	}
	if (!len || value[len - 1] != '%')
		return cli_parse_size(value, &run->config.replica_bytes, err);
	if (len > sizeof(digits))
		return mb_error_set(err, ERANGE, "'%.20s': 1%% to 800%% are possible", value);
	memcpy(digits, value, len - 1);
	digits[len - 1] = 0;
	return cli_parse_unsigned(digits, 1, 800, &run->replica_percent, err);
}

static int set_share(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	config->no_share = !strcmp(value, "off");
	return config->no_share || !strcmp(value, "on")
		       ? 0
		       : mb_error_set(err, EINVAL, "'%s': on or off", value);
}

static int set_trust_group(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	config->trust_group = value;
	if (strlen(value) > MB_CONTENT_GROUP_MAX)
		return mb_error_set(err, EINVAL, "'%.20s...': a group's name has at most %u characters",
			value, MB_CONTENT_GROUP_MAX);
	return cli_parse_name(value, err);
}

static int set_content_budget(
	struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	double percent;
	char *end;

	config->content_ppm = MB_CONTENT_OFF;
	if (!strcmp(value, "off"))
		return 0;
	percent = strtod(value, &end);
	if (end == value || *end || !(percent >= 0.01 && percent <= 100))
		return mb_error_set(err, EINVAL, "'%.20s': off, or 0.01 to 100 percent", value);
	config->content_ppm = (uint32_t)(percent * 10000 + 0.5);
	return 0;
}

static int set_placement(struct mb_machine_config *config, const char *value, struct mb_error *err)
{
	int rc;

	if (!strncmp(value, "nodes=", 6)) {
		config->placement = MB_PLACE_NODES;
		rc = mb_node_ids_parse(value + 6, &config->placement_nodes);
		if (rc == -ERANGE)
			return mb_error_set(err, ERANGE, "'%s': Linux has no nodes above %u", value,
				MB_MAX_NODE_ID);
		return rc ? mb_error_set(err, -rc, "'%s': nodes are a list as nodes=0,2-3", value)
			  : 0;
	}
	for (unsigned kind = MB_PLACE_AUTO; kind <= MB_PLACE_NONE; kind++) {
		if (kind == MB_PLACE_NODES || strcmp(value, mb_place_kind_name(kind)))
			continue;
		config->placement = kind;
		return 0;
	}
	return mb_error_set(err, EINVAL, "'%s': auto, nodes=LIST, spread or none", value);
}

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct cli_run *run = ctx;
	struct mb_machine_config *config = &run->config;

	switch (index) {
	case OPT_KERNEL:
		config->kernel_path = value;
		break;
	case OPT_INITRD:
		config->initrd_path = value;
		break;
	case OPT_APPEND:
		config->cmdline = value;
		break;
	case OPT_NO_REBOOT:
		config->no_reboot = true;
		break;
	case OPT_CPUS:
		return cli_parse_unsigned(value, 1, MB_MAX_VCPUS, &config->n_vcpus, err);
	case OPT_MEMORY:
		return set_memory(config, value, err);
	case OPT_OVERCOMMIT:
		run->overcommit = true;
		break;
	case OPT_VIEWS:
		config->n_views = 0;
		return strcmp(value, "auto")
			       ? cli_parse_unsigned(value, 1, 64, &config->n_views, err)
			       : 0;
	case OPT_TRACK:
		return set_track(run, value, err);
	case OPT_MIGRATE:
		return set_migrate(config, value, err);
	case OPT_REPLICAS:
		return set_replicas(run, value, err);
	case OPT_SHARE:
		return set_share(config, value, err);
	case OPT_TRUST_GROUP:
		return set_trust_group(config, value, err);
	case OPT_CONTENT_BUDGET:
		return set_content_budget(config, value, err);
	case OPT_PLACEMENT:
		return set_placement(config, value, err);
	case OPT_NAME:
		config->name = value;
		return cli_parse_name(value, err);
	case OPT_DISK:
		return set_disk(run, value, err);
	case OPT_PMEM:
		return set_pmem(config, value, err);
	case OPT_NET:
		return set_net(run, value, err);
	case OPT_CONSOLE:
		return set_console(run, value, err);
	case OPT_REPORTING:
		return set_reporting(config, value, err);
	case OPT_DRY_RUN:
		run->dry_run = true;
		break;
	case OPT_JSON:
		run->json = true;
		break;
	case OPT_QUIET:
		config->quiet = true;
		break;
	case OPT_HELP:
		run->help = true;
		break;
	case OPT_VERSION:
		run->version = true;
		break;
	}
	return 0;
}

/* The program that a word names; what is wrong with the word in err. */
static int check_program(const char *word, struct mb_error *err)
{
	const char *names[64], *near;
	char list[256] = "";
	unsigned n = 0;

	for (const struct mb_splash_program *p = mb_splash_programs; p->name; p++) {
		size_t len = strlen(list);

		if (word && !strcmp(word, p->name))
			return 0;
		if (n < 63)
			names[n++] = p->name;
		snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "", p->name);
	}
	names[n] = NULL;
	if (!word)
		return mb_error_set(err, EINVAL, "splash: no program named; there are %s", list);
	near = cli_nearest(word, names);
	if (near)
		return mb_error_set(
			err, EINVAL, "splash: no program '%s'; did you mean '%s'?", word, near);
	return mb_error_set(err, EINVAL, "splash: no program '%s'; there are %s", word, list);
}

/* The words after the options: nothing, or "splash PROGRAM ARG...". */
static int parse_words(struct cli_run *run, int argc, char **argv, struct mb_error *err)
{
	size_t len = 0;
	int rc;

	if (strcmp(argv[0], "splash")) {
		const char *hint =
			access(argv[0], F_OK) ? "" : "; for a kernel write --kernel in front";

		return mb_error_set(err, EINVAL,
			"unexpected word '%s'; a guest is --kernel FILE or splash PROGRAM%s",
			argv[0], hint);
	}
	if (run->config.kernel_path)
		return mb_error_set(
			err, EINVAL, "--kernel and splash are both given; a machine has one guest");
	if (argc == 2 && !strcmp(argv[1], "--list")) {
		run->list = true;
		return 0;
	}
	rc = check_program(argc > 1 ? argv[1] : NULL, err);
	if (rc)
		return rc;
	for (int i = 1; i < argc; i++) {
		int n = snprintf(run->splash + len, sizeof(run->splash) - len, "%s%s",
			i > 1 ? " " : "", argv[i]);

		if (n < 0 || (size_t)n >= sizeof(run->splash) - len)
			return mb_error_set(err, E2BIG,
				"splash: its command line is longer than %zu bytes",
				sizeof(run->splash) - 1);
		len += (size_t)n;
	}
	run->config.splash = run->splash;
	return 0;
}

static bool makes_replicas(const struct cli_run *run)
{
	const uint64_t bytes = run->config.replica_bytes;

	return (bytes && bytes != MB_REPLICAS_AUTO) || run->replica_percent;
}

static bool must_track(const struct cli_run *run)
{
	const struct mb_machine_config *config = &run->config;

	return makes_replicas(run) || config->migrate == MB_MIGRATE_ON ||
	       config->migrate == MB_MIGRATE_STORM;
}

/* A file that is written is written by one, and read by nobody else. */
static bool check_both_disks(
	const struct mb_disk_config *a, const struct mb_disk_config *b, struct mb_error *err)
{
	bool a_writes = !a->readonly && !a->cow && !a->overlay;
	bool b_writes = !b->readonly && !b->cow && !b->overlay;
	const char *twice = NULL;

	if (!strcmp(a->path, b->path) && (a_writes || b_writes))
		twice = a->path;
	else if (a->overlay &&
		 (!strcmp(a->overlay, b->path) || (b->overlay && !strcmp(a->overlay, b->overlay))))
		twice = a->overlay;
	else if (b->overlay && !strcmp(b->overlay, a->path))
		twice = b->overlay;
	if (twice)
		mb_error_set(err, EINVAL,
			"--disk %s is given twice; only what is ro, cow or the base of an overlay "
			"both times can be",
			twice);
	return !twice;
}

static bool is_written(const struct mb_machine_config *config, const char *path)
{
	for (unsigned i = 0; i < config->n_disks; i++) {
		const struct mb_disk_config *d = &config->disk[i];

		if (!d->readonly && !d->cow && !d->overlay && !strcmp(d->path, path))
			return true;
	}
	return false;
}

/* Options that mean nothing without, or contradict, another one: said instead of ignored. */
static int check_conflicts(const struct cli_run *run, struct mb_error *err)
{
	const struct mb_machine_config *config = &run->config;

	if (config->initrd_path && !config->kernel_path)
		return mb_error_set(err, EINVAL, "--initrd: there is no --kernel that it is for");
	if (config->cmdline && !config->kernel_path)
		return mb_error_set(err, EINVAL, "--append: there is no --kernel that it is for%s",
			config->splash ? "; splash takes its arguments after the program" : "");
	if (makes_replicas(run) && config->migrate == MB_MIGRATE_OFF)
		return mb_error_set(
			err, EINVAL, "--replicas and --migrate off: the same decides of both");
	if (must_track(run) && config->track == MB_TRACK_OFF)
		return mb_error_set(err, EINVAL,
			"--migrate or --replicas, and --track off: who uses which memory must be "
			"known");
	if (run->json && !run->dry_run)
		return mb_error_set(err, EINVAL, "--json: only together with --dry-run");
	for (unsigned i = 0; i < config->n_disks; i++)
		for (unsigned j = 0; j < i; j++)
			if (!check_both_disks(&config->disk[i], &config->disk[j], err))
				return -EINVAL;
	for (unsigned i = 0; i < config->n_pmems; i++)
		if (is_written(config, config->pmem[i]))
			return mb_error_set(err, EINVAL,
				"--pmem %s is a --disk that is written, too; make that ro or cow",
				config->pmem[i]);
	for (unsigned i = 0; i < config->n_nics; i++)
		for (unsigned j = 0; j < i; j++) {
			const struct mb_nic_config *a = &config->nic[i], *b = &config->nic[j];

			if (a->tap_name && b->tap_name && !strcmp(a->tap_name, b->tap_name))
				return mb_error_set(
					err, EINVAL, "--net tap=%s is given twice", a->tap_name);
			if (a->tap_fd >= 0 && a->tap_fd == b->tap_fd)
				return mb_error_set(
					err, EINVAL, "--net tap-fd=%d is given twice", a->tap_fd);
		}
	return 0;
}

/*
 * A file that is written belongs to one machine of this host (it is locked), so its file name makes
 * a name that stays the same from run to run and that no second machine has; so do MAC addresses.
 */
static void default_name(struct cli_run *run)
{
	struct mb_machine_config *config = &run->config;

	for (unsigned i = 0; i < config->n_disks && !config->name; i++) {
		const struct mb_disk_config *disk = &config->disk[i];
		const char *path = disk->overlay ? disk->overlay : disk->path,
			   *base = strrchr(path, '/');
		char *dot;

		/* What a server calls its export, others may, too. */
		if (disk->readonly || disk->cow || mb_blk_is_uri(disk->path))
			continue;
		snprintf(run->name, sizeof(run->name), "%s", base ? base + 1 : path);
		dot = strrchr(run->name, '.');
		if (dot && dot != run->name)
			*dot = '\0';
		if (!cli_parse_name(run->name, NULL))
			config->name = run->name;
	}
	if (!config->name) {
		snprintf(run->name, sizeof(run->name), "mirrorball-%d", (int)getpid());
		config->name = run->name;
	}
}

int cli_run_parse(struct cli_run *run, int argc, char **argv, struct mb_error *err)
{
	struct cli_option_user user = {.set = set_option, .repeatable = repeatable, .ctx = run};
	int first, rc;

	*run = (struct cli_run){.config = {.console = MB_CONSOLE_SERIAL,
					.out_fd = STDOUT_FILENO,
					.replica_bytes = MB_REPLICAS_AUTO}};
	rc = cli_options_walk(cli_run_options, argc, argv, &user, &first, err);
	if (rc || run->help || run->version)
		return rc;
	if (first < argc) {
		rc = parse_words(run, argc - first, argv + first, err);
		if (rc || run->list)
			return rc;
	}
	rc = check_conflicts(run, err);
	if (rc)
		return rc;
	default_name(run);
	if (must_track(run))
		run->config.track = MB_TRACK_ON;
	if (!run->config.kernel_path && !run->config.splash)
		run->config.splash = CLI_RUN_DEMO;
	if (!run->config.cmdline)
		run->config.cmdline = "";
	if (!run->config.memory_bytes)
		run->config.memory_bytes = MEMORY_DEFAULT;
	if (run->replica_percent)
		run->config.replica_bytes = run->config.memory_bytes / 100 * run->replica_percent;
	run->config.in_fd = cli_guard_stdin_was_closed() ? -1 : STDIN_FILENO;
	return 0;
}

int cli_run_check_descriptors(const struct cli_run *run, struct mb_error *err)
{
	for (unsigned i = 0; i < run->config.n_nics; i++) {
		int fd = run->config.nic[i].tap_fd;

		if (fd >= 0 && fcntl(fd, F_GETFD) < 0)
			return mb_error_set(err, errno,
				"--net tap-fd=%d: is not an open descriptor; the program that "
				"starts the machine must pass it on",
				fd);
	}
	return 0;
}

static int check_memory(const struct cli_run *run, struct mb_error *err)
{
	uint64_t asked = run->config.memory_bytes, total;
	struct sysinfo info;

	if (run->overcommit || sysinfo(&info))
		return 0;
	total = (uint64_t)info.totalram * info.mem_unit;
	if (asked <= total)
		return 0;
	return mb_error_set(err, ENOMEM,
		"--memory: %llu MiB is more than the %llu MiB that this host has; ask for less, or "
		"add --memory-overcommit for a guest that will not touch it all",
		(unsigned long long)(asked >> 20), (unsigned long long)(total >> 20));
}

int cli_run_resolve(struct cli_run *run, const struct mb_host *host, struct mb_error *err)
{
	struct mb_machine_config *config = &run->config;
	unsigned max_vcpus =
		host->max_vcpus < host->max_vcpu_id ? host->max_vcpus : host->max_vcpu_id;

	if (!config->n_vcpus) {
		cpu_set_t cpus;

		CPU_ZERO(&cpus);
		/* More CPUs than a cpu_set_t holds is an error, and more than enough. */
		config->n_vcpus = sched_getaffinity(0, sizeof(cpus), &cpus)
					  ? VCPUS_DEFAULT
					  : (unsigned)CPU_COUNT(&cpus);
		if (config->n_vcpus > VCPUS_DEFAULT)
			config->n_vcpus = VCPUS_DEFAULT;
		if (config->n_vcpus > max_vcpus)
			config->n_vcpus = max_vcpus;
	}
	if (config->n_vcpus > max_vcpus)
		return mb_error_set(err, ERANGE,
			"--cpus: %u is more than the %u vCPUs that this host's KVM allows",
			config->n_vcpus, max_vcpus);
	if (config->n_views > host->n_views)
		return mb_error_set(err, ENOTSUP,
			"--views: %u is more than the %u that this host's KVM has "
			"(KVM_CAP_MULTI_ADDRESS_SPACE); use --views auto",
			config->n_views, host->n_views);
	for (unsigned i = 0; i < config->n_disks; i++)
		if (!config->disk[i].n_queues)
			config->disk[i].n_queues =
				config->n_vcpus < DISK_QUEUES ? config->n_vcpus : DISK_QUEUES;
	for (unsigned i = 0; i < config->n_nics; i++)
		if (!config->nic[i].n_pairs)
			config->nic[i].n_pairs = 1;
	return check_memory(run, err);
}

void cli_run_finish(struct cli_run *run)
{
	for (unsigned i = 0; i < run->n_copies; i++)
		free(run->copies[i]);
	run->n_copies = 0;
}
