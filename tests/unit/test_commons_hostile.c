// SPDX-License-Identifier: Apache-2.0
/*
 * Clients of mirrorballd that mean harm: with the descriptors that they get, with packets that make
 * no sense, with files that do not answer. Others see none of it.
 *
 * MB_FUZZ_SECONDS: how long garbage is sent; MB_FUZZ_SEED: the seed, which is printed.
 */
#include "commons_fixture.h"

#include <dirent.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>

/* ---- descriptors ---- */

/* What another machine reads. */
static struct mb_commons *witness;
static struct mb_commons_base *seen;

static void look_again(const char *what)
{
	const struct mb_commons_state *state;
	struct mb_commons_piece piece;

	ck_assert_int_eq(mb_commons_piece(seen, node_id(), 0, &piece), 0);
	state = (const void *)((const char *)piece.data + PIECE);
	for (unsigned i = 0; i < 16; i++)
		if (!is_page((const char *)piece.data + i * PAGE, 1, i))
			found_wrong(what);
	if (state->present[0] != 0xffff || state->stale)
		found_wrong(what);
	for (unsigned i = 16; i < N_PAGES; i++)
		if (((const uint64_t *)piece.data)[i * PAGE / 8])
			found_wrong(what);
}

static const char garbage[PAGE] = "garbage";

/* Everything that writes through a descriptor. */
static void write_to(int fd, const char *how)
{
	struct iovec iov = {.iov_base = (void *)garbage, .iov_len = PAGE};
	char what[128];
	int pipes[2], from = memfd_create("from", 0);
	off_t at = 0;
	void *map;

	snprintf(what, sizeof(what), "written through a descriptor %s", how);
	if (pwrite(fd, garbage, PAGE, 0) > 0 || write(fd, garbage, PAGE) > 0 ||
		pwrite(fd, garbage, PAGE, PIECE) > 0 || pwritev2(fd, &iov, 1, 0, 0) > 0)
		found_wrong(what);
	ck_assert_int_eq(pwrite(from, garbage, PAGE, 0), PAGE);
	if (copy_file_range(from, &at, fd, &(off_t){0}, PAGE, 0) > 0)
		found_wrong(what);
	at = 0;
	lseek(fd, 0, SEEK_SET);
	if (syscall(SYS_sendfile, fd, from, &at, PAGE) > 0)
		found_wrong(what);
	ck_assert_int_eq(pipe(pipes), 0);
	ck_assert_int_eq(write(pipes[1], garbage, PAGE), PAGE);
	if (splice(pipes[0], NULL, fd, &(off_t){0}, PAGE, 0) > 0)
		found_wrong(what);
	close(pipes[0]);
	close(pipes[1]);
	close(from);
	if (!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) ||
		!fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, PAGE) ||
		!fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE) || !ftruncate(fd, PAGE) ||
		!ftruncate(fd, 2 * PIECE))
		found_wrong(what);
	map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED)
		memcpy(map, garbage, PAGE);
	map = mmap(NULL, PIECE + PAGE, PROT_READ, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED) {
		if (!mprotect(map, PAGE, PROT_READ | PROT_WRITE))
			memcpy(map, garbage, PAGE);
		if (!madvise(map, PAGE, MADV_REMOVE))
			found_wrong(what);
		madvise(map, PIECE, MADV_DONTNEED);
		madvise(map, PIECE, MADV_PAGEOUT);
		munmap(map, PIECE + PAGE);
	}
	/* One's own copy is one's own business. */
	map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (map != MAP_FAILED) {
		memcpy(map, garbage, PAGE);
		munmap(map, PAGE);
	}
	look_again(what);
}

