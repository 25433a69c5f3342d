"""SmolLM2-1.7B-Instruct on UltraFeedback, all weights.

Group     Published runs
What      The run that made SmolLM2-1.7B-Instruct out of its SFT model, which needs one large GPU.
Source    huggingface/alignment-handbook, recipes/smollm2/dpo/config.yaml: sigmoid, beta 0.5, learning rate 1e-6, cosine
          with 10 % warm-up, 2 pairs x 8 accumulation on 8 GPUs (128), three epochs, 1,024 tokens. There it starts from
          the SFT model; the Instruct model named here is the published one with a chat template, already
          preference-tuned once: give the SFT model where you have it.
Hardware  The authors name 8 GPUs. Here it is one process: dpo-recipes check smollm2_1_7b_ultrafeedback --gpu 40GB
Command   dpo-recipes train smollm2_1_7b_ultrafeedback
          or: dpo-recipes train smollm2_1_7b_ultrafeedback model=/path/to/smollm2-1.7B-sft
Expect    Loss from 0.693 downwards, with a step down where an epoch begins, as pairs come back.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolLM2-1.7B-Instruct",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="sigmoid",
    beta=0.5,
    learning_rate=1e-6,
    global_batch_size=128,
    num_train_epochs=3,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
