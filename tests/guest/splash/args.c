/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* The command line: "PROGRAM KEY=VALUE...". */

#define PROGRAM_POINTER(name, args, summary, usage) &program_##name,
static const struct program *const all_programs[] = {MB_SPLASH_PROGRAMS(PROGRAM_POINTER)};

#define USAGE_OF(name, args, summary, usage) usage,
static const char *const usages[] = {MB_SPLASH_PROGRAMS(USAGE_OF)};

#define KEY_OF(name, key) key,
static const char *const keys[MB_SPLASH_N_ARGS] = {MB_SPLASH_ARGS(KEY_OF)};

#define WORD_BYTES 64
#define MAX_MS	   (24 * 3600 * 1000ull)

/* Copies the next word, cut short if too long, and returns what follows it; NULL at the end. */
static const char *next_word(const char *p, char word[WORD_BYTES])
{
	unsigned len = 0;

	while (*p == ' ')
		p++;
	if (!*p)
		return NULL;
	for (; *p && *p != ' '; p++) {
		if (len + 1 < WORD_BYTES)
			word[len++] = *p;
	}
	word[len] = '\0';
	return p;
}

static bool parse_number(const char *p, uint64_t *out)
{
	uint64_t v = 0;
	unsigned shift = 0;

	if (*p < '0' || *p > '9')
		return false;
	for (; *p >= '0' && *p <= '9'; p++) {
		if (v > (UINT64_MAX - 9) / 10)
			return false;
		v = v * 10 + (uint64_t)(*p - '0');
	}
	if (*p == 'K' || *p == 'k')
		shift = 10;
	else if (*p == 'M')
		shift = 20;
	else if (*p == 'G')
		shift = 30;
	if (shift)
		p++;
	if (*p || v > UINT64_MAX >> shift)
		return false;
	*out = v << shift;
	return true;
}

static void parse_arg(unsigned program, const char *word)
{
	uint32_t takes = all_programs[program]->args;
	char key[WORD_BYTES];
	unsigned len = 0, i;
	uint64_t v;

	while (word[len] && word[len] != '=') {
		key[len] = word[len];
		len++;
	}
	key[len] = '\0';
	for (i = 0; i < MB_SPLASH_N_ARGS && strcmp(keys[i], key); i++)
		;
	if (!word[len])
		usage_error("\"%s\" is not KEY=VALUE; it takes: %s %s", word, usages[program],
			MB_SPLASH_COMMON_USAGE);
	if (i == MB_SPLASH_N_ARGS || !(takes >> i & 1))
		usage_error("unknown argument \"%s\"; it takes: %s %s", word, usages[program],
			MB_SPLASH_COMMON_USAGE);
	if (!parse_number(word + len + 1, &v))
		usage_error("\"%s\" is not a number with or without K, M or G; it takes: %s", word,
			usages[program]);
	if ((i == MB_SPLASH_ARG_MS || i == MB_SPLASH_ARG_PHASE_MS || i == MB_SPLASH_ARG_EVERY_MS) &&
		v > MAX_MS)
		usage_error("\"%s\" is more than a day", word);
	guest.args.value[i] = v;
	guest.args.given |= 1u << i;
}

const struct program *args_parse(const char *cmdline)
{
	char word[WORD_BYTES];
	unsigned i = 0;

	cmdline = next_word(cmdline, word);
	if (cmdline) {
		while (i < sizeof(all_programs) / sizeof(all_programs[0]) &&
			strcmp(all_programs[i]->name, word))
			i++;
		if (i == sizeof(all_programs) / sizeof(all_programs[0]))
			usage_error("unknown program \"%s\"", word);
		guest.title = all_programs[i]->name;
		while ((cmdline = next_word(cmdline, word)))
			parse_arg(i, word);
	}
	guest.title = all_programs[i]->name;
	if (!(guest.args.given >> MB_SPLASH_ARG_SEED & 1))
		guest.args.value[MB_SPLASH_ARG_SEED] = mix(rdtsc()) & 0xffffffff;
	return all_programs[i];
}

uint64_t arg_or(enum mb_splash_arg arg, uint64_t otherwise)
{
	return guest.args.given >> arg & 1 ? guest.args.value[arg] : otherwise;
}

uint64_t arg_size(uint64_t otherwise, uint64_t unit, uint64_t least, uint64_t overhead)
{
	uint64_t room = memory_free() > overhead ? memory_free() - overhead : 0;
	uint64_t size = arg_or(MB_SPLASH_ARG_SIZE, MAX(MIN(otherwise, room), least));
	char text[24];

	if (size < least) {
		format_bytes(text, sizeof(text), least);
		usage_error("size= must be at least %s with %u vCPUs", text, guest.n);
	}
	return size / unit * unit;
}
