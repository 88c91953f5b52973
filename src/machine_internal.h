/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_SRC_MACHINE_INTERNAL_H
#define MB_SRC_MACHINE_INTERNAL_H

#include <mirrorball/balloon.h>
#include <mirrorball/blk.h>
#include <mirrorball/bus.h>
#include <mirrorball/clock.h>
#include <mirrorball/console.h>
#include <mirrorball/control.h>
#include <mirrorball/irq.h>
#include <mirrorball/legacy.h>
#include <mirrorball/log.h>
#include <mirrorball/loop.h>
#include <mirrorball/machine.h>
#include <mirrorball/manager.h>
#include <mirrorball/mover.h>
#include <mirrorball/net.h>
#include <mirrorball/node_load.h>
#include <mirrorball/pci.h>
#include <mirrorball/pmem.h>
#include <mirrorball/pmem_map.h>
#include <mirrorball/pvpanic.h>
#include <mirrorball/ram.h>
#include <mirrorball/rebalance.h>
#include <mirrorball/registry.h>
#include <mirrorball/rng.h>
#include <mirrorball/content.h>
#include <mirrorball/share.h>
#include <mirrorball/serial.h>
#include <mirrorball/terminal.h>
#include <mirrorball/topology.h>
#include <mirrorball/tracker.h>
#include <mirrorball/vcpu.h>
#include <mirrorball/vm.h>
#include <pthread.h>
#include <signal.h>

#define MB_MAX_GROUPS 8 /* of vCPUs */

/* What a vCPU or the user asks of the main loop; bits, so that none is lost. Highest first. */
enum {
	MB_ASK_KVM_ERROR = 1 << 0,
	MB_ASK_QUIT = 1 << 1,
	MB_ASK_GUEST_STATUS = 1 << 2, /* machine->splash_status */
	MB_ASK_POWEROFF = 1 << 3,
	MB_ASK_CRASH = 1 << 4,
	MB_ASK_RESET = 1 << 5,
	MB_ASK_BUTTON = 1 << 6, /* a signal: press the power button */
	MB_ASK_WINCH = 1 << 7,	/* the terminal may have changed */
};

/* A connection that watches the heat: as long as there is one, the tracker runs. */
struct mb_watcher {
	bool used;
	uint64_t connection;
};

#define MB_MAX_REBALANCES 16u /* the newest that are kept */

/* One move of a group's vCPUs. */
struct mb_rebalanced {
	uint64_t time_ns;
	unsigned group, from, to; /* nodes by their ids */
	double busy_share;	 /* of the node that was left */
	double waiting_share;	 /* of the time that its vCPUs wanted to run */
};

/* Where the machine is, among others. Main loop only; there on hosts with several nodes. */
struct mb_machine_place {
	struct mb_place_config config;
	struct mb_rebalance_config rebalance_config;
	struct mb_place_host host; /* of the last look */
	struct mb_placement placement;
	struct mb_registry *registry;	   /* NULL: other machines do not know of it */
	uint64_t group_nodes[MB_MAX_GROUPS]; /* with CPUs of the group; bits of the index */

	int sysfs_fd, proc_fd;
	struct mb_watch timer;
	bool timed; /* watched by the loop */
	uint64_t looked_ns;
	bool has_load;
	struct mb_node_load load;
	struct mb_vcpu_usage usage[MB_MAX_GROUPS];
	struct mb_rebalance rebalance;
	struct mb_rebalanced rebalanced[MB_MAX_REBALANCES]; /* a ring */
	uint64_t n_rebalanced;				    /* so far */
	bool said_error;
};

/*
 * Threads: the main loop (the thread of mb_machine_run), an I/O loop for each group of vCPUs and one for the balloon, a
 * thread for each vCPU, one for signals. Waiting goes one way: the main loop may wait for vCPUs (pause) and for I/O loops, a vCPU for
 * I/O loops (device reset), an I/O loop for nobody.
 */
struct mb_machine {
	const struct mb_host *host;
	struct mb_machine_config config;
	sigset_t old_mask;

