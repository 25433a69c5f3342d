"""A real model of 135 M parameters learns from your own pairs, on a CPU and without a hub.

Group     To begin with
What      SmolLM2-135M-Instruct comes out of a PyPI package (93 MB), as in smollm2_135m_cpu; the pairs are yours. Small
          enough to try what a data set teaches before a model is rented for it.
Source    Loss and beta are TRL's defaults (sigmoid, 0.1); the rate is our own choice, ten times that of the
          alignment handbook's adapters, as the model is small and the pairs are few.
Hardware  Any CPU with 6 GB of memory.
Command   dpo-recipes train smollm2_135m_my_pairs data.path=my_pairs.jsonl
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards. 1,039 pairs of polite and impolite answers to
          short instructions (rasbt/LLMs-from-scratch, chapter 7) took the held-out ones from 50 to 84 % (72 to 91 %).
"""

from dpo_recipes import Data, LoRA, Recipe, smollm2

recipe = Recipe(
    model="{prepared}/model",
    data=Data("./my_pairs.jsonl"),  # <- yours: a json, jsonl, csv or parquet file, or a name on the hub
    adapter=LoRA(r=16, alpha=32),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-5,
    global_batch_size=16,
    num_train_epochs=1,
    max_length=512,
    prepare=smollm2.make_model,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
