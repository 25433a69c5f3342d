"""SmolLM2-360M-Instruct on UltraFeedback, all weights.

Group     Published runs
What      Full fine-tuning of a model small enough for one consumer GPU. The reference is the start weights, held as
          log-probabilities that are computed once, so a second model is never in memory.
Source    huggingface/alignment-handbook and smollm, SmolLM2 recipe: sigmoid, beta 0.5, learning rate 1e-6, cosine with
          10 % warm-up, 128 pairs a step, 1,024 tokens; two epochs. There it starts from the SFT
          model; the Instruct model named here is the published one with a chat template, already preference-tuned once.
Hardware  Made for one GPU of 16 GB or more; not yet measured on one.
Command   dpo-recipes train smollm2_360m_ultrafeedback
Expect    Loss from 0.693 downwards; a small model separates the pairs slowly, so accuracies near 0.6 are a success.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolLM2-360M-Instruct",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="sigmoid",
    beta=0.5,
    learning_rate=1e-6,
    global_batch_size=128,
    micro_batch_size=4,
    num_train_epochs=2,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