	struct mb_vm *vm;
	struct mb_ram *ram;
	struct mb_bus *bus;
	struct mb_vcpus *vcpus;
	struct mb_tracker *tracker; /* NULL: switched off */
	struct mb_replicas *replicas; /* NULL: no page has copies, or is merged */
	struct mb_share *share;	      /* NULL: no page is merged with other machines' */
	struct mb_content *content;   /* NULL: its memory is not looked through */
	struct mb_machine_base *bases; /* of disks, that other machines may have, too */
	struct {
		enum mb_track track;
		uint64_t replica_bytes;
	} asked_for; /* config's, before what was left to the machine was decided */
	const char *why_no_copies;    /* where that was left to the machine; for people */
	uint64_t copies_on[MB_MAX_GROUPS]; /* nodes of each view, bits of the topology's index; atomic */
	bool said_copies_stay;	      /* only the main loop */
	struct mb_mover *mover;	    /* NULL: memory stays where it is; and so is the manager then */
	struct mb_manager *manager;
	unsigned n_views;
	/* Of vCPUs, one for each node where it can be; as many as views, or more: then they change
	 * views by turns (tracker.h). */
	unsigned n_groups;
	struct mb_topology *topology; /* mb_machine_topology */
	struct mb_machine_place *place;	   /* NULL: nothing to choose */
	bool by_itself; /* tracks and migrates because that was left to it */
	bool follows_later; /* when it is not paused any more */
	bool bound;			     /* threads of groups run on group_cpus only */
	cpu_set_t group_cpus[MB_MAX_GROUPS]; /* of each, one node or several near ones */
	struct mb_loop *loop;
	struct mb_loop *io_loop[MB_MAX_GROUPS]; /* of each group */

	struct mb_terminal *terminal;
	struct mb_ioapic *ioapic;
	struct mb_serial *serial;
	struct mb_rtc *rtc;
	struct mb_i8042 *i8042;
	struct mb_power *power;
	struct mb_pvpanic *pvpanic;
	struct mb_pci_bus *pci;
	struct mb_console *console;
	struct mb_rng *rng;
	struct mb_loop *balloon_loop; /* its own: to discard memory takes longer than a disk should wait */
	struct mb_balloon *balloon; /* NULL: what the guest frees stays its own */
	struct mb_blk *blk[MB_MAX_DISKS];
	struct mb_net *net[MB_MAX_NETS];
	struct mb_pmem_map *pmem_map; /* NULL: there are none */
	struct mb_pmem *pmem[MB_MAX_PMEMS];
	struct mb_loop **blk_loops[MB_MAX_DISKS], **net_loops[MB_MAX_NETS]; /* of their queues */
	struct mb_region splash_text, splash_exit, splash_yield;

	/* Requests to the main loop. Any thread. */
	unsigned asked;	   /* atomic: MB_ASK_* */
	int splash_status; /* atomic */
	bool ending;	   /* atomic: nobody waits for the terminal any more */
	bool restarting;   /* atomic: nor meanwhile */
	int signal;	   /* atomic: the last one that asked for the end; stored before doing is loaded */
	char *making;	   /* atomic: directory of a snapshot that is being made; whoever takes it frees it */
	const char *doing; /* atomic: what goes on before the guest runs; NULL from then on */
	int ask_fd;	   /* eventfd */
	struct mb_watch ask_watch;
	struct mb_ratelimit guest_says;

	pthread_t signals_thread;
	bool has_signals_thread;
	bool signals_stop; /* atomic */

	/* Main loop only. */
	struct mb_control *control; /* NULL: it has none */
	struct mb_watcher watcher[MB_CONTROL_MAX_CONNECTIONS];
	json_t *heat; /* the last answer about it, and its time */
	uint64_t heat_ns;
	bool paused;	      /* by the user */
	unsigned n_crashes;   /* in a row, each soon after the start */
	uint64_t started_ns;  /* of this boot */
	struct mb_outcome outcome;
	struct mb_error error; /* why the machine could not go on */
	bool failed;
};

/* Asks the main loop for something; any thread, async-signal-safe. */
void mb_machine_ask(struct mb_machine *machine, unsigned what);

/* src/machine_signals.c */
void mb_machine_signals(sigset_t *set); /* those that the machine takes for itself */
int mb_machine_start_signals(struct mb_machine *machine, struct mb_error *err);
void mb_machine_stop_signals(struct mb_machine *machine);
/* The last signal that asked for the end, or 0. */
int mb_machine_signalled(const struct mb_machine *machine);

/* src/machine_guest.c: what vCPUs call, and the ports of the thin guest. */
extern const struct mb_vcpu_ops mb_machine_vcpu_ops;
/* Its registers, in the log. On its thread, or vCPUs paused. */
void mb_machine_dump_vcpu(struct mb_vcpu *vcpu);
int mb_machine_add_splash_ports(struct mb_machine *machine);
/* Loads the guest and sets where its vCPUs start. vCPUs paused and fresh. */
int mb_machine_load_guest(struct mb_machine *machine, struct mb_error *err);

