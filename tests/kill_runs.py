"""Runs that are killed at random moments and go on, until they have finished: nothing is lost and nothing left behind.

`python tests/kill_runs.py [kills] [recipe] [KEY=VALUE ...]` trains once without a kill, and once with so many (20 of
quickstart by default): SIGKILL to the whole process group after a random time, so that it falls into loading, the
reference, steps, the writing of checkpoints and the evaluation alike; then the same command with --resume. Prints where
each kill fell, and exits with 1 where the finished weights differ in a bit, a manual step was needed, or something
half-written is left. The cache is the same for all, as a user's is.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-u", "-m", "dpo_recipes", "train"]


def weights_of(run: Path) -> dict[str, str]:
    """File -> SHA-256, of the finished weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "model").glob("*.safetensors")}


def started(words: list[str], folder: Path) -> subprocess.Popen:
    with (folder / "said.log").open("ab") as log:
        return subprocess.Popen([*COMMAND, *words], cwd=folder, stdout=log, stderr=log, start_new_session=True)


def moment_of(folder: Path) -> str:
    """What the killed process said last."""
    lines = (folder / "said.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1][:90] if lines else "nothing said yet"


def main(kills: int, words: list[str]) -> int:
    draw = random.Random(0)
    folder = Path(tempfile.mkdtemp(prefix="dpo-recipes-kills-"))
    begun = time.monotonic()
    if started([*words, "--runs", "whole"], folder).wait() != 0:
        print((folder / "said.log").read_text())
        return 1
    seconds = time.monotonic() - begun
    (whole,) = (folder / "whole").iterdir()
    print(f"Without a kill: {seconds:.0f} s.")

    going_on: list[str] = []
    fallen = 0
    while True:
        (folder / "said.log").unlink()
        begun = time.monotonic()
        process = started([*words, *going_on], folder)
        time_left = draw.uniform(0, seconds) if fallen < kills else None
        try:
            code = process.wait(timeout=time_left)
            if code == 0 and fallen < kills:  # finished before its kill: another run takes the rest
                print("    finished", flush=True)
                seconds = min(seconds, time.monotonic() - begun)  # what is in the cache now takes no time
                going_on = []
                continue
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            fallen += 1
            print(f"{fallen:3} after {time_left:5.1f} s: {moment_of(folder)}", flush=True)
            # Where no run had a folder yet, or it had written all, a new one begins.
            waiting = [run for run in (folder / "runs").glob("*") if not (run / "samples.jsonl").exists()]
            going_on = ["--resume"] if waiting else []
    if code != 0:
        print(f"It ended with {code}:\n{(folder / 'said.log').read_text()}")
        return 1

    expected = weights_of(whole)
    runs = sorted((folder / "runs").iterdir())
    same = all(weights_of(run) == expected for run in runs)
    left = [str(path) for run in runs for path in run.rglob("*.tmp")]
    print(f"{len(runs)} runs, {fallen} kills. The same weights to the last bit: {same}.")
    print(f"Half-written: {', '.join(left) or 'nothing'}.")
    return 0 if same and not left else 1


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    sys.exit(main(count, sys.argv[2:] or ["quickstart"]))