/* UFFDIO_COPY puts pages into holes of a file, for whoever may write to it. */
static void fill_holes(int fd)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = {.api = UFFD_API};
	char *map = mmap(NULL, PIECE, PROT_READ, MAP_SHARED, fd, 0);
	struct uffdio_register missing = {
		.range = {(uintptr_t)map, PIECE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_register protect = {.mode = UFFDIO_REGISTER_MODE_WP};
	struct uffdio_copy copy = {.dst = (uintptr_t)map + 20 * PAGE, .len = PAGE};
	char *source;

	ck_assert(map != MAP_FAILED);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) {
		skip("needs userfaultfd");
		return;
	}
	source = aligned_alloc(PAGE, PAGE);
	memset(source, 7, PAGE);
	copy.src = (uintptr_t)source;
	if (!ioctl(uffd, UFFDIO_REGISTER, &missing))
		ioctl(uffd, UFFDIO_COPY, &copy);
	free(source);
	munmap(map, PIECE);
	look_again("a hole filled with userfaultfd");
	/* What the header promises to those who map it privately. */
	close(uffd);
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	api = (struct uffdio_api){
		.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | 1 << 12};
	map = mmap(NULL, PIECE, PROT_READ, MAP_PRIVATE, fd, 0);
	protect.range = (struct uffdio_range){(uintptr_t)map, PIECE};
	if (ioctl(uffd, UFFDIO_API, &api))
		skip("needs write protection of shared memory");
	else
		ck_assert_int_eq(ioctl(uffd, UFFDIO_REGISTER, &protect), 0);
	close(uffd);
	munmap(map, PIECE);
}

static void give_fd(int *fd, int *state_seals)
{
	struct mb_commons_request msg = raw_request(MB_COMMONS_WANT);
	struct mb_commons_reply reply;
	int client = raw_client();

	ck_assert_int_eq(raw_open(client, f.base_fd, &msg.base), 0);
	msg.node = node_id();
	msg.len = 16 * PAGE;
	msg.flags = MB_COMMONS_NEED_FD;
	ck_assert_int_eq(raw_send(client, &msg, sizeof(msg), NULL, 0), 0);
	ck_assert_int_eq(raw_receive(client, &reply, fd), 0);
	ck_assert_int_eq(reply.status, 0);
	ck_assert_int_ge(*fd, 0);
	*state_seals = fcntl(*fd, F_GET_SEALS);
}

START_TEST(test_descriptors)
{
	char path[64];
	int fd, again, seals;

	start_server();
	witness = new_client();
	/* A client of ours takes nothing that is not sealed. */
	ck_assert_int_eq(open_base(witness, f.base_fd, &seen), 0);
	if (MB_COMMONS_WRONG == WRONG_UNSEALED) {
		ck_assert_int_eq(mb_commons_want(seen, node_id(), 0, 16 * PAGE, NULL), 0);
		for (unsigned i = 0; i < 200 && !f.n_done; i++)
			poll_once(witness, 20);
		ck_assert_int_eq(f.done.status, -EPIPE);
		found_wrong("what the daemon gives is not sealed");
	}
	ck_assert_int_eq(want(witness, seen, node_id(), 0, 16 * PAGE), 0);
	look_again("at first");
	give_fd(&fd, &seals);
	ck_assert_int_eq(seals & MB_COMMONS_SEALS, MB_COMMONS_SEALS);
	if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
		found_wrong("a descriptor for writing");
	write_to(fd, "as it came");
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	/* Opened again by whoever may: the owner, root. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fchmod(fd, 0666);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0)
		write_to(again, "opened again");
	ck_assert_int_eq(truncate(path, 0), -1);
	again = open(path, O_RDWR | O_TRUNC | O_CLOEXEC);
	ck_assert_int_lt(again, 0);
	again = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (again >= 0)
		write_to(again, "to append");
	fill_holes(fd);
	/* Its flags and offset are its own. */
	lseek(fd, 12345, SEEK_SET);
	fcntl(fd, F_SETFL, O_NONBLOCK | O_APPEND);
	ck_assert_int_eq(want(witness, seen, node_id(), 16 * PAGE, PAGE), 0);
	ck_assert(is_page(mb_commons_lookup(seen, node_id(), 16 * PAGE, PAGE), 1, 16));
	/* Pages that are given to holes count, and go with the rest. */
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0)
		fallocate(again, 0, 0, PIECE);
	if (!becomes("held_bytes", MB_COMMONS_FILE_BYTES))
		ck_assert_int_lt(again, 0);
	mb_commons_destroy(witness);
	ck_assert(!MB_COMMONS_WRONG);
}
END_TEST

/* ---- packets ---- */

