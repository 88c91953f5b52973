// SPDX-License-Identifier: Apache-2.0
/* What machines tell each other: records of the living, the dead and the hostile, and the lock. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/placement.h>
#include <mirrorball/registry.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define GIB	(1ull << 30)
#define SECOND	1000000000ull
#define N_RACES 100

static char root[64], dir[96];
static struct mb_registry *registry;
static struct mb_registry_record sum;
static struct mb_error err;

static void setup(void)
{
	snprintf(root, sizeof(root), "/tmp/mb-registry-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(root));
	snprintf(dir, sizeof(dir), "%s/mirrorball", root);
	ck_assert_int_eq(mb_registry_open_at(dir, NULL, &registry, &err), 0);
}

static void teardown(void)
{
	char command[128];

	mb_registry_close(registry);
	registry = NULL;
	snprintf(command, sizeof(command), "rm -rf '%s'", root);
	ck_assert_int_eq(system(command), 0);
}

static struct mb_registry_record record_of(unsigned node, unsigned vcpus, uint64_t promised)
{
	struct mb_registry_record r = {.time_ns = mb_now_ns(), .n_nodes = 1};

	r.node[0] = (struct mb_registry_node){
		.id = node, .vcpus = vcpus, .promised_bytes = promised, .busy_ppm = 500000};
	return r;
}

/* vCPUs of others on a node. */
static unsigned vcpus_on(unsigned id)
{
	mb_registry_read(registry, mb_now_ns(), &sum);
	for (unsigned i = 0; i < sum.n_nodes; i++)
		if (sum.node[i].id == id)
			return sum.node[i].vcpus;
	return 0;
}

static unsigned n_files(void)
{
	char command[160];
	unsigned n = 0;
	FILE *f;

	snprintf(command, sizeof(command), "ls %s/placement | grep -vc '^lock$'", dir);
	f = popen(command, "r");
	ck_assert_int_eq(fscanf(f, "%u", &n), 1);
	pclose(f);
	return n;
}

/* Older than what may be about to be locked. */
static void make_old(void)
{
	char command[160];

	snprintf(command, sizeof(command), "touch -d '1 minute ago' %s/placement/*", dir);
	ck_assert_int_eq(system(command), 0);
}

