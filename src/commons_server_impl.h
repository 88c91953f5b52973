/* SPDX-License-Identifier: Apache-2.0 */
#ifndef COMMONS_SERVER_IMPL_H
#define COMMONS_SERVER_IMPL_H

#include "commons_protocol.h"
#include <limits.h>
#include <mirrorball/commons_server.h>
#include <mirrorball/log.h>
#include <mirrorball/loop.h>
#include <mirrorball/topology.h>
#include <pthread.h>
#include <sys/queue.h>
#include <sys/types.h>

/* Steps that are left out or in a wrong order, which tests have to find (tests/unit/meson.build).
 */
#ifndef MB_COMMONS_WRONG
#define MB_COMMONS_WRONG 0
#endif
enum {
	WRONG_EARLY = 1, /* a page is told before it is there */
	WRONG_UNSEALED,	 /* pieces are not sealed */
	WRONG_UNCHECKED, /* a base is not looked at after it was read */
	WRONG_KEEP_REFS, /* what a client had stays when it is gone */
	WRONG_WRITABLE,	 /* descriptors are given away as they are here */
	WRONG_UNHASHED,	 /* a page that is given is believed to have the hash */
	WRONG_ONE_GROUP, /* of all users */
};

/*
 *   client --- refs ---> piece ---> base
 *      '--- slots -----------------> '
 *
 * A base is there as long as somebody has it open, has a job for it, or there are pieces of it. A
 * piece without references and pins is in server->unused, the one that was used longest ago first.
 *
 * All of it belongs to the loop's thread. A job belongs to its worker from enqueue to done; what it
 * needs of a base and a piece does not change meanwhile, but for data and presence, which only jobs
 * of that base write, one at a time.
 */

/* What tells one state of a file from another. Compared byte by byte: nothing but 64-bit numbers.
 */
struct mb_commons_identity {
	uint64_t is_device; /* block device */
	uint64_t dev, ino;  /* of a device: its number, and 0 */
	uint64_t bytes;
	int64_t mtime_ns, ctime_ns; /* of a device: 0 */
	uint64_t sequence;	    /* of a device: changes with what is in it (BLKGETDISKSEQ) */
};

struct lane;
struct group; /* commons_content.c */

struct base {
	TAILQ_ENTRY(base) all;
	struct group *group; /* NULL: a file. Else there is no file: fd is -1, and lane NULL */
	struct mb_commons_server *server;
	struct mb_commons_identity identity;
	int fd;	    /* our own opening: no lock, flag or offset of a client's is in it */
	char *path; /* as it was when it was opened; may be NULL */
	bool stale; /* changed: for nobody any more */
	unsigned n_clients, n_jobs;
	uint64_t unused_ns; /* since when it has no client */
	struct lane *lane;
	TAILQ_HEAD(, piece) pieces;
	unsigned n_pieces;
};

struct piece {
	struct piece *next_hash;
	TAILQ_ENTRY(piece) of_base, unused;
	struct base *base;
	uint64_t index;
	unsigned node; /* index of topology.node */
	int fd;	       /* writable, as it was before it was sealed */
	char *map;     /* MB_COMMONS_FILE_BYTES */
	struct mb_commons_state *state;
	uint64_t n_present;
	uint64_t bytes;		 /* memory that the file takes */
	unsigned n_refs, n_pins; /* clients; jobs and replies */
	LIST_HEAD(, ref) refs;
};

struct ref {
	LIST_ENTRY(ref) of_client, of_piece;
	struct client *client;
	struct piece *piece;
};

struct reply {
	STAILQ_ENTRY(reply) next;
	struct mb_commons_reply msg;
	struct piece *piece; /* whose descriptor goes along, pinned; or NULL */
	int fd;		     /* that goes along, and is closed here; or -1 */
};

struct client {
	LIST_ENTRY(client) all;
	struct mb_commons_server *server;
	struct mb_watch watch;
	uid_t uid;
	bool greeted;
	unsigned n_pending, n_refs;
	struct base *slot[MB_COMMONS_CLIENT_BASES];
	LIST_HEAD(, ref) refs;
	LIST_HEAD(, job) jobs;
	TAILQ_HEAD(notes, note) notes; /* the oldest first */
	unsigned n_notes;
	STAILQ_HEAD(, reply) replies;
	struct lane *lane;
};

