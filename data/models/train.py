"""Trains the bundled models: a tokenizer, a dense parent, the MoE upcycled from it, and the dense twin.

Order: the parent is trained first; the MoE is upcycled from it and trained on; the twin continues from the same parent
with the same schedule, the same windows in the same order and the same number of tokens. Equal tokens are not equal
compute: `data/models/README.md` gives both. Needs a folder of `DOMAIN.jsonl` files, each line with `text`.

    python data/models/train.py --corpus CORPUS/train --heldout CORPUS/heldout --out data/models

A stage whose result is on disk is not run again. Weights are trained in float32 (matrix products of the attention, the
dense FFN and the output under bfloat16 autocast, the routed experts in float32) and saved in bfloat16.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from workbench.models.upcycling import UpcyclingRecipe, upcycle

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
RECIPE = UpcyclingRecipe(n_experts=32, expert_width=40, top_k=4, shared_width=160)
DENSE = {
    "hidden_size": 128,
    "intermediate_size": 320,  # = top_k * expert_width + shared_width: the MoE is iso-active
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Schedule:
    """One stage of training. The learning rate warms up linearly, then falls along a cosine to a tenth."""

    epochs: float
    learning_rate: float
    warmup_steps: int
    window: int = 1024
    windows_per_step: int = 4
    weight_decay: float = 0.1
    balance_weight: float = 0.01


PARENT = Schedule(epochs=1.0, learning_rate=3e-3, warmup_steps=100)
CONTINUED = Schedule(epochs=1.5, learning_rate=2e-3, warmup_steps=50)
CHECKPOINTS_AT = (0.1, 0.4)


def read_domain(path: Path) -> list[str]:
    """The texts of one domain's file, in its order."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits: every byte has a token, so no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=2048
    )


