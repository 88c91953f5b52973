// SPDX-License-Identifier: Apache-2.0
/*
 * The first program of a benchmark's guest: it loads the drivers, says "BENCH-READY" on the console
 * and obeys the lines that come from there, until "quit":
 *
 *   info                                     how many CPUs, what the disks' queues are like
 *   blk DEVICE rand|seq BLOCK DEPTH COUNT [read|write]    blocks with O_DIRECT, DEPTH at a time
 *   net ADDRESS ROOT-DEVICE                  give eth0 an address, start iperf3 from that root
 *   quit                                     power off
 *
 * Each answer ends with a line "BENCH-DONE key=value..." or "BENCH-FAILED reason". Static and
 * alone in its initial ramdisk, so that a guest is up as fast as its kernel and nothing else runs.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEPTH 256

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static void say(const char *what, const char *format, ...)
{
	char text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/* The line feed in front ends whatever the kernel was saying. */
	dprintf(1, "\n%s %s\n", what, text);
}

static void failed(const char *what)
{
	say("BENCH-FAILED", "%s: %s", what, strerror(errno));
}

/* ---- set-up ---- */

static void load_modules(void)
{
	char line[256], path[300];
	FILE *order = fopen("/modules/order", "r");

	while (order && fgets(line, sizeof(line), order)) {
		int fd;

		line[strcspn(line, "\n")] = '\0';
		snprintf(path, sizeof(path), "/modules/%s", line);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			failed(path);
		if (fd >= 0)
			close(fd);
	}
	if (order)
		fclose(order);
}

static void raw_console(void)
{
	struct termios modes;

	/* No echo: each character is several exits, which are what is counted. */
	if (!tcgetattr(0, &modes)) {
		modes.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ISIG);
		tcsetattr(0, TCSANOW, &modes);
	}
}

/* ---- info ---- */

static void first_line(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "r");

	text[0] = '\0';
	if (file && fgets(text, (int)size, file))
		text[strcspn(text, "\n")] = '\0';
	if (file)
		fclose(file);
}

static void info(void)
{
	static const char *const fields[] = {"nr_requests", "max_segments", "max_sectors_kb",
		"max_hw_sectors_kb", "max_segment_size", "logical_block_size", "write_cache", "scheduler"};
	char path[64], text[64], all[200] = "";

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		size_t at = strlen(all);

		snprintf(path, sizeof(path), "/sys/block/vda/queue/%s", fields[i]);
		first_line(path, text, sizeof(text));
		for (char *c = text; *c; c++)
			*c = *c == ' ' ? '_' : *c;
		if (*text)
			snprintf(all + at, sizeof(all) - at, " %s=%s", fields[i], text);
	}
	first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", text,
		sizeof(text));
	say("BENCH-DONE", "cpus=%ld clocksource=%s%s", sysconf(_SC_NPROCESSORS_ONLN), text, all);
}

/* ---- a disk ---- */

struct reader {
	int fd;
	aio_context_t aio;
	bool random, write;
	uint64_t n_blocks, next, seed;
	uint32_t block;
	unsigned depth;
	uint8_t *memory;
	struct iocb iocb[MAX_DEPTH];
};

static uint64_t next_random(struct reader *r)
{
	r->seed ^= r->seed << 13;
	r->seed ^= r->seed >> 7;
	r->seed ^= r->seed << 17;
	return r->seed;
}

static void prepare(struct reader *r, unsigned slot)
{
	uint64_t at = (r->random ? next_random(r) : r->next++) % r->n_blocks;

	r->iocb[slot] = (struct iocb){.aio_data = slot, 
		.aio_lio_opcode = r->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = (uint32_t)r->fd, .aio_buf = (uintptr_t)(r->memory + (size_t)slot * r->block),
		.aio_nbytes = r->block, .aio_offset = (int64_t)(at * r->block)};
}

/* Completions are collected as they come, and replaced by as many new requests in one call. */
static int read_all(struct reader *r, unsigned long count)
{
	struct iocb *list[MAX_DEPTH];
	struct io_event events[MAX_DEPTH];
	unsigned long issued = 0, done = 0;
	unsigned n = 0;

	for (; n < r->depth && issued < count; n++, issued++) {
		prepare(r, n);
		list[n] = &r->iocb[n];
	}
	while (done < count) {
		long got;

		for (unsigned at = 0; at < n;) {
			long rc = syscall(SYS_io_submit, r->aio, (long)(n - at), list + at);

			if (rc <= 0)
				return -1;
			at += (unsigned)rc;
		}
		got = syscall(SYS_io_getevents, r->aio, 1L, (long)r->depth, events, NULL);
		if (got < 0)
			return -1;
		n = 0;
		for (long i = 0; i < got; i++, done++) {
			if (events[i].res != r->block) {
				errno = (int64_t)events[i].res < 0 ? -(int)events[i].res : EIO;
				return -1;
			}
			if (issued < count) {
				prepare(r, (unsigned)events[i].data);
				list[n++] = &r->iocb[events[i].data];
				issued++;
			}
		}
	}
	return 0;
}

