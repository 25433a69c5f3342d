import pytest

from dpo_recipes.data.ranked_pairs import by_last_question, preference_pairs
from dpo_recipes.data.replies import Reply, question
from dpo_recipes.errors import RecipeError


def ask(text):
    return [{"role": "user", "content": text}]


def said(*texts):
    return [Reply(text, [1], True) for text in texts]


@by_last_question
def length(prompt, completion):
    return float(len(completion))


def test_a_pair_is_two_distinct_finished_replies_and_the_better_is_chosen():
    replies = [
        [*said("a", "bbb", "a", "cc", "dd"), Reply("unfinished, and the longest", [1], False)],
        said("same", "same"),
        said("ab", "cd"),
        said("  ", "x"),
    ]
    rows, report = preference_pairs([ask(c) for c in "wxyz"], replies, length, per_prompt=10, seed=0)
    found = {(row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    # cc and dd have equal rewards, so they are no pair; each other pair once.
    assert found == {("w", "bbb", "a"), ("w", "cc", "a"), ("w", "dd", "a"), ("w", "bbb", "cc"), ("w", "bbb", "dd")}
    assert len(rows) == len(found)
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert all(row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant" for row in rows)
    assert report == {
        "prompts": 4,
        "replies": 12,
        "unfinished": 1,
        "blank": 1,
        "duplicates": 2,
        "prompts_without_pair": 3,
        "pairs": 5,
        "mean_reward": pytest.approx((1 + 3 + 2 + 2 + 4 + 2 + 2 + 1) / 8),
    }


def test_the_draw_is_a_function_of_the_seed_without_repeats():
    prompts = [ask(str(k)) for k in range(30)]
    of_one_prompt = said("x", "xx", "xxx", "xxxx", "xxxxx", "xxxxxx")
    replies = [of_one_prompt] * len(prompts)
    rows, report = preference_pairs(prompts, replies, length, per_prompt=4, seed=3)
    assert report["pairs"] == len(rows) == 120
    assert preference_pairs(prompts, replies, length, per_prompt=4, seed=3)[0] == rows
    assert preference_pairs(prompts, replies, length, per_prompt=4, seed=4)[0] != rows
    keys = [(row["prompt"][0]["content"], row["chosen_reward"], row["rejected_reward"]) for row in rows]
    assert len(set(keys)) == 120
    assert len({key[1:] for key in keys}) == 15  # all pairs of six lengths turn up somewhere


def test_the_reward_judges_the_last_user_message():
    prompt = [{"role": "system", "content": "s"}, *ask("first"), {"role": "assistant", "content": "a"}, *ask("last")]
    assert question(prompt) == "last"
    seen = []

    @by_last_question
    def reward(asked, completion):
        seen.append((asked, completion))
        return len(seen)

    preference_pairs([prompt], [said("x", "y")], reward, per_prompt=1, seed=0)
    assert seen == [("last", "x"), ("last", "y")]
    with pytest.raises(RecipeError, match="no user message"):
        question([{"role": "system", "content": "s"}])


def test_the_best_is_paired_with_the_worst_or_with_one_drawn_among_the_worse():
    prompts = [ask(str(number)) for number in range(40)]
    replies = [said("x", "xxxx", "yyyy", "xx", "xxx") for _ in prompts]

    def sides(pairing):
        rows, _ = preference_pairs(prompts, replies, length, pairing=pairing, seed=1)
        assert len(rows) == len(prompts)
        return {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}

    assert sides("best_worst") == {("xxxx", "x")}  # of two that are best, the first
    assert sides("best_random") == {("xxxx", "x"), ("xxxx", "xx"), ("xxxx", "xxx")}


@pytest.mark.parametrize("pairing", ["all", "best_worst", "best_random"])
def test_equal_replies_make_no_pair(pairing):
    rows, report = preference_pairs([ask("a"), ask("b")], [said("x", "y"), said()], length, pairing=pairing)
    assert rows == [] and report["prompts_without_pair"] == 2


def test_a_prompt_of_plain_text_gives_sides_of_plain_text():
    [row], _ = preference_pairs(["Once"], [said(" upon", " u")], length, pairing="best_worst")
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("Once", " upon", " u")
