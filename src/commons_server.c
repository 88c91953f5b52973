// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/json.h>
#include <mirrorball/thread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS	   1000u
#define HOST_SHARE 8u
#define END_NS	   1000000000ull

/* ---- time ---- */

/* Once a second where there is anything to look after; else nothing wakes it. */
void mb_commons_set_timer(struct mb_commons_server *server)
{
	unsigned ms = server->config.idle_ms && server->config.idle_ms < TICK_MS
			      ? server->config.idle_ms
			      : TICK_MS;
	bool on = server->n_pieces || server->n_bases || !server->listening ||
		  (server->config.idle_ms && !server->n_clients);
	struct timespec each = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};
	struct itimerspec now, wanted = {0};

	if (on)
		wanted.it_value = wanted.it_interval = each;
	timerfd_gettime(server->timer.fd, &now);
	if (on == (now.it_value.tv_sec || now.it_value.tv_nsec))
		return;
	timerfd_settime(server->timer.fd, 0, &wanted, NULL);
	/* What is known of memory is from before. */
	if (on)
		mb_commons_relieve(server);
}

static void set_listening(struct mb_commons_server *server, bool on)
{
	server->listening = on;
	server->listen.events = on ? EPOLLIN : 0;
	mb_loop_modify(server->loop, &server->listen);
}

static void on_timer(struct mb_watch *watch, uint32_t events)
{
	struct mb_commons_server *server = watch->ctx;
	uint64_t n;
	ssize_t got = read(watch->fd, &n, sizeof(n));

	(void)got;
	if (!server->listening)
		set_listening(server, true);
	mb_commons_relieve(server);
	if (server->config.idle_ms && !server->n_clients &&
		mb_now_ns() - server->idle_ns >= server->config.idle_ms * 1000000ull)
		mb_loop_stop(server->loop);
	mb_commons_set_timer(server);
}

static void on_listen(struct mb_watch *watch, uint32_t events)
{
	struct mb_commons_server *server = watch->ctx;
	int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd >= 0)
		mb_commons_client_welcome(server, fd);
	else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
		/* Who comes waits; what nobody uses may give a descriptor back. The loop must not
		 * spin. */
		if (!mb_commons_evict(server, -1, 1))
			set_listening(server, false);
	}
	mb_commons_set_timer(server);
}

static void on_done(struct mb_watch *watch, uint32_t events)
{
	struct mb_commons_server *server = watch->ctx;
	uint64_t n;
	ssize_t got = read(watch->fd, &n, sizeof(n));

	(void)got;
	mb_commons_jobs_reap(server);
	mb_commons_set_timer(server);
}

/* ---- the whole ---- */

static struct mb_watch watch_of(struct mb_commons_server *server, int fd,
	void (*ready)(struct mb_watch *watch, uint32_t events))
{
	return (struct mb_watch){.fd = fd, .events = EPOLLIN, .ready = ready, .ctx = server};
}

static int read_topology(struct mb_commons_server *server, struct mb_error *err)
{
	int fd = open("/sys", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = fd < 0 ? mb_error_set(err, errno, "/sys: %s", strerror(errno))
			: mb_topology_read(&server->topology, fd, err);

	if (fd >= 0)
		close(fd);
	return rc;
}

static int watch_all(struct mb_commons_server *server, struct mb_error *err)
{
	int rc;

	server->done_watch = watch_of(server, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), on_done);
	server->timer = watch_of(
		server, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), on_timer);
	if (server->done_watch.fd < 0 || server->timer.fd < 0)
		return mb_error_set(err, errno, "event loop: %s", strerror(errno));
	rc = mb_loop_add(server->loop, &server->listen);
	if (!rc)
		rc = mb_loop_add(server->loop, &server->done_watch);
	if (!rc)
		rc = mb_loop_add(server->loop, &server->timer);
	return rc ? mb_error_set(err, -rc, "event loop: %s", strerror(-rc)) : 0;
}

