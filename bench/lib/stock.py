# SPDX-License-Identifier: Apache-2.0
"""What a stock Debian guest does in the benchmarks: a disk with the programs and their input, and a script that runs
them for ever. Today's forms of the workloads of the Disco paper: pmake, engineering, raytrace, database."""

import glob
import hashlib
import os
import shutil
import subprocess
from random import Random

HERE = os.path.dirname(os.path.realpath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
# Of the lab (tests/lab/setup): its lists, and no package is there already.
APT = os.path.join(os.environ.get("LAB_CACHE") or os.path.join(CHECKOUT, "build", "lab"), "apt")
PACKAGES = ("dash", "coreutils", "tcc", "libc6-dev", "linux-libc-dev", "iverilog", "povray", "sqlite3")
PRUNED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "var")

# In the guest's /mnt, which is a root of its own. `once` comes before the jobs, each of which repeats `job` for ever.
WORKLOADS = {
    "compile": {"once": "true", "job": "for c in /src/*.c; do tcc -c $c -o /tmp/$i.o || exit; done"},
    "verilog": {"once": "iverilog -o /tmp/cores /src/cores.v", "job": "vvp -n /tmp/cores +seed=$i >/tmp/$i.out"},
    # One process with a thread a job. The picture is so large that its scene is read all the time, as in the paper: a small
    # one is done in some seconds of the lab's, and then the next process writes a scene of its own.
    "raytrace": {"once": "true", "jobs": 1,
                 "job": "povray +I/src/scene.pov +O/tmp/scene.ppm +FP +W1600 +H1200 +WT$jobs -D -GA >/tmp/out 2>&1"},
    "database": {"once": "sqlite3 /tmp/db </src/fill.sql", "job": "sqlite3 /tmp/db </src/query.sql >/tmp/$i.out"},
    "idle": {"once": "true", "jobs": 0, "job": "true"},
}

BEGINS, IS_WARM, FAILED = "WORKLOAD BEGINS", "WORKLOAD IS WARM", "WORKLOAD FAILED"
SCRIPT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -o ro /dev/vdb /mnt
mount -t tmpfs tmp /mnt/tmp
mount --bind /dev /mnt/dev
mount -t proc proc /mnt/proc
exec chroot /mnt /bin/sh -c '
jobs={jobs}
{once} || echo "{failed}"
echo "{begins}"
i=0
while [ $((i += 1)) -le {n} ]; do
	(while :; do ({job}) || echo "{failed}"; done) &
