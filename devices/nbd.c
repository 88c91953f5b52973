// SPDX-License-Identifier: Apache-2.0
#include "nbd.h"
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <mirrorball/clock.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define LIBRARY		 "libnbd.so.0"
#define CONNECT_NS	 10000000000ull
#define SECTOR		 512u
#define LEAST_MAX_BLOCK	 4096u /* a cluster of a delta is read at once */
#define MAX_MIN_BLOCK	 4096u	     /* largest logical block that guests know how to handle */
#define USUAL_MAX_BLOCK	 (32u << 20) /* what any server takes that does not say (NBD protocol) */
#define MAX_PREFERRED	 (64u << 10)
#define KEEPALIVE_S	 10
#define KEEPALIVE_PROBES 3
#define UNANSWERED_MS	 30000

static int load(struct mb_nbd_lib *lib, const char *uri, struct mb_error *err)
{
	/* NODELETE: the library has destructors for threads, which may end after the disk. */
	void *so = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	if (!so)
		return mb_error_set(err, ENOENT,
			"disk %s: network disks need libnbd: install the package libnbd0 (%s)", uri,
			dlerror());
#define LOAD(name)                                                                                 \
	lib->name = (__typeof__(lib->name))dlsym(so, "nbd_" #name);                                \
	if (!lib->name)                                                                            \
		return mb_error_set(err, ENOSYS,                                                   \
			"disk %s: the libnbd that is installed is too old: it lacks nbd_" #name,   \
			uri);
	MB_NBD_CALLS(LOAD)
#undef LOAD
	return 0;
}

uint32_t mb_nbd_events(const struct mb_nbd_server *server, struct nbd_handle *h)
{
	unsigned direction = server->lib.aio_get_direction(h);

	return (direction & LIBNBD_AIO_DIRECTION_READ ? (uint32_t)EPOLLIN : 0) |
	       (direction & LIBNBD_AIO_DIRECTION_WRITE ? (uint32_t)EPOLLOUT : 0);
}

bool mb_nbd_notify(const struct mb_nbd_server *server, struct nbd_handle *h, uint32_t events)
{
	const uint32_t gone = EPOLLHUP | EPOLLERR;
	uint32_t wanted = mb_nbd_events(server, h);

	/* One only: after it, the connection may wait for something else. Reading comes first: a
	 * server that cannot get rid of its answers takes no more requests. */
	if (wanted & EPOLLIN && events & (EPOLLIN | gone))
		return !server->lib.aio_notify_read(h);
	if (wanted & EPOLLOUT && events & (EPOLLOUT | gone))
		return !server->lib.aio_notify_write(h);
	return !(events & gone);
}

bool mb_nbd_is_dead(const struct mb_nbd_server *server, struct nbd_handle *h)
{
	return server->lib.aio_is_dead(h) > 0 || server->lib.aio_is_closed(h) > 0;
}

static int explain(const struct mb_nbd_server *server, const char *why, struct mb_error *err)
{
	return mb_error_set(err, ENOTCONN,
		"disk %s: cannot connect: %s; does the server run, and has it this export?",
		server->uri, why ? why : "no reason given");
}

/*
 * Nobody answers for somebody whose cable was cut. Only an idle connection or one whose server is
 * slow may be silent for long; this is about machines that are gone.
 */
static void notice_silence(int fd)
{
	int on = 1, idle = KEEPALIVE_S, probes = KEEPALIVE_PROBES, unanswered = UNANSWERED_MS;

	/* Not a TCP socket: then there is no cable either. */
	if (setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle)))
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered, sizeof(unanswered));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

struct nbd_handle *mb_nbd_connect_begin(struct mb_nbd_server *server, struct mb_error *err)
{
	struct mb_nbd_lib *lib = &server->lib;
	struct nbd_handle *h = lib->create();
	int rc;

