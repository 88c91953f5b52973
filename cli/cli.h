/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_H
#define MIRRORBALL_CLI_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdio.h>

/*
 * Exit statuses (mirrorball(1)). A status of the guest's own program and one of the monitor never
 * look the same: splash's status s is 64 + s, up to 125.
 */
enum cli_status {
	CLI_OK = 0,
	CLI_FAILED = 1,	   /* before the guest ran, or the monitor's own trouble */
	CLI_USAGE = 2,	   /* the command line */
	CLI_KVM_ERROR = 3, /* KVM could not go on */
	CLI_CRASH = 4,	   /* the guest crashed: triple fault or panic */
	CLI_REBOOT = 5,	   /* the guest reset itself and --no-reboot is set */
	CLI_QUIT = 6,	   /* the user ended it with the escape key and q */
	CLI_GUEST_BASE = 64,
	CLI_GUEST_MAX = 125,
	CLI_SIGNAL_BASE = 128, /* + the signal's number */
};

/* One entry of a command's option table; the end has neither name nor help. */
struct cli_option {
	const char *name; /* without the dashes; NULL: help is the heading of what follows */
	const char *arg;  /* what the value is called; NULL: takes none */
	const char *help; /* with unit and default */
};

struct cli_command {
	const char *name;
	const char *summary; /* one line, for `mirrorball help` */
	const char *usage;   /* after "mirrorball NAME " */
	const char *about;   /* a paragraph */
	const struct cli_option *options;
	const char *epilogue; /* may be NULL */
	/* argv[0] is the command's name. Returns an exit status. */
	int (*main)(const struct cli_command *command, int argc, char **argv);
};

extern const struct cli_command cli_run, cli_ps, cli_stat, cli_heat, cli_numa, cli_sim, cli_image,
	cli_doctor, cli_snapshot, cli_restore, cli_clone;
extern const struct cli_command *const cli_commands[]; /* NULL-terminated */

/*
 * Walks the options of argv; calls set for each with its index in the table and its value (NULL for
 * one that takes none). Stops at the first word that is no option: *first. An option that was given
 * before is an error unless repeatable(index) says otherwise. -EINVAL with what is wrong in err, or
 * set's error with the option's name in front.
 */
struct cli_option_user {
	int (*set)(void *ctx, int index, char *value, struct mb_error *err);
	bool (*repeatable)(int index); /* NULL: none is */
	void *ctx;
};
int cli_options_walk(const struct cli_option *table, int argc, char **argv,
	const struct cli_option_user *user, int *first, struct mb_error *err);

/* The options of a command that has --json and no others but --help and --version. */
struct cli_json_asked {
	bool json, help, version;
};
extern const struct cli_option cli_json_options[];
/* struct cli_option_user.set; ctx: struct cli_json_asked. Two walks of one command line share it.
 */
int cli_json_option(void *ctx, int index, char *value, struct mb_error *err);
/* Help or version, whichever was asked for. Exit status. */
int cli_json_answer(const struct cli_command *command, const struct cli_json_asked *asked);

void cli_command_help(const struct cli_command *command, FILE *out);
void cli_version(FILE *out);
/* Says what is wrong with the command line and where help is. Returns CLI_USAGE. */
int cli_usage_error(const struct cli_command *command, const struct mb_error *err);
/* Writes text with words wrapped at 80 columns, each line but the first indented. */
void cli_wrap(FILE *out, const char *text, unsigned column, unsigned indent);
struct json_t;
/*
 * root as text on standard output, with a newline. 0 or -ENOMEM; what standard output does not take
 * is cli_flush's to tell.
 */
int cli_print_json(const struct json_t *root);
/* 0, or CLI_FAILED and a message when standard output could not take what was written. */
int cli_flush(void);

#endif
