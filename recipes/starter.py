"""My own model on my own pairs, with LoRA.

Group     To begin with
What      A chat model learns to prefer the `chosen` answer of each pair to the `rejected` one. Two values are yours to
          set, both marked below: the model, and the file or data set with the pairs.
Source    Loss, beta and length are TRL's defaults (sigmoid, 0.1, 1,024 tokens), and so is the rank of 16. Rate and
          schedule are those of the alignment handbook's adapters (5e-6, cosine, 10 % warm-up), for one epoch of 16
          pairs a step.
Hardware  Whatever the model needs, from a CPU for a tiny one: dpo-recipes check starter --gpu 24GB
Command   dpo-recipes train starter
          or, without a change here: dpo-recipes train starter model=org/name data.path=pairs.jsonl
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards, margins slowly growing. Where nothing
          moves, there are too few pairs, or the rate is too low: try learning_rate=5e-5.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="./my_model",  # <- yours: a name on the hub, such as Qwen/Qwen2.5-0.5B-Instruct, or a folder
    data=Data("./my_pairs.jsonl"),  # <- yours: a json, jsonl, csv or parquet file, or a name on the hub
    adapter=LoRA(r=16),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=16,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
