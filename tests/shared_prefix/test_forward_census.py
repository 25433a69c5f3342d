"""A sample of the census of Transformers' causal language models; census_architectures.py takes them all."""

from __future__ import annotations

import census_architectures
import pytest

READ_ONCE = [
    "bitnet",
    "cohere2",
    "deepseek_v3",
    "exaone4",
    "gemma3n_text",
    "gemma4",  # which sees and hears too, and is given text
    "glm4_moe",
    "gpt_oss",
    "granite_swa",
    "granitemoe",
    "minicpm3",
    "ministral",
    "olmo3",
    "opt",
    "starcoder2",
    "vaultgemma",
]
REFUSED = {
    "falcon": "it has attention classes of its own",
    "lfm2": "it has layers of type conv",
    "llama4_text": "it has layers of type chunked_attention",
    "mamba2": "it has recurrent layers",
    "qwen3_next": "it has recurrent layers",
}
FELL_BACK = {
    "phimoe": "0 of 2 layers with a sliding window name it",
    "roberta": "log-probabilities differ from TRL's own",  # it counts positions from the padding token's on
    "stablelm": "0 of 2 layers split their attention",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*READ_ONCE, *REFUSED, *FELL_BACK])
def test_census(name, caplog):
    """Exact, or refused with a reason, or read as TRL reads it."""
    caplog.set_level("CRITICAL", "transformers")  # of the small sizes
    result = census_architectures.look_at(name)
    if name in READ_ONCE:
        assert result.outcome == "exact" and result.nats <= 1e-5 and result.gradient <= 2e-5, result
    elif name in REFUSED:
        assert (result.outcome, result.words) == ("refused", REFUSED[name])
    else:
        assert result.outcome == "fell back" and result.words.startswith(FELL_BACK[name]), result


def test_the_program_ends_with_1_where_numbers_are_wrong(monkeypatch, capsys):
    def look_at(name):
        return census_architectures.Result(name, "WRONG" if name == "b" else "exact", "", nats=0.5, gradient=0.1)

    monkeypatch.setattr(census_architectures, "look_at", look_at)
    assert census_architectures.main(["a"]) == 0 and census_architectures.main(["a", "b"]) == 1
    assert "WRONG         1" in capsys.readouterr().out


def test_what_is_wrong_in_a_model_is_called_so(monkeypatch):
    monkeypatch.setattr("dpo_recipes.shared_prefix.forward._distrust", lambda *_: None)
    result = census_architectures.look_at("stablelm")
    assert result.outcome == "WRONG" and result.nats > 0.01
