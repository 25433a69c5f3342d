"""Mixed preference optimisation of a small model that sees: SmolVLM on RLAIF-V, with LoRA.

Group     Losses and methods
What      DPO ranks the answers about an image, a classifier's loss (bco_pair) asks that each be good or bad by itself,
          and the likelihood of the chosen one keeps it from being forgotten: the mix that InternVL was tuned with. The
          adapter is on the part that reads text; what reads images stays as it is.
Source    2411.10442, sections 3.2 and 7, and TRL's paper index: 0.8 sigmoid + 0.2 bco_pair + 1.0 sft, learning rate
          5e-6. Pairs, 4 x 8 of them a step and one epoch: Hugging Face's cookbook, "Fine-Tuning a Vision Language Model
          with TRL using MPO", which tunes Qwen2.5-VL-3B. SmolVLM on these pairs with LoRA of rank 16: the card of
          SmolVLM-Instruct, whose own run is plain DPO. Ours: 2,048 tokens, cosine with 10 % warm-up, beta 0.1 (TRL's
          default).
Hardware  Made for one GPU of 24 GB; not yet measured on one. An image of 640x480 makes 1,083 tokens.
Command   dpo-recipes train smolvlm_mpo
Expect    The loss starts at 0.8 x 0.693 + 0.2 x 1.386 and the loss of the chosen answers; the last falls first.

The 6.9 GB of pairs are read once; their images are written to the cache, 6.6 GB, where each is kept once.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolVLM-Instruct",
    data=Data("HuggingFaceH4/rlaif-v_formatted", train="train", eval="test"),
    adapter=LoRA(r=16),
    loss={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0},
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=32,
    micro_batch_size=4,
    num_train_epochs=1,
    max_length=2048,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
