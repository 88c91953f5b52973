/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NBD_FIXTURE_H
#define NBD_FIXTURE_H

/* A disk over a real NBD server, and what is random about it. */

#include "blk_bench.h"
#include "nbd_servers.h"
#include "run.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MEMORY "nbdkit -f -U %s "
/* What the server was asked, in the file "log". */
#define LOGGED MEMORY "--filter=log memory 4M logfile=%d/log "

struct nbd {
	struct nbd_server server;
	struct storm s;
};

static inline void set_seed(struct storm *s)
{
	const char *env = getenv("MB_TEST_SEED");

	s->rng = (env ? strtoull(env, NULL, 0) : (uint64_t)time(NULL) * 2654435761u) | 1;
	printf("MB_TEST_SEED=%llu\n", (unsigned long long)s->rng);
	fflush(stdout);
}

static inline void make_file(struct nbd *n, const char *name, uint64_t bytes)
{
	char path[100];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", n->server.dir, name);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

/* NULL: skipped. */
static inline struct nbd *make(const char *command)
{
	char program[16];
	struct nbd *n;

	snprintf(program, sizeof(program), "%.*s", (int)strcspn(command, " "), command);
	if (!nbd_server_have(program))
		return NULL;
	signal(SIGPIPE, SIG_IGN); /* as in mirrorball */
	n = calloc(1, sizeof(*n));
	set_seed(&n->s);
	nbd_server_init(&n->server);
	nbd_server_start(&n->server, command);
	n->s.b.uri = n->server.uri;
	return n;
}

/* nbdkit 1.32 may crash (an assertion) when a client goes that has many requests in flight. */
static inline struct nbd *make_qemu(void)
{
	struct nbd *n;

	if (!nbd_server_have("qemu-nbd"))
		return NULL;
	signal(SIGPIPE, SIG_IGN);
	n = calloc(1, sizeof(*n));
	set_seed(&n->s);
	nbd_server_init(&n->server);
	make_file(n, "disk", DISK_BYTES);
	nbd_server_start(&n->server, "qemu-nbd -t -f raw -e 8 -k %s %d/disk");
	n->s.b.uri = n->server.uri;
	return n;
}

static inline struct nbd *make_disk(const char *command, uint64_t features)
{
	struct nbd *n = make(command);

	if (!n)
		return NULL;
	bench_init_path(&n->s.b, false);
	bench_start(&n->s.b, features);
	return n;
}

static inline void finish(struct nbd *n)
{
	if (!n)
		return;
	bench_finish(&n->s.b);
	nbd_server_finish(&n->server);
	free(n);
}

/* The machine is reset, and its next driver comes. */
static inline void boot_again(struct bench *b)
{
	mb_blk_reset(b->blk);
	drv_close(&b->dev);
	drv_open(&b->dev, &b->m, 1);
	bench_start(b, UINT64_MAX);
}

#endif
