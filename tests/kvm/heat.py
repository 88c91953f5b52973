#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a machine for its heat.

    heat.py PID watch SECONDS   twice a second for so long; prints the last answer
    heat.py PID flap N          N connections, one after another: the tracker starts and stops each time
"""
import glob
import json
import os
import socket
import sys
import time


def find(pid):
    for _ in range(100):
        places = [f"/run/mirrorball/*.{pid}", f"{os.environ.get('XDG_RUNTIME_DIR', '')}/mirrorball/*.{pid}",
                  f"/tmp/mirrorball-{os.getuid()}/*.{pid}"]
        found = [p for place in places for p in glob.glob(place)]
        if found:
            return found[0]
        time.sleep(0.1)
    sys.exit(f"heat.py: {pid} has no socket")


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock.makefile("rw", encoding="utf-8"), sock


def ask(stream):
    stream.write('{"request":"heat"}\n')
    stream.flush()
    return json.loads(stream.readline())


def main():
    path = find(sys.argv[1])
    if sys.argv[2] == "flap":
        for _ in range(int(sys.argv[3])):
            stream, sock = connect(path)
            answer = ask(stream)
            stream.close()
            sock.close()
            if not answer["ok"]:
                break
    else:
        stream, _ = connect(path)
        end = time.monotonic() + float(sys.argv[3])
        answer = ask(stream)
        while answer["ok"] and time.monotonic() < end:
            time.sleep(0.5)
            try:
                answer = ask(stream)
            except ValueError:  # its end
                break
    print(json.dumps(answer))


main()