done
sleep {warm}
echo "{is_warm}"
while :; do sleep 1000; done
'
"""

SOURCES, FUNCTIONS = 8, 3000


def c_source(number, functions=FUNCTIONS):
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
    for i in range(functions):
        lines.append(f"static int f{i}(int a, const char *b) {{ char t[{i % 60 + 8}]; int r = a * {i + number}; "
                     f"for (int k = 0; b[k] && k < {i % 50 + 1}; k++) {{ t[k % 8] = b[k]; r ^= t[k % 8] << k % 7; }} "
                     f"return strlen(b) > {i % 9} ? r : printf(\"%d %s\", r, b); }}")
    lines.append("int main(void) { int r = 0; " +
                 " ".join(f"r += f{i}(r, \"{i}\");" for i in range(functions)) + " return r; }")
    return "\n".join(lines) + "\n"


# Cores that walk at random through memories of their own, and tell their neighbour what they found.
VERILOG = """`timescale 1ns/1ns
module core(input clk, input [31:0] in, output reg [31:0] out);
	parameter ID = 0;
	reg [31:0] memory [0:16383];
	reg [31:0] at;
	integer i;
	initial begin
		if (!$value$plusargs("seed=%d", at)) at = 1;
		at = at * 32'd2654435761 + ID;
		out = 0;
		for (i = 0; i < 16384; i = i + 1) memory[i] = i ^ at;
	end
	always @(posedge clk) begin
		at <= at * 32'd1664525 + memory[at[31:18]] + in;
		memory[at[17:4]] <= memory[at[31:18]] + 1;
		out <= at ^ {at[15:0], at[31:16]};
	end
endmodule
module top;
	reg clk = 0;
	wire [31:0] bus [0:16];
	assign bus[0] = bus[16];
	genvar g;
	generate for (g = 0; g < 16; g = g + 1) begin : cores
		core #(.ID(g)) c(.clk(clk), .in(bus[g]), .out(bus[g + 1]));
	end endgenerate
	initial begin
		repeat (40000) #5 clk = ~clk;
		$display("%h", bus[0]);
		$finish;
	end
endmodule
"""


def scene():
    random = Random(1)
    lines = ["#version 3.7;", "global_settings { assumed_gamma 1 }",
             "camera { location <0, 12, -30> look_at 0 }", "light_source { <20, 40, -30>, 1 }",
             "light_source { <-30, 20, -10>, 0.4 }", "plane { y, -8 pigment { checker rgb 0.2 rgb 0.9 } }"]
    for _ in range(6000):
        at = ", ".join(f"{random.uniform(-14, 14):.2f}" for _ in range(3))
        colour = ", ".join(f"{random.random():.2f}" for _ in range(3))
        lines.append(f"sphere {{ <{at}>, {random.uniform(0.1, 0.5):.2f} pigment {{ rgb <{colour}> }} "
                     "finish { reflection 0.2 phong 0.5 } }")
    return "\n".join(lines) + "\n"


# Decision support, as in the paper: reads only, of pages of the file that all processes map.
FILL = """PRAGMA journal_mode = OFF;
CREATE TABLE customer (id INTEGER PRIMARY KEY, region INT, name TEXT);
CREATE TABLE sale (id INTEGER PRIMARY KEY, customer INT, day INT, amount INT, what TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
	INSERT INTO customer SELECT i, i * 7919 % 23, printf('customer %d', i) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
	INSERT INTO sale SELECT i, i * 7907 % 2000, i * 31 % 365, i * 104729 % 9973, printf('%d of a thing', i * 17 % 512)
	FROM n;
CREATE INDEX by_customer ON sale (customer);
CREATE INDEX by_day ON sale (day);
"""
QUERY = """PRAGMA mmap_size = 268435456;
SELECT region, sum(amount), count(*) FROM sale JOIN customer ON customer.id = sale.customer GROUP BY region;
SELECT day, max(amount), count(DISTINCT customer) FROM sale WHERE day BETWEEN 90 AND 180 GROUP BY day;
SELECT what, avg(amount) FROM sale GROUP BY what ORDER BY 2 DESC LIMIT 10;
SELECT name, sum(amount) AS s FROM customer JOIN sale ON customer.id = sale.customer
	GROUP BY customer.id ORDER BY s DESC LIMIT 10;
"""


def inputs():
    """{name in /src: text}"""
    return {**{f"{i}.c": c_source(i) for i in range(SOURCES)},
            "cores.v": VERILOG, "scene.pov": scene(), "fill.sql": FILL, "query.sql": QUERY}


def fetch(directory):
    """The packages and all that they need."""
    os.makedirs(os.path.join(directory, "debs", "partial"), exist_ok=True)
    with open(os.path.join(directory, "status"), "w", encoding="ascii"):
        pass
    settings = {"Dir::Etc::SourceList": f"{APT}/sources.list", "Dir::Etc::SourceParts": "/dev/null",
                "Dir::State": directory, "Dir::State::Lists": f"{APT}/lists",
                "Dir::State::status": f"{directory}/status", "Dir::Cache": directory,
                "Dir::Cache::archives": f"{directory}/debs", "APT::Sandbox::User": "root",
                "APT::Architecture": "amd64", "APT::Install-Recommends": "0", "Debug::NoLocking": "1"}
    subprocess.run(["apt-get", *(word for item in settings.items() for word in ("-o", "=".join(item))), "-qq",
                    "--download-only", "-y", "install", *PACKAGES], check=True, stdout=subprocess.DEVNULL)


def make_image(directory, image):
    tree = os.path.join(directory, "tree")
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(tree)
    fetch(directory)
    for deb in glob.glob(os.path.join(directory, "debs", "*.deb")):
        subprocess.run(["dpkg", "-x", deb, tree], check=True)
    for name in PRUNED:
        shutil.rmtree(os.path.join(tree, name), ignore_errors=True)
    for name in ("src", "tmp", "dev", "proc"):
        os.makedirs(os.path.join(tree, name), exist_ok=True)
    if not os.path.lexists(os.path.join(tree, "bin", "sh")):
        os.symlink("dash", os.path.join(tree, "bin", "sh"))
    for name, text in inputs().items():
        with open(os.path.join(tree, "src", name), "w", encoding="ascii") as file:
            file.write(text)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, image + ".new",
                    "192M"], check=True, stdout=subprocess.DEVNULL)
    os.rename(image + ".new", image)
    shutil.rmtree(tree)


def make(directory, workload, jobs=4, warm=20):
    """Paths of a disk for the guest and of a script for its initial ramdisk, in this directory. Debian's packages come
    through apt, once. The script says BEGINS, `warm` seconds later IS_WARM, and FAILED when something did."""
    os.makedirs(directory, exist_ok=True)
    image, made_from = (os.path.join(directory, name) for name in ("stock.img", "made-from"))
    with open(os.path.realpath(__file__), "rb") as file:
        key = hashlib.sha256(file.read()).hexdigest()
    had = None
    if os.path.exists(image) and os.path.exists(made_from):
        with open(made_from, encoding="ascii") as file:
            had = file.read()
    if had != key:
        make_image(directory, image)
        with open(made_from, "w", encoding="ascii") as file:
            file.write(key)
    what = WORKLOADS[workload]
    script = os.path.join(directory, workload + ".sh")
    with open(script, "w", encoding="ascii") as file:
        file.write(SCRIPT.format(jobs=jobs, n=min(jobs, what.get("jobs", jobs)), once=what["once"], job=what["job"],
                                 warm=warm, begins=BEGINS, is_warm=IS_WARM, failed=FAILED))
        os.fchmod(file.fileno(), 0o755)
    return image, script
