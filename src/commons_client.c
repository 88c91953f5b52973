// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include "commons_socket.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* mirrorballd's side of a connection. Every field of a request is checked here, once. */

#define BATCH		16u /* requests in a row, then it is somebody else's turn */
#define UNWATCHED_BYTES (16u << 20)

/* ---- replies ---- */

static void set_events(struct client *client)
{
	uint32_t events = client->n_pending < MB_COMMONS_CLIENT_PENDING ? EPOLLIN : 0;

	if (!STAILQ_EMPTY(&client->replies))
		events |= EPOLLOUT;
	if (events == client->watch.events)
		return;
	client->watch.events = events;
	mb_loop_modify(client->server->loop, &client->watch);
}

/* 0, or -errno: -EAGAIN, later; else it is the end of the connection. */
static int send_reply(struct client *client, const struct reply *reply)
{
	struct mb_commons_reply msg = reply->msg;
	int fd = reply->piece ? mb_commons_piece_open(reply->piece) : reply->fd, rc;

	if (reply->piece && fd < 0)
		msg.status = fd == -ENFILE ? -EMFILE : fd;
	if (fd >= 0)
		msg.flags |= MB_COMMONS_HAS_FD;
	rc = mb_commons_packet_send(client->watch.fd, &msg, sizeof(msg), fd);
	if (reply->piece && fd >= 0)
		close(fd);
	return rc;
}

static void free_reply(struct reply *reply)
{
	if (reply->piece)
		mb_commons_piece_unpin(reply->piece);
	if (reply->fd >= 0)
		close(reply->fd);
	free(reply);
}

/* -errno: the connection cannot go on. */
static int send_replies(struct client *client)
{
	struct reply *reply;

	while ((reply = STAILQ_FIRST(&client->replies))) {
		int rc = send_reply(client, reply);

		if (rc)
			return rc == -EAGAIN ? 0 : rc;
		STAILQ_REMOVE_HEAD(&client->replies, next);
		client->n_pending--;
		free_reply(reply);
	}
	return 0;
}

void mb_commons_reply(struct client *client, const struct mb_commons_request *asked, int status,
	const struct mb_commons_reply *more, struct piece *piece, int fd)
{
	struct reply *reply = calloc(1, sizeof(*reply));

	if (!reply) {
		/* It would wait for ever: better none than that. */
		if (fd >= 0)
			close(fd);
		shutdown(client->watch.fd, SHUT_RDWR);
		return;
	}
	if (more)
		reply->msg = *more;
	reply->msg.magic = MB_COMMONS_MAGIC;
	reply->msg.version = MB_COMMONS_VERSION;
	reply->msg.type = asked->type;
	reply->msg.tag = asked->tag;
	reply->msg.status = status;
	reply->msg.base = more ? more->base : asked->base;
	reply->msg.node = asked->node;
	reply->piece = piece;
	reply->fd = fd;
	if (piece)
		mb_commons_piece_pin(piece);
	STAILQ_INSERT_TAIL(&client->replies, reply, next);
	/* An error is told by epoll as well; here nobody may lose the client. */
	if (send_replies(client))
		shutdown(client->watch.fd, SHUT_RDWR);
	set_events(client);
}

/* ---- opening and closing bases ---- */

static void open_finish(struct job *job)
{
	struct client *client = job->client;
	struct mb_commons_reply more = {0};
	unsigned slot = 0;
	int rc = job->status;
	struct base *base;

	if (client && !rc) {
		while (slot < MB_COMMONS_CLIENT_BASES && client->slot[slot])
			slot++;
		rc = slot == MB_COMMONS_CLIENT_BASES
			     ? -EMFILE
			     : mb_commons_base_get(client->server, job, &base);
	}
	if (client && !rc) {
		client->slot[slot] = base;
		more.base = slot;
		more.value = base->identity.bytes;
		more.offset = mb_commons_hash(&base->identity);
	}
	mb_commons_close_on(job->lane, job->opened_fd);
	if (client)
		mb_commons_reply(client, &job->asked, rc, &more, NULL, -1);
}

static int open_base(struct client *client, const struct mb_commons_request *asked, int fd)
{
	struct job *job = mb_commons_job_create(client->lane, client);

	if (!job) {
		mb_commons_close_on(client->lane, fd);
		mb_commons_reply(client, asked, -ENOMEM, NULL, NULL, -1);
		return 0;
	}
	job->asked = *asked;
	job->fd = fd;
	job->run = mb_commons_open_run;
	job->finish = open_finish;
	mb_commons_job_enqueue(job);
	return 0;
}

