# SPDX-License-Identifier: Apache-2.0
"""Land videos over links with the latency and bandwidth of real ones, compared with download and upload.

    python benchmarks/landing.py [one] [eight] [memory] [--rounds 15]

The sandbox (API, videos and bucket), the links and the landing process run in separate processes; every call
goes over a link (see ``shaped_links.py``). The baseline does what such tasks usually do: read the result,
download the whole video to a temporary file with ``requests``, upload it with ``upload_from_filename``, then
the next video. It checks nothing. RunComfy serves files from other hosts than its API, so a download opens a
connection of its own.

``one`` lands a video of 3 MB and one of 25 MB, with and without decoding them for their facts. The baseline and
the landing run in turn in one process, with new connections each time, and each landing is compared with the baseline
right before or after it, so that the load of the machine cancels out. ``eight`` lands eight videos of 25 MB
concurrently, compared with the baseline one after another, and in eight threads, by their medians.
``memory`` lands one video of 500 MB, and four of 100 MB at once as a batch does, and compares the peak memory of the
process with its memory before the landing.
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
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

from batch import BUCKET, MODEL, sandbox
from shaped_links import shaped_links

# -- the two ways to land ------------------------------------------------------------------------------------


def land(
    request_ids: Sequence[str], folder: str, *, decode: bool = True
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the landing, ready to start: sequential and concurrent.

    :param decode: whether videos are decoded for their facts; all that keeps a cut video out is checked anyway.
    """
    from airflow_provider_wan.durable.record import Record, Stage
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.landing.checks import VideoChecks
    from airflow_provider_wan.landing.download import Downloader, video_rules
    from airflow_provider_wan.landing.landing import Destination, Landing

    log = logging.getLogger("landing")
    hook = WanHook("wan_default")
    downloader = Downloader(video_rules(hook.settings.download_hosts), log)
    checks = VideoChecks() if decode else VideoChecks(())
    landing = Landing(hook, storage_client(pool_size=8), downloader, log, checks=checks)

    def one(request_id: str) -> None:
        record = Record("f" * 64, MODEL, Stage.SUBMITTED, request_id=request_id)
        landing.land(record, Destination(BUCKET, f"{folder}/{request_id}.mp4"))

    return _modes(one, request_ids)


