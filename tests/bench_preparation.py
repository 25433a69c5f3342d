"""How long pairs take from a file to token ids: ours (read, checked, tokenised, reported) beside TRL's preparation.

Run it with `python tests/bench_preparation.py [rows]`. Both start from the same jsonl file, in the columns and about
the lengths of UltraFeedback, with empty caches, one after the other; TRL reads with `load_dataset` and keeps the two
columns that it takes. Prints wall seconds and their ratio.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

SCRATCH = tempfile.TemporaryDirectory(prefix="dpo-recipes-bench-")
os.environ |= {"HF_HOME": SCRATCH.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def write_pairs(path: Path, count: int, draw: random.Random) -> list[str]:
    """Pairs in the schema of HuggingFaceH4/ultrafeedback_binarized, of words that fall off as 1/rank; some texts."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, range(26, 0, -1), k=draw.randint(2, 9))) for _ in range(8000)]
    shares = [1 / (rank + 10) for rank in range(len(words))]

    def text(median: float, spread: float) -> str:
        return " ".join(draw.choices(words, shares, k=max(3, int(draw.lognormvariate(0, spread) * median))))

    texts = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt, chosen, rejected = f"{number} {text(110, 1)}", text(230, 0.7), text(200, 0.8)
            talks = [
                [{"content": prompt, "role": "user"}, {"content": reply, "role": "assistant"}]
                for reply in (chosen, rejected)
            ]
            row = {"prompt": prompt, "prompt_id": f"{number:064x}", "chosen": talks[0], "rejected": talks[1]}
            file.write(json.dumps({**row, "messages": talks[0], "score_chosen": 8.0, "score_rejected": 6.0}) + "\n")
            texts += [prompt, chosen] if number < 2000 else []
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
    from dpo_recipes.recipe.recipe import Data

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


def main(count: int = 60_000) -> None:
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
        start = time.perf_counter()
        found = work(path, tokenizer)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.1f} s {found}", flush=True)
    for name in list(seconds)[1:]:
        print(f"ours / {name}: {seconds['ours'] / seconds[name]:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
