"""SmolLM3-3B on UltraFeedback with LoRA, answers without thinking.

Group     One GPU
What      The classic DPO run on a small current model: 61,135 pairs, one epoch, 16 pairs a step, 1,024 tokens.
Source    Loss sigmoid, beta 0.1, one epoch, batch 4 x 4 and 1,024 tokens as in the widely copied SmolLM3 script for
          UltraFeedback; its 5e-7 is the rate of full fine-tuning, so LoRA gets ten times that, as in the alignment
          handbook's adapters (5e-6, cosine, 10 % warm-up) and TRL's own DPO script (LoRA, rank 32).
Hardware  Made for one GPU of 24 GB or more; not yet measured on one.
Command   dpo-recipes train smollm3_ultrafeedback
Expect    Loss from 0.693 downwards, rewards/accuracies from 0.5 upwards, margins slowly growing. Chosen
          log-probabilities may fall a little; they should fall less than the rejected ones.

SmolLM3 thinks unless told otherwise and UltraFeedback's answers do not, so thinking is off; its chat template prints
today's date, so the date is pinned to the model's release, and tokens do not change from day to day.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolLM3-3B",
    data=Data(
        "HuggingFaceH4/ultrafeedback_binarized",
        train="train_prefs",
        eval="test_prefs",
        chat_template_kwargs={"enable_thinking": False},
        template_date="2025-07-08",
    ),
    adapter=LoRA(r=32),
    loss="sigmoid",
    beta=0.1,
    learning_rate=5e-6,
    global_batch_size=16,
    micro_batch_size=4,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
