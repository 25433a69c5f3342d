"""Tulu 3 8B: length-normalised DPO on a mixture of 271,409 pairs, all weights.

Group     Published runs
What      The preference step of Tulu 3. Log-ratios are divided by the length of the answer, so that longer answers gain
          nothing by being long; hence a beta of 5, where plain DPO takes 0.01 to 0.5.
Source    allenai/open-instruct, configs/train_configs/tulu3/tulu3_dpo_8b.yaml: dpo_norm (TRL's sigmoid_norm), beta 5,
          learning rate 5e-7, linear with 10 % warm-up, no weight decay, 1 pair x 16 accumulation on 8 GPUs (128), one
          epoch, 2,048 tokens. Ours: 1 % is held out, as the data set has no other split.
Hardware  The authors' file is made for 8 GPUs. Here it is one process: dpo-recipes check tulu3_8b --gpu 141GB
Command   dpo-recipes train tulu3_8b
Expect    Loss from 0.693 downwards. Margins are of log-ratios per token, times 5: do not compare them with plain DPO.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="allenai/Llama-3.1-Tulu-3-8B-SFT",
    data=Data("allenai/llama-3.1-tulu-3-8b-preference-mixture", train="train", eval=0.01),
    adapter=None,
    loss="sigmoid_norm",
    beta=5.0,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=2048,
    trl={"lr_scheduler_type": "linear", "warmup_steps": 0.1},
)
