"""SmolLM3-3B as published: anchored preference optimisation on pairs with and without thoughts, all weights.

Group     Published runs
What      The last step of SmolLM3's own training. Half of the data has long thoughts, hence 24,576 tokens; each row
          says itself whether the model thinks.
Source    huggingface/alignment-handbook, recipes/smollm3/dpo/apo.yaml: apo_zero, beta 0.05, learning rate 1e-6, cosine
          down to 10 % of it with 10 % warm-up, 32 pairs a step, one epoch, 24,576 tokens, gradients clipped at 0.2; of
          the pairs without thoughts 50 %, of those with them 25 %. It draws these at random, here they are the first
          rows of each split. Ours: 1 % is held out, where it evaluates nothing; and the date that the chat template
          prints is pinned to the model's release, so that tokens do not change from day to day.
Hardware  The authors name 8 GPUs of 80 GB, or two such machines. On one GPU: smollm3_apo_lora.
Command   dpo-recipes train smollm3_apo
Expect    The loss starts at 1, not at 0.693; chosen answers should become likelier than they were, since this loss
          anchors each side by itself.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="HuggingFaceTB/SmolLM3-3B-checkpoints",
    revision="it-SFT",
    data=Data(
        "HuggingFaceTB/smoltalk2",
        subset="Preference",
        train="llama_3.1_tulu_3_8b_preference_mixture_no_think[:50%]"
        "+tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think[:25%]",
        eval=0.01,
        template_date="2025-07-08",
    ),
    adapter=None,
    loss="apo_zero",
    beta=0.05,
    learning_rate=1e-6,
    global_batch_size=32,
    num_train_epochs=1,
    max_length=24576,
    trl={
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
        "max_grad_norm": 0.2,
    },
)
