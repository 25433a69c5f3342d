"""The DPO paper's summaries: GPT-J on human comparisons of TL;DR summaries, all weights, RMSprop.

Group     The DPO paper
What      DPO from the supervised model that the paper takes too, on 92,858 comparisons of Reddit summaries (2305.18290,
          section 6.2). Plain text: a prompt ends with TL;DR: and the summary follows.
Source    Paper, appendix B: beta 0.5 for this task, batch 64, RMSprop, learning rate 1e-6 after a linear warm-up over
          150 steps, then constant. From the authors' code (eric-mitchell/direct-preference-optimization,
          config/config.yaml), where the paper is silent: one epoch, gradients clipped at 10. Ours: 638 tokens, the
          longest post with summary of OpenAI's own preprocessing (vwxyzjn/summarize_from_feedback_details), because the
          512 of that code would cut summaries; and 2 % held out, as the data set has no other split.
Hardware  Not stated by the authors. In one process: dpo-recipes check gptj_6b_tldr --gpu 141GB
Command   dpo-recipes train gptj_6b_tldr
Expect    Loss from 0.693 downwards. The paper reports that GPT-4 prefers 61.7 % of the summaries at temperature 0 to
          the reference summaries, and 57.0 % of PPO's.
"""

from dpo_recipes import Data, Recipe

recipe = Recipe(
    model="CarperAI/openai_summarize_tldr_sft",
    data=Data("trl-lib/tldr-preference", train="train", eval=0.02, format="text"),
    adapter=None,
    loss="sigmoid",
    beta=0.5,
    learning_rate=1e-6,
    global_batch_size=64,
    num_train_epochs=1,
    max_length=638,
    trl={
        "optim": "rmsprop",
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 150,
        "max_grad_norm": 10.0,
    },
)
