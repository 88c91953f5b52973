// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/console.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VIRTIO_ID_CONSOLE  3u
#define CLASS_SERIAL_OTHER 0x078000u /* PCI Code and ID Assignment 1.16, class 07h subclass 80h */
#define QUEUE_SIZE	   256u

/* Queues of port 0 (virtio 1.2, 5.3.2). */
#define RX_QUEUE 0u
#define TX_QUEUE 1u
#define N_QUEUES 2u

/* virtio 1.2, 5.3.3. */
#define F_SIZE	      (1ull << 0)
#define F_EMERG_WRITE (1ull << 2)

/* virtio 1.2, 5.3.4; all little-endian, as the hosts that we run on. */
struct console_config {
	uint16_t cols;
	uint16_t rows;
	uint32_t max_nr_ports;
	uint32_t emerg_wr;
};

#define INPUT_BYTES 4096u
/* Chains before other devices of the loop have their turn: a guest may refill a ring for ever. */
#define CHAIN_BUDGET 256u

/*
 * Threads: the queues and what belongs to them on the loop's; receive, writable and resize on any:
 * they leave their message under the lock and wake the loop.
 */
struct mb_console {
	struct mb_virtio *vdev;
	struct mb_loop *loop;
	struct mb_loop *loops[N_QUEUES]; /* the same, for the transport */
	struct mb_chardev *chr;
	struct mb_watch wake; /* fd: eventfd */

	/* The loop's thread only. NULL: not started. */
	struct mb_virtq *rx, *tx;
	bool size_told; /* since the queues started */
	/* The chain that the back has taken only part of. */
	struct mb_chain *partial;
	unsigned partial_iov;
	size_t partial_offset;
	/* Until the next kick nothing is popped; of the chain that comes first then, so much is written. */
	bool rx_paused, tx_paused;
	uint64_t tx_skip;

	/* Protects what follows. Order: nothing is locked or called with it held. */
	pthread_mutex_t lock;
	uint16_t columns, rows;
	bool refused; /* receive took less than it was offered */
	unsigned input_head, n_input;
	uint8_t input[INPUT_BYTES];
};

static void wake(struct mb_console *console)
{
	uint64_t one = 1;
	/* Fails only when the counter is full, and then the loop is awake. */
	ssize_t n = write(console->wake.fd, &one, sizeof(one));

	(void)n;
}

/* Writes what is left of console->partial; true when all of it is written. */
static bool write_partial(struct mb_console *console)
{
	struct mb_chain *chain = console->partial;

	while (console->partial_iov < chain->n_out) {
		const struct iovec *iov = &chain->iov[console->partial_iov];
		size_t n = iov->iov_len - console->partial_offset;
		size_t taken = n;

		if (console->chr && n)
			taken = console->chr->ops->write(console->chr,
				(const char *)iov->iov_base + console->partial_offset, n);
		console->partial_offset += taken;
		if (taken < n)
			return false;
		console->partial_iov++;
		console->partial_offset = 0;
	}
	return true;
}

/* What the back has taken of it before a pause. */
static void skip_written(struct mb_console *console)
{
	const struct mb_chain *chain = console->partial;

	while (console->tx_skip && console->partial_iov < chain->n_out) {
		const size_t len = chain->iov[console->partial_iov].iov_len;

		if (console->tx_skip < len) {
			console->partial_offset = (size_t)console->tx_skip;
			break;
		}
		console->tx_skip -= len;
		console->partial_iov++;
	}
	console->tx_skip = 0;
}

static void run_tx(struct mb_console *console)
{
	unsigned n_pushed = 0;

	while (console->tx && !console->tx_paused) {
		if (!console->partial) {
			if (n_pushed == CHAIN_BUDGET) {
				wake(console);
				break;
			}
			if (mb_virtq_pop(console->tx, &console->partial) <= 0) {
				console->partial = NULL;
				break;
			}
			console->partial_iov = 0;
			console->partial_offset = 0;
			skip_written(console);
			/*
			 * Linux reads the terminal's size only when the configuration changes, and
			 * heeds it only once its console is there: when it writes.
			 */
			if (!console->size_told) {
				console->size_told = true;
				mb_virtio_config_changed(console->vdev);
			}
		}
		if (!write_partial(console))
			break;
		mb_virtq_push(console->tx, console->partial, 0);
		console->partial = NULL;
		n_pushed++;
	}
	if (n_pushed)
		mb_virtq_signal(console->tx);
}

/* Moves input into a chain; returns how much. */
static size_t fill_chain(struct mb_console *console, const struct mb_chain *chain)
{
	size_t n = 0;

	pthread_mutex_lock(&console->lock);
	while (console->n_input) {
		unsigned span = INPUT_BYTES - console->input_head;
		size_t done;

		if (span > console->n_input)
			span = console->n_input;
		done = mb_chain_write(chain, n, console->input + console->input_head, span);
		console->input_head = (console->input_head + (unsigned)done) % INPUT_BYTES;
		console->n_input -= (unsigned)done;
		n += done;
		if (done < span)
			break;
	}
	pthread_mutex_unlock(&console->lock);
	return n;
}

