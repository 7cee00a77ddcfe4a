"""One step of GRPO against TRL's: the loss and the gradient of every weight, on the same answers.

    python -m benchmarks.grpo_trl write DIR
    python -m venv TRL && TRL/bin/pip install torch==2.13.0 trl
    TRL/bin/python benchmarks/grpo_trl.py compare DIR

TRL and its versions of other packages have an environment of their own. `write` stores a model as Hugging Face does,
answers with their old and reference log-probabilities, and our losses and gradients with both penalties, K3 and that
times the ratio; `compare` has TRL compute the same and prints the differences. The policy is moved away from the one
that drew the answers, so that ratios are clipped and the penalty counts. Exit status 1 if a difference exceeds the
tolerance.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

CLIP, BETA = 0.2, 0.04
TOLERANCE = 1e-3  # of a gradient, relative to its largest element; of the loss, relative
RUN = [
    *("model=tiny", "model/attention=mla", "model.init_std=0.1", "data=instructions", "data.vocab_size=300"),
    *("data.instances=200", "data.tasks=[copy,reverse]", "objective=grpo", "objective.max_new_tokens=12"),
    *(f"objective.penalty.beta={BETA}", f"objective.clip={CLIP}", "objective.rewards.stopped=1"),
    *("loss.expert=0", "loss.device=0", "loss.communication=0", "trainer.batch.size=16", "trainer.kernels=torch"),
    *("trainer.accelerator=cpu", "trainer.progress=false", "logger.wandb.mode=disabled"),
]


def write(folder: Path) -> None:
    """Store model, answers, loss and gradients in `folder`."""
    import dsv2
    from dsv2.alignment.grpo import GRPOModule
    from dsv2.alignment.policy import K3, WeightedK3
    from dsv2.alignment.rollout import Rows
    from dsv2.training.machine import prepare

    prepare()
    run = dsv2.load(RUN)
    assert run.objective is not None
    module = run.objective.module(run)
    assert isinstance(module, GRPOModule)
    length = run.trainer.sequence_length
    module.begin(run.data.open(sequence_length=length, seed=0, validation_tokens=length), resumed=False)
    ids = torch.from_numpy(module.tokenizer.ids)
    assert torch.equal(ids, torch.arange(run.model.vocab_size)), "TRL draws from all ids"
    module.source.__dict__["stop_ids"] = frozenset(range(0, 300, 20))  # so that some answers of random weights end
    module.draw(0)
    assert module.answers is not None
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise), alpha=0.02)
    answers = module.answers.part(0, run.trainer.batch.size)
    rows = Rows.joined(Rows.of(answers, length=length, pad_id=module.tokenizer.end_id))
    with torch.no_grad():
        now = torch.zeros_like(answers.old)
        now[rows.order] = module._log_probabilities(module.model, rows)[0]
    assert answers.reference is not None
    dsv2.to_hf(module.model, folder / "model")
    losses: dict[str, float] = {}
    penalties: dict[str, K3.Config | WeightedK3.Config]
    penalties = {"K3": K3.Config(beta=BETA), "WeightedK3": WeightedK3.Config(beta=BETA)}
    for name, penalty in penalties.items():
        module.settings = replace(module.settings, penalty=penalty)
        module.zero_grad()
        part = module.part(answers, rows)
        part.losses.total.backward()
        assert float(part.policy.clipped) > 0
        losses[name] = part.policy.loss.item()
        gradients = run.model.build()
        with torch.no_grad():
            for of, weight in module.model.named_parameters():
                gradients.get_parameter(of).copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        dsv2.to_hf(gradients, folder / name)
    asked, lengths = answers.asked.tolist(), answers.answered.tolist()
    texts = [text.tolist() for text in answers.ids.split(answers.lengths.tolist())]
    step = {
        "prompts": [text[:count] for text, count in zip(texts, asked, strict=True)],
        "answers": [text[count:] for text, count in zip(texts, asked, strict=True)],
        "old": [part.tolist() for part in answers.old.split(lengths)],
        "reference": [part.tolist() for part in answers.reference.split(lengths)],
        "now": [part.tolist() for part in now.split(lengths)],
        "advantages": answers.advantages.tolist(),
        "losses": losses,
    }
    (folder / "step.json").write_text(json.dumps(step) + "\n")
    print(f"{len(texts)} answers, losses {losses}, {int(part.policy.clipped)} clipped tokens: {folder}")


def padded(rows: list[list[float]], *, left: bool) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[0] * (longest - len(r)) + r if left else r + [0] * (longest - len(r)) for r in rows])


def compare(folder: Path) -> bool:
    """Print how far TRL's loss and gradients are from ours; return whether all are within the tolerance."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer, __version__

    step: dict[str, Any] = json.loads((folder / "step.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        loss_type="grpo",
        beta=BETA,
        epsilon=CLIP,
        per_device_train_batch_size=len(step["answers"]),
        num_generations=8,
        max_completion_length=12,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=model,
        args=settings,
        reward_funcs=_nothing,
        train_dataset=Dataset.from_dict({"prompt": ["x"] * 16}),
        processing_class=_tokenizer(),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which its training loop sets
    inputs = {
        "prompt_ids": padded(step["prompts"], left=True),
        "prompt_mask": padded([[1] * len(row) for row in step["prompts"]], left=True),
        "completion_ids": padded(step["answers"], left=False),
        "completion_mask": padded([[1] * len(row) for row in step["answers"]], left=False),
        "advantages": torch.tensor(step["advantages"]),
        "old_per_token_logps": padded(step["old"], left=False).float(),
        "ref_per_token_logps": padded(step["reference"], left=False).float(),
    }
    mask = inputs["completion_mask"]
    with torch.no_grad():
        ids, seen = (torch.cat([inputs[f"prompt_{of}"], inputs[f"completion_{of}"]], dim=1) for of in ("ids", "mask"))
        logs = trainer._get_per_token_logps_and_entropies(trainer.model, ids, seen, mask.shape[1])[0]
    apart = float(((logs - padded(step["now"], left=False)) * mask).abs().max())
    print(f"TRL {__version__}; log-probabilities of the policy: largest difference {apart:.1e}")
    within = apart < TOLERANCE
    for name, expected in step["losses"].items():
        settings.use_bias_correction_kl = name == "WeightedK3"
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        stored = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        of_loss, worst, where = abs(loss.item() - expected) / abs(expected), 0.0, ""
        for weight_name, ours in stored.named_parameters():
            weight, own = trainer.model.get_parameter(weight_name), ours.detach()
            theirs = torch.zeros_like(own) if weight.grad is None else weight.grad
            off = float((theirs - own).abs().max() / own.abs().max().clamp(min=1e-8))
            worst, where = max((worst, where), (off, weight_name))
        print(f"{name}: loss {loss.item():.6f}, ours {expected:.6f}, relative difference {of_loss:.1e}")
        print(f"  gradients: largest difference {worst:.1e} of the largest element, in {where}")
        within = within and of_loss < TOLERANCE and worst < TOLERANCE
    return within


def _nothing(**_: Any) -> list[float]:
    """Reward nothing: the answers come with their advantages."""
    return []


def _tokenizer() -> Any:
    """Return a tokenizer, which the trainer wants and the step does not use."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), eos_token="x", pad_token="x"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "compare"):
        sys.exit(__doc__)
    given = Path(sys.argv[2])
    given.mkdir(parents=True, exist_ok=True)
    if sys.argv[1] == "write":
        write(given)
    elif not compare(given):
        sys.exit(1)
