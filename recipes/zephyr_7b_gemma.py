"""Zephyr 7B Gemma: the SFT model on 7,000 chosen pairs, all weights.

Group     Published runs
What      Few pairs, twice: Argilla's mix of 7,000 good ones instead of 61,135 of UltraFeedback.
Source    huggingface/alignment-handbook, recipes/zephyr-7b-gemma/dpo/config_full.yaml: sigmoid, beta 0.05, learning
          rate 5e-7, cosine with 10 % warm-up, 2 pairs x 8 accumulation on 8 GPUs (128), two epochs, 1,024 tokens. One
          departure: its limit of 512 tokens for a prompt no longer exists in TRL 1.16.
Hardware  The authors name 8 GPUs of 80 GB. Here it is one process: dpo-recipes check zephyr_7b_gemma --gpu 141GB
Command   dpo-recipes train zephyr_7b_gemma
Expect    Loss from 0.693 downwards, with a step down where the second epoch begins, as pairs come back: the guard calls
          that epoch_jump.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="HuggingFaceH4/zephyr-7b-gemma-sft-v0.1",
    data=Data("argilla/dpo-mix-7k", train="train", eval="test"),
    adapter=None,
    loss="sigmoid",
    beta=0.05,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=2,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