static int close_base(struct client *client, const struct mb_commons_request *asked)
{
	struct base *base = client->slot[asked->base];
	struct ref *ref, *next;
	bool again = false;

	client->slot[asked->base] = NULL;
	for (unsigned i = 0; i < MB_COMMONS_CLIENT_BASES; i++)
		again |= client->slot[i] == base;
	for (ref = LIST_FIRST(&client->refs); ref && !again; ref = next) {
		next = LIST_NEXT(ref, of_client);
		if (ref->piece->base == base)
			mb_commons_ref_drop(ref);
	}
	if (!again)
		mb_commons_group_leave(client, base);
	mb_commons_base_put(base);
	return 0;
}

/* ---- wants ---- */

int mb_commons_node_index(const struct mb_commons_server *server, unsigned id)
{
	for (unsigned i = 0; i < server->topology.n_nodes; i++)
		if (server->topology.node[i].id == id && server->topology.node[i].has_memory)
			return (int)i;
	return -1;
}

/* An answer about a piece, with a reference to it where it is good for something. */
static void give(struct client *client, const struct mb_commons_request *asked, int status,
	struct piece *piece)
{
	struct mb_commons_reply more = {.base = asked->base};
	unsigned first = (unsigned)(asked->offset % MB_COMMONS_PIECE_BYTES / MB_COMMONS_PAGE_BYTES);
	unsigned n = (unsigned)(asked->len / MB_COMMONS_PAGE_BYTES);
	bool needs = asked->flags & MB_COMMONS_NEED_FD;
	int rc;

	more.offset = piece->index * MB_COMMONS_PIECE_BYTES;
	more.value = mb_commons_count(piece->state, first, n);
	/* Where some pages are there, those are worth having; but not of a base that changed. */
	if (status && (!more.value || status == -ESTALE))
		needs = false;
	if (!status || needs) {
		rc = mb_commons_ref_get(client, piece);
		if (rc) {
			status = status ? status : rc;
			needs = false;
		}
	}
	mb_commons_reply(client, asked, status, &more, needs ? piece : NULL, -1);
}

static void fill_finish(struct job *job)
{
	struct client *client = job->client;
	struct piece *piece = job->piece, *donor = job->donor;
	struct base *base = job->base;
	struct mb_commons_server *server = base->server;

	server->promised_bytes -= job->promised_bytes;
	server->read_pages += job->n_read;
	server->copied_pages += job->n_copied;
	piece->n_present = mb_commons_count(piece->state, 0, MB_COMMONS_PIECE_PAGES);
	mb_commons_piece_measure(piece);
	if (job->status == -ESTALE && !base->stale)
		mb_commons_base_make_stale(base); /* which is still there: it has a job */
	if (client && client->slot[job->asked.base] == base)
		give(client, &job->asked, job->status, piece);
	else if (client)
		mb_commons_reply(client, &job->asked, -ECANCELED, NULL, NULL, -1);
	mb_commons_piece_unpin(piece);
	if (donor)
		mb_commons_piece_unpin(donor);
	base->n_jobs--;
	mb_commons_base_check(base);
}

/* The piece of another node that has most of it. */
static struct piece *find_donor(const struct piece *piece)
{
	struct piece *best = NULL;

	for (unsigned i = 0; i < piece->base->server->topology.n_nodes; i++) {
		struct piece *other = i == piece->node
					      ? NULL
					      : mb_commons_piece_find(piece->base, piece->index, i);

		if (other && other->n_present && (!best || other->n_present > best->n_present))
			best = other;
	}
	return best;
}

int mb_commons_make_room(struct mb_commons_server *server, unsigned node, uint64_t bytes)
{
	uint64_t taken;

	/* What is free is looked at each second; much can be read within one. */
	server->unwatched_bytes += bytes;
	if (server->unwatched_bytes > UNWATCHED_BYTES)
		mb_commons_relieve(server);
	taken = server->held_bytes + server->promised_bytes + bytes;
	if (server->short_of_memory || server->node_short >> node & 1)
		return -ENOMEM;
	if (taken > server->config.max_bytes)
		taken -= mb_commons_evict(server, -1, taken - server->config.max_bytes);
	return taken > server->config.max_bytes ? -ENOSPC : 0;
}

