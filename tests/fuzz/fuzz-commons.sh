#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Garbage to mirrorballd's protocol for a while, with and without descriptors of many kinds. MB_FUZZ_SECONDS: how long; MB_FUZZ_SEED:
# the seed, which is printed.
set -euo pipefail
: "${MB_BUILD:=$(dirname "$0")/../../build}"
[ -x "$MB_BUILD/tests/unit/test_commons_hostile" ] || {
	echo "no build with tests in $MB_BUILD"
	exit 77
}
export MB_FUZZ_SECONDS=${MB_FUZZ_SECONDS:-30}
exec "$MB_BUILD/tests/unit/test_commons_hostile"
