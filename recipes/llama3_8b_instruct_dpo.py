"""Llama 3 8B Instruct on pairs of its own answers, ranked by PairRM: the SimPO authors' DPO baseline.

Group     Published runs
What      The setting Llama3-Instruct: five answers of the model itself to each UltraFeedback prompt, of which a judge
          chose the best and the worst. Pairs of its own answers move a model less far than those of others.
Source    princeton-nlp/SimPO, README (best values for DPO): beta 0.01, learning rate 7e-7; training_configs/
          llama-3-8b-instruct-simpo.yaml for what all its runs have alike: 2 pairs x 16 accumulation (128 pairs a step
          in all), one epoch, cosine with 10 % warm-up, 2,048 tokens. One departure: its limit of 1,800 tokens for a
          prompt no longer exists in TRL 1.16.
Hardware  Made by the authors for several large GPUs. In one process: dpo-recipes check llama3_8b_instruct_dpo --gpu
          141GB
Command   dpo-recipes train llama3_8b_instruct_dpo
Expect    Loss from 0.693 downwards. The authors report 40.3 % length-controlled wins on AlpacaEval 2 and 32.6 on
          Arena-Hard.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="meta-llama/Meta-Llama-3-8B-Instruct",
    data=Data("princeton-nlp/llama3-ultrafeedback", train="train", eval="test"),
    adapter=None,
    loss="sigmoid",
    beta=0.01,
    learning_rate=7e-7,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=2048,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
