"""Zephyr 7B: the SFT model on UltraFeedback, all weights, as the alignment handbook trains it today.

Group     Published runs
What      The run behind zephyr-7b-dpo-full: one epoch at a beta of 0.01. The first Zephyr took three at 0.1; the
          handbook reports that this is as good, since labels of the data set were mended.
Source    huggingface/alignment-handbook, recipes/zephyr-7b-beta/dpo/config_full.yaml: sigmoid, beta 0.01, learning rate
          5e-7, cosine with 10 % warm-up, 8 pairs x 2 accumulation on 8 GPUs (128), one epoch, 1,024 tokens, AdamW. One
          departure: its limit of 512 tokens for a prompt no longer exists in TRL 1.16.
Hardware  The authors name 8 GPUs of 80 GB. Here it is one process: dpo-recipes check zephyr_7b_full --gpu 141GB
Command   dpo-recipes train zephyr_7b_full
Expect    Loss from 0.693 downwards. With beta this low the log-probabilities of both sides move far; watch the
          side-by-side answers for run-on text.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="alignment-handbook/zephyr-7b-sft-full",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="sigmoid",
    beta=0.01,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
