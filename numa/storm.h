/* SPDX-License-Identifier: Apache-2.0 */
#ifndef STORM_H
#define STORM_H

#include <mirrorball/mover.h>
#include <mirrorball/policy.h>

/*
 * Torture: moves that nobody needs. Steps of a storm come MB_STORM_TIMES as often as the manager's
 * plans, and each moves something, so that whatever can go wrong when memory moves does so in
 * minutes.
 */
#define MB_STORM_TIMES 100u
/* With replicas, one step of so many moves, and the others copy. */
#define MB_STORM_COPIES 8u

/*
 * How long to rest after a step: as long as it took, if that is longer. KVM has a vCPU repeat its
 * fault while memory is taken away, and where processors are short that is what it does with them:
 * a storm without a rest would let a guest come to nothing else.
 */
uint64_t mb_storm_rest_ns(uint64_t took_ns);

/*
 * One of them, chosen by the seed: some pages, a block or a few of them, in [0, ram_bytes), to any
 * node that may be used. Without one, len_bytes is 0.
 */
struct mb_move mb_storm_move(uint32_t seed, uint64_t ram_bytes, const struct mb_policy_host *host);

#endif
