"""Qwen3-4B-Instruct-2507 with LoRA: LLaMA-Factory's example of DPO.

Group     Published runs
What      A model that does not think, a small adapter, three epochs. LLaMA-Factory's example trains on its demo pairs,
          of which the first 1,000; here on UltraFeedback, whose first 1,000 are as many.
Source    hiyouga/LLaMA-Factory, examples/train_lora/qwen3_lora_dpo.yaml: sigmoid, beta 0.1, LoRA of rank 8 on all
          linear layers (alpha twice the rank), learning rate 5e-6, cosine with 10 % warm-up, 8 pairs a step, three
          epochs, 2,048 tokens. Ours: the data, and 200 of its test pairs held out. For its own demo pairs, once
          downloaded: data.path=dpo_en_demo.json data.train=train data.eval=0.1
Hardware  Made for one GPU of 16 GB or more; not yet measured on one.
Command   dpo-recipes train qwen3_4b_lora
Expect    Loss from 0.693 downwards, with a step down where an epoch begins; after three of them the 1,000 pairs are
          known well, and the held-out loss tells whether that helps.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="Qwen/Qwen3-4B-Instruct-2507",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs[:1000]", eval="test_prefs[:200]"),
    adapter=LoRA(r=8),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=8,
    num_train_epochs=3,
    max_length=2048,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