int mb_commons_server_create(const struct mb_commons_server_config *config,
	struct mb_commons_server **out, struct mb_error *err)
{
	struct mb_commons_server *server = calloc(1, sizeof(*server));
	int rc;

	if (!server) {
		close(config->listen_fd);
		return mb_error_set(err, ENOMEM, "out of memory");
	}
	server->config = *config;
	if (!server->config.max_bytes)
		server->config.max_bytes = mb_commons_total_memory(config->root) / HOST_SHARE;
	LIST_INIT(&server->clients);
	TAILQ_INIT(&server->bases);
	TAILQ_INIT(&server->unused);
	STAILQ_INIT(&server->done);
	pthread_mutex_init(&server->lock, NULL);
	mb_cond_init(&server->idle);
	server->listen = watch_of(server, config->listen_fd, on_listen);
	server->listening = true;
	server->idle_ns = mb_now_ns();
	server->done_watch.fd = server->timer.fd = -1;
	/* A client that went away while it was waited for must not keep accept waiting. */
	fcntl(config->listen_fd, F_SETFL, O_RDWR | O_NONBLOCK);
	rc = mb_loop_create(&server->loop, err);
	if (!rc)
		rc = read_topology(server, err);
	if (!rc)
		rc = watch_all(server, err);
	if (rc) {
		mb_commons_server_destroy(server);
		return rc;
	}
	mb_commons_set_timer(server);
	*out = server;
	return 0;
}

int mb_commons_server_run(struct mb_commons_server *server)
{
	return mb_loop_run(server->loop);
}

void mb_commons_server_stop(struct mb_commons_server *server)
{
	mb_loop_stop(server->loop);
}

/* No worker is left. */
static bool wait_for_workers(struct mb_commons_server *server)
{
	uint64_t end_ns = mb_now_ns() + END_NS;
	struct timespec end = {
		.tv_sec = (time_t)(end_ns / 1000000000u), .tv_nsec = (long)(end_ns % 1000000000u)};
	bool over;

	pthread_mutex_lock(&server->lock);
	while (server->n_threads &&
		pthread_cond_timedwait(&server->idle, &server->lock, &end) != ETIMEDOUT)
		;
	over = !server->n_threads;
	pthread_mutex_unlock(&server->lock);
	return over;
}

bool mb_commons_server_destroy(struct mb_commons_server *server)
{
	struct client *client;

	if (!server)
		return true;
	while ((client = LIST_FIRST(&server->clients)))
		mb_commons_client_drop(client);
	close(server->listen.fd);
	if (!wait_for_workers(server))
		return false;
	mb_commons_jobs_reap(server);
	mb_commons_bases_expire(server, UINT64_MAX);
	/* Bases close their files on workers. */
	if (!wait_for_workers(server))
		return false;
	mb_commons_jobs_reap(server);
	if (server->done_watch.fd >= 0)
		close(server->done_watch.fd);
	if (server->timer.fd >= 0)
		close(server->timer.fd);
	mb_loop_destroy(server->loop);
	pthread_mutex_destroy(&server->lock);
	pthread_cond_destroy(&server->idle);
	free(server);
	return true;
}

/* ---- telling ---- */

static uint64_t saved_by(const struct piece *piece)
{
	return piece->n_refs > 1 ? (piece->n_refs - 1) * piece->n_present * MB_COMMONS_PAGE_BYTES
				 : 0;
}