/* True once after the back was refused, when there is room again. */
static bool take_refused(struct mb_console *console)
{
	bool readable;

	pthread_mutex_lock(&console->lock);
	readable = console->refused && console->n_input < INPUT_BYTES;
	if (readable)
		console->refused = false;
	pthread_mutex_unlock(&console->lock);
	return readable;
}

static bool has_input(struct mb_console *console)
{
	bool has;

	pthread_mutex_lock(&console->lock);
	has = console->n_input > 0;
	pthread_mutex_unlock(&console->lock);
	return has;
}

static void run_rx(struct mb_console *console)
{
	unsigned n_pushed = 0;

	while (console->rx && !console->rx_paused && has_input(console)) {
		struct mb_chain *chain;

		if (n_pushed == CHAIN_BUDGET) {
			wake(console);
			break;
		}
		if (mb_virtq_pop(console->rx, &chain) <= 0)
			break;
		mb_virtq_push(console->rx, chain, (uint32_t)fill_chain(console, chain));
		n_pushed++;
	}
	if (n_pushed)
		mb_virtq_signal(console->rx);
	if (take_refused(console) && console->chr->ops->readable)
		console->chr->ops->readable(console->chr);
}

static void woken(struct mb_watch *watch, uint32_t events)
{
	struct mb_console *console = watch->ctx;
	uint64_t count;
	ssize_t n = read(watch->fd, &count, sizeof(count));

	(void)n;
	run_tx(console);
	run_rx(console);
}

static size_t front_receive(void *dev, const void *buf, size_t n)
{
	struct mb_console *console = dev;
	const uint8_t *bytes = buf;
	size_t taken = 0;

	pthread_mutex_lock(&console->lock);
	while (taken < n && console->n_input < INPUT_BYTES) {
		unsigned tail = (console->input_head + console->n_input) % INPUT_BYTES;

		console->input[tail] = bytes[taken++];
		console->n_input++;
	}
	if (taken < n)
		console->refused = true;
	pthread_mutex_unlock(&console->lock);
	if (taken)
		wake(console);
	return taken;
}

static void front_writable(void *dev)
{
	wake(dev);
}

static const struct mb_chardev_front front = {
	.receive = front_receive,
	.writable = front_writable,
};

static void config_read(void *dev, unsigned offset, void *data, unsigned len)
{
	struct mb_console *console = dev;
	struct console_config config = {.max_nr_ports = 1};

	pthread_mutex_lock(&console->lock);
	config.cols = console->columns;
	config.rows = console->rows;
	pthread_mutex_unlock(&console->lock);
	memset(data, 0, len);
	if (offset >= sizeof(config))
		return;
	if (len > sizeof(config) - offset)
		len = (unsigned)sizeof(config) - offset;
	memcpy(data, (const char *)&config + offset, len);
}

/*
 * Emergency write (virtio 1.2, 5.3.4): one character, at any time, also before the device is set
 * up.
 */
static void config_write(void *dev, unsigned offset, const void *data, unsigned len)
{
	struct mb_console *console = dev;

	if (offset == offsetof(struct console_config, emerg_wr) && len && console->chr)
		console->chr->ops->write(console->chr, data, 1);
}

static int queue_start(void *dev, struct mb_virtq *vq, uint64_t features)
{
	struct mb_console *console = dev;

	if (mb_virtq_index(vq) == RX_QUEUE)
		console->rx = vq;
	else
		console->tx = vq;
	return 0;
}

static void queue_kick(void *dev, struct mb_virtq *vq)
{
	struct mb_console *console = dev;

	if (vq == console->tx) {
		console->tx_paused = false;
		run_tx(console);
	} else {
		console->rx_paused = false;
		run_rx(console);
	}
}

static void queue_pause(void *dev, struct mb_virtq *vq)
{
	struct mb_console *console = dev;

	if (mb_virtq_index(vq) == RX_QUEUE) {
		console->rx_paused = true;
		return;
	}
	console->tx_paused = true;
	if (!console->partial)
		return;
	console->tx_skip = console->partial_offset;
	for (unsigned i = 0; i < console->partial_iov; i++)
		console->tx_skip += console->partial->iov[i].iov_len;
	console->partial = NULL;
}

static void queue_stop(void *dev, struct mb_virtq *vq)
{
	struct mb_console *console = dev;

	if (mb_virtq_index(vq) == RX_QUEUE) {
		console->rx = NULL;
		console->rx_paused = false;
	} else {
		console->tx = NULL;
		console->partial = NULL;
		console->tx_paused = false;
		console->tx_skip = 0;
		console->size_told = false;
	}
}

static const struct mb_virtio_ops virtio_ops = {
	.config_read = config_read,
	.config_write = config_write,
	.queue_start = queue_start,
	.queue_kick = queue_kick,
	.queue_stop = queue_stop,
	.queue_pause = queue_pause,
};

