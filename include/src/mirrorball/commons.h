/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_COMMONS_H
#define MIRRORBALL_COMMONS_H

#include <mirrorball/content_hash.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A monitor's side of the commons: what mirrorballd (mirrorballd(8)) holds of the base images that
 * several machines have in common, one read-only copy per NUMA node.
 *
 * A base is cut into pieces of MB_COMMONS_PIECE; each piece is a file in memory with the layout of
 * the base, page for page, in which pages are there or not. The daemon fills it on request
 * (`want`); once a page is there its bytes never change, whoever does what. Nobody but the daemon
 * can write to such a file; monitors get read-only descriptors, and nothing that another monitor
 * does with its own can be seen in them.
 *
 * The daemon is a help, not a need: it may not be there, may be slow, and may die at any moment. No
 * function here waits for it or for a disk. What was mapped stays valid whatever becomes of it.
 *
 * All functions are for one thread, but mb_commons_read. Callbacks run inside mb_commons_poll, on
 * its thread, and may call anything here but mb_commons_poll and mb_commons_destroy.
 *
 * *Verify before you map.* A page comes from the file that had the base's identity (device, inode,
 * size, times of change) before and after it was read, but a file may change without its times, and
 * a block device has none: compare with what the guest has.
 */
#define MB_COMMONS_PAGE	 4096u
#define MB_COMMONS_PIECE (8u << 20)

struct mb_commons;
struct mb_commons_base; /* a base of this client */

enum mb_commons_status {
	MB_COMMONS_ABSENT,     /* no daemon; tried again by and by */
	MB_COMMONS_CONNECTING, /* asked, and no answer yet */
	MB_COMMONS_READY,
};

/* A `want` that is over. */
struct mb_commons_done {
	struct mb_commons_base *base;
	unsigned node;
	uint64_t offset, len; /* as wanted; of fetch and give: where the page is, and its length */
	uint64_t there, wanted; /* of offer: bit i is the i-th hash */
	/*
	 * 0: the range's pages are all there. -errno: none, or only some, are; look.
	 * -EPIPE: the daemon went away; want again when it is READY. -ESTALE: the base changed (so
	 * all further wants of it fail; close it). -ENOSPC, -ENOMEM: the daemon has no room now, or
	 * the node has none. -ENODEV: no such node. -EIO and others: reading failed. -ENOENT:
	 * mb_commons_have, and there is nothing. -EMFILE: too many descriptors, here or there.
	 */
	int status;
	void *ctx; /* of the want */
};

struct mb_commons_config {
	const char *path; /* of the socket; NULL: the usual places (mirrorballd(8)) */
	/* Whether a daemon may be started where there is none. Only for path NULL or in a directory
	 * that is this user's alone. */
	bool start;
	const char *program; /* to start; NULL: mirrorballd beside this program, then in PATH */
	void (*done)(void *ctx, const struct mb_commons_done *done); /* not NULL */
	void *ctx;
};

/* Fails for want of memory or descriptors only, never for want of a daemon. Config is copied, but
 * for its strings, which must stay. */
int mb_commons_create(
	const struct mb_commons_config *config, struct mb_commons **out, struct mb_error *err);
/* Closes all bases first. No callback. Takes NULL. Mappings that the caller made stay valid. */
void mb_commons_destroy(struct mb_commons *commons);

/*
 * Readable (level-triggered) when mb_commons_poll has something to do: the daemon said something,
 * or it is time to look for one. Watch it, or call poll from time to time.
 */
int mb_commons_fd(const struct mb_commons *commons);
/* Connects, starts a daemon, receives, calls back; whatever can be done without waiting. */
void mb_commons_poll(struct mb_commons *commons);
enum mb_commons_status mb_commons_status(const struct mb_commons *commons);

/*
 * A base, by any descriptor of it that can be read: a regular file or a block device. It is copied.
 * The daemon hears of it at once or when there is one, and again after each new connection.
 * -EMFILE: MB_COMMONS_MAX_OPEN are open, or out of descriptors. -ENOMEM.
 */
#define MB_COMMONS_MAX_OPEN 64u
int mb_commons_open_base(struct mb_commons *commons, int fd, struct mb_commons_base **out);
/* Releases all of its pieces; no callback comes for what was wanted of it. Takes NULL. */
void mb_commons_close_base(struct mb_commons_base *base);
/*
 * What the daemon says of it: 0, it can be wanted; -EINPROGRESS, no answer yet (or no daemon); else
 * why it is refused: -ESTALE, it changed; -EACCES, the daemon cannot open it; -EINVAL, neither a
 * file nor a block device; -EMFILE, -ENOSPC: it has too many.
 */
int mb_commons_base_status(const struct mb_commons_base *base);

