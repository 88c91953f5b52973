// SPDX-License-Identifier: Apache-2.0
#include "nbd_servers.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORDS 40
#define WAIT_MS	  20000

bool nbd_server_have(const char *program)
{
	char text[100];

	snprintf(text, sizeof(text), "command -v %s >/dev/null", program);
	if (!system(text))
		return true;
	snprintf(text, sizeof(text), "no %s", program);
	skip(text);
	return false;
}

void nbd_server_init(struct nbd_server *server)
{
	*server = (struct nbd_server){.dir = "/tmp/mb-nbd-XXXXXX"};
	ck_assert_ptr_nonnull(mkdtemp(server->dir));
	snprintf(server->socket, sizeof(server->socket), "%s/s", server->dir);
	snprintf(server->uri, sizeof(server->uri), "nbd+unix:///?socket=%s", server->socket);
}

/* Allocates. */
static char *expand(const struct nbd_server *server, const char *word)
{
	char *out = calloc(1, strlen(word) + 200), *at = out;

	for (; *word; word++) {
		if (word[0] == '%' && (word[1] == 's' || word[1] == 'd'))
			at = stpcpy(at, *++word == 's' ? server->socket : server->dir);
		else
			*at++ = *word;
	}
	return out;
}

static bool listens(const struct nbd_server *server)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool ok;

	strcpy(sa.sun_path, server->socket);
	ok = !connect(fd, (struct sockaddr *)&sa, sizeof(sa));
	close(fd);
	return ok;
}

void nbd_server_start(struct nbd_server *server, const char *command)
{
	char text[600], *words[MAX_WORDS], *save = NULL;
	unsigned n = 0;

	ck_assert_uint_lt(strlen(command), sizeof(text));
	strcpy(text, command);
	for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
		ck_assert_uint_lt(n, MAX_WORDS - 1);
		words[n++] = expand(server, w);
	}
	words[n] = NULL;
	unlink(server->socket);
	server->pid = fork();
	ck_assert_int_ge(server->pid, 0);
	if (!server->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execvp(words[0], words);
		_exit(127);
	}
	for (unsigned ms = 0; !listens(server); ms += 5) {
		ck_assert_msg(ms < WAIT_MS, "%s does not listen", command);
		ck_assert_msg(!waitpid(server->pid, NULL, WNOHANG), "%s has ended", command);
		usleep(5000);
	}
	while (n)
		free(words[--n]);
}

void nbd_server_kill(struct nbd_server *server)
{
	if (server->pid > 0) {
		kill(server->pid, SIGKILL);
		waitpid(server->pid, NULL, 0);
	}
	server->pid = 0;
}

void nbd_server_finish(struct nbd_server *server)
{
	char text[100];

	nbd_server_kill(server);
	snprintf(text, sizeof(text), "rm -rf %s", server->dir);
	ck_assert_int_eq(system(text), 0);
}

unsigned nbd_server_count(struct nbd_server *server, const char *name, const char *a, const char *b)
{
	char path[160], line[400];
	unsigned n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", server->dir, name);
	f = fopen(path, "re");
	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		n += strstr(line, a) && strstr(line, b);
	fclose(f);
	return n;
}
