// SPDX-License-Identifier: Apache-2.0
#include "snapshot_internal.h"

#include <errno.h>
#include <string.h>

/*
 * Arguments for passt(1) in a snapshot. Some of passt's make it write files (--pcap, --log-file,
 * --pid), open sockets or change its user: not because a snapshot says so. What is let through says
 * which addresses and ports there are; each written out, as getopt_long takes "--pc=" for --pcap
 * and "-4P" for -4 -P.
 */
struct option {
	char letter; /* 0: has none */
	bool takes_value;
	const char *name;
};

static const struct option options[] = {
	{'t', true, "tcp-ports"},
	{'u', true, "udp-ports"},
	{'a', true, "address"},
	{'n', true, "netmask"},
	{'g', true, "gateway"},
	{'M', true, "mac-addr"},
	{'m', true, "mtu"},
	{'i', true, "interface"},
	{'o', true, "outbound"},
	{0, true, "outbound-if4"},
	{0, true, "outbound-if6"},
	{'D', true, "dns"},
	{'S', true, "search"},
	{0, true, "dns-forward"},
	{0, true, "dns-host"},
	{0, true, "map-host-loopback"},
	{0, true, "map-guest-addr"},
	{'4', false, "ipv4-only"},
	{'6', false, "ipv6-only"},
};

/* Whether arg is this option; *needs_next: and its value is the next argument. */
static bool is_option(const struct option *o, const char *arg, bool *needs_next)
{
	const size_t len = strlen(o->name);

	if (o->letter && arg[0] == '-' && arg[1] == o->letter) {
		*needs_next = o->takes_value && !arg[2];
		return o->takes_value || !arg[2];
	}
	if (strncmp(arg, "--", 2) || strncmp(arg + 2, o->name, len))
		return false;
	*needs_next = o->takes_value && !arg[2 + len];
	return !arg[2 + len] || (o->takes_value && arg[2 + len] == '=');
}

static bool is_fine(const char *arg, bool *needs_next)
{
	*needs_next = false;
	if (!strncmp(arg, "--no-", 5)) /* all of them leave something out */
		return !strchr(arg, '=');
	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (is_option(&options[i], arg, needs_next))
			return true;
	return false;
}

int mb_snapshot_check_passt(const char *const *args, struct mb_error *err)
{
	bool value = false, needs_next;
	unsigned n = 0;

	for (; args && args[n]; n++) {
		/* No value begins like an option, so that none can be one for another passt. */
		if (value ? *args[n] != '-' : is_fine(args[n], &needs_next)) {
			value = !value && needs_next;
			continue;
		}
		mb_error_set(err, ENOTSUP,
			"has a network with the argument '%s' for passt, which may write files or "
			"is not known; a snapshot takes those about addresses and ports (man "
			"mirrorball-snapshot)",
			args[n]);
		mb_error_make_printable(err->text);
		return -ENOTSUP;
	}
	if (n > MB_SNAPSHOT_MAX_ARGS)
		return mb_error_set(err, ENOTSUP,
			"has a network with %u arguments for passt; a snapshot takes %u", n,
			MB_SNAPSHOT_MAX_ARGS);
	return 0;
}
