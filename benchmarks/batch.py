# SPDX-License-Identifier: Apache-2.0
"""Measure the overhead of a batch over its necessary calls and writes.

    python benchmarks/batch.py throughput [--images 1000]   against a bare asyncio loop with the same calls
    python benchmarks/batch.py memory [--land 100]          of a worker with 500 requests in flight, 20 MB videos
    python benchmarks/batch.py rerun [--images 100000]      until the first new submit, with 99 % done before
    python benchmarks/batch.py resume [--images 250]        of a deferrable task, beside a small and a large journal

The sandbox, the batch and the loop each run in a process of their own. ``throughput`` runs in turn the loop, a
batch with every check but those that decode a video (``batch``) and one with the default checks (``decoding``),
each against an account of its own (concurrency 100, 6 s a generation, 2 MB videos). It prints the ratios of the times
from the first submit to the last landing and of the processor time, calls a video, and how late ends were noticed,
from the sandbox's ledger.

``resume`` runs the operator. Half of the chunk's videos have landed before, 100 requests are in flight and none is
ready, so that each resume waits again at once: what is measured is the resume alone. Each one runs in a process of its
own that has imported the operator as a Dag file does, and imports the rest as a task does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = "wan-ai/wan-2-2/image-to-video"
BUCKET = "videos"
IN_FLIGHT = 200


def addresses(count: int) -> list[str]:
    return [f"https://images.example.com/{number:06d}.jpg" for number in range(count)]


@contextlib.contextmanager
def sandbox(*options: str) -> Iterator[dict[str, Any]]:
    """Run a sandbox in a process of its own; return its addresses and environment."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.json"
        command = [sys.executable, "-m", "wan_sandbox", "--port", "0", "--bucket-port", "0"]
        command += ["--bucket", BUCKET, "--state-file", str(state), "--no-check-images", *options]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                while not state.exists():
                    time.sleep(0.05)
                yield json.loads(state.read_text())
            finally:
                process.terminate()


def control(base: str, path: str, body: Any = None) -> Any:
    from wan_sandbox.server import call

    return call(f"{base}/_sandbox/{path}", body, timeout_s=300)


def in_own_process(way: str, env: dict[str, str], *arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, *arguments]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


# -- the batch ---------------------------------------------------------------------------------------------


