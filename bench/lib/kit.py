# SPDX-License-Identifier: Apache-2.0
"""A small disk with this host's C compiler, something to compile, and what this host makes of it."""

import os
import re
import shutil
import subprocess
import tempfile

import stock

FUNCTIONS = 60
# How the compiler collects garbage must not depend on how much memory there is.
OPTIONS = "-quiet -O1 --param ggc-min-expand=30 --param ggc-min-heapsize=4096"
# In the guest, where the disk is /mnt: what it makes has to be the same, byte for byte.
COMPILE = f"/mnt/lib/ld-linux-x86-64.so.2 --library-path /mnt/lib /mnt/cc1 {OPTIONS} /mnt/source.i -o /run/out.s"
COMPARE = "cmp /run/out.s /mnt/wanted.s"


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def make(image):
    with tempfile.TemporaryDirectory(dir=os.path.dirname(image)) as tree:
        cc1 = output("gcc", "-print-prog-name=cc1")
        os.mkdir(os.path.join(tree, "lib"))
        shutil.copy(cc1, os.path.join(tree, "cc1"))
        for library in re.findall(r"/\S+", output("ldd", cc1)):
            shutil.copy(library, os.path.join(tree, "lib"))
        source = os.path.join(tree, "source.i")
        with open(os.path.join(tree, "source.c"), "w", encoding="ascii") as file:
            file.write(stock.c_source(1, FUNCTIONS))
        subprocess.run(["gcc", "-E", "-P", file.name, "-o", source], check=True)
        subprocess.run(COMPILE.replace("/mnt/", f"{tree}/").replace("/run/out.s", f"{tree}/wanted.s"),
                       shell=True, check=True)
        # Blocks of a page each, as the guests' root has them.
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-m", "0", "-d", tree, image, "64M"],
                       check=True, stdout=subprocess.DEVNULL)
