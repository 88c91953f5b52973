// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/acpi.h>
#include <mirrorball/json.h>
#include <mirrorball/snapshot.h>
#include <mirrorball/thread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "machine_internal.h"

/*
 * A machine into a snapshot (snapshot.h), and out of one. The machine stands still while it is
 * written: vCPUs first, then devices, each of which completes what is in flight. What is written
 * then is the state of a moment.
 *
 * In: vCPUs with their APICs first, for devices interrupt them as soon as they are there.
 */
#define PAUSE_NS     1000000000ull  /* a vCPU may wait for a terminal that nobody reads */
#define DEVICE_NS    10000000000ull /* a disk may not answer */
#define PAGE	     4096u
#define CHUNK	     (2u << 20) /* between two looks whether the machine is to end */
#define REMOVE_S     1
#define REMOVE_STACK (64u << 10)

/* ---- what can be saved ---- */

static int check(struct mb_machine *machine, struct mb_error *err)
{
	const struct mb_machine_config *config = &machine->config;

	for (unsigned i = 0; i < config->n_disks; i++) {
		int rc = mb_blk_can_save(machine->blk[i], err);

		if (rc)
			return rc;
	}
	for (unsigned i = 0; i < config->n_nics; i++) {
		int rc = mb_snapshot_check_passt(config->nic[i].passt_args, err);

		if (rc)
			return rc;
		if (!config->nic[i].passt && !config->nic[i].tap_name)
			return mb_error_set(err, ENOTSUP,
				"has a network by a descriptor (tap-fd), which cannot be opened "
				"again; a snapshot takes taps by name, and passt");
	}
	return 0;
}

/* ---- devices stand still ---- */

static void resume_devices(struct mb_machine *machine)
{
	mb_rng_resume(machine->rng);
	if (machine->console)
		mb_console_resume(machine->console);
	for (unsigned i = 0; i < machine->config.n_disks; i++)
		mb_blk_resume(machine->blk[i]);
	for (unsigned i = 0; i < machine->config.n_nics; i++)
		mb_net_resume(machine->net[i]);
	for (unsigned i = 0; i < machine->config.n_pmems; i++)
		mb_pmem_resume(machine->pmem[i]);
	if (machine->balloon)
		mb_balloon_resume(machine->balloon);
}

static int pause_devices(struct mb_machine *machine, struct mb_error *err)
{
	int rc = mb_rng_pause(machine->rng, DEVICE_NS, err);

	if (!rc && machine->console)
		rc = mb_console_pause(machine->console, DEVICE_NS, err);
	for (unsigned i = 0; i < machine->config.n_disks && !rc; i++)
		rc = mb_blk_pause(machine->blk[i], DEVICE_NS, err);
	for (unsigned i = 0; i < machine->config.n_nics && !rc; i++)
		rc = mb_net_pause(machine->net[i], DEVICE_NS, err);
	for (unsigned i = 0; i < machine->config.n_pmems && !rc; i++)
		rc = mb_pmem_pause(machine->pmem[i], DEVICE_NS, err);
	if (!rc && machine->balloon)
		rc = mb_balloon_pause(machine->balloon, DEVICE_NS, err);
	if (rc)
		resume_devices(machine);
	return rc;
}

/* ---- out ---- */

/* Where there is nothing in the file, there may be what is merged with other machines'. */
static int put_hole(struct mb_machine *machine, struct mb_snapshot_maker *maker, uint64_t at,
	uint64_t end, struct mb_error *err)
{
	const char *base = mb_ram_own_base(machine->ram);
	int rc = 0;

	for (uint64_t next; at < end && !rc; at = next) {
		bool merged = mb_replicas_is_merged(machine->replicas, at, PAGE);

		next = machine->replicas ? at + PAGE : end;
		while (next < end && mb_replicas_is_merged(machine->replicas, next, PAGE) == merged)
			next += PAGE;
		rc = mb_snapshot_put_ram(maker, merged ? base + at : NULL, next - at, err);
	}
	return rc;
}

