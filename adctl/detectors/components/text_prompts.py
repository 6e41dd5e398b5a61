"""Learnable normal and abnormal prompts, and their way through a frozen text encoder of CLIP.

Learnable context around a template that names no product, and learnable tokens in deeper layers: Zhou et al.,
"AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection", ICLR 2024, sections 3.2 and 3.3; deep
prompts: Khattak et al., "MaPLe", CVPR 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 77
"""Tokens that CLIP's text encoder takes, start and end included."""

_STD = 0.02
"""Standard deviation of new tokens (AnomalyCLIP's code, as CoOp)."""


class PromptLearner(nn.Module):
    """Tokens of a normal and an abnormal prompt: start, learnable context, words, end.

    Args:
        words: Token numbers of the normal and the abnormal words.
        ends: Token numbers of the start and the end of a text.
        width: Length of the vector of a token.
        context: Number of learnable tokens in front of the words.
        depth: Number of layers of the text encoder that get learnable tokens, the first included.
        deep: Number of tokens that are replaced in each deeper layer.
        shared: Whether both prompts share their learnable tokens.
    """

    def __init__(
        self,
        words: Sequence[Sequence[int]],
        ends: tuple[int, int],
        width: int,
        *,
        context: int,
        depth: int,
        deep: int,
        shared: bool,
    ) -> None:
        super().__init__()
        self.start, self.end = ends
        self.words = [list(one) for one in words]
        count = 1 if shared else 2
        self.context = nn.Parameter(_STD * torch.randn(count, context, width))
        layers = depth - 1 if context and deep else 0
        self.deep = nn.Parameter(_STD * torch.randn(layers, count, deep, width))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each prompt."""
        return tuple(2 + self.context.shape[1] + len(words) for words in self.words)

    def embed(self, table: nn.Embedding) -> Tensor:
        """Return the vectors [2,L,D] of both prompts; the shorter one is padded with its end."""
        longest = max(self.lengths)
        rows = []
        for number, words in enumerate(self.words):
            context = self.context[number % len(self.context)]
            rest = longest - 1 - len(context) - len(words)
            ids = torch.tensor([self.start, *words, *[self.end] * rest], device=context.device)
            known = table(ids)
            rows.append(torch.cat([known[:1], context.to(known.dtype), known[1:]]))
        return torch.stack(rows)

    def encode(self, text: Any) -> Tensor:
        """Return the outputs [2,L,D] of a text encoder of transformers, with the deeper tokens put into its layers.

        Padding stands after the end and has no influence, because each token reads earlier ones only.
        """
        hidden = text.embeddings(inputs_embeds=self.embed(text.embeddings.token_embedding))
        length = hidden.shape[1]
        mask = torch.full((length, length), torch.finfo(hidden.dtype).min, device=hidden.device, dtype=hidden.dtype)
        mask = mask.triu(1)[None, None]
        for number, layer in enumerate(text.encoder.layers):
            if 1 <= number <= len(self.deep):
                new = self.deep[number - 1].expand(2, -1, -1).to(hidden.dtype)
                hidden = torch.cat([hidden[:, :1], new, hidden[:, 1 + new.shape[1] :]], 1)
            hidden = layer(hidden, attention_mask=mask)
        out: Tensor = text.final_layer_norm(hidden)
        return out

    def ends(self, encoded: Tensor) -> Tensor:
        """Return the vectors [2,D] at the ends of the prompts, which stand for the whole texts."""
        return torch.stack([encoded[number, length - 1] for number, length in enumerate(self.lengths)])

    def joined(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return both prompts as one sequence [1,L,D] with one start, and the weight of each token in them [L,2].

        The weights average over the tokens of a prompt, so that a longer one has no advantage. The start belongs to
        neither: it attracts attention whatever the text is.
        """
        normal, abnormal = self.lengths
        tokens = torch.cat([encoded[0, :normal], encoded[1, 1:abnormal]])
        owner = torch.zeros(len(tokens), 2, device=tokens.device)
        owner[1:normal, 0] = 1 / (normal - 1)
        owner[normal:, 1] = 1 / (abnormal - 1)
        return tokens.unsqueeze(0), owner


def tokens_of(text: str, tokenizer: Any, context: int) -> list[int]:
    """Return the token numbers of a text, without start and end.

    Raises:
        UsageError: There is none, or together with the learnable context there are too many.
    """
    found = [int(number) for number in tokenizer(text, add_special_tokens=False).input_ids]
    if not found:
        raise UsageError("A prompt has no words.", "Give words, such as --set normal=object.")
    if len(found) + context + 2 > LONGEST:
        raise UsageError(
            f"The prompt '{text}' has {len(found)} tokens; with {context} learnable ones, start and end that is more "
            f"than the {LONGEST} that the text encoder takes.",
            "Give fewer words, or a smaller n_ctx.",
        )
    return found


def nearest_words(tokens: Tensor, table: Tensor, tokenizer: Any, count: int = 3) -> list[list[tuple[str, float]]]:
    """Return the words whose vectors are most similar to each token [N,D], with their cosine similarities.

    Args:
        tokens: Learnt tokens.
        table: Vectors [V,D] of all words of the tokenizer.
        tokenizer: The tokenizer.
        count: Words for each token.
    """
    similarity = F.normalize(tokens.float(), dim=1) @ F.normalize(table.float(), dim=1).T
    best = similarity.topk(min(count, table.shape[0]), dim=1)
    names: Sequence[str] = tokenizer.convert_ids_to_tokens(range(table.shape[0]))
    return [
        [(_plain(names[int(place)]), float(value)) for value, place in zip(values, places, strict=True)]
        for values, places in zip(best.values, best.indices, strict=True)
    ]


def _plain(name: str | None) -> str:
    return "" if name is None else name.replace("</w>", "")
