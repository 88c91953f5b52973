# SPDX-License-Identifier: Apache-2.0
"""A running machine's control socket."""

import glob
import json
import socket
import time


def find(machine, seconds):
    """Its path, once it is there; None where the machine (a Popen) ends before."""
    deadline = time.monotonic() + seconds
    while machine.poll() is None and time.monotonic() < deadline:
        for path in glob.glob(f"/run/mirrorball/*.{machine.pid}"):
            return path
        time.sleep(0.05)
    return None


def ask(path, request):
    """A generator of answers, on one connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with sock.makefile("rw", encoding="utf-8") as stream:
            while True:
                stream.write(json.dumps({"request": request}) + "\n")
                stream.flush()
                line = stream.readline()
                if not line:
                    return
                yield json.loads(line)
