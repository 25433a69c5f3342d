"""What it takes to make token ids of a file of pairs: read, checked, tokenised, reported.

`python tests/bench_preparation.py [rows]` compares the time with that of TRL's preparation. Both start from the same
jsonl file, in the columns and about the lengths of UltraFeedback, with empty caches, one after the other; TRL reads
with `load_dataset` and keeps the two columns that it takes. Prints wall seconds, CPU seconds with those of the
processes that are started, and their ratios.

`python tests/bench_preparation.py memory 10000 100000 1000000` prepares so many short pairs, each number in a process
of its own, and prints the time, the most anonymous memory that the process held beyond what it held before the first
row was read (RssAnon of proc(5), which mapped files are no part of), the most that one of the processes held which it
started, and the bytes of the cache on the disk. `memory ultrafeedback ...` takes pairs of those lengths. Linux.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SCRATCH = tempfile.TemporaryDirectory(prefix="dpo-recipes-bench-")
os.environ |= {"HF_HOME": SCRATCH.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


# Medians of the words of prompt, chosen and rejected
ULTRAFEEDBACK = (110, 230, 200)
SHORT = (8, 12, 10)


def write_pairs(
    path: Path, count: int, draw: random.Random, medians: tuple[int, int, int] = ULTRAFEEDBACK
) -> list[str]:
    """Pairs in the schema of HuggingFaceH4/ultrafeedback_binarized, of words that fall off as 1/rank; some texts."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, range(26, 0, -1), k=draw.randint(2, 9))) for _ in range(8000)]
    cumulated = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))

    def text(median: float, spread: float) -> str:
        length = max(3, int(draw.lognormvariate(0, spread) * median))
        return " ".join(draw.choices(words, cum_weights=cumulated, k=length))

    texts = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = f"{number} {text(medians[0], 1)}"
            chosen, rejected = text(medians[1], 0.7), text(medians[2], 0.8)
            talks = [
                [{"content": prompt, "role": "user"}, {"content": reply, "role": "assistant"}]
                for reply in (chosen, rejected)
            ]
            row = {"prompt": prompt, "prompt_id": f"{number:064x}", "chosen": talks[0], "rejected": talks[1]}
            file.write(json.dumps({**row, "messages": talks[0], "score_chosen": 8.0, "score_rejected": 6.0}) + "\n")
            if number < 2000:
                texts += [prompt, chosen]
    return texts


def make_tokenizer(texts: list[str]):
    """Byte-level BPE of 16,000 tokens, trained on them, with a ChatML template."""
    from making import CHATML
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how = trainers.BpeTrainer(vocab_size=16000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, how)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|im_end|>")
    made.chat_template = CHATML
    return made


def ours(path: Path, tokenizer) -> dict:
    from dpo_recipes.data import preference_dataset as data
    from dpo_recipes.data import tokenize as tokens
    from dpo_recipes.recipe.data import Data

    read = data.read(Data(str(path), eval=0.01), {str(path): 1.0})
    how = {"text": read.text, "max_length": 1024, "ends": {tokenizer.eos_token_id}, "drop_truncated": False}
    parts = [tokens.prepare(split, tokenizer, **how, num_proc=None)[1] for split in (read.train, read.eval)]
    return {"pairs": sum(part["pairs"] for part in parts), "tokens": parts[0]["tokens"]}


def trls(path: Path, tokenizer, processes: int | None) -> dict:
    from accelerate import PartialState
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    PartialState()
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        rows = rows.select_columns(["chosen", "rejected"])
        bare = object.__new__(DPOTrainer)
        bare._tokenizer = tokenizer
        options = DPOConfig(output_dir=cache, max_length=1024, dataset_num_proc=processes, use_cpu=True, bf16=False)
        return {"pairs": len(bare._prepare_dataset(rows, tokenizer, options, "train"))}


def compare_times(count: int = 60_000) -> None:
    path = Path(SCRATCH.name) / "pairs.jsonl"
    tokenizer = make_tokenizer(write_pairs(path, count, random.Random(0)))
    import torch
    import trl  # both start with the libraries loaded

    print(f"{count:,} rows, TRL {trl.__version__}, torch {torch.__version__}, {os.cpu_count()} cores")
    seconds = {}
    for name, work in {
        "ours": ours,
        "ours again, from the cache": ours,
        "TRL, as it comes": lambda path, tokenizer: trls(path, tokenizer, None),
        "TRL, as many processes": lambda path, tokenizer: trls(path, tokenizer, len(os.sched_getaffinity(0))),
    }.items():
        seconds[name] = timed(lambda work=work: print(work(path, tokenizer), end=" "))
        print(f"{name}: {seconds[name][0]:.1f} s, CPU {seconds[name][1]:.1f} s", flush=True)
    for name, (wall, cpu) in list(seconds.items())[1:]:
        print(f"ours / {name}: {seconds['ours'][0] / wall:.2f}, CPU {seconds['ours'][1] / cpu:.2f}")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process and of those that it has started and that have ended)."""
    before = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - before[0], cpu_seconds() - before[1]


def cpu_seconds() -> float:
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure_memory(counts: list[int], medians: tuple[int, int, int] = SHORT) -> None:
    before = None
    for count in counts:
        path = Path(SCRATCH.name) / f"{count}.jsonl"
        write_pairs(path, count, random.Random(0), medians)
        process = subprocess.Popen([sys.executable, __file__, "one", str(path)], stdout=subprocess.PIPE, text=True)
        peak = 0
        of_workers = 0
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            of_workers = max([of_workers, *map(anonymous_memory, children(process.pid))])
            time.sleep(0.02)
        result = json.loads(process.communicate()[0].splitlines()[-1])
        grown = peak - result["before"]
        line = f"{count:,} rows, {path.stat().st_size / 1e6:,.0f} MB: {result['wall']:.1f} s, CPU {result['cpu']:.1f} s"
        line += f"; anonymous memory {grown / 1e6:.0f} MB more than before, {peak / 1e6:.0f} MB in all"
        line += f"; {of_workers / 1e6:.0f} MB in one of its workers; cache {result['cache'] / 1e6:,.0f} MB"
        if before:
            line += f"; {(grown - before[1]) / (count - before[0]):.0f} bytes a row more"
        print(line, flush=True)
        before = count, grown


def anonymous_memory(pid: int | str = "self") -> int:
    """Bytes of a process that no file backs; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def children(pid: int) -> list[str]:
    """The processes that a process has started from its main thread, and that have not ended."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []


def prepare_one(path: Path) -> None:
    """Prepare a file in this process, and print what it took as JSON."""
    with path.open(encoding="utf-8") as file:
        texts = [message["content"] for line in itertools.islice(file, 500) for message in json.loads(line)["chosen"]]
    tokenizer = make_tokenizer(texts)
    for library in ("torch", "dpo_recipes.data.preference_dataset", "dpo_recipes.data.tokenize"):
        importlib.import_module(library)  # so that no import is measured
    import datasets

    datasets.disable_progress_bars()
    before = anonymous_memory()
    wall, cpu = timed(lambda: ours(path, tokenizer))
    cache = sum(file.stat().st_size for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("*") if file.is_file())
    print(json.dumps({"before": before, "wall": wall, "cpu": cpu, "cache": cache}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["memory", "ultrafeedback", *counts]:
            measure_memory([int(count) for count in counts], ULTRAFEEDBACK)
        case ["memory", *counts]:
            measure_memory([int(count) for count in counts])
        case ["one", path]:
            prepare_one(Path(path))
        case rows:
            compare_times(*map(int, rows))
