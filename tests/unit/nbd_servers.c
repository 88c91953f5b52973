// SPDX-License-Identifier: Apache-2.0
#include "nbd_servers.h"
#include "run.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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
#define MAX_PAIRS 16

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

static struct sockaddr_in loopback(const struct nbd_server *server)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)server->port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
}

void nbd_server_use_tcp(struct nbd_server *server)
{
	struct sockaddr_in sa = loopback(server);
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_eq(bind(fd, (struct sockaddr *)&sa, len), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	close(fd);
	server->port = ntohs(sa.sin_port);
	snprintf(server->uri, sizeof(server->uri), "nbd://localhost:%u/", server->port);
}

/* Allocates. */
static char *expand(const struct nbd_server *server, const char *word)
{
	char *out = calloc(1, strlen(word) + 200), *at = out;

	for (; *word; word++) {
		if (word[0] == '%' && (word[1] == 's' || word[1] == 'd'))
			at = stpcpy(at, *++word == 's' ? server->socket : server->dir);
		else if (word[0] == '%' && word[1] == 'p' && word++)
			at += sprintf(at, "%u", server->port);
		else
			*at++ = *word;
	}
	return out;
}

static bool listens(const struct nbd_server *server)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct sockaddr_in in = loopback(server);
	int fd = socket(server->port ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool ok;

	strcpy(sa.sun_path, server->socket);
	if (server->port)
		ok = !connect(fd, (struct sockaddr *)&in, sizeof(in));
	else
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
	if (server->proxy > 0) {
		kill(server->proxy, SIGKILL);
		waitpid(server->proxy, NULL, 0);
	}
	snprintf(text, sizeof(text), "rm -rf %s", server->dir);
	ck_assert_int_eq(system(text), 0);
}

/* ---- a proxy ---- */

static volatile sig_atomic_t cut, holding;

static void on_cut(int sig)
{
	cut = 1;
}

static void on_hold(int sig)
{
	holding = !holding;
}

/* False: there is no server now. */
static bool join(struct pollfd *pair, const char *target)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};

	strcpy(sa.sun_path, target);
	pair[0].events = pair[1].events = POLLIN;
	pair[1].fd = socket(AF_UNIX, SOCK_STREAM, 0);
	return !connect(pair[1].fd, (struct sockaddr *)&sa, sizeof(sa));
}

static bool forward(int from, int to)
{
	static char buffer[64 << 10];
	ssize_t n = read(from, buffer, sizeof(buffer));

	for (ssize_t at = 0, put; at < n; at += put) {
		put = write(to, buffer + at, (size_t)(n - at));
		if (put <= 0)
			return false;
	}
	return n > 0;
}

/* Pairs of descriptors, oldest first: each other's data. Blocking writes will do for a test. */
static void run_proxy(const char *target, int listener)
{
	struct pollfd p[1 + 2 * MAX_PAIRS];
	sigset_t none;
	unsigned n = 0;

	sigemptyset(&none);
	p[0] = (struct pollfd){.fd = listener, .events = POLLIN};
	for (;;) {
		int rc = ppoll(p, 1 + 2 * n, NULL, &none);
		unsigned gone = n;

		if (cut && n)
			gone = cut = 0;
		for (unsigned i = 0; i < n && gone == n && !holding; i++)
			if (p[2 + 2 * i].fd < 0 && !join(&p[1 + 2 * i], target))
				gone = i;
		for (unsigned i = 0; i < n && rc > 0 && gone == n; i++) {
			struct pollfd *pair = &p[1 + 2 * i];

			for (unsigned k = 0; k < 2 && gone == n; k++)
				if (pair[k].revents && !forward(pair[k].fd, pair[!k].fd))
					gone = i;
		}
		if (gone < n) {
			close(p[1 + 2 * gone].fd);
			close(p[2 + 2 * gone].fd);
			n--;
			memmove(&p[1 + 2 * gone], &p[3 + 2 * gone], 2 * (n - gone) * sizeof(*p));
			continue;
		}
		if (rc > 0 && p[0].revents && n < MAX_PAIRS) {
			struct pollfd *pair = &p[1 + 2 * n++];

			pair[0] = (struct pollfd){.fd = accept(listener, NULL, NULL)};
			pair[1] = (struct pollfd){.fd = -1};
			if (holding || join(pair, target))
				continue;
			close(pair[0].fd);
			close(pair[1].fd);
			n--;
		}
	}
}

void nbd_proxy_start(struct nbd_server *server)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct sigaction on_usr1 = {.sa_handler = on_cut}, on_usr2 = {.sa_handler = on_hold};
	sigset_t usr;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/p", server->dir);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	ck_assert_int_eq(listen(fd, 16), 0);
	/* They come while ppoll waits only. */
	sigemptyset(&usr);
	sigaddset(&usr, SIGUSR1);
	sigaddset(&usr, SIGUSR2);
	sigprocmask(SIG_BLOCK, &usr, NULL);
	server->proxy = fork();
	ck_assert_int_ge(server->proxy, 0);
	if (!server->proxy) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigaction(SIGUSR1, &on_usr1, NULL);
		sigaction(SIGUSR2, &on_usr2, NULL);
		run_proxy(server->socket, fd);
	}
	close(fd);
	snprintf(server->uri, sizeof(server->uri), "nbd+unix:///?socket=%s/p", server->dir);
}

void nbd_proxy_cut(struct nbd_server *server)
{
	kill(server->proxy, SIGUSR1);
}

void nbd_proxy_hold(struct nbd_server *server)
{
	kill(server->proxy, SIGUSR2);
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