static json_t *tell_base(const struct base *base, int *rc)
{
	json_t *object = json_object();
	uint64_t held = 0, pages = 0, saved = 0, refs = 0, sharers = 0;
	const struct piece *piece;

	TAILQ_FOREACH(piece, &base->pieces, of_base)
	{
		held += piece->bytes;
		pages += piece->n_present;
		saved += saved_by(piece);
		refs += piece->n_refs;
		/* Each client has one of a piece. */
		sharers = piece->n_refs > sharers ? piece->n_refs : sharers;
	}
	mb_json_put(object, "path", base->path ? json_string(base->path) : json_null(), rc);
	mb_json_put(object, "group",
		base->group ? json_string(mb_commons_group_name(base->group)) : json_null(), rc);
	mb_json_put_number(object, "device", base->identity.dev, rc);
	mb_json_put_number(object, "inode", base->identity.ino, rc);
	mb_json_put_number(object, "base_bytes", base->identity.bytes, rc);
	mb_json_put(object, "stale", json_boolean(base->stale), rc);
	mb_json_put_number(object, "clients", base->n_clients, rc);
	mb_json_put_number(object, "references", refs, rc);
	mb_json_put_number(object, "sharers", sharers, rc);
	mb_json_put_number(object, "pieces", base->n_pieces, rc);
	mb_json_put_number(object, "pages", pages, rc);
	mb_json_put_number(object, "held_bytes", held, rc);
	mb_json_put_number(object, "saved_bytes", saved, rc);
	return object;
}

static json_t *tell_node(const struct mb_commons_server *server, unsigned node, uint64_t *saved,
	uint64_t *all_pages, int *rc)
{
	json_t *object = json_object();
	uint64_t held = 0, pages = 0;
	const struct base *base;
	const struct piece *piece;

	TAILQ_FOREACH(base, &server->bases, all)
	TAILQ_FOREACH(piece, &base->pieces, of_base)
	{
		if (piece->node != node)
			continue;
		held += piece->bytes;
		pages += piece->n_present;
		*saved += saved_by(piece);
	}
	*all_pages += pages;
	mb_json_put_number(object, "node", server->topology.node[node].id, rc);
	mb_json_put_number(object, "held_bytes", held, rc);
	mb_json_put_number(object, "pages", pages, rc);
	mb_json_put(object, "short", json_boolean(server->node_short >> node & 1), rc);
	return object;
}

json_t *mb_commons_server_stat(const struct mb_commons_server *server, bool details)
{
	json_t *all = json_object(), *nodes = json_array(), *bases = json_array();
	uint64_t saved = 0, pages = 0;
	const struct base *base;
	int rc = 0;

	for (unsigned i = 0; i < server->topology.n_nodes; i++)
		if (server->topology.node[i].has_memory)
			mb_json_append(nodes, tell_node(server, i, &saved, &pages, &rc), &rc);
	if (details)
		TAILQ_FOREACH(base, &server->bases, all)
	mb_json_append(bases, tell_base(base, &rc), &rc);
	mb_json_put_number(all, "pid", (uint64_t)getpid(), &rc);
	mb_json_put_number(all, "clients", server->n_clients, &rc);
	mb_json_put_number(all, "references", server->n_refs, &rc);
	mb_json_put_number(all, "pieces", server->n_pieces, &rc);
	mb_json_put_number(all, "pages", pages, &rc);
	mb_json_put_number(all, "held_bytes", server->held_bytes, &rc);
	mb_json_put_number(all, "max_bytes", server->config.max_bytes, &rc);
	mb_json_put_number(all, "saved_bytes", saved, &rc);
	mb_json_put(all, "short", json_boolean(server->short_of_memory), &rc);
	mb_json_put_number(all, "hit_pages", server->hit_pages, &rc);
	mb_json_put_number(all, "read_pages", server->read_pages, &rc);
	mb_json_put_number(all, "copied_pages", server->copied_pages, &rc);
	mb_json_put_number(all, "groups", server->n_groups, &rc);
	mb_json_put_number(all, "noted_hashes", server->n_notes, &rc);
	mb_json_put_number(all, "content_pages", server->content_pages, &rc);
	mb_json_put_number(all, "evicted_bytes", server->evicted_bytes, &rc);
	mb_json_put_number(all, "refused", server->n_refused, &rc);
	mb_json_put_number(all, "bad_requests", server->n_bad, &rc);
	mb_json_put(all, "nodes", nodes, &rc);
	mb_json_put(all, "bases", bases, &rc);
	if (rc) {
		json_decref(all);
		return NULL;
	}
	return all;
}
