/* SPDX-License-Identifier: Apache-2.0 */
#include "diskchurn.h"

#define IMAGE_ZERO 16u /* one block in so many of the image is all zero */

uint64_t content_head(uint64_t owner, uint64_t id, uint64_t place, uint64_t version)
{
	return owner << 56 | id << 48 | place << 28 | version << 9;
}

struct content content_of_image(uint64_t image, uint64_t block)
{
	bool zero = !image || block % IMAGE_ZERO == IMAGE_ZERO - 1;

	return (struct content){.head = zero ? 0 : content_head(OWNER_IMAGE, image, block, 0)};
}

uint64_t content_word(const struct content *c, unsigned w)
{
	uint64_t head = w - c->first < c->n ? c->mark : c->head;

	return head ? head | w : 0;
}

bool content_overlay(struct content *c, uint64_t head, unsigned first, unsigned n)
{
	if (n == PAGE_WORDS) {
		*c = (struct content){.head = head};
		return true;
	}
	if (c->n && (first > c->first || first + n < c->first + c->n))
		return false;
	c->mark = head;
	c->first = (uint16_t)first;
	c->n = (uint16_t)n;
	return true;
}

bool content_pure(const struct content *c, unsigned first, unsigned n, uint64_t *head)
{
	bool outside = !c->n || first + n <= c->first || first >= c->first + c->n;

	*head = outside ? c->head : c->mark;
	return outside || (first >= c->first && first + n <= c->first + c->n);
}

bool content_is_sector(const uint64_t *page, unsigned sector, const struct content *c)
{
	for (unsigned w = sector * SECTOR_WORDS; w < (sector + 1) * SECTOR_WORDS; w++)
		if (page[w] != content_word(c, w))
			return false;
	return true;
}

bool content_may_be(uint64_t word, unsigned w, uint64_t image, uint64_t id)
{
	uint64_t owner = word >> 48;

	return !word || ((word & (PAGE_WORDS - 1)) == w &&
				(owner == (OWNER_IMAGE << 8 | image) || owner == OWNER_ALL << 8 ||
					owner == (OWNER_SELF << 8 | id)));
}
