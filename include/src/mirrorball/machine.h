/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_MACHINE_H
#define MIRRORBALL_MACHINE_H

#include <mirrorball/error.h>
#include <mirrorball/host.h>
#include <mirrorball/placement.h>
#include <mirrorball/vcpu.h>
#include <stdbool.h>
#include <stdint.h>

/* What a machine is made of. Strings are the caller's and must outlive the machine. */
#define MB_MAX_DISKS 16
#define MB_MAX_NETS  8
#define MB_MAX_PMEMS 4 /* with all the others, as many as fit a PCI bus */
#define MB_MAX_VCPUS 1024

struct mb_disk_config {
	const char *path; /* or an NBD URI (blk.h) */
	bool readonly;
	bool buffered;	    /* no O_DIRECT */
	/* Changes go elsewhere (blk.h): to the file `overlay`, or with cow to one in cow_dir that is gone at the end. */
	bool cow;
	const char *cow_dir;
	const char *overlay;
	const char *serial; /* NULL: from the path */
	unsigned n_queues;  /* 0: one a vCPU, up to 8 */
};

struct mb_nic_config {
	bool passt;
	const char *tap_name;	/* tap by name */
	int tap_fd;		/* -1, or an open tap */
	const char *const *passt_args;
	uint8_t mac[6];		/* zero: derived from the machine's name */
	unsigned n_pairs;	/* 0: 1 */
};

enum mb_console_kind {
	MB_CONSOLE_SERIAL,
	MB_CONSOLE_VIRTIO,
	MB_CONSOLE_OFF,
};

/* When it is counted who touches which memory. */
enum mb_track {
	MB_TRACK_AUTO, /* where memory migrates; otherwise while somebody asks through the control socket */
	MB_TRACK_ON,
	MB_TRACK_OFF,
};

/* Whether memory moves to the node that uses it. */
enum mb_migrate {
	MB_MIGRATE_AUTO, /* as if ON, if vCPUs are on several nodes, and MB_PLACE_AUTO or NODES; and with MB_TRACK_ON */
	MB_MIGRATE_ON,	 /* on a host with memory on several nodes; cli/ sees to it that it is tracked */
	MB_MIGRATE_OFF,
	MB_MIGRATE_STORM, /* at random, all the time: for torture; cli/ sees to it that it is tracked */
};

/* A quarter of its memory, or what its nodes or its cgroup leave, where it migrates and has a view for each node. */
#define MB_REPLICAS_AUTO UINT64_MAX

struct mb_snapshot; /* snapshot.h */

struct mb_machine_config {
	const char *name; /* never NULL */
	/* What it goes on from; NULL: its guest is loaded. The config is the snapshot's then, but for its name, what it is
	 * connected to and MAC addresses. Must outlive the machine. */
	const struct mb_snapshot *snapshot;
	unsigned n_vcpus; /* 1..MB_MAX_VCPUS */
	uint64_t memory_bytes; /* multiple of MB_RAM_ALIGN */
	unsigned n_views; /* 0: as many as are of use: one for each node, if the guest is tracked */
	enum mb_track track;
	uint32_t track_guest_ppm, track_cpu_ppm; /* what tracking may cost (tracker.h); 0: its defaults */
	enum mb_migrate migrate;
	enum mb_place_kind placement;	    /* on which nodes of the host: numa/placement.h */
	struct mb_node_ids placement_nodes; /* of MB_PLACE_NODES */
	uint64_t replica_bytes; /* for copies of what several views read; 0: none are made; or MB_REPLICAS_AUTO */
	/* Also by content (content.h): of one CPU; 0: MB_CONTENT_BUDGET_PPM, if a disk has a base or there is a
	 * group; MB_CONTENT_OFF. */
	uint32_t content_ppm;
	const char *trust_group; /* NULL: only zeroes, which nobody else can see */
	bool no_share; /* what it has of bases of disks is its own, and not in memory once with other machines' */

	/* Either a kernel ... */
	const char *kernel_path;
	const char *initrd_path;
	const char *cmdline; /* what the user appended; the machine puts console= in front */
	/* ... or the thin guest with this command line. */
	const char *splash;