/* A process that publishes a record, or two, says so and stays. */
static pid_t start_machine(const struct mb_registry_record *record)
{
	int fds[2];
	char done;
	pid_t pid;

	ck_assert_int_eq(pipe(fds), 0);
	pid = fork();
	if (!pid) {
		struct mb_registry *own;

		if (mb_registry_open_at(dir, NULL, &own, NULL) ||
			mb_registry_publish(own, record) || write(fds[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(fds[1]);
	ck_assert_int_eq(read(fds[0], &done, 1), 1);
	close(fds[0]);
	return pid;
}

static void kill_machine(pid_t pid)
{
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

START_TEST(test_publish)
{
	struct mb_registry_record record = record_of(3, 4, GIB);
	struct mb_registry *other;
	struct stat st;

	ck_assert(!mb_registry_is_published(registry));
	ck_assert_int_eq(mb_registry_publish(registry, &record), 0);
	ck_assert(mb_registry_is_published(registry));
	ck_assert_uint_eq(vcpus_on(3), 0); /* its own does not count */
	ck_assert_int_eq(mb_registry_open_at(dir, NULL, &other, &err), 0);
	mb_registry_read(other, mb_now_ns(), &sum);
	ck_assert_uint_eq(sum.n_nodes, 1);
	ck_assert_uint_eq(sum.node[0].id, 3);
	ck_assert_uint_eq(sum.node[0].vcpus, 4);
	ck_assert_uint_eq(sum.node[0].promised_bytes, GIB);
	ck_assert_uint_eq(sum.node[0].busy_ppm, 500000);
	ck_assert(!sum.node[0].measured);
	/* A second one adds, and the newest measurement counts. */
	record.node[0].measured = true;
	record.node[0].host_busy_ppm = 700000;
	record.time_ns -= SECOND;
	ck_assert_int_eq(mb_registry_publish(other, &record), 0);
	record.node[0].host_busy_ppm = 800000;
	record.time_ns -= SECOND;
	ck_assert_int_eq(mb_registry_publish(registry, &record), 0);
	ck_assert_uint_eq(n_files(), 2);
	{
		struct mb_registry *third;

		ck_assert_int_eq(mb_registry_open_at(dir, NULL, &third, &err), 0);
		mb_registry_read(third, mb_now_ns(), &sum);
		ck_assert_uint_eq(sum.node[0].vcpus, 8);
		ck_assert_uint_eq(sum.node[0].host_busy_ppm, 700000);
		mb_registry_read(third, mb_now_ns() + 40 * SECOND, &sum);
		ck_assert(!sum.node[0].measured);
		mb_registry_close(third);
	}
	mb_registry_close(other);
	ck_assert_uint_eq(n_files(), 1);
	ck_assert_int_eq(stat(dir, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0700);
}
END_TEST

/* kill -9 frees its place at once; the file goes when somebody with the lock looks. */
START_TEST(test_crash)
{
	struct mb_registry_record record = record_of(1, 2, GIB);
	pid_t pid = start_machine(&record);

	ck_assert_uint_eq(vcpus_on(1), 2);
	kill_machine(pid);
	ck_assert_uint_eq(vcpus_on(1), 0);
	ck_assert_int_eq(mb_registry_lock(registry, 0), 0);
	ck_assert_uint_eq(vcpus_on(1), 0);
	ck_assert_uint_eq(n_files(), 1); /* it could be one that is not locked yet */
	mb_registry_unlock(registry);
	make_old();
	ck_assert_uint_eq(vcpus_on(1), 0);
	ck_assert_uint_eq(n_files(), 1);
	ck_assert_int_eq(mb_registry_lock(registry, 0), 0);
	ck_assert_uint_eq(vcpus_on(1), 0);
	ck_assert_uint_eq(n_files(), 0);
	mb_registry_unlock(registry);
}
END_TEST

/* The lock of a record lives in whoever has the descriptor, which no child that execs has. */
START_TEST(test_child)
{
	struct mb_registry_record record = record_of(1, 2, GIB);
	struct mb_registry *machine;
	pid_t pid;

	ck_assert_int_eq(mb_registry_open_at(dir, NULL, &machine, &err), 0);
	ck_assert_int_eq(mb_registry_publish(machine, &record), 0);
	pid = fork();
	if (!pid) {
		execlp("sleep", "sleep", "60", NULL);
		_exit(1);
	}
	usleep(100000);
	ck_assert_uint_eq(vcpus_on(1), 2);
	mb_registry_close(machine);
	ck_assert_uint_eq(vcpus_on(1), 0);
	kill_machine(pid);
}
END_TEST

/* ---- what makes no sense ---- */

static int parse(const char *text)
{
	char copy[MB_REGISTRY_RECORD_BYTES + 1] = "";

	snprintf(copy, sizeof(copy), "%s", text);
	return mb_registry_parse(copy, strlen(copy), &sum);
}

START_TEST(test_parse)
{
	static const char *const bad[] = {
		"",
		"\n",
		"mirrorball-placement 1\n",
		"mirrorball-placement 2\ntime 1\nend\n",
		"mirrorball-placement 1\ntime -1\nend\n",
		"mirrorball-placement 1\ntime 99999999999999999999\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 0 1 1 1 1 1 0\n",
		"mirrorball-placement 1\ntime 1\nnode 0 1 1 1 1 1 2\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 0 1 1 1 1 2000000 1\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 70000 1 1 1 1 1 0\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 0 70000 1 1 1 1 0\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 0 1 18446744073709551615 1 1 1 0\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 0 1 1 1 1 1 0 0\nend\n",
		"mirrorball-placement 1\ntime 1\nnode  0 1 1 1 1 1 0\nend\n",
		"mirrorball-placement 1\ntime 1\nnode 0 +1 1 1 1 1 0\nend\n",
		"mirrorball-placement 1\ntime 1\nend\nnode 0 1 1 1 1 1 0\n",
		"mirrorball-placement 1\ntime 1\nend",
	};
	struct mb_registry_record record = {.time_ns = 5, .n_nodes = MB_MAX_NODES};
	char text[MB_REGISTRY_RECORD_BYTES + 1] = "";
	int n, n_small;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(parse(bad[i]) == -EINVAL, "accepts: %s", bad[i]);
	ck_assert_int_eq(parse("mirrorball-placement 1\ntime 1\nend\n\n\n"), 0);
	/* The largest one there is, and back. */
	for (unsigned i = 0; i < MB_MAX_NODES; i++)
		record.node[i] = (struct mb_registry_node){
			1000 + i, 65536, 1ull << 50, 1ull << 50, 1000000000, 1000000, true};
	n = mb_registry_format(&record, text);
	ck_assert_int_gt(n, 0);
	memset(record.node, 0, sizeof(record.node));
	n_small = mb_registry_format(&record, text);
	ck_assert_int_eq(n_small, n);
	for (unsigned i = 0; i < MB_MAX_NODES; i++)
		record.node[i] = (struct mb_registry_node){
			1000 + i, 65536, 1ull << 50, 1ull << 50, 1000000000, 1000000, true};
	ck_assert_int_eq(mb_registry_format(&record, text), n);
	ck_assert_int_eq(mb_registry_parse(text, (size_t)n, &sum), 0);
	ck_assert_mem_eq(&sum, &record, sizeof(sum));
	/* Cut anywhere, or with a byte changed to anything: refused or understood, never more. */
	for (int i = 0; i < n; i++) {
		char cut[MB_REGISTRY_RECORD_BYTES + 1];

		memcpy(cut, text, sizeof(cut));
		cut[i] = (char)(i * 37);
		mb_registry_parse(cut, (size_t)n, &sum);
		ck_assert_uint_le(sum.n_nodes, MB_MAX_NODES);
		cut[i] = '\0';
		ck_assert_int_eq(mb_registry_parse(cut, (size_t)i, &sum), -EINVAL);
	}
	snprintf(text + n - 4, sizeof(text) - (size_t)n, "node 1 1 1 1 1 1 0\nend\n");
	ck_assert_int_eq(mb_registry_parse(text, strlen(text), &sum), -EINVAL);
}
END_TEST

/* Makes a file there and returns a descriptor that holds it, as if its process lived. */
static int put(const char *name, const char *text, size_t len)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/placement/%s", dir, name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, len), (ssize_t)len);
	ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &lock), 0);
	return fd;
}

START_TEST(test_hostile)
{
	static const char good[] = "mirrorball-placement 1\ntime 1\nnode 1 2 0 0 0 0 0\nend\n";
	char command[512], big[3 * MB_REGISTRY_RECORD_BYTES];
	int fd;

	memset(big, '\n', sizeof(big));
	memcpy(big, good, sizeof(good) - 1);
	put("good", good, sizeof(good) - 1);
	put("big", big, sizeof(big));
	put("empty", "", 0);
	put("zeros", "\0\0\0\0", 4);
	put("random", "\xff\xfe node 1 1", 12);
	snprintf(command, sizeof(command),
		"cd %s/placement && mkfifo fifo && mkdir directory && ln -s good link && ln -s "
		"/dev/zero zero"
		" && ln -s nowhere dangling",
		dir);
	ck_assert_int_eq(system(command), 0);
	ck_assert_uint_eq(vcpus_on(1), 2);
	/* Others may hold a file that they can only read, but that is no sign of life. */
	snprintf(command, sizeof(command), "%s/placement/dead", dir);
	fd = open(command, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_eq(write(fd, good, sizeof(good) - 1), sizeof(good) - 1);
	close(fd);
	fd = open(command, O_RDONLY | O_CLOEXEC);
	{
		struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};

		ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &lock), 0);
	}
	ck_assert_uint_eq(vcpus_on(1), 2);
	make_old();
	ck_assert_int_eq(mb_registry_lock(registry, 0), 0);
	ck_assert_uint_eq(vcpus_on(1), 2);
	ck_assert_int_eq(access(command, F_OK), -1);
	mb_registry_unlock(registry);
}
END_TEST

/* Nobody else may be able to write there. */
START_TEST(test_unsafe)
{
	char path[160];
	struct mb_registry *other;

	snprintf(path, sizeof(path), "%s/placement", dir);
	ck_assert_int_eq(chmod(path, 0777), 0);
	ck_assert_int_eq(mb_registry_open_at(dir, NULL, &other, &err), -EPERM);
	ck_assert_ptr_nonnull(strstr(err.text, "placement"));
	ck_assert_int_eq(chmod(path, 0755), 0);
	ck_assert_int_eq(chmod(dir, 0777), 0);
	ck_assert_int_eq(mb_registry_open_at(dir, NULL, &other, &err), -EPERM);
	ck_assert_int_eq(chmod(dir, 0700), 0);
	ck_assert_int_lt(mb_registry_open_at("/proc/nowhere", NULL, &other, &err), 0);
	ck_assert_int_lt(mb_registry_open_at("/dev/null/x", NULL, &other, &err), 0);
}
END_TEST

/* Directories of others are read where they can be, and never written. */
START_TEST(test_others)
{
	struct mb_registry_record record = record_of(1, 2, GIB);
	char own[96];
	const char *const others[] = {dir, "/nowhere", "/dev/null", NULL};
	struct mb_registry *other;
	pid_t pid = start_machine(&record);

	snprintf(own, sizeof(own), "%s/own", root);
	ck_assert_int_eq(mb_registry_open_at(own, others, &other, &err), 0);
	mb_registry_read(other, mb_now_ns(), &sum);
	ck_assert_uint_eq(sum.n_nodes, 1);
	ck_assert_uint_eq(sum.node[0].vcpus, 2);
	kill_machine(pid);
	make_old();
	ck_assert_int_eq(mb_registry_lock(other, 0), 0);
	mb_registry_read(other, mb_now_ns(), &sum);
	ck_assert_uint_eq(sum.n_nodes, 0);
	ck_assert_uint_eq(n_files(), 1);
	mb_registry_close(other);
}
END_TEST

/* Root's, by somebody else: where root lets him through, and without being able to hold anything.
 */
START_TEST(test_of_root)
{
	struct mb_registry_record record = record_of(1, 2, GIB);
	const char *const others[] = {dir, NULL};
	char own[96];
	pid_t pid;
	int status;

	if (getuid()) {
		skip("needs root");
		return;
	}
	ck_assert_int_eq(mb_registry_publish(registry, &record), 0);
	ck_assert_int_eq(chmod(root, 0777), 0);
	snprintf(own, sizeof(own), "%s/own", root);
	for (unsigned mode = 0700; mode <= 0711; mode += 011) {
		ck_assert_int_eq(chmod(dir, mode), 0);
		pid = fork();
		if (!pid) {
			struct mb_registry *his;
			struct mb_registry_record all;

			if (setuid(65534) || mb_registry_open_at(own, others, &his, NULL))
				_exit(100);
			mb_registry_read(his, mb_now_ns(), &all);
			mb_registry_close(his);
			_exit(all.n_nodes ? (int)all.node[0].vcpus : 0);
		}
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_int_eq(WEXITSTATUS(status), mode == 0700 ? 0 : 2);
	}
}
END_TEST

/* ---- the lock ---- */

START_TEST(test_lock_held)
{
	char path[160];
	uint64_t begin_ns;
	int fd;

	snprintf(path, sizeof(path), "%s/placement/lock", dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(flock(fd, LOCK_EX), 0);
	ck_assert_int_eq(mb_registry_lock(registry, 0), -EBUSY);
	begin_ns = mb_now_ns();
	ck_assert_int_eq(mb_registry_lock(registry, 50), -EBUSY);
	ck_assert_uint_ge(mb_now_ns() - begin_ns, 50000000);
	ck_assert_uint_lt(mb_now_ns() - begin_ns, 5 * SECOND);
	flock(fd, LOCK_UN);
	ck_assert_int_eq(mb_registry_lock(registry, 50), 0);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), -1);
	mb_registry_unlock(registry);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	close(fd);
}
END_TEST

