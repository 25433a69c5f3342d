"""SmolLM3-3B: its own preference step on one GPU, with LoRA and without the thoughts.

Group     One GPU
What      The loss and the pairs of smollm3_apo, for those who have one GPU: an adapter, the answers without thoughts
          alone, and 2,048 tokens instead of 24,576.
Source    As in smollm3_apo (huggingface/alignment-handbook, recipes/smollm3/dpo/apo.yaml): apo_zero, beta 0.05, 32
          pairs a step, one epoch, cosine down to 10 %, gradients clipped at 0.2. Ours: LoRA of rank 32 with ten times
          the rate of full fine-tuning (1e-5), as TRL's documentation advises for adapters; the length, which holds the
          average pair of 730 tokens (the data set's card) well.
Hardware  Made for one GPU of 24 GB; not yet measured on one.
Command   dpo-recipes train smollm3_apo_lora
Expect    The loss starts at 1, not at 0.693, and falls slowly; chosen answers should become likelier than they were.
"""

from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolLM3-3B-checkpoints",
    revision="it-SFT",
    data=Data(
        "HuggingFaceTB/smoltalk2",
        subset="Preference",
        train="llama_3.1_tulu_3_8b_preference_mixture_no_think[:50%]",
        eval=0.01,
        template_date="2025-07-08",
    ),
    adapter=LoRA(r=32),
    loss="apo_zero",
    beta=0.05,
    learning_rate=1e-5,
    global_batch_size=32,
    num_train_epochs=1,
    max_length=2048,
    trl={
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
        "max_grad_norm": 0.2,
    },
)