def run_batch(images: list[str], *, in_flight: int, land: int | None = None, decodes: bool = True) -> dict[str, Any]:
    """Run a batch in this process, as a task with ``deferrable=False`` does.

    :param decodes: whether videos are checked frame by frame, as by default.
    """
    from airflow_provider_wan.batch.batch import Batch
    from airflow_provider_wan.batch.spec import BatchLimits, BatchSpec
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.images.source import ImageOptions, ImageSources
    from airflow_provider_wan.landing.checks import VideoChecks
    from airflow_provider_wan.model_api.schema import LazyModel

    log = logging.getLogger("batch")
    log.setLevel(logging.ERROR)
    stop = threading.Event()
    hook = WanHook("wan_default")
    client = storage_client(pool_size=28)
    sources = ImageSources(LazyModel(MODEL), lambda: client, log, options=ImageOptions(check=False, allow_private=True))
    spec = BatchSpec(
        images=images,
        bucket_name=BUCKET,
        object_name="batch/",
        journal=f"gs://{BUCKET}/batch/_journal",
        model_id=MODEL,
        limits=BatchLimits(time.time() + 3600, max_in_flight=in_flight, progress_every_s=3600),
        inputs={"prompt": "waves"},
        checks=VideoChecks() if decodes else VideoChecks(checks=()),
    )
    batch = Batch(spec, hook, client, sources, log, owner="dag/run/task/-1", stop=stop)
    idle_mb = resident_mb()
    started, cpu = time.time(), time.process_time()
    engine = batch.begin()
    planned_s = time.time() - started
    peak = {"mb": 0.0}

    def measure_memory() -> None:
        while not stop.wait(0.05):
            peak["mb"] = max(peak["mb"], resident_mb())
            done = sum(1 for result in list(engine.results.values()) if result.outcome == "landed")
            if land is not None and done >= land:
                stop.set()

    measuring = threading.Thread(target=measure_memory, daemon=True)
    if land is not None:  # its processor time would count as the batch's
        measuring.start()
    engine.run(may_pause=False)
    ended = time.time()
    stop.set()
    if land is not None:
        measuring.join()
    return {
        "planned_s": planned_s,
        "ended": ended,
        "cpu_s": time.process_time() - cpu,
        "landed": sum(1 for result in engine.results.values() if result.outcome == "landed"),
        "idle_mb": idle_mb,
        "peak_mb": peak["mb"],
        "max_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


# -- the bare loop -----------------------------------------------------------------------------------------


async def run_loop(images: list[str], *, in_flight: int, poll_s: float = 1.0) -> dict[str, Any]:
    """The same calls and writes with nothing else: no checks, no retries, no resuming."""
    import aiohttp

    connection = json.loads(os.environ["AIRFLOW_CONN_WAN_DEFAULT"])
    api, storage = connection["host"], os.environ["STORAGE_EMULATOR_HOST"]
    headers = {"Authorization": f"Bearer {connection['password']}"}
    gate = asyncio.Semaphore(in_flight)
    running: asyncio.Queue[None] = asyncio.Queue()
    cpu = time.process_time()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as http:

        async def put(name: str, data: bytes) -> None:
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            async with http.post(f"{storage}/upload/storage/v1/b/{BUCKET}/o?{query}", data=data) as answer:
                assert answer.status == 200, await answer.text()

        async def make(number: int, image: str) -> None:
            async with gate:
                await put(f"loop/_journal/{number}.json", b"{}")
                body = {"prompt": "waves", "img_url": image}
                async with http.post(f"{api}/v1/models/{MODEL}", json=body, headers=headers) as answer:
                    request_id = (await answer.json())["request_id"]
                await put(f"loop/_journal/{number}.json", b'{"id": 1}')
                status = f"{api}/v1/requests/{request_id}/status"
                while True:
                    async with http.get(status, headers=headers) as answer:
                        seen = await answer.json()
                    if seen["status"] == "completed":
                        break
                    # Poll a running request every tenth of a generation; a queued one waits longer for each
                    # place.
                    await asyncio.sleep(max(poll_s, 0.06 * seen.get("queue_position", 0)))
            result = f"{api}/v1/requests/{request_id}/result?include_cost=true"
            async with http.get(result, headers=headers) as answer:
                output = (await answer.json())["output"]
            url = output.get("video") or output["videos"][0]
            async with http.get(url) as answer:
                video = await answer.read()
            await put(f"loop/{number}.mp4", video)
            await put(f"loop/{number}.mp4.json", b"{}")
            await put(f"loop/_journal/{number}.json", b'{"landed": 1}')
            running.put_nowait(None)

        await asyncio.gather(*(make(number, image) for number, image in enumerate(images)))
    return {"ended": time.time(), "cpu_s": time.process_time() - cpu, "landed": running.qsize()}


# -- measurements ------------------------------------------------------------------------------------------


def throughput(count: int) -> None:
    least_s = 6.0 * count / 100
    print(f"{count} images, concurrency 100, 6 s a generation, 2 MB videos: {least_s:.0f} s at least")
    times: dict[str, float] = {}
    cpu_ms: dict[str, float] = {}
    for way in ("loop", "batch", "decoding"):
        options = ("--generation-seconds", "6", "--spread", "0.25", "--concurrency", "100")
        with sandbox(*options, "--video-bytes", "2000000") as state:
            run = in_own_process(way, state["env"], "--images", str(count), "--in-flight", str(IN_FLIGHT))
            ledger = control(state["url"], "ledger")
            storage = control(state["bucket_url"], "calls")["calls"]
        purchases = ledger["purchases"]
        times[way] = run["ended"] - min(purchase["at"] for purchase in purchases)
        delays = sorted((p["noticed_at"] - p["finished_at"]) / 6.0 for p in purchases)
        calls = ledger["calls"]
        api_calls = sum(calls.get(name, 0) for name in ("submit", "status", "result")) / count
        cpu_ms[way] = 1000 * run["cpu_s"] / count
        print(
            f"  {way:8} {times[way]:6.1f} s; {cpu_ms[way]:.1f} CPU-ms an image; {api_calls:.1f} API calls and "
            f"{sum(storage.values()) / count:.1f} storage calls a video; noticed after "
            f"{100 * statistics.median(delays):.1f} % of a generation (median), "
            f"{100 * delays[int(0.95 * len(delays))]:.1f} % (95th percentile); {run['landed']} landed"
        )
    for way in ("batch", "decoding"):
        print(
            f"  {way} over loop: time {times[way] / times['loop']:.2f} (goal: 1.25 at most), "
            f"CPU {cpu_ms[way] / cpu_ms['loop']:.2f} (goal without decoding: 2 at most)"
        )


def memory(land: int) -> None:
    with sandbox("--speed", "60", "--concurrency", "500", "--video-bytes", "20000000") as state:
        run = in_own_process("decoding", state["env"], "--images", "700", "--in-flight", "500", "--land", str(land))
    print(
        f"500 in flight, 20 MB videos, {run['landed']} landed: peak {run['peak_mb']:.0f} MB, idle task process "
        f"{run['idle_mb']:.0f} MB: + {run['peak_mb'] - run['idle_mb']:.0f} MB (goal: 150 at most)"
    )


def seed_landed(bucket_url: str, images: list[str], prefix: str) -> None:
    """Put the videos of images and their records into the bucket, as far as a listing shows them."""
    from airflow_provider_wan.model_api.fingerprints import fingerprint

    for start in range(0, len(images), 3000):
        objects: dict[str, dict[str, str]] = {}
        for image in images[start : start + 3000]:
            print_of = fingerprint(MODEL, {"prompt": "waves", "img_url": image})
            video = f"{prefix}/{image.rpartition('/')[2].removesuffix('.jpg')}-{print_of[:12]}.mp4"
            metadata = {
                "stage": "landed",
                "request_id": f"earlier-{print_of[:12]}",
                "cost_usd": "0.2",
                "uri": f"gs://{BUCKET}/{video}",
            }
            objects |= {f"{prefix}/_journal/{print_of}.json": metadata, video: {}, f"{video}.json": {}}
        control(bucket_url, "seed", {"bucket": BUCKET, "objects": objects, "text": "{}"})


def rerun(count: int) -> None:
    images = addresses(count)
    done = [one for number, one in enumerate(images) if number % 100]
    with sandbox("--speed", "600", "--concurrency", "100", "--video-bytes", "20000") as state:
        seed_landed(state["bucket_url"], done, "batch")
        before = time.time()
        run = in_own_process(
            "decoding", state["env"], "--images", str(count), "--in-flight", str(IN_FLIGHT), "--land", "5"
        )
        first = min(submit["at"] for submit in control(state["url"], "ledger")["submits"])
    print(
        f"{count} images, {len(done)} done before: first new submit {first - before:.1f} s after the start of the "
        f"process, {run['planned_s']:.1f} s of them to plan and list (goal: under 60 s); peak {run['peak_mb']:.0f} MB"
    )


# -- resumes -----------------------------------------------------------------------------------------------


class _TaskInstance:
    dag_id, run_id, task_id, map_index, try_number = "dag", "run", "task", -1, 1

    def xcom_push(self, key: str, value: Any) -> None:
        pass


def run_part(images: list[str], event: dict[str, Any] | None) -> dict[str, Any]:
    """Run the operator from its start, or from an event, up to its next wait."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    from airflow_provider_wan.operators.wan_batch import WanBatchOperator

    task = WanBatchOperator(
        task_id="task",
        images=images,
        bucket_name=BUCKET,
        object_name="batch/",
        prompt="waves",
        check_image=False,
    )
    context: Any = {"ti": _TaskInstance()}
    modules, cpu = len(sys.modules), time.process_time()
    try:
        task.execute(context) if event is None else task.execute_complete(context, event)
    except TaskDeferred as deferred:
        cpu_s = time.process_time() - cpu
        trigger = deferred.trigger.serialize()[1]
        event = {name: trigger[name] for name in ("deadline", "started", "learned")} | {
            "ready": [],
            "gone": [],
        }
        in_flight = len(trigger["request_ids"])
        return {"cpu_s": cpu_s, "modules": len(sys.modules) - modules, "in_flight": in_flight, "event": event}
    raise SystemExit("The batch has ended.")


def resume(count: int, others: int, times: int = 5) -> None:
    images = addresses(count + others)
    for before in (0, others):
        with sandbox("--generation-seconds", "36000", "--concurrency", "2") as state:
            seed_landed(state["bucket_url"], [*images[: count // 2], *images[count : count + before]], "batch")
            part = in_own_process("part", state["env"], "--images", str(count))
            cpu: list[float] = []
            calls: dict[str, int] = {}
            for _ in range(times):
                earlier = control(state["bucket_url"], "calls")["calls"]
                event = json.dumps(part["event"])
                part = in_own_process("part", state["env"], "--images", str(count), "--event", event)
                now = control(state["bucket_url"], "calls")["calls"]
                calls = {name: now[name] - earlier.get(name, 0) for name in now if now[name] != earlier.get(name)}
                cpu.append(part["cpu_s"])
        print(
            f"a resume of {count} images, {part['in_flight']} in flight, {before} other records in the journal: "
            f"{1000 * statistics.median(cpu):.0f} CPU-ms ({1000 * min(cpu):.0f} to {1000 * max(cpu):.0f}), "
            f"with imports of {part['modules']} modules; {sum(calls.values())} storage calls {calls}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("throughput", "memory", "rerun", "resume"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--land", type=int)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("batch", "decoding", "loop", "part"), help=argparse.SUPPRESS)
    parser.add_argument("--event", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--others", type=int, default=20_000, help="other records in the large journal, for resume")
    options = parser.parse_args()
    if options.way == "loop":
        print(json.dumps(asyncio.run(run_loop(addresses(options.images), in_flight=options.in_flight))))
    elif options.way == "part":
        print(json.dumps(run_part(addresses(options.images), options.event)))
    elif options.way:
        images, decodes = addresses(options.images), options.way == "decoding"
        run = run_batch(images, in_flight=options.in_flight, land=options.land, decodes=decodes)
        print(json.dumps(run))
    elif options.what == "throughput":
        throughput(options.images or 1000)
    elif options.what == "memory":
        memory(options.land or 100)
    elif options.what == "rerun":
        rerun(options.images or 100_000)
    elif options.what == "resume":
        resume(options.images or 250, options.others)
    else:
        parser.error("choose throughput, memory, rerun or resume")


if __name__ == "__main__":
    main()
