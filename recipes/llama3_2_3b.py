"""Llama-3.2-3B-Instruct on UltraFeedback with LoRA.

Group     One GPU
What      A Llama of the size that one consumer GPU trains well, in the settings of TRL's own DPO script.
Source    huggingface/trl, trl/scripts/dpo.py (its LoRA example, for Qwen2-0.5B-Instruct): rank 32, alpha 16, learning
          rate 5e-6, 2 pairs x 8 accumulation, one epoch of trl-lib/ultrafeedback_binarized; beta 0.1 and 1,024 tokens
          are TRL's defaults. Ours: the model, a cosine with 10 % warm-up as in the alignment handbook's adapters, and
          all of the epoch, where the example stops after 1,000 steps.
Hardware  Made for one GPU of 24 GB; not yet measured on one.
Command   dpo-recipes train llama3_2_3b
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards, margins slowly growing.

Llama 3.2's chat template prints today's date, so it is pinned to the model's release, and tokens do not change from day
to day. The model is behind Meta's licence: accept it on the hub, and log in.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="meta-llama/Llama-3.2-3B-Instruct",
    data=Data("trl-lib/ultrafeedback_binarized", train="train", eval="test", template_date="2024-09-25"),
    adapter=LoRA(r=32, alpha=16),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=16,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
