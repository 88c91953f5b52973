// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/snapshot.h>
#include <mirrorball/topology.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "machine_internal.h"

#define MAX_XAPIC_VCPUS 255u /* ids 0..254; 255 is everybody */

/* ---- parts, in the order of their making ---- */

static int make_memory(struct mb_machine *machine, struct mb_error *err)
{
	const struct mb_snapshot *snapshot = machine->config.snapshot;
	uint64_t bytes = machine->config.memory_bytes;

	/* What is mapped several times cannot be each one's own. */
	return snapshot && machine->n_views == 1
		       ? mb_ram_create_private(machine->vm, bytes, mb_snapshot_ram_fd(snapshot),
				 &machine->ram, err)
		       : mb_ram_create(machine->vm, bytes, &machine->ram, err);
}

static int load(struct mb_machine *machine, struct mb_error *err)
{
	return machine->config.snapshot ? mb_machine_go_on(machine, err)
					: mb_machine_load_guest(machine, err);
}

static int make_host_side(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_vm_config config = {
		.n_views = machine->n_views,
		.x2apic_ids = machine->config.n_vcpus > MAX_XAPIC_VCPUS,
	};
	int rc;

	if (config.x2apic_ids && !machine->host->cap[MB_CAP_X2APIC_API])
		return mb_error_set(err, ENOTSUP, "%u vCPUs: more than %u need KVM_CAP_X2APIC_API,"
			" which this host lacks", machine->config.n_vcpus, MAX_XAPIC_VCPUS);
	rc = mb_vm_create(machine->host, &config, &machine->vm, err);
	if (!rc)
		rc = make_memory(machine, err);
	if (!rc) {
		mb_machine_place_memory(machine);
		rc = mb_bus_create(&machine->bus);
		if (rc)
			mb_error_set(err, -rc, "bus: %s", strerror(-rc));
	}
	return rc;
}

