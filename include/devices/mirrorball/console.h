/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CONSOLE_H
#define MIRRORBALL_CONSOLE_H

#include <mirrorball/chardev.h>
#include <mirrorball/virtio.h>

/*
 * A virtio console (virtio 1.2, 5.3) with one port, a window size and emergency write. Output that
 * the back refuses stays in the guest's ring; input that the guest has no buffer for stays in the
 * back, all but 4 KiB.
 */
struct mb_console;
/* chr may be NULL: what the guest writes is dropped. */
int mb_console_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	struct mb_chardev *chr, struct mb_console **out, struct mb_error *err);
void mb_console_destroy(struct mb_console *console);
void mb_console_reset(struct mb_console *console);
/* For a snapshot (virtio.h); vCPUs paused. load: into a new one, -EINVAL: it is no such state. */
int mb_console_pause(struct mb_console *console, uint64_t timeout_ns, struct mb_error *err);
void mb_console_resume(struct mb_console *console);
void mb_console_save(struct mb_console *console, struct mb_state_out *out);
int mb_console_load(struct mb_console *console, struct mb_state_in *in, struct mb_error *err);
/* The terminal has this size now. Any thread. */
void mb_console_resize(struct mb_console *console, unsigned columns, unsigned rows);

#endif
