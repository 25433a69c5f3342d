"""Runs that are killed and go on, until they have finished: nothing is lost and nothing left behind.

`python tests/kill_runs.py [--kind lora|full|qlora] [--kills 20] [--seed 0] [RECIPE] [KEY=VALUE ...]` trains a recipe,
quickstart if none is named, once without a kill, and then with so many: SIGKILL to the process and its workers at a
moment that is drawn at random within a phase, the phases in turn: while the data are made, while pairs are read, in
the reference's pass, in a step, in the writing of a checkpoint, of the model and of any file, in what is measured
after training, and at any time at all. What would be found in a cache is removed before, so that it is done again.
Then the same command goes on with --resume, and nobody does anything by hand.

Prints where each kill fell and how the run went on; exits with 1 where a finished run is not that of the run without a
kill to the last bit (weights, log, numbers, answers), where a run did not go on, or where something half-written is
left. The runs and the cache are in a folder of their own, which is named and stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from dying import TRAINING

from dpo_recipes.runs.checkpoint_folders import is_whole

KINDS = {
    "lora": [],
    "full": ["adapter=none", "learning_rate=1e-4"],
    "qlora": ["adapter=qlora", "dtype=auto"],
}
# How the stages of a phase begin
REFERENCE = "Reference log-probabilities"
CHECKPOINT = "Writing the checkpoint"
MODEL = "Writing the model"
FILE = "file "
LIBRARIES = "Loading the libraries"

PHASES = [
    "reference",
    "checkpoint",
    "steps",
    "files",
    "checkpoint",
    "model",
    "any time",
    "pairs",
    "checkpoint",
    "files",
    "measuring",
]
# Phase -> what is removed of the cache before it, so that it is done at all
REMADE = {"making": "dpo-recipes/prepared", "pairs": "huggingface/datasets", "reference": "dpo-recipes/reference"}
# What says how long something took, in a log
OF_TIME = ("tokens_per_second", "memory_bytes", "runtime", "per_second", "preparation_time")


class Moment(NamedTuple):
    """When to die: so many seconds after the stage of these words has begun for so many times."""

    stage: str
    number: int
    seconds: float


class Stretch(NamedTuple):
    """A stage of a run that was not killed."""

    stage: str
    begins: float  # seconds since the start
    ends: float


class Place:
    """A folder with runs and a cache, in which a command is given."""

    def __init__(self, folder: Path, words: list[str]):
        self.folder = folder
        self.words = words
        self.cache = folder / "cache"
        self.temporary = folder / "tmp"
        for path in (self.cache, self.temporary):
            path.mkdir()

    def train(self, *more: str, dies_in: Moment | None = None) -> int:
        """Give the command, and wait for its end; the exit code."""
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache), "TMPDIR": str(self.temporary)}
        environment.setdefault("OMP_NUM_THREADS", "1")  # as in the tests
        for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
            environment.pop(name, None)
        if dies_in is not None:
            environment["DIES_IN"] = json.dumps(dies_in)
        self.stages.unlink(missing_ok=True)
        program = [sys.executable, "-u", str(Path(__file__).with_name("dying.py")), str(self.stages)]
        with self.said.open("wb") as log:
            return subprocess.run(
                [*program, "train", *self.words, *more], cwd=self.folder, env=environment, stdout=log, stderr=log
            ).returncode

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def stages(self) -> Path:
        return self.folder / "stages.jsonl"

    @property
    def said(self) -> Path:
        return self.folder / "said.log"

    def told(self) -> list[dict[str, Any]]:
        """What the last command has written of its stages."""
        return [json.loads(line) for line in self.stages.read_text().splitlines()]

    def half_written(self) -> list[str]:
        """What is not whole in the runs and in our cache: files of a temporary name, and checkpoints cut short."""
        own = [self.runs, self.cache / "dpo-recipes"]
        found = [path for folder in own for path in folder.rglob(".*.tmp")]
        checkpoints = self.runs.glob("*/checkpoints/checkpoint-*")
        found += [checkpoint for checkpoint in checkpoints if not is_whole(checkpoint)]
        return [path.name for path in found]


def stretches(told: list[dict[str, Any]]) -> list[Stretch]:
    """The stages of a run, in the order in which they began."""
    stages: list[Stretch] = []
    begun: list[tuple[str, float]] = []
    for line in told:
        if line.get("begins"):
            begun.append((line["begins"], line["seconds"]))
        elif "ends" in line:
            stage, seconds = next(entry for entry in reversed(begun) if entry[0] == line["ends"])
            begun.remove((stage, seconds))
            stages.append(Stretch(stage, seconds, line["seconds"]))
    return sorted(stages, key=lambda stretch: stretch.begins)


def moment(phase: str, whole: list[Stretch], draw: random.Random) -> Moment:
    """A moment of a phase, at random, by the stages of a whole run."""
    (libraries,) = (stretch for stretch in whole if stretch.stage == LIBRARIES)
    (model,) = (stretch for stretch in whole if stretch.stage == MODEL)
    (training,) = (stretch for stretch in whole if stretch.stage == TRAINING)
    end = max(stretch.ends for stretch in whole)
    if phase == "any time":
        return Moment("", 1, draw.uniform(0, end - libraries.begins))

    if phase == "making":
        of_phase = [stretch for stretch in whole if stretch.begins < libraries.begins]
    elif phase == "pairs":
        return _between(libraries, libraries.ends, training.begins, draw)
    elif phase == "reference":
        of_phase = [stretch for stretch in whole if stretch.stage.startswith(REFERENCE)]
    elif phase == "steps":
        of_phase = [training]
    elif phase == "checkpoint":
        of_phase = [Stretch(CHECKPOINT, *stretch[1:]) for stretch in whole if stretch.stage.startswith(CHECKPOINT)]
        of_phase = of_phase[:3]  # of a run that goes on, fewer are left
    elif phase == "model":
        of_phase = [model]
    elif phase == "files":
        of_phase = [stretch for stretch in whole if stretch.stage.startswith(FILE) and stretch.begins > libraries.ends]
    else:
        return _between(model, model.ends, end, draw)
    chosen = draw.choice(of_phase)
    number = 1 + [stretch for stretch in of_phase if stretch.stage == chosen.stage].index(chosen)
    return Moment(chosen.stage, number, draw.uniform(0, chosen.ends - chosen.begins))


def _between(stretch: Stretch, begins: float, ends: float, draw: random.Random) -> Moment:
    """A moment between two times, told from the beginning of a stage before them."""
    return Moment(stretch.stage, 1, draw.uniform(begins, ends) - stretch.begins)


def went_on(said: str) -> str:
    """How the next command began: what it says of the run that was killed."""
    for line in said.splitlines():
        for words in ("goes on after step", "has no whole checkpoint: it begins anew", "was stopped before its end"):
            if words in line:
                return words + line.partition(words)[2].partition(".")[0]
    return "it was killed again before it said"


def weights_of(run: Path) -> dict[str, str]:
    """File -> SHA-256, of the finished weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "model").glob("*.safetensors")}