static bool hung_up(int fd)
{
	struct mb_commons_reply reply;
	int given;

	/* What it was answered before. */
	for (unsigned i = 0; i < 3; i++) {
		int rc = raw_receive(fd, &reply, &given);

		if (rc)
			return rc == -EPIPE;
	}
	return false;
}

static void must_work(const char *what)
{
	ck_assert_msg(!want(f.commons, f.base, node_id(), 0, 4 * PAGE), "after %s", what);
}

START_TEST(test_bad_packets)
{
	struct mb_commons_request good = raw_request(MB_COMMONS_STAT), bad;
	const struct {
		const char *what;
		size_t at, len;
		uint64_t value;
		uint16_t type;
		size_t cut;
		unsigned n_fds;
	} cases[] = {
		{"short", 0, 0, 0, MB_COMMONS_STAT, 10, 0},
		{"one byte too few", 0, 0, 0, MB_COMMONS_STAT, sizeof(good) - 1, 0},
		{"one byte", 0, 0, 0, MB_COMMONS_STAT, 1, 0},
		{"long", 0, 0, 0, MB_COMMONS_STAT, sizeof(good) + 1, 0},
		{"magic", offsetof(struct mb_commons_request, magic), 4, 1, MB_COMMONS_STAT, 0, 0},
		{"version", offsetof(struct mb_commons_request, version), 2, 2, MB_COMMONS_STAT, 0,
			0},
		{"type 0", 0, 0, 0, 0, 0, 0},
		{"type 11", 0, 0, 0, 11, 0, 0},
		{"second hello", 0, 0, 0, MB_COMMONS_HELLO, 0, 0},
		{"zero", offsetof(struct mb_commons_request, zero), 4, 1, MB_COMMONS_STAT, 0, 0},
		{"stat with a base", offsetof(struct mb_commons_request, base), 4, 1,
			MB_COMMONS_STAT, 0, 0},
		{"stat with flags", offsetof(struct mb_commons_request, flags), 4, 1,
			MB_COMMONS_STAT, 0, 0},
		{"stat with a descriptor", 0, 0, 0, MB_COMMONS_STAT, 0, 1},
		{"open without", 0, 0, 0, MB_COMMONS_OPEN, 0, 0},
		{"open with two", 0, 0, 0, MB_COMMONS_OPEN, 0, 2},
		{"open with eight", 0, 0, 0, MB_COMMONS_OPEN, 0, 8},
		{"base 0, which is not open", offsetof(struct mb_commons_request, len), 8, PAGE,
			MB_COMMONS_WANT, 0, 0},
		{"base 2^32-1", offsetof(struct mb_commons_request, base), 4, UINT32_MAX,
			MB_COMMONS_WANT, 0, 0},
		{"close of nothing", offsetof(struct mb_commons_request, base), 4, 63,
			MB_COMMONS_CLOSE, 0, 0},
		{"release of nothing", offsetof(struct mb_commons_request, base), 4, 64,
			MB_COMMONS_RELEASE, 0, 0},
	};
	char packet[sizeof(good) + 1] = {0};

	begin();
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int fd = raw_client(), fds[8];

		for (unsigned k = 0; k < 8; k++)
			fds[k] = f.base_fd;
		bad = good;
		bad.type = cases[i].type;
		memcpy((char *)&bad + cases[i].at, &cases[i].value, cases[i].len);
		memcpy(packet, &bad, sizeof(bad));
		ck_assert_int_eq(raw_send(fd, packet, cases[i].cut ? cases[i].cut : sizeof(bad),
					 fds, cases[i].n_fds),
			0);
		ck_assert_msg(hung_up(fd), "goes on after: %s", cases[i].what);
		close(fd);
		must_work(cases[i].what);
	}
	/* Ranges. */
	for (unsigned i = 0; i < 6; i++) {
		static const uint64_t range[][2] = {{1, PAGE}, {0, 1}, {0, 0}, {PAGE, PIECE},
			{UINT64_MAX & ~4095ull, 2 * PAGE}, {4ull * PIECE, PAGE}};
		int fd = raw_client();

		bad = raw_request(MB_COMMONS_WANT);
		ck_assert_int_eq(raw_open(fd, f.base_fd, &bad.base), 0);
		bad.offset = range[i][0];
		bad.len = range[i][1];
		bad.node = node_id();
		ck_assert_int_eq(raw_send(fd, &bad, sizeof(bad), NULL, 0), 0);
		ck_assert_msg(hung_up(fd), "goes on after range %u", i);
		close(fd);
		must_work("a range");
	}
	/* Before hello. */
	{
		int fd = raw_connect();

		ck_assert_int_eq(raw_send(fd, &good, sizeof(good), NULL, 0), 0);
		ck_assert(hung_up(fd));
		close(fd);
	}
	ck_assert(becomes("clients", 1));
	ck_assert_uint_ge(stat_of("bad_requests"), 20);
}
END_TEST