	if (!h) {
		explain(server, lib->get_error(), err);
		return NULL;
	}
	/* Buffers need no zeroes: what a failed read leaves in them nobody looks at. */
	lib->set_pread_initialize(h, false);
	if (server->peer_len) {
		rc = lib->set_export_name(h, server->export_name);
		if (!rc)
			rc = lib->aio_connect(
				h, (const struct sockaddr *)&server->peer, server->peer_len);
	} else {
		/* The URI comes from who runs the machine: it may name a file with keys. */
		lib->set_uri_allow_local_file(h, true);
		rc = lib->aio_connect_uri(h, server->uri);
	}
	if (!rc && !mb_nbd_is_dead(server, h))
		return h;
	explain(server, lib->get_error(), err);
	lib->close(h);
	return NULL;
}

static int wait_for(struct mb_nbd_server *server, struct nbd_handle *h, struct mb_error *err)
{
	uint64_t end_ns = mb_now_ns() + CONNECT_NS;

	while (server->lib.aio_is_connecting(h) > 0) {
		uint64_t now_ns = mb_now_ns();
		struct pollfd p = {
			.fd = server->lib.aio_get_fd(h),
			.events = (short)mb_nbd_events(server, h),
		};
		int n;

		if (now_ns >= end_ns)
			return mb_error_set(err, ETIMEDOUT,
				"disk %s: no answer within %llu s; is it an NBD server?",
				server->uri, CONNECT_NS / 1000000000);
		n = poll(&p, 1, (int)((end_ns - now_ns) / 1000000 + 1));
		if (n < 0 && errno != EINTR)
			return mb_error_set(
				err, errno, "disk %s: poll: %s", server->uri, strerror(errno));
		if (n > 0 && !mb_nbd_notify(server, h, (uint16_t)p.revents))
			break;
	}
	if (mb_nbd_is_dead(server, h) || server->lib.aio_is_connecting(h) > 0)
		return explain(server, server->lib.get_error(), err);
	return 0;
}

/* ---- what is at the other end ---- */

static uint32_t preferred(int64_t bytes, uint32_t at_least)
{
	uint32_t block = at_least;

	while (block < MAX_PREFERRED && 2 * (int64_t)block <= bytes)
		block *= 2;
	return block;
}

static int read_traits(const struct mb_nbd_server *server, struct nbd_handle *h,
	struct mb_nbd_traits *traits, struct mb_error *err)
{
	const struct mb_nbd_lib *lib = &server->lib;
	int64_t bytes = lib->get_size(h);
	int64_t least = lib->get_block_size(h, LIBNBD_SIZE_MINIMUM);
	int64_t best = lib->get_block_size(h, LIBNBD_SIZE_PREFERRED);
	int64_t most = lib->get_block_size(h, LIBNBD_SIZE_MAXIMUM);

	if (bytes < 0)
		return explain(server, lib->get_error(), err);
	/* 0 is a server that does not say, -1 an error. */
	if (least > MAX_MIN_BLOCK)
		return mb_error_set(err, EINVAL,
			"disk %s: the server takes blocks of %" PRId64 " bytes only, but a disk "
			"can have %u at most; put nbdkit --filter=blocksize in between",
			server->uri, least, MAX_MIN_BLOCK);
	if (!bytes)
		return mb_error_set(err, EINVAL, "disk %s: the export is empty", server->uri);
	*traits = (struct mb_nbd_traits){
		.bytes = (uint64_t)bytes,
		.min_block = least > 0 ? (uint32_t)least : 1,
		.max_block = most > 0 && most < USUAL_MAX_BLOCK ? (uint32_t)most : USUAL_MAX_BLOCK,
		.readonly = lib->is_read_only(h) != 0,
		.can_flush = lib->can_flush(h) > 0,
		.can_fua = lib->can_fua(h) > 0,
		.can_trim = lib->can_trim(h) > 0,
		.can_zero = lib->can_zero(h) > 0,
		.multi_conn = lib->can_multi_conn(h) > 0,
	};
	traits->preferred_block =
		preferred(best, traits->min_block < SECTOR ? SECTOR : traits->min_block);
	traits->max_block -= traits->max_block % traits->min_block;
	if (traits->bytes % SECTOR || traits->bytes % traits->min_block)
		return mb_error_set(err, EINVAL,
			"disk %s: size %" PRIu64 " is not a multiple of %u bytes; nbdkit "
			"--filter=truncate can round it up",
			server->uri, traits->bytes,
			traits->min_block < SECTOR ? SECTOR : traits->min_block);
	if (traits->max_block < LEAST_MAX_BLOCK || traits->min_block & (traits->min_block - 1))
		return mb_error_set(err, EINVAL,
			"disk %s: the server's block sizes make no sense: %" PRId64
			" at least, %" PRId64 " at most",
			server->uri, least, most);
	if (traits->readonly && server->writes)
		return mb_error_set(err, EROFS,
			"disk %s: the export is read-only; open it with ,ro or with ,cow",
			server->uri);
	return 0;
}

