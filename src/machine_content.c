// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/json.h>

#include "machine_internal.h"

/* Sharing by content (content.h) in a machine. What fails is said, and the machine runs. */

bool mb_machine_shares_content(const struct mb_machine *machine)
{
	const struct mb_machine_config *config = &machine->config;

	return config->content_ppm != MB_CONTENT_OFF && !config->no_share && !config->dry &&
	       (config->trust_group || config->content_ppm || mb_machine_has_base(machine));
}

static void nodes(void *ctx, unsigned node[MB_HEAT_VIEWS])
{
	mb_machine_share_nodes(ctx, node);
}

int mb_machine_start_content(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_content_config config = {
		.replicas = machine->replicas,
		.ram_fd = mb_ram_fd(machine->ram),
		.own_base = mb_ram_own_base(machine->ram),
		.ram_bytes = machine->config.memory_bytes,
		.n_views = machine->n_views,
		.budget_ppm = machine->config.content_ppm,
		.group = machine->config.trust_group,
		.nodes = nodes,
		.ctx = machine,
		.start = true,
	};
	struct mb_error why;

	if (!machine->replicas || !mb_machine_shares_content(machine))
		return 0;
	if (mb_content_create(&config, &machine->content, &why))
		mb_log("%s: runs, but nothing of its memory is shared by content: %s",
			machine->config.name, why.text);
	return 0;
}

void mb_machine_stop_content(struct mb_machine *machine)
{
	mb_content_destroy(machine->content);
	machine->content = NULL;
}

json_t *mb_machine_content_json(struct mb_machine *machine, int *rc)
{
	json_t *o = json_object();
	struct mb_content_stats s;

	if (!machine->content) {
		mb_json_put(o, "state",
			json_string(mb_machine_shares_content(machine) ? "not possible on this host"
								       : "off"),
			rc);
		return o;
	}
	mb_content_stats(machine->content, &s);
	mb_json_put(o, "state", json_string(s.state), rc);
	mb_json_put_number(o, "zero_bytes", s.zero_bytes, rc);
	mb_json_put_number(o, "content_shared_bytes", s.shared_bytes, rc);
	mb_json_put_number(o, "were_content_shared_bytes", s.were_shared_bytes, rc);
	mb_json_put_number(o, "given_bytes", s.given_bytes, rc);
	mb_json_put_number(o, "scanned_pages", s.scanned_pages, rc);
	mb_json_put_number(o, "passes", s.passes, rc);
	mb_json_put(o, "scan_cpu_seconds", json_real((double)s.cpu_ns / 1e9), rc);
	return o;
}
