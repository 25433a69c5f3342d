"""IPO instead of DPO: the Zephyr SFT model on UltraFeedback, all weights.

Group     Losses and methods
What      A squared loss with a target for the margin, so that no pair is pushed further once it is ranked well.
Source    huggingface/alignment-handbook, recipes/pref_align_scan/dpo/config_zephyr.yaml (loss_type ipo): learning rate
          5e-7, cosine with 10 % warm-up, 8 pairs x 2 accumulation on 8 GPUs (128), one epoch; of its betas, 0.01 and
          0.1 to 0.9, the smallest was best for this model (huggingface.co/blog/pref-tuning). Its file names no length:
          1,024 is TRL's default. TRL's ipo averages over the tokens of an answer; the paper's eq. 17 sums, which is
          ipo_sum here.
Hardware  As zephyr_7b_full. In one process: dpo-recipes check zephyr_7b_ipo --gpu 141GB
Command   dpo-recipes train zephyr_7b_ipo
Expect    The loss starts at 1 / (2 beta)^2 = 2,500, not at 0.693: the target is 50 nats per token, which no policy
          reaches, so that with this beta the loss falls almost linearly with the margin.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="alignment-handbook/zephyr-7b-sft-full",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="ipo",
    beta=0.01,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