int mb_nbd_connected(struct mb_nbd_server *server, struct nbd_handle *h, struct mb_error *err)
{
	const struct mb_nbd_traits *was = &server->traits;
	struct mb_nbd_traits now;
	int rc = read_traits(server, h, &now, err);

	if (rc)
		return rc;
	/* What the guest was promised must still be so. */
	if (now.bytes != was->bytes)
		return mb_error_set(err, ESTALE,
			"disk %s: the server now has %" PRIu64 " bytes, not %" PRIu64, server->uri,
			now.bytes, was->bytes);
	if (now.min_block > was->min_block || now.max_block < was->max_block)
		return mb_error_set(err, ESTALE,
			"disk %s: the server now has other block sizes: %u to %u bytes",
			server->uri, now.min_block, now.max_block);
	if (was->can_flush > now.can_flush || was->can_fua > now.can_fua ||
		was->can_trim > now.can_trim || was->can_zero > now.can_zero ||
		was->multi_conn > now.multi_conn)
		return mb_error_set(err, ESTALE, "disk %s: the server can now do less than before",
			server->uri);
	notice_silence(server->lib.aio_get_fd(h));
	return 0;
}

int mb_nbd_connect(struct mb_nbd_server *server, struct nbd_handle **h, struct mb_error *err)
{
	int rc;

	*h = mb_nbd_connect_begin(server, err);
	if (!*h)
		return -ENOTCONN;
	rc = wait_for(server, *h, err);
	if (!rc)
		rc = mb_nbd_connected(server, *h, err);
	if (rc) {
		server->lib.close(*h);
		*h = NULL;
	}
	return rc;
}

/*
 * A host's name is looked up once, here: that can take long, and later it would stop all that the
 * thread does. Not with TLS, which compares the name with the server's certificate.
 */
static void remember_peer(struct mb_nbd_server *server, struct nbd_handle *h)
{
	socklen_t len = sizeof(server->peer);

	if (server->lib.get_tls_negotiated(h) ||
		getpeername(server->lib.aio_get_fd(h), (struct sockaddr *)&server->peer, &len))
		return;
	if (server->peer.ss_family == AF_INET || server->peer.ss_family == AF_INET6)
		server->peer_len = len;
}

int mb_nbd_server_open(struct mb_nbd_server *server, const char *uri, bool writes,
	struct nbd_handle **h, struct mb_error *err)
{
	int rc;

	*server = (struct mb_nbd_server){.uri = uri, .writes = writes};
	*h = NULL;
	rc = load(&server->lib, uri, err);
	if (rc)
		return rc;
	*h = mb_nbd_connect_begin(server, err);
	if (!*h)
		return -ENOTCONN;
	rc = wait_for(server, *h, err);
	if (!rc)
		rc = read_traits(server, *h, &server->traits, err);
	if (!rc) {
		server->export_name = server->lib.get_export_name(*h);
		if (!server->export_name)
			rc = mb_error_set(err, ENOMEM, "disk %s: out of memory", uri);
	}
	if (rc) {
		server->lib.close(*h);
		*h = NULL;
		return rc;
	}
	remember_peer(server, *h);
	notice_silence(server->lib.aio_get_fd(*h));
	return 0;
}

void mb_nbd_server_close(struct mb_nbd_server *server)
{
	free(server->export_name);
	server->export_name = NULL;
}