START_TEST(test_last_move)
{
	uint64_t at = 0;

	ck_assert_int_eq(mb_registry_lock(registry, 0), 0);
	ck_assert(!mb_registry_last_move(registry, 100 * SECOND, &at));
	ck_assert_int_eq(mb_registry_note_move(registry, 1000 * SECOND), 0);
	ck_assert_int_eq(mb_registry_note_move(registry, 90 * SECOND), 0);
	ck_assert(mb_registry_last_move(registry, 100 * SECOND, &at));
	ck_assert_uint_eq(at, 90 * SECOND);
	/* Of another boot. */
	ck_assert(!mb_registry_last_move(registry, 80 * SECOND, &at));
	mb_registry_unlock(registry);
}
END_TEST

/* What `mirrorball run` does, on two nodes of which each holds one of these machines. Ends with the
 * node. */
static void start_and_choose(int go_fd)
{
	struct mb_place_request request = {.n_vcpus = 2, .memory_bytes = 3 * GIB};
	struct mb_place_host host = {.n_nodes = 2};
	struct mb_place_config config;
	struct mb_placement placement;
	struct mb_registry_record record = {0};
	struct mb_registry *own;
	char go;

	mb_place_defaults(&config);
	for (unsigned i = 0; i < 2; i++)
		host.node[i] = (struct mb_place_node){.id = i,
			.n_cpus = 2,
			.usable = true,
			.total_bytes = 4 * GIB,
			.available_bytes = 4 * GIB,
			.distance = {10, 10}};
	if (mb_registry_open_at(dir, NULL, &own, NULL) || read(go_fd, &go, 1) < 0)
		_exit(9);
	if (mb_registry_lock(own, 5000))
		_exit(8);
	mb_registry_read(own, mb_now_ns(), &record);
	for (unsigned k = 0; k < record.n_nodes; k++) {
		host.node[record.node[k].id].vcpus = record.node[k].vcpus;
		host.node[record.node[k].id].promised_bytes = record.node[k].promised_bytes;
	}
	if (mb_place(&config, &host, &request, &placement, NULL))
		_exit(7);
	record = record_of(placement.nodes == 2, request.n_vcpus, request.memory_bytes);
	if (mb_registry_publish(own, &record))
		_exit(6);
	mb_registry_unlock(own);
	/* Both must be there to the end. */
	pause();
}

