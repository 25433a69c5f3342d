"""What training/checkpoint_files.py expects of the checkpoints that TRL's trainer, which is Transformers', writes.

Read again: `Trainer._save_checkpoint` whole, and `rotate_checkpoints` in trainer_utils.py.
"""

from __future__ import annotations

import inspect

from reading_trl import leaning
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints


def test_the_folder_has_the_number_of_the_step_and_older_ones_go_when_it_is_written():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert 'f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"' in source, leaning(
        "training/checkpoint_files.py", "the folder's name"
    )
    assert "run_dir = self._get_output_dir(trial=trial)" in source, leaning(
        "training/checkpoint_files.py", "where the folder lies"
    )
    written = source.index("self.state.save_to_json(")
    assert written < source.index("rotate_checkpoints("), leaning("training/checkpoint_files.py", "older ones go last")
    assert "save_total_limit=self.args.save_total_limit" in source, leaning(
        "training/checkpoint_files.py", "how many are kept"
    )


def test_the_arguments_are_the_one_pickle_that_we_remove():
    assert TRAINING_ARGS_NAME == "training_args.bin", leaning("training/checkpoint_files.py", "its name")
    source = inspect.getsource(Trainer._save)
    assert "torch.save(self.args, " in source, leaning("training/checkpoint_files.py", "it holds the arguments alone")


def test_older_checkpoints_are_removed_by_a_function_with_these_parameters():
    parameters = {"output_dir", "save_total_limit", "best_model_checkpoint"}
    known = inspect.signature(rotate_checkpoints).parameters
    assert parameters <= set(known), leaning("training/checkpoint_files.py", "the parameters of rotate_checkpoints")
