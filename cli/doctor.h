/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_DOCTOR_H
#define MIRRORBALL_CLI_DOCTOR_H

#include <mirrorball/topology.h>
#include <stdbool.h>

enum doctor_mark {
	DOCTOR_OK,
	DOCTOR_INFO,	/* neither good nor bad, worth knowing */
	DOCTOR_WARN,	/* a feature is lost or slower */
	DOCTOR_MISSING, /* no machine runs */
};

/* One thing that was looked at. Strings that are not arrays are constants. */
struct doctor_check {
	const char *group; /* "kvm", "memory", "numa", "io" */
	char id[48];	   /* stable: "memory.pagemap_scan" */
	char what[40];	   /* for people */
	enum doctor_mark mark;
	char value[192];   /* what was found */
	const char *since; /* first kernel with it, or NULL */
	const char *use;   /* what the monitor does with it */
	const char *cost;  /* what is lost as it is; NULL when nothing */
	const char *fix;   /* what to do; NULL when nothing can or need be done */
};

#define DOCTOR_MAX_CHECKS 64

struct doctor_report {
	struct doctor_check check[DOCTOR_MAX_CHECKS];
	unsigned n_checks;
	unsigned n_views; /* 0: no KVM */
	char kernel[80];  /* release */
	struct mb_topology topo;
};

/*
 * A new check at the end of the report, with the value printed as by printf(3). Never NULL: a
 * report that is full gives its last entry again.
 */
struct doctor_check *doctor_add(struct doctor_report *report, const char *group, const char *id,
	const char *what, enum doctor_mark mark, const char *fmt, ...)
	__attribute__((format(printf, 6, 7)));

/* The same list on every host; what cannot be read is a mark, never an error. */
void doctor_look_kvm(struct doctor_report *report, int root_fd);
/* What files say. root_fd: a descriptor of / or of a test's copy of it. */
void doctor_look_memory(struct doctor_report *report, int root_fd);
void doctor_look_numa(struct doctor_report *report, int root_fd);
void doctor_look_io(struct doctor_report *report, int root_fd);
/* What has to be tried: userfaultfd, PAGEMAP_SCAN, guest memory, io_uring. */
void doctor_probe_memory(struct doctor_report *report);
void doctor_probe_io(struct doctor_report *report);

/* Whether nothing required is missing. */
bool doctor_can_run(const struct doctor_report *report);
/* First line of a file below root_fd without its newline: its length, or -errno. */
int doctor_read(int root_fd, const char *path, char *text, unsigned len);

void doctor_show_table(const struct doctor_report *report, bool colour);
int doctor_show_json(const struct doctor_report *report);

#endif
