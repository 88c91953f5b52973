// SPDX-License-Identifier: Apache-2.0
#include "commons_impl.h"
#include <errno.h>
#include <mirrorball/content.h>
#include <string.h>
#include <unistd.h>

/* A monitor's side of a trust group: a base of which the daemon says where each page is. */

int mb_commons_join(struct mb_commons *commons, const char *name, struct mb_commons_base **out)
{
	size_t len = strlen(name);

	for (size_t i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return -EINVAL;
	return len && len <= MB_CONTENT_GROUP_MAX ? mb_commons_add_base(commons, -1, name, out)
						  : -EINVAL;
}

struct mb_content_key mb_commons_key(const struct mb_commons_base *group)
{
	return group->key;
}

/* Sends it, and expects an answer. */
static int ask(struct mb_commons_base *group, struct mb_commons_packet *packet, void *ctx)
{
	struct mb_commons *commons = group->commons;
	struct want *want;
	int rc;

	if (commons->status != MB_COMMONS_READY)
		return -ENOTCONN;
	if (!group->group)
		return -EINVAL;
	if (group->status)
		return group->status;
	want = mb_commons_new_want(commons);
	if (!want)
		return -EAGAIN;
	packet->asked.tag = mb_commons_new_tag(commons);
	packet->asked.base = group->number;
	rc = mb_commons_send_packet(commons, packet);
	if (rc)
		return rc;
	*want = (struct want){.used = true,
		.tag = packet->asked.tag,
		.type = packet->asked.type,
		.done = {.base = group,
			.node = packet->asked.node,
			.len = MB_COMMONS_PAGE,
			.ctx = ctx}};
	return 0;
}

int mb_commons_offer(
	struct mb_commons_base *group, const struct mb_content_hash *hash, unsigned n, void *ctx)
{
	struct mb_commons_packet packet;

	if (!n || n > MB_COMMONS_OFFERS)
		return -EINVAL;
	packet.asked = mb_commons_request_of(MB_COMMONS_OFFER);
	packet.asked.len = n;
	memcpy(packet.hash, hash, n * sizeof(*hash));
	return ask(group, &packet, ctx);
}

static void put_hash(
	struct mb_commons_packet *packet, unsigned node, const struct mb_content_hash *hash)
{
	packet->asked.node = node;
	packet->asked.offset = hash->word[0];
	packet->asked.len = hash->word[1];
}

int mb_commons_fetch(
	struct mb_commons_base *group, unsigned node, const struct mb_content_hash *hash, void *ctx)
{
	struct mb_commons_packet packet;

	packet.asked = mb_commons_request_of(MB_COMMONS_FETCH);
	put_hash(&packet, node, hash);
	return ask(group, &packet, ctx);
}

int mb_commons_give(struct mb_commons_base *group, unsigned node,
	const struct mb_content_hash *hash, const void *page, void *ctx)
{
	struct mb_commons_packet packet;

	packet.asked = mb_commons_request_of(MB_COMMONS_GIVE);
	put_hash(&packet, node, hash);
	memcpy(packet.page, page, MB_COMMONS_PAGE);
	return ask(group, &packet, ctx);
}

/* ---- replies ---- */

int mb_commons_take_join(struct mb_commons *commons, const struct mb_commons_reply *msg)
{
	struct mb_commons_base *group = NULL;

	for (unsigned i = 0; i < MB_COMMONS_MAX_OPEN && !group; i++)
		if (commons->base[i] && commons->base[i]->group && msg->tag &&
			commons->base[i]->open_tag == msg->tag)
			group = commons->base[i];
	if (!msg->status && msg->base >= MB_COMMONS_CLIENT_BASES)
		return -EBADMSG;
	if (!group) { /* closed meanwhile */
		if (!msg->status)
			mb_commons_send_close(commons, msg->base);
		return 0;
	}
	group->open_tag = 0;
	if (msg->status) {
		mb_commons_set_status(group, msg->status < 0 ? msg->status : -EBADMSG);
		return 0;
	}
	group->number = msg->base;
	group->number_is_known = true;
	group->key = (struct mb_content_key){{msg->offset, msg->value}};
	pthread_rwlock_wrlock(&commons->lock);
	group->bytes = MB_COMMONS_MAX_BASE_BYTES;
	group->status = 0;
	pthread_rwlock_unlock(&commons->lock);
	return 0;
}

int mb_commons_take_content(struct mb_commons *commons, const struct mb_commons_reply *msg, int fd)
{
	struct want *want = mb_commons_find_want(commons, msg->tag);
	bool has_place = msg->type != MB_COMMONS_OFFER;
	int status = msg->status, rc = 0;

	if (want && (want->type != msg->type || msg->status > 0))
		rc = -EBADMSG;
	if (has_place && (msg->offset % MB_COMMONS_PAGE ||
				 msg->offset > MB_COMMONS_MAX_BASE_BYTES - MB_COMMONS_PIECE))
		rc = -EBADMSG;
	if (!has_place && fd >= 0)
		rc = -EBADMSG;
	if (rc || !want) { /* its group was closed */
		if (fd >= 0)
			close(fd);
		return rc;
	}
	if (has_place) {
		want->done.offset = msg->offset;
		rc = mb_commons_take_file(want->done.base, &want->done, fd, &status);
	} else {
		want->done.there = msg->value;
		want->done.wanted = msg->offset;
	}
	if (rc)
		return rc;
	mb_commons_finish(commons, want, status);
	return 0;
}