/* Jobs that are done one after the other, on a thread that there is only while there are some. */
struct lane {
	struct mb_commons_server *server;
	unsigned n_users;	  /* its owner, and jobs; loop's thread */
	STAILQ_HEAD(, job) queue; /* server->lock */
	bool running;		  /* server->lock */
};

struct job {
	STAILQ_ENTRY(job) next; /* in a lane's queue, or server->done; server->lock */
	LIST_ENTRY(job) of_client;
	struct lane *lane;
	struct client *client;		 /* NULL: gone, or nobody's; loop's thread */
	bool cancelled;			 /* atomic: nobody waits for it */
	void (*run)(struct job *job);	 /* worker's thread */
	void (*finish)(struct job *job); /* loop's thread; client may be NULL */
	struct mb_commons_request asked;
	int status;

	int fd;	       /* OPEN: the client's; CLOSE: what to close */
	int opened_fd; /* OPEN: ours, or -1 */
	struct mb_commons_identity identity;

	struct base *base;	     /* WANT */
	struct piece *piece, *donor; /* donor: of another node, or NULL; both pinned */
	unsigned first, n;	     /* pages of the piece */
	uint64_t promised_bytes;
	uint64_t n_read, n_copied; /* pages that came so */
};

#define HASH_SIZE 16384u

struct mb_commons_server {
	struct mb_loop *loop;
	struct mb_watch listen, timer, done_watch;
	struct mb_commons_server_config config;
	struct mb_topology topology;
	uint64_t node_short; /* bits of indices: has too little memory */
	bool short_of_memory;
	bool listening;

	LIST_HEAD(, client) clients;
	unsigned n_clients;
	uint64_t idle_ns; /* since when there is none */
	TAILQ_HEAD(, base) bases;
	unsigned n_bases;
	TAILQ_HEAD(unused_pieces, piece) unused;
	struct piece *hash[HASH_SIZE];
	unsigned n_pieces;
	uint64_t held_bytes, promised_bytes;
	uint64_t unwatched_bytes; /* promised since memory was looked at */
	unsigned n_notes, n_groups;
	uint64_t content_pages; /* of all groups, on all nodes */
	uint64_t n_refs, hit_pages, read_pages, copied_pages, evicted_bytes, n_bad, n_refused;

	struct mb_ratelimit complaints;

	pthread_mutex_t lock; /* lanes' queues, done, n_threads; nothing is called with it */
	pthread_cond_t idle;  /* n_threads is 0 */
	STAILQ_HEAD(, job) done;
	unsigned n_threads;
};

/* ---- commons_jobs.c ---- */
struct lane *mb_commons_lane_create(struct mb_commons_server *server);
void mb_commons_lane_put(struct lane *lane);
/* client: who waits for it, or NULL. NULL without memory. */
struct job *mb_commons_job_create(struct lane *lane, struct client *client);
/* Takes it over: finish will be called from the loop, whatever happens. */
void mb_commons_job_enqueue(struct job *job);
/* Calls finish of all that are done. */
void mb_commons_jobs_reap(struct mb_commons_server *server);
void mb_commons_job_disown(struct job *job);
/* Closes fd on that lane: to close may be to wait for a file system. */
void mb_commons_close_on(struct lane *lane, int fd);

/* ---- commons_base.c ---- */
int mb_commons_identify(int fd, struct mb_commons_identity *identity);
/* Another one for another state of the file: for a client, after a new daemon. */
uint64_t mb_commons_hash(const struct mb_commons_identity *identity);
bool mb_commons_is_settled(const struct mb_commons_identity *identity);
void mb_commons_open_run(struct job *job);
/* The base that a finished OPEN found, one more client counted. -errno. */
int mb_commons_base_get(struct mb_commons_server *server, struct job *job, struct base **out);
void mb_commons_base_put(struct base *base);
/* Frees it if nobody needs it. */
void mb_commons_base_check(struct base *base);
void mb_commons_base_make_stale(struct base *base);
/* Those without a client since before that time. */
void mb_commons_bases_expire(struct mb_commons_server *server, uint64_t before_ns);

