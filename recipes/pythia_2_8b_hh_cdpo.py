"""Conservative DPO for labels of which some are wrong: Pythia-2.8B on Anthropic HH, all weights.

Group     Losses and methods
What      Human labels contradict each other. This loss takes each for wrong with a probability of 10 %, so that no
          margin grows without end: its gradient vanishes where the policy is 90 % sure.
Source    Mitchell's note on cDPO (2023), eq. 3, and the README of eric-mitchell/direct-preference-optimization, which
          suggests 0.1 without having tried it; the note recommends no value. All else is the paper's run, as in
          pythia_2_8b_hh: beta 0.1, batch 64, RMSprop, learning rate 1e-6 after a linear warm-up over 150 steps, then
          constant, gradients clipped at 10, one epoch, 512 tokens. TRL 1.16 has no such loss; it is one of ours.
Hardware  As pythia_2_8b_hh, which the authors ran on four A100 of 80 GB; not measured here.
Command   dpo-recipes train pythia_2_8b_hh_cdpo model=/path/to/pythia-2.8b-sft-on-hh-chosen
Expect    Loss from 0.693 to no less than 0.325, which is what certainty of 90 % costs; a held-out calibration error
          below that of pythia_2_8b_hh.

Give the SFT model, because the raw base model named below cannot hold a dialogue.
"""

from dpo_recipes import Data, Recipe

# A base model has no chat template; this one renders the data set's own markers, and ends a reply with the end token.
HUMAN_ASSISTANT = (
    "{% for m in messages %}"
    "{{ '\\n\\nHuman: ' + m['content'] if m['role'] == 'user' else '\\n\\nAssistant: ' + m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)

recipe = Recipe(
    model="EleutherAI/pythia-2.8b",
    data=Data("Anthropic/hh-rlhf", train="train", eval="test", format="hh_rlhf", chat_template=HUMAN_ASSISTANT),
    loss="cdpo",
    loss_args={"label_smoothing": 0.1},
    beta=0.1,
    learning_rate=1e-6,
    global_batch_size=64,
    max_length=512,
    trl={"optim": "rmsprop", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 150, "max_grad_norm": 10.0},
)
