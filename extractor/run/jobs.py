"""Batches of the plan with their audio: decoded ahead of whoever works on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from extractor.types import SAMPLE_RATE, Failure, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.audio.ahead import DecodeAhead
    from extractor.audio.decode import DecodeOptions
    from extractor.augment import Clip, Recipe
    from extractor.augment.copies import Copies
    from extractor.plan.run_plan import RunPlan
    from extractor.run.staging import Job
    from extractor.types import Header

Request = tuple[Sequence[Utterance], "Sequence[Header]"]

DECODED_AHEAD = 3  # batches that wait at most
AUDIO_AHEAD: Seconds = 3600.0  # and this much audio, 230 MB, if several batches are to wait at all


@dataclass(slots=True)
class Requested:
    """A batch on its way through decoding."""

    utterances: Sequence[Utterance]
    recipes: Sequence[Recipe] = ()  # aligned with the utterances; empty where nothing is augmented
    clips: Sequence[Clip] = ()  # other audio that the recipes take: decoded behind the utterances
    # What the header already says cannot be decoded, by index, utterances and clips counted through.
    unreadable: dict[int, Failure] = field(default_factory=dict)


class Jobs:
    """The jobs of some batches, in their order.

    >>> with Jobs(plan, todo, DecodeOptions()) as jobs:
    ...     for job in jobs:
    """

    def __init__(
        self, plan: RunPlan, todo: Sequence[int], decoding: DecodeOptions, copies: Copies | None = None
    ) -> None:
        from extractor.audio.ahead import DecodeAhead

        self.plan, self.todo, self.decoding, self.copies = plan, todo, decoding, copies
        self._requested: dict[int, Requested] = {}  # by batch: from the decoder's thread to the consumer's
        longest = max((plan.audio([b]) for b in todo), default=0.0)
        batches = max(1, min(DECODED_AHEAD, int(AUDIO_AHEAD // max(longest, 1.0))))
        self._ahead: DecodeAhead = DecodeAhead(self._requests(), decoding, ahead=batches)

    def __enter__(self) -> Jobs:
        self._ahead.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ahead.__exit__(*exc_info)

    def __iter__(self) -> Iterator[Job]:
        from extractor.run.staging import Job

        for b, decoded in zip(self.todo, self._ahead, strict=True):
            request, good = self._requested.pop(b), iter(decoded)
            failures, n = request.unreadable, len(request.utterances)
            whole = [failures[i] if i in failures else next(good) for i in range(n + len(request.clips))]
            clips = dict(zip(request.clips, whole[n:], strict=True))
            positions = self.plan.batches[b].tolist()
            yield Job(b, positions, request.utterances, whole[:n], request.recipes, clips)

    def _requests(self) -> Iterator[Request]:
        """What to decode. Headers are read again right before: a million need not be kept, and a
        recording that changed or vanished since planning is noticed."""
        from extractor.audio.probe import probe
        from extractor.augment.copies import Sounds

        sounds = None if self.copies is None else Sounds(self.copies, self.plan.live_utterances)
        for b in self.todo:
            positions = self.plan.batches[b]
            request = Requested([self.plan.utterances[p] for p in positions])
            wanted, planned = list(request.utterances), self.plan.num_samples[positions].tolist()
            lengths: list[Callable[[int], int]] = [_as_it_is] * len(wanted)
            if self.copies is not None and sounds is not None:
                request.recipes = [self.copies.recipe(u) for u in wanted]
                request.clips = list(dict.fromkeys(clip for r in request.recipes for clip in r.clips))
                lengths = [recipe.num_samples for recipe in request.recipes]
                wanted += [sounds.utterance(clip) for clip in request.clips]
                # A clip of noise has no planned length: any will do.
                planned += [clip.num_samples for clip in request.clips]
                lengths += [_as_it_is] * len(request.clips)
            found = probe(wanted, self.decoding.workers)
            headers = [_unchanged(*each) for each in zip(wanted, found, planned, lengths, strict=True)]
            request.unreadable = {i: h for i, h in enumerate(headers) if isinstance(h, Failure)}
            self._requested[b] = request
            readable = [(u, h) for u, h in zip(wanted, headers, strict=True) if not isinstance(h, Failure)]
            yield [u for u, _ in readable], [h for _, h in readable]


def _as_it_is(num_samples: int) -> int:
    return num_samples


def _unchanged(
    utterance: Utterance, header: Header | Failure, planned: int, augmented: Callable[[int], int]
) -> Header | Failure:
    """The header, or a failure where the recording's length is not what it was when it was planned.

    ``augmented``: a recording's length to that of its copy, which is what ``planned`` is of; 0 is unknown.
    """
    from extractor.audio.probe import num_samples_16k

    if isinstance(header, Failure) or header.length != "exact" or planned == 0:
        return header
    now = augmented(num_samples_16k(header, utterance))
    if now == planned:
        return header
    reason = (
        f"changed since planning: {now / SAMPLE_RATE:.2f} s long now,"
        f" {planned / SAMPLE_RATE:.2f} s then; run the same command again to take it as it is"
    )
    return Failure(utterance.id, utterance.path, "decode", reason)
