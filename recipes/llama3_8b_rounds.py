"""Rounds: Llama 3 8B Instruct samples answers, a reward model ranks them, it trains on them, three times.

Group     Losses and methods
What      Online iterative DPO. Each round samples with the policy of the round before; the reference stays the model of
          the first one. The prompts are a file of yours, 20,000 a round in the source.
Source    RLHFlow/Online-RLHF, run_loop.sh and configs/training_loop.yaml (2405.07863): 8 answers at temperature 1, the
          best against the worst, sigmoid, learning rate 5e-7, cosine, two epochs, 2,048 tokens, and the same reward
          model. Beta is TRL's 0.1, which the files leave alone. 1 pair x 16 accumulation is 128 pairs on 8 GPUs.
Hardware  The authors' scripts are made for 8 GPUs. In one process: dpo-recipes check llama3_8b_rounds --gpu 141GB
Command   dpo-recipes pairs llama3_8b_rounds --prompts p.jsonl -n 8 --pairing best_worst --rounds 3 --reference kept
          or one round by hand: dpo-recipes pairs llama3_8b_rounds --prompts p.jsonl -n 8 --pairing best_worst
          and then: dpo-recipes train llama3_8b_rounds
Expect    One table of the rounds: the reward rises in each, by less each time, and so does the KL.
"""

from dpo_recipes import Data, Recipe, RewardModel

recipe = Recipe(
    model="meta-llama/Meta-Llama-3-8B-Instruct",
    data=Data("./llama3_8b_rounds-pairs", train="train", eval="eval"),  # where `pairs` writes them
    adapter=None,
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=2,
    max_length=2048,
    reward=RewardModel("sfairXC/FsfairX-LLaMA3-RM-v0.1"),
    trl={"lr_scheduler_type": "cosine"},
)