/* More of everything than there may be. */
START_TEST(test_limits)
{
	static int clients[MB_COMMONS_MAX_CLIENTS + 20];
	struct mb_commons_request msg = raw_request(MB_COMMONS_STAT);
	struct mb_commons_reply reply;
	unsigned n_in = 0, n_sent = 0;
	int fd, given, rc;
	uint32_t number;

	begin();
	must_work("the beginning");
	for (unsigned i = 0; i < MB_COMMONS_MAX_CLIENTS + 20; i++) {
		clients[i] = raw_connect();
		n_in += clients[i] >= 0;
	}
	ck_assert_uint_gt(n_in, 100);
	must_work("many clients");
	for (unsigned i = 0; i < MB_COMMONS_MAX_CLIENTS + 20; i++)
		if (clients[i] >= 0)
			close(clients[i]);
	ck_assert(becomes("clients", 1));
	/* One that has more bases than it may. */
	fd = raw_client();
	for (unsigned i = 0; i < MB_COMMONS_CLIENT_BASES; i++)
		ck_assert_int_eq(raw_open(fd, f.base_fd, &number), 0);
	ck_assert_int_eq(raw_open(fd, f.base_fd, &number), -EMFILE);
	close(fd);
	/* One that asks and never listens: it fills what is its own. */
	fd = raw_client();
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (rc = 0; !rc && n_sent < 100000; n_sent++)
		rc = raw_send(fd, &msg, sizeof(msg), NULL, 0);
	printf("%u requests are taken of one that does not listen\n", n_sent);
	ck_assert_int_eq(rc, -EAGAIN);
	must_work("one that does not listen");
	fcntl(fd, F_SETFL, 0);
	for (unsigned i = 0; i < 40; i++) {
		ck_assert_int_eq(raw_receive(fd, &reply, &given), 0);
		ck_assert_int_eq(reply.status, 0);
		close(given);
	}
	close(fd);
	ck_assert(becomes("clients", 1));
}
END_TEST

/* A file whose opening does not return: a lease is on it, and its holder does not let go. */
START_TEST(test_hanging_file)
{
	struct mb_commons_request msg = raw_request(MB_COMMONS_OPEN);
	char path[128];
	int fd, leased;

	begin();
	snprintf(path, sizeof(path), "%s/leased", f.dir);
	leased = make_base(path, 3, PAGE);
	signal(SIGIO, SIG_IGN);
	if (fcntl(leased, F_SETLEASE, F_WRLCK)) {
		skip("needs leases");
		return;
	}
	fd = raw_client();
	for (unsigned i = 0; i < 10; i++)
		ck_assert_int_eq(raw_send(fd, &msg, sizeof(msg), &leased, 1), 0);
	usleep(200000);
	for (unsigned i = 0; i < 2 * N_PAGES; i += 64)
		ck_assert_int_eq(want(f.commons, f.base, node_id(), i * PAGE, PAGE), 0);
	ck_assert_uint_eq(stat_of("clients"), 2);
	/* It goes, and what it left hanging is nobody's. */
	close(fd);
	ck_assert(becomes("clients", 1));
	must_work("a file that hangs");
	ck_assert_int_eq(fcntl(leased, F_SETLEASE, F_UNLCK), 0);
	close(leased);
}
END_TEST

