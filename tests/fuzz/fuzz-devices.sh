#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The hostile guest for longer than the kvm suite has time. MB_FUZZ_MS, MB_FUZZ_ROUNDS: see there.
set -euo pipefail
export MB_FUZZ_MS=${MB_FUZZ_MS:-10000} MB_FUZZ_ROUNDS=${MB_FUZZ_ROUNDS:-1}
exec "$(dirname "$0")/../kvm/test-hostile.sh"