static void fill(struct client *client, const struct mb_commons_request *asked, struct piece *piece,
	unsigned first, unsigned n, unsigned n_there)
{
	struct base *base = piece->base;
	struct mb_commons_server *server = base->server;
	uint64_t bytes = (uint64_t)(n - n_there) * MB_COMMONS_PAGE_BYTES;
	int rc = mb_commons_make_room(server, piece->node, bytes);
	struct job *job = rc ? NULL : mb_commons_job_create(base->lane, client);

	if (!job) {
		give(client, asked, rc ? rc : -ENOMEM, piece);
		return;
	}
	job->asked = *asked;
	job->base = base;
	job->piece = piece;
	job->donor = find_donor(piece);
	job->first = first;
	job->n = n;
	job->promised_bytes = bytes;
	job->run = mb_commons_fill_run;
	job->finish = fill_finish;
	mb_commons_piece_pin(piece);
	if (job->donor)
		mb_commons_piece_pin(job->donor);
	base->n_jobs++;
	server->promised_bytes += bytes;
	mb_commons_job_enqueue(job);
}

static int want(struct client *client, const struct mb_commons_request *asked)
{
	struct mb_commons_server *server = client->server;
	struct base *base = client->slot[asked->base];
	uint64_t index = asked->offset / MB_COMMONS_PIECE_BYTES;
	uint64_t end = mb_align_up(base->identity.bytes, MB_COMMONS_PAGE_BYTES);
	unsigned first = (unsigned)(asked->offset % MB_COMMONS_PIECE_BYTES / MB_COMMONS_PAGE_BYTES);
	unsigned n, n_there;
	int node = mb_commons_node_index(server, asked->node), rc = 0;
	struct piece *piece = NULL;

	if (!mb_range_inside(asked->offset, asked->len, 0, end) ||
		(asked->offset | asked->len) % MB_COMMONS_PAGE_BYTES ||
		asked->len > MB_COMMONS_PIECE_BYTES - asked->offset % MB_COMMONS_PIECE_BYTES)
		return -EINVAL;
	n = (unsigned)(asked->len / MB_COMMONS_PAGE_BYTES);
	if (node < 0)
		rc = -ENODEV;
	else if (base->stale)
		rc = -ESTALE;
	else
		piece = mb_commons_piece_find(base, index, (unsigned)node);
	if (!rc && !piece)
		rc = asked->flags & MB_COMMONS_ONLY_HAVE
			     ? -ENOENT
			     : mb_commons_piece_create(base, index, (unsigned)node, &piece);
	if (rc) {
		mb_commons_reply(client, asked, rc, NULL, NULL, -1);
		return 0;
	}
	mb_commons_piece_pin(piece);
	n_there = mb_commons_count(piece->state, first, n);
	server->hit_pages += n_there;
	if (n_there == n || (asked->flags & MB_COMMONS_ONLY_HAVE))
		give(client, asked, n_there == n ? 0 : -ENOENT, piece);
	else
		fill(client, asked, piece, first, n, n_there);
	mb_commons_piece_unpin(piece);
	return 0;
}

static int release(struct client *client, const struct mb_commons_request *asked)
{
	struct base *base = client->slot[asked->base];
	int node = mb_commons_node_index(client->server, asked->node);
	struct piece *piece =
		node < 0 ? NULL
			 : mb_commons_piece_find(
				   base, asked->offset / MB_COMMONS_PIECE_BYTES, (unsigned)node);
	struct ref *ref = piece ? mb_commons_ref_find(client, piece) : NULL;

	if (ref)
		mb_commons_ref_drop(ref);
	return 0;
}

/* ---- telling ---- */

static void tell(struct client *client, const struct mb_commons_request *asked)
{
	/* Names of files and who has them are not for every user of a common daemon. */
	bool details = !client->uid || client->uid == geteuid();
	json_t *all = mb_commons_server_stat(client->server, details);
	char *text = all ? json_dumps(all, JSON_COMPACT) : NULL;
	struct mb_commons_reply more = {.value = text ? strlen(text) : 0};
	int fd = text ? memfd_create("mirrorball-commons-stat", MFD_CLOEXEC) : -1;
	int rc = text ? 0 : -ENOMEM;

	json_decref(all);
	if (text && fd < 0)
		rc = -errno;
	if (fd >= 0 && write(fd, text, more.value) != (ssize_t)more.value) {
		rc = -ENOMEM;
		close(fd);
		fd = -1;
	}
	free(text);
	mb_commons_reply(client, asked, rc, &more, NULL, fd);
}

