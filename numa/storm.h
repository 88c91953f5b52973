/* SPDX-License-Identifier: Apache-2.0 */
#ifndef STORM_H
#define STORM_H

#include <mirrorball/mover.h>
#include <mirrorball/policy.h>

/*
 * Torture: moves and copies that nobody needs. Steps of a storm come MB_STORM_TIMES as often as the
 * manager's plans, and each moves or copies something, so that whatever can go wrong does so in
 * minutes.
 */
#define MB_STORM_TIMES 100u

/*
 * How long to rest after a step that copied: as long as it took, if that is longer. KVM has a vCPU
 * repeat its fault while memory is taken away, and where processors are short that is what it does
 * with them: a storm of copies without a rest would let a guest come to nothing else. 0 after a
 * move, which takes its memory away once.
 */
uint64_t mb_storm_rest_ns(uint64_t copying_ns);

/*
 * One of them, chosen by the seed: some pages, a block or a few of them, in [0, ram_bytes), to any
 * node that may be used. Without one, len_bytes is 0.
 */
struct mb_move mb_storm_move(uint32_t seed, uint64_t ram_bytes, const struct mb_policy_host *host);

#endif