def results_of(run: Path) -> dict[str, Any]:
    """What a finished run has come to, but for how long it took."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timeless = [{name: value for name, value in row.items() if not name.endswith(OF_TIME)} for row in log]
    results: dict[str, Any] = {"weights": weights_of(run), "metrics.jsonl": timeless}
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    results["evaluation.json"] = {when: evaluation[when] for when in ("before", "after")}
    for name in ("pairs.jsonl", "samples.jsonl"):
        results[name] = (run / name).read_text(encoding="utf-8")
    results["files"] = sorted(path.name for path in run.iterdir())
    return results


def waiting(runs: Path, files: list[str]) -> list[Path]:
    """The runs that have a folder and have not come to what a finished one has in it."""
    return [run for run in runs.glob("*") if sorted(path.name for path in run.iterdir()) != files]


def kill(place: Place, phases: list[str], whole: list[Stretch], files: list[str], draw: random.Random) -> Counter[str]:
    """Kill a run in each of these phases, and go on until all have finished; how often what was seen.

    `files`: what a finished run has in its folder. RuntimeError where one cannot go on.
    """
    seen: Counter[str] = Counter()
    kills = 0
    was_killed = False
    while True:
        phase = phases[kills] if kills < len(phases) else None
        if phase in REMADE:
            shutil.rmtree(place.cache / REMADE[phase], ignore_errors=True)
        going_on = ["--resume"] if waiting(place.runs, files) else []
        code = place.train(*going_on, dies_in=moment(phase, whole, draw) if phase else None)
        said = place.said.read_text(encoding="utf-8", errors="replace")
        if was_killed:
            how = went_on(said) if going_on else "a new run, as that one had no folder yet, or was whole"
            seen[how.rstrip("0123456789, ")] += 1
            print(f"{'':12}then: {how}", flush=True)

        last = place.told()[-1]
        was_killed = "dies_in" in last
        if was_killed:
            kills += 1
            stage = last["dies_in"] or "between two stages"
            print(f"{kills:3}  {phase}, {last['seconds']:.1f} s: {stage}, in {last['at']}")
            half_written = place.half_written()
            print(f"{'':12}half-written: {', '.join(half_written) or 'nothing'}", flush=True)
            seen["something half-written at the kill"] += bool(half_written)
            continue
        if code != 0:
            raise RuntimeError(f"It ended with {code}:\n{said}")
        print(f"{'':12}finished", flush=True)
        if phase is None:
            return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", default=["quickstart"], help="a recipe, and what of it is changed")
    parser.add_argument("--kind", choices=KINDS, default="lora", help="what is trained of quickstart")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_intermixed_args()

    folder = Path(tempfile.mkdtemp(prefix="dpo-recipes-kills-"))
    words = [*given.words, *KINDS[given.kind]]
    print(f"{' '.join(words)}: in {folder}", flush=True)
    place = Place(folder, words)
    if place.train() != 0:
        print(place.said.read_text())
        return 1
    whole = stretches(place.told())
    (unkilled,) = place.runs.iterdir()
    expected = results_of(unkilled)
    print(f"Without a kill: {whole[-1].ends:.0f} s.", flush=True)

    turns = [PHASES[kill % len(PHASES)] for kill in range(given.kills)]
    if whole[0].stage != LIBRARIES:  # the recipe makes its data
        turns[:1] = ["making"]
    try:
        seen = kill(place, turns, whole, expected["files"], random.Random(given.seed))
    except RuntimeError as error:
        print(error)
        return 1

    for what, times in seen.most_common():
        print(f"{times:3} times: {what}")
    runs = [run for run in place.runs.iterdir() if run != unkilled]
    differing = []
    for run in runs:
        results = results_of(run)
        differing += [f"{run.name}: {name}" for name, value in expected.items() if results[name] != value]
    left = place.half_written()
    print(f"{len(turns)} kills, {len(runs)} runs finished. Not as without a kill: {', '.join(differing) or 'nothing'}.")
    print(f"Half-written in the end: {', '.join(left) or 'nothing'}.")
    strangers = [path.relative_to(folder).as_posix() for path in place.temporary.iterdir()]
    print(f"Left in TMPDIR, where the system cleans up: {', '.join(strangers) or 'nothing'}.")
    return 1 if differing or left else 0


if __name__ == "__main__":
    sys.exit(main())
