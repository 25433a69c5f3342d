"""Rows that are read on another device than the CPU, which stands in for a GPU: the CPU's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from another_device import NAME, needs_compiler, program, register
from peft import LoraConfig, get_peft_model
from reading_pairs import ALL, ARCHITECTURES, BATCH, gradients, load, off, two
from varlen_in_torch import Varlen

from dpo_recipes.shared_prefix import attention

pytestmark = [pytest.mark.slow, needs_compiler]


def read(library: str, kernel: str, *folders: str) -> None:
    """Prints of each model, as it is and with LoRA, what a row elsewhere differs by from TRL's own forward on the CPU.

    (kind of model, log-probabilities, gradients), relative, as JSON. `kernel`: "varlen" or "sdpa".
    """
    register(library)
    varlen = Varlen()
    if kernel == "varlen":
        attention.varlen = varlen.of_torch_2_12
        attention.VARLEN_DTYPES = {torch.float32}
        attention._has_flash_kernels = lambda device: device.type == NAME
    elsewhere = {name: value.to(NAME) if isinstance(value, torch.Tensor) else value for name, value in BATCH.items()}
    found = []
    for folder in folders:
        for lora in (False, True):
            model = load(folder)
            if lora:
                get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
            bare, mine, _ = two(model, require=True)
            theirs = bare(**BATCH).log_probs
            theirs.sum().backward()
            mine.to(NAME).tie_weights()
            ours = mine(**elsewhere).log_probs
            ours.sum().backward()
            assert ours.device.type == NAME
            assert (varlen.calls > 0) == (kernel == "varlen")
            varlen.calls = 0
            found.append((Path(folder).name, off(ours.cpu(), theirs), off(gradients(mine).cpu(), gradients(bare))))
    print(json.dumps(found))


@pytest.mark.parametrize(
    ("kernel", "kinds"),
    [
        ("sdpa", [*ARCHITECTURES, "gemma2"]),  # mixtures count their experts by a kernel that such a device lacks
        ("varlen", ["llama", "mistral"]),
    ],
    ids=["sdpa", "varlen"],
)
def test_a_row_is_read_where_its_model_is(tiny, tmp_path, another_device, kernel, kinds):
    folders = [str(tiny(kind, **ALL[kind])) for kind in kinds]
    found = json.loads(program(read, another_device, kernel, *folders, cwd=tmp_path).splitlines()[-1])
    assert len(found) == 2 * len(folders)
    for name, logps, gradient in found:
        assert logps <= 5e-6 and gradient <= 5e-6, name
