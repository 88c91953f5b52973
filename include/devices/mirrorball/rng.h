/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_RNG_H
#define MIRRORBALL_RNG_H

#include <mirrorball/virtio.h>

/* A virtio entropy device (virtio 1.2, 5.4), from getrandom(2). */
struct mb_rng;
int mb_rng_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	struct mb_rng **out, struct mb_error *err);
void mb_rng_destroy(struct mb_rng *rng);
void mb_rng_reset(struct mb_rng *rng);
/* For a snapshot (virtio.h); vCPUs paused. load: into a new one, -EINVAL: it is no such state. */
int mb_rng_pause(struct mb_rng *rng, uint64_t timeout_ns, struct mb_error *err);
void mb_rng_resume(struct mb_rng *rng);
void mb_rng_save(struct mb_rng *rng, struct mb_state_out *out);
int mb_rng_load(struct mb_rng *rng, struct mb_state_in *in, struct mb_error *err);

#endif