def pack(texts: list[str], tokenizer: PreTrainedTokenizerFast, *, window: int, seed: int) -> torch.Tensor:
    """Documents in a seeded order, joined by end-of-text, cut into windows and shuffled: int64 [windows, window]."""
    rng = np.random.default_rng(seed)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    stream: list[int] = []
    encoded = tokenizer([texts[i] for i in rng.permutation(len(texts))], add_special_tokens=False)["input_ids"]
    for ids in encoded:
        stream.extend(ids)
        stream.append(end)
    windows = torch.tensor(stream[: len(stream) // window * window]).view(-1, window)
    return windows[torch.from_numpy(rng.permutation(len(windows)))]


def float32_experts(experts, hidden_TC, ids_TK, weights_TK):
    """Routed experts in float32 under autocast: on a CPU without AMX faster than bfloat16 for matrices this narrow."""
    with torch.autocast(hidden_TC.device.type, enabled=False):
        n_chosen = ids_TK.shape[-1]
        order = ids_TK.reshape(-1).argsort(stable=True)
        counts = torch.bincount(ids_TK.reshape(-1), minlength=experts.num_experts).tolist()
        token = order // n_chosen
        outputs = []
        for expert, rows in enumerate(hidden_TC.float()[token].split(counts)):
            gate, up = F.linear(rows, experts.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs.append(F.linear(experts.act_fn(gate) * up, experts.down_proj[expert]))
        weighted = torch.cat(outputs) * weights_TK.reshape(-1)[order].float()[:, None]
        mixed = torch.zeros(hidden_TC.shape, device=hidden_TC.device).index_add(0, token, weighted)
    return mixed.to(hidden_TC.dtype)


def balance_loss(router_logits, n_chosen: int) -> torch.Tensor:
    """Mean over layers of E * sum_e f_e P_e (Switch, arXiv:2101.03961, with f over all chosen)."""
    losses = []
    for logits_TE in router_logits:
        score_TE = logits_TE.float().softmax(-1)
        n_experts = score_TE.shape[-1]
        counts_E = torch.bincount(score_TE.topk(n_chosen).indices.reshape(-1), minlength=n_experts)
        losses.append(n_experts * (counts_E / counts_E.sum() * score_TE.mean(0)).sum())
    return torch.stack(losses).mean()


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    return schedule.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def heldout_loss(model, tokenizer, heldout: dict[str, list[str]], device: str) -> dict[str, float]:
    """Mean loss in nats per token of the first 12 documents of each domain, cut to 512 tokens: for the curve alone."""
    model.eval()
    losses = {}
    for domain, texts in heldout.items():
        total, n_tokens = 0.0, 0
        for text in texts[:12]:
            ids = torch.tensor([tokenizer(text)["input_ids"][:512]], device=device)
            logprob = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            total -= logprob.gather(1, ids[0, 1:, None]).sum().item()
            n_tokens += ids.shape[1] - 1
        losses[domain] = total / n_tokens
    model.train()
    return losses


def train(model, windows, schedule: Schedule, *, name: str, device: str, evaluate, out: Path, on_step=None) -> None:
    """Trains in place; appends to `out/NAME.jsonl` a line every 20 steps, with held-out losses every 200."""
    steps = int(len(windows) * schedule.epochs) // schedule.windows_per_step
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=0.0, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    is_moe = hasattr(model.config, "num_experts")
    n_chosen = getattr(model.config, "num_experts_per_tok", 0)
    if is_moe:
        ALL_EXPERTS_FUNCTIONS.register("float32_training", float32_experts)
        model.set_experts_implementation("float32_training" if device == "cpu" else "grouped_mm")
    model.to(device).train()
    started = time.time()
    recent: list[float] = []
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as log:
        for step in range(steps):
            if on_step is not None:
                on_step(step, steps)
            rows = (torch.arange(schedule.windows_per_step) + step * schedule.windows_per_step) % len(windows)
            ids = windows[rows].to(device)
            with torch.autocast(device, torch.bfloat16):
                output = model(input_ids=ids, use_cache=False, **({"output_router_logits": True} if is_moe else {}))
            logits = output.logits[:, :-1].float()
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
            total = loss
            if is_moe:
                total = loss + schedule.balance_weight * balance_loss(output.router_logits, n_chosen)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent.append(loss.item())
            if step % 20 == 19 or step == steps - 1:
                row = {"step": step + 1, "tokens": (step + 1) * ids.numel(), "loss": float(np.mean(recent))}
                if step % 200 == 199 or step == steps - 1:
                    row["heldout"] = evaluate(model)
                log.write(json.dumps(row) + "\n")
                log.flush()
                rate = row["tokens"] / (time.time() - started)
                print(f"{name} step {step + 1}/{steps} loss {row['loss']:.3f} {rate:.0f} tokens/s", flush=True)
                recent.clear()
    if is_moe:
        model.set_experts_implementation("grouped_mm")


def save(model, tokenizer, folder: Path) -> None:
    """Writes bfloat16 safetensors and the tokenizer; the model in memory stays float32."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(state, strict=False)
    copy.tie_weights()
    copy.config.use_cache = True
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:  # noqa: PLR0915  one stage after the other, read from top to bottom
    """Runs the stages whose results are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of DOMAIN.jsonl to train on")
    parser.add_argument("--heldout", type=Path, required=True, help="folder of DOMAIN.jsonl for the curves")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=float, default=1.0, help="of each stage; below 1 for a trial")
    arguments = parser.parse_args()
    out, seed, device = arguments.out, arguments.seed, arguments.device
    curves = out / "curves"
    curves.mkdir(parents=True, exist_ok=True)
    by_domain = {path.stem: read_domain(path) for path in sorted(arguments.corpus.glob("*.jsonl"))}
    heldout = {path.stem: read_domain(path) for path in sorted(arguments.heldout.glob("*.jsonl"))}
    texts = [text for domain in by_domain.values() for text in domain]

    dense_folder, moe_folder = out / "tiny-dense", out / "tiny-moe"
    parent_folder = dense_folder / "parent"
    if (parent_folder / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(parent_folder)
    else:
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(parent_folder)
    evaluate = lambda model: heldout_loss(model, tokenizer, heldout, device)  # noqa: E731
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    ids = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    schedules = {
        name: Schedule(**{**asdict(schedule), "epochs": arguments.epochs * schedule.epochs})
        for name, schedule in (("parent", PARENT), ("continued", CONTINUED))
    }

    state_path = curves / f"parent-float32-{seed}.pt"  # not kept in the repository; the bfloat16 parent is
    torch.manual_seed(seed)
    parent = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **DENSE, **ids))
    if state_path.exists():
        parent.load_state_dict(torch.load(state_path, weights_only=True))
    else:
        windows = pack(texts, tokenizer, window=PARENT.window, seed=seed)
        print(f"{windows.numel():,} training tokens in {len(windows):,} windows", flush=True)
        train(parent, windows, schedules["parent"], name="parent", device=device, evaluate=evaluate, out=curves)
        save(parent, tokenizer, parent_folder)
        torch.save(parent.to("cpu").state_dict(), state_path)

    windows = pack(texts, tokenizer, window=CONTINUED.window, seed=seed + 1)
    if not (moe_folder / "model.safetensors").exists():
        moe = upcycle(parent, RECIPE, seed=seed)
        save(moe, tokenizer, moe_folder / "step-0")

        def checkpoint(step: int, steps: int) -> None:
            if step in {int(steps * share) for share in CHECKPOINTS_AT}:
                save(moe, tokenizer, moe_folder / f"step-{step}")

        with (curves / "moe-step-0.json").open("w", encoding="utf-8") as file:
            json.dump({"heldout": evaluate(moe.to(device))}, file)
        train(moe, windows, schedules["continued"], name="moe", device=device, evaluate=evaluate, out=curves,
              on_step=checkpoint)  # fmt: skip
        save(moe, tokenizer, moe_folder)
    if not (dense_folder / "model.safetensors").exists():
        train(parent, windows, schedules["continued"], name="dense", device=device, evaluate=evaluate, out=curves)
        save(parent, tokenizer, dense_folder)
    (curves / "settings.json").write_text(
        json.dumps(
            {"seed": seed, "device": device, "vocabulary": len(tokenizer), "dense": DENSE, "recipe": asdict(RECIPE),
             "parent": asdict(schedules["parent"]), "continued": asdict(schedules["continued"]),
             "tokens_per_epoch": int(windows.numel()), "torch": torch.__version__},
            indent=1,
        ) + "\n", encoding="utf-8",
    )  # fmt: skip


if __name__ == "__main__":
    main()