/* The host's nodes with the CPUs that this process may use; read when first asked for. NULL: cannot be. */
const struct mb_topology *mb_machine_topology(struct mb_machine *machine);
/* Of those that it was put on. */
unsigned mb_machine_nodes_with_cpus(struct mb_machine *machine);
/* Those with CPUs of the group, all with CPUs where it is not bound to any; bits of the topology's index. */
uint64_t mb_machine_nodes_of_group(struct mb_machine *machine, unsigned group);

/* src/machine_place.c: the nodes of the host that it is put on, before anything is made. */
int mb_machine_choose_nodes(struct mb_machine *machine, struct mb_error *err);
/* Of new guest memory; always 0, for it is as right elsewhere. After the memory is made. */
void mb_machine_place_memory(struct mb_machine *machine);
/* What its nodes could give to new guest memory, less what was promised to others, when they were chosen. */
uint64_t mb_machine_room(const struct mb_machine *machine);
/* The topology with CPUs of the chosen nodes only; all where nothing was chosen. */
void mb_machine_chosen_topology(struct mb_machine *machine, struct mb_topology *topo);
/* Whether nodes with CPUs were left out. */
bool mb_machine_is_confined(const struct mb_machine *machine);
void mb_machine_publish_place(struct mb_machine *machine, const struct mb_registry_record *record);
/* What other machines have, into place->host. */
void mb_machine_read_others(struct mb_machine *machine);
/* After everything that is on a node; takes no notice of there being none. */
void mb_machine_remove_place(struct mb_machine *machine);

/* src/machine_rebalance.c: looks every 10 s, tells others, and moves vCPUs. After the vCPUs. */
int mb_machine_add_rebalance(struct mb_machine *machine, struct mb_error *err);
json_t *mb_machine_placement_json(struct mb_machine *machine, int *rc);

/* src/machine_track.c */
/* In which view each group is in this turn (tracker.h); without turns in that of its number. */
void mb_machine_views_of_turn(
	const struct mb_machine *machine, unsigned turn, uint8_t view[MB_MAX_GROUPS]);
int mb_machine_add_tracker(struct mb_machine *machine, struct mb_error *err);
void mb_machine_remove_tracker(struct mb_machine *machine);

/* src/machine_migrate.c: memory moves to who uses it. After the tracker; removed before it. */
int mb_machine_add_manager(struct mb_machine *machine, struct mb_error *err);
void mb_machine_remove_manager(struct mb_machine *machine);
void mb_machine_weigh_group(struct mb_machine *machine, unsigned group); /* its CPUs have changed */
/* Whether that is left to it, and of use, with vCPUs on so many nodes. */
bool mb_machine_migrates_by_itself(struct mb_machine *machine, unsigned n_nodes);
/* Its vCPUs have left the node that its memory is on: from now on it migrates, if that is left to it. On
 * the main loop. */
void mb_machine_let_follow(struct mb_machine *machine);
/* For people; NULL: nothing is against it. Once its nodes and views are chosen. */
const char *mb_machine_why_no_migration(struct mb_machine *machine);
const char *mb_machine_migrate_state(struct mb_machine *machine); /* for people */
/* Nothing is looked at or moved from hold to release: while vCPUs stand still, or memory is emptied.
 * Counted. */
void mb_machine_hold_memory(struct mb_machine *machine);
void mb_machine_release_memory(struct mb_machine *machine);

/*
 * src/machine_replicas.c: what several views read has a copy in each. Before anything writes guest
 * memory; removed after vCPUs and devices, and then what is merged is lost. Given up, there are no
 * copies: after the manager is removed it stays so.
 */
void mb_machine_choose_replicas(struct mb_machine *machine); /* how much; once its views are chosen */
int mb_machine_add_replicas(struct mb_machine *machine, struct mb_error *err);
void mb_machine_give_up_replicas(struct mb_machine *machine);
/* Whether views may have copies of their own; without that memory is merged only, if at all. */
bool mb_machine_makes_copies(const struct mb_machine *machine);
/* A view's vCPUs run on another node: its copies are made there, and all that there are, of all
 * views, are given back bit by bit (mb_machine_reclaim). On the main loop. */
void mb_machine_move_copies(struct mb_machine *machine, unsigned view);
void mb_machine_remove_replicas(struct mb_machine *machine);
/* The manager's; on its thread. Reclaim: some of them, each time, while a node is short of memory
 * or after a view has moved. */
