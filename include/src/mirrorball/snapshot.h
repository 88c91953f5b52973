/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SNAPSHOT_H
#define MIRRORBALL_SNAPSHOT_H

#include <mirrorball/error.h>
#include <mirrorball/machine.h>
#include <mirrorball/state.h>
#include <stdint.h>

/*
 * A snapshot of a machine: a directory.
 *
 *   state      header, the machine's config, vCPUs, devices (state.h); checksummed
 *   ram        guest memory, byte by byte as mb_ram has it; what is zero is a hole
 *   disk-N     of disk N, which has a delta: what the guest has changed
 *
 *   state: magic (8) | version (4) | CRC-32C of the file with this field 0 (4) | bytes of the file
 * (8) | bytes of ram (8) | its time of change, ns (8) | CRC-32C of its pages (4) | 0 (20) | parts
 *
 * The directory gets its name when it is whole. Nobody changes it from then on: machines that were
 * restored from it go on reading `ram`. That it is as it was is told by the size and the time of
 * change of each file, so copies are made with cp -a; what is in `ram` is compared only when that
 * is asked for.
 */
#define MB_SNAPSHOT_VERSION 1u
#define MB_SNAPSHOT_HEADER  64u

struct mb_snapshot;

/*
 * Opens it for reading. -EINVAL: damaged, cut off or changed, of another version; -ENOENT: there is
 * none. What it says of a machine is possible (counts, sizes, kinds), and names files that need not
 * be there.
 */
int mb_snapshot_open(const char *dir, struct mb_snapshot **out, struct mb_error *err);
/* Takes NULL. */
void mb_snapshot_close(struct mb_snapshot *snapshot);
/*
 * The machine that it was made of, and the snapshot itself in it; in_fd, out_fd and what is about
 * this process are not set. Strings are the snapshot's. MAC addresses are those that it had.
 */
const struct mb_machine_config *mb_snapshot_config(const struct mb_snapshot *snapshot);
/* Reads all of `ram`. -EINVAL: it is not what was saved; -errno. */
int mb_snapshot_check_ram(const struct mb_snapshot *snapshot, struct mb_error *err);

int mb_snapshot_ram_fd(const struct mb_snapshot *snapshot);
/* -1: disk i has no delta. */
int mb_snapshot_disk_fd(const struct mb_snapshot *snapshot, unsigned i);
/* What is behind the config. */
struct mb_state_in mb_snapshot_state(const struct mb_snapshot *snapshot);

/* ---- making one ---- */

/* One that is being made: `path`.new-PID-N. */
struct mb_snapshot_maker;

/* -EEXIST: there is something of that name. path: absolute. */
int mb_snapshot_begin(const char *path, struct mb_snapshot_maker **out, struct mb_error *err);
/*
 * Writes guest memory: its next len bytes, multiples of 4 KiB, in order. data: NULL: zeroes. Pages
 * that are zero become holes.
 */
int mb_snapshot_put_ram(
	struct mb_snapshot_maker *maker, const void *data, uint64_t len, struct mb_error *err);
/* A new file for the changes of disk i, to be written until mb_snapshot_finish, which closes it.
 * -errno */
int mb_snapshot_disk(struct mb_snapshot_maker *maker, unsigned i, struct mb_error *err);
/* The directory as it is called meanwhile; maker's. */
const char *mb_snapshot_temporary(const struct mb_snapshot_maker *maker);
/*
 * Removes such a directory when whoever makes it will not: another thread may hang in it, and gets
 * -ENOENT if it goes on. One that has its name by now stays as it is.
 */
void mb_snapshot_remove_temporary(const char *temporary);
/* The config, for `state` to begin with. */
void mb_snapshot_put_config(struct mb_state_out *out, const struct mb_machine_config *config);
/*
 * Arguments for passt, NULL-terminated or NULL: -ENOTSUP if one is among them that no snapshot may
 * have, as it could make passt write files. Looked at when one is made, and when one is opened.
 */
int mb_snapshot_check_passt(const char *const *args, struct mb_error *err);
/*
 * Writes `state`, makes it all durable and gives it its name. Whatever comes of it, maker is gone;
 * where it failed, so is what was written. state NULL: it is given up.
 */
int mb_snapshot_finish(
	struct mb_snapshot_maker *maker, const struct mb_state_out *state, struct mb_error *err);

#endif