/* ---- requests ---- */

/* -errno: no honest client sends this. */
static int check(
	const struct client *client, const struct mb_commons_request *asked, size_t len, int fd)
{
	bool of_group = asked->type >= MB_COMMONS_OFFER;
	bool has_base = asked->type == MB_COMMONS_CLOSE || asked->type == MB_COMMONS_WANT ||
			asked->type == MB_COMMONS_RELEASE || of_group;
	bool has_place = asked->type == MB_COMMONS_WANT || asked->type == MB_COMMONS_RELEASE ||
			 asked->type == MB_COMMONS_FETCH || asked->type == MB_COMMONS_GIVE;
	bool has_len = asked->type == MB_COMMONS_WANT || of_group;

	if (len < sizeof(*asked) || len != mb_commons_packet_bytes(asked) || asked->magic != MB_COMMONS_MAGIC ||
		asked->version != MB_COMMONS_VERSION || asked->zero)
		return -EINVAL;
	if (asked->type < MB_COMMONS_HELLO || asked->type > MB_COMMONS_GIVE ||
		(asked->type == MB_COMMONS_HELLO) == client->greeted)
		return -EINVAL;
	if ((fd >= 0) != (asked->type == MB_COMMONS_OPEN))
		return -EINVAL;
	if (has_base ? asked->base >= MB_COMMONS_CLIENT_BASES || !client->slot[asked->base]
		     : asked->base != 0)
		return -EINVAL;
	if (!has_place && (asked->node || asked->offset))
		return -EINVAL;
	/* What is of a file is not of a group, and the other way round. */
	if (has_base && (asked->type == MB_COMMONS_WANT || of_group) &&
		!client->slot[asked->base]->group == of_group)
		return -EINVAL;
	if (asked->type == MB_COMMONS_OFFER && (!asked->len || asked->len > MB_COMMONS_OFFERS))
		return -EINVAL;
	if ((!has_len && asked->len) || (asked->type != MB_COMMONS_WANT && asked->flags))
		return -EINVAL;
	return asked->flags & ~(uint32_t)(MB_COMMONS_NEED_FD | MB_COMMONS_ONLY_HAVE) ? -EINVAL : 0;
}

static int answer(struct client *client, const struct mb_commons_packet *packet, int fd)
{
	const struct mb_commons_request *asked = &packet->asked;
	struct mb_commons_reply more = {.value = MB_COMMONS_PIECE_BYTES};

	if (asked->type == MB_COMMONS_CLOSE)
		return close_base(client, asked);
	if (asked->type == MB_COMMONS_RELEASE)
		return release(client, asked);
	client->n_pending++;
	switch (asked->type) {
	case MB_COMMONS_HELLO:
		client->greeted = true;
		mb_commons_reply(client, asked, 0, &more, NULL, -1);
		return 0;
	case MB_COMMONS_OPEN:
		return open_base(client, asked, fd);
	case MB_COMMONS_WANT:
		return want(client, asked);
	case MB_COMMONS_JOIN:
		return mb_commons_group_join(client, packet);
	case MB_COMMONS_OFFER:
		return mb_commons_group_offer(client, packet);
	case MB_COMMONS_FETCH:
		return mb_commons_group_fetch(client, asked);
	case MB_COMMONS_GIVE:
		return mb_commons_group_give(client, packet);
	default:
		tell(client, asked);
		return 0;
	}
}

/* There was no room here for the descriptor that came along: what nobody uses gives some back. */
static int refuse_fd(struct client *client, const struct mb_commons_request *asked)
{
	int rc = check(client, asked, sizeof(*asked), 0);

	if (rc)
		return rc;
	mb_commons_evict(client->server, -1, 1);
	client->n_pending++;
	mb_commons_reply(client, asked, -EMFILE, NULL, NULL, -1);
	return 1;
}

