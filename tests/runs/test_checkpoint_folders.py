"""Which checkpoints are whole, where machines without a disk in common have written them too."""

from __future__ import annotations

from dpo_recipes.runs.checkpoint_folders import is_whole, mark_whole, sizes_of, whole_checkpoints


def test_a_checkpoint_is_whole_when_what_every_machine_has_written_is_there(tmp_path):
    here, there = tmp_path / "here/checkpoint-4", tmp_path / "there/checkpoint-4"
    for folder, name in ((here, "model.safetensors"), (there, "rng_state_1.pth")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"12345")
    mark_whole(here, sizes_of(there))
    assert not is_whole(here)  # the other machine's file has not come yet

    (here / "rng_state_1.pth").write_bytes(b"123")
    assert not is_whole(here)
    (here / "rng_state_1.pth").write_bytes(b"12345")
    assert is_whole(here) and whole_checkpoints(here.parent) == [here]


def test_on_a_disk_in_common_all_have_seen_the_same(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    mark_whole(tmp_path, sizes_of(tmp_path))
    assert is_whole(tmp_path)
    assert sizes_of(tmp_path / "none") == {}
