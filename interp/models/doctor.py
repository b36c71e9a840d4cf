"""The doctor: does what interp reads and edits in a model mean what it should?  `load` asks before anything runs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interp.models import compat
from interp.models.families import UnsupportedModelError
from interp.models.image_free import image_free
from interp.models.inputs import Inputs
from interp.models.kernels import AttentionCall
from interp.models.lvlm import LVLM
from interp.models.sites import run_with_edits

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference, as a share of the largest value, that counts as rounding."""
QUANTIZED = 1e-1
PROMPTS = ("Please describe this image in detail.", "Describe.")


@dataclass(frozen=True)
class Check:
    """One question about a model; `passed` is None where it does not apply."""

    name: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[self.passed]
        return f"{mark}  {self.name:<44} {self.detail}"


@dataclass(frozen=True)
class Diagnosis:
    """All checks of a model, and how long they took in seconds."""

    model: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        verdict = "everything fits" if self.healthy else "interp cannot be trusted with this model"
        lines = [self.model, *(f"  {check}" for check in self.checks), f"{verdict} ({self.seconds:.2f} s)"]
        return "\n".join(lines)

    def require(self) -> None:
        """UnsupportedModelError with what failed, if anything did."""
        failed = "; ".join(f"{check.name}: {check.detail}" for check in self.checks if check.passed is False)
        if failed:
            raise UnsupportedModelError(
                f"interp cannot be trusted with {self.model}: {failed}. If its files are whole, correct the entry of "
                "its family in interp/models/families.py; check=False loads it all the same, to look at it (interp "
                "doctor shows all checks)"
            )


def _probe(model: LVLM) -> Inputs:
    """Two prompts of different lengths, with two pictures where the model takes some."""
    if not model.family.has_vision:
        return model.inputs(None, PROMPTS)
    ramp = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    pictures = [Image.fromarray(ramp), Image.fromarray(255 - ramp[::-1, ::-1].swapaxes(0, 1))]
    return model.inputs(pictures, PROMPTS)


def _weights(model: LVLM) -> Iterator[Check]:
    """Every weight came from the files, and is a number."""
    if model.misfits is not None:
        told = "; ".join(model.misfits) or "all of them, and no others"
        yield Check("weights come from the files", not model.misfits, told)
    wrong = []
    for name, p in model.hf.named_parameters():
        if p.is_meta or not p.is_floating_point() or not p.numel():  # offloaded; quantised
            continue
        ends = (p if p.dtype in TOLERANCE else p.float()).aminmax()
        if not (ends.min.isfinite() and ends.max.isfinite()):
            wrong.append(name)
    some = f"{len(wrong)} hold NaN or infinity: {', '.join(wrong[:3])}" if wrong else "no NaN, no infinity"
    yield Check("weights are finite", not wrong, some)


def _layout(model: LVLM) -> Iterator[Check]:
    """The paths of the family's entry lead somewhere, and sizes agree with the configuration."""
    family = model.family
    try:
        layers = attrgetter(family.layers)(model.hf)
        for path in (family.attention, family.out_proj, family.attention_out, family.mlp_out):
            attrgetter(path)(layers[0])
    except AttributeError as error:
        yield Check("paths of the family's entry", False, f"{type(model.hf).__name__}: {error}")
        return
    yield Check("layers", len(layers) == model.n_layers, f"{len(layers)}; the configuration says {model.n_layers}")
    projection = model.out_proj(0)
    width = getattr(projection, "in_features", None) or projection.weight.shape[0]
    product = f"{model.n_heads} heads x {model.d_head}"
    yield Check("heads fill the output projection", width == model.n_heads * model.d_head, f"{width} = {product}")


class _Seen:
    """What one pass through every site shows; every value that can be is put back unchanged."""

    def __init__(self, model: LVLM, inputs: Inputs) -> None:
        self.real = inputs.attention_mask.bool()
        self.row_sums = self.leaks = self.mixing = self.residue = 0.0
        self.parts: dict[str, Tensor] = {}
        self.call: AttentionCall | None = None
        edits: Any = {name: self._keep(name) for name in ("resid_pre", "attn_out", "mlp_out")}
        edits |= {"attention": self._attention, "z": self._z, "resid_post": self._resid_post}
        self.logits = run_with_edits(model, inputs, edits, keep=None)

    def _keep(self, name: str) -> Any:
        def keep(_: int, value: Tensor) -> Tensor:
            self.parts[name] = value
            return value.clone()

        return keep

    def _attention(self, _: int, call: AttentionCall) -> None:
        self.call = call
        pattern, real = call.pattern().float(), self.real.to(call.query.device)
        off = (pattern.sum(-1) - 1).abs().masked_fill(~real[:, None], 0)
        self.row_sums = max(self.row_sums, off.max().item())
        leak = pattern.masked_fill(real[:, None, None], 0).masked_fill(~real[:, None, :, None], 0)
        self.leaks = max(self.leaks, leak.max().item())

    def _z(self, _: int, z: Tensor) -> Tensor:
        if self.call is not None:  # None: the kernel never showed itself
            expected = self.call.head_outputs(self.call.pattern())
            fits = expected.shape == z.shape  # else the heads are not as many, or as wide, as the configuration says
            self.mixing = max(self.mixing, _difference(expected, z, self.real) if fits else float("inf"))
        else:
            self.mixing = float("inf")
        self.call = None
        return z.clone()

    def _resid_post(self, _: int, value: Tensor) -> Tensor:
        total = self.parts["resid_pre"] + self.parts["attn_out"].to(value.device) + self.parts["mlp_out"]
        self.residue = max(self.residue, _difference(total, value, self.real))
        return value.clone()


