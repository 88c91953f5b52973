// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/boot.h>
#include <mirrorball/splash.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Loads the thin guest; what it is told and how it starts is in mirrorball/splash_abi.h. */

#define PROGRAM(name, args, summary, usage) {#name, summary, usage " " MB_SPLASH_COMMON_USAGE},
const struct mb_splash_program mb_splash_programs[] = {
	MB_SPLASH_PROGRAMS(PROGRAM){NULL, NULL, NULL}};

/* tests/guest/splash/image.S */
extern const uint8_t mb_splash_image_begin[];
extern const uint8_t mb_splash_image_end[];

const void *mb_splash_image(uint64_t *len)
{
	*len = (uint64_t)(mb_splash_image_end - mb_splash_image_begin);
	return mb_splash_image_begin;
}

static int unknown_program(const char *word, size_t len, struct mb_error *err)
{
	char list[256] = "";

	for (const struct mb_splash_program *p = mb_splash_programs; p->name; p++) {
		size_t at = strlen(list);

		snprintf(list + at, sizeof(list) - at, "%s%s", at ? ", " : "", p->name);
	}
	return mb_error_set(err, EINVAL, "splash: no program '%.*s'; there are %s",
		(int)(len < 64 ? len : 64), word, list);
}

int mb_splash_check(const char *cmdline, struct mb_error *err)
{
	const char *word = cmdline ? cmdline : "";
	size_t len;

	word += strspn(word, " ");
	len = strcspn(word, " ");
	if (strlen(word) >= MB_SPLASH_MAX_CMDLINE)
		return mb_error_set(err, E2BIG,
			"splash: its command line is %zu bytes, at most %u fit", strlen(word),
			MB_SPLASH_MAX_CMDLINE - 1);
	if (!len)
		return 0;
	for (const struct mb_splash_program *p = mb_splash_programs; p->name; p++) {
		if (strlen(p->name) == len && !memcmp(p->name, word, len))
			return 0;
	}
	return unknown_program(word, len, err);
}

static int write_info(
	struct mb_ram *ram, struct mb_vcpus *vcpus, const char *cmdline, struct mb_error *err)
{
	unsigned n_vcpus = mb_vcpus_count(vcpus);
	struct mb_splash_info *info = calloc(1, sizeof(*info));
	int rc;

	if (!info)
		return mb_error_set(err, ENOMEM, "splash: no memory");
	*info = (struct mb_splash_info){
		.magic = MB_SPLASH_MAGIC,
		.n_vcpus = n_vcpus,
		.tsc_khz = mb_vcpu_tsc_khz(mb_vcpus_at(vcpus, 0)),
		.low_ram_bytes = mb_ram_low_bytes(ram),
		.high_ram_bytes = mb_ram_high_bytes(ram),
	};
	for (unsigned i = 0; i < n_vcpus; i++)
		info->vcpu_view[i] = (uint8_t)mb_vcpu_group(mb_vcpus_at(vcpus, i));
	if (cmdline) {
		cmdline += strspn(cmdline, " ");
		memcpy(info->cmdline, cmdline, strlen(cmdline)); /* mb_splash_check: it fits */
	}
	rc = mb_dma_write(mb_ram_dma(ram), MB_SPLASH_INFO, info, sizeof(*info));
	free(info);
	return rc ? mb_error_set(err, -rc, "splash: its parameters do not fit into guest memory")
		  : 0;
}

int mb_splash_load(
	struct mb_ram *ram, struct mb_vcpus *vcpus, const char *cmdline, struct mb_error *err)
{
	unsigned n_vcpus = mb_vcpus_count(vcpus);
	struct mb_vcpu_start start = {
		.rdi = MB_SPLASH_INFO, .cr3 = MB_BOOT_PAGE_TABLES, .long_mode = true};
	const void *image;
	uint64_t len;
	int rc;

	rc = mb_splash_check(cmdline, err);
	if (rc)
		return rc;
	if (!n_vcpus || n_vcpus > MB_SPLASH_MAX_VCPUS)
		return mb_error_set(err, EINVAL, "splash: %u vCPUs; it can be 1 to %u", n_vcpus,
			MB_SPLASH_MAX_VCPUS);
	image = mb_splash_image(&len);
	rc = mb_boot_load_elf_image(ram, image, len, "splash", &start.rip, err);
	if (!rc)
		rc = mb_boot_page_tables(ram, err);
	if (!rc)
		rc = write_info(ram, vcpus, cmdline, err);
	for (unsigned i = 0; !rc && i < n_vcpus; i++) {
		start.rsi = i;
		rc = mb_vcpu_set_start(mb_vcpus_at(vcpus, i), &start);
		if (rc)
			mb_error_set(err, -rc, "splash: vCPU %u cannot be started: %s", i,
				strerror(-rc));
	}
	return rc;
}
