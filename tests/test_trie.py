"""NameTrie and TrieScorer on tries small enough to score by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolguard.guard.errors import ConfigError, ReadoutError, ShapeError
from toolguard.guard.trie import ROOT, NameTrie, TrieScorer, branch_log_probs

# get_weather = 1 2 9, get_time = 1 3 9, search = 4 9, searchWeb = 4 5 9; 9 is the terminator.
PATHS = {"get_weather": (1, 2, 9), "get_time": (1, 3, 9), "search": (4, 9), "searchWeb": (4, 5, 9)}


def logits_of(probabilities: dict[int, float], vocab: int = 10) -> torch.Tensor:
    logits = torch.full((vocab,), 7.0)  # other tokens are likely and must not matter
    for token, probability in probabilities.items():
        logits[token] = math.log(probability)
    return logits


def walk(trie: NameTrie, tokens: tuple[int, ...]) -> int:
    node = ROOT
    for token in tokens:
        following = trie.advance(node, token)
        assert following is not None
        node = following
    return node


def test_structure_is_shared_by_prefix() -> None:
    """Names that start alike share nodes, and every node knows the names below it."""
    trie = NameTrie(PATHS)
    get = walk(trie, (1,))
    assert trie.children(ROOT) == (1, 4)
    assert trie.children(get) == (2, 3)
    assert trie.names_below(get) == (0, 1)
    assert trie.names_below(ROOT) == (0, 1, 2, 3)
    assert len(trie.branch_nodes) == 3
    assert trie.branches_of("searchWeb") == (ROOT, walk(trie, (4,)))


def test_leaf_carries_the_name() -> None:
    """A name is found at the end of its path, nowhere else, and no token leads out of the trie."""
    trie = NameTrie(PATHS)
    assert trie.name_at(walk(trie, (4, 9))) == "search"
    assert trie.name_at(walk(trie, (4,))) is None
    assert trie.advance(ROOT, 2) is None
    assert trie.children(walk(trie, (4, 9))) == ()


def test_scores_follow_the_path() -> None:
    """The chosen name gets its path product; a rival the product up to where it leaves the path."""
    trie = NameTrie(PATHS)
    scorer = TrieScorer(trie)
    scorer.visit(ROOT, logits_of({1: 0.6, 4: 0.2}))  # renormalised: 0.75, 0.25
    scorer.visit(walk(trie, (1,)), logits_of({2: 0.1, 3: 0.3}))  # renormalised: 0.25, 0.75
    scorer.visit(walk(trie, (1, 2)), torch.full((10,), math.nan))  # one child: nothing is read
    expected = torch.tensor([0.75 * 0.25, 0.75 * 0.75, 0.25, 0.25]).log()
    assert scorer.scores().dtype == torch.float32
    assert torch.allclose(scorer.scores(), expected, atol=1e-6)


def test_scores_before_a_branch_are_shared() -> None:
    """Names that no branch has told apart yet have equal scores, 0 at the start."""
    scorer = TrieScorer(NameTrie(PATHS))
    assert scorer.scores().tolist() == [0.0] * 4
    scorer.visit(ROOT, logits_of({1: 0.5, 4: 0.5}))
    assert scorer.scores().tolist() == pytest.approx([math.log(0.5)] * 4)


def test_one_name_scores_zero() -> None:
    """A menu of one name leaves nothing to choose, so its log-probability is 0."""
    scorer = TrieScorer(NameTrie({"only": (3, 9)}))
    scorer.visit(ROOT, torch.zeros(10))
    assert scorer.scores().tolist() == [0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_are_refused(bad: float) -> None:
    """A NaN or infinite logit of a menu name raises instead of scoring."""
    logits = torch.zeros(10)
    logits[4] = bad
    with pytest.raises(ReadoutError, match="not finite"):
        TrieScorer(NameTrie(PATHS)).visit(ROOT, logits)


def test_masked_foreign_token_is_no_error() -> None:
    """A generation setting may mask tokens outside the menu without disturbing the scores."""
    logits = torch.zeros(10)
    logits[7] = -math.inf
    scorer = TrieScorer(NameTrie(PATHS))
    scorer.visit(ROOT, logits)
    assert scorer.scores()[0].item() == pytest.approx(math.log(0.5))


def test_same_node_twice_is_refused() -> None:
    """Reading a branch twice would count it twice, so it raises."""
    scorer = TrieScorer(NameTrie(PATHS))
    scorer.visit(ROOT, torch.zeros(10))
    with pytest.raises(ReadoutError):
        scorer.visit(ROOT, torch.zeros(10))


def test_sibling_branch_is_refused() -> None:
    """Branches must lie on one path; a jump to a sibling raises."""
    trie = NameTrie(PATHS)
    scorer = TrieScorer(trie)
    scorer.visit(walk(trie, (1,)), torch.zeros(10))
    with pytest.raises(ReadoutError):
        scorer.visit(walk(trie, (4,)), torch.zeros(10))
    with pytest.raises(ReadoutError):
        trie.scores_after({walk(trie, (1,)): torch.zeros(2), walk(trie, (4,)): torch.zeros(2)})


def test_short_logits_are_refused() -> None:
    """Logits that do not reach a child's token id, or are not one row, raise a shape error."""
    trie = NameTrie(PATHS)
    with pytest.raises(ShapeError):
        TrieScorer(trie).visit(ROOT, torch.zeros(3))
    with pytest.raises(ShapeError):
        TrieScorer(trie).visit(ROOT, torch.zeros(1, 10))
    with pytest.raises(ShapeError):
        trie.scores_after({ROOT: torch.zeros(3)})


def test_batched_branch_equals_single_rows() -> None:
    """Each row of a batch gives bit for bit what the row gives alone."""
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    batch = branch_log_probs(logits, (3, 11, 40))
    assert batch.shape == (8, 3)
    for row in range(8):
        assert torch.equal(branch_log_probs(logits[row : row + 1], (3, 11, 40))[0], batch[row])
    assert torch.allclose(batch.exp().sum(dim=1), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize(
    "paths",
    [
        {},
        {"empty": ()},
        {"a": (1, 9), "b": (1, 9)},
        {"a": (1,), "b": (1, 2)},
        {"b": (1, 2), "a": (1,)},
    ],
)
def test_unusable_paths_are_refused(paths: dict[str, tuple[int, ...]]) -> None:
    """No names, empty paths, equal paths and paths that start another one raise."""
    with pytest.raises(ConfigError):
        NameTrie(paths)


def test_unknown_name_is_refused() -> None:
    """Asking for the branches of a name outside the menu raises."""
    with pytest.raises(ConfigError):
        NameTrie(PATHS).branches_of("delete_all")


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12)
)
def test_walking_every_name_sums_to_one(bodies: set[tuple[int, ...]]) -> None:
    """Over any trie the names' exact probabilities sum to 1, and rivals are upper bounds."""
    paths = {str(body): (*body, 9) for body in sorted(bodies)}
    trie = NameTrie(paths)
    generator = torch.Generator().manual_seed(1)
    table = {node: torch.randn(10, generator=generator) for node in trie.branch_nodes}
    scores = []
    for name in paths:
        scorer = TrieScorer(trie)
        for node in trie.branches_of(name):
            scorer.visit(node, table[node])
        scores.append(scorer.scores())
    exact = torch.stack([row[i] for i, row in enumerate(scores)])
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert all(bool((row >= exact - 1e-6).all()) for row in scores)
