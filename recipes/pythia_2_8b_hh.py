"""The DPO paper's dialogue experiment: Pythia-2.8B on Anthropic HH, all weights, RMSprop.

Group     The DPO paper
What      DPO from a supervised model on 160,800 human comparisons of assistant dialogues (2305.18290, section 6.2).
Source    Paper, appendix B: beta 0.1, batch 64, RMSprop, learning rate 1e-6 after a linear warm-up over 150 steps, then
          constant. From the authors' code (eric-mitchell/direct-preference-optimization, config/config.yaml), where
          the paper is silent: one epoch, 512 tokens, gradients clipped at 10. That code cuts HH prompts from the left
          at 256 tokens; here a prompt that fills the window is dropped and counted.
Hardware  The authors report about 2.75 h on four A100 of 80 GB; not measured here.
Command   dpo-recipes train pythia_2_8b_hh model=/path/to/pythia-2.8b-sft-on-hh-chosen
Expect    rewards/accuracies between 0.6 and 0.7 on held-out pairs, levelling off after some hundred steps.

The paper starts from Pythia fine-tuned on the chosen replies; give that model, because DPO from the raw base model
named below optimises towards a reference that cannot hold a dialogue.
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
    adapter=None,
    loss="sigmoid",
    beta=0.1,
    learning_rate=1e-6,
    global_batch_size=64,
    micro_batch_size=4,
    num_train_epochs=1,
    max_length=512,
    trl={
        "optim": "rmsprop",
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 150,
        "max_grad_norm": 10.0,
    },
)