static int put_data(struct mb_machine *machine, struct mb_snapshot_maker *maker, uint64_t at,
	uint64_t end, struct mb_error *err)
{
	const char *base = mb_ram_own_base(machine->ram);
	int rc = 0;

	for (uint64_t next; at < end && !rc; at = next) {
		next = end - at < CHUNK ? end : at + CHUNK;
		/* Not a signal that has only pressed the power button: whoever gets it may go on.
		 */
		if (__atomic_load_n(&machine->asked, __ATOMIC_ACQUIRE) & MB_ASK_QUIT)
			return mb_error_set(err, EINTR, "the machine ends");
		rc = mb_snapshot_put_ram(maker, base + at, next - at, err);
	}
	return rc;
}

/* What was never touched is not touched now, but where the memory is a snapshot's: that is read as
 * a whole. */
static int put_ram(
	struct mb_machine *machine, struct mb_snapshot_maker *maker, struct mb_error *err)
{
	const uint64_t bytes = machine->config.memory_bytes;
	const int fd = mb_ram_fd(machine->ram);
	int rc = 0;

	if (mb_ram_is_private(machine->ram))
		return put_data(machine, maker, 0, bytes, err);
	for (uint64_t at = 0; at < bytes && !rc;) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);
		off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);

		if (data < 0 && errno != ENXIO)
			return mb_error_set(err, errno, "guest memory: %s", strerror(errno));
		if (data < 0)
			data = hole = (off_t)bytes;
		if (hole < 0)
			return mb_error_set(err, errno, "guest memory: %s", strerror(errno));
		rc = put_hole(machine, maker, at, (uint64_t)data, err);
		if (!rc)
			rc = put_data(machine, maker, (uint64_t)data, (uint64_t)hole, err);
		at = (uint64_t)hole;
	}
	return rc;
}

/* As it is now: what was derived or left open when it was made is told. */
static void put_config(struct mb_machine *machine, struct mb_state_out *out)
{
	struct mb_machine_config config = machine->config;

	config.n_views = machine->n_views; /* the guest's CPUID depends on it */
	config.track = machine->asked_for.track;
	config.replica_bytes = machine->asked_for.replica_bytes;
	for (unsigned i = 0; i < config.n_disks; i++)
		config.disk[i].n_queues = mb_blk_n_queues(machine->blk[i]);
	for (unsigned i = 0; i < config.n_nics; i++) {
		mb_net_mac(machine->net[i], config.nic[i].mac);
		if (!config.nic[i].n_pairs)
			config.nic[i].n_pairs = 1;
	}
	if (!config.cmdline)
		config.cmdline = "";
	mb_snapshot_put_config(out, &config);
}

static int put_devices(struct mb_machine *machine, struct mb_snapshot_maker *maker,
	struct mb_state_out *out, struct mb_error *err)
{
	int rc = 0;

	mb_ioapic_save(machine->ioapic, out);
	if (machine->serial)
		mb_serial_save(machine->serial, out);
	mb_rtc_save(machine->rtc, out);
	mb_i8042_save(machine->i8042, out);
	mb_power_save(machine->power, out);
	mb_pci_bus_save(machine->pci, out);
	mb_rng_save(machine->rng, out);
	if (machine->console)
		mb_console_save(machine->console, out);
	for (unsigned i = 0; i < machine->config.n_disks && !rc; i++) {
		struct mb_blk *blk = machine->blk[i];
		int fd = mb_blk_has_delta(blk) ? mb_snapshot_disk(maker, i, err) : -1;

		rc = mb_blk_has_delta(blk) && fd < 0 ? fd : mb_blk_save(blk, fd, out, err);
	}
	for (unsigned i = 0; i < machine->config.n_nics; i++)
		mb_net_save(machine->net[i], out);
	for (unsigned i = 0; i < machine->config.n_pmems && !rc; i++)
		rc = mb_pmem_save(machine->pmem[i], out, err);
	if (machine->balloon)
		mb_balloon_save(machine->balloon, out);
	return rc;
}

/* Everything stands still. */
static int put_all(struct mb_machine *machine, struct mb_snapshot_maker *maker,
	struct mb_state_out *out, struct mb_error *err)
{
	int rc;

	put_config(machine, out);
	rc = mb_vcpus_save(machine->vcpus, out, err);
	if (!rc)
		rc = put_devices(machine, maker, out, err);
	return rc ? rc : put_ram(machine, maker, err);
}

static void set_making(struct mb_machine *machine, char *path)
{
	free(__atomic_exchange_n(&machine->making, path, __ATOMIC_ACQ_REL));
}

static void *remove_main(void *arg)
{
	mb_snapshot_remove_temporary(arg);
	free(arg);
	return NULL;
}

