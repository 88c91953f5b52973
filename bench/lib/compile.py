# SPDX-License-Identifier: Apache-2.0
"""A disk with a C compiler and sources, and a script that makes a stock guest compile them for ever."""

import glob
import os
import subprocess

PACKAGES = ("tcc", "libc6-dev", "linux-libc-dev")
SOURCES, FUNCTIONS = 8, 3000
SCRIPT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin
export HOME=/root
mount -t tmpfs tmp /tmp
mount -o ro /dev/vdb /mnt
echo COMPILING
for i in $(seq {jobs}); do
	while :; do
		for c in /mnt/src/*.c; do
			/mnt/usr/bin/tcc -B/mnt/usr/lib/x86_64-linux-gnu/tcc -I/mnt/usr/include \\
				-I/mnt/usr/include/x86_64-linux-gnu -c "$c" -o "/tmp/$i.o" || echo FAILED
		done
	done &
done
wait
"""


def source(number):
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
    for i in range(FUNCTIONS):
        lines.append(f"static int f{i}(int a, const char *b) {{ char t[{i % 60 + 8}]; int r = a * {i + number}; "
                     f"for (int k = 0; b[k] && k < {i % 50 + 1}; k++) {{ t[k % 8] = b[k]; r ^= t[k % 8] << k % 7; }} "
                     f"return strlen(b) > {i % 9} ? r : printf(\"%d %s\", r, b); }}")
    lines.append("int main(void) { int r = 0; " +
                 " ".join(f"r += f{i}(r, \"{i}\");" for i in range(FUNCTIONS)) + " return r; }")
    return "\n".join(lines) + "\n"


def make(directory, jobs):
    """Writes compile.img and compile.sh there. Debian's packages come through apt, once."""
    tree, image = os.path.join(directory, "compile"), os.path.join(directory, "compile.img")
    os.makedirs(os.path.join(tree, "src"), exist_ok=True)
    with open(os.path.join(directory, "compile.sh"), "w", encoding="ascii") as file:
        file.write(SCRIPT.format(jobs=jobs))
        os.fchmod(file.fileno(), 0o755)
    if not os.path.exists(image):
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=directory, check=True,
                       stderr=subprocess.DEVNULL)
        for package in PACKAGES:
            subprocess.run(["dpkg", "-x", *glob.glob(os.path.join(directory, package + "_*.deb")), tree], check=True)
        for i in range(SOURCES):
            with open(os.path.join(tree, "src", f"{i}.c"), "w", encoding="ascii") as file:
                file.write(source(i))
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "64M"], check=True)
    return image, os.path.join(directory, "compile.sh")
