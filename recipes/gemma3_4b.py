"""Gemma-3-4B-it on UltraFeedback with LoRA, on text alone.

Group     One GPU
What      A model that sees as well; its pairs here are text, and its vision tower stays as it is.
Source    No published run of this model is followed. Ours: TRL's own DPO script for adapters (rank 32, alpha 16,
          learning rate 5e-6, 16 pairs a step, one epoch) and the alignment handbook's schedule (cosine, 10 % warm-up);
          beta 0.1 and 1,024 tokens are TRL's defaults. The adapter is on the seven linear maps of each layer of the
          language model alone, by a pattern of their names, because all-linear would mean those of the vision tower
          too.
Hardware  Made for one GPU of 24 GB; not yet measured on one. Its head has 262,208 words.
Command   dpo-recipes train gemma3_4b
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards, margins slowly growing.

Gemma's chat template puts a system message before the first question. The model is behind Google's licence: accept it
on the hub, and log in.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="google/gemma-3-4b-it",
    data=Data("trl-lib/ultrafeedback_binarized", train="train", eval="test"),
    adapter=LoRA(r=32, alpha=16, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=16,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