def copy(request_ids: Sequence[str], folder: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the baseline, without any check."""
    import requests
    from google.cloud import storage

    connection = json.loads(os.environ["AIRFLOW_CONN_WAN_DEFAULT"])
    headers = {"Authorization": f"Bearer {connection['password']}"}
    bucket = storage.Client().bucket(BUCKET)

    def one(request_id: str) -> None:
        result_url = f"{connection['host']}/v1/requests/{request_id}/result"
        result = requests.get(result_url, headers=headers, timeout=60)
        output = result.json()["output"]
        url = output.get("video") or output["videos"][0]
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            with requests.get(url, stream=True, timeout=60) as answer:
                answer.raise_for_status()
                for piece in answer.iter_content(1024 * 1024):
                    file.write(piece)
            file.flush()
            bucket.blob(f"{folder}/{request_id}.mp4").upload_from_filename(file.name)

    return _modes(one, request_ids)


def _modes(one: Callable[[str], None], request_ids: Sequence[str]) -> tuple[Callable[[], None], Callable[[], None]]:
    def sequential() -> None:
        for request_id in request_ids:
            one(request_id)

    def concurrent() -> None:
        with ThreadPoolExecutor(len(request_ids)) as pool:
            list(pool.map(one, request_ids))

    return sequential, concurrent


def run_way(way: str, request_ids: Sequence[str], folder: str) -> dict[str, float]:
    """Land the videos in this process. Imports and clients are ready before the clock starts, connections are
    not.
    """
    logging.disable(logging.WARNING)
    sequential, concurrent = (copy if way.startswith("copy") else land)(request_ids, folder)
    run = concurrent if way.endswith("at-once") else sequential
    idle_mb = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # exclude the peak of the imports
    cpu, started = time.process_time(), time.perf_counter()
    run()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "idle_mb": idle_mb,
        "peak_mb": _memory_mb("VmHWM"),
    }


def run_pairs(request_id: str, folder: str, rounds: int) -> dict[str, list[float]]:
    """Land one video again and again in this process; return the seconds of each way, round by round."""
    logging.disable(logging.WARNING)
    ways: dict[str, Callable[..., tuple[Callable[[], None], Callable[[], None]]]] = {
        "copy": copy,
        "land": partial(land, decode=False),
        "land-decoded": land,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in list(ways) if number % 2 else reversed(ways):
            run, _ = ways[way]([request_id], f"{folder}/{number}-{way}")
            started = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - started)
    return {way: times[1:] for way, times in seconds.items()}  # the first round imports


def _memory_mb(what: str) -> float:
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) / 1024


# -- the environment -----------------------------------------------------------------------------------------


class Environment:
    """A sandbox behind shaped links, with requests that have succeeded.

    :param env: environment of the landing process.
    """

    def __init__(self, env: dict[str, str], request_ids: Sequence[str]) -> None:
        self._env = env
        self._request_ids = request_ids
        self._runs = 0

    def run(self, way: str, count: int) -> dict[str, Any]:
        """Land ``count`` videos in a new process, under unused names."""
        return self._start("--way", way, "--request-ids", *self._request_ids[:count])

    def run_pairs(self, rounds: int) -> dict[str, list[float]]:
        """Land one video ``rounds`` times in a new process, in each way."""
        return self._start("--way", "pairs", "--rounds", str(rounds), "--request-ids", self._request_ids[0])

    def _start(self, *options: str) -> dict[str, Any]:
        self._runs += 1
        command = [sys.executable, __file__, "--folder", str(self._runs), *options]
        env = {**os.environ, **self._env}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result


@contextlib.contextmanager
def environment(video_bytes: int, requests: int, *, round_trip_s: float, bytes_per_s: float) -> Iterator[Environment]:
    """Start the sandbox and the links, and generate the videos."""
    options = ["--speed", "600", "--concurrency", "100", "--video-bytes", str(video_bytes)]
    with sandbox(*options) as state:
        servers = [urlsplit(state[name]).netloc for name in ("url", "bucket_url")]
        with shaped_links(*servers, round_trip_s=round_trip_s, bytes_per_s=bytes_per_s) as links:
            env = {
                name: value.replace(servers[0], links[0]).replace(servers[1], links[1])
                for name, value in state["env"].items()
            }
            yield Environment(env, generate(state["env"], requests))


def generate(env: dict[str, str], count: int) -> list[str]:
    """Submit requests past the links, and wait until their videos are there."""
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


# -- measurements --------------------------------------------------------------------------------------------


def compare(where: Environment, count: int, ways: dict[str, str], rounds: int) -> dict[str, float]:
    """Run the ways in turn, and return the median time of each."""
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


def one(where: Environment, video_mb: float, rounds: int, goal: float) -> None:
    print(f"one video of {video_mb:.0f} MB, {rounds} rounds")
    seconds = where.run_pairs(rounds)
    names = {
        "copy": "download to a file, upload",
        "land": "landing, all checks but decoding",
        "land-decoded": "landing, all checks",
    }
    for way, name in names.items():
        ratios = sorted(copied / took for copied, took in zip(seconds["copy"], seconds[way], strict=True))
        quarter = len(ratios) // 4
        print(
            f"  {name:38} {statistics.median(seconds[way]):6.3f} s, at best {min(seconds[way]):.3f} s; "
            f"{statistics.median(ratios):.2f} times as fast "
            f"(half of the rounds: {ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})"
            + (f" (goal: {goal})" if way == "land" else "")
        )


def eight(where: Environment, video_mb: float, rounds: int) -> None:
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


def memory(where: Environment, count: int, video_mb: int) -> None:
    result = where.run("land-at-once", count)
    print(
        f"{count} of {video_mb} MB at once in {result['seconds']:.1f} s: peak {result['peak_mb']:.0f} MB, "
        f"{result['idle_mb']:.0f} MB before: + {result['peak_mb'] - result['idle_mb']:.0f} MB "
        f"(goal: {64 * count} at most)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="one|eight|memory", help="default: all three")
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--mb-per-s", type=float, default=25, help="of each direction of a connection")
    parser.add_argument("--rounds", type=int, default=15, help="of one video; a fifth of them of eight")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--request-ids", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way == "pairs":
        print(json.dumps(run_pairs(options.request_ids[0], options.folder, options.rounds)))
        return
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
    if "one" in what:
        for video_mb, goal in ((3, 0.95), (25, 0.97)):
            with environment(video_mb * 10**6, 1, **shape) as where:
                one(where, video_mb, options.rounds, goal)
    if "eight" in what:
        with environment(25_000_000, 8, **shape) as where:
            eight(where, 25, max(1, options.rounds // 5))
    if "memory" in what:
        for count, video_mb in ((1, 500), (4, 100)):
            with environment(video_mb * 10**6, count, **shape) as where:
                memory(where, count, video_mb)


if __name__ == "__main__":
    main()
