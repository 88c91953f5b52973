// SPDX-License-Identifier: Apache-2.0
#include <assert.h>
#include <errno.h>
#include <mirrorball/acpi.h>
#include <mirrorball/boot.h>
#include <mirrorball/irq.h>
#include <mirrorball/legacy.h>
#include <mirrorball/machine.h>
#include <mirrorball/pci.h>
#include <mirrorball/range.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* iasl makes it from dsdt.asl; "static const" goes in front of its array. */
static const
#include "dsdt.hex"

/*
 * The tables, in the order in which they lie from MB_BOOT_ACPI on, each on a boundary of 16 bytes:
 *
 *   RSDP  XSDT  FADT  MADT  MCFG  SSDT (processors, COM1)  DSDT
 *
 * All fields little-endian, as we are.
 */
#define TABLE_ALIGN  16u
#define LAPIC_BASE   0xfee00000u
#define LAPIC_ID_MAX 254u /* 255 is a broadcast (ACPI 6.5, 5.2.12.12) */
#define CREATOR_REV  1u
#define PACKED	     __attribute__((packed))

	struct rsdp { /* 5.2.5.3 */
	char signature[8];
	uint8_t checksum; /* of the first 20 bytes */
	char oem_id[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t len;
	uint64_t xsdt;
	uint8_t checksum_all;
	uint8_t reserved[3];
} PACKED;

struct header { /* 5.2.6 */
	char signature[4];
	uint32_t len;
	uint8_t revision;
	uint8_t checksum;
	char oem_id[6];
	char oem_table_id[8];
	uint32_t oem_revision;
	char creator_id[4];
	uint32_t creator_revision;
} PACKED;

struct xsdt { /* 5.2.8 */
	struct header header;
	uint64_t table[4];
} PACKED;

struct gas {	       /* generic address structure, 5.2.3.2 */
	uint8_t space; /* 1: system I/O */
	uint8_t bit_width;
	uint8_t bit_offset;
	uint8_t access; /* 1: byte */
	uint64_t addr;
} PACKED;

struct fadt { /* 5.2.9 */
	struct header header;
	uint32_t facs; /* none: hardware-reduced */
	uint32_t dsdt;
	uint8_t reserved0;
	uint8_t profile;
	/* Fixed hardware up to here is absent: all 0 (4.1). */
	uint8_t fixed_hardware[50];
	uint16_t p_lvl2_latency;
	uint16_t p_lvl3_latency;
	uint8_t flush_and_duty[6];
	uint8_t rtc_day_alarm;
	uint8_t rtc_month_alarm;
	uint8_t rtc_century;
	uint16_t boot_arch;
	uint8_t reserved1;
	uint32_t flags;
	struct gas reset;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor_revision;
	uint64_t x_facs;
	uint64_t x_dsdt;
	struct gas x_fixed_hardware[8];
	struct gas sleep_control;
	struct gas sleep_status;
	char hypervisor[8];
} PACKED;

static_assert(sizeof(struct rsdp) == 36, "ACPI 6.5, table 5.3");
static_assert(sizeof(struct header) == 36, "ACPI 6.5, table 5.4");
static_assert(offsetof(struct fadt, p_lvl2_latency) == 96, "ACPI 6.5, table 5.9");
static_assert(offsetof(struct fadt, boot_arch) == 109, "ACPI 6.5, table 5.9");
static_assert(offsetof(struct fadt, x_dsdt) == 140, "ACPI 6.5, table 5.9");
static_assert(offsetof(struct fadt, sleep_control) == 244, "ACPI 6.5, table 5.9");
static_assert(sizeof(struct fadt) == 276, "ACPI 6.5, table 5.9");

#define FADT_REVISION 6u
#define FADT_MINOR    5u
#define RTC_CENTURY   0x32u /* mirrorball/legacy.h */

/* FADT flags, table 5.10. */
#define FADT_WBINVD	(1u << 0)
#define FADT_PWR_BUTTON (1u << 4) /* the power button, if any, is a device of the namespace */
#define FADT_SLP_BUTTON (1u << 5)
#define FADT_FIX_RTC	(1u << 6) /* the clock wakes nothing */
#define FADT_RESET_REG	(1u << 10)
#define FADT_HW_REDUCED (1u << 20)
/* IA-PC boot architecture flags, table 5.11. Not set: 8042, "no MSI", "no CMOS RTC". */
#define BOOT_ARCH_LEGACY  (1u << 0)
#define BOOT_ARCH_NO_VGA  (1u << 2)
#define BOOT_ARCH_NO_ASPM (1u << 4)

struct madt { /* 5.2.12 */
	struct header header;
	uint32_t lapic_base;
	uint32_t flags; /* bit 0, PCAT_COMPAT: there are 8259s as well; no */
} PACKED;

#define MADT_REVISION 6u
#define MADT_ENABLED  1u
#define ALL_UIDS      0xffu
#define ALL_X2_UIDS   0xffffffffu
#define LINT_NMI      1u

struct madt_lapic { /* 5.2.12.2 */
	uint8_t type, len, uid, apic_id;
	uint32_t flags;
} PACKED;

struct madt_ioapic { /* 5.2.12.3 */
	uint8_t type, len, id, reserved;
	uint32_t addr;
	uint32_t gsi_base;
} PACKED;

struct madt_lapic_nmi { /* 5.2.12.7 */
	uint8_t type, len, uid;
	uint16_t flags; /* 0: as the bus has it */
	uint8_t lint;
} PACKED;

struct madt_x2apic { /* 5.2.12.12 */
	uint8_t type, len;
	uint16_t reserved;
	uint32_t apic_id;
	uint32_t flags;
	uint32_t uid;
} PACKED;

struct madt_x2apic_nmi { /* 5.2.12.13 */
	uint8_t type, len;
	uint16_t flags;
	uint32_t uid;
	uint8_t lint;
	uint8_t reserved[3];
} PACKED;

struct mcfg { /* PCI Firmware Specification 3.3, 4.1.2 */
	struct header header;
	uint64_t reserved;
	uint64_t ecam_base;
	uint16_t segment;
	uint8_t first_bus, last_bus;
	uint32_t reserved1;
} PACKED;

/* AML (20.2.5): Device (Cnnn) { Name (_HID, "ACPI0007") Name (_UID, n) } of one processor. */
struct aml_processor {
	uint8_t device_op[2];
	uint8_t pkg_len;
	char name[4];
	uint8_t hid_op;
	char hid_name[4];
	uint8_t hid_string;
	char hid[9];
	uint8_t uid_op;
	char uid_name[4];
	uint8_t uid_word;
	uint16_t uid;
} PACKED;

/* Scope (\_SB) { Name (COMS, byte) processors } */
struct ssdt {
	struct header header;
	uint8_t scope_op;
	uint8_t pkg_len[3];
	char scope[5];
	uint8_t coms_op;
	char coms_name[4];
	uint8_t coms_byte;
	uint8_t coms;
	struct aml_processor processor[];
} PACKED;

static_assert(MB_BOOT_ACPI % TABLE_ALIGN == 0, "what is aligned in the buffer is so in RAM");
/* 4 bits of a PkgLength's first byte and 16 of the next two (20.2.4). */
static_assert(sizeof(struct ssdt) + MB_MAX_VCPUS * sizeof(struct aml_processor) < 1u << 20,
	"the processors fit a package");
static_assert(sizeof(struct aml_processor) - 2 < 1u << 6, "PkgLength of one byte");

struct build {
	uint8_t *buf; /* MB_BOOT_ACPI_LEN bytes, zero; what guest RAM has at MB_BOOT_ACPI */
	uint64_t used;
};

/*
 * The next len bytes, or NULL when they do not fit. table: they begin a table, so they are aligned.
 */
static void *take(struct build *b, uint64_t len, bool table)
{
	uint64_t at = table ? mb_align_up(b->used, TABLE_ALIGN) : b->used;

	if (!mb_range_inside(at, len, 0, MB_BOOT_GENERATION - MB_BOOT_ACPI))
		return NULL;
	b->used = at + len;
	return b->buf + at;
}

static uint64_t gpa_of(const struct build *b, const void *p)
{
	return MB_BOOT_ACPI + (uint64_t)((const uint8_t *)p - b->buf);
}

static uint8_t checksum(const void *p, uint64_t len)
{
	const uint8_t *byte = p;
	uint8_t sum = 0;

	while (len--)
		sum = (uint8_t)(sum + *byte++);
	return (uint8_t)-sum;
}

static void fill_header(struct header *h, const char *signature, uint8_t revision)
{
	memcpy(h->signature, signature, sizeof(h->signature));
	h->revision = revision;
	memcpy(h->oem_id, "MIRROR", sizeof(h->oem_id));
	memcpy(h->oem_table_id, "MACHINE", sizeof(h->oem_table_id));
	h->oem_revision = 1;
	memcpy(h->creator_id, "MIRR", sizeof(h->creator_id));
	h->creator_revision = CREATOR_REV;
}

/* The table ends where the buffer is used up to. */
static void finish(const struct build *b, struct header *h)
{
	h->len = (uint32_t)(b->buf + b->used - (uint8_t *)h);
	h->checksum = 0;
	h->checksum = checksum(h, h->len);
}

static struct gas io_byte(uint16_t port)
{
	return (struct gas){.space = 1, .bit_width = 8, .access = 1, .addr = port};
}

static struct fadt *add_fadt(struct build *b, bool serial)
{
	struct fadt *fadt = take(b, sizeof(*fadt), true);

	if (!fadt)
		return NULL;
	fill_header(&fadt->header, "FACP", FADT_REVISION);
	fadt->minor_revision = FADT_MINOR;
	/* Above 100 and 1000 us: no C2, no C3. */
	fadt->p_lvl2_latency = 0xffff;
	fadt->p_lvl3_latency = 0xffff;
	fadt->rtc_century = RTC_CENTURY;
	fadt->boot_arch = BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_ASPM | (serial ? BOOT_ARCH_LEGACY : 0);
	fadt->flags = FADT_WBINVD | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_FIX_RTC |
		      FADT_RESET_REG | FADT_HW_REDUCED;
	/* mirrorball/legacy.h has the registers. */
	fadt->sleep_control = io_byte(MB_POWER_PORT);
	fadt->sleep_status = io_byte(MB_POWER_PORT + 1);
	fadt->reset = io_byte(MB_POWER_PORT + 2);
	fadt->reset_value = 1;
	memcpy(fadt->hypervisor, "MIRRORBL", sizeof(fadt->hypervisor));
	/* Its checksum follows when the DSDT's place is known. */
	return fadt;
}

static bool add_apic(struct build *b, unsigned id)
{
	if (id <= LAPIC_ID_MAX) {
		struct madt_lapic *lapic = take(b, sizeof(*lapic), false);

		if (lapic)
			*lapic = (struct madt_lapic){
				.type = 0,
				.len = sizeof(*lapic),
				.uid = (uint8_t)id,
				.apic_id = (uint8_t)id,
				.flags = MADT_ENABLED,
			};
		return lapic;
	} else {
		struct madt_x2apic *x2apic = take(b, sizeof(*x2apic), false);

		if (x2apic)
			*x2apic = (struct madt_x2apic){
				.type = 9,
				.len = sizeof(*x2apic),
				.apic_id = id,
				.flags = MADT_ENABLED,
				.uid = id,
			};
		return x2apic;
	}
}

static struct header *add_madt(struct build *b, unsigned n_vcpus)
{
	struct madt *madt = take(b, sizeof(*madt), true);
	struct madt_x2apic_nmi *x2nmi;
	struct madt_ioapic *ioapic;
	struct madt_lapic_nmi *nmi;

	if (!madt)
		return NULL;
	fill_header(&madt->header, "APIC", MADT_REVISION);
	madt->lapic_base = LAPIC_BASE;
	for (unsigned i = 0; i < n_vcpus; i++) {
		if (!add_apic(b, i))
			return NULL;
	}
	ioapic = take(b, sizeof(*ioapic), false);
	nmi = take(b, sizeof(*nmi), false);
	if (!ioapic || !nmi)
		return NULL;
	*ioapic = (struct madt_ioapic){
		.type = 1, .len = sizeof(*ioapic), .addr = (uint32_t)MB_IOAPIC_BASE};
	*nmi = (struct madt_lapic_nmi){
		.type = 4, .len = sizeof(*nmi), .uid = ALL_UIDS, .lint = LINT_NMI};
	if (n_vcpus > LAPIC_ID_MAX + 1) {
		x2nmi = take(b, sizeof(*x2nmi), false);
		if (!x2nmi)
			return NULL;
		*x2nmi = (struct madt_x2apic_nmi){
			.type = 10, .len = sizeof(*x2nmi), .uid = ALL_X2_UIDS, .lint = LINT_NMI};
	}
	finish(b, &madt->header);
	return &madt->header;
}

static struct header *add_mcfg(struct build *b)
{
	struct mcfg *mcfg = take(b, sizeof(*mcfg), true);

	if (!mcfg)
		return NULL;
	fill_header(&mcfg->header, "MCFG", 1);
	mcfg->ecam_base = MB_PCI_ECAM_BASE;
	mcfg->last_bus = (uint8_t)(MB_PCI_ECAM_LEN / 0x100000 - 1);
	finish(b, &mcfg->header);
	return &mcfg->header;
}

static void fill_processor(struct aml_processor *p, unsigned uid)
{
	static const char digit[] = "0123456789ABCDEF";

	memcpy(p->device_op, "\x5b\x82", 2);
	p->pkg_len = sizeof(*p) - offsetof(struct aml_processor, pkg_len);
	p->name[0] = 'C';
	p->name[1] = digit[uid >> 8 & 15];
	p->name[2] = digit[uid >> 4 & 15];
	p->name[3] = digit[uid & 15];
	p->hid_op = 0x08;
	memcpy(p->hid_name, "_HID", 4);
	p->hid_string = 0x0d;
	memcpy(p->hid, "ACPI0007", sizeof(p->hid));
	p->uid_op = 0x08;
	memcpy(p->uid_name, "_UID", 4);
	p->uid_word = 0x0b;
	p->uid = (uint16_t)uid;
}

/*
 * ACPI 6.5, 8.4: each processor is declared in the namespace. Linux 6.10 calls its absence a
 * firmware bug and taints itself.
 */
static struct header *add_ssdt(struct build *b, const struct mb_acpi_config *config)
{
	struct ssdt *ssdt = take(
		b, sizeof(*ssdt) + (uint64_t)config->n_vcpus * sizeof(struct aml_processor), true);
	uint32_t pkg_len;

	if (!ssdt)
		return NULL;
	fill_header(&ssdt->header, "SSDT", 2);
	pkg_len = (uint32_t)(b->buf + b->used - ssdt->pkg_len);
	ssdt->scope_op = 0x10;
	ssdt->pkg_len[0] = (uint8_t)(2u << 6 | (pkg_len & 15));
	ssdt->pkg_len[1] = (uint8_t)(pkg_len >> 4);
	ssdt->pkg_len[2] = (uint8_t)(pkg_len >> 12);
	memcpy(ssdt->scope, "\\_SB_", sizeof(ssdt->scope));
	ssdt->coms_op = 0x08;
	memcpy(ssdt->coms_name, "COMS", 4);
	ssdt->coms_byte = 0x0a;
	/* _STA (6.3.7): present, enabled, shown, working; or not there. */
	ssdt->coms = config->serial ? 0x0f : 0;
	for (unsigned i = 0; i < config->n_vcpus; i++)
		fill_processor(&ssdt->processor[i], i);
	finish(b, &ssdt->header);
	return &ssdt->header;
}

static bool build(struct build *b, const struct mb_acpi_config *config)
{
	struct rsdp *rsdp = take(b, sizeof(*rsdp), true);
	struct xsdt *xsdt = take(b, sizeof(*xsdt), true);
	struct header *madt, *mcfg, *ssdt;
	struct fadt *fadt;
	void *dsdt;

	if (!rsdp || !xsdt)
		return false;
	fill_header(&xsdt->header, "XSDT", 1);
	finish(b, &xsdt->header);

	fadt = add_fadt(b, config->serial);
	madt = add_madt(b, config->n_vcpus);
	mcfg = add_mcfg(b);
	ssdt = add_ssdt(b, config);
	dsdt = take(b, sizeof(dsdt_aml_code), true);
	if (!fadt || !madt || !mcfg || !ssdt || !dsdt)
		return false;
	memcpy(dsdt, dsdt_aml_code, sizeof(dsdt_aml_code));

	fadt->dsdt = (uint32_t)gpa_of(b, dsdt);
	fadt->x_dsdt = gpa_of(b, dsdt);
	fadt->header.len = sizeof(*fadt);
	fadt->header.checksum = checksum(fadt, sizeof(*fadt));

	xsdt->table[0] = gpa_of(b, fadt);
	xsdt->table[1] = gpa_of(b, madt);
	xsdt->table[2] = gpa_of(b, mcfg);
	xsdt->table[3] = gpa_of(b, ssdt);
	xsdt->header.checksum = 0;
	xsdt->header.checksum = checksum(xsdt, sizeof(*xsdt));

	memcpy(rsdp->signature, "RSD PTR ", sizeof(rsdp->signature));
	memcpy(rsdp->oem_id, "MIRROR", sizeof(rsdp->oem_id));
	rsdp->revision = 2;
	rsdp->len = sizeof(*rsdp);
	rsdp->xsdt = gpa_of(b, xsdt);
	rsdp->checksum = checksum(rsdp, offsetof(struct rsdp, len));
	rsdp->checksum_all = checksum(rsdp, sizeof(*rsdp));
	return true;
}

int mb_acpi_write(struct mb_ram *ram, const struct mb_acpi_config *config, uint64_t *rsdp_gpa,
	struct mb_error *err)
{
	struct build b = {0};
	int rc;

	if (!config->n_vcpus || config->n_vcpus > MB_MAX_VCPUS)
		return mb_error_set(err, EINVAL, "ACPI tables for %u vCPUs: 1 to %u are possible",
			config->n_vcpus, MB_MAX_VCPUS);
	b.buf = calloc(1, MB_BOOT_ACPI_LEN);
	if (!b.buf)
		return mb_error_set(err, ENOMEM, "ACPI tables: out of memory");
	if (!build(&b, config)) {
		rc = mb_error_set(err, ENOSPC,
			"ACPI tables for %u vCPUs: longer than the %llu bytes kept for them",
			config->n_vcpus, (unsigned long long)MB_BOOT_ACPI_LEN);
	} else {
		rc = mb_dma_write(mb_ram_dma(ram), MB_BOOT_ACPI, b.buf, b.used);
		if (rc)
			mb_error_set(err, -rc, "ACPI tables: guest memory at 0x%llx: %s",
				(unsigned long long)MB_BOOT_ACPI, strerror(-rc));
	}
	free(b.buf);
	if (!rc)
		*rsdp_gpa = MB_BOOT_ACPI;
	return rc;
}

int mb_acpi_new_generation(struct mb_ram *ram, struct mb_error *err)
{
	uint8_t id[16];
	int rc;

	/* So few bytes come at once, or not at all. */
	if (getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id))
		return mb_error_set(err, errno ? errno : EIO, "generation ID: getrandom: %s", strerror(errno));
	rc = mb_dma_write(mb_ram_dma(ram), MB_BOOT_GENERATION, id, sizeof(id));
	return rc ? mb_error_set(err, -rc, "generation ID: guest memory at 0x%llx: %s",
			    (unsigned long long)MB_BOOT_GENERATION, strerror(-rc))
		  : 0;
}
