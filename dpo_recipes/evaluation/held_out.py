"""The one table of metrics, which every view of them reads.

Leans on TRL 1.16: the names of the metrics that `DPOTrainer` logs, and what each of them is a mean of.
"""

from typing import Any, Literal, NamedTuple

# A metric's name, or that name with _interval, _stderr or _by_chance behind it -> its value
Numbers = dict[str, Any]
SPREADS = ("_interval", "_stderr", "_by_chance")


class BeforeAfter(NamedTuple):
    """What is measured of the reference, or before training, and what of the policy."""

    before: Numbers
    after: Numbers


# What TRL averages over batches, and passed on as it is; the router's loss is there for a mixture of experts only.
TRL_MEANS = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "aux_loss")


class Metric(NamedTuple):
    """All that is known of one metric; the closing table, the progress bar and the model card read it here."""

    name: str  # the key in a log and in evaluation.json, TRL's where TRL has the metric
    words: str  # the row of the closing table
    short: str | None  # one word for the progress bar; None: not shown there
    form: str  # format specification of its value; its standard error takes the same without the sign
    direction: Literal["up", "down", "either"]  # where a good run moves it
    alarm: str  # when to worry, one sentence
    meaning: str  # one sentence
    in_table: bool = True  # whether the closing table has a row of it