int mb_machine_protect(void *ctx, uint64_t offset, uint64_t len, struct mb_replicated *done);
int mb_machine_finish_copies(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done);
int mb_machine_replicate(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done);
uint64_t mb_machine_copied_writes(void *ctx);
float mb_machine_copied(void *ctx, uint64_t offset, uint64_t len, unsigned view);
void mb_machine_reclaim(struct mb_machine *machine, const struct mb_policy_host *host);
const char *mb_machine_replicas_state(struct mb_machine *machine); /* for people */
json_t *mb_machine_replicas_json(struct mb_machine *machine, int *rc);

/*
 * src/machine_share.c: what disks have in common with other machines' is in memory once. Whether it
 * may be, before replicas are made; then before devices, which tell what they read; it begins when they
 * are there. Stopped before vCPUs and devices go, removed after them.
 */
/* Whether a disk of it has a base. */
bool mb_machine_has_base(const struct mb_machine *machine);
bool mb_machine_shares(const struct mb_machine *machine);
int mb_machine_add_share(struct mb_machine *machine, struct mb_error *err);
int mb_machine_start_share(struct mb_machine *machine, struct mb_error *err);
void mb_machine_stop_share(struct mb_machine *machine);
void mb_machine_remove_share(struct mb_machine *machine);
/* Of the disk's config, before it is made; and its base, when it is there. */
void mb_machine_share_disk(
	struct mb_machine *machine, unsigned disk, struct mb_blk_config *config);
int mb_machine_share_base(struct mb_machine *machine, unsigned disk, struct mb_error *err);
/* Memory at this offset was read from its snapshot, at the same. */
void mb_machine_saw_snapshot(struct mb_machine *machine, uint64_t offset, uint64_t len);
/* The node where each view's copies of what is common are best: the kernel's numbers. */
void mb_machine_share_nodes(struct mb_machine *machine, unsigned node[MB_MAX_GROUPS]);
json_t *mb_machine_share_json(struct mb_machine *machine, int *rc);

/* src/machine_content.c: by content. When its guest is loaded; stopped before vCPUs and devices go. */
bool mb_machine_shares_content(const struct mb_machine *machine);
int mb_machine_start_content(struct mb_machine *machine, struct mb_error *err);
void mb_machine_stop_content(struct mb_machine *machine);
json_t *mb_machine_content_json(struct mb_machine *machine, int *rc);

/* src/machine_numa.c */
json_t *mb_machine_migration_json(struct mb_machine *machine); /* NULL: out of memory */
int mb_machine_answer_numa(void *ctx, uint64_t connection, json_t **answer, struct mb_error *err);

/* src/machine_devices.c */
int mb_machine_add_devices(struct mb_machine *machine, struct mb_error *err);
void mb_machine_reset_devices(struct mb_machine *machine); /* vCPUs paused */
void mb_machine_remove_devices(struct mb_machine *machine); /* vCPUs gone */
json_t *mb_machine_reporting_json(const struct mb_machine *machine, int *rc);

/* src/machine_heat.c: requests of the control socket. */
json_t *mb_machine_tracker_json(const struct mb_machine *machine); /* NULL: out of memory */
/* A list: the nodes that each group has. */
json_t *mb_machine_views_json(struct mb_machine *machine, int *rc);
int mb_machine_answer_heat(void *ctx, uint64_t connection, json_t **answer, struct mb_error *err);
void mb_machine_heat_closed(void *ctx, uint64_t connection);

/* src/machine_snapshot.c: a request of the control socket; and what a machine from a snapshot begins with. */
/* The process is about to end: removes what is there of a snapshot that is being made. Signals' thread. */
void mb_machine_drop_snapshot(struct mb_machine *machine);
int mb_machine_answer_snapshot(
	void *ctx, const char *path, json_t **answer, struct mb_error *err);
int mb_machine_go_on(struct mb_machine *machine, struct mb_error *err);
/* Of a snapshot: what its memory has in common with other machines' is shared from now on (machine_share.c). */
int mb_machine_share_snapshot(struct mb_machine *machine, struct mb_error *err);

/* src/machine_control.c: name and PID, into an answer. */
void mb_machine_put_name(const struct mb_machine *machine, json_t *object, int *rc);
/* Milliseconds from the guest's start to ns of the monotonic clock. */
uint64_t mb_machine_time_ms(const struct mb_machine *machine, uint64_t ns);
/* Always 0: why there is no socket is in the log. */
int mb_machine_add_control(struct mb_machine *machine, struct mb_error *err);

#endif