/* On which nodes, from what is published, as bits; 0 until both are. */
static unsigned published(void)
{
	unsigned on[2];

	for (unsigned i = 0; i < 2; i++)
		on[i] = vcpus_on(i);
	if (on[0] + on[1] < 4)
		return 0;
	return (on[0] > 0) | (on[1] > 0) << 1;
}

/* Two that start at once never choose the same node. */
START_TEST(test_race)
{
	unsigned n_same = 0;

	for (unsigned i = 0; i < N_RACES; i++) {
		int go[2];
		pid_t pid[2];
		unsigned nodes;

		ck_assert_int_eq(pipe(go), 0);
		for (unsigned k = 0; k < 2; k++) {
			pid[k] = fork();
			if (!pid[k]) {
				close(go[1]);
				start_and_choose(go[0]);
			}
		}
		close(go[0]);
		usleep(i % 4 * 500);
		close(go[1]);
		while (!(nodes = published()))
			usleep(200);
		n_same += nodes != 3;
		for (unsigned k = 0; k < 2; k++)
			kill_machine(pid[k]);
	}
	ck_assert_msg(!n_same, "%u of %u pairs chose the same node", n_same, N_RACES);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("registry");
	TCase *tc = tcase_create("registry");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 50);
	tcase_add_test(tc, test_publish);
	tcase_add_test(tc, test_crash);
	tcase_add_test(tc, test_child);
	tcase_add_test(tc, test_parse);
	tcase_add_test(tc, test_hostile);
	tcase_add_test(tc, test_unsafe);
	tcase_add_test(tc, test_others);
	tcase_add_test(tc, test_of_root);
	tcase_add_test(tc, test_lock_held);
	tcase_add_test(tc, test_last_move);
	tcase_add_test(tc, test_race);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