/* ---- commons_piece.c ---- */
struct piece *mb_commons_piece_find(const struct base *base, uint64_t index, unsigned node);
int mb_commons_piece_create(struct base *base, uint64_t index, unsigned node, struct piece **out);
void mb_commons_piece_pin(struct piece *piece);
void mb_commons_piece_unpin(struct piece *piece);
/* One reference a client; -EMFILE, -ENOMEM. */
int mb_commons_ref_get(struct client *client, struct piece *piece);
void mb_commons_ref_drop(struct ref *ref);
struct ref *mb_commons_ref_find(struct client *client, struct piece *piece);
void mb_commons_piece_drop(struct piece *piece);
/* Measures again what its file takes. */
void mb_commons_piece_measure(struct piece *piece);
/* Drops unused pieces, of one node (or of all: -1), until so many bytes are free. What was freed.
 */
uint64_t mb_commons_evict(struct mb_commons_server *server, int node, uint64_t bytes);
/* Pages of [first, first + n) that are there. */
unsigned mb_commons_count(const struct mb_commons_state *state, unsigned first, unsigned n);
bool mb_commons_has(const struct mb_commons_state *state, unsigned page);
/* A new opening of its file, for reading. -errno. */
int mb_commons_piece_open(const struct piece *piece);

/* ---- commons_content.c: groups. Requests were checked. 0 or -errno: as take_request ---- */
int mb_commons_group_join(struct client *client, const struct mb_commons_packet *packet);
int mb_commons_group_offer(struct client *client, const struct mb_commons_packet *packet);
int mb_commons_group_fetch(struct client *client, const struct mb_commons_request *asked);
int mb_commons_group_give(struct client *client, const struct mb_commons_packet *packet);
/* What the client has offered there is forgotten; NULL: wherever. */
void mb_commons_group_leave(struct client *client, const struct base *base);
/* That is about to be gone. */
void mb_commons_group_dropped(const struct piece *piece);
/* Frees what belongs to the base: it has no pieces and no clients. Takes NULL. */
void mb_commons_group_free(struct mb_commons_server *server, struct group *group);
const char *mb_commons_group_name(const struct group *group);
/* How many hashes are in one bucket at most, for tests. */
unsigned mb_commons_group_longest(const struct group *group);
/* Offers from before that time are forgotten. */
void mb_commons_groups_expire(struct mb_commons_server *server, uint64_t before_ns);

/* ---- commons_fill.c ---- */
void mb_commons_fill_run(struct job *job);

/* ---- commons_pressure.c ---- */
uint64_t mb_commons_total_memory(const char *root);
/* By how many bytes the host, or the cgroup, is short of memory; held: what is held here. */
uint64_t mb_commons_shortage(const char *root, uint64_t held_bytes);
/* Measures, evicts what is to be, and remembers which nodes are short. */
void mb_commons_relieve(struct mb_commons_server *server);

/* ---- commons_server.c ---- */
/* What there is to look after has changed. */
void mb_commons_set_timer(struct mb_commons_server *server);

/* ---- commons_client.c ---- */
void mb_commons_client_welcome(struct mb_commons_server *server, int fd);
void mb_commons_client_drop(struct client *client);
/* Of a node by the kernel's number; -1: none with memory. */
int mb_commons_node_index(const struct mb_commons_server *server, unsigned id);
/* Room for so many more bytes, if need be instead of what nobody uses. -ENOMEM, -ENOSPC. */
int mb_commons_make_room(struct mb_commons_server *server, unsigned node, uint64_t bytes);
/* Caller holds nothing of client afterwards: it may be gone. */
void mb_commons_reply(struct client *client, const struct mb_commons_request *asked, int status,
	const struct mb_commons_reply *more, struct piece *piece, int fd);

#endif
