"""The DPO paper's controlled experiment: GPT-2 large learns to write good reviews, judged by a classifier.

Group     The DPO paper
What      The model's own continuations of the first words of IMDb reviews, ranked by how sure a classifier is that they
          are positive: a reward that is known, so that reward and KL can be laid against each other (2305.18290, 6.1).
Source    Paper, section 6.1, appendices B and C: gpt2-large after one epoch of IMDb, prefixes of 2 to 8 tokens of
          25,000 reviews, 4 answers each and all 6 pairs of them; beta 0.1 (and 0.05, 1, 5), batch 64, RMSprop, learning
          rate 1e-6 after a linear warm-up over 150 steps, then constant. Authors' code: gradients clipped at 10, 512
          tokens, one epoch.
Hardware  Any GPU of 24 GB: dpo-recipes check gpt2_large_imdb --gpu 24GB
Command   dpo-recipes pairs gpt2_large_imdb model=SFT --prompts prefixes.txt -n 4 --max-new-tokens 480
          dpo-recipes train gpt2_large_imdb model=SFT, and for the figure:
          dpo-recipes sweep gpt2_large_imdb model=SFT beta=0.05,0.1,1,5
Expect    The reward of sampled answers rises to 0.9 and more at a KL of a few nats, and stays above PPO's at any KL.

SFT is the folder of gpt2-large trained on IMDb reviews; the raw gpt2-large named below has not read any. Reviews that
are cut off before their end make no pair, so leave them room.
"""

import functools

from dpo_recipes import Data, Recipe

CLASSIFIER = "siebert/sentiment-roberta-large-english"


@functools.cache
def classifier():
    from transformers import pipeline

    return pipeline("text-classification", model=CLASSIFIER, top_k=None)


def positive(prompt, completion):
    """The probability that the whole review is positive, by the classifier that the paper takes."""
    scores = {label["label"]: label["score"] for label in classifier()([prompt + completion], truncation=True)[0]}
    return scores["POSITIVE"]


recipe = Recipe(
    model="openai-community/gpt2-large",
    data=Data("./gpt2_large_imdb-pairs", train="train", eval="eval", format="text"),  # where `pairs` writes them
    loss="sigmoid",
    beta=0.1,
    learning_rate=1e-6,
    global_batch_size=64,
    max_length=512,
    reward=positive,
    trl={"optim": "rmsprop", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 150, "max_grad_norm": 10.0},
)
