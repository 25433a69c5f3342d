"""`doctor` on machines that this one is not: GPUs, drivers, hubs, caches and versions are put in its place."""

from __future__ import annotations

import importlib
import urllib.error
import urllib.request
from contextlib import nullcontext
from http.client import RemoteDisconnected
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import config as datasets_config
from huggingface_hub import constants

from dpo_recipes.errors import Finding
from dpo_recipes.recipe.resolve import Device
from dpo_recipes.runs import environment

module = importlib.import_module("dpo_recipes.commands.doctor")
ORDER = ["versions", "machine", "GPU", "attention", "hub", "cache of models", "cache of data sets", "cache of prepared"]


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A healthy machine without a GPU, online; `machine.gpus(...)` puts some in."""
    monkeypatch.setattr(environment, "versions", lambda: Finding("pass", "versions", "as tested: all"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(environment, "cache", lambda: tmp_path / "own" / "dpo-recipes")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**11))
    monkeypatch.setattr(module, "here", lambda: Device("cpu"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")

    def gpus(*names: str, served: bool = True, native: bool = True, cuda: str | None = "13.0") -> None:
        def of(value):
            def ask(n):
                assert served, "the driver does not serve CUDA"
                return value(n)

            return ask

        monkeypatch.setattr(module, "here", lambda: Device("cuda" if names else "cpu", bf16=True))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: served)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_name", of(lambda n: names[n]))
        monkeypatch.setattr(torch.cuda, "mem_get_info", of(lambda n: (60 * 10**9, 80 * 10**9)))
        monkeypatch.setattr(torch.cuda, "device", lambda n: nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)

    return SimpleNamespace(gpus=gpus)


def look() -> list[Finding]:
    return list(module.doctor())


def of(name: str) -> Finding:
    [finding] = [finding for finding in look() if finding.name == name]
    return finding


def known() -> list[str]:
    found = [finding for finding in look() if finding.name == "known problem"]
    assert {finding.level for finding in found} <= {"warn"}
    return [finding.text for finding in found]


@pytest.mark.slow
def test_a_healthy_machine_passes_in_one_order():
    found = look()
    assert [finding.name for finding in found] == ORDER
    assert {finding.level for finding in found} == {"pass"}
    assert of("machine").text.endswith(f" cores, torch {torch.__version__}")
    assert of("GPU").text == "none: training runs on the CPU, in fp32"


def test_the_real_machine_is_looked_at_without_its_hub(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = look()
    assert [finding.name for finding in found if finding.name != "known problem"] == ORDER
    assert all(isinstance(finding, Finding) and finding.text for finding in found)


# ------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.slow
def test_a_gpu_is_named_with_its_memory_and_the_kernel_that_is_switched_off(machine, monkeypatch):
    machine.gpus("NVIDIA H200")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    assert of("GPU 0") == Finding("pass", "GPU 0", "NVIDIA H200, 60.0 of 80.0 GB free; bf16, fp16, fp32")
    assert not [finding for finding in look() if finding.name == "GPU"]
    [text] = known()
    assert text.startswith("cuDNN attention's gradients can be NaN") and "`train` switches it off" in text
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu130")
    assert known() == []


def test_a_gpu_that_only_emulates_bf16_is_a_warning(machine):
    machine.gpus("Tesla T4", native=False)
    assert of("GPU 0").level == "warn"
    assert "fp16 and fp32, bf16 is only emulated" in of("GPU 0").text


@pytest.mark.slow
def test_several_gpus_are_one_too_many(machine, monkeypatch):
    machine.gpus("A", "B")
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert [finding.name for finding in look() if finding.name.startswith("GPU")] == ["GPU 0", "GPU 1"]
    [said] = known()
    assert "one process uses one: `train RECIPE --launch ddp` uses all" in said


def test_a_driver_that_is_too_old_is_a_fail_and_its_gpus_are_not_asked(machine):
    machine.gpus("A", "B", served=False)  # torch counts them without CUDA
    assert of("GPU") == Finding("fail", "GPU", "The driver does not serve CUDA 13.0, torch's own: update it.")
    assert known() == []


def test_a_build_of_torch_without_cuda_beside_a_gpu_is_a_fail(machine):
    machine.gpus("A", served=False, cuda=None)
    assert of("GPU").level == "fail"
    assert of("GPU").text == f"torch {torch.__version__} is built without CUDA: install one that has it."


def test_a_gpu_that_the_user_hides_is_no_fail(machine, monkeypatch):
    machine.gpus(served=False)
    assert of("GPU") == Finding("pass", "GPU", "none: training runs on the CPU, in fp32")


def test_an_apple_gpu_and_a_cpu_with_the_repacking_kernel(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert of("GPU").text == "an Apple GPU: fp32"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    [text] = known()
    assert "bitsandbytes repacks 4-bit weights" in text and "`train` prevents it" in text


def test_attention_kernels_are_those_that_are_on(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    monkeypatch.setattr(module, "find_spec", lambda name: name == "flash_attn" or None)
    assert of("attention").text == "torch's flash, mem_efficient, math; installed beside it: flash_attn"


# ------------------------------------------------------------------------------------------------ hub, caches, versions


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("[Errno -2] Name or service not known"),
        TimeoutError("timed out"),
        urllib.error.HTTPError("u", 503, "Service Unavailable", {}, None),
        RemoteDisconnected("closed"),
        ValueError("unknown url type: 'hub'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_does_not_answer_is_a_warning_with_its_address(monkeypatch, error):
    def refuse(url, timeout):
        assert url == constants.ENDPOINT and timeout <= 5
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    finding = of("hub")
    assert finding.level == "warn" and finding.text.startswith(f"{constants.ENDPOINT} does not answer (")
    assert str(error) in finding.text and "only local and cached models and data sets" in finding.text


def test_offline_mode_asks_nothing_and_is_said(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("it was asked"))
    text = "HF_HUB_OFFLINE is set: only local and cached models and data sets can be used."
    assert of("hub") == Finding("warn", "hub", text)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_or_is_nearly_full_is_a_warning(monkeypatch, tmp_path):
    assert of("cache of models") == Finding("pass", "cache of models", f"{tmp_path / 'hub'}: 100 GB free")
    asked = []
    monkeypatch.setattr(module.os, "access", lambda path, mode: asked.append(Path(path)) or path != tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    finding = of("cache of models")
    assert finding.level == "warn" and finding.text.endswith("100 GB free, and it cannot be written")
    assert asked == [tmp_path / "hub", tmp_path, tmp_path]  # of a cache that is not there, the folder that is
    assert of("cache of data sets").level == "pass"
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 10**9))
    assert of("cache of prepared").level == "warn" and ": 4 GB free" in of("cache of prepared").text


def test_other_versions_are_a_warning(monkeypatch):
    warned = Finding("warn", "versions", "torch 9.9, tested 2.13.0.")
    monkeypatch.setattr(environment, "versions", lambda: warned)
    assert look()[0] == warned


# ------------------------------------------------------------------------------------------------------------- clashes


@pytest.fixture
def packages(monkeypatch):
    """packages({name: (version, requirements)}): what is installed, and nothing else."""

    def install(entries: dict[str, tuple[str, list[str]]]) -> None:
        def entry(name):
            if name.replace("_", "-") not in entries:
                raise metadata.PackageNotFoundError(name)
            return entries[name.replace("_", "-")]

        monkeypatch.setattr(module.metadata, "version", lambda name: entry(name)[0])
        monkeypatch.setattr(module.metadata, "requires", lambda name: entry(name)[1])

    return install


def clashes() -> list[str]:
    return [finding.text for finding in module._clashes()]


def test_a_package_that_another_does_not_take_is_a_warning_with_both(packages):
    needs = ["torch>=2.6", 'vllm<=0.31.0,>=0.22.0; extra == "vllm"', 'other<1; python_version < "3.0"']
    packages({"trl": ("1.16.0", needs), "vllm": ("0.40.1", []), "torch": ("2.13.0+cpu", []), "other": ("2", [])})
    [text] = clashes()
    assert text == (
        "vllm 0.40.1 is installed, and trl 1.16.0 takes vllm<=0.31.0,>=0.22.0 only. One that fits: pip install "
        '"vllm<=0.31.0,>=0.22.0"'
    )
    packages({"trl": ("1.16.0", needs), "vllm": ("0.25.0", []), "torch": ("2.13.0+cpu", [])})
    assert clashes() == []


def test_what_pulls_a_shared_package_back_is_named(packages):
    packages({"trackio": ("0.3", ["huggingface-hub<1.0.0"]), "huggingface-hub": ("1.31.0", [])})
    assert clashes()[0].startswith("huggingface-hub 1.31.0 is installed, and trackio 0.3 takes huggingface-hub<1.0.0")


def test_nothing_clashes_among_the_tested_versions():
    assert clashes() == []
