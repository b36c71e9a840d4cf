"""A direction added to the residual stream while a model generates.

Turner et al., "Steering Language Models With Activation Engineering", arXiv 2308.10248; Rimsky et al., "Steering Llama
2 via Contrastive Activation Addition", ACL 2024: `h <- h + c v` after a layer, v the difference of mean residual
streams between two sets of inputs.  `strength` is c.  `choice=random` is the control: a random direction of the same
norm after the same layer.  Deviation: the papers steer prompts of text; `steps` says which positions are steered here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from interp.interventions.base import Method, Seed, Within
from interp.interventions.directions import Direction
from interp.models import LVLM, GenerateOptions, Inputs


@dataclass(frozen=True)
class AddDirection(Method):
    """A direction is added to the residual stream after a layer: `with AddDirection(file="v.npz")(model): ...`.

    `file` holds the direction (`interp direction` writes one); from Python it may be given as `direction` instead.
    `steps`: all positions, those of the `prompt` but its last, or those from which tokens are `generated`.
    """

    file: str = ""
    strength: Annotated[float, Within(-1000, 1000)] = 1.0
    steps: Literal["all", "prompt", "generated"] = "generated"
    choice: Literal["direction", "random"] = "direction"
    seed: Seed = 0
    direction: Direction | None = field(default_factory=lambda: None)

    citation: ClassVar = "Turner et al., arXiv 2308.10248; Rimsky et al., ACL 2024"
    cost: ClassVar = "none"
    off: ClassVar = "strength=0"
    passes: ClassVar = {
        "main": "the text is written by the steered model",
        "contrast": "a contrast is between two inputs, not between two models",
        "choice": "another method that chooses heads chooses them for the steered model",
        "source": "what an edit puts in place comes from the steered model",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file and self.direction is not None:
            raise ValueError("AddDirection takes a file or a direction, got both")

    def check(self, model: LVLM) -> None:
        """ValueError if there is no direction, or it does not fit the model."""
        super().check(model)
        found = self.added()
        if found is None:
            return
        if found.layer >= model.n_layers or len(found.vector) != model.d_model:
            raise ValueError(
                f"the direction is of {len(found.vector)} values after layer {found.layer}; this model has "
                f"{model.n_layers} layers and a residual stream of {model.d_model}"
            )

    def added(self) -> Direction | None:
        """What is added, before `strength`; None if that is 0.  ValueError if no direction was given."""
        if self.strength == 0:
            return None
        if not self.file and self.direction is None:
            raise ValueError("AddDirection needs a direction: file=FILE, as interp direction --out FILE writes it")
        found = Direction.read(Path(self.file)) if self.direction is None else self.direction
        return found if self.choice == "direction" else found.random(self.seed)

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Add it, at each pass that is to be steered."""
        found = self.added()
        if found is None:
            yield GenerateOptions()
            return
        step = self.strength * found.vector

        def after(_: Any, __: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            if model.now.name not in self.passes:
                return None
            goes_on = model.now.goes_on(x.shape[1])
            if goes_on and self.steps == "prompt":
                return None
            chosen = slice(None)
            if not goes_on and self.steps != "all":
                chosen = slice(-1, None) if self.steps == "generated" else slice(None, -1)
            moved = x.clone()
            moved[:, chosen] += step.to(x)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = model.layer(found.layer).register_forward_hook(after)
        try:
            yield GenerateOptions()
        finally:
            handle.remove()