const struct mb_topology *mb_machine_topology(struct mb_machine *machine)
{
	cpu_set_t allowed;
	int sysfs_fd;

	if (machine->topology)
		return machine->topology;
	sysfs_fd = open("/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	machine->topology = malloc(sizeof(*machine->topology));
	if (sysfs_fd < 0 || !machine->topology || sched_getaffinity(0, sizeof(allowed), &allowed) ||
		mb_topology_read(machine->topology, sysfs_fd, NULL)) {
		free(machine->topology);
		machine->topology = NULL;
	} else {
		mb_topology_restrict(machine->topology, &allowed);
	}
	if (sysfs_fd >= 0)
		close(sysfs_fd);
	return machine->topology;
}

uint64_t mb_machine_nodes_of_group(struct mb_machine *machine, unsigned group)
{
	const struct mb_topology *topo = mb_machine_topology(machine);
	uint64_t nodes = 0;

	for (unsigned i = 0; topo && i < topo->n_nodes; i++) {
		cpu_set_t both = topo->node[i].cpus;

		if (machine->bound)
			CPU_AND(&both, &both, &machine->group_cpus[group]);
		if (CPU_COUNT(&both))
			nodes |= 1ull << i;
	}
	return nodes;
}

unsigned mb_machine_nodes_with_cpus(struct mb_machine *machine)
{
	struct mb_topology topo;
	unsigned n = 0;

	mb_machine_chosen_topology(machine, &topo);
	for (unsigned i = 0; i < topo.n_nodes; i++)
		n += CPU_COUNT(&topo.node[i].cpus) > 0;
	return n;
}

static unsigned nodes_with_vcpus(struct mb_machine *machine)
{
	unsigned n = mb_machine_nodes_with_cpus(machine);

	return n < machine->config.n_vcpus ? n : machine->config.n_vcpus;
}

/*
 * As many groups of vCPUs as there are nodes to be told apart, and views as are of use for that: one
 * for each, or two by turns. What has a copy in each view stays in it.
 */
static void choose_groups(struct mb_machine *machine)
{
	const struct mb_machine_config *config = &machine->config;
	unsigned n = nodes_with_vcpus(machine);

	if (n > MB_MAX_GROUPS)
		n = MB_MAX_GROUPS;
	if (n < 2)
		return;
	if (!config->n_views)
		machine->n_views = n < machine->host->n_views ? n : machine->host->n_views;
	machine->n_groups = config->replica_bytes && config->replica_bytes != MB_REPLICAS_AUTO
				    ? machine->n_views
				    : n;
}

/* What was left to the machine to decide, now that its nodes are known. */
static void choose_views(struct mb_machine *machine)
{
	struct mb_machine_config *config = &machine->config;
	/* Its guest was told how many, and that is all that is known. */
	const bool chosen = config->n_views && !config->snapshot;

	machine->asked_for.track = config->track;
	machine->asked_for.replica_bytes = config->replica_bytes;
	machine->by_itself = mb_machine_migrates_by_itself(machine, nodes_with_vcpus(machine));
	if (machine->by_itself)
		config->track = MB_TRACK_ON;
	machine->n_views = config->n_views ? config->n_views : 1;
	if (machine->n_views > MB_MAX_GROUPS)
		machine->n_views = MB_MAX_GROUPS;
	machine->n_groups = machine->n_views;
	if (!chosen && config->n_views != 1 && machine->host->n_views > 1 && config->track == MB_TRACK_ON)
		choose_groups(machine);
	mb_machine_choose_replicas(machine);
}

static int place(struct mb_machine *machine, struct mb_error *err)
{
	int rc = mb_machine_choose_nodes(machine, err);

	if (rc)
		return rc;
	choose_views(machine);
	return 0;
}

/* Host CPUs of each group: those of near nodes, within what the process may use. False: leave the
 * threads where they are. */
static bool cpus_of_groups(struct mb_machine *machine)
{
	struct mb_topology topo;

	if (machine->n_groups == 1 && !mb_machine_is_confined(machine))
		return false;
	mb_machine_chosen_topology(machine, &topo);
	mb_topology_group(&topo, machine->n_groups, machine->group_cpus);
	return CPU_COUNT(&machine->group_cpus[0]);
}

static int make_threads(struct mb_machine *machine, struct mb_error *err)
{
	unsigned n = machine->config.n_vcpus;
	uint8_t group[MB_MAX_VCPUS], view[MB_MAX_GROUPS];
	bool bound = machine->bound = cpus_of_groups(machine);
	struct mb_vcpus_config config = {
		.n_vcpus = n,
		.group = group,
		.view_of_group = view,
		.group_cpus = bound ? machine->group_cpus : NULL,
		.ops = &mb_machine_vcpu_ops,
		.ops_ctx = machine,
	};
	int rc = 0;

	mb_machine_views_of_turn(machine, 0, view);
	for (unsigned i = 0; i < n; i++)
		group[i] = (uint8_t)((uint64_t)i * machine->n_groups / n);
	for (unsigned k = 0; k < machine->n_groups && !rc; k++) {
		char name[16];

		snprintf(name, sizeof(name), "io%u", k);
		rc = mb_loop_create(&machine->io_loop[k], err);
		if (!rc)
			rc = mb_loop_start_thread(
				machine->io_loop[k], name, bound ? &machine->group_cpus[k] : NULL, err);
	}
	if (!rc)
		rc = mb_vcpus_create(machine->vm, &config, &machine->vcpus, err);
	return rc;
}

static void on_key(void *ctx, char key);

static void on_resized(void *ctx, unsigned columns, unsigned rows)
{
	struct mb_machine *machine = ctx;

	if (machine->console)
		mb_console_resize(machine->console, columns, rows);
}

static const struct mb_terminal_ops terminal_ops = {.command = on_key, .resized = on_resized};

static int make_terminal(struct mb_machine *machine, struct mb_error *err)
{
	/* The thin guest takes no input: its user's Ctrl-C is for us. */
	int in_fd = machine->config.splash ? -1 : machine->config.in_fd;

	if (machine->config.console == MB_CONSOLE_OFF)
		return 0;
	return mb_terminal_create(machine->loop, in_fd, machine->config.out_fd, &terminal_ops, machine,
		&machine->terminal, err);
}

/* ---- requests and signals, on the main loop ---- */

void mb_machine_ask(struct mb_machine *machine, unsigned what)
{
	uint64_t one = 1;
	ssize_t n;

	__atomic_or_fetch(&machine->asked, what, __ATOMIC_ACQ_REL);
	n = write(machine->ask_fd, &one, sizeof(one));
	(void)n; /* EAGAIN: it is awake already */
}

static void end_with(struct mb_machine *machine, enum mb_end end)
{
	machine->outcome.end = end;
	__atomic_store_n(&machine->ending, true, __ATOMIC_RELEASE);
	mb_loop_stop(machine->loop);
}

static void user_pause(struct mb_machine *machine, bool pause)
{
	if (machine->paused == pause)
		return;
	machine->paused = pause;
	if (pause) {
		mb_machine_hold_memory(machine);
		mb_vcpus_pause(machine->vcpus);
	} else {
		mb_vcpus_tell_stopped(machine->vcpus);
		mb_vcpus_resume(machine->vcpus);
		mb_machine_release_memory(machine);
		if (machine->follows_later)
			mb_machine_let_follow(machine);
	}
}

/* A power cycle: every device and vCPU as new, memory empty, the guest loaded again. */
static void restart(struct mb_machine *machine)
{
	int rc;

	/* A vCPU may be waiting for the terminal with the text of a guest that is about to go. */
	__atomic_store_n(&machine->restarting, true, __ATOMIC_RELEASE);
	mb_machine_hold_memory(machine);
	mb_vcpus_pause(machine->vcpus);
	__atomic_store_n(&machine->restarting, false, __ATOMIC_RELEASE);
	__atomic_and_fetch(&machine->asked, ~(unsigned)(MB_ASK_RESET | MB_ASK_CRASH), __ATOMIC_ACQ_REL);
	mb_machine_reset_devices(machine);
	rc = mb_ram_clear(machine->ram);
	mb_mover_forget(machine->mover);
	if (rc)
		mb_error_set(&machine->error, -rc, "guest memory cannot be cleared: %s", strerror(-rc));
	if (!rc) {
		rc = mb_vcpus_reset(machine->vcpus);
		if (rc)
			mb_error_set(&machine->error, -rc, "KVM: vCPUs cannot be reset: %s",
				strerror(-rc));
	}
	if (!rc)
		rc = mb_machine_load_guest(machine, &machine->error);
	if (rc) {
		mb_error_prefix(&machine->error, rc, "%s: cannot start again", machine->config.name);
		machine->failed = true;
		end_with(machine, MB_END_KVM_ERROR);
	} else {
		machine->outcome.n_resets++;
		machine->started_ns = mb_now_ns();
		mb_vcpus_resume(machine->vcpus);
		mb_machine_release_memory(machine);
	}
}

static void on_crash(struct mb_machine *machine)
{
	/* A guest that cannot even boot would crash for ever. */
	const uint64_t soon_ns = 10000000000ull;
	const unsigned max_in_a_row = 3;

	if (mb_now_ns() - machine->started_ns < soon_ns)
		machine->n_crashes++;
	else
		machine->n_crashes = 1;
	if (machine->config.no_reboot || machine->config.splash) {
		end_with(machine, MB_END_CRASH);
	} else if (machine->n_crashes >= max_in_a_row) {
		mb_log("%s: crashed %u times in a row within 10 s of its start: giving up",
			machine->config.name, machine->n_crashes);
		end_with(machine, MB_END_CRASH);
	} else {
		mb_log("%s: restarting after the crash (--no-reboot ends instead)",
			machine->config.name);
		restart(machine);
	}
}

static void press_button(struct mb_machine *machine)
{
	user_pause(machine, false); /* or it would never see it */
	mb_power_button(machine->power);
}

static void on_asked(struct mb_watch *watch, uint32_t events)
{
	struct mb_machine *machine = watch->ctx;
	uint64_t n;
	/* The wake-up first: what is asked after the exchange wakes us again. */
	ssize_t got = read(machine->ask_fd, &n, sizeof(n));
	unsigned asked = __atomic_exchange_n(&machine->asked, 0, __ATOMIC_ACQ_REL);

	(void)got;
	if (asked & MB_ASK_WINCH && machine->terminal)
		mb_terminal_winch(machine->terminal);
	if (asked & MB_ASK_KVM_ERROR) {
		end_with(machine, MB_END_KVM_ERROR);
	} else if (asked & MB_ASK_QUIT) {
		machine->outcome.signal = __atomic_load_n(&machine->signal, __ATOMIC_ACQUIRE);
		/* Somebody wants to know where it hangs. */
		if (machine->outcome.signal == SIGQUIT) {
			mb_vcpus_pause(machine->vcpus);
			for (unsigned i = 0; i < machine->config.n_vcpus; i++)
				mb_machine_dump_vcpu(mb_vcpus_at(machine->vcpus, i));
		}
		end_with(machine, MB_END_QUIT);
	} else if (asked & MB_ASK_GUEST_STATUS) {
		machine->outcome.status = __atomic_load_n(&machine->splash_status, __ATOMIC_ACQUIRE);
		end_with(machine, machine->outcome.status ? MB_END_GUEST_STATUS : MB_END_POWEROFF);
	} else if (asked & MB_ASK_POWEROFF) {
		end_with(machine, MB_END_POWEROFF);
	} else if (asked & MB_ASK_CRASH) {
		on_crash(machine);
	} else if (asked & MB_ASK_RESET) {
		if (machine->config.no_reboot)
			end_with(machine, MB_END_REBOOT);
		else
			restart(machine);
	}
	if (asked & MB_ASK_BUTTON && !__atomic_load_n(&machine->ending, __ATOMIC_ACQUIRE)) {
		press_button(machine);
		mb_log("%s: %s: pressed the guest's power button; once more ends it at once",
			machine->config.name,
			strsignal(__atomic_load_n(&machine->signal, __ATOMIC_ACQUIRE)));
	}
}

static void on_key(void *ctx, char key)
{
	struct mb_machine *machine = ctx;

	switch (key) {
	case 'q':
		end_with(machine, MB_END_QUIT);
		break;
	case 's':
		press_button(machine);
		mb_terminal_say(machine->terminal, "power button pressed");
		break;
	case 'p':
		user_pause(machine, !machine->paused);
		mb_terminal_say(machine->terminal,
			machine->paused ? "paused; Ctrl-] p goes on" : "running again");
		break;
	case 'r':
		user_pause(machine, false);
		mb_machine_ask(machine, MB_ASK_RESET);
		break;
	}
}

static int make_main_loop(struct mb_machine *machine, struct mb_error *err)
{
	int rc = mb_loop_create(&machine->loop, err);

	if (rc)
		return rc;
	machine->ask_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (machine->ask_fd < 0)
		return mb_error_set(err, errno, "event loop: %s", strerror(errno));
	machine->ask_watch = (struct mb_watch){
		.fd = machine->ask_fd, .events = EPOLLIN, .ready = on_asked, .ctx = machine};
	rc = mb_loop_add(machine->loop, &machine->ask_watch);
	if (rc)
		return mb_error_set(err, -rc, "event loop: %s", strerror(-rc));
	return 0;
}

/* ---- the whole ---- */

static int check_config(const struct mb_host *host, const struct mb_machine_config *config,
	struct mb_error *err)
{
	if (!config->n_vcpus || config->n_vcpus > MB_MAX_VCPUS)
		return mb_error_set(err, EINVAL, "%u vCPUs: a machine has 1 to %u", config->n_vcpus,
			MB_MAX_VCPUS);
	if (!config->splash == !config->kernel_path)
		return mb_error_set(err, EINVAL, "no guest: give a kernel or a program of splash");
	if (config->n_disks > MB_MAX_DISKS || config->n_nics > MB_MAX_NETS || config->n_pmems > MB_MAX_PMEMS)
		return mb_error_set(err, EINVAL,
			"too many devices: at most %u disks, %u networks and %u pmem", MB_MAX_DISKS,
			MB_MAX_NETS, MB_MAX_PMEMS);
	if (config->n_views > host->n_views)
		return mb_error_set(err, ENOTSUP,
			"%u views of memory: this host's KVM offers %u (mirrorball doctor says why)",
			config->n_views, host->n_views);
	return 0;
}

/* In this order. Each may take long: what is being done is for a person who does not want to wait. */
static const struct {
	const char *doing;
	int (*make)(struct mb_machine *machine, struct mb_error *err);
} steps[] = {
	{"choosing its nodes", place},
	{"making its memory", make_host_side},
	{"creating its vCPUs", make_threads},
	{"making room for copies of its memory", mb_machine_add_replicas},
	{"setting up its terminal", make_terminal},
	{"preparing to share memory", mb_machine_add_share},
	{"opening its disks and networks", mb_machine_add_devices},
	{"looking for the commons", mb_machine_start_share},
	{"loading its guest", load},
	{"starting its tracker", mb_machine_add_tracker},
	{"starting to share by content", mb_machine_start_content},
	{"starting its migration", mb_machine_add_manager},
	{"watching its nodes", mb_machine_add_rebalance},
	/* When all is there that has to find memory in one mapping. */
	{"sharing what it has of its snapshot", mb_machine_share_snapshot},
	/* Last: a machine that others can see is one that runs. */
	{"making its control socket", mb_machine_add_control},
};

int mb_machine_create(const struct mb_host *host, const struct mb_machine_config *config,
	struct mb_machine **out, struct mb_error *err)
{
	struct mb_machine *machine;
	sigset_t set;
	int signal = 0, rc = check_config(host, config, err);

	if (rc)
		return rc;
	machine = calloc(1, sizeof(*machine));
	if (!machine)
		return mb_error_set(err, ENOMEM, "machine: out of memory");
	machine->host = host;
	machine->config = *config;
	machine->ask_fd = -1;
	mb_machine_signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, &machine->old_mask);

	machine->doing = "starting";
	rc = make_main_loop(machine, err);
	if (!rc)
		rc = mb_machine_start_signals(machine, err);
	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]) && !rc; i++) {
		__atomic_store_n(&machine->doing, steps[i].doing, __ATOMIC_RELEASE);
		rc = steps[i].make(machine, err);
		signal = mb_machine_signalled(machine);
		if (signal)
			rc = mb_error_set(err, EINTR, "%s: %s while %s", config->name,
				strsignal(signal), steps[i].doing);
	}
	if (rc) {
		mb_machine_destroy(machine);
		if (signal && config->early_signal)
			*config->early_signal = signal;
		return rc;
	}
	*out = machine;
	return 0;
}

