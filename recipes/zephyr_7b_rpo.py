"""RPO: DPO with the likelihood of the chosen answer beside it, so that it is not forgotten, all weights.

Group     Losses and methods
What      The term that keeps the chosen answers likely, in the weak dose of the paper: sft_weight=0.005, which any
          other recipe takes too. Where chosen_forgotten speaks, more of it helps: the README has a measurement.
Source    2405.16436, section 5 and appendix E.1: DPO and 0.005 times the SFT loss, beta 0.01, learning rate 5e-7, one
          epoch. Ours: the model, batch and schedule of the alignment handbook's run on the same pairs, zephyr_7b_full.
Hardware  As zephyr_7b_full. In one process: dpo-recipes check zephyr_7b_rpo --gpu 141GB
Command   dpo-recipes train zephyr_7b_rpo
Expect    Loss from 0.693 + 0.005 times the loss of the chosen answers downwards; chosen log-probabilities fall less
          than in zephyr_7b_full.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="alignment-handbook/zephyr-7b-sft-full",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="sigmoid",
    sft_weight=0.005,
    beta=0.01,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
