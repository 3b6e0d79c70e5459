# SPDX-License-Identifier: Apache-2.0
"""Landings over links as long and narrow as real ones, against downloading to a file and uploading that.

    python benchmarks/landing.py [one] [eight] [memory] [--video-mb 25]

The sandbox (API, videos and bucket), the links and whoever lands run in processes of their own; every call goes over a
link (see ``shaped_links.py``). The alternative does what such tasks usually do: ask for the result, download the video
whole to a temporary file with ``requests``, upload that with ``upload_from_filename``, next video. It checks nothing.

``one`` lands a video of 25 MB (``--video-mb``); ``eight`` lands eight of them at once, against the alternative one
after another, and in eight threads for comparison. The sides take turns; the medians are compared. ``memory`` lands one
video of 500 MB, and compares the peak of the process with the same process before it began.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

from batch import BUCKET, MODEL, sandbox
from shaped_links import shaped_links

LONG_VIDEO_BYTES = 500_000_000


# -- who lands ---------------------------------------------------------------------------------------------


def land(request_ids: Sequence[str], folder: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Give the work of landing, ready to begin: one by one, and all at once."""
    from airflow_provider_wan.durable.record import Record, Stage
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.landing.download import Downloader, DownloadPolicy
    from airflow_provider_wan.landing.landing import Destination, Landing

    log = logging.getLogger("landing")
    hook = WanHook("wan_default")
    downloader = Downloader(DownloadPolicy(hook.settings.download_hosts), log)
    landing = Landing(hook, storage_client(pool_size=8), downloader, log)

    def one(request_id: str) -> None:
        record = Record("f" * 64, MODEL, Stage.SUBMITTED, request_id=request_id)
        landing.land(record, Destination(BUCKET, f"{folder}/{request_id}.mp4"))

    return _ways(one, request_ids)


