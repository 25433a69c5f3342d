"""A mix of three losses, as in mixed preference optimisation, on text: Zephyr with LoRA.

Group     Losses and methods
What      DPO ranks the answers, a classifier's loss (bco_pair) asks that each be good or bad by itself, and the
          likelihood of the chosen one keeps it from being forgotten. Made for models that see; the losses are the same
          for text.
Source    2411.10442, sections 3.2 and 7: 0.8 sigmoid + 0.2 bco_pair + 1.0 sft, learning rate 5e-6. Ours: a text model
          and its pairs, beta 0.1 (TRL's default), LoRA of rank 32, for which that rate is the usual one, 64 pairs a
          step, cosine with 10 % warm-up. The sft term is a mean over the tokens of a forward, so that micro_batch_size
          is part of it.
Hardware  Made for one GPU of 24 GB; not yet measured on one.
Command   dpo-recipes train zephyr_7b_mpo
Expect    The loss starts at 0.8 x 0.693 + 0.2 x 1.386 and the loss of the chosen answers; the last falls first.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="alignment-handbook/zephyr-7b-sft-full",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=LoRA(r=32),
    loss={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0},
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=64,
    micro_batch_size=2,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
