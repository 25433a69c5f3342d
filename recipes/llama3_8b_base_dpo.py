"""Llama 3 8B, the SimPO authors' SFT model, on UltraFeedback: their DPO baseline, all weights.

Group     Published runs
What      The DPO that SimPO was compared with, in the setting Llama3-Base: a base model, fine-tuned on UltraChat by the
          same authors, then these pairs.
Source    princeton-nlp/SimPO, README (best values for DPO): beta 0.01, learning rate 5e-7. Batch 128, one epoch and
          cosine with 10 % warm-up are those of all its files; the paper's base settings take 1,024 tokens.
Hardware  Made by the authors for several large GPUs. In one process: dpo-recipes check llama3_8b_base_dpo --gpu 141GB
Command   dpo-recipes train llama3_8b_base_dpo
Expect    Loss from 0.693 downwards. The authors report 18.2 % length-controlled wins on AlpacaEval 2 and 15.9 on
          Arena-Hard, where the SFT model has 6.2 and 3.3.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="princeton-nlp/Llama-3-Base-8B-SFT",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="sigmoid",
    beta=0.01,
    learning_rate=5e-7,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