def _difference(a: Tensor, b: Tensor, real: Tensor) -> float:
    """The largest difference at real tokens, as a share of the largest value."""
    a, b = a[real.to(a.device)].float(), b[real.to(b.device)].float().to(a.device)
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item()


def _inside(model: LVLM, inputs: Inputs, tolerance: float) -> Iterator[Check]:
    """The sites show what they are named after, and edits arrive."""
    with torch.no_grad():
        plain = model.hf(**inputs.kwargs(), use_cache=False).logits
    finite = bool(plain[inputs.attention_mask.bool()].isfinite().all())
    yield Check("logits are finite", finite, f"in {model.dtype}" if finite else f"NaN or infinity in {model.dtype}")
    if not finite:
        return
    seen = _Seen(model, inputs)
    yield Check("attention rows sum to one", seen.row_sums < tolerance, f"off by {seen.row_sums:.1e} at most")
    yield Check("nothing attends to padding", seen.leaks == 0, f"{seen.leaks:.1e} at most")
    yield Check("probabilities x values = head outputs", seen.mixing < tolerance, f"off by {seen.mixing:.1e}")
    detail = f"off by {seen.residue:.1e}"
    yield Check("residual in + attention + MLP = residual out", seen.residue < tolerance, detail)
    same = torch.equal(seen.logits, plain)
    yield Check("a no-op edit leaves logits bit-equal", same, "at all sites at once")

    def silence(_: int, z: Tensor) -> Tensor:
        return z.index_fill(2, torch.tensor([z.shape[2] - 1], device=z.device), 0)

    changed = (run_with_edits(model, inputs, {"z": silence}) - plain[:, -1:]).abs().max().item()
    yield Check("silencing a head changes the logits", changed > 0, f"by {changed:.1e}")
    other = "eager" if model.backend != "eager" else "sdpa"
    name = f"{model.backend} and {other} agree"
    if not (compat.offers_sdpa(model.hf) or model.backend == other):
        yield Check(name, None, f"{type(model.hf).__name__} does not offer sdpa")
        return
    with torch.no_grad(), compat.attention_backend(model.decoder_configs, other):
        off = _difference(model.hf(**inputs.kwargs(), use_cache=False).logits, plain, inputs.attention_mask.bool())
    yield Check(name, off < tolerance, f"logits off by {off:.1e} on {model.device}")


def _vision(model: LVLM, inputs: Inputs) -> Iterator[Check]:
    """Image tokens are found, and taking the picture away makes a difference."""
    counts = inputs.image_mask.sum(1).tolist()
    yield Check("image tokens found", min(counts) > 0, f"{' and '.join(str(n) for n in counts)}")
    without = image_free(model, inputs)
    gone = not without.image_mask.any() and not torch.isin(without.input_ids, model.image_token_id or -1).any()
    yield Check(
        "no image in image-free prompts", gone, f"{int(without.attention_mask[0].sum())} tokens left in a prompt"
    )
    with torch.no_grad():
        with_image = model.hf(**inputs.kwargs(), use_cache=False).logits[:, -1]
        moved = (with_image - model.hf(**without.kwargs(), use_cache=False).logits[:, -1]).abs().max().item()
    yield Check("the picture changes the next token", moved > 0, f"logits move by {moved:.1e}")


def _questions(model: LVLM) -> Iterator[Check]:
    """Every check in order; a later one asks what only a model that passed the earlier ones can answer."""
    for group in (_weights, _layout):
        checks = list(group(model))
        yield from checks
        if any(check.passed is False for check in checks):
            return
    inputs = _probe(model)
    if model.family.has_vision:
        yield from _vision(model, inputs)
    rounding = QUANTIZED if getattr(model.hf, "is_quantized", False) else TOLERANCE.get(model.dtype, QUANTIZED)
    yield from _inside(model, inputs, rounding)


def diagnose(model: LVLM) -> Diagnosis:
    """Run every check on two small prompts."""
    start = time.perf_counter()
    checks = []
    try:
        for check in _questions(model):
            checks.append(check)
    except Exception as error:  # a model or processor that does not fit can fail anyhow: that is a finding
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        checks.append(Check("two small prompts run", False, reason))
    return Diagnosis(repr(model), tuple(checks), time.perf_counter() - start)
