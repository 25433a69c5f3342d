"""Quickstart: a shop assistant of mixed manners learns to answer what was asked, politely. Nothing is downloaded.

Group     To begin with
What      The first run makes a world from the seed: conversations, a tokenizer, a Llama of 0.47 M parameters that
          learns to answer as they do, and 3,500 preference pairs ranked from that model's own replies by a reward that
          is computed exactly (dpo_recipes/toyworld.py). Then DPO with LoRA; the reference is the adapter switched off.
Source    Our own measurements on six worlds (seeds 0 to 4, and 42). A lower beta goes further from the reference and
          starts to lose the grammar, which costs more reward than it gains.
Hardware  Any CPU; about 70 seconds on two idle cores from nothing, over half of them for the world, made once a seed.
Command   make train            or: dpo-recipes train quickstart
Expect    On held-out prompts the reward rises from about 0.1 to 0.7-1.1 (of at most 2.5) and the win rate over the
          reference to 0.69-0.78, at a KL of 0.6-1.1 nats, where the best that any policy could do is 1.1-1.5.
"""

from dpo_recipes import Data, LoRA, Recipe, toyworld

recipe = Recipe(
    model="{prepared}/model",
    data=Data("{prepared}/pairs", train="train", eval="eval"),
    adapter=LoRA(r=16, alpha=32),
    loss="sigmoid",
    beta=1.5,
    learning_rate=1e-3,
    global_batch_size=16,
    micro_batch_size=16,
    num_train_epochs=1,
    max_length=128,
    dtype="float32",
    prepare=toyworld.make,
    reward=toyworld.reward,
    measures={"in_grammar": toyworld.in_grammar},
    trl={
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": False,
        "per_device_eval_batch_size": 64,
    },
)