/* No locks of a client's stay with the daemon. */
START_TEST(test_locks)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
	struct mb_commons_base *base;
	int fd = open(f.base_path, O_RDONLY | O_CLOEXEC), writer;

	begin();
	ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &lock), 0);
	ck_assert_int_eq(open_base(f.commons, fd, &base), 0);
	ck_assert_int_eq(want(f.commons, base, node_id(), 0, PAGE), 0);
	mb_commons_close_base(base);
	close(fd);
	writer = open(f.base_path, O_RDWR | O_CLOEXEC);
	lock.l_type = F_WRLCK;
	ck_assert_int_eq(fcntl(writer, F_OFD_SETLK, &lock), 0);
	close(writer);
}
END_TEST

static int connect_as(uid_t uid)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct sockaddr_un addr = {.sun_family = AF_UNIX};
		struct mb_commons_request hello = raw_request(MB_COMMONS_HELLO);
		struct mb_commons_reply reply;
		int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0), given;

		memcpy(addr.sun_path, f.path, strlen(f.path) + 1);
		if (setuid(uid) || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
			_exit(3);
		raw_send(fd, &hello, sizeof(hello), NULL, 0);
		_exit(raw_receive(fd, &reply, &given) ? 2 : 0);
	}
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

static void serve_all(void *arg)
{
	f.server->config.any_user = true;
}

/* Even where the file's mode would let others in. */
START_TEST(test_other_users)
{
	if (getuid()) {
		skip("needs root");
		return;
	}
	begin();
	ck_assert_int_eq(connect_as(65534), 3);
	ck_assert_int_eq(chmod(f.dir, 0755) || chmod(f.path, 0666), 0);
	ck_assert_int_eq(connect_as(65534), 2);
	ck_assert(becomes("refused", 1));
	ck_assert_int_eq(connect_as(0), 0);
	mb_loop_call(f.server->loop, serve_all, NULL);
	ck_assert_int_eq(connect_as(65534), 0);
}
END_TEST

/* ---- garbage ---- */

static unsigned open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

#define N_CONTENT 60u

struct fuzzer {
	unsigned seed;
	int fds[6], fd; /* of many kinds; the connection */
	bool opened;
	uint32_t group; /* that was joined last, and its key */
	struct mb_content_key key;
	uint64_t n_sent, n_answered, n_hung_up, n_placed;
};

static unsigned pick(struct fuzzer *z, unsigned n)
{
	return (unsigned)rand_r(&z->seed) % n;
}

static uint64_t odd_number(struct fuzzer *z)
{
	static const uint64_t odd[] = {0, 1, PAGE, PIECE, PIECE - PAGE, 2 * PIECE, UINT32_MAX,
		UINT64_MAX, UINT64_MAX - PAGE + 1, 1ull << 63, BASE_SIZE, 63, 64, 65};

	return pick(z, 3) ? odd[pick(z, sizeof(odd) / sizeof(odd[0]))]
			  : (uint64_t)rand_r(&z->seed) << pick(z, 33);
}

/*
 * Of groups: a few names, and pages of which there are so few that each is offered by several connections
 * and given. The key is asked for by the last JOIN, the answers of which are read by and by.
 */
static void make_more(struct fuzzer *z, struct mb_commons_packet *packet)
{
	struct mb_commons_request *msg = &packet->asked;
	uint64_t page[PAGE / 8];
	struct mb_content_hash hash;

	memset(packet->page, 0, sizeof(packet->page));
	make_page(5, pick(z, N_CONTENT), page);
	hash = mb_content_hash(&z->key, page);
	switch (msg->type) {
	case MB_COMMONS_JOIN:
		snprintf(packet->name, sizeof(packet->name), "group%u", pick(z, 2));
		break;
	case MB_COMMONS_OFFER:
		msg->base = pick(z, 8) ? z->group : pick(z, 3);
		msg->len = 1 + pick(z, MB_COMMONS_OFFERS);
		for (unsigned i = 0; i < msg->len; i++) {
			make_page(5, pick(z, N_CONTENT), page);
			packet->hash[i] = mb_content_hash(&z->key, page);
		}
		break;
	case MB_COMMONS_FETCH:
	case MB_COMMONS_GIVE:
		msg->base = pick(z, 8) ? z->group : pick(z, 3);
		msg->node = pick(z, 10) ? node_id() : pick(z, 100);
		msg->offset = hash.word[0];
		msg->len = hash.word[1];
		if (msg->type == MB_COMMONS_GIVE)
			memcpy(packet->page, page, PAGE);
		break;
	default:
		break;
	}
}

