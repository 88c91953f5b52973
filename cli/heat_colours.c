// SPDX-License-Identifier: Apache-2.0
#include "heat_view.h"
#include <string.h>

/*
 * After Okabe and Ito's palette, which colour-blind people can tell apart; the first ones are
 * furthest from each other, and none is near heat_several_rgb.
 */
static const struct heat_rgb palette[HEAT_MAX_VIEWS] = {
	{0x3d, 0x8b, 0xff}, /* blue */
	{0xf5, 0x96, 0x1e}, /* orange */
	{0x1f, 0xb8, 0x7a}, /* green */
	{0xe5, 0xd3, 0x2f}, /* yellow */
	{0x30, 0xc8, 0xd8}, /* cyan */
	{0xe8, 0x4a, 0x3c}, /* red */
	{0xa8, 0x7a, 0x4f}, /* brown */
	{0x9a, 0xd0, 0x3c}, /* lime */
};
const struct heat_rgb heat_several_rgb = {0xd9, 0x4f, 0xd5};
static const struct heat_rgb grey = {0xa8, 0xa8, 0xa8};

static bool is_one_for_all(const struct heat *heat)
{
	return heat->n_views == 1 && heat->n_nodes > 1;
}

struct heat_rgb heat_view_rgb(const struct heat *heat, unsigned view)
{
	return is_one_for_all(heat) ? grey : palette[view % HEAT_MAX_VIEWS];
}

static uint8_t towards(uint8_t from, uint8_t to, unsigned percent)
{
	return (uint8_t)((from * (100 - percent) + to * percent) / 100);
}

struct heat_rgb heat_node_rgb(const struct heat *heat, unsigned index)
{
	/* The first node of a view has its colour, the next are lighter and darker. */
	static const struct {
		uint8_t to;
		uint8_t percent;
	} shades[] = {{0, 0}, {255, 45}, {0, 45}, {255, 70}};

	if (is_one_for_all(heat))
		return palette[index % HEAT_MAX_VIEWS];
	for (unsigned v = 0; v < heat->n_views; v++) {
		uint64_t before = heat->view_nodes[v] & ((1ull << index) - 1);
		unsigned i = (unsigned)__builtin_popcountll(before) % 4;
		struct heat_rgb c = palette[v % HEAT_MAX_VIEWS];

		if (heat->view_nodes[v] >> index & 1)
			return (struct heat_rgb){towards(c.r, shades[i].to, shades[i].percent),
				towards(c.g, shades[i].to, shades[i].percent),
				towards(c.b, shades[i].to, shades[i].percent)};
	}
	return grey; /* no vCPU is near it */
}

void heat_view_nodes(const struct heat *heat, unsigned view, char *text, size_t len)
{
	uint64_t nodes = heat->view_nodes[view];
	bool several = nodes & (nodes - 1);
	size_t used = 0;
	int n = snprintf(text, len, nodes ? several ? "nodes " : "node " : "no node");

	for (unsigned i = 0; i < heat->n_nodes; i++) {
		if (!(nodes >> i & 1))
			continue;
		used += (size_t)n;
		if (used + 16 > len) {
			snprintf(text + used, len - used, ",...");
			return;
		}
		n = snprintf(text + used, len - used, "%s%u", nodes & ((1ull << i) - 1) ? "," : "",
			heat->node[i]);
	}
}