def copy(request_ids: Sequence[str], folder: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same as plain code does it, without any check."""
    import requests
    from google.cloud import storage

    connection = json.loads(os.environ["AIRFLOW_CONN_WAN_DEFAULT"])
    headers = {"Authorization": f"Bearer {connection['password']}"}
    bucket = storage.Client().bucket(BUCKET)

    def one(request_id: str) -> None:
        with requests.Session() as http:
            result = http.get(f"{connection['host']}/v1/requests/{request_id}/result", headers=headers)
            output = result.json()["output"]
            url = output.get("video") or output["videos"][0]
            with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
                with http.get(url, stream=True) as answer:
                    answer.raise_for_status()
                    for piece in answer.iter_content(1024 * 1024):
                        file.write(piece)
                file.flush()
                bucket.blob(f"{folder}/{request_id}.mp4").upload_from_filename(file.name)

    return _ways(one, request_ids)


def _ways(
    one: Callable[[str], None], request_ids: Sequence[str]
) -> tuple[Callable[[], None], Callable[[], None]]:
    def one_by_one() -> None:
        for request_id in request_ids:
            one(request_id)

    def at_once() -> None:
        with ThreadPoolExecutor(len(request_ids)) as pool:
            list(pool.map(one, request_ids))

    return one_by_one, at_once


def run_way(way: str, request_ids: Sequence[str], folder: str) -> dict[str, float]:
    """Land them in this process; imports and clients are ready before the clock starts, connections are not."""
    logging.disable(logging.WARNING)
    one_by_one, at_once = (copy if way.startswith("copy") else land)(request_ids, folder)
    run = at_once if way.endswith("at-once") else one_by_one
    idle_mb = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
    cpu, started = time.process_time(), time.perf_counter()
    run()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "idle_mb": idle_mb,
        "peak_mb": _memory_mb("VmHWM"),
    }


def _memory_mb(what: str) -> float:
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) / 1024


# -- the world around --------------------------------------------------------------------------------------


class World:
    """A sandbox behind shaped links, with requests that have succeeded.

    :param env: environment of whoever lands.
    """

    def __init__(self, env: dict[str, str], request_ids: Sequence[str]) -> None:
        self._env = env
        self._request_ids = request_ids
        self._runs = 0

    def run(self, way: str, count: int) -> dict[str, Any]:
        """Let a new process land so many videos, under names that are not taken."""
        self._runs += 1
        command = [sys.executable, __file__, "--way", way, "--folder", str(self._runs)]
        command += ["--request-ids", *self._request_ids[:count]]
        env = {**os.environ, **self._env}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result


@contextlib.contextmanager
def world(video_bytes: int, requests: int, *, round_trip_s: float, bytes_per_s: float) -> Iterator[World]:
    """Start one."""
    options = ["--speed", "600", "--concurrency", "100", "--video-bytes", str(video_bytes)]
    with sandbox(*options) as state:
        servers = [urlsplit(state[name]).netloc for name in ("url", "bucket_url")]
        with shaped_links(*servers, round_trip_s=round_trip_s, bytes_per_s=bytes_per_s) as links:
            env = {
                name: value.replace(servers[0], links[0]).replace(servers[1], links[1])
                for name, value in state["env"].items()
            }
            yield World(env, buy(state["env"], requests))


def buy(env: dict[str, str], count: int) -> list[str]:
    """Buy videos and wait until they are there, past the links."""
    os.environ.update(env)
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.states import State

    hook = WanHook("wan_default")
    address = "https://images.example.com/{}.jpg"
    inputs = [{"prompt": "waves", "img_url": address.format(number)} for number in range(count)]
    request_ids = [hook.submit(MODEL, one).request_id for one in inputs]
    while any(hook.get_result(request_id).state is not State.SUCCEEDED for request_id in request_ids):
        time.sleep(0.2)
    return request_ids


# -- what is measured --------------------------------------------------------------------------------------


def compare(where: World, count: int, ways: dict[str, str], rounds: int) -> dict[str, float]:
    """Let the ways take turns, and give the median time of each."""
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            seen[way].append(where.run(way, count))
    medians = {}
    for way, name in ways.items():
        times = sorted(one["seconds"] for one in seen[way])
        medians[way] = statistics.median(times)
        cpu_s = statistics.median(one["cpu_s"] for one in seen[way])
        print(
            f"  {name:38} {medians[way]:6.2f} s ({times[0]:.2f} to {times[-1]:.2f}); {cpu_s:.2f} CPU-s in its process"
        )
    return medians


def one(where: World, video_mb: float, rounds: int) -> None:
    print(f"one video of {video_mb:.0f} MB, {rounds} rounds")
    ways = {"copy": "download to a file, upload", "land": "landing"}
    times = compare(where, 1, ways, rounds)
    print(f"  landing is {times['copy'] / times['land']:.2f} times as fast (goal: 0.95 or better)")


def eight(where: World, video_mb: float, rounds: int) -> None:
    print(f"eight videos of {video_mb:.0f} MB, {rounds} rounds")
    ways = {
        "copy": "download, upload, one after another",
        "copy-at-once": "the same in eight threads",
        "land-at-once": "landing, eight at once",
    }
    times = compare(where, 8, ways, rounds)
    print(
        f"  landing is {times['copy'] / times['land-at-once']:.1f} times as fast as one after another (goal: 4), "
        f"{times['copy-at-once'] / times['land-at-once']:.2f} times as fast as eight threads"
    )


def memory(where: World) -> None:
    got = where.run("land", 1)
    print(
        f"one video of {LONG_VIDEO_BYTES / 1e6:.0f} MB in {got['seconds']:.1f} s: peak {got['peak_mb']:.0f} MB, before "
        f"it began {got['idle_mb']:.0f} MB: + {got['peak_mb'] - got['idle_mb']:.0f} MB (goal: 64 at most)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="one|eight|memory", help="default: all three")
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--mb-per-s", type=float, default=25, help="of each direction of a connection")
    parser.add_argument("--video-mb", type=float, default=25, help="size of one and of eight videos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--request-ids", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run_way(options.way, options.request_ids, options.folder)))
        return
    what = options.what or ["one", "eight", "memory"]
    if unknown := set(what) - {"one", "eight", "memory"}:
        parser.error(f"there is nothing called {', '.join(unknown)}")
    shape = {"round_trip_s": options.round_trip_ms / 1000, "bytes_per_s": options.mb_per_s * 1e6}
    print(
        f"links with a round trip of {options.round_trip_ms:.0f} ms and {options.mb_per_s:.0f} MB/s a stream; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if "one" in what or "eight" in what:
        with world(round(options.video_mb * 1e6), 8, **shape) as where:
            if "one" in what:
                one(where, options.video_mb, options.rounds)
            if "eight" in what:
                eight(where, options.video_mb, options.rounds)
    if "memory" in what:
        with world(LONG_VIDEO_BYTES, 1, **shape) as where:
            memory(where)


if __name__ == "__main__":
    main()