/* Mostly one that makes sense, so that the garbage comes where something is going on. */
static void make_packet(
	struct fuzzer *z, struct mb_commons_packet *packet, size_t *len, unsigned *n_fds)
{
	struct mb_commons_request *msg = &packet->asked;

	*msg = raw_request(1 + pick(z, MB_COMMONS_GIVE));
	msg->tag = rand_r(&z->seed);
	*n_fds = 0;
	if (!z->opened || msg->type == MB_COMMONS_HELLO)
		msg->type = MB_COMMONS_OPEN;
	if (msg->type == MB_COMMONS_OPEN)
		*n_fds = 1;
	if (msg->type == MB_COMMONS_WANT || msg->type == MB_COMMONS_RELEASE ||
		msg->type == MB_COMMONS_CLOSE)
		msg->base = pick(z, 8) ? 0 : pick(z, 3);
	if (msg->type == MB_COMMONS_CLOSE && pick(z, 4))
		msg->type = MB_COMMONS_WANT;
	if (msg->type == MB_COMMONS_WANT || msg->type == MB_COMMONS_RELEASE) {
		msg->node = pick(z, 10) ? node_id() : pick(z, 100);
		msg->offset = pick(z, 2 * N_PAGES) * (uint64_t)PAGE;
	}
	if (msg->type == MB_COMMONS_WANT) {
		msg->len = (1 + pick(z, 4)) * (uint64_t)PAGE;
		msg->flags = pick(z, 4);
	}
	z->opened |= msg->type == MB_COMMONS_OPEN;
	make_more(z, packet);
	*len = mb_commons_packet_bytes(msg);
	if (pick(z, 12))
		return;
	switch (pick(z, 5)) {
	case 0:
		*len = pick(z, (unsigned)*len + 1);
		break;
	case 1:
		((uint8_t *)msg)[pick(z, sizeof(*msg))] ^= 1u << pick(z, 8);
		break;
	case 2:
		msg->offset = odd_number(z);
		break;
	case 3:
		msg->len = odd_number(z);
		break;
	default:
		*n_fds = pick(z, 9);
	}
}

