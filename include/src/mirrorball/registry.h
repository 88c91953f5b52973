/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_REGISTRY_H
#define MIRRORBALL_REGISTRY_H

#include <mirrorball/error.h>
#include <mirrorball/topology.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * What the machines of a host tell each other for their placement: a directory `placement` next to
 * the control sockets (control.h) with a file for each machine, its record, and a file `lock`.
 *
 * A record is locked by its machine's process as long as that lives (an open file description
 * lock, fcntl(2), which only who may write the file can take): one that is not locked counts for
 * nothing, whatever its name says, and goes with the next machine that looks. `lock` is held
 * (flock(2)) from looking at the others to telling them, so that two machines that start at once
 * see each other, and has the time of the last rebalance in it.
 *
 * Machines of one user share a directory. Those of others also count root's, where they may read
 * it. One thread at a time.
 */
struct mb_registry;

#define MB_REGISTRY_RECORD_BYTES 8192u /* of each file, at most */
#define MB_REGISTRY_MAX_RECORDS	 4096u /* more are not looked at */

/* What a machine has, or is expected to have soon, of a node. */
struct mb_registry_node {
	unsigned id; /* the kernel's number */
	unsigned vcpus;
	uint64_t promised_bytes; /* not touched yet */
	uint64_t resident_bytes;
	unsigned busy_ppm; /* its vCPUs, of one CPU */
	/* How busy the node was by all that ran there, of all of its CPUs, when the machine last
	 * looked; only where `measured`. */
	unsigned host_busy_ppm;
	bool measured;
};

struct mb_registry_record {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	unsigned n_nodes; /* at most MB_MAX_NODES */
	struct mb_registry_node node[MB_MAX_NODES];
};

/*
 * Opens the directory, making it if need be, and lets go of nothing yet. -errno: there is none and
 * none can be made, or it is not safe.
 */
int mb_registry_open(struct mb_registry **out, struct mb_error *err);
/* The same in these directories: `own` is made and written, `others` (ends with NULL) are read. */
int mb_registry_open_at(
	const char *own, const char *const *others, struct mb_registry **out, struct mb_error *err);
/* Removes the record. Takes NULL. */
void mb_registry_close(struct mb_registry *registry);

/* Waits so long at most; 0: does not wait. -EBUSY: somebody has it, and keeps it. */
int mb_registry_lock(struct mb_registry *registry, unsigned wait_ms);
void mb_registry_unlock(struct mb_registry *registry);

/*
 * What all other machines have, added up by node: vcpus, promised_bytes, resident_bytes and
 * busy_ppm; host_busy_ppm is from the newest record that has it, of the last 30 s before now_ns.
 * Records that make no sense are left out. Who holds the lock also removes those of the dead.
 */
void mb_registry_read(
	struct mb_registry *registry, uint64_t now_ns, struct mb_registry_record *sum);

/* Makes the record or replaces it; what others read meanwhile is the old one, the new one, or some
 * nodes of each. -errno. */
int mb_registry_publish(struct mb_registry *registry, const struct mb_registry_record *record);
bool mb_registry_is_published(const struct mb_registry *registry);

/* The time of the last rebalance of any machine. False: there was none. Caller holds the lock. */
bool mb_registry_last_move(struct mb_registry *registry, uint64_t now_ns, uint64_t *time_ns);
int mb_registry_note_move(struct mb_registry *registry, uint64_t now_ns); /* -errno; likewise */

/* The text of a record, its length or -E2BIG; and back: -EINVAL where it makes no sense. */
int mb_registry_format(
	const struct mb_registry_record *record, char text[MB_REGISTRY_RECORD_BYTES]);
int mb_registry_parse(const char *text, size_t len, struct mb_registry_record *record);

#endif
