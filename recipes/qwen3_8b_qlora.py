"""Qwen3-8B on UltraFeedback with QLoRA, answers without thinking.

Group     One GPU
What      The largest model here for one consumer GPU: a 4-bit NF4 base under an adapter.
Source    No published run of this model is followed. Ours: the alignment handbook's QLoRA run
          (recipes/zephyr-7b-beta/dpo/config_qlora.yaml) on another model: learning rate 5e-6, cosine with 10 % warm-up,
          16 pairs a step, one epoch, 1,024 tokens, paged AdamW in 32 bit. Its beta of 0.01 follows a fresh SFT model;
          from a model that has been preference-tuned before, we stay nearer: 0.1, and rank 32.
Hardware  Made for one GPU of 24 GB; not yet measured on one.
Command   dpo-recipes train qwen3_8b_qlora
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards, margins slowly growing.

Qwen3 thinks unless told otherwise and UltraFeedback's answers do not, so thinking is off.
"""

from dpo_recipes import Data, QLoRA, Recipe

recipe = Recipe(
    model="Qwen/Qwen3-8B",
    data=Data(
        "HuggingFaceH4/ultrafeedback_binarized",
        train="train_prefs",
        eval="test_prefs",
        chat_template_kwargs={"enable_thinking": False},
    ),
    adapter=QLoRA(r=32),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=16,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "optim": "paged_adamw_32bit"},
)
