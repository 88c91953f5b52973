/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_NET_H
#define MIRRORBALL_NET_H

#include <mirrorball/virtio.h>

/* A virtio network device (virtio 1.2, 5.1) on a tap interface or a passt socket. */
struct mb_net;

enum mb_net_back {
	MB_NET_TAP,    /* by name: opened here (IFF_VNET_HDR, IFF_MULTI_QUEUE when n_pairs > 1) */
	MB_NET_TAP_FD, /* an open tap descriptor, owned by the device from here on */
	MB_NET_PASST,  /* started here; a stream socket pair, frames with a 32-bit length in front */
};

struct mb_net_config {
	enum mb_net_back back;
	const char *ifname; /* MB_NET_TAP */
	int fd;		    /* MB_NET_TAP_FD */
	const char *const *passt_args; /* NULL-terminated, extra arguments for passt; may be NULL */
	uint8_t mac[6];	    /* all zero: locally administered one, derived from `seed` */
	const char *seed;   /* the machine's name and the device's number, for a stable MAC */
	unsigned n_pairs;   /* queue pairs, 1 or more */
	struct mb_loop *const *loops; /* of 2 * n_pairs: rx0 tx0 rx1 tx1 ..., then one for control */
};

int mb_net_create(struct mb_pci_bus *pci, struct mb_dma *dma, const struct mb_net_config *config,
	struct mb_net **out, struct mb_error *err);
void mb_net_destroy(struct mb_net *net);
void mb_net_reset(struct mb_net *net);
/* The MAC address that it was made with, or was derived for it. */
void mb_net_mac(const struct mb_net *net, uint8_t mac[6]);
/*
 * For a snapshot (virtio.h); vCPUs paused. load: into a new one, -EINVAL: it is no such state; what the back end had
 * under way is lost, and with another MAC address the guest has the new one from its driver's next start on.
 */
int mb_net_pause(struct mb_net *net, uint64_t timeout_ns, struct mb_error *err);
void mb_net_resume(struct mb_net *net);
void mb_net_save(struct mb_net *net, struct mb_state_out *out);
int mb_net_load(struct mb_net *net, struct mb_state_in *in, struct mb_error *err);

#endif