static void blk(const char *device, const char *order, uint32_t block, unsigned depth,
	unsigned long count, bool write)
{
	struct reader r = {.random = !strcmp(order, "rand"), .write = write, .block = block, .depth = depth,
		.seed = 0x9e3779b97f4a7c15u};
	uint64_t bytes = 0;
	int64_t begin;

	if (!depth || depth > MAX_DEPTH || !block || block % 512 || block > 1 << 20) {
		errno = EINVAL;
		failed("blk");
		return;
	}
	r.fd = open(device, (write ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
	if (r.fd < 0 || ioctl(r.fd, BLKGETSIZE64, &bytes) || bytes < block ||
		posix_memalign((void **)&r.memory, 4096, (size_t)block * depth) ||
		syscall(SYS_io_setup, depth, &r.aio)) {
		failed(device);
	} else {
		/* Its pages are there before the clock starts. */
		memset(r.memory, 1, (size_t)block * depth);
		r.n_blocks = bytes / block;
		begin = now_ns();
		if (read_all(&r, count))
			failed(device);
		else
			say("BENCH-DONE", "requests=%lu bytes=%llu ns=%lld", count,
				(unsigned long long)count * block, (long long)(now_ns() - begin));
		syscall(SYS_io_destroy, r.aio);
	}
	free(r.memory);
	if (r.fd >= 0)
		close(r.fd);
}

/* ---- network ---- */

static int interface_up(const char *address)
{
	struct ifreq ifr = {.ifr_name = "eth0"};
	struct sockaddr_in in = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = -1;

	if (fd < 0)
		return -1;
	if (inet_pton(AF_INET, address, &in.sin_addr) != 1) {
		errno = EINVAL;
		goto out;
	}
	memcpy(&ifr.ifr_addr, &in, sizeof(in));
	if (ioctl(fd, SIOCSIFADDR, &ifr))
		goto out;
	inet_pton(AF_INET, "255.255.255.0", &in.sin_addr);
	memcpy(&ifr.ifr_netmask, &in, sizeof(in));
	if (ioctl(fd, SIOCSIFNETMASK, &ifr) || ioctl(fd, SIOCGIFFLAGS, &ifr))
		goto out;
	ifr.ifr_flags |= IFF_UP | IFF_RUNNING;
	rc = ioctl(fd, SIOCSIFFLAGS, &ifr);
out:
	close(fd);
	return rc;
}

static void net(const char *address, const char *root)
{
	struct stat st;
	pid_t child;

	if (interface_up(address)) {
		failed("eth0");
		return;
	}
	if (mount(root, "/root", "ext4", MS_RDONLY, "noload") ||
		mount("tmp", "/root/tmp", "tmpfs", 0, "") || mount("dev", "/root/dev", "devtmpfs", 0, "") ||
		stat("/root/usr/bin/iperf3", &st)) {
		failed(root);
		return;
	}
	child = fork();
	if (!child) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		if (!chroot("/root") && !chdir("/"))
			execl("/usr/bin/iperf3", "iperf3", "-s", (char *)NULL);
		_exit(127);
	}
	if (child < 0)
		failed("fork");
	else
		say("BENCH-DONE", "pid=%d", (int)child);
}

/* ---- */

int main(void)
{
	char line[256], a[128], b[128], how[8];
	unsigned long count;
	unsigned depth;
	uint32_t block;

	signal(SIGCHLD, SIG_IGN);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("dev", "/dev", "devtmpfs", 0, "");
	raw_console();
	load_modules();
	say("BENCH-READY", "pid=%d", (int)getpid());
	while (*how = 0, fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "quit", 4))
			break;
		if (!strncmp(line, "info", 4))
			info();
		else if (sscanf(line, "blk %127s %127s %u %u %lu %7s", a, b, &block, &depth, &count, how) >= 5)
			blk(a, b, block, depth, count, !strcmp(how, "write"));
		else if (sscanf(line, "net %127s %127s", a, b) == 2)
			net(a, b);
		else
			say("BENCH-FAILED", "not understood: %.100s", line);
	}
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
