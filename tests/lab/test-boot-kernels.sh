#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Debian's stock kernels, with 1 and 4 vCPUs, come up to systemd on a root disk, find the machine as it
# was asked for, and power it off.
. "$(dirname "$0")/guests.sh"

in_lanes \
	"stock cloud61x1 cloud-6.1 1 512 </dev/null" "stock cloud61x4 cloud-6.1 4 512 </dev/null" \
	"stock cloud612x4 cloud-6.12 4 514 </dev/null" "stock cloud612x1 cloud-6.12 1 256 </dev/null" \
	"stock full61x1 full-6.1 1 1024 </dev/null" "stock full61x4 full-6.1 4 768 </dev/null"
finish
