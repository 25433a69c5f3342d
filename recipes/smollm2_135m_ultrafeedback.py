"""SmolLM2-135M-Instruct on UltraFeedback, all weights: the smallest real model here.

Group     Published runs
What      Full fine-tuning that a CPU can finish, on a slice of the data: append data.train=train_prefs[:2000]. The
          reference is the start weights, held as log-probabilities that are computed once.
Source    huggingface/alignment-handbook, recipes/smollm2/dpo/config_smol.yaml, written for 360M and used for 135M too:
          sigmoid, beta 0.5, learning rate 1e-6, cosine with 10 % warm-up, 2 pairs x 8 accumulation on 8 GPUs (128), two
          epochs, 1,024 tokens. There it starts from the SFT model; the Instruct model named here is the published one
          with a chat template, already preference-tuned once.
Hardware  Any GPU, or a CPU with patience; not yet measured at full length.
Command   dpo-recipes train smollm2_135m_ultrafeedback
Expect    Loss from 0.693 downwards; a small model separates the pairs slowly, so accuracies near 0.6 are a success.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=None,
    loss="sigmoid",
    beta=0.5,
    learning_rate=1e-6,
    global_batch_size=128,
    num_train_epochs=2,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