int mb_machine_run(struct mb_machine *machine, struct mb_outcome *outcome, struct mb_error *err)
{
	uint64_t begin_ns = machine->config.start_ns, first_ns, end_ns;
	int rc;

	machine->started_ns = mb_now_ns();
	if (!begin_ns)
		begin_ns = machine->started_ns;
	if (machine->terminal)
		mb_terminal_winch(machine->terminal);
	/* With the pair in end_signal. A signal that was faster than us: the guest need not begin. */
	__atomic_store_n(&machine->doing, NULL, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&machine->signal, __ATOMIC_SEQ_CST))
		mb_machine_ask(machine, MB_ASK_QUIT);
	else
		mb_vcpus_resume(machine->vcpus);
	if (machine->terminal && mb_terminal_is_tty(machine->terminal) && !machine->config.quiet)
		mb_terminal_say(machine->terminal,
			"Ctrl-] then q ends the machine, Ctrl-] then ? shows all keys");
	rc = mb_loop_run(machine->loop);
	end_ns = mb_now_ns();
	__atomic_store_n(&machine->ending, true, __ATOMIC_RELEASE);
	/* At most a batch is waited for. */
	mb_machine_hold_memory(machine);
	if (!machine->paused)
		mb_vcpus_pause(machine->vcpus);

	first_ns = mb_vcpus_first_run_ns(machine->vcpus);
	if (first_ns > begin_ns)
		machine->outcome.start_to_first_run_ns = first_ns - begin_ns;
	if (first_ns && end_ns > first_ns)
		machine->outcome.run_ns = end_ns - first_ns;
	for (unsigned i = 0; i < machine->config.n_vcpus; i++)
		machine->outcome.n_exits += mb_vcpu_n_exits(mb_vcpus_at(machine->vcpus, i));
	*outcome = machine->outcome;
	if (rc)
		return mb_error_set(err, -rc, "event loop: %s", strerror(-rc));
	if (machine->failed) {
		if (err)
			*err = machine->error;
		return -EIO;
	}
	return 0;
}

