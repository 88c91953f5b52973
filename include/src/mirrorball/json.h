/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_JSON_H
#define MIRRORBALL_JSON_H

#include <errno.h>
#include <jansson.h>
#include <stdint.h>

/*
 * Into an object or an array, which takes value over. jansson's setters fail on NULL, so that one
 * look at *rc, -ENOMEM then, at the end covers every allocation.
 */
static inline void mb_json_put(json_t *object, const char *key, json_t *value, int *rc)
{
	if (json_object_set_new(object, key, value))
		*rc = -ENOMEM;
}

static inline void mb_json_put_number(json_t *object, const char *key, uint64_t value, int *rc)
{
	mb_json_put(object, key, json_integer((json_int_t)value), rc);
}

static inline void mb_json_append(json_t *array, json_t *value, int *rc)
{
	if (json_array_append_new(array, value))
		*rc = -ENOMEM;
}

#endif
