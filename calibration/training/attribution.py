"""The public data sets that the agent learns from, credited as their licences ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSource:
    """One data set: who made it, under which licence, and what was changed.

    Args:
        name: folder of its records.
        title: what it is called.
        authors: in the order of the paper.
        paper: where it was published.
        url: where it was taken from.
        licence: name of the licence.
        licence_url: its text.
        changes: what was done to it.
        remark: further words that the licence or its authors ask for.
    """

    name: str
    title: str
    authors: str
    paper: str
    url: str
    licence: str
    licence_url: str
    changes: str
    remark: str

    def notice(self) -> str:
        """Return the attribution as Markdown."""
        return (
            f"**{self.title}** by {self.authors}. {self.paper}.\n"
            f"Source: <{self.url}>. Licence: {self.licence}, <{self.licence_url}>. "
            f"Changes: {self.changes} {self.remark}"
        )


_CHANGES = (
    "a sample was taken; intents were turned into tools with names and descriptions{slots}; "
    "queries were lower-cased and words left out at random while training."
)
_NO_WARRANTY = "It is provided as it is, without warranties; its authors do not endorse this model."

SOURCES = (
    PublicSource(
        name="snips",
        title="SNIPS 2017-06 custom intent engines",
        authors=(
            "Alice Coucke, Alaa Saade, Adrien Ball, Théodore Bluche, Alexandre Caulier, David "
            "Leroy, Clément Doumouro, Thibault Gisselbrecht, Francesco Caltagirone, Thibaut "
            "Lavril, Maël Primet and Joseph Dureau"
        ),
        paper=(
            '"Snips Voice Platform: an embedded Spoken Language Understanding system for '
            'private-by-design voice interfaces", arXiv:1805.10190, 2018'
        ),
        url="https://github.com/sonos/nlu-benchmark",
        licence="CC0 1.0 Universal",
        licence_url="https://creativecommons.org/publicdomain/zero/1.0/",
        changes=_CHANGES.format(slots=", slots into arguments"),
        remark="The dedication asks for nothing; its authors ask to be cited.",
    ),
    PublicSource(
        name="hwu64",
        title="NLU-Evaluation-Data (HWU64)",
        authors="Xingkun Liu, Arash Eshghi, Pawel Swietojanski and Verena Rieser",
        paper=(
            '"Benchmarking Natural Language Understanding Services for building Conversational '
            'Agents", IWSDS 2019'
        ),
        url="https://github.com/xliuhw/NLU-Evaluation-Data",
        licence="Creative Commons Attribution 4.0 International (CC BY 4.0)",
        licence_url="https://creativecommons.org/licenses/by/4.0/",
        changes=_CHANGES.format(slots=", entities into arguments"),
        remark=_NO_WARRANTY,
    ),
    PublicSource(
        name="clinc150",
        title="CLINC150 (oos-eval)",
        authors=(
            "Stefan Larson, Anish Mahendran, Joseph J. Peper, Christopher Clarke, Andrew Lee, "
            "Parker Hill, Jonathan K. Kummerfeld, Kevin Leach, Michael A. Laurenzano, Lingjia "
            "Tang and Jason Mars"
        ),
        paper=(
            '"An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", '
            "EMNLP-IJCNLP 2019"
        ),
        url="https://github.com/clinc/oos-eval",
        licence="Creative Commons Attribution 3.0 Unported (CC BY 3.0)",
        licence_url="https://creativecommons.org/licenses/by/3.0/",
        changes=_CHANGES.format(slots=""),
        remark=_NO_WARRANTY,
    ),
)