static void send_garbage(struct fuzzer *z)
{
	struct mb_commons_packet packet;
	struct mb_commons_request *msg = &packet.asked;
	struct mb_commons_reply reply;
	int fds[8], given, rc;
	unsigned n_fds;
	size_t len;

	if (z->fd < 0) {
		z->fd = raw_connect();
		z->opened = false;
		if (z->fd < 0)
			return;
		*msg = raw_request(MB_COMMONS_HELLO);
		raw_send(z->fd, msg, pick(z, 20) ? sizeof(*msg) : pick(z, sizeof(*msg)), NULL, 0);
		fcntl(z->fd, F_SETFL, O_NONBLOCK);
	}
	make_packet(z, &packet, &len, &n_fds);
	for (unsigned i = 0; i < 8; i++)
		fds[i] = z->fds[pick(z, 3) ? 0 : pick(z, 6)];
	rc = raw_send(z->fd, &packet, len, fds, n_fds);
	z->n_sent += !rc;
	for (unsigned i = 0; pick(z, 6) && i < 8; i++) {
		char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
		struct iovec iov = {.iov_base = &reply, .iov_len = sizeof(reply)};
		struct msghdr m = {.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = room,
			.msg_controllen = sizeof(room)};
		ssize_t n = recvmsg(z->fd, &m, MSG_DONTWAIT);

		if (n <= 0) {
			rc = !n || errno != EAGAIN ? -EPIPE : rc;
			break;
		}
		z->n_answered++;
		if (reply.type == MB_COMMONS_JOIN && !reply.status) {
			z->group = reply.base;
			z->key = (struct mb_content_key){{reply.offset, reply.value}};
		}
		z->n_placed += (reply.type == MB_COMMONS_FETCH || reply.type == MB_COMMONS_GIVE) &&
			       !reply.status;
		if (CMSG_FIRSTHDR(&m)) {
			memcpy(&given, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
			close(given);
		}
	}
	if ((rc && rc != -EAGAIN) || !pick(z, 300)) {
		z->n_hung_up++;
		close(z->fd);
		z->fd = -1;
	}
}

/* An honest member, so that there is somebody to give pages to. */
static void join_and_offer(const char *name)
{
	struct mb_content_hash hash[N_CONTENT];
	struct mb_commons_base *group;
	struct mb_content_key key;
	uint64_t page[PAGE / 8];
	unsigned n_before = f.n_done;

	ck_assert_int_eq(mb_commons_join(f.commons, name, &group), 0);
	while (mb_commons_base_status(group) == -EINPROGRESS)
		poll_once(f.commons, 50);
	key = mb_commons_key(group);
	for (unsigned i = 0; i < N_CONTENT; i++) {
		make_page(5, i, page);
		hash[i] = mb_content_hash(&key, page);
	}
	ck_assert_int_eq(mb_commons_offer(group, hash, N_CONTENT, NULL), 0);
	while (f.n_done == n_before)
		poll_once(f.commons, 50);
	ck_assert_int_eq(f.done.status, 0);
}

START_TEST(test_fuzz)
{
	const char *seconds = getenv("MB_FUZZ_SECONDS"), *seed = getenv("MB_FUZZ_SEED");
	uint64_t end_ns = mb_now_ns() + (uint64_t)(seconds ? atoi(seconds) : 4) * 1000000000ull;
	struct fuzzer z = {.seed = seed ? (unsigned)atoi(seed) : (unsigned)mb_now_ns(), .fd = -1};
	int pipes[2];
	unsigned n_before, n = 0;

	printf("seed %u\n", z.seed);
	ck_assert_int_eq(pipe(pipes), 0);
	z.fds[0] = f.base_fd;
	z.fds[1] = pipes[0];
	z.fds[2] = open("/dev/null", O_RDWR | O_CLOEXEC);
	z.fds[3] = open(f.dir, O_RDONLY | O_CLOEXEC);
	z.fds[4] = open(f.base_path, O_PATH | O_CLOEXEC);
	z.fds[5] = memfd_create("fuzz", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(z.fds[5], 3 * PAGE), 0);
	begin();
	must_work("nothing");
	join_and_offer("group0");
	join_and_offer("group1");
	usleep(100000);
	n_before = open_descriptors();
	while (mb_now_ns() < end_ns) {
		send_garbage(&z);
		if (++n % 512 == 0)
			must_work("garbage");
	}
	if (z.fd >= 0)
		close(z.fd);
	printf("%lu sent, %lu answered, of these %lu with a place; %lu hung up\n", z.n_sent,
		z.n_answered, z.n_placed, z.n_hung_up);
	ck_assert(becomes("clients", 1));
	ck_assert(becomes("references", 1));
	for (unsigned i = 0; i < 2 * N_PAGES; i += 31)
		ck_assert(!mb_commons_lookup(f.base, node_id(), i * PAGE, PAGE) ||
			  is_page(mb_commons_lookup(f.base, node_id(), i * PAGE, PAGE), 1, i));
	/* Pieces and bases that nobody has are kept: a descriptor each. */
	ck_assert_uint_gt(z.n_answered, 100);
	/* The honest one's, but those that are there now. */
	ck_assert(becomes("noted_hashes", 2 * N_CONTENT - stat_of("content_pages")));
	ck_assert_uint_gt(z.n_placed, 0);
	for (unsigned i = 0; i < 100 && open_descriptors() > n_before + 8; i++)
		usleep(20000);
	ck_assert_uint_le(open_descriptors(), n_before + 8);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("commons_hostile");
	TCase *all = tcase_create("all");

	tcase_add_checked_fixture(all, setup, teardown);
	tcase_set_timeout(all, 100);
	tcase_add_test(all, test_descriptors);
	if (!MB_COMMONS_WRONG) {
		tcase_add_test(all, test_bad_packets);
		tcase_add_test(all, test_limits);
		tcase_add_test(all, test_hanging_file);
		tcase_add_test(all, test_locks);
		tcase_add_test(all, test_other_users);
		tcase_add_test(all, test_fuzz);
	}
	suite_add_tcase(s, all);
	return run_suite(s);
}
