/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CONTROL_H
#define MIRRORBALL_CONTROL_H

#include <jansson.h>
#include <limits.h>
#include <mirrorball/error.h>
#include <mirrorball/loop.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

/*
 * A machine's control socket: a Unix stream socket that carries JSON objects, one a line. A client
 * sends {"request":"stat"} (one that is about a file: and "path") and gets {"ok":true, ...} or {"ok":false,"error":"a line for a person"},
 * as often as it likes, one at a time.
 */
#define MB_CONTROL_MAX_CONNECTIONS 16u
#define MB_CONTROL_MAX_LINE_BYTES  (64u << 10) /* of a request, with its newline */

struct mb_control;

/* A request that the machine answers. All run on the loop's thread. */
struct mb_control_request {
	const char *name;
	/*
	 * 0 and *answer, an object whose reference is given away ("ok" is added here), or -errno
	 * and err. `connection` is a number that no other connection of this socket ever has.
	 */
	int (*answer)(void *ctx, uint64_t connection, json_t **answer, struct mb_error *err);
	/* Instead, of one that has a member "path", an absolute one. */
	int (*answer_path)(void *ctx, const char *path, json_t **answer, struct mb_error *err);
};

struct mb_control_config {
	struct mb_loop *loop;
	const char *name;			   /* the machine's */
	const struct mb_control_request *requests; /* ends with a NULL name; must stay */
	/*
	 * A connection that has made a request is gone, whoever ended it; also from
	 * mb_control_destroy. NULL: nobody wants to know.
	 */
	void (*closed)(void *ctx, uint64_t connection);
	void *ctx;
};

/*
 * Makes the socket and answers requests on the loop from now on. No client can keep the loop
 * waiting or use more memory than MB_CONTROL_MAX_CONNECTIONS requests and answers take. Before the
 * loop runs or on its thread; so is destroy, which takes NULL and removes the socket.
 */
int mb_control_create(
	const struct mb_control_config *config, struct mb_control **out, struct mb_error *err);
void mb_control_destroy(struct mb_control *control);

/* ---- where sockets are; src/control_dir.c ---- */

/*
 * Directories for the sockets of this process's (effective) user, best first: /run/mirrorball for
 * root, else $XDG_RUNTIME_DIR/mirrorball (where that is set to an absolute path) and
 * /tmp/mirrorball-UID. A machine takes the first that it can have; who looks for machines looks
 * into all, for the machine's environment may be another than ours.
 */
#define MB_CONTROL_MAX_DIRS 2
unsigned mb_control_dirs(char path[MB_CONTROL_MAX_DIRS][PATH_MAX]);

/*
 * Opens such a directory; with `create` it is made first, mode 0700. -EPERM where it is not safe: a
 * symbolic link, not a directory, not ours, or somebody else may write it. Another error: there is
 * none and none can be made.
 */
int mb_control_open_dir(const char *path, bool create, int *dir_fd, struct mb_error *err);

/* "NAME.PID", as a socket is called. False: file is no such name. name has room for NAME_MAX + 1.
 */
bool mb_control_parse_file(const char *file, char *name, pid_t *pid);

/*
 * The address of a file of a directory, however long the directory's path: valid in this process as
 * long as dir_fd is open. -ENAMETOOLONG where the file's own name is too long.
 */
int mb_control_address(int dir_fd, const char *file, struct sockaddr_un *addr);

#endif