METRICS = (
    Metric(
        name="loss",
        words="loss",
        short="loss",
        form=".4f",
        direction="down",
        alarm="Held out it rises while it still falls in training: the policy memorises its pairs.",
        meaning="Mean of the recipe's loss over the pairs, each times the pair's weight where it has one.",
    ),
    Metric(
        name="rewards/accuracies",
        words="pairs ranked as labelled",
        short="accuracy",
        form=".1%",
        direction="up",
        alarm="The interval still holds 50 %, so nothing is learned; or above 95 % within the first steps of training, "
        "where one side is given away by its length or its form.",
        meaning="Share of pairs whose chosen side has the higher reward; a tie counts half.",
    ),
    Metric(
        name="rewards/accuracies_length_controlled",
        words="the same, length apart",
        short=None,
        form=".1%",
        direction="up",
        alarm="It is far below the share of all pairs: the policy has learned to prefer one length.",
        meaning="Mean of the shares among pairs whose chosen side is longer and among those whose rejected side is.",
    ),
    Metric(
        name="rewards/calibration_error",
        words="calibration error",
        short=None,
        form=".3f",
        direction="either",
        alarm="It is well above what chance makes of so many pairs while the confidence is above the share ranked as "
        "labelled, so that the policy is surer than it is right.",
        meaning="Mean distance of the confidence sigmoid(beta |h|) from the share ranked as labelled, over ten bins.",
    ),
    Metric(
        name="rewards/margins",
        words="reward margin",
        short="margin",
        form="+.4f",
        direction="up",
        alarm="It is at or below 0 after training, or grows without bound while the accuracy stands still.",
        meaning="Mean reward of the chosen side minus that of the rejected side, in units of beta times nats.",
    ),
    Metric(
        name="logps/chosen_change_per_token",
        words="chosen, nats per token",
        short=None,
        form="+.4f",
        direction="either",
        alarm="It falls by several tenths: likelihood moves to answers that are in no pair, and the margin grows only "
        "because the rejected side falls faster.",
        meaning="Change of the chosen sides' log-probability since the start of training, over all their tokens.",
    ),
    Metric(
        name="logps/rejected_change_per_token",
        words="rejected, nats per token",
        short=None,
        form="+.4f",
        direction="down",
        alarm="It rises, or it falls no faster than the chosen side does.",
        meaning="Change of the rejected sides' log-probability since the start of training, over all their tokens.",
    ),
    Metric(
        name="perplexity/chosen",
        words="perplexity of chosen",
        short=None,
        form=".2f",
        direction="either",
        alarm="It rises by a third and more: the policy is losing the answers that it should prefer.",
        meaning="Exponential of the mean negative log-probability of a chosen token.",
    ),
    Metric(
        name="forgetting/kl_per_token",
        words="forgetting, nats per token",
        short=None,
        form=".4f",
        direction="either",
        alarm="It comes near the KL of the answers per token: the policy has changed everywhere, and not where it was "
        "taught.",
        meaning="Mean KL divergence of the policy from its reference on text that has nothing to do with the pairs.",
    ),
    Metric(
        name="forgetting/token_accuracy",
        words="unrelated tokens predicted",
        short=None,
        form=".1%",
        direction="either",
        alarm="It falls by more than its error: the policy writes worse what it was never taught to change.",
        meaning="Share of the tokens of that text to which the model gives the highest probability.",
    ),
    Metric(
        name="reward",
        words="reward of sampled answers",
        short=None,
        form="+.3f",
        direction="up",
        alarm="It stands still or falls while pairs are ranked better: the pairs do not reward what the reward does.",
        meaning="Mean of the recipe's reward over answers sampled to held-out prompts.",
    ),
    Metric(
        name="win_rate",
        words="win rate over reference",
        short=None,
        form=".3f",
        direction="up",
        alarm="It is within two standard errors of 0.5: the answers are no better than those of the reference.",
        meaning="Share of an answer's comparisons with the reference's answers that it wins by the recipe's reward; a "
        "tie counts half.",
    ),
    Metric(
        name="judge/contradictions",
        words="judge prefers one place",
        short=None,
        form=".1%",
        direction="either",
        alarm="It is a third and more: the judge decides by the order of the answers.",
        meaning="Share of prompts of which the judge chose the same place, whichever answer stood there.",
    ),
    Metric(
        name="kl",
        words="KL to reference, nats",
        short=None,
        form=".3f",
        direction="either",
        alarm="It grows by tens of nats while the reward does not: the policy leaves the reference for nothing.",
        meaning="Mean KL divergence of the policy from its reference along whole sampled answers.",
    ),
    Metric(
        name="best_reward_at_kl",
        words="best reward at that KL",
        short=None,
        form="+.3f",
        direction="either",
        alarm="The reward is far below it: the same distance from the reference could have bought much more.",
        meaning="The highest mean reward that any policy can have at this KL, from the reference's own samples.",
    ),
    Metric(
        name="answers/tokens",
        words="length of answers, tokens",
        short=None,
        form=".1f",
        direction="either",
        alarm="It grows while the reward does not: the policy has learned to write more, and nothing else.",
        meaning="Mean number of tokens of an answer sampled to held-out prompts.",
    ),
    Metric(
        name="answers/capped",
        words="answers cut at the cap",
        short=None,
        form=".1%",
        direction="either",
        alarm="It grows: answers no longer come to their end.",
        meaning="Share of answers that were not at their end when the most tokens allowed were written.",
    ),
    Metric(
        name="answers/repeated_4grams",
        words="repeated 4-grams",
        short=None,
        form=".1%",
        direction="either",
        alarm="It grows by several points: the policy goes round in circles.",
        meaning="Share of the runs of four tokens in an answer that stand in it before, as a mean over answers.",
    ),
    Metric(
        name="answers/temperature",
        words="temperature of answers",
        short=None,
        form="g",
        direction="either",
        alarm="It differs between two runs: their answers, rewards and KL cannot be compared.",
        meaning="What the logits are divided by before an answer is drawn; also those that the KL is of.",
    ),
    # Logged and in evaluation.json, but not in the closing table.
    Metric(
        name="forgetting/token_accuracy_change",
        words="change of unrelated tokens predicted",
        short=None,
        form="+.2%",
        direction="either",
        alarm="It is below 0 by more than twice its error.",
        meaning="The policy's share of tokens predicted minus the reference's on the same texts.",
        in_table=False,
    ),
    Metric(
        name="rewards/confidence",
        words="confidence",
        short=None,
        form=".1%",
        direction="up",
        alarm="It is well above the share of pairs ranked as labelled.",
        meaning="Mean of sigmoid(beta |h|), the probability that DPO's model of preferences gives to its own ranking.",
        in_table=False,
    ),
    Metric(
        name="perplexity/chosen_reference",
        words="perplexity of chosen, reference",
        short=None,
        form=".2f",
        direction="either",
        alarm="It is far from the policy's own before training: the reference is not what the policy started from.",
        meaning="Exponential of the mean negative log-probability of a chosen token under the reference.",
        in_table=False,
    ),
    Metric(
        name="rewards/chosen",
        words="reward of the chosen side",
        short=None,
        form="+.4f",
        direction="either",
        alarm="It falls about as fast as that of the rejected side.",
        meaning="Mean of beta times the log-ratio of policy and reference over the chosen sides.",
        in_table=False,
    ),
    Metric(
        name="rewards/rejected",
        words="reward of the rejected side",
        short=None,
        form="+.4f",
        direction="down",
        alarm="It rises with that of the chosen side.",
        meaning="Mean of beta times the log-ratio of policy and reference over the rejected sides.",
        in_table=False,
    ),
    Metric(
        name="logps/chosen",
        words="chosen, nats",
        short=None,
        form=".2f",
        direction="either",
        alarm="It falls from log to log: see its change per token.",
        meaning="Mean log-probability of a whole chosen side.",
        in_table=False,
    ),
    Metric(
        name="logps/rejected",
        words="rejected, nats",
        short=None,
        form=".2f",
        direction="down",
        alarm="It rises: see its change per token.",
        meaning="Mean log-probability of a whole rejected side.",
        in_table=False,
    ),
    Metric(
        name="logits/chosen",
        words="mean logit, chosen",
        short=None,
        form=".3f",
        direction="either",
        alarm="It drifts without end, or is not a number: the weights grow.",
        meaning="Mean over the vocabulary of the logits at the chosen sides' tokens.",
        in_table=False,
    ),
    Metric(
        name="logits/rejected",
        words="mean logit, rejected",
        short=None,
        form=".3f",
        direction="either",
        alarm="It drifts without end, or is not a number: the weights grow.",
        meaning="Mean over the vocabulary of the logits at the rejected sides' tokens.",
        in_table=False,
    ),
    Metric(
        name="entropy",
        words="entropy, nats per token",
        short=None,
        form=".3f",
        direction="either",
        alarm="It goes towards 0: the policy gives the same answer whatever it is asked.",
        meaning="Mean entropy of the next-token distributions along both sides.",
        in_table=False,
    ),
    Metric(
        name="mean_token_accuracy",
        words="chosen tokens predicted",
        short=None,
        form=".1%",
        direction="either",
        alarm="It falls by a few percent: the policy forgets how the chosen sides are written.",
        meaning="Share of the chosen sides' tokens to which the policy gives the highest probability.",
        in_table=False,
    ),
    Metric(
        name="aux_loss",
        words="load-balancing loss",
        short=None,
        form=".4f",
        direction="either",
        alarm="It rises: the router sends most tokens to a few experts.",
        meaning="The router's balancing loss of a mixture of experts, before its coefficient.",
        in_table=False,
    ),
    # Of training alone: what guard/last_pairs.py adds to the log, over the last 256 pairs.
    Metric(
        name="window/accuracies",
        words="trained pairs ranked as labelled",
        short=None,
        form=".1%",
        direction="up",
        alarm="It is above 95 % in the first tenth of a run, or far above that of the held-out pairs.",
        meaning="Share of the last 256 pairs, as training met them, whose chosen side had the higher reward.",
        in_table=False,
    ),
    Metric(
        name="window/margins",
        words="reward margin of trained pairs",
        short=None,
        form="+.4f",
        direction="up",
        alarm="It passes 10: such pairs teach nothing more, and only the distance from the reference grows.",
        meaning="Mean reward margin of the last 256 pairs, in units of beta times nats.",
        in_table=False,
    ),
    Metric(
        name="window/chosen_change_per_token",
        words="trained chosen, nats per token",
        short=None,
        form="+.4f",
        direction="either",
        alarm="It falls by tenths: the chosen answers are being forgotten.",
        meaning="Change of the last 256 chosen sides' log-probability since the start, over all their tokens.",
        in_table=False,
    ),
    Metric(
        name="window/rejected_change_per_token",
        words="trained rejected, nats per token",
        short=None,
        form="+.4f",
        direction="down",
        alarm="It rises, or it runs away from that of the chosen sides.",
        meaning="Change of the last 256 rejected sides' log-probability since the start, over all their tokens.",
        in_table=False,
    ),
    Metric(
        name="window/accuracies_chosen_longer",
        words="ranked right, chosen longer",
        short=None,
        form=".1%",
        direction="up",
        alarm="It is near 100 % while that of pairs with the shorter chosen side is below 50 %: length is learned.",
        meaning="Accuracy of the last 256 trained pairs whose chosen side is the longer one.",
        in_table=False,
    ),
    Metric(
        name="window/accuracies_chosen_shorter",
        words="ranked right, chosen shorter",
        short=None,
        form=".1%",
        direction="up",
        alarm="It is below 50 % while that of pairs with the longer chosen side is near 100 %: length is learned.",
        meaning="Accuracy of the last 256 trained pairs whose chosen side is the shorter one.",
        in_table=False,
    ),
    Metric(
        name="grad_norm",
        words="gradient norm",
        short=None,
        form=".3f",
        direction="either",
        alarm="It is 0, or many times its usual size again and again.",
        meaning="Length of a step's gradient before it is clipped.",
        in_table=False,
    ),
)
