# SPDX-License-Identifier: Apache-2.0
"""Programs of bench/native that use the libraries of a build."""

import os
import subprocess
import sys
import tempfile

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def make(name, program, build):
    """Compiles bench/native/NAME.c with the libraries of a build."""
    subprocess.run(
        ["cc", "-std=gnu17", "-O2", "-D_GNU_SOURCE", "-o", program, os.path.join(CHECKOUT, "bench", "native", f"{name}.c"),
         *(f"-I{CHECKOUT}/include/{layer}" for layer in ("kvm", "numa", "devices", "src")),
         *(os.path.join(build, library)
           for library in ("src/libmbsrc.a", "numa/libmbnuma.a", "kvm/libmbkvm.a")), "-lnuma", "-lpthread", "-lm"],
        check=True)


def said_by(name, words, build, lab):
    """What bench/native/NAME.c, compiled and run with these words, prints: in the lab or on this
    host. Where it fails, this exits."""
    with tempfile.TemporaryDirectory() as tmp:
        program = os.path.join(tmp, name)
        make(name, program, build)
        command = [program]
        if lab:
            command = [os.path.join(CHECKOUT, "tests", "lab", "lab"), "--build", build, "--in", program, "--", f"/in/{name}"]
        done = subprocess.run([*command, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: failed: {done.returncode}\n{done.stdout}")
    return done.stdout
