// SPDX-License-Identifier: Apache-2.0
#include "doctor.h"
#include "cli.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/log.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static int doctor_main(const struct cli_command *command, int argc, char **argv);

const struct cli_command cli_doctor = {
	.name = "doctor",
	.summary = "Tell what this host offers and lacks, what that costs and how to fix it",
	.usage = "[OPTIONS]",
	.about = "Looks at the host: KVM, memory, NUMA and I/O. Changes nothing.",
	.options = cli_json_options,
	.epilogue = "Exit status: 0 a machine can run, 1 it cannot, 2 wrong command line.\n"
		    "More: man mirrorball-doctor.",
	.main = doctor_main,
};

struct doctor_check *doctor_add(struct doctor_report *report, const char *group, const char *id,
	const char *what, enum doctor_mark mark, const char *fmt, ...)
{
	struct doctor_check *check;
	va_list ap;

	if (report->n_checks < DOCTOR_MAX_CHECKS)
		report->n_checks++;
	check = &report->check[report->n_checks - 1];
	*check = (struct doctor_check){.group = group, .mark = mark};
	snprintf(check->id, sizeof(check->id), "%s.%s", group, id);
	snprintf(check->what, sizeof(check->what), "%s", what);
	va_start(ap, fmt);
	vsnprintf(check->value, sizeof(check->value), fmt, ap);
	va_end(ap);
	return check;
}

int doctor_read(int root_fd, const char *path, char *text, unsigned len)
{
	int fd = openat(root_fd, path, O_RDONLY | O_CLOEXEC);
	ssize_t n;
	int rc;

	if (fd < 0)
		return -errno;
	n = read(fd, text, len - 1);
	rc = n < 0 ? -errno : 0;
	close(fd);
	if (rc)
		return rc;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return (int)strlen(text);
}

bool doctor_can_run(const struct doctor_report *report)
{
	for (unsigned i = 0; i < report->n_checks; i++)
		if (report->check[i].mark == DOCTOR_MISSING)
			return false;
	return true;
}

static int look(struct doctor_report *report)
{
	struct utsname name;
	int root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (root_fd < 0)
		return -errno;
	if (!uname(&name))
		snprintf(report->kernel, sizeof(report->kernel), "%s", name.release);
	doctor_look_kvm(report, root_fd);
	doctor_look_memory(report, root_fd);
	doctor_probe_memory(report);
	doctor_look_numa(report, root_fd);
	doctor_probe_io(report);
	doctor_look_io(report, root_fd);
	close(root_fd);
	return 0;
}

static int doctor_main(const struct cli_command *command, int argc, char **argv)
{
	struct cli_json_asked asked = {0};
	struct cli_option_user user = {.set = cli_json_option, .ctx = &asked};
	struct doctor_report *report;
	struct mb_error err;
	int first, rc;

	rc = cli_options_walk(cli_json_options, argc, argv, &user, &first, &err);
	if (!rc && first < argc)
		rc = mb_error_set(&err, EINVAL, "unexpected word '%s'; doctor takes options only",
			argv[first]);
	if (rc)
		return cli_usage_error(command, &err);
	if (asked.help || asked.version)
		return cli_json_answer(command, &asked);
	report = calloc(1, sizeof(*report));
	if (!report) {
		mb_log("doctor: out of memory");
		return CLI_FAILED;
	}
	rc = look(report);
	if (rc) {
		mb_log("doctor: /: %s; nothing can be looked at", strerror(-rc));
	} else if (asked.json) {
		rc = doctor_show_json(report);
		if (rc)
			mb_log("doctor: --json: %s", strerror(-rc));
	} else {
		const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");

		doctor_show_table(report, isatty(STDOUT_FILENO) && !(no_colour && *no_colour) &&
						  term && strcmp(term, "dumb"));
	}
	rc = rc || cli_flush() || !doctor_can_run(report) ? CLI_FAILED : CLI_OK;
	free(report);
	return rc;
}
