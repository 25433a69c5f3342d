"""Robust DPO for labels of which some are wrong: Pythia-2.8B on Anthropic HH, with LoRA.

Group     Losses and methods
What      An unbiased estimate of the loss that clean labels would give, where a known share of the labels is flipped.
          Beside pythia_2_8b_hh_cdpo it is the bolder of the two: it counts on that share, and has no lowest margin.
Source    2403.00409, section 6 and table 4: beta 0.1, label smoothing 0.1, learning rate 1e-3, 16 pairs a step, 1,000
          steps, 512 tokens. Ours: the model, for which the authors take Llama-2-7B on these pairs, and LoRA of rank 16,
          because such a rate would break the weights if all of them trained.
Hardware  Made for one GPU of 16 GB; not yet measured on one.
Command   dpo-recipes train pythia_2_8b_hh_robust model=/path/to/pythia-2.8b-sft-on-hh-chosen
Expect    Loss from 0.693 downwards, and below 0 for pairs that are ranked as labelled with certainty. The rate is the
          paper's and high: where chosen_forgotten speaks, try learning_rate=1e-4.

Give the SFT model, because the raw base model named below cannot hold a dialogue.
"""

from dpo_recipes import Data, LoRA, Recipe

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
    adapter=LoRA(r=16),
    loss="robust",
    beta=0.1,
    learning_rate=1e-3,
    global_batch_size=16,
    max_length=512,
    trl={"label_smoothing": 0.1, "max_steps": 1000},
)
