#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The console on a terminal: raw while a Linux guest runs, as it was before on every way out; the escape key.
source "$(dirname "$0")/lib.sh"
need_kvm
for what in halt echo hello reset triple lost; do
	guest "$what"
done
n_checks=1
timeout 300 "$here/terminal.py" || bad "terminal.py"
finish
