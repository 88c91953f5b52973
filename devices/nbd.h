/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_NBD_H
#define MIRRORBALL_NBD_H

#include <libnbd.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

/*
 * A server of network block devices, through libnbd; private to devices/ (blk_nbd.c is its user).
 * What is here makes connections, and says what is at their other end.
 *
 * The library brings TLS and XML with it, so it is loaded when the first such disk is opened, and
 * not needed otherwise.
 */
#define MB_NBD_CALLS(X)                                                                            \
	X(create)                                                                                  \
	X(close)                                                                                   \
	X(get_error)                                                                               \
	X(set_export_name)                                                                         \
	X(get_export_name)                                                                         \
	X(get_tls_negotiated)                                                                      \
	X(set_pread_initialize)                                                                    \
	X(set_uri_allow_local_file)                                                                \
	X(aio_connect)                                                                             \
	X(aio_connect_uri)                                                                         \
	X(aio_disconnect)                                                                          \
	X(aio_get_fd)                                                                              \
	X(aio_get_direction)                                                                       \
	X(aio_notify_read)                                                                         \
	X(aio_notify_write)                                                                        \
	X(aio_is_connecting)                                                                       \
	X(aio_is_dead)                                                                             \
	X(aio_is_closed)                                                                           \
	X(get_size)                                                                                \
	X(get_block_size)                                                                          \
	X(is_read_only)                                                                            \
	X(can_flush)                                                                               \
	X(can_fua)                                                                                 \
	X(can_trim)                                                                                \
	X(can_zero)                                                                                \
	X(can_multi_conn)                                                                          \
	X(aio_pread)                                                                               \
	X(aio_pwrite)                                                                              \
	X(aio_flush)                                                                               \
	X(aio_trim)                                                                                \
	X(aio_zero)

struct mb_nbd_lib {
#define MB_NBD_POINTER(name) __typeof__(nbd_##name) *name;
	MB_NBD_CALLS(MB_NBD_POINTER)
#undef MB_NBD_POINTER
};

/* What the server says of the export. */
struct mb_nbd_traits {
	uint64_t bytes;
	uint32_t min_block;	  /* smallest and alignment; 1: any */
	uint32_t preferred_block; /* a power of two */
	uint32_t max_block;	  /* of data in one operation, a multiple of min_block */
	bool readonly;
	bool can_flush, can_fua, can_trim, can_zero;
	bool multi_conn; /* a flush on one connection is for what was written on all */
};

struct mb_nbd_server {
	struct mb_nbd_lib lib;
	const char *uri;
	bool writes; /* it must be writable */
	struct mb_nbd_traits traits;
	char *export_name;
	/* Where it was found, so that nobody has to look for its name again; peer_len is 0 where
	 * the URI does that without. */
	struct sockaddr_storage peer;
	socklen_t peer_len;
};

/*
 * Loads the library, connects to the server (which is given a few seconds) and asks for its traits.
 * uri stays the caller's. *h is the connection. err names the disk and says what to do.
 */
int mb_nbd_server_open(struct mb_nbd_server *server, const char *uri, bool writes,
	struct nbd_handle **h, struct mb_error *err);
void mb_nbd_server_close(struct mb_nbd_server *server);

/* One more connection, like the first one; waits for it. */
int mb_nbd_connect(struct mb_nbd_server *server, struct nbd_handle **h, struct mb_error *err);
/* The same without waiting: NULL if it fails at once. Then mb_nbd_notify until it has connected. */
struct nbd_handle *mb_nbd_connect_begin(struct mb_nbd_server *server, struct mb_error *err);
/* It has connected: whether it is the export that it was. */
int mb_nbd_connected(struct mb_nbd_server *server, struct nbd_handle *h, struct mb_error *err);

/* What to wait for: EPOLLIN, EPOLLOUT, which are POLLIN and POLLOUT, too. */
uint32_t mb_nbd_events(const struct mb_nbd_server *server, struct nbd_handle *h);
/* These have come. False: the connection is of no more use. */
bool mb_nbd_notify(const struct mb_nbd_server *server, struct nbd_handle *h, uint32_t events);
bool mb_nbd_is_dead(const struct mb_nbd_server *server, struct nbd_handle *h);

#endif
