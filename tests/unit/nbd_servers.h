/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NBD_SERVERS_H
#define NBD_SERVERS_H

#include <stdbool.h>
#include <sys/types.h>

/* Real NBD servers, on a socket in a directory of their own; they end with the test. */
struct nbd_server {
	char dir[64];
	char socket[80];
	char uri[256];
	unsigned port; /* 0: a Unix socket */
	pid_t pid;
	pid_t proxy; /* 0: none */
};

/* False, and the case is skipped, where there is no such program. */
bool nbd_server_have(const char *program);
/* Makes the directory; starts nothing. */
void nbd_server_init(struct nbd_server *server);
/* From now on it is one on a port of the loopback interface that is free. */
void nbd_server_use_tcp(struct nbd_server *server);
/*
 * The words of a command, in which %s stands for the socket, %d for the directory and %p for the
 * port, and waits until it listens.
 */
void nbd_server_start(struct nbd_server *server, const char *command);
void nbd_server_kill(struct nbd_server *server);
void nbd_server_finish(struct nbd_server *server);
/* Puts something between the server, which is on a Unix socket, and who uses the URI from now on.
 */
void nbd_proxy_start(struct nbd_server *server);
/* It cuts the oldest connection that there is. */
void nbd_proxy_cut(struct nbd_server *server);
/* From now on who connects hears nothing; then, by the next call, what the server says. */
void nbd_proxy_hold(struct nbd_server *server);
/* How often `text` is in the file `name` of the directory; with both in one line. */
unsigned nbd_server_count(
	struct nbd_server *server, const char *name, const char *a, const char *b);

#endif