	struct mb_disk_config disk[MB_MAX_DISKS];
	unsigned n_disks;
	struct mb_nic_config nic[MB_MAX_NETS];
	unsigned n_nics;
	const char *pmem[MB_MAX_PMEMS]; /* paths of images that are guest memory, only to be read */
	unsigned n_pmems;

	bool no_reporting; /* the host does not get back what the guest frees */
	enum mb_console_kind console;
	int in_fd, out_fd; /* the console's; -1: none */
	bool no_reboot;	   /* a reset ends the machine */
	bool quiet;	   /* no hint about the escape key */
	bool dry;	   /* only to see whether it can be built: nothing is made or changed */
	bool no_control;   /* no control socket (mirrorball/control.h), and in no registry
			      (registry.h) */
	/*
	 * A signal asked for the end and 3 s later something still hangs (a disk that does not answer),
	 * or a second one came before the guest ran: must end the process. `doing`: what the machine was
	 * at before its guest ran, "loading its guest"; NULL: the guest has run. On a thread of its own.
	 * NULL: wait for ever.
	 */
	void (*stuck)(void *ctx, int signal, const char *doing);
	void *stuck_ctx;
	int *early_signal; /* where mb_machine_create leaves the signal that ended it; may be NULL */
	uint64_t start_ns; /* CLOCK_MONOTONIC when the process started, for the outcome; 0: unknown */
};

/* How a machine ended. */
enum mb_end {
	MB_END_POWEROFF,	/* the guest powered off, or splash ended with status 0 */
	MB_END_REBOOT,		/* the guest reset and no_reboot is set */
	MB_END_GUEST_STATUS,	/* splash ended with another status: outcome.status */
	MB_END_CRASH,		/* triple fault with no_reboot, or a panic that KVM or pvpanic told us of */
	MB_END_KVM_ERROR,	/* KVM could not go on: registers were printed */
	MB_END_QUIT,		/* the user asked (escape q, second signal) */
};

struct mb_outcome {
	enum mb_end end;
	int status;	   /* splash's status byte */
	int signal;	   /* with MB_END_QUIT: the signal that asked, 0 if it was a key */
	unsigned n_resets; /* reboots that went through */
	uint64_t n_exits;  /* vCPU exits to user space */
	uint64_t start_to_first_run_ns; /* process start (or machine creation) to first KVM_RUN */
	uint64_t run_ns;   /* first KVM_RUN to the end */
};

/* Whether it is left to the machine to track and to migrate: then it does where that is of use on this
 * host. */
bool mb_machine_decides_on_migration(const struct mb_machine_config *config);

struct mb_machine;

/*
 * Builds everything and loads the guest: what fails here fails before the guest runs. -EINTR when a signal
 * asked for the end meanwhile, and config->early_signal says which.
 */
int mb_machine_create(const struct mb_host *host, const struct mb_machine_config *config,
	struct mb_machine **out, struct mb_error *err);
/*
 * Runs until the machine ends; the calling thread becomes the event loop. From its creation on a machine
 * takes SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT and SIGPIPE for itself, so that there may be one in a process
 * at a time: the first signal to end presses the power button (SIGQUIT and a splash guest: ends), the second one ends it.
 * One that came after mb_machine_create ends the machine before the guest runs.
 */
int mb_machine_run(struct mb_machine *machine, struct mb_outcome *outcome, struct mb_error *err);
void mb_machine_destroy(struct mb_machine *machine);

/* What became of disk i, which has to be there. */
struct mb_disk_facts {
	uint64_t bytes;
	unsigned n_queues;
};

void mb_machine_disk(const struct mb_machine *machine, unsigned i, struct mb_disk_facts *facts);

/* And of an image that is guest memory. */
struct mb_pmem_facts {
	uint64_t gpa;
	uint64_t bytes; /* as the guest sees it */
};

void mb_machine_pmem(const struct mb_machine *machine, unsigned i, struct mb_pmem_facts *facts);

#endif