struct add_watch {
	struct mb_console *console;
	int rc;
};

static void add_watch(void *arg)
{
	struct add_watch *add = arg;

	add->rc = mb_loop_add(add->console->loop, &add->console->wake);
}

static void remove_watch(void *arg)
{
	struct mb_console *console = arg;

	mb_loop_remove(console->loop, &console->wake);
}

int mb_console_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	struct mb_chardev *chr, struct mb_console **out, struct mb_error *err)
{
	struct mb_console *console = calloc(1, sizeof(*console));
	struct add_watch add = {.console = console};
	struct mb_virtio_config config = {
		.type = VIRTIO_ID_CONSOLE,
		.class_code = CLASS_SERIAL_OTHER,
		.features = F_SIZE | F_EMERG_WRITE,
		.n_queues = N_QUEUES,
		.queue_size = QUEUE_SIZE,
		.config_bytes = sizeof(struct console_config),
		.ops = &virtio_ops,
		.dev = console,
		.name = "console",
	};
	int rc;

	if (!console)
		return mb_error_set(err, ENOMEM, "console: out of memory");
	console->loop = loop;
	console->loops[RX_QUEUE] = console->loops[TX_QUEUE] = loop;
	config.loops = console->loops;
	console->chr = chr;
	pthread_mutex_init(&console->lock, NULL);
	console->wake = (struct mb_watch){
		.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.events = EPOLLIN,
		.ready = woken,
		.ctx = console,
	};
	if (console->wake.fd < 0) {
		rc = mb_error_set(
			err, errno, "console: create an event descriptor: %s", strerror(errno));
		goto err_lock;
	}
	mb_loop_call(loop, add_watch, &add);
	rc = add.rc;
	if (rc) {
		mb_error_set(err, -rc, "console: watch an event descriptor: %s", strerror(-rc));
		goto err_fd;
	}
	rc = mb_virtio_create(pci, dma, &config, &console->vdev, err);
	if (rc)
		goto err_watch;
	if (chr)
		mb_chardev_attach(chr, &front, console);
	*out = console;
	return 0;

err_watch:
	mb_loop_call(loop, remove_watch, console);
err_fd:
	close(console->wake.fd);
err_lock:
	pthread_mutex_destroy(&console->lock);
	free(console);
	return rc;
}

void mb_console_destroy(struct mb_console *console)
{
	if (!console)
		return;
	if (console->chr)
		mb_chardev_detach(console->chr);
	mb_virtio_destroy(console->vdev);
	mb_loop_call(console->loop, remove_watch, console);
	close(console->wake.fd);
	pthread_mutex_destroy(&console->lock);
	free(console);
}

void mb_console_reset(struct mb_console *console)
{
	mb_virtio_reset(console->vdev);
	pthread_mutex_lock(&console->lock);
	console->n_input = 0;
	pthread_mutex_unlock(&console->lock);
	wake(console);
}

void mb_console_resize(struct mb_console *console, unsigned columns, unsigned rows)
{
	pthread_mutex_lock(&console->lock);
	console->columns = columns < UINT16_MAX ? (uint16_t)columns : UINT16_MAX;
	console->rows = rows < UINT16_MAX ? (uint16_t)rows : UINT16_MAX;
	pthread_mutex_unlock(&console->lock);
	mb_virtio_config_changed(console->vdev);
}

int mb_console_pause(struct mb_console *console, uint64_t timeout_ns, struct mb_error *err)
{
	return mb_virtio_pause(console->vdev, timeout_ns, err);
}

void mb_console_resume(struct mb_console *console)
{
	mb_virtio_resume(console->vdev);
}

#define STATE_VERSION 1u

/* The size is that of the terminal that it will have. */
void mb_console_save(struct mb_console *console, struct mb_state_out *out)
{
	mb_state_begin(out, "console", STATE_VERSION);
	mb_state_put_u64(out, console->tx_skip);
	pthread_mutex_lock(&console->lock);
	mb_state_put_u32(out, console->n_input);
	for (unsigned i = 0; i < console->n_input; i++)
		mb_state_put_u8(out, console->input[(console->input_head + i) % INPUT_BYTES]);
	pthread_mutex_unlock(&console->lock);
	mb_state_end(out);
	mb_virtio_save(console->vdev, out);
}

int mb_console_load(struct mb_console *console, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	unsigned n;
	int rc = mb_state_enter(in, "console", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	/* No queue runs yet: nobody else is at it. */
	console->tx_skip = mb_state_get_u64(&part);
	n = mb_state_get_u32(&part);
	if (n > INPUT_BYTES)
		return mb_state_refuse(&part, err, "has too much input");
	pthread_mutex_lock(&console->lock);
	mb_state_get(&part, console->input, n);
	console->input_head = 0;
	console->n_input = n;
	pthread_mutex_unlock(&console->lock);
	rc = mb_state_leave(&part, err);
	return rc ? rc : mb_virtio_load(console->vdev, in, err);
}
