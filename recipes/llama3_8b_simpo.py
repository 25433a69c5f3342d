"""SimPO as a loss of one's own in a recipe file: Llama 3 8B Instruct, the authors' second setting.

Group     Losses and methods
What      A loss without a reference: the log-probability per token of the chosen answer must be above that of the
          rejected one, by a margin. It stands below as a function, the form to copy for any other loss.
Source    2405.14734, eq. 6, and princeton-nlp/SimPO, training_configs/llama-3-8b-instruct-simpo-v2.yaml: beta 10,
          margin over beta 0.3, learning rate 1e-6, cosine with 10 % warm-up, 128 pairs a step, one epoch, 2,048 tokens.
          The authors warn of that rate: answers in a strict form, such as JSON, get worse.
Hardware  Made by the authors for several large GPUs. In one process: dpo-recipes check llama3_8b_simpo --gpu 141GB
Command   dpo-recipes train llama3_8b_simpo
Expect    The loss starts at a value of the pairs, not at 0.693, since nothing is compared with a reference; that is
          still measured: rewards and margins of the log are DPO's. Authors: 53.7 % length-controlled wins on AlpacaEval
          2.
"""

from dpo_recipes import Data, Recipe


def simpo(pairs, *, beta, gamma_beta_ratio=0.5):
    """-log sigmoid(beta (log pi(chosen) / its tokens - log pi(rejected) / its tokens - gamma_beta_ratio))."""
    from torch.nn.functional import logsigmoid

    chosen_per_token = pairs.policy_chosen / pairs.chosen_tokens
    rejected_per_token = pairs.policy_rejected / pairs.rejected_tokens
    return -logsigmoid(beta * (chosen_per_token - rejected_per_token - gamma_beta_ratio))


recipe = Recipe(
    model="meta-llama/Meta-Llama-3-8B-Instruct",
    data=Data("princeton-nlp/llama3-ultrafeedback-armorm", train="train", eval="test"),
    adapter=None,
    loss=simpo,
    loss_args={"gamma_beta_ratio": 0.3},
    beta=10.0,
    learning_rate=1e-6,
    global_batch_size=128,
    num_train_epochs=1,
    max_length=2048,
    trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
)
