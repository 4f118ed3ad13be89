"""Gathering what votes need of calls: free evidence while they are read, the rest afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.calibration.reading.collect import BATCH_TOKENS, Observation
from toolguard.calibration.votes.cross_fitting import fold_calls
from toolguard.calibration.votes.evidence import CallEvidence, VoteEvidence
from toolguard.calibration.votes.logit_lens import lens_margins
from toolguard.calibration.votes.packed_writing import PackedWriter
from toolguard.calibration.votes.self_question import ask_about_calls
from toolguard.calibration.votes.similarity import Encoder, query_similarities
from toolguard.calibration.votes.vote import Need
from toolguard.calibration.votes.written_calls import CallScribe, Sampling
from toolguard.guard.errors import ConfigError, ToolguardError

OnStep = Callable[[str], object]
"""Is told, in words for people, what is done next."""

_Step = Callable[[Sequence[CallEvidence]], Sequence[CallEvidence]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherOptions:
    """How evidence is gathered.

    Args:
        needs: what is gathered beyond the reading itself.
        names_only: as in `collect`.
        batch_tokens: as in `collect`.
        sampling: of calls.
        seed: of folds and what is drawn at random.
        encode: sentence encoder; needed for `similarity`.
    """

    needs: frozenset[Need] = frozenset()
    names_only: bool = False
    batch_tokens: int = BATCH_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    encode: Encoder | None = None


class Gatherer:
    """Gathers evidence of calls that one model makes.

    Args:
        loaded: the model.
        wire: how it writes calls.
        layer: block that the profile reads.
        options: what to gather.
    """

    def __init__(
        self, loaded: LoadedModel, wire: WireFormat, layer: int, options: GatherOptions
    ) -> None:
        self._loaded = loaded
        self._wire = wire
        self._layer = layer
        self._options = options
        self._late = max(len(loaded.view.blocks) - 2, 0)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks to collect, the profile's first."""
        needs, blocks = self._options.needs, len(self._loaded.view.blocks)
        wanted = range(blocks) if "lens" in needs else [self._late] if "states" in needs else []
        return tuple(dict.fromkeys((self._layer, *wanted)))

    def take(self, judged: JudgedCall, observation: Observation) -> CallEvidence:
        """Return what an observation of all `layers` says, without its hidden states."""
        needs, hidden = self._options.needs, observation.hidden
        lens = None
        if "lens" in needs:
            blocks = range(len(self._loaded.view.blocks))
            in_order = hidden[[self.layers.index(block) for block in blocks]]
            lens = lens_margins(self._loaded.view, in_order, observation.branch)
        state = hidden[self.layers.index(self._late)].clone() if "states" in needs else None
        kept = replace(observation, hidden=hidden[:0].clone())
        return CallEvidence(judged=judged, observation=kept, state=state, lens=lens)

    def gather(
        self, calls: Sequence[CallEvidence], on_step: OnStep = lambda _step: None
    ) -> VoteEvidence:
        """Return the calls with the evidence that takes further passes.

        A record whose prompt cannot be written lacks that evidence; votes cannot read it then.

        Args:
            calls: as `take` gave them.
            on_step: told what is being gathered.

        Raises:
            ConfigError: if similarities are wanted and there is no encoder.
            UnsupportedModel: if the answer to a question could not be read.
        """
        options = self._options
        steps: tuple[tuple[Need, str, _Step], ...] = (
            ("written", "writing calls", self._write),
            ("samples", "sampling calls", self._sample),
            ("question", "asking about calls", self._ask),
            ("similarity", "comparing texts", self._compare),
        )
        for need, words, add in steps:
            if need in options.needs:
                on_step(words)
                calls = add(calls)
        fitted = options.needs & {"lens", "states"}
        folds = fold_calls(_records(calls), options.seed) if fitted else None
        return VoteEvidence(
            calls=calls,
            folds=folds,
            seed=options.seed,
            with_arguments=self._wire.writes_arguments,
        )

    def _scribe(self) -> CallScribe:
        options = self._options
        writer = PackedWriter(
            self._loaded,
            self._wire,
            names_only=options.names_only,
            batch_tokens=options.batch_tokens,
        )
        return CallScribe(self._loaded, self._wire, writer, _pass_over)

    def _write(self, calls: Sequence[CallEvidence]) -> Sequence[CallEvidence]:
        written = self._scribe().calls(_records(calls), _chosen(calls))
        return [replace(call, written=written.get(_id(call))) for call in calls]

    def _sample(self, calls: Sequence[CallEvidence]) -> Sequence[CallEvidence]:
        samples = self._scribe().samples(_records(calls), self._options.sampling)
        return [replace(call, samples=samples.get(_id(call))) for call in calls]

    def _ask(self, calls: Sequence[CallEvidence]) -> Sequence[CallEvidence]:
        answers = ask_about_calls(
            self._loaded,
            self._wire,
            _records(calls),
            _chosen(calls),
            names_only=self._options.names_only,
            batch_tokens=self._options.batch_tokens,
            on_skip=_pass_over,
        )
        return [replace(call, yes=answers.get(_id(call))) for call in calls]

    def _compare(self, calls: Sequence[CallEvidence]) -> Sequence[CallEvidence]:
        if self._options.encode is None:
            raise ConfigError("the similarity of query and tools needs a sentence encoder")
        found = query_similarities(_records(calls), self._options.encode)
        return [replace(call, similarity=found[_id(call)]) for call in calls]


def _pass_over(_record: Record, _error: ToolguardError) -> None:
    """Leave the record without this evidence; its vote says that it cannot read the call."""


def _records(calls: Sequence[CallEvidence]) -> list[Record]:
    return [call.judged.record for call in calls]


def _id(call: CallEvidence) -> str:
    return call.judged.record.id


def _chosen(calls: Sequence[CallEvidence]) -> dict[str, str]:
    return {_id(call): call.judged.chosen for call in calls}