/* Files on a disk that does not answer cannot be removed either: that has its time, too. */
void mb_machine_drop_snapshot(struct mb_machine *machine)
{
	char *path = __atomic_exchange_n(&machine->making, NULL, __ATOMIC_ACQ_REL);
	struct timespec limit;
	pthread_t thread;

	if (!path)
		return;
	if (mb_thread_start(&thread, REMOVE_STACK, NULL, remove_main, path)) {
		free(path);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += REMOVE_S;
	pthread_timedjoin_np(thread, NULL, &limit);
}

/* It runs again before what was written is durable: that takes longest. */
static int save(struct mb_machine *machine, const char *path, struct mb_error *err)
{
	struct mb_snapshot_maker *maker;
	struct mb_state_out out = {0};
	int rc = check(machine, err);

	if (!rc)
		rc = mb_snapshot_begin(path, &maker, err);
	if (rc)
		return rc;
	set_making(machine, strdup(mb_snapshot_temporary(maker)));
	mb_machine_hold_memory(machine);
	if (!mb_vcpus_pause_within(machine->vcpus, PAUSE_NS)) {
		rc = mb_error_set(err, EBUSY,
			"a vCPU waits for somebody to read its console, or for a device; try "
			"again");
	} else {
		/* What the guest has asked for is the main loop's already, and not in its vCPUs any
		 * more. */
		rc = __atomic_load_n(&machine->asked, __ATOMIC_ACQUIRE) & ~(unsigned)MB_ASK_WINCH
			     ? mb_error_set(err, EBUSY, "is about to reset or to end; try again")
			     : pause_devices(machine, err);
		if (!rc) {
			rc = put_all(machine, maker, &out, err);
			resume_devices(machine);
		}
		mb_vcpus_tell_stopped(machine->vcpus);
		mb_vcpus_resume(machine->vcpus);
	}
	mb_machine_release_memory(machine);
	if (rc)
		mb_snapshot_finish(maker, NULL, NULL);
	else
		rc = mb_snapshot_finish(maker, &out, err);
	set_making(machine, NULL);
	mb_state_out_finish(&out);
	return rc;
}

int mb_machine_answer_snapshot(void *ctx, const char *path, json_t **answer, struct mb_error *err)
{
	struct mb_machine *machine = ctx;
	const uint64_t begin_ns = mb_now_ns();
	json_t *told = json_object();
	int rc = save(machine, path, err);

	if (!rc) {
		mb_machine_put_name(machine, told, &rc);
		mb_json_put_number(told, "took_ms", (mb_now_ns() - begin_ns) / 1000000, &rc);
		if (rc)
			mb_error_set(err, ENOMEM, "out of memory");
	}
	if (rc) {
		json_decref(told);
		return rc;
	}
	*answer = told;
	return 0;
}

/* ---- in ---- */

/* Calls fn for what is no hole in the snapshot's memory, until it fails; never across 2 MiB. */
static int each_part(struct mb_machine *machine,
	int (*fn)(struct mb_machine *machine, uint64_t at, uint64_t len, struct mb_error *err),
	struct mb_error *err)
{
	const int fd = mb_snapshot_ram_fd(machine->config.snapshot);
	const off_t bytes = (off_t)machine->config.memory_bytes;
	int rc = 0;

	for (off_t at = 0, hole = 0; at < bytes && !rc;) {
		if (at >= hole) {
			at = lseek(fd, at, SEEK_DATA);
			if (at < 0 && errno == ENXIO)
				break;
			hole = at < 0 ? -1 : lseek(fd, at, SEEK_HOLE);
			if (hole < 0)
				return mb_error_set(err, errno, "snapshot: cannot read memory: %s",
					strerror(errno));
		}
		off_t next = (at / CHUNK + 1) * CHUNK;

		if (next > hole)
			next = hole;
		rc = fn(machine, (uint64_t)at, (uint64_t)(next - at), err);
		at = next;
	}
	return rc;
}

static int load_part(struct mb_machine *machine, uint64_t at, uint64_t len, struct mb_error *err)
{
	const int fd = mb_snapshot_ram_fd(machine->config.snapshot);
	int rc;

	if (mb_machine_signalled(machine))
		return mb_error_set(err, EINTR, "stopped");
	rc = mb_ram_load(machine->ram, mb_ram_gpa(machine->ram, at), fd, at, len);
	return rc ? mb_error_set(err, -rc, "snapshot: cannot read memory: %s",
			    rc == -EIO ? "file ram is cut off, or its disk failed" : strerror(-rc))
		  : 0;
}

/* Memory that is mapped several times is the machine's own: no mapping of a file can be private to it. */
static int load_ram(struct mb_machine *machine, struct mb_error *err)
{
	return mb_ram_is_private(machine->ram) ? 0 : each_part(machine, load_part, err);
}

static int share_part(struct mb_machine *machine, uint64_t at, uint64_t len, struct mb_error *err)
{
	mb_machine_saw_snapshot(machine, at, len);
	return 0;
}

int mb_machine_share_snapshot(struct mb_machine *machine, struct mb_error *err)
{
	if (!machine->config.snapshot || mb_ram_is_private(machine->ram))
		return 0;
	return each_part(machine, share_part, err);
}

static int load_devices(struct mb_machine *machine, struct mb_state_in *in, struct mb_error *err)
{
	const struct mb_snapshot *snapshot = machine->config.snapshot;
	int rc = mb_ioapic_load(machine->ioapic, in, err);

	if (!rc && machine->serial)
		rc = mb_serial_load(machine->serial, in, err);
	if (!rc)
		rc = mb_rtc_load(machine->rtc, in, err);
	if (!rc)
		rc = mb_i8042_load(machine->i8042, in, err);
	if (!rc)
		rc = mb_power_load(machine->power, in, err);
	if (!rc)
		rc = mb_pci_bus_load(machine->pci, in, err);
	if (!rc)
		rc = mb_rng_load(machine->rng, in, err);
	if (!rc && machine->console)
		rc = mb_console_load(machine->console, in, err);
	for (unsigned i = 0; i < machine->config.n_disks && !rc; i++) {
		int fd = mb_snapshot_disk_fd(snapshot, i);

		if (mb_blk_has_delta(machine->blk[i]) != (fd >= 0))
			rc = mb_error_set(err, EINVAL, "lacks the changes of disk %u", i);
		else
			rc = mb_blk_load(machine->blk[i], fd, in, err);
	}
	for (unsigned i = 0; i < machine->config.n_nics && !rc; i++)
		rc = mb_net_load(machine->net[i], in, err);
	for (unsigned i = 0; i < machine->config.n_pmems && !rc; i++)
		rc = mb_pmem_load(machine->pmem[i], in, err);
	if (!rc && machine->balloon)
		rc = mb_balloon_load(machine->balloon, in, err);
	if (!rc && in->left)
		rc = mb_error_set(err, EINVAL, "has more devices than the machine");
	return rc;
}

/* There may be others that go on from the same moment. The thin guest has no ACPI, and its memory
 * is its own. */
static int new_identity(struct mb_machine *machine, struct mb_error *err)
{
	int rc = machine->config.splash ? 0 : mb_acpi_new_generation(machine->ram, err);

	if (!rc && !machine->config.splash)
		mb_power_new_generation(machine->power);
	return rc;
}

/*
 * A level interrupt that a vCPU had ended, but of which KVM had not told us when it stood still
 * (KVM_EXIT_IOAPIC_EOI comes before the guest goes on, and is no part of a vCPU's state): no APIC
 * has it any more, and nobody else would ever end it.
 */
static int end_interrupts(struct mb_machine *machine, struct mb_error *err)
{
	uint64_t vectors[MB_VECTOR_WORDS];
	int rc = mb_vcpus_get_vectors(machine->vcpus, vectors, err);

	for (unsigned v = 0; v < 64 * MB_VECTOR_WORDS && !rc; v++)
		if (!(vectors[v / 64] >> v % 64 & 1))
			mb_ioapic_eoi(machine->ioapic, (uint8_t)v);
	return rc;
}

int mb_machine_go_on(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_state_in in = mb_snapshot_state(machine->config.snapshot);
	int rc = load_ram(machine, err);

	if (rc)
		return rc;
	rc = mb_vcpus_load(machine->vcpus, &in, err);
	if (!rc)
		rc = load_devices(machine, &in, err);
	if (!rc)
		rc = end_interrupts(machine, err);
	if (rc)
		return mb_error_prefix(err, rc, "snapshot");
	rc = new_identity(machine, err);
	if (!rc)
		mb_vcpus_tell_stopped(machine->vcpus);
	return rc;
}