/*
 * Asks for pages [offset, offset + len) on a node (the kernel's number): whole pages, all within
 * one piece and the base (whose last page may be cut: what is beyond its end are zeroes).
 * config.done is called exactly once, from a later mb_commons_poll, if this returns 0. Meanwhile
 * and afterwards the piece is referenced, until it is released. -EAGAIN: enough is under way (64),
 * or the daemon does not read; later. -EINVAL: not such a range. Else as mb_commons_base_status;
 * -ENOTCONN: no daemon now.
 */
int mb_commons_want(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len, void *ctx);
/* The same without reading: gets the piece if the daemon has one. */
int mb_commons_have(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len, void *ctx);

struct mb_commons_piece {
	int fd;			   /* the library's: do not close it, copy it to keep it */
	uint64_t fd_offset;	   /* in fd, of base_offset */
	uint64_t base_offset, len; /* len may be less at the base's end; whole pages */
	/*
	 * Another one each time that the file behind fd is another one (after a new daemon). What
	 * is mapped of an older one is still right, but no other machine shares it any more.
	 */
	uint64_t generation;
	const void *data; /* the library's own mapping of all len bytes, PROT_READ; see
			     mb_commons_lookup */
	bool stale;	  /* the base has changed since: serve nothing from it */
};

/*
 * The piece that has offset on this node, if the daemon has given it: 0 or -ENOENT. No system call.
 *
 * How to map: MAP_PRIVATE, so that mprotect and userfaultfd are possible; the kernel refuses both
 * for a shared mapping of a file that is sealed against writing. Do not touch pages that are not
 * there (mb_commons_lookup): memory would be taken for a page of zeroes that is of no use.
 */
int mb_commons_piece(struct mb_commons_base *base, unsigned node, uint64_t offset,
	struct mb_commons_piece *piece);

/*
 * Where [offset, offset + len), all in one page or piece, can be read: if all its pages are there
 * and the base has not changed; else NULL. Valid until the next mb_commons_poll, release or close.
 * No system call. Any alignment.
 */
const void *mb_commons_lookup(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len);

/* The same as a place in the piece's file, for who maps it (mb_commons_piece). False: not there. */
bool mb_commons_find(struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len,
	int *fd, uint64_t *fd_offset);
/* How many pieces a machine does well to keep, at least 1 and at most max: what fits its memory, by
 * as many descriptors as it may have. */
unsigned mb_commons_most_pieces(uint64_t ram_bytes, unsigned n_views, unsigned max);

/*
 * The same into a buffer, from any thread, as long as the base is open: whether it was there. Any
 * range of the base; several pieces.
 */
bool mb_commons_read(
	struct mb_commons_base *base, unsigned node, uint64_t offset, uint64_t len, void *buffer);

/*
 * This machine maps nothing any more of the piece that has offset: the daemon may drop it when it
 * needs room. Mappings that are left stay valid, but their memory is not counted any more: be
 * honest.
 */
void mb_commons_release(struct mb_commons_base *base, unsigned node, uint64_t offset);

/*
 * A trust group (content.h), which is used as a base whose pages are those that its members gave:
 * MB_COMMONS_OFFER_MAX hashes at a time are offered. Of those that are `there` the page can be
 * fetched; of those that are `wanted` another member has the page, too, and it is to be given. Either
 * way it is known in the end where it is, and mb_commons_lookup and mb_commons_piece take that place.
 * Its status, close and release are those of a base; it cannot be wanted.
 */
#define MB_COMMONS_OFFER_MAX 64u
/* name: printable characters but blanks, at most MB_CONTENT_GROUP_MAX. -EINVAL, -EMFILE, -ENOMEM. */
int mb_commons_join(
	struct mb_commons *commons, const char *name, struct mb_commons_base **out);
/* Of its hashes, when its status is 0; another one after each new daemon. */
struct mb_content_key mb_commons_key(const struct mb_commons_base *group);
/*
 * As mb_commons_want: config.done is called once if this is 0. -EAGAIN: later. Of fetch and give the
 * status may be -ENOENT: nobody has it any more, or nobody but this machine.
 */
int mb_commons_offer(struct mb_commons_base *group, const struct mb_content_hash *hash, unsigned n,
	void *ctx);
int mb_commons_fetch(struct mb_commons_base *group, unsigned node,
	const struct mb_content_hash *hash, void *ctx);
/* page: what was hashed, and not guest memory, which may change: the daemon believes no other hash. */
int mb_commons_give(struct mb_commons_base *group, unsigned node,
	const struct mb_content_hash *hash, const void *page, void *ctx);

/*
 * What the daemon tells of itself as JSON (mirrorballd(8)), for a command: waits, at most wait_ms.
 * path as in config. *text is to be freed. -ENOENT, -ECONNREFUSED: no daemon.
 */
int mb_commons_stat(const char *path, unsigned wait_ms, char **text, struct mb_error *err);

#endif