/* 1: took one; 0: there is none; -errno: the end. */
static int take_request(struct client *client)
{
	struct mb_commons_packet packet;
	ssize_t n;
	int fd, rc;

	memset(&packet.asked, 0, sizeof(packet.asked));
	n = mb_commons_packet_receive(client->watch.fd, &packet, sizeof(packet), &fd);
	if (n < 0 && n != -EBADMSG && n != -EMFILE)
		return n == -EAGAIN ? 0 : (int)n;
	if (n == -EMFILE)
		return refuse_fd(client, &packet.asked);
	rc = n < 0 ? -EINVAL : 0;
	/* The end, and an empty packet, look alike, and are treated alike. */
	if (!n && fd < 0)
		return -EPIPE;
	if (!rc)
		rc = check(client, &packet.asked, (size_t)n, fd);
	if (!rc)
		rc = answer(client, &packet, fd);
	else
		mb_commons_close_on(client->lane, fd);
	if (rc == -EINVAL)
		client->server->n_bad++;
	return rc ? rc : 1;
}

static void on_client(struct mb_watch *watch, uint32_t events)
{
	struct client *client = watch->ctx;
	int rc = events & (EPOLLERR | EPOLLHUP) && !(events & EPOLLIN) ? -EPIPE : 0;

	if (!rc && events & EPOLLOUT)
		rc = send_replies(client);
	for (unsigned i = 0; !rc && i < BATCH && client->n_pending < MB_COMMONS_CLIENT_PENDING;
		i++) {
		rc = take_request(client);
		if (!rc)
			break;
		rc = rc > 0 ? 0 : rc;
	}
	if (rc == -EINVAL)
		mb_log_guest(&client->server->complaints,
			"commons: a client of user %u sent what makes no sense, and is dropped",
			(unsigned)client->uid);
	if (rc) {
		mb_commons_client_drop(client);
		return;
	}
	set_events(client);
}

/* ---- coming and going ---- */

/* Whoever may talk to us; the peer's uid is of when it connected. */
static int check_peer(const struct mb_commons_server *server, int fd, uid_t *uid)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return -errno;
	*uid = peer.uid;
	return peer.uid && peer.uid != geteuid() && !server->config.any_user ? -EPERM : 0;
}

void mb_commons_client_welcome(struct mb_commons_server *server, int fd)
{
	struct client *client = NULL;
	uid_t uid = 0;

	if (!check_peer(server, fd, &uid) && server->n_clients < MB_COMMONS_MAX_CLIENTS)
		client = calloc(1, sizeof(*client));
	if (!client) {
		server->n_refused++;
		close(fd);
		return;
	}
	client->server = server;
	client->uid = uid;
	LIST_INIT(&client->refs);
	LIST_INIT(&client->jobs);
	TAILQ_INIT(&client->notes);
	STAILQ_INIT(&client->replies);
	client->lane = mb_commons_lane_create(server);
	client->watch =
		(struct mb_watch){.fd = fd, .events = EPOLLIN, .ready = on_client, .ctx = client};
	if (!client->lane || mb_loop_add(server->loop, &client->watch)) {
		mb_commons_lane_put(client->lane);
		free(client);
		close(fd);
		return;
	}
	LIST_INSERT_HEAD(&server->clients, client, all);
	server->n_clients++;
}

void mb_commons_client_drop(struct client *client)
{
	struct mb_commons_server *server = client->server;
	struct reply *reply;
	struct job *job;
	struct ref *ref;

	mb_loop_remove(server->loop, &client->watch);
	LIST_REMOVE(client, all);
	if (!--server->n_clients)
		server->idle_ns = mb_now_ns();
	while ((job = LIST_FIRST(&client->jobs)))
		mb_commons_job_disown(job);
	while ((reply = STAILQ_FIRST(&client->replies))) {
		STAILQ_REMOVE_HEAD(&client->replies, next);
		free_reply(reply);
	}
	while (MB_COMMONS_WRONG != WRONG_KEEP_REFS && (ref = LIST_FIRST(&client->refs)))
		mb_commons_ref_drop(ref);
	mb_commons_group_leave(client, NULL);
	for (unsigned i = 0; i < MB_COMMONS_CLIENT_BASES; i++)
		if (client->slot[i])
			mb_commons_base_put(client->slot[i]);
	/* What it has sent and we have not read may hold descriptors, which the kernel lets go
	 * of by itself, without asking their file systems. */
	close(client->watch.fd);
	mb_commons_lane_put(client->lane);
	free(client);
	mb_commons_set_timer(server);
}
