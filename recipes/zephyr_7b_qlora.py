"""Zephyr 7B: the SFT model on UltraFeedback, with QLoRA on one GPU.

Group     Published runs
What      The alignment handbook's QLoRA run: a 4-bit NF4 base, adapters of rank 128 on all linear layers.
Source    huggingface/alignment-handbook, recipes/zephyr-7b-beta/dpo/config_qlora.yaml: sigmoid, beta 0.01, learning
          rate 5e-6, cosine with 10 % warm-up, 4 pairs x 4 accumulation (16 on one GPU), one epoch, 1,024 tokens, paged
          AdamW in 32 bit, rank and alpha 128. Two departures, both because TRL 1.16 has changed: its adapter dropout
          of 0.05 is left out (TRL disables all dropout), and its 512-token prompt limit no longer exists.
          It starts from an SFT adapter; here the merged SFT model of the same team is quantised, so that the
          reference is the SFT model and not the raw base.
Hardware  Made for one GPU of 24 GB or more; not yet measured on one.
Command   dpo-recipes train zephyr_7b_qlora
Expect    Loss from 0.693 downwards. With beta this low the log-probabilities of both sides move far; watch the
          side-by-side answers for run-on text.
"""

from dpo_recipes import Data, QLoRA, Recipe

recipe = Recipe(
    model="alignment-handbook/zephyr-7b-sft-full",
    data=Data("HuggingFaceH4/ultrafeedback_binarized", train="train_prefs", eval="test_prefs"),
    adapter=QLoRA(
        r=128, alpha=128, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ),
    loss="sigmoid",
    beta=0.01,
    learning_rate=5e-6,
    global_batch_size=16,
    micro_batch_size=4,
    num_train_epochs=1,
    max_length=1024,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "optim": "paged_adamw_32bit"},
)
