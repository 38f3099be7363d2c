"""P-tuning: a soft prompt that a small network makes of learned vectors (Liu et al. 2021, "GPT Understands, Too")."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from dept_vl.model.methods.insertion import Placement, choose_size, describe
from dept_vl.model.soft_prompt import SoftPrompt


class EncodedPrompt(SoftPrompt):
    """The prompt ``W3 relu(W2 relu(W1 x + b1) + b2) + b3`` of each of P vectors x [H], through w units.

    This is PEFT's network of type MLP. VL-Adapter's prompts have a smaller one: Linear, tanh, Linear. The vectors are
    kept beside the network, so that training can resume; PEFT saves only the prompt that they make.
    """

    def __init__(self, vectors: Float[Tensor, "P H"], *, width: int) -> None:
        super().__init__()
        hidden_size = vectors.shape[1]
        self.vectors = nn.Parameter(vectors)
        self.network = nn.Sequential(
            *(nn.Linear(hidden_size, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, hidden_size),
        )

    @property
    def prompt(self) -> Float[Tensor, "P H"]:  # type: ignore[override]  # a parameter there, and nobody sets it
        """What the network makes of the vectors now."""
        made: Tensor = self.network(self.vectors)
        return made

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Everything at one rate, under names without dots: what is before an adapter's last dot names a prompt."""
        return {"adapter": {name.replace(".", "_"): value for name, value in self.named_parameters()}}


def make_encoded_prompt(
    initial: Float[Tensor, "P H"], *, width: int | None, allowed: int | None
) -> tuple[EncodedPrompt, str]:
    """A prompt of the vectors ``initial`` with a network of the given width, or of the largest that the budget allows.

    The network starts as the library's linear layers do, from torch's global generator.

    Args:
        allowed: parameters of vectors and network; None for no limit.

    Raises:
        UsageError: the budget is too small for the vectors and a network.
    """
    length, hidden_size = initial.shape

    def cost(width: int) -> int:
        return length * hidden_size + (hidden_size + 1) * width + (width + 1) * width + (width + 1) * hidden_size

    placement = Placement(f"a network behind {length} vectors", (), cost)
    placement, width = choose_size(method="P-tuning", unit="width", placements=[placement], size=width, allowed=allowed)
    return EncodedPrompt(initial, width=width), describe("P-tuning", "width", placement, width, allowed)
