// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/content_hash.h>
#include <string.h>
#include <sys/random.h>

/* The machine's byte order is the algorithm's: x86. */

struct state {
	uint64_t v0, v1, v2, v3;
};

static inline uint64_t turn(uint64_t x, unsigned bits)
{
	return x << bits | x >> (64 - bits);
}

static inline void rounds(struct state *s, unsigned n)
{
	while (n--) {
		s->v0 += s->v1;
		s->v2 += s->v3;
		s->v1 = turn(s->v1, 13) ^ s->v0;
		s->v3 = turn(s->v3, 16) ^ s->v2;
		s->v0 = turn(s->v0, 32) + s->v3;
		s->v2 += s->v1;
		s->v1 = turn(s->v1, 17) ^ s->v2;
		s->v3 = turn(s->v3, 21) ^ s->v0;
		s->v2 = turn(s->v2, 32);
	}
}

static struct state begin(const struct mb_content_key *key)
{
	return (struct state){
		.v0 = key->word[0] ^ 0x736f6d6570736575ull,
		.v1 = key->word[1] ^ 0x646f72616e646f6dull,
		.v2 = key->word[0] ^ 0x6c7967656e657261ull,
		.v3 = key->word[1] ^ 0x7465646279746573ull,
	};
}

static inline void add(struct state *s, uint64_t word)
{
	s->v3 ^= word;
	rounds(s, 2);
	s->v0 ^= word;
}

static uint64_t end(struct state *s)
{
	rounds(s, 4);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

int mb_content_key_make(struct mb_content_key *key)
{
	ssize_t n = getrandom(key, sizeof(*key), 0);

	return n == sizeof(*key) ? 0 : n < 0 ? -errno : -EIO;
}

struct mb_content_hash mb_content_hash(const struct mb_content_key *key, const void *page)
{
	const uint64_t *word = page;
	struct state s = begin(key);
	struct mb_content_hash hash;

	s.v1 ^= 0xee;
	for (unsigned i = 0; i < MB_CONTENT_PAGE / sizeof(*word); i++)
		add(&s, word[i]);
	/* The last word has the length, of which a page's lowest byte is 0, and no byte is left. */
	add(&s, 0);
	s.v2 ^= 0xee;
	hash.word[0] = end(&s);
	s.v1 ^= 0xdd;
	hash.word[1] = end(&s);
	return hash;
}

uint64_t mb_content_mix(const struct mb_content_key *key, const struct mb_content_hash *hash)
{
	struct state s = begin(key);

	add(&s, hash->word[0]);
	add(&s, hash->word[1]);
	add(&s, (uint64_t)sizeof(*hash) << 56);
	s.v2 ^= 0xff;
	return end(&s);
}
