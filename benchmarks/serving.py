"""A real ``reid serve`` under mixed load at 80 % of what it can do: latencies, errors, memory at the start and at the
end.

Run with ``python -m benchmarks.serving --seconds 60`` (1800 for the long soak). The model is untrained, for its speed
does not depend on training; the gallery holds random vectors; the queries are blocks of colour. Capacity is measured
first, by callers who ask again as soon as they are answered. Then requests come at random times at 80 % of it, whether
the service keeps up or not, and a latency counts from the time that a request was due. Client and server share the
machine: on few cores the client costs the server some of its capacity.
"""

import argparse
import http.client
import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path

import cv2
import numpy as np

from benchmarks.results_file import record
from deploy import Bundle, Gallery
from deploy.service.tokens import Tokens

CALLERS = 24
SHARE = 0.8
MIX = {"query": 0.85, "enrol": 0.145, "forget": 0.005}
TOKEN_SCOPES = ("query", "enrol", "erase")


def prepare(folder, backbone, entries):
    """A bundle of an untrained model and a gallery of random vectors in its space."""
    from reid.config import build_config
    from reid.export import export_run
    from reid.run import Run

    settings = {"model": {"backbone": backbone, "weights": "none"}, "crop": {"height": 256, "width": 128}}
    export_run(Run.create(folder / "run", build_config(settings)), folder / "bundle")
    bundle, rng = Bundle.load(folder / "bundle"), np.random.default_rng(0)
    with Gallery.create(folder / "gallery", bundle.dim, bundle.feature_space, bundle.folder) as gallery:
        for start in range(0, entries, 4096):
            vectors = rng.normal(size=(min(4096, entries - start), bundle.dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            gallery.add(
                vectors,
                camera=[f"c{row % 8}" for row in range(len(vectors))],
                source=[f"s{start + row}" for row in range(len(vectors))],
            )


def pictures():
    """JPEG files of coloured blocks; as costly to decode and embed as people are."""
    rng = np.random.default_rng(1)
    return [
        cv2.imencode(".jpg", cv2.resize(rng.integers(0, 256, (16, 8, 3), np.uint8), (128, 256)))[1].tobytes()
        for _ in range(64)
    ]


class Caller:
    """One connection that is kept open, and what there is to ask."""

    def __init__(self, port, token, images, enrolled):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.token, self.images, self.enrolled = token, images, enrolled

    def __call__(self, kind):
        """Ask once; returns the status."""
        if kind == "forget":
            ids = []
            while len(ids) < 500 and self.enrolled:
                ids.append(self.enrolled.popleft())
            if not ids:
                kind = "query"
            else:
                return self.send("DELETE", "/v1/entries?" + "&".join(f"ids={number}" for number in ids))[0]
        fields = {"reason": "benchmark", "top": "10"} if kind == "query" else {"camera": "c1"}
        parts = [
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        parts.append(
            b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
            + random.choice(self.images)
            + b"\r\n--x--\r\n"
        )
        status, body = self.send("POST", "/v1/query" if kind == "query" else "/v1/entries", b"".join(parts))
        if kind == "enrol" and status == 201:
            self.enrolled.extend(json.loads(body)["ids"])
        return status

    def send(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "multipart/form-data; boundary=x"}
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return type(error).__name__, b""


def draw_kind():
    return random.choices(list(MIX), list(MIX.values()))[0]


def capacity(make_caller, seconds):
    """Requests per second when every caller asks again at once."""
    done, end = [], time.monotonic() + seconds

    def work():
        caller = make_caller()
        while time.monotonic() < end:
            if caller(draw_kind()) in (200, 201):
                done.append(1)

    run_all(work, CALLERS)
    return len(done) / seconds


def load(make_caller, rate, seconds):
    """Requests at random times; seconds from when each was due to its answer, by kind, and the statuses."""
    due, found, statuses = queue.Queue(), {kind: [] for kind in MIX}, Counter()
    lock = threading.Lock()

    def work():
        caller = make_caller()
        while (item := due.get()) is not None:
            when, kind = item
            status = caller(kind)
            with lock:
                statuses[str(status)] += 1
                found[kind].append(time.monotonic() - when)

    threads = [threading.Thread(target=work) for _ in range(CALLERS * 4)]
    for thread in threads:
        thread.start()
    when, end = time.monotonic(), time.monotonic() + seconds
    while when < end:
        when += random.expovariate(rate)
        time.sleep(max(0.0, when - time.monotonic()))
        due.put((when, draw_kind()))
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()
    return found, statuses


def run_all(work, count):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resident(process):
    """Resident memory of a process, MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument(
        "--warm", type=float, default=20, help="seconds of measuring capacity, which also warms the service up"
    )
    options.add_argument("--entries", type=int, default=20_000)
    options.add_argument("--backbone", default="mobilenetv2_100")
    options.add_argument("--save", action="store_true", help="write benchmarks/results/serving.json")
    chosen = options.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, chosen.backbone, chosen.entries)
        tokens = Tokens(folder / "tokens.json")
        token = tokens.make(TOKEN_SCOPES, "benchmark")
        log = (folder / "log").open("w")
        command = [
            sys.executable,
            "-m",
            "reid.cli",
            "serve",
            str(folder / "gallery"),
            "--port",
            "0",
            "--tokens",
            str(tokens.file),
            "--rate",
            "0",
            "--queue",
            "256",
        ]
        server = subprocess.Popen(command, stderr=log)
        try:
            port = wait_until_ready(folder / "log", server)
            images, enrolled = pictures(), deque()

            def make_caller():
                return Caller(port, token, images, enrolled)

            most = capacity(make_caller, chosen.warm)
            time.sleep(1)
            start, sampled, stop = resident(server.pid), [], threading.Event()
            watcher = threading.Thread(target=lambda: watch(server.pid, sampled, stop))
            watcher.start()
            began = time.monotonic()
            found, statuses = load(make_caller, SHARE * most, chosen.seconds)
            took = time.monotonic() - began
            stop.set()
            watcher.join()
            end = resident(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
            log.close()
        lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
        stopped = next((line for line in lines if line["event"] == "stopped"), {})
    everything = sorted(value for values in found.values() for value in values)
    body = {
        "seconds": round(took, 1),
        "backbone": chosen.backbone,
        "entries": chosen.entries,
        "mix": MIX,
        "cores": len(os.sched_getaffinity(0)),
        "capacity_per_second": round(most, 1),
        "load_per_second": round(len(everything) / took, 1),
        "statuses": dict(statuses),
        "errors": sum(count for status, count in statuses.items() if status not in ("200", "201")),
        "milliseconds": {kind: centiles(values) for kind, values in {**found, "all": everything}.items()},
        "resident_mib": {
            "start": round(start, 1),
            "end": round(end, 1),
            "most": round(max(sampled, default=end), 1),
            **quarters(sampled),
        },
        "audit_records": stopped.get("audit_number"),
        "exit_code": code,
    }
    print(json.dumps(body, indent=1))
    if chosen.save:
        record("serving", body)


def watch(process, sampled, stop):
    while not stop.wait(1.0):
        sampled.append(resident(process))


def quarters(sampled):
    """Mean of each quarter of the time: what grows shows here."""
    return {
        f"quarter_{number}": round(float(np.mean(part)), 1)
        for number, part in enumerate(np.array_split(sampled, 4), 1)
        if len(part)
    }


def centiles(values):
    if not values:
        return {}
    shares = {f"p{share}": round(1000 * float(np.percentile(values, share)), 1) for share in (50, 95, 99)}
    return {"count": len(values), **shares, "most": round(1000 * max(values), 1)}


def wait_until_ready(log, server):
    """Port of the service, once its log says that it is ready."""
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit(log.read_text())
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        if any(line["event"] == "ready" for line in lines):
            return int(next(line["address"] for line in lines if line["event"] == "listening").rsplit(":", 1)[1])
        time.sleep(0.1)
    raise SystemExit("the service was not ready within two minutes")


if __name__ == "__main__":
    main()
