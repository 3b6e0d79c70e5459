# SPDX-License-Identifier: Apache-2.0
"""What the facts and checks of a video cost: against ffprobe, and beside a landing without them.

    python benchmarks/video_probe.py [--rounds 5] [--ffprobe /path/to/ffprobe]

The clips are those of the sandbox: five seconds, 30 frames a second, H.264. ``ffprobe -count_frames`` decodes every
frame as the checks do, but compares none; its time includes its start, that of the checks does not include Python's.
The landings run over the loopback interface, where nothing but the decoding takes time.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINES = (480, 1080)
_PROBE = """
import logging, pathlib, sys, time
import av, PIL.Image, PIL.ImageChops
from airflow_provider_wan.landing.probe import probe
path = sys.argv[1]
def memory_mb(what):
    return int(pathlib.Path("/proc/self/status").read_text().partition(what + ":")[2].split()[0]) / 1024
before = memory_mb("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
with open(path, "rb") as file:
    size = file.seek(0, 2)
    started, cpu = time.perf_counter(), time.process_time()
    facts = probe(file, "video/mp4", size, logging.getLogger()).facts
    print(time.perf_counter() - started, time.process_time() - cpu, facts.frames,
        memory_mb("VmHWM") - before)
"""
_FFPROBE = ["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]


def photo() -> bytes:
    """Draw a picture with structure at all scales."""
    from PIL import Image

    file = io.BytesIO()
    noise = Image.effect_noise((1600, 900), 60).convert("RGB")
    Image.blend(noise, Image.effect_mandelbrot((1600, 900), (-2, -1.2, 1, 1.2), 100).convert("RGB"), 0.7).save(
        file, "JPEG"
    )
    return file.getvalue()


def probe_in_a_process(path: Path) -> tuple[float, float, int, float]:
    """Return seconds, CPU seconds, frames, and the growth of the process's peak memory in MB."""
    done = subprocess.run([sys.executable, "-c", _PROBE, str(path)], capture_output=True, text=True, check=True)
    seconds, cpu_s, frames, grown_mb = done.stdout.split()
    return float(seconds), float(cpu_s), int(frames), float(grown_mb)


def ffprobe_s(ffprobe: str, path: Path) -> tuple[float, float]:
    """Return seconds and CPU seconds of ffprobe."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([ffprobe, *_FFPROBE, str(path)], stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def landings(lines: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a landing, with and without checks, of an encoded clip of a sandbox."""
    from airflow_provider_wan.durable.record import Record, Stage
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.landing.checks import VideoChecks
    from airflow_provider_wan.landing.download import Downloader, video_rules
    from airflow_provider_wan.landing.landing import Destination, Landing
    from airflow_provider_wan.model_api.states import State
    from wan_sandbox.server import Sandbox

    model, log = "wan-ai/wan-2-2/image-to-video", logging.getLogger("landing")
    seen: dict[str, list[float]] = {"without checks": [], "with checks": []}
    with Sandbox(check_images=False, generation_seconds=0, buckets=("videos",)) as sandbox:
        os.environ.update(sandbox.env())
        hook, client = WanHook("wan_default"), storage_client()
        inputs = {"prompt": "waves", "img_url": "https://images.example.com/a.jpg", "resolution": f"{lines}P"}
        request_id = hook.submit(model, inputs).request_id
        while hook.get_result(request_id).state is not State.SUCCEEDED:
            time.sleep(0.1)
        downloader = Downloader(video_rules(hook.settings.download_hosts), log)
        record = Record("f" * 64, model, Stage.SUBMITTED, inputs=inputs, request_id=request_id)
        for number in range(rounds):
            for way, checks in (("without checks", VideoChecks(checks=())), ("with checks", VideoChecks())):
                started = time.perf_counter()
                landing = Landing(hook, client, downloader, log, checks=checks)
                landing.land(record, Destination("videos", f"{way}/{number}.mp4"))
                seen[way].append(time.perf_counter() - started)
    return {way: statistics.median(times) for way, times in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ffprobe", default=shutil.which("ffprobe"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    from wan_sandbox.runcomfy.videos import Clip, encode_video

    print(f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds, medians")
    with tempfile.TemporaryDirectory() as folder:
        for lines in LINES:
            path = Path(folder) / f"{lines}.mp4"
            encode_video(photo(), path, Clip(lines=lines, seconds=5), key="a")
            runs = [probe_in_a_process(path) for _ in range(options.rounds)]
            seconds, cpu_s, _, grown_mb = (statistics.median(each) for each in zip(*runs, strict=True))
            print(f"a clip of {lines} lines, {path.stat().st_size / 1e6:.1f} MB, {runs[0][2]} frames")
            print(f"  facts and checks     {seconds:6.3f} s, {cpu_s:.3f} CPU-s, peak memory + {grown_mb:.0f} MB")
            if options.ffprobe:
                other = [ffprobe_s(options.ffprobe, path) for _ in range(options.rounds)]
                other_s, other_cpu_s = (statistics.median(each) for each in zip(*other, strict=True))
                print(f"  ffprobe -count_frames{other_s:6.3f} s, {other_cpu_s:.3f} CPU-s")
                print(
                    f"  facts and checks take {seconds / other_s:.2f} times the time of ffprobe, and "
                    f"{cpu_s / other_cpu_s:.2f} times its CPU time"
                )
            else:
                print("  ffprobe is not installed: no comparison")
            times = landings(lines, options.rounds)
            extra = times["with checks"] - times["without checks"]
            print(
                f"  a landing takes {times['without checks']:.3f} s without checks, {times['with checks']:.3f} s with "
                f"them: + {extra:.3f} s"
            )


if __name__ == "__main__":
    main()
