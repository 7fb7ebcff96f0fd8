"""What the judges found for one state of the model: one row per case. Evaluations keep it, for paired comparisons.

Shapes: N cases, J judges, M drawn images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import in_order

Group = Literal["pictures", "text", "unseen"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""How a name was learned: with images; by the text encoder alone, from parallel text, and never with an image in that
language; or not at all."""

COLUMNS = pa.schema(
    [
        ("state", pa.string()),
        ("id", pa.string()),
        ("concept", pa.string()),
        ("language", pa.string()),
        ("seen", pa.bool_()),
        ("images", pa.int64()),
        ("right", pa.float64()),
        ("group", pa.string()),
    ]
)
"""Columns of the file of an evaluation's outcomes, with one row per state and case.

`seen` is whether the group is `pictures`. Files of earlier versions have no column `group`; there, a name that is not
seen is `unseen`.
"""
_BEFORE_GROUPS = COLUMNS.remove(COLUMNS.get_field_index("group"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """The concept and language that one prompt asks for."""

    concept: str
    language: str
    group: Group
    """How the concept's name in this language was learned."""

    @property
    def seen(self) -> bool:
        """Whether this concept's name in this language was in the training data of the images."""
        return self.group == "pictures"


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """The outcomes of one state."""

    ids: Sequence[str]
    """[N] ids of the prompts."""
    cases: Sequence[Case]
    """[N]"""
    images: NDArray[np.int64]
    """[N] images that were asked for; one that was not drawn counts as wrong."""
    right: NDArray[np.float64]
    """[N] share of a case's images and judges that were right, 0..1."""

    @property
    def languages(self) -> list[str]:
        """The languages, in the project's order."""
        return in_order(case.language for case in self.cases)

    def table(self, state: str) -> pa.Table:
        """Return the rows of a state as COLUMNS."""
        return pa.table(
            {
                "state": [state] * len(self.ids),
                "id": list(self.ids),
                "concept": [case.concept for case in self.cases],
                "language": [case.language for case in self.cases],
                "seen": [case.seen for case in self.cases],
                "images": self.images,
                "right": self.right,
                "group": [case.group for case in self.cases],
            },
            schema=COLUMNS,
        )

    @classmethod
    def of_table(cls, table: pa.Table, state: str) -> Outcomes:
        """Return the outcomes of one state from a table of COLUMNS, with or without groups.

        Raises:
            AltDiffusionError: the table has other columns, or no row of that state.
        """
        if not table.schema.equals(COLUMNS) and not table.schema.equals(_BEFORE_GROUPS):
            raise AltDiffusionError(
                "outcomes of an evaluation",
                f"have the columns {', '.join(table.schema.names)}",
                "run the evaluation again",
            )
        rows = [row for row in table.to_pylist() if row["state"] == state]
        if not rows:
            raise AltDiffusionError(
                "outcomes of an evaluation", f"hold no rows of state {state}", "run the evaluation again"
            )
        return cls(
            ids=[row["id"] for row in rows],
            cases=[
                Case(
                    concept=row["concept"],
                    language=row["language"],
                    group=row.get("group") or group_of(row["seen"]),
                )
                for row in rows
            ],
            images=np.array([row["images"] for row in rows], np.int64),
            right=np.array([row["right"] for row in rows], np.float64),
        )


def group_of(seen: bool) -> Group:
    """Return the group of a name of which only this is known."""
    return "pictures" if seen else "unseen"


def outcomes_of(
    cases: Mapping[str, Case], images: Mapping[str, int], drawn: Sequence[str], named: NDArray[Any]
) -> Outcomes:
    """Return the outcomes of one state.

    Args:
        cases: by the prompt's id.
        images: number of images that were asked for, by the prompt's id.
        drawn: [M] prompt's id of each image that was drawn.
        named: [J, M] concept that each judge named in each image.
    """
    if named.ndim != 2 or named.shape[1] != len(drawn) or not len(cases):
        raise ValueError(f"{named.shape} answers for {len(drawn)} images of {len(cases)} cases")
    place = {name: index for index, name in enumerate(cases)}
    places = np.array([place[name] for name in drawn], np.int64)
    wanted = np.array([cases[name].concept for name in drawn], dtype=object)
    shares = (named.astype(object) == wanted).mean(axis=0) if len(drawn) else np.zeros(0)
    asked = np.array([images[name] for name in cases], np.int64)
    right = np.bincount(places, weights=shares.astype(np.float64), minlength=len(cases)) / asked
    return Outcomes(ids=list(cases), cases=list(cases.values()), images=asked, right=right)
