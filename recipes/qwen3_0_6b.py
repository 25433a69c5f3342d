"""Qwen3-0.6B on UltraFeedback: the first example of TRL's own documentation, all weights.

Group     Published runs
What      TRL's quick start for DPO, with TRL's defaults written out.
Source    huggingface/trl, docs/source/dpo_trainer.md: Qwen/Qwen3-0.6B on trl-lib/ultrafeedback_binarized, all else
          DPOConfig's defaults: sigmoid, beta 0.1, learning rate 1e-6 falling linearly, 8 pairs a step, three epochs,
          1,024 tokens. Ours: thinking is off, because the answers of these pairs have no thoughts; as it comes, TRL
          would train the model to think nothing before each answer.
Hardware  Made for one GPU of 16 GB or more; not yet measured on one.
Command   dpo-recipes train qwen3_0_6b
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards; so many epochs show in the held-out loss.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="Qwen/Qwen3-0.6B",
    data=Data(
        "trl-lib/ultrafeedback_binarized",
        train="train",
        eval="test",
        chat_template_kwargs={"enable_thinking": False},
    ),
    adapter=None,
    loss="sigmoid",
    beta=0.1,
    learning_rate=1e-6,
    global_batch_size=8,
    num_train_epochs=3,
    max_length=1024,
    trl={"lr_scheduler_type": "linear"},
)