void mb_machine_destroy(struct mb_machine *machine)
{
	if (!machine)
		return;
	__atomic_store_n(&machine->ending, true, __ATOMIC_RELEASE);
	if (__atomic_load_n(&machine->doing, __ATOMIC_RELAXED))
		__atomic_store_n(&machine->doing, "taking it down", __ATOMIC_RELEASE);
	/* Who waits for an answer will get none: better now than when everything is down. */
	mb_control_destroy(machine->control);
	/* Before the page tables that they work on. */
	mb_machine_remove_manager(machine);
	mb_machine_stop_content(machine);
	mb_machine_stop_share(machine);
	mb_machine_give_up_replicas(machine);
	mb_machine_remove_tracker(machine);
	/* Then vCPUs: nobody calls a device any more. The I/O loops last: devices stop on them. */
	if (machine->vcpus)
		mb_vcpus_pause(machine->vcpus);
	mb_machine_remove_devices(machine);
	mb_vcpus_destroy(machine->vcpus);
	for (unsigned k = 0; k < MB_MAX_GROUPS; k++)
		mb_loop_destroy(machine->io_loop[k]);
	mb_terminal_destroy(machine->terminal);
	mb_machine_remove_share(machine);
	mb_machine_remove_replicas(machine);
	mb_ram_destroy(machine->ram);
	mb_vm_destroy(machine->vm);
	mb_bus_destroy(machine->bus);
	mb_machine_remove_place(machine); /* now its memory is free */
	mb_loop_destroy(machine->loop);
	/* Until here: giving memory back may take long, too. */
	mb_machine_stop_signals(machine);
	if (machine->ask_fd >= 0)
		close(machine->ask_fd);
	free(machine->topology);
	pthread_sigmask(SIG_SETMASK, &machine->old_mask, NULL);
	free(machine);
}
